//! Installs what the tests need and the machine does not have.

use std::process::Command;

use crate::run::{Failed, is_installed, run};

/// Installs etcd, where it is missing, with the system's package manager.
pub(crate) fn etcd() -> Result<(), Failed> {
    if is_installed("etcd") {
        return Ok(());
    }
    if is_installed("apt-get") {
        let install = ["install", "--yes", "--no-install-recommends", "etcd-server"];
        if run("installing etcd", &mut apt(&install)).is_err() {
            // The package lists may be old, or not there yet.
            run("updating package lists", &mut apt(&["update"]))?;
            run("installing etcd", &mut apt(&install))?;
        }
    } else if is_installed("brew") {
        run("installing etcd", Command::new("brew").args(["install", "etcd"]))?;
    }
    if is_installed("etcd") {
        return Ok(());
    }
    let mend = "put `etcd` (3.4 or later, from https://github.com/etcd-io/etcd/releases) on the path";
    Err(Failed(format!("the tests need etcd, and neither apt-get nor brew is here to install it: {mend}")))
}

/// apt-get without questions, through sudo where this user is not root.
fn apt(args: &[&str]) -> Command {
    let root = Command::new("id").arg("-u").output().is_ok_and(|id| id.stdout.trim_ascii() == b"0");
    let mut command = Command::new(if root { "env" } else { "sudo" });
    // The package starts a server of its own where it can; the tests start theirs.
    command.args(["DEBIAN_FRONTEND=noninteractive", "RUNLEVEL=1", "apt-get"]).args(args);
    command
}
