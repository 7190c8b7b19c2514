//! Walks of the documents: scripts that stand there line by line, and are run as they stand.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};

use nix::sys::signal::{Signal, killpg};
use peanut_tests::eventually;
use tempfile::TempDir;
use tokio::sync::{Mutex, MutexGuard};

use crate::{PEANUT, SERVER};

/// Walks listen where documents say so, and each of them there: one goes at a time.
static PORTS: Mutex<()> = Mutex::const_new(());
const FIRST_NODE: &str = "127.0.0.1:10001";

pub(crate) fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// How many lines a walk has, all of which its page has too.
pub(crate) fn lines_on_page(script: &str, page: &str) -> usize {
    let page = std::fs::read_to_string(repository().join(page)).unwrap();
    let script = std::fs::read_to_string(repository().join(script)).unwrap();
    let lines: Vec<&str> = script.lines().filter(|line| !line.starts_with('#')).collect();
    for line in &lines {
        assert!(page.lines().any(|of_page| of_page == *line), "the page does not have `{line}`");
    }
    lines.len()
}

/// A walk in a directory of its own. What it has started ends with it, also when the test fails.
pub(crate) struct Walk {
    directory: TempDir,
    shell: Option<Child>,
    _ports: MutexGuard<'static, ()>,
}

impl Walk {
    /// A directory with the two programs, once the ports are free.
    pub(crate) async fn prepare() -> Self {
        let ports = PORTS.lock().await;
        // What the walk before has started was killed, and may take a moment to be gone.
        eventually("the ports of walks", async || std::net::TcpListener::bind(FIRST_NODE).ok()).await;
        let walk = Walk { directory: tempfile::tempdir().unwrap(), shell: None, _ports: ports };
        std::fs::create_dir(walk.bin()).unwrap();
        for (name, program) in [("peanut", PEANUT), ("peanut-server", SERVER)] {
            std::os::unix::fs::symlink(program, walk.bin().join(name)).unwrap();
        }
        walk
    }

    pub(crate) fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// Where programs are looked for first.
    pub(crate) fn bin(&self) -> PathBuf {
        self.directory().join("bin")
    }

    /// What every program of the walk has in its environment.
    pub(crate) fn environment(&self) -> [(&'static str, String); 2] {
        let paths = std::env::var("PATH").unwrap_or_default();
        [("PATH", format!("{}:{paths}", self.bin().display())), ("NO_COLOR", "1".to_owned())]
    }

    /// Sources the script.
    pub(crate) fn start(&mut self, script: &str, more: &[(&'static str, String)]) {
        let script = repository().join(script).canonicalize().unwrap();
        let output = std::fs::File::create(self.directory().join("walk.log")).unwrap();
        let mut bash = Command::new("bash");
        bash.args(["-c", "source \"$0\"", &script.display().to_string()]).current_dir(self.directory());
        bash.envs(self.environment()).envs(more.iter().cloned());
        bash.stdin(Stdio::null()).stdout(output.try_clone().unwrap()).stderr(output);
        std::os::unix::process::CommandExt::process_group(&mut bash, 0);
        self.shell = Some(bash.spawn().unwrap());
    }

    pub(crate) async fn ended(&mut self) -> ExitStatus {
        let shell = self.shell.as_mut().expect("the walk was started");
        eventually("the walk to end", async || shell.try_wait().unwrap()).await
    }

    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(self.directory().join("walk.log")).unwrap_or_default()
    }
}

impl Drop for Walk {
    fn drop(&mut self) {
        let Some(shell) = &mut self.shell else { return };
        // A group of its own: all that the shell has started and nothing else.
        let group = nix::unistd::Pid::from_raw(shell.id().cast_signed());
        let _ = killpg(group, Signal::SIGKILL);
        let _ = shell.wait();
    }
}
