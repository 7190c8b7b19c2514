//! A soak: mixed work on a fleet of real processes while nodes are killed, stand still and are started again,
//! and clients come and go. What must not grow is measured all the while: memory, descriptors and threads of
//! the nodes, and the tasks of the clients.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use nix::sys::signal::Signal;
use peanut_client::{Client, Group};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use crate::{Etcd, PATIENCE, ServerProcess, free_port, now, resident_bytes};

const NODES: usize = 3;
const KEYS: u32 = 5_000;
const LONG_BYTES: usize = 8 << 20;
const SAMPLE_EVERY: Duration = Duration::from_secs(1);

/// What was measured at one time.
#[derive(Clone, Copy, Debug, Default)]
pub struct Sample {
    /// Of all nodes together.
    pub resident_bytes: u64,
    /// Open files and sockets of all nodes.
    pub descriptors: u64,
    /// Threads of all nodes.
    pub threads: u64,
    /// Tasks of this process.
    pub tasks: u64,
}

/// What a soak came to.
#[derive(Debug)]
pub struct Outcome {
    /// One for each second in which all nodes were there.
    pub samples: Vec<Sample>,
    /// Calls that were made, and those of them that failed.
    pub calls: (u64, u64),
    /// Values that were not what had been written.
    pub wrong: u64,
    /// What was measured when all was over and the nodes had been left alone for some seconds.
    pub at_rest: Sample,
}

impl Outcome {
    /// What has grown from the second quarter of the time to the last, or was wrong: nothing where all is
    /// well.
    pub fn complaints(&self) -> Vec<String> {
        let mut complaints = Vec::new();
        if self.wrong > 0 {
            complaints.push(format!("{} values were wrong", self.wrong));
        }
        if self.calls.1 * 10 > self.calls.0 {
            complaints.push(format!("{} of {} calls failed", self.calls.1, self.calls.0));
        }
        let quarter = self.samples.len() / 4;
        let (early, late) = (&self.samples[quarter..quarter * 2], &self.samples[quarter * 3..]);
        for (what, slack, read) in [
            ("bytes resident", 96 << 20, (|sample| sample.resident_bytes) as fn(&Sample) -> u64),
            ("descriptors", 60, |sample| sample.descriptors),
            ("threads", 6, |sample| sample.threads),
            ("tasks", 200, |sample| sample.tasks),
        ] {
            let (before, after) = (median(early, read), median(late, read));
            if after > before + before / 4 + slack {
                complaints.push(format!("from {before} to {after} {what}"));
            }
        }
        complaints
    }
}

fn median(samples: &[Sample], read: fn(&Sample) -> u64) -> u64 {
    let mut values: Vec<u64> = samples.iter().map(read).collect();
    values.sort_unstable();
    values.get(values.len() / 2).copied().unwrap_or_default()
}

fn in_proc(process: u32, what: &str) -> u64 {
    std::fs::read_dir(format!("/proc/{process}/{what}")).map_or(0, |entries| entries.count() as u64)
}

/// What all who work share.
#[derive(Debug, Default)]
struct Shared {
    stop: AtomicBool,
    calls: AtomicU64,
    failed: AtomicU64,
    wrong: AtomicU64,
}

impl Shared {
    fn count<T, E>(&self, result: Result<T, E>) -> Option<T> {
        self.calls.fetch_add(1, Ordering::Relaxed);
        if result.is_err() {
            self.failed.fetch_add(1, Ordering::Relaxed);
        }
        result.ok()
    }

