//! Installs what the tests need and the machine does not have.

use std::process::Command;

use crate::run::{Failed, is_installed, run};

/// Installs etcd, where it is missing.
pub(crate) fn etcd() -> Result<(), Failed> {
    let mend = "put `etcd` (3.4 or later, from https://github.com/etcd-io/etcd/releases) on the path";
    installed("etcd", "etcd-server", "etcd", mend)
}

/// Installs Redis, where it is missing.
pub(crate) fn redis() -> Result<(), Failed> {
    installed("redis-server", "redis-server", "redis", "put `redis-server` on the path")
}

/// Installs Chromium, where it is missing.
pub(crate) fn chromium() -> Result<(), Failed> {
    installed("chromium", "chromium", "chromium", "put `chromium` on the path")
}

/// Installs PostgreSQL, where it is missing.
pub(crate) fn postgres() -> Result<(), Failed> {
    // Debian keeps its programs outside the path.
    let is_there = || is_installed("initdb") || std::path::Path::new("/usr/lib/postgresql").is_dir();
    let mend = "put `initdb` and `postgres` on the path";
    installed_where("initdb", is_there, "postgresql", "postgresql", mend)
}

/// Installs PgBouncer, where it is missing.
pub(crate) fn pgbouncer() -> Result<(), Failed> {
    // Debian keeps it where only root looks.
    let is_there = || is_installed("pgbouncer") || std::path::Path::new("/usr/sbin/pgbouncer").is_file();
    installed_where("pgbouncer", is_there, "pgbouncer", "pgbouncer", "put `pgbouncer` on the path")
}

/// Installs MariaDB, where it is missing.
pub(crate) fn mariadb() -> Result<(), Failed> {
    let mend = "put `mariadbd` and `mariadb-install-db` on the path";
    installed("mariadbd", "mariadb-server", "mariadb", mend)
}

/// Installs Prometheus, where it is missing.
pub(crate) fn prometheus() -> Result<(), Failed> {
    installed("promtool", "prometheus", "prometheus", "put `prometheus` and `promtool` on the path")
}

/// Installs the client of Redis for the system's Python, where it is missing.
pub(crate) fn python_redis() -> Result<(), Failed> {
    let import = || Command::new("/usr/bin/python3").args(["-c", "import redis"]).output();
    let is_there = || import().is_ok_and(|run| run.status.success());
    let mend = "give /usr/bin/python3 the package `redis`";
    installed_where("python3-redis", is_there, "python3-redis", "python", mend)
}

/// Installs memcached, where it is missing.
pub(crate) fn memcached() -> Result<(), Failed> {
    installed("memcached", "memcached", "memcached", "put `memcached` on the path")
}

/// Installs valgrind, where it is missing.
pub(crate) fn valgrind() -> Result<(), Failed> {
    installed("valgrind", "valgrind", "valgrind", "put `valgrind` on the path")
}

/// Installs a program, where it is missing, with the system's package manager: `debian` and `brew` are the
/// names of its package.
fn installed(program: &str, debian: &str, brew: &str, mend: &str) -> Result<(), Failed> {
    installed_where(program, || is_installed(program), debian, brew, mend)
}

fn installed_where(
    program: &str,
    is_there: impl Fn() -> bool,
    debian: &str,
    brew: &str,
    mend: &str,
) -> Result<(), Failed> {
    if is_there() {
        return Ok(());
    }
    let step = format!("installing {debian}");
    if is_installed("apt-get") {
        let install = ["install", "--yes", "--no-install-recommends", debian];
        if run(&step, &mut apt(&install)).is_err() {
            // The package lists may be old, or not there yet.
            run("updating package lists", &mut apt(&["update"]))?;
            run(&step, &mut apt(&install))?;
        }
    } else if is_installed("brew") {
        run(&step, Command::new("brew").args(["install", brew]))?;
    }
    if is_there() {
        return Ok(());
    }
    Err(Failed(format!("{program} is missing, and neither apt-get nor brew could install it: {mend}")))
}

/// apt-get without questions, through sudo where this user is not root.
fn apt(args: &[&str]) -> Command {
    let root = Command::new("id").arg("-u").output().is_ok_and(|id| id.stdout.trim_ascii() == b"0");
    let mut command = Command::new(if root { "env" } else { "sudo" });
    // The package starts a server of its own where it can; the tests start theirs.
    command.args(["DEBIAN_FRONTEND=noninteractive", "RUNLEVEL=1", "apt-get"]).args(args);
    command
}
