//! Running a command, with a heading, and saying which one failed.

use std::fmt;
use std::process::{Command, Stdio};

/// Which step failed, and how.
#[derive(Debug)]
pub(crate) struct Failed(pub(crate) String);

impl fmt::Display for Failed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A cargo command.
pub(crate) struct Cargo(Command);

impl Cargo {
    pub(crate) fn new(args: &[&str]) -> Self {
        let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        command.args(args);
        Cargo(command)
    }

    pub(crate) fn env(mut self, name: &str, value: &str) -> Self {
        self.0.env(name, value);
        self
    }

    pub(crate) fn run(mut self, step: &str) -> Result<(), Failed> {
        run(step, &mut self.0)
    }
}

/// Runs a command to its end under a heading.
pub(crate) fn run(step: &str, command: &mut Command) -> Result<(), Failed> {
    let words: Vec<_> = command.get_args().map(|word| word.to_string_lossy()).collect();
    eprintln!("\n== {step}: {} {}", command.get_program().to_string_lossy(), words.join(" "));
    match command.status() {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => Err(Failed(format!("{step} failed ({status})"))),
        Err(error) => Err(Failed(format!("{step} could not be run: {error}"))),
    }
}

/// Whether a command is on the path.
pub(crate) fn is_installed(command: &str) -> bool {
    let quiet = Command::new(command).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
    quiet.is_ok_and(|status| status.success())
}
