//! One scenario: a fleet, its applications, and what goes wrong, from one seed.

mod faults;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use fastrand::Rng;
use futures_util::future::{OptionFuture, join};
use peanut_client::{Client, ClientBuilder, Failover};
use peanut_proto::registry::LocalRegistry;
use peanut_proto::sabotage::{self, Mechanism};
use peanut_server::{Group, Loaded, LoaderError, OnShutdown, Server, Token, loader_fn};
use tempfile::TempDir;
use tokio::sync::watch;
use tokio::time::sleep;

use super::load::{Done, Load, is_absent};
use super::network::{HostId, MIN_LATENCY, Network, addr_of};
use super::plan::{CLIENTS, End, FIRST_NODES, Fault, GROUPS, KEYS, NODES, Planned, Rollout, Theme, faults};
use super::registry::{MEMBERS, Store};
use super::unread::{Unread, watch_hints};
use super::world::{RATES, World};
use crate::history::{Kind, Violation, check_with};

const FAILOVER_TTL: Duration = Duration::from_millis(800);
const LOAD_TIMEOUT: Duration = Duration::from_millis(400);
/// A capacity for three of a group's keys.
const TIGHT: usize = 400;
const SECRET: &str = "secret-of-the-applications";
/// When nothing is wrong any more, what was wrong has its effects for so long.
const SETTLE: Duration = Duration::from_millis(4000);
/// The last reads have ended by then. A registry that came back empty, to a fleet whose nodes have all been
/// started since, has older rings than clients know, which they believe after 15 seconds.
const LAST_READS: Duration = Duration::from_secs(30);

/// What is simulated.
#[derive(Clone, Debug)]
pub struct Scenario {
    /// Everything is drawn from this.
    pub seed: u64,
    /// How many faults; `None`: from five to nine.
    pub faults: Option<usize>,
    /// What is turned off.
    pub without: Option<Mechanism>,
}

/// What came of it.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// What went wrong.
    pub faults: Vec<Planned>,
    /// Whether all clients were strict.
    pub is_strict: bool,
    /// Reads that saw what they must not have seen, with the clients that read.
    pub violations: Vec<(usize, Violation)>,
    /// Other such reads, while there was more than one ring.
    pub of_many_rings: usize,
    /// Reads at the end that saw an outdated value, and hints that were not read.
    pub outdated: Vec<String>,
    /// Operations that were done, and those that failed.
    pub operations: (usize, usize),
    /// How often the origin was asked.
    pub loads: u64,
    /// How long it was, in the simulation.
    pub time: Duration,
    /// All operations, one per line.
    pub history: String,
}

impl Outcome {
    /// Whether nothing was wrong.
    pub fn is_good(&self) -> bool {
        self.violations.is_empty() && self.outdated.is_empty()
    }
}

impl Scenario {
    /// What a seed says, with everything turned on.
    pub fn new(seed: u64) -> Self {
        Scenario { seed, faults: None, without: None }
    }

    /// Runs it on this thread, which must run no other meanwhile.
    ///
    /// # Panics
    /// Where the fleet does not come up.
    pub fn run(&self) -> Outcome {
        fastrand::seed(self.seed);
        sabotage::turn_off(self.without);
        let mut random = Rng::with_seed(self.seed);
        let count = self.faults.unwrap_or_else(|| random.usize(5..10));
        let theme = Theme::any(&mut random);
        let faults = faults(&mut random, theme, count);
        let mut fleet = Fleet::new(&mut random, theme);
        fleet.come_up();
        fleet.go_through(&faults);
        fleet.end(faults)
    }
}

/// Faults for which a host stands still.
#[derive(Default)]
struct Stands {
    paused: u32,
    suspended: u32,
}

struct Node {
    host: HostId,
    directory: PathBuf,
    /// How often it was started.
    starts: u32,
    /// What it had on its disk after so many starts.
    copy: Option<(u32, PathBuf)>,
    stop: Option<watch::Sender<bool>>,
    /// Faults that keep it from running.
    down: u32,
    stands: Stands,
    leaves: bool,
}

impl Node {
    fn new(host: HostId, directory: PathBuf) -> Self {
        Node {
            host,
            directory,
            starts: 0,
            copy: None,
            stop: None,
            down: 0,
            stands: Stands::default(),
            leaves: false,
        }
    }
}

struct App {
    host: HostId,
    down: u32,
    stands: Stands,
    failover: Failover,
    /// By how much its near copies may be outdated.
    staleness: Option<Duration>,
}

