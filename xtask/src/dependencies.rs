//! What the crates depend on: each feature by itself, and licences, sources and advisories.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::run::{Cargo, Failed, is_installed};

/// Packages that others depend on, by their folders.
const PACKAGES: [(&str, &str); 3] =
    [("peanut-proto", "proto"), ("peanut-client", "client"), ("peanut-server", "server")];
/// The advisories' database is small; where it has not come by then, it will not.
const PATIENCE: Duration = Duration::from_secs(120);

/// Checks every feature of every package with no other: what needs another one has to say so.
pub(crate) fn features() -> Result<(), Failed> {
    for (package, folder) in PACKAGES {
        let manifest = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(folder).join("Cargo.toml");
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

/// Checks licences, bans and sources, and the advisories where their database can be had; says so where it cannot.
pub(crate) fn deny() -> Result<(), Failed> {
    if !is_installed("cargo-deny") {
        Cargo::new(&["install", "--quiet", "--locked", "cargo-deny"]).run("installing cargo-deny")?;
    }
    let check = ["deny", "--all-features", "check", "licenses", "bans", "sources"];
    Cargo::new(&check).run("licences, bans and sources")?;
    if !fetched() {
        eprintln!(
            "advisories were NOT checked: their database (github.com/rustsec/advisory-db) cannot be fetched"
        );
        return Ok(());
    }
    let check = ["deny", "--all-features", "check", "--disable-fetch", "advisories"];
    Cargo::new(&check).run("advisories")
}

/// As [`deny`], on a machine that may have no way to get cargo-deny; says so where it has none.
pub(crate) fn deny_if_possible() -> Result<(), Failed> {
    let install = ["install", "--quiet", "--locked", "cargo-deny"];
    if !is_installed("cargo-deny") && Cargo::new(&install).run("installing cargo-deny").is_err() {
        eprintln!("licences, bans, sources and advisories were NOT checked: cargo-deny cannot be installed");
        return Ok(());
    }
    deny()
}

/// Whether the database of advisories could be fetched.
fn fetched() -> bool {
    eprintln!("\n== the advisories: cargo deny fetch db");
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    let fetch = command.args(["deny", "fetch", "db"]).stdin(Stdio::null()).stderr(Stdio::null()).spawn();
    let Ok(mut fetch) = fetch else { return false };
    let begun = now();
    while begun.elapsed() < PATIENCE {
        match fetch.try_wait() {
            Ok(Some(status)) => return status.success(),
            Ok(None) => std::thread::sleep(Duration::from_millis(200)),
            Err(_) => break,
        }
    }
    let _ = fetch.kill();
    let _ = fetch.wait();
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
