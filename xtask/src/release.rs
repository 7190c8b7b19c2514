//! What a release is made of: an archive of the programs with manual pages and the licences of all that is in
//! them, Debian packages, a bill of materials for each program, and checksums of all of it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::run::{Cargo, Failed, need_cargo_tool, need_cargo_tool_with, run, target_directory};
use crate::{crates, package};

const PROGRAMS: [(&str, &str); 2] = [("peanut-server", "server"), ("peanut-cli", "client/cli")];
const VERSION: &str = env!("CARGO_PKG_VERSION");
/// Packages whose API others use.
const LIBRARIES: [&str; 2] = ["peanut-client", "peanut-server"];

/// `release`: makes everything, in one directory, where the crates pass as they would be published.
pub(crate) fn release() -> Result<(), Failed> {
    need_cargo_tool("cargo-cyclonedx")?;
    need_cargo_tool_with("cargo-about", &["--features", "cli"])?;
    compare_api()?;
    crates::crates()?;
    let packages = package::package()?;
    let release = target_directory()?.join("distribution");
    let _ = fs::remove_dir_all(&release);
    fs::create_dir_all(&release).map_err(|error| failed(&release, error))?;
    for entry in fs::read_dir(&packages).map_err(|error| failed(&packages, error))?.flatten() {
        // The second revision was made to try an upgrade.
        if entry.file_name().to_string_lossy().contains("-1_") {
            copy(&entry.path(), &release)?;
        }
    }
    bills_of_materials(&release)?;
    archive(&release)?;
    let sums = format!("cd '{}' && sha256sum -- * > SHA256SUMS", release.display());
    run("checksums", Command::new("sh").args(["-c", &sums]))?;
    println!("\n== the release is in {}", release.display());
    Ok(())
}

/// Holds the API of the libraries against that of the last release, where there was one.
fn compare_api() -> Result<(), Failed> {
    // Not of this very release, which may have its tag already.
    let tags =
        Command::new("git").args(["describe", "--tags", "--abbrev=0", "--match", "v*", "HEAD^"]).output();
    let tag = tags.ok().filter(|tags| tags.status.success());
    let Some(tag) = tag.map(|tag| String::from_utf8_lossy(&tag.stdout).trim().to_owned()) else {
        eprintln!("\n== the API was NOT compared: there is no release before this one");
        return Ok(());
    };
    need_cargo_tool("cargo-semver-checks")?;
    for library in LIBRARIES {
        let check = ["semver-checks", "--package", library, "--baseline-rev", &tag];
        Cargo::new(&check).run("the API")?;
    }
    Ok(())
}

/// Writes what each program is made of, in CycloneDX's format.
fn bills_of_materials(release: &Path) -> Result<(), Failed> {
    for (package, directory) in PROGRAMS {
        let manifest = format!("{directory}/Cargo.toml");
        let name = format!("{package}-{VERSION}.cdx");
        let bill = ["cyclonedx", "--format", "json", "--all-features", "--manifest-path", &manifest];
        Cargo::new(&[&bill[..], &["--override-filename", &name]].concat()).run("a bill of materials")?;
        // It writes one beside the manifest of each member of the workspace.
        let written = Path::new(directory).join(format!("{name}.json"));
        copy(&written, release)?;
        let find = ["ls-files", "--others", "--exclude-standard", "--", "*.cdx.json"];
        let others = Command::new("git").args(find).output().map_err(|error| failed(&written, error))?;
        for other in String::from_utf8_lossy(&others.stdout).lines() {
            fs::remove_file(other).map_err(|error| failed(Path::new(other), error))?;
        }
    }
    for (package, _) in PROGRAMS {
        let bill = release.join(format!("{package}-{VERSION}.cdx.json"));
        fs::metadata(&bill).map_err(|error| failed(&bill, error))?;
    }
    Ok(())
}

