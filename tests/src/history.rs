//! Random scenarios: a fleet of real processes with a real etcd goes through faults while clients read and write, and what they
//! saw is checked. A seed makes the same scenario again, as far as machines allow.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::{Path, State};
use nix::sys::signal::Signal;
use peanut_client::{Client, Failover};
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tokio_util::task::AbortOnDropHandle;

use crate::{Etcd, Proxy, ServerProcess, free_port, group_from, now};
use peanut_simulation::history::{History, Kind, Op, Violation, check};

const KEYS: u32 = 120;
const READERS: usize = 8;
const WRITERS: u32 = 4;
const FAULTS: usize = 5;
const LONG_VISIT: Duration = Duration::from_secs(6);
const FAILOVER_TTL: Duration = Duration::from_secs(1);
/// Beyond `failover_ttl` an outdated copy may be on its way for a moment.
const SLACK: Duration = Duration::from_millis(300);

/// What is done to the fleet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Nothing, for a second.
    Nothing,
    /// A node joins.
    Join,
    /// A node is drained.
    Drain,
    /// A node joins, keys are written, and when nobody has written for so long that writers do not repeat it, the node is
    /// drained again.
    Visit,
    /// SIGTERM, and a start.
    Restart,
    /// SIGKILL, and a start.
    Kill,
    /// SIGSTOP, and SIGCONT.
    Sleep,
    /// etcd is killed, and started again.
    EtcdRestart,
    /// No client reaches the node.
    CutNode,
    /// What clients and the node send each other arrives later.
    StallNode,
    /// A client is cut off from etcd.
    CutClientFromEtcd,
    /// A node is cut off from etcd.
    CutNodeFromEtcd,
}

const ALL: [Fault; 10] = [
    Fault::Join,
    Fault::Drain,
    Fault::Restart,
    Fault::Kill,
    Fault::Sleep,
    Fault::EtcdRestart,
    Fault::CutNode,
    Fault::StallNode,
    Fault::CutClientFromEtcd,
    Fault::CutNodeFromEtcd,
];

/// How a scenario went.
#[derive(Debug)]
pub struct Outcome {
    /// What was done.
    pub faults: Vec<Fault>,
    /// Reads that saw what they must not have seen.
    pub violations: Vec<Violation>,
    /// Reads and writes, and how many of each failed.
    pub reads: (usize, usize),
    /// As `reads`.
    pub writes: (usize, usize),
    /// Loads at the origin.
    pub loads: u64,
    /// Keys that were loaded more often than once, and once more for each write and each ring that there was.
    pub loaded_too_often: Vec<u32>,
}

/// A scenario's parameters.
#[derive(Clone, Debug)]
pub struct Scenario {
    /// The `peanut-server` to run.
    pub server: PathBuf,
    /// What is random follows from it.
    pub seed: u64,
    /// The faults to choose from; all where it is empty.
    pub faults: Vec<Fault>,
    /// How many of them come to pass.
    pub count: usize,
    /// Whether writes are done at successors too; at random where it is not said.
    pub is_strict: Option<bool>,
    /// What the servers lack of what keeps answers right.
    pub sabotage: Option<&'static str>,
}

impl Scenario {
    /// A scenario of all faults.
    pub fn new(server: impl Into<PathBuf>, seed: u64) -> Self {
        Scenario {
            server: server.into(),
            seed,
            faults: Vec::new(),
            count: FAULTS,
            is_strict: None,
            sabotage: None,
        }
    }
}

/// The origin: a version for each key, which a get loads.
#[derive(Debug)]
struct Origin {
    url: String,
    shared: Arc<Versions>,
    _serving: AbortOnDropHandle<()>,
}

#[derive(Debug)]
struct Versions {
    versions: Vec<AtomicU64>,
    /// By key.
    loads: Vec<AtomicU64>,
}