struct Fleet {
    world: World,
    store: Store,
    members: [HostId; MEMBERS],
    nodes: Vec<Node>,
    apps: Vec<App>,
    load: Arc<Load>,
    random: Rng,
    theme: Theme,
    /// Hints that were not read.
    unread: Unread,
    is_strict: bool,
    is_warm: bool,
    /// Whether callers are let in by tokens only.
    has_tokens: bool,
    /// Whether groups have no room for all of their keys.
    is_tight: bool,
    rollout: Option<Rollout>,
    directory: TempDir,
    copies: u32,
}

impl Fleet {
    fn new(random: &mut Rng, theme: Theme) -> Self {
        let network = Network::new(random.fork());
        let mut world = World::new(network.clone(), random.fork());
        let store_host = world.add_host();
        let members: [HostId; MEMBERS] = std::array::from_fn(|_| world.add_host());
        members.iter().for_each(|member| network.power_on(*member));
        let (unread, registry) = (Unread::default(), LocalRegistry::new());
        let (store, serve) = Store::new(network, members, registry.clone());
        let hints = unread.clone();
        world.start(store_host, move || async move {
            let hints = matches!(theme, Theme::Late { .. }).then_some(watch_hints(registry, hints));
            join(serve, OptionFuture::from(hints)).await;
        });
        let (is_strict, is_warm) = (random.bool(), random.bool());
        let (has_tokens, is_tight) = (random.bool(), random.u8(..3) == 0);
        let rollout = theme.rollout(random);
        let in_memory = Path::new("/dev/shm");
        let directory =
            if in_memory.is_dir() { tempfile::tempdir_in(in_memory) } else { tempfile::tempdir() };
        let directory = directory.expect("a directory");
        let node = |at| Node::new(world.add_host(), directory.path().join(format!("n{at}")));
        let nodes: Vec<Node> = (0..NODES).map(node).collect();
        let staleness = theme.staleness(random);
        let apps = staleness.into_iter().map(|staleness| {
            let failover = match random.u8(..4) {
                _ if is_strict => Failover::Strict,
                0 => Failover::Off,
                1 => Failover::Strict,
                _ => Failover::Bounded,
            };
            App { host: world.add_host(), down: 0, stands: Stands::default(), failover, staleness }
        });
        let apps: Vec<App> = apps.collect();
        if matches!(theme, Theme::Near { .. }) && random.bool() {
            // Nothing but the margin of leases is between the reader's clock and those of nodes.
            let [slow, .., fast] = RATES;
            world.set_rate(apps[0].host, slow);
            nodes.iter().for_each(|node| world.set_rate(node.host, fast));
        }
        let slow = matches!(theme, Theme::Lost { .. } | Theme::Late { .. }).then(|| store.clone());
        let (load, random) = (Load::new(theme.paces(random), theme.only(), staleness, slow), random.fork());
        Fleet {
            world,
            store,
            members,
            nodes,
            apps,
            load,
            random,
            theme,
            unread,
            is_strict,
            is_warm,
            has_tokens,
            is_tight,
            rollout,
            directory,
            copies: 0,
        }
    }

    fn run_until(&mut self, time: Duration) {
        while self.world.now() < time {
            self.world.step();
        }
    }

    fn come_up(&mut self) {
        (0..FIRST_NODES).for_each(|node| self.start_node(node));
        let begun = self.world.now();
        self.run_until(begun + Duration::from_millis(500));
        (0..CLIENTS).for_each(|app| self.start_app(app));
        self.run_until(begun + Duration::from_millis(1000));
        (0..NODES).for_each(|node| self.nodes[node].copy = self.copy_directory(node));
    }

    /// What a node has on its disk, in a directory of its own.
    fn copy_directory(&mut self, node: usize) -> Option<(u32, PathBuf)> {
        self.copies += 1;
        let copy = self.directory.path().join(format!("copy{}", self.copies));
        copy_all(&self.nodes[node].directory, &copy).ok().map(|()| (self.nodes[node].starts, copy))
    }

