//! `cargo xtask bench faults`: 5,000 gets a second on three nodes, second by second, while a node is killed,
//! sleeps, and all are started again one after the other.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use hdrhistogram::Histogram;
use nix::sys::signal::Signal;
use parking_lot::Mutex;
use peanut_client::Client;
use peanut_tests::{Etcd, Origin, ServerProcess, eventually, free_port, group_from, now};
use tokio::time::{MissedTickBehavior, interval, sleep};

const RATE: u64 = 5_000;
const KEYS: u32 = 20_000;

/// What one second of gets came to, for each node that owned the keys.
#[derive(Default)]
struct Second {
    latencies: Option<Histogram<u64>>,
    failed: u64,
}

/// Gets at a fixed rate, whatever becomes of earlier ones. Latency counts from the time at which a get was
/// due.
#[derive(Default)]
struct Load {
    seconds: Mutex<Vec<Vec<Second>>>,
    gets: AtomicU64,
}

impl Load {
    fn run(self: &Arc<Self>, client: &Client, servers: &[String]) -> tokio::task::JoinHandle<()> {
        let (load, client, servers) = (self.clone(), client.clone(), servers.to_vec());
        tokio::spawn(async move {
            let begun = now();
            let mut tick = interval(Duration::from_millis(1));
            tick.set_missed_tick_behavior(MissedTickBehavior::Burst);
            for number in 0_u64.. {
                if number.is_multiple_of(RATE / 1000) {
                    tick.tick().await;
                }
                let due = Duration::from_micros(number * 1_000_000 / RATE);
                let key = format!("key-{}", fastrand::u32(..KEYS));
                let ring = client.ring();
                let owner = ring.place("g", key.as_bytes()).map(|place| &ring.members()[place.owner].id);
                let node = servers.iter().position(|server| Some(server) == owner).unwrap_or(0);
                let (load, group) = (load.clone(), client.group("g"));
                tokio::spawn(async move {
                    let got = group.get(&key).await;
                    let took = now().duration_since(begun).saturating_sub(due);
                    load.gets.fetch_add(1, Ordering::Relaxed);
                    let mut seconds = load.seconds.lock();
                    let at = usize::try_from(due.as_secs()).unwrap_or(0);
                    while seconds.len() <= at {
                        seconds.push((0..3).map(|_| Second::default()).collect());
                    }
                    let second = &mut seconds[at][node];
                    second.failed += u64::from(got.is_err());
                    let latencies =
                        second.latencies.get_or_insert_with(|| Histogram::new(2).expect("two digits"));
                    latencies.record(u64::try_from(took.as_micros()).unwrap_or(u64::MAX)).unwrap_or_default();
                });
            }
        })
    }

    fn print(&self, what: &str, loads: u64) {
        println!("\n{what}: p99 in ms, second by second, of the keys of that node | of the others' | failed");
        let p99 = |seconds: &[&Second]| {
            let mut all = Histogram::<u64>::new(2).expect("two digits");
            seconds
                .iter()
                .filter_map(|second| second.latencies.as_ref())
                .for_each(|l| all.add(l).unwrap_or_default());
            all.value_at_quantile(0.99) as f64 / 1e3
        };
        let seconds = self.seconds.lock();
        let mut failed = 0;
        for (at, nodes) in seconds.iter().enumerate() {
            let now_failed: u64 = nodes.iter().map(|node| node.failed).sum();
            failed += now_failed;
            let (that, others) = (p99(&[&nodes[0]]), p99(&[&nodes[1], &nodes[2]]));
            println!("{at:>4} {that:>9.2} {others:>9.2} {now_failed:>6}");
        }
        let gets = self.gets.load(Ordering::Relaxed);
        println!("{gets} gets, {failed} failed, {loads} loads ({:.2} %)", loads as f64 * 100.0 / gets as f64);
    }
}

