//! A node of the Peanut cache. Everything is in the library; see `peanut_server::command`.

use std::process::ExitCode;

fn main() -> ExitCode {
    peanut_server::command::main()
}
