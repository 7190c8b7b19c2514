//! Debian packages, and a trial of them: installed, upgraded and taken out in a copy of this machine that is
//! gone afterwards.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::run::{Cargo, Failed, is_installed, need_cargo_tool, run, target_directory};

/// A version whose packages were tried.
const CARGO_DEB: &str = "cargo-deb@3.8.0";
const SHELLS: [&str; 3] = ["bash", "zsh", "fish"];
const UNIT: &str = "deploy/debian/peanut-server.service";
/// What systemd may say of the unit at most, times ten: from 0 to 100.
const EXPOSURE: &str = "20";

/// `package`: makes the packages of a release, tries them, and says where they are.
pub(crate) fn package() -> Result<PathBuf, Failed> {
    need_cargo_tool(CARGO_DEB)?;
    let build = ["build", "--release", "--locked", "-p", "peanut-server", "--features", "peanut-server/full"];
    Cargo::new(&[&build[..], &["-p", "peanut-cli"]].concat()).run("building")?;
    let directory = make(&target_directory()?.join("release"), &[])?;
    try_out(&directory)?;
    println!("\n== the packages are in {}", directory.display());
    Ok(directory)
}

/// Makes packages of programs that are built, and tries them. Says so where that cannot be done here.
pub(crate) fn check(programs: &Path) -> Result<(), Failed> {
    if !is_installed("cargo-deb") && (!is_installed("dpkg") || need_cargo_tool(CARGO_DEB).is_err()) {
        eprintln!("\n== the Debian packages were NOT tried: cargo-deb or dpkg is not here");
        return Ok(());
    }
    try_out(&make(programs, &["--fast"])?)
}

/// Makes both packages twice, of two revisions, in a target directory of their own, where programs of any
/// profile stand as those of a release.
fn make(programs: &Path, more: &[&str]) -> Result<PathBuf, Failed> {
    let target = target_directory()?.join("package");
    let release = target.join("release");
    // Not where cargo-deb writes by itself: it removes other revisions from there.
    let directory = target.join("debs");
    // Packages of an earlier version would be tried too.
    let _ = fs::remove_dir_all(&target);
    pages(programs, &release.join("package"))?;
    fs::create_dir_all(&directory).map_err(|error| failed(&directory, error))?;
    for program in ["peanut-server", "peanut"] {
        fs::hard_link(programs.join(program), release.join(program))
            .map_err(|error| failed(&release, error))?;
    }
    for revision in ["1", "2"] {
        for package in ["peanut-server", "peanut-cli"] {
            let output = directory.to_string_lossy();
            let deb = ["deb", "--quiet", "--no-build", "-p", package, "--deb-revision", revision];
            let deb = Cargo::new(&[&deb[..], &["--output", &output], more].concat());
            let deb = deb.env("CARGO_TARGET_DIR", &target.to_string_lossy());
            deb.run("packaging")?;
        }
    }
    Ok(directory)
}

/// Writes manual pages and completions.
fn pages(programs: &Path, directory: &Path) -> Result<(), Failed> {
    fs::create_dir_all(directory).map_err(|error| failed(directory, error))?;
    run("manual pages", Command::new(programs.join("peanut")).arg("man").arg(directory))?;
    let mut texts = vec![("peanut-server", vec!["--generate", "man"], "peanut-server.8".to_owned())];
    for shell in SHELLS {
        texts.push(("peanut-server", vec!["--generate", shell], format!("peanut-server.{shell}")));
        texts.push(("peanut", vec!["completions", shell], format!("peanut.{shell}")));
    }
    for (program, args, file) in texts {
        let output = Command::new(programs.join(program)).args(&args).output();
        let output = output.map_err(|error| failed(&programs.join(program), error))?;
        if !output.status.success() {
            return Err(Failed(format!("{program} {args:?}: {}", String::from_utf8_lossy(&output.stderr))));
        }
        fs::write(directory.join(&file), output.stdout).map_err(|error| failed(directory, error))?;
    }
    Ok(())
}

/// Installs, upgrades and removes the packages of a directory. Says so where that takes rights that this user
/// has not.
fn try_out(directory: &Path) -> Result<(), Failed> {
    if is_installed("systemd-analyze") {
        let looked = ["security", "--offline=true", "--no-pager", "--threshold", EXPOSURE, UNIT];
        let looked = Command::new("systemd-analyze").args(looked).output();
        let looked = looked.map_err(|error| failed(Path::new("systemd-analyze"), error))?;
        let said = String::from_utf8_lossy(&looked.stdout).into_owned();
        println!("\n== {}", said.trim().lines().last().unwrap_or_default());
        if !looked.status.success() {
            return Err(Failed(format!("{UNIT} may do too much: {said}")));
        }
    }
    let apart = ["--mount", "--net", "--pid", "--fork", "--kill-child"];
    let overlay = "d=/mnt && mount -t tmpfs t $d && mkdir $d/u $d/w $d/m && \
                   mount -t overlay o -o lowerdir=/,upperdir=$d/u,workdir=$d/w $d/m";
    let possible = Command::new("unshare").args(apart).args(["sh", "-c", overlay]).output();
    if !possible.is_ok_and(|tried| tried.status.success()) || !is_installed("dpkg") {
        eprintln!("\n== the packages were NOT tried: that takes root, overlayfs, and Debian");
        return Ok(());
    }
    run(
        "trying the packages",
        Command::new("unshare").args(apart).args(["sh", "deploy/debian/try.sh"]).arg(directory),
    )
}

fn failed(what: &Path, error: std::io::Error) -> Failed {
    Failed(format!("{}: {error}", what.display()))
}
