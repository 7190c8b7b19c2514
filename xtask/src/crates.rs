//! The crates as they are published: each is packed, and tested as it was packed, with nothing of the
//! repository around it.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::run::{Cargo, Failed, run, target_directory};

const VERSION: &str = env!("CARGO_PKG_VERSION");

/// `crates`: packs and builds the crates that are published, and runs their own tests.
pub(crate) fn crates() -> Result<(), Failed> {
    let names = published()?;
    let target = target_directory()?;
    // Cargo's own verification unpacks each version of a crate once and for all: of crates that need one
    // another it would build what an earlier run has packed. So they are built below.
    let mut package = Cargo::new(&["package", "--locked", "--no-verify"]);
    for name in &names {
        package = package.arg("--package").arg(name);
        let _ = fs::remove_file(target.join("package").join(format!("{name}-{VERSION}.crate")));
    }
    package.run("packing")?;
    let directory = target.join("crates");
    let _ = fs::remove_dir_all(&directory);
    fs::create_dir_all(&directory).map_err(|error| failed(&directory, error))?;
    for name in &names {
        let archive = target.join("package").join(format!("{name}-{VERSION}.crate"));
        let mut tar = Command::new("tar");
        tar.arg("--extract").arg("--gzip").arg("--file").arg(archive).arg("--directory").arg(&directory);
        run("unpacking", &mut tar)?;
    }
    let manifest = directory.join("Cargo.toml");
    fs::write(&manifest, workspace(&names)?).map_err(|error| failed(&manifest, error))?;
    let lock = directory.join("Cargo.lock");
    fs::copy("Cargo.lock", &lock).map_err(|error| failed(&lock, error))?;
    let protoc = fs::canonicalize(".cargo/protoc").map_err(|error| failed(Path::new(".cargo"), error))?;
    let cargo = |args: &[&str]| {
        Cargo::new(args)
            .arg("--manifest-path")
            .arg(&manifest)
            .env("CARGO_TARGET_DIR", &target.to_string_lossy())
            .env("PROTOC", &protoc.to_string_lossy())
    };
    for name in &names {
        cargo(&["check", "--package", name]).run("as who adds one has it")?;
    }
    cargo(&["test", "--workspace", "--all-features"]).run("their own tests")
}

/// The names of the crates that may be published, by their manifests.
fn published() -> Result<Vec<String>, Failed> {
    let listed = Command::new("git").args(["ls-files", "*Cargo.toml"]).output();
    let listed = listed.map_err(|error| failed(Path::new("git"), error))?;
    let mut names = Vec::new();
    for manifest in String::from_utf8_lossy(&listed.stdout).lines().map(PathBuf::from) {
        let text = fs::read_to_string(&manifest).map_err(|error| failed(&manifest, error))?;
        let Some(package) = text.strip_prefix("[package]\nname = \"") else { continue };
        if !text.contains("\npublish = false\n") {
            names.extend(package.split('"').next().map(str::to_owned));
        }
    }
    Ok(names)
}

/// A workspace of the packed crates, which take one another in place of those of a registry. It has the
/// profiles of ours, so that what is built is not built once more.
fn workspace(names: &[String]) -> Result<String, Failed> {
    let ours = fs::read_to_string("Cargo.toml").map_err(|error| failed(Path::new("Cargo.toml"), error))?;
    let profiles = ours.find("\n[profile").map_or("", |at| &ours[at..]);
    let mut manifest = String::from("[workspace]\nresolver = \"3\"\nmembers = [");
    for name in names {
        let _ = write!(manifest, "\"{name}-{VERSION}\", ");
    }
    manifest.push_str("]\n\n[patch.crates-io]\n");
    for name in names {
        let _ = writeln!(manifest, "{name} = {{ path = \"{name}-{VERSION}\" }}");
    }
    Ok(manifest + profiles)
}

fn failed(what: &Path, error: std::io::Error) -> Failed {
    Failed(format!("{}: {error}", what.display()))
}
