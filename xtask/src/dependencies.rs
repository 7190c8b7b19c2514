//! What the crates depend on: each feature by itself, and licences, sources and advisories.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::run::{Cargo, Failed, is_installed, need_cargo_tool};

/// Packages that others depend on, by their directories.
const PACKAGES: [(&str, &str); 6] = [
    ("peanut-proto", "proto"),
    ("peanut-client", "client"),
    ("peanut-proxy", "client/proxy"),
    ("peanut-edge", "server/edge"),
    ("peanut-page", "server/page"),
    ("peanut-server", "server"),
];
/// The advisories' database is small; where it has not come by then, it will not.
const PATIENCE: Duration = Duration::from_secs(60);
const ADVISORIES: &str = "https://github.com/rustsec/advisory-db";

/// Checks every feature of every package with no other: what needs another one has to say so.
pub(crate) fn features() -> Result<(), Failed> {
    for (package, directory) in PACKAGES {
        let manifest = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(directory).join("Cargo.toml");
        let manifest = std::fs::read_to_string(&manifest)
            .map_err(|error| Failed(format!("{}: {error}", manifest.display())))?;
        for feature in names(&manifest).filter(|name| *name != "default") {
            let check = [
                "check",
                "--quiet",
                "--locked",
                "-p",
                package,
                "--no-default-features",
                "--features",
                feature,
            ];
            Cargo::new(&check).run("a feature alone")?;
        }
    }
    Ok(())
}

/// The names in a manifest's table of features.
fn names(manifest: &str) -> impl Iterator<Item = &str> {
    let lines = manifest.lines().skip_while(|line| *line != "[features]").skip(1);
    let lines = lines.take_while(|line| !line.starts_with('['));
    lines
        .filter(|line| line.starts_with(|c: char| c.is_ascii_lowercase()))
        .filter_map(|line| Some(line.split_once(" =")?.0))
}

/// Checks licences, bans and sources, and the advisories where their database can be had; says so where it
/// cannot.
pub(crate) fn deny() -> Result<(), Failed> {
    need_cargo_tool("cargo-deny")?;
    let check = ["deny", "--all-features", "check", "licenses", "bans", "sources"];
    Cargo::new(&check).run("licences, bans and sources")?;
    if !fetched() {
        eprintln!("advisories were NOT checked: {ADVISORIES} cannot be fetched");
        return Ok(());
    }
    let check = ["deny", "--all-features", "check", "--disable-fetch", "advisories"];
    Cargo::new(&check).run("advisories")
}

/// As [`deny`], for the test command: where cargo-deny is not installed and the advisories cannot be had,
/// installing it takes minutes for half of what it is for. Says so where nothing was checked.
pub(crate) fn deny_if_possible() -> Result<(), Failed> {
    if !is_installed("cargo-deny") && (!is_reachable() || need_cargo_tool("cargo-deny").is_err()) {
        eprintln!(
            "licences, bans, sources and advisories were NOT checked: cargo-deny is not installed, and it or \
             {ADVISORIES} cannot be had from here"
        );
        return Ok(());
    }
    deny()
}

/// Whether the database of advisories answers.
fn is_reachable() -> bool {
    eprintln!("\n== the advisories: git ls-remote {ADVISORIES}");
    let mut command = Command::new("git");
    let ask = command.args(["ls-remote", "--quiet", ADVISORIES, "HEAD"]).env("GIT_TERMINAL_PROMPT", "0");
    ask.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().is_ok_and(succeeds_in_time)
}

/// Whether the database of advisories could be fetched.
fn fetched() -> bool {
    eprintln!("\n== the advisories: cargo deny fetch db");
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    let fetch = command.args(["deny", "fetch", "db"]).stdin(Stdio::null()).stderr(Stdio::null()).spawn();
    fetch.is_ok_and(succeeds_in_time)
}

/// Whether a command ends well before anyone loses patience.
fn succeeds_in_time(mut command: Child) -> bool {
    let begun = now();
    while begun.elapsed() < PATIENCE {
        match command.try_wait() {
            Ok(Some(status)) => return status.success(),
            Ok(None) => std::thread::sleep(Duration::from_millis(200)),
            Err(_) => break,
        }
    }
    let _ = command.kill();
    let _ = command.wait();
    false
}

#[expect(clippy::disallowed_methods, reason = "a command takes real time")]
fn now() -> Instant {
    Instant::now()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_features_are_found_and_nothing_else() {
        let manifest = "[package]\nname = \"x\"\n[features]\ndefault = [\"a\"]\n# one = []\na = []\nb-c = [\n    \"dep:x\",\n]\n\n[[bin]]\nname = \"y\"\n[dependencies]\nz = 1\n";
        assert_eq!(names(manifest).collect::<Vec<_>>(), ["default", "a", "b-c"]);
    }
}