#[tokio::main]
async fn main() {
    let server = std::env::current_exe().expect("the path of this program");
    let server = server.with_file_name("peanut-server-under-test");
    killed(&server).await;
    asleep(&server).await;
    restarted(&server).await;
}

struct Fleet {
    _etcd: Etcd,
    origin: Origin,
    directory: tempfile::TempDir,
    servers: Vec<ServerProcess>,
    client: Client,
}

impl Fleet {
    async fn start(binary: &Path) -> Self {
        let (etcd, origin) = (Etcd::start().await, Origin::start(Duration::ZERO).await);
        let directory = tempfile::tempdir().expect("a directory");
        let mut servers = Vec::new();
        for node in 0..3 {
            let (port, data) = (free_port(), directory.path().join(node.to_string()));
            let config = format!(
                "listen = \"127.0.0.1:{port}\"\ndata_dir = \"{}\"\n[etcd]\nendpoints = [\"{}\"]\n{}",
                data.display(),
                etcd.endpoint(),
                group_from("g", origin.url(), "ttl = \"1h\"")
            );
            let mut server = ServerProcess::start_with(&binary.display().to_string(), &config).await;
            server.registered().await;
            servers.push(server);
        }
        // The default deadline: one second.
        let client = Client::builder().etcd([etcd.endpoint()]).build().await.expect("the fleet is there");
        client.wait_for_ring(3).await.expect("the client lives");
        let keys: Vec<String> = (0..KEYS).map(|key| format!("key-{key}")).collect();
        for keys in keys.chunks(500) {
            while !client.group("g").get_many(keys).await.iter().all(Result::is_ok) {}
        }
        Fleet { _etcd: etcd, origin, directory, servers, client }
    }

    fn addrs(&self) -> Vec<String> {
        self.servers.iter().map(|server| server.addr().to_owned()).collect()
    }

    fn loads(&self) -> u64 {
        self.origin.asked().values().sum()
    }
}

async fn killed(binary: &Path) {
    let mut fleet = Fleet::start(binary).await;
    let (load, before) = (Arc::new(Load::default()), fleet.loads());
    let running = load.run(&fleet.client, &fleet.addrs());
    sleep(Duration::from_secs(3)).await;
    fleet.servers[0].process().kill();
    sleep(Duration::from_secs(6)).await;
    running.abort();
    sleep(Duration::from_secs(2)).await;
    load.print("kill -9 of one node in second 3", fleet.loads() - before);
}

async fn asleep(binary: &Path) {
    let mut fleet = Fleet::start(binary).await;
    let (load, before) = (Arc::new(Load::default()), fleet.loads());
    let running = load.run(&fleet.client, &fleet.addrs());
    sleep(Duration::from_secs(3)).await;
    fleet.servers[0].process().signal(Signal::SIGSTOP);
    sleep(Duration::from_secs(4)).await;
    fleet.servers[0].process().signal(Signal::SIGCONT);
    sleep(Duration::from_secs(4)).await;
    running.abort();
    sleep(Duration::from_secs(2)).await;
    load.print("SIGSTOP of one node in second 3, SIGCONT in second 7", fleet.loads() - before);
}

async fn restarted(binary: &Path) {
    let mut fleet = Fleet::start(binary).await;
    let (load, before) = (Arc::new(Load::default()), fleet.loads());
    let running = load.run(&fleet.client, &fleet.addrs());
    sleep(Duration::from_secs(2)).await;
    for server in &mut fleet.servers {
        server.process().signal(Signal::SIGTERM);
        server.process().ended().await;
        server.start_again().await;
        server.registered().await;
        let id = server.addr().to_owned();
        eventually("the client to use it again", async || {
            fleet.client.nodes().iter().any(|node| node.id == id && node.up && node.alive).then_some(())
        })
        .await;
        sleep(Duration::from_secs(1)).await;
    }
    running.abort();
    sleep(Duration::from_secs(2)).await;
    load.print("rolling restart of all three, with warm restarts", fleet.loads() - before);
    drop(fleet.directory);
}