    fn stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    /// A value begins with its key.
    fn check(&self, key: &str, value: &[u8]) {
        if !value.starts_with(key.as_bytes()) {
            self.wrong.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// Runs a soak for so long with this server.
///
/// # Panics
/// Where the fleet does not come up.
pub async fn run(server: &Path, time: Duration) -> Outcome {
    let etcd = Etcd::start().await;
    let groups = "[[group]]\nname = \"small\"\ncapacity = \"64MiB\"\nload_timeout = \"2s\"\n[group.loader]\nkind = \"none\"\n\
                  [[group]]\nname = \"long\"\ncapacity = \"64MiB\"\n[group.loader]\nkind = \"none\"\n";
    let mut servers = Vec::new();
    for _ in 0..NODES {
        let config = format!(
            "listen = \"127.0.0.1:{}\"\n[etcd]\nendpoints = [\"{}\"]\n{groups}",
            free_port(),
            etcd.endpoint()
        );
        servers.push(ServerProcess::start_with(&server.display().to_string(), &config).await);
    }
    for server in &mut servers {
        server.registered().await;
    }
    let shared = Arc::new(Shared::default());
    let mut working = JoinSet::new();
    for _ in 0..4 {
        working.spawn(come_and_go(etcd.endpoint(), shared.clone()));
    }
    working.spawn(long_values(etcd.endpoint(), shared.clone()));
    let mut samples = Vec::new();
    let (begun, mut turn) = (now(), 0);
    while begun.elapsed() < time {
        fault(&mut servers[turn % NODES], turn / NODES).await;
        turn += 1;
        for _ in 0..5 {
            sleep(SAMPLE_EVERY).await;
            samples.push(sample(&mut servers));
        }
    }
    shared.stop.store(true, Ordering::Relaxed);
    while working.join_next().await.is_some() {}
    sleep(Duration::from_secs(3)).await;
    let read = |count: &AtomicU64| count.load(Ordering::Relaxed);
    Outcome {
        samples,
        calls: (read(&shared.calls), read(&shared.failed)),
        wrong: read(&shared.wrong),
        at_rest: sample(&mut servers),
    }
}

fn sample(servers: &mut [ServerProcess]) -> Sample {
    let mut sample = Sample::default();
    for server in servers {
        let id = server.process().id();
        sample.resident_bytes += resident_bytes(&id.to_string());
        sample.descriptors += in_proc(id, "fd");
        sample.threads += in_proc(id, "task");
    }
    sample.tasks = tokio::runtime::Handle::current().metrics().num_alive_tasks() as u64;
    sample
}

/// One node at a time has something happen to it, and is well again afterwards.
async fn fault(server: &mut ServerProcess, kind: usize) {
    match kind % 3 {
        0 => {
            server.process().signal(Signal::SIGSTOP);
            sleep(Duration::from_millis(1500)).await;
            server.process().signal(Signal::SIGCONT);
        }
        1 => {
            server.process().kill();
            server.start_again().await;
        }
        _ => {
            server.process().signal(Signal::SIGTERM);
            server.process().ended().await;
            server.start_again().await;
        }
    }
}

/// A client after the other, each for a while.
async fn come_and_go(endpoint: String, shared: Arc<Shared>) {
    while !shared.stopped() {
        let client = Client::builder().etcd([&endpoint]).build().await;
        let Some(client) = shared.count(client) else { continue };
        let group = client.group("small");
        let mut callers = JoinSet::new();
        for _ in 0..16 {
            callers.spawn(mixed(group.clone(), shared.clone()));
        }
        while callers.join_next().await.is_some() {}
    }
}

async fn mixed(group: Group, shared: Arc<Shared>) {
    for _ in 0..2_000 {
        if shared.stopped() {
            return;
        }
        let key = format!("key-{}.", fastrand::u32(..KEYS));
        let value = || format!("{key}{}", "v".repeat(fastrand::usize(..2_000)));
        match fastrand::u32(..100) {
            0..10 => drop(shared.count(group.set(&key, value()).await)),
            10..15 => drop(shared.count(group.delete(&key).await)),
            15..17 => {
                let keys = (0..50).map(|_| format!("key-{}.", fastrand::u32(..KEYS))).collect::<Vec<_>>();
                for (key, value) in keys.iter().zip(group.get_many(&keys).await) {
                    if let Some(Some(value)) = shared.count(value) {
                        shared.check(key, &value);
                    }
                }
            }
            17..22 => {
                let load = || async { Ok::<_, String>(Some(value())) };
                // Some leave before they have an answer.
                let loaded = group.get_or_load(&key, load);
                let Ok(loaded) = timeout(Duration::from_millis(fastrand::u64(1..200)), loaded).await else {
                    continue;
                };
                if let Some(Some(value)) = shared.count(loaded) {
                    shared.check(&key, &value);
                }
            }
            _ => {
                if let Some(Some(value)) = shared.count(group.get(&key).await) {
                    shared.check(&key, &value);
                }
            }
        }
    }
}

/// Values of 8 MiB, more of them than there is room for.
async fn long_values(endpoint: String, shared: Arc<Shared>) {
    let client = Client::builder().etcd([&endpoint]).deadline(PATIENCE / 3).build_lazy();
    let group = client.expect("nothing is wrong with it").group("long");
    while !shared.stopped() {
        let key = format!("long-{}.", fastrand::u32(..30));
        let mut value = key.clone().into_bytes();
        value.resize(LONG_BYTES, b'x');
        shared.count(group.set(&key, &value).await);
        if let Some(Some(value)) = shared.count(group.get(&key).await) {
            shared.check(&key, &value);
        }
        sleep(Duration::from_millis(100)).await;
    }
}