    fn start_node(&mut self, at: usize) {
        let (is_warm, load) = (self.is_warm, self.load.clone());
        let capacity_bytes = if self.is_tight { TIGHT } else { 1 << 16 };
        let node = &mut self.nodes[at];
        node.starts += 1;
        let host = node.host;
        let registry = self.store.seen_from(host, self.theme.member(End::Node(at), &mut self.random));
        let weight = self.theme.weight(&mut self.random);
        let group = |name: &'static str| {
            let group = match GROUPS.iter().position(|it| *it == name).expect("one of them") {
                at @ (0 | 1) => {
                    let load = load.clone();
                    let loader = loader_fn(move |key| {
                        let load = load.clone();
                        async move {
                            let key = std::str::from_utf8(&key).ok().and_then(|key| key.parse().ok());
                            let key = key.ok_or_else(|| LoaderError::from("no such key"))?;
                            Ok(load.load(at, key).await?.map_or(Loaded::not_found(), Loaded::found))
                        }
                    });
                    Group::new(name, loader)
                }
                _ => Group::without_loader(name),
            };
            let group = group.ttl(Duration::from_secs(60)).negative_ttl(Duration::from_secs(30));
            let group =
                group.failover_ttl(FAILOVER_TTL).load_timeout(LOAD_TIMEOUT).capacity_bytes(capacity_bytes);
            if name != "short" {
                return group;
            }
            let (short, refresh) = (Duration::from_millis(1500), Duration::from_millis(300));
            group.ttl(short).negative_ttl(short).refresh_after(Some(refresh)).stale_if_error(short)
        };
        let has = |group| self.rollout.is_none_or(|rollout| rollout.has(group, at, node.starts));
        let names = GROUPS.iter().enumerate().filter(|(group, _)| has(*group)).map(|(_, name)| name);
        let builder = names.fold(Server::builder(), |builder, name| builder.group(group(name)));
        let builder = builder
            .registry(registry)
            .node_id(format!("n{at}"))
            .advertise(addr_of(host))
            .weight(weight)
            .insecure(true)
            .threads(0)
            .lease_ttl(Duration::from_secs(1))
            .forget_after(Duration::from_secs(6))
            .shutdown_deadline(Duration::from_millis(1000))
            .seal_interval(Duration::from_millis(300))
            .on_shutdown(if node.leaves { OnShutdown::Leave } else { OnShutdown::Keep });
        let builder = if is_warm { builder.data_dir(&node.directory) } else { builder };
        let token = Token::new("applications").secret(SECRET).read(["*"]).write(["*"]);
        let builder = if self.has_tokens { builder.token(token) } else { builder };
        let (stop, mut stopping) = watch::channel(false);
        node.stop = Some(stop);
        let network = self.world.network.clone();
        self.world.start(host, || async move {
            let server = builder.build().expect("the settings are good");
            let stop = async move { drop(stopping.wait_for(|is_on| *is_on).await) };
            server.run_simulated(network.listen(host), stop).await.expect("it serves");
        });
    }

    fn start_app(&mut self, at: usize) {
        let app = &self.apps[at];
        let registry = self.store.seen_from(app.host, self.theme.member(End::Client(at), &mut self.random));
        let builder = Client::builder()
            .registry(registry)
            .deadline(Duration::from_millis(400))
            .connect_timeout(Duration::from_millis(200))
            .failover(app.failover)
            .hand_over(self.theme.hand_over())
            .windows(self.theme.windows());
        let near = self.theme.near_cache(at, app.staleness, &mut self.random);
        let is_unary = self.random.u8(..5) == 0 && near.is_none();
        let builder = if is_unary { builder.unary() } else { builder };
        let builder = if self.has_tokens { builder.token(SECRET) } else { builder };
        let builder = match near {
            Some(near) => builder.near_cache(near),
            None => builder,
        };
        let (load, readers, writers) = (self.load.clone(), self.random.fork(), self.random.fork());
        let waits = self.random.bool();
        self.world.start(app.host, || async move {
            let client = if waits {
                let Some(client) = built(&builder).await else { return };
                client
            } else {
                builder.build_lazy().expect("the settings are good")
            };
            let read = tokio::spawn(load.clone().read(at, client.clone(), readers));
            let write = tokio::spawn(load.clone().write(at, client.clone(), writers));
            let _ = (read.await, write.await);
            last_reads(&load, at, &client).await;
        });
    }

    /// Begins and ends faults when it is time, and mends all at the end.
    fn go_through(&mut self, faults: &[Planned]) {
        let begun = self.world.now();
        let mut due: BTreeMap<(Duration, usize, bool), Fault> = BTreeMap::new();
        for (number, planned) in faults.iter().enumerate() {
            due.insert((planned.from, number, true), planned.fault);
            due.insert((planned.until, number, false), planned.fault);
        }
        while let Some(((at, number, begins), fault)) = due.pop_first() {
            self.run_until(begun + at);
            if begins {
                self.begin(fault);
            } else if let Some(later) = self.finish(fault) {
                due.insert((at + later, number, false), fault);
            }
        }
        let ended = self.world.now().max(begun + self.theme.trouble());
        self.run_until(ended);
    }

    fn end(mut self, faults: Vec<Planned>) -> Outcome {
        let settled = self.world.now() + SETTLE;
        self.run_until(settled);
        while let Some(until) = self.store.has_many_rings_until(self.world.now()) {
            self.run_until(until);
        }
        let ended = self.world.now();
        self.load.stop.store(true, Ordering::Relaxed);
        let last = ended + LAST_READS;
        while self.world.now() < last && self.apps.iter().any(|app| self.world.is_running(app.host)) {
            self.world.step();
        }
        let unfinished = self.apps.iter().filter(|app| self.world.is_running(app.host)).count();
        let ops = self.load.ops();
        let mut violations = checked(&ops, self.is_strict);
        for own in self.load.own_ops() {
            violations.extend(checked(&own, self.is_strict));
        }
        let found = violations.len();
        violations.retain(|(_, it)| it.read.begun >= ended || !self.store.had_many_rings(it.read.begun));
        let of_many_rings = found - violations.len();
        let last = violations.iter().filter(|(_, violation)| violation.read.begun >= ended);
        let mut outdated: Vec<_> =
            last.map(|(client, violation)| format!("client {client}: {violation}")).collect();
        if unfinished > 0 {
            outdated.push(format!("{unfinished} clients have not ended"));
        }
        outdated.extend(self.unread.lock().drain(..));
        let failed = |done: &&Done| matches!(done.op.kind, Kind::ReadFailed | Kind::WriteFailed(_));
        let failed = ops.iter().filter(failed).count();
        let mut history = String::new();
        for Done { by, op, .. } in &ops {
            let _ = writeln!(history, "{by} {op:?}");
        }
        Outcome {
            faults,
            is_strict: self.is_strict,
            violations,
            of_many_rings,
            outdated,
            operations: (ops.len(), failed),
            loads: self.load.loads(),
            time: self.world.now(),
            history,
        }
    }
}