impl Origin {
    async fn start() -> Self {
        let versions = (0..KEYS).map(|_| AtomicU64::new(0)).collect();
        let shared = Arc::new(Versions { versions, loads: (0..KEYS).map(|_| AtomicU64::new(0)).collect() });
        let load = async |State(shared): State<Arc<Versions>>, Path(key): Path<u32>| {
            shared.loads[key as usize].fetch_add(1, Ordering::Relaxed);
            let version = shared.versions[key as usize].load(Ordering::SeqCst);
            // The origin takes its time now and then, so that a write comes in between.
            sleep(Duration::from_millis(if fastrand::u8(..10) == 0 { fastrand::u64(1..100) } else { 0 }))
                .await;
            version.to_string()
        };
        let router = Router::new().route("/{key}", axum::routing::get(load)).with_state(shared.clone());
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port of any number");
        let url = format!("http://{}/{{key}}", listener.local_addr().expect("it listens"));
        let serving = tokio::spawn(async move {
            let _ = axum::serve(listener, router).await;
        });
        Origin { url, shared, _serving: AbortOnDropHandle::new(serving) }
    }
}

/// A node behind proxies: one that clients come through, and one that it reaches etcd through.
struct Node {
    front: Proxy,
    to_etcd: Proxy,
    server: ServerProcess,
    is_member: bool,
}

struct Fleet {
    scenario: Scenario,
    etcd: Etcd,
    origin: Origin,
    folder: TempDir,
    nodes: Vec<Node>,
    clients: Vec<(Client, Proxy)>,
    /// Nobody writes.
    quiet: Arc<AtomicBool>,
}

impl Fleet {
    async fn add_node(&mut self, random: &mut fastrand::Rng) {
        let port = free_port();
        let (front, to_etcd) = (Proxy::start(port).await, Proxy::start(self.etcd.port()).await);
        let group = format!("ttl = \"1h\"\nfailover_ttl = \"{}ms\"", FAILOVER_TTL.as_millis());
        let data = self.folder.path().join(self.nodes.len().to_string());
        let data = if random.bool() { format!("data_dir = \"{}\"", data.display()) } else { String::new() };
        let config = format!(
            "listen = \"127.0.0.1:{port}\"\nadvertise = \"{}\"\nlease_ttl = \"2s\"\nshutdown_deadline = \"2s\"\n{data}\n\
             [etcd]\nendpoints = [\"{}\"]\n{}",
            front.addr(),
            to_etcd.endpoint(),
            group_from("g", &self.origin.url, &group),
        );
        let binary = self.scenario.server.display().to_string();
        let mut server = ServerProcess::start_without(self.scenario.sabotage, &binary, &config).await;
        server.registered().await;
        self.nodes.push(Node { front, to_etcd, server, is_member: true });
    }

    fn members(&self) -> Vec<usize> {
        (0..self.nodes.len()).filter(|at| self.nodes[*at].is_member).collect()
    }

