//! A `peanut-server` process.

use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

use crate::{Process, free_port};

/// A server with a configuration file of its own.
#[derive(Debug)]
pub struct ServerProcess {
    binary: PathBuf,
    directory: TempDir,
    addr: String,
    sabotage: Option<&'static str>,
    process: Process,
}

/// The configuration of a group `name` that loads from an origin's URL, with further lines.
pub fn group_from(name: &str, url: &str, more: &str) -> String {
    format!("[[group]]\nname = \"{name}\"\n{more}\n[group.loader]\nkind = \"http\"\nurl = \"{url}\"\n")
}

/// The configuration of a token with these rights; its secret, `secret-of-the-…`, is written to a file in
/// `directory`.
///
/// # Panics
/// Where the file cannot be written.
pub fn token_in(directory: &Path, name: &str, rights: &str) -> String {
    let path = directory.join(name);
    std::fs::write(&path, format!("secret-of-the-{name}\n")).expect("a directory of the test's own");
    format!("[[token]]\nname = \"{name}\"\nsecret_files = [\"{}\"]\n{rights}\n", path.display())
}

impl ServerProcess {
    /// Starts a server on a port of its own that joins etcd at `etcd`, with these groups, and waits until
    /// it listens. `binary` is the server's path.
    ///
    /// # Panics
    /// Where it does not come up.
    pub async fn start(binary: &str, etcd: &str, groups: &str) -> Self {
        // Not a port that the system gives to outgoing connections: it is needed again after a restart.
        let port = free_port();
        let config = format!("listen = \"127.0.0.1:{port}\"\n[etcd]\nendpoints = [\"{etcd}\"]\n{groups}");
        ServerProcess::start_with(binary, &config).await
    }

    /// Starts a server with this configuration.
    ///
    /// # Panics
    /// Where it does not come up.
    pub async fn start_with(binary: &str, config: &str) -> Self {
        ServerProcess::start_without(None, binary, config).await
    }

    /// Starts a server that lacks one of the things which keep answers right: by the names of
    /// `peanut_proto::sabotage`.
    ///
    /// # Panics
    /// Where it does not come up.
    pub async fn start_without(sabotage: Option<&'static str>, binary: &str, config: &str) -> Self {
        let directory = tempfile::tempdir().expect("a directory for the configuration");
        std::fs::write(directory.path().join("peanut.toml"), config).expect("the configuration is written");
        let (process, addr) = spawn(binary.into(), &directory, sabotage, None).await;
        ServerProcess { binary: binary.into(), directory, addr, sabotage, process }
    }

    /// Writes another configuration into its file; what a node reads while it runs it reads by itself.
    ///
    /// # Panics
    /// Where it cannot be written.
    pub fn configure(&self, config: &str) {
        let (path, new) =
            (self.directory.path().join("peanut.toml"), self.directory.path().join("peanut.new"));
        std::fs::write(&new, config).expect("the configuration is written");
        std::fs::rename(new, path).expect("it is put in its place");
    }

    /// Starts it again on the same address.
    pub async fn start_again(&mut self) {
        let (process, _) = spawn(self.binary.clone(), &self.directory, self.sabotage, Some(&self.addr)).await;
        self.process = process;
    }

    /// Waits until it says that it is registered.
    pub async fn registered(&mut self) {
        self.process.wait_for_line(" registered ").await;
    }

    /// Its address, which is also its id.
    pub fn addr(&self) -> &str {
        &self.addr
    }

    /// The process.
    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }
}

async fn spawn(
    binary: PathBuf,
    directory: &TempDir,
    sabotage: Option<&str>,
    listen: Option<&str>,
) -> (Process, String) {
    let mut command = Command::new(binary);
    command
        .arg("--config")
        .arg(directory.path().join("peanut.toml"))
        .env("RUST_LOG", "info")
        .env("NO_COLOR", "1");
    command.envs(sabotage.map(|what| ("PEANUT_SABOTAGE", what)));
    command.args(listen.map(|listen| format!("--listen={listen}")));
    let mut process = Process::start("peanut-server", &mut command);
    let line = process.wait_for_line("listening on ").await;
    let addr = line.rsplit("listening on ").next().unwrap_or_default().trim().to_owned();
    (process, addr)
}