/// The reads that break the promise. What another node answers in the owner's place may be outdated for a
/// while where not all clients are strict; nothing else may be.
fn checked(ops: &[Done], is_strict: bool) -> Vec<(usize, Violation)> {
    let is_absent = |key: u32, version| key / KEYS != 2 && is_absent(version);
    let is_write = |done: &Done| matches!(done.op.kind, Kind::Written(_) | Kind::WriteFailed(_));
    let check = |is_failover, bound| {
        let ops = ops.iter().filter(|done| is_write(done) || done.is_failover == is_failover);
        let ops: Vec<_> = ops.map(|done| (done.by, done.op)).collect();
        check_with(&ops, bound, MIN_LATENCY, is_absent)
    };
    let bound = if is_strict { Duration::ZERO } else { FAILOVER_TTL.max(LOAD_TIMEOUT) };
    let mut violations = check(false, Duration::ZERO);
    violations.extend(check(true, bound));
    violations
}

/// The marks of starts in the directories of groups.
fn marks(directory: &Path) -> Vec<String> {
    let groups = std::fs::read_dir(directory).into_iter().flatten().flatten();
    let mut marks: Vec<_> =
        groups.filter_map(|group| std::fs::read_to_string(group.path().join("lineage")).ok()).collect();
    marks.sort();
    marks
}

fn copy_all(from: &Path, to: &Path) -> std::io::Result<()> {
    std::fs::create_dir_all(to)?;
    for entry in std::fs::read_dir(from)? {
        let entry = entry?;
        let to = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy_all(&entry.path(), &to)?;
        } else {
            std::fs::copy(entry.path(), to)?;
        }
    }
    Ok(())
}

/// A client that has waited for its fleet, if that was there in time.
async fn built(builder: &ClientBuilder) -> Option<Client> {
    for _ in 0..20 {
        if let Ok(client) = builder.clone().build().await {
            return Some(client);
        }
        sleep(Duration::from_millis(100)).await;
    }
    None
}

/// Reads every key, again and again until it can be read.
async fn last_reads(load: &Load, by: usize, client: &Client) {
    for group in 0..GROUPS.len() {
        for key in 0..KEYS {
            for _ in 0..60 {
                if load.read_one(by, client, group, key).await {
                    break;
                }
                sleep(Duration::from_millis(50)).await;
            }
        }
    }
}