/// Makes the archive that `cargo binstall` looks for.
fn archive(release: &Path) -> Result<(), Failed> {
    let name = format!("peanut-{VERSION}-{}", host()?);
    let staged = target_directory()?.join("package").join(&name);
    let built = target_directory()?.join("package/release");
    fs::create_dir_all(&staged).map_err(|error| failed(&staged, error))?;
    for file in ["peanut-server", "peanut"] {
        copy(&built.join(file), &staged)?;
    }
    for file in ["LICENSE", "README.md", "CHANGELOG.md"] {
        copy(Path::new(file), &staged)?;
    }
    let pages = built.join("package");
    for entry in fs::read_dir(&pages).map_err(|error| failed(&pages, error))?.flatten() {
        copy(&entry.path(), &staged)?;
    }
    licences(&staged)?;
    let archive = release.join(format!("{name}.tar.gz"));
    let mut tar = Command::new("tar");
    tar.arg("--create")
        .arg("--gzip")
        .arg("--file")
        .arg(archive)
        .arg("--directory")
        .arg(parent(&staged))
        .arg(&name);
    run("the archive", &mut tar)
}

/// Writes the licences of what is linked into each program, and fails where one is not allowed. A text is the
/// package's own, and that of SPDX where the package has none.
fn licences(staged: &Path) -> Result<(), Failed> {
    let deny = Path::new("deny.toml");
    let deny = fs::read_to_string(deny).map_err(|error| failed(deny, error))?;
    let allowed = allowed(&deny).ok_or_else(|| Failed("deny.toml allows no licences".to_owned()))?;
    let settings =
        format!("accepted = {allowed}\nignore-build-dependencies = true\nignore-dev-dependencies = true\n");
    let config = parent(staged).join("about.toml");
    fs::write(&config, settings).map_err(|error| failed(&config, error))?;
    for (package, directory) in PROGRAMS {
        let manifest = format!("{directory}/Cargo.toml");
        let list = staged.join(format!("THIRD-PARTY-LICENCES-{package}.txt"));
        let about = ["about", "generate", "--fail", "--all-features", "--manifest-path", &manifest];
        let about = Cargo::new(&about).arg("xtask/licences.hbs").arg("--config").arg(&config);
        about.arg("--output-file").arg(&list).run("licences of what is in it")?;
    }
    Ok(())
}

/// The list of licences that cargo-deny allows, as it stands in its file.
fn allowed(deny: &str) -> Option<&str> {
    let key = "\nallow = ";
    let begin = deny.find(&format!("{key}["))? + key.len();
    deny[begin..].split_inclusive(']').next()
}

/// The target that cargo builds for.
fn host() -> Result<String, Failed> {
    let told = Command::new("rustc").arg("-vV").output();
    let told = told.map_err(|error| Failed(format!("rustc could not be run: {error}")))?;
    let text = String::from_utf8_lossy(&told.stdout).into_owned();
    let host = text.lines().find_map(|line| line.strip_prefix("host: "));
    host.map(str::to_owned).ok_or_else(|| Failed("rustc does not name its host".to_owned()))
}

fn parent(path: &Path) -> PathBuf {
    path.parent().map(Path::to_owned).unwrap_or_default()
}

/// Copies a file into a directory.
fn copy(file: &Path, into: &Path) -> Result<(), Failed> {
    let to = into.join(file.file_name().unwrap_or_default());
    fs::copy(file, to).map(drop).map_err(|error| failed(file, error))
}

fn failed(what: &Path, error: std::io::Error) -> Failed {
    Failed(format!("{}: {error}", what.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn licences_are_those_that_cargo_deny_allows() {
        let deny = "[graph]\nall-features = true\n[licenses]\nallow = [\n    \"MIT\",\n]\n[bans]\n";
        assert_eq!(allowed(deny), Some("[\n    \"MIT\",\n]"));
        assert_eq!(allowed("[bans]\nmultiple-versions = \"allow\"\n"), None);
        let own = allowed(include_str!("../../deny.toml")).unwrap();
        assert!(own.contains("\"MIT\"") && own.ends_with(']'), "{own}");
    }
}