    async fn fault(&mut self, fault: Fault, random: &mut fastrand::Rng) {
        let members = self.members();
        let at = members[random.usize(..members.len())];
        let for_ms = |random: &mut fastrand::Rng, most: u64| Duration::from_millis(random.u64(50..most));
        match fault {
            Fault::Nothing => sleep(Duration::from_secs(1)).await,
            Fault::Join if members.len() < 5 => self.add_node(random).await,
            Fault::Drain if members.len() > 2 => {
                let id = self.nodes[at].front.addr().to_string();
                let drained = self.clients[0].0.drain(&id).await;
                self.nodes[at].is_member = drained.is_err();
                sleep(for_ms(random, 1500)).await;
            }
            Fault::Visit => {
                self.add_node(random).await;
                sleep(Duration::from_secs(2)).await;
                self.quiet.store(true, Ordering::Relaxed);
                sleep(LONG_VISIT).await;
                let visitor = self.nodes.last_mut().expect("one was added");
                let drained = self.clients[0].0.drain(&visitor.front.addr().to_string()).await;
                visitor.is_member = drained.is_err();
                sleep(Duration::from_secs(1)).await;
                self.quiet.store(false, Ordering::Relaxed);
            }
            Fault::Join | Fault::Drain | Fault::Restart => {
                let node = &mut self.nodes[at];
                node.server.process().signal(Signal::SIGTERM);
                node.server.process().ended().await;
                sleep(for_ms(random, 1000)).await;
                node.server.start_again().await;
            }
            Fault::Kill => {
                let node = &mut self.nodes[at];
                node.server.process().kill();
                sleep(for_ms(random, 2000)).await;
                node.server.start_again().await;
            }
            Fault::Sleep => {
                let node = &mut self.nodes[at];
                node.server.process().signal(Signal::SIGSTOP);
                sleep(for_ms(random, 3500)).await;
                node.server.process().signal(Signal::SIGCONT);
            }
            Fault::EtcdRestart => {
                self.etcd.stop();
                sleep(for_ms(random, 2500)).await;
                self.etcd.start_again().await;
            }
            Fault::CutNode | Fault::StallNode => {
                let front = &self.nodes[at].front;
                if fault == Fault::CutNode {
                    front.cut()
                } else {
                    front.stall()
                }
                sleep(for_ms(random, 2500)).await;
                front.mend();
            }
            Fault::CutClientFromEtcd => {
                let proxy = &self.clients[random.usize(..self.clients.len())].1;
                if random.bool() {
                    proxy.cut()
                } else {
                    proxy.stall()
                }
                sleep(for_ms(random, 2500)).await;
                proxy.mend();
            }
            Fault::CutNodeFromEtcd => {
                let proxy = &self.nodes[at].to_etcd;
                if random.bool() {
                    proxy.cut()
                } else {
                    proxy.stall()
                }
                sleep(for_ms(random, 3500)).await;
                proxy.mend();
            }
        }
    }
}

/// What the load shares.
struct Load {
    history: History,
    origin: Arc<Versions>,
    began: Instant,
    stop: AtomicBool,
    quiet: Arc<AtomicBool>,
}

impl Load {
    fn time(&self) -> Duration {
        now() - self.began
    }

    fn add(&self, key: u32, begun: Duration, kind: Kind) {
        self.history.add(Op { key, kind, begun, ended: self.time() });
    }

    async fn read(self: Arc<Self>, clients: Vec<Client>, mut random: fastrand::Rng) {
        while !self.stop.load(Ordering::Relaxed) {
            let client = &clients[random.usize(..clients.len())];
            // A few keys are asked for most, so that their reads meet.
            let key = if random.bool() { random.u32(..KEYS) } else { random.u32(..KEYS / 10) };
            let begun = self.time();
            let value = if random.u8(..4) == 0 {
                let load = || async {
                    self.origin.loads[key as usize].fetch_add(1, Ordering::Relaxed);
                    let version = self.origin.versions[key as usize].load(Ordering::SeqCst);
                    sleep(Duration::from_millis(2)).await;
                    Ok::<_, String>(Some(version.to_string()))
                };
                client.group("g").get_or_load(key.to_string(), load).await
            } else {
                client.group("g").get(key.to_string()).await
            };
            let version =
                value.ok().flatten().and_then(|value| std::str::from_utf8(&value).ok()?.parse().ok());
            self.add(key, begun, version.map_or(Kind::ReadFailed, Kind::Read));
            sleep(Duration::from_micros(random.u64(..4000))).await;
        }
    }

    /// Writes the keys that are this writer's alone, one after the other.
    async fn write(self: Arc<Self>, clients: Vec<Client>, writer: u32, mut random: fastrand::Rng) {
        while !self.stop.load(Ordering::Relaxed) {
            if self.quiet.load(Ordering::Relaxed) {
                sleep(Duration::from_millis(10)).await;
                continue;
            }
            let client = &clients[random.usize(..clients.len())];
            let any = if random.bool() { random.u32(..KEYS) } else { random.u32(..KEYS / 10) };
            let key = any / WRITERS * WRITERS + writer;
            let version = self.origin.versions[key as usize].fetch_add(1, Ordering::SeqCst) + 1;
            let begun = self.time();
            let group = client.group("g");
            let done = if random.bool() {
                group.set(key.to_string(), version.to_string(), None).await
            } else {
                group.delete(key.to_string()).await
            };
            self.add(
                key,
                begun,
                if done.is_ok() { Kind::Written(version) } else { Kind::WriteFailed(version) },
            );
            sleep(Duration::from_micros(random.u64(..15_000))).await;
        }
    }
}

