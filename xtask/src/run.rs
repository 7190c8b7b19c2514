//! Running a command, with a heading, and saying which one failed.

use std::ffi::OsStr;
use std::fmt;
use std::path::PathBuf;
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

    pub(crate) fn arg(mut self, arg: impl AsRef<OsStr>) -> Self {
        self.0.arg(arg);
        self
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

/// Installs a subcommand of cargo, with or without a version after `@`, unless it is on the path.
pub(crate) fn need_cargo_tool(tool: &str) -> Result<(), Failed> {
    need_cargo_tool_with(tool, &[])
}

/// Installs a tool with further arguments of `cargo install`, unless it is there.
pub(crate) fn need_cargo_tool_with(tool: &str, arguments: &[&str]) -> Result<(), Failed> {
    let (name, _) = tool.split_once('@').unwrap_or((tool, ""));
    if is_installed(name) {
        return Ok(());
    }
    let install = ["install", "--quiet", "--locked", tool];
    Cargo::new(&[&install[..], arguments].concat()).run(&format!("installing {name}"))
}

/// A program that cargo has built, by its path in the target directory.
pub(crate) fn built(path: &str) -> Result<Command, Failed> {
    Ok(Command::new(target_directory()?.join(path)))
}

/// Where cargo builds.
pub(crate) fn target_directory() -> Result<PathBuf, Failed> {
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    let metadata = cargo.args(["metadata", "--no-deps", "--format-version=1"]).output();
    let metadata = metadata.map_err(|error| Failed(format!("cargo metadata could not be run: {error}")))?;
    let text = String::from_utf8_lossy(&metadata.stdout);
    let target = text.split_once("\"target_directory\":\"").and_then(|(_, rest)| rest.split('"').next());
    target.map(PathBuf::from).ok_or_else(|| Failed("cargo metadata names no target directory".to_owned()))
}
