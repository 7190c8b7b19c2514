//! A node of the Peanut cache. Everything is in the library; see `peanut_server::command`.

use std::process::ExitCode;

#[global_allocator]
static ALLOCATOR: peanut_server::command::Allocator = peanut_server::command::Allocator;

fn main() -> ExitCode {
    peanut_server::command::main()
}