impl Scenario {
    /// Runs it.
    ///
    /// # Panics
    /// Where the fleet does not come up.
    pub async fn run(self) -> Outcome {
        let mut random = fastrand::Rng::with_seed(self.seed);
        let choice = if self.faults.is_empty() { ALL.to_vec() } else { self.faults.clone() };
        let is_strict = random.bool();
        let is_strict = self.is_strict.unwrap_or(is_strict);
        let count = self.count;
        let etcd = Etcd::start().await;
        let origin = Origin::start().await;
        let folder = tempfile::tempdir().expect("a folder");
        let mut fleet = Fleet {
            scenario: self,
            etcd,
            origin,
            folder,
            nodes: Vec::new(),
            clients: Vec::new(),
            quiet: Arc::default(),
        };
        for _ in 0..3 {
            fleet.add_node(&mut random).await;
        }
        for _ in 0..5 {
            let proxy = Proxy::start(fleet.etcd.port()).await;
            let failover = if is_strict { Failover::Strict } else { Failover::Bounded };
            let client = Client::builder().etcd([proxy.endpoint()]).failover(failover).build().await;
            let client = client.expect("the fleet is there");
            client.wait_for_ring(3).await.expect("the client lives");
            fleet.clients.push((client, proxy));
        }
        let load = Arc::new(Load {
            history: History::default(),
            origin: fleet.origin.shared.clone(),
            began: now(),
            stop: AtomicBool::new(false),
            quiet: fleet.quiet.clone(),
        });
        let clients: Vec<Client> = fleet.clients.iter().map(|(client, _)| client.clone()).collect();
        let mut running = JoinSet::new();
        for _ in 0..READERS {
            running.spawn(load.clone().read(clients[..3].to_vec(), random.fork()));
        }
        for writer in 0..WRITERS {
            running.spawn(load.clone().write(clients[3..].to_vec(), writer, random.fork()));
        }
        let mut faults = Vec::new();
        for _ in 0..count {
            sleep(Duration::from_millis(random.u64(100..800))).await;
            let fault = choice[random.usize(..choice.len())];
            faults.push(fault);
            fleet.fault(fault, &mut random).await;
        }
        // What was mended last has its effects.
        sleep(Duration::from_millis(1500)).await;
        load.stop.store(true, Ordering::Relaxed);
        let ended = timeout(Duration::from_secs(30), running.join_all()).await;
        assert!(ended.is_ok(), "an operation has not ended");
        let ops = load.history.ops();
        let bound = if is_strict { Duration::ZERO } else { FAILOVER_TTL + SLACK };
        let count = |wanted: fn(&Kind) -> bool| ops.iter().filter(|op| wanted(&op.kind)).count();
        let loads = |key: u32| fleet.origin.shared.loads[key as usize].load(Ordering::Relaxed);
        let rings = clients[0].ring().version();
        // Every write raises the version by one.
        let allowed = |key: u32| fleet.origin.shared.versions[key as usize].load(Ordering::Relaxed) + rings;
        Outcome {
            faults,
            violations: check(&ops, bound),
            reads: (
                count(|kind| matches!(kind, Kind::Read(_) | Kind::ReadFailed)),
                count(|kind| matches!(kind, Kind::ReadFailed)),
            ),
            writes: (
                count(|kind| matches!(kind, Kind::Written(_) | Kind::WriteFailed(_))),
                count(|kind| matches!(kind, Kind::WriteFailed(_))),
            ),
            loads: (0..KEYS).map(loads).sum(),
            loaded_too_often: (0..KEYS).filter(|key| loads(*key) > allowed(*key)).collect(),
        }
    }
}
