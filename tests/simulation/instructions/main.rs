//! `cargo xtask bench instructions`: the instructions of the parts on the way of a get, which are the same in
//! each run, also on a busy machine.
//!
//! `instructions FILE` counts and compares with the file, `instructions FILE --record` writes it, and
//! `instructions PART TIMES` runs one part, as valgrind has it done.

mod count;
mod parts;

use std::path::Path;
use std::process::ExitCode;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let done = match arguments[..] {
        [file] => count::count(Path::new(file), false),
        [file, "--record"] => count::count(Path::new(file), true),
        [part, times] => match (parts::PARTS.iter().find(|(name, ..)| *name == part), times.parse()) {
            (Some((_, _, turn)), Ok(times)) => {
                turn(times);
                Ok(())
            }
            _ => Err(format!("no part `{part}`, or no number `{times}`")),
        },
        _ => Err("usage: instructions FILE [--record]".to_owned()),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("{why}");
            ExitCode::FAILURE
        }
    }
}
