//! A process that a test started and that ends with its handle.

use std::io::{BufRead as _, BufReader};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::eventually;

/// A running process and what it has written to stderr.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    log: Arc<Mutex<Vec<String>>>,
}

impl Process {
    /// Starts a command. Its stdout is dropped.
    ///
    /// # Panics
    /// Where it cannot be started.
    pub fn start(name: &str, command: &mut Command) -> Self {
        Process::start_with(Stdio::null(), name, command)
    }

    /// Starts a command whose stdin ends with this process, however that ends.
    ///
    /// # Panics
    /// Where it cannot be started.
    pub fn start_with_stdin(name: &str, command: &mut Command) -> Self {
        Process::start_with(Stdio::piped(), name, command)
    }

    fn start_with(stdin: Stdio, name: &str, command: &mut Command) -> Self {
        command.stdin(stdin).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap_or_else(|e| panic!("cannot start {name} ({command:?}): {e}"));
        let log = Arc::new(Mutex::new(Vec::new()));
        let (lines, sink) = (BufReader::new(child.stderr.take().expect("stderr is piped")), log.clone());
        std::thread::spawn(move || {
            for line in lines.lines().map_while(Result::ok) {
                sink.lock().unwrap_or_else(|e| e.into_inner()).push(line);
            }
        });
        Process { name: name.to_owned(), child, log }
    }

    /// Its number in the system.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// What it has written to stderr so far.
    pub fn log(&self) -> Vec<String> {
        self.log.lock().unwrap_or_else(|e| e.into_inner()).clone()
    }

    /// Waits for a line with `text` in it, and gives it.
    ///
    /// # Panics
    /// Where none comes, or the process ends first.
    pub async fn wait_for_line(&mut self, text: &str) -> String {
        let what = format!("{} to say `{text}`", self.name);
        eventually(&what, async || {
            let line = self.log().into_iter().find(|line| line.contains(text));
            if line.is_none()
                && let Ok(Some(status)) = self.child.try_wait()
            {
                panic!("{} ended ({status}) before it said `{text}`: {:?}", self.name, self.log());
            }
            line
        })
        .await
    }

    /// Whether it has ended by itself.
    pub fn has_ended(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(Some(_)))
    }

    /// Sends it a signal.
    ///
    /// # Panics
    /// Where it has ended.
    pub fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(i32::try_from(self.child.id()).expect("a pid"));
        kill(pid, signal).unwrap_or_else(|e| panic!("signal {signal} to {}: {e}", self.name));
    }

    /// Ends it with SIGKILL and waits until it is gone.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Waits until it has ended by itself.
    pub async fn ended(&mut self) -> ExitStatus {
        let what = format!("{} to end", self.name);
        eventually(&what, async || self.child.try_wait().expect("its own child")).await
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
        if std::thread::panicking() {
            let log = self.log();
            eprintln!("--- {}: the last of {} lines", self.name, log.len());
            log.iter().rev().take(30).rev().for_each(|line| eprintln!("{line}"));
        }
    }
}
