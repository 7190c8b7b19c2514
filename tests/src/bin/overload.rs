//! `cargo xtask bench overload`: what is left of a node's goodput when five times as much is asked of it as
//! it can do, and of the latency of well-behaved gets beside connections that are not. `loads`, `hits` or
//! `hostile` is for one of the three parts.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use hdrhistogram::Histogram;
use parking_lot::Mutex;
use peanut_client::{Client, ErrorKind, Group};
use peanut_tests::{Origin, ServerProcess, cpu_time, free_port, group_from, now};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until, timeout};

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
const SECONDS: u64 = 8;

/// What became of gets.
#[derive(Default)]
struct Seen {
    good: AtomicU64,
    refused: AtomicU64,
    late: AtomicU64,
    other: AtomicU64,
    /// Microseconds until a refusal.
    refusals: Mutex<Option<Histogram<u64>>>,
    /// Microseconds until a value.
    values: Mutex<Option<Histogram<u64>>>,
}

impl Seen {
    async fn get(&self, group: &Group, key: String, begun: Instant) {
        let got = group.get(key).await;
        let record = |into: &Mutex<Option<Histogram<u64>>>| {
            let micros = u64::try_from(begun.elapsed().as_micros()).unwrap_or(u64::MAX);
            let mut into = into.lock();
            let into = into.get_or_insert_with(|| Histogram::new(2).expect("two digits"));
            into.record(micros).unwrap_or_default();
        };
        match got {
            Ok(_) => {
                self.good.fetch_add(1, Ordering::Relaxed);
                record(&self.values);
            }
            Err(error) => {
                match error.kind() {
                    ErrorKind::Overloaded => &self.refused,
                    ErrorKind::DeadlineExceeded => &self.late,
                    _ => &self.other,
                }
                .fetch_add(1, Ordering::Relaxed);
                record(&self.refusals);
            }
        }
    }

    fn count(&self) -> [u64; 4] {
        [&self.good, &self.refused, &self.late, &self.other].map(|count| count.load(Ordering::Relaxed))
    }
}

fn quantile(of: &Mutex<Option<Histogram<u64>>>, at: f64) -> f64 {
    of.lock().as_ref().map_or(0.0, |all| all.value_at_quantile(at) as f64 / 1e3)
}

/// As many gets as so many callers make.
async fn closed(group: &Group, callers: usize, key: fn() -> String, length: Duration) -> Arc<Seen> {
    let seen = Arc::new(Seen::default());
    let until = Instant::now() + length;
    let mut tasks = JoinSet::new();
    for _ in 0..callers {
        let (seen, group) = (seen.clone(), group.clone());
        tasks.spawn(async move {
            while Instant::now() < until {
                seen.get(&group, key(), Instant::now()).await;
            }
        });
    }
    tasks.join_all().await;
    seen
}

/// So many gets a second, whatever becomes of earlier ones: a few each millisecond, timers being no finer. A
/// get's time counts from when it was given to the runtime.
async fn open(group: &Group, rate: u64, key: fn() -> String, length: Duration) -> Arc<Seen> {
    let seen = Arc::new(Seen::default());
    let begun = Instant::now();
    let mut tasks = JoinSet::new();
    let mut sent = 0;
    for ms in 1..=u64::try_from(length.as_millis()).unwrap_or(u64::MAX) {
        sleep_until(begun + Duration::from_millis(ms)).await;
        while tasks.try_join_next().is_some() {}
        let due = ms * rate / 1000;
        for _ in sent..due {
            let (seen, group, given) = (seen.clone(), group.clone(), Instant::now());
            tasks.spawn(async move { seen.get(&group, key(), given).await });
        }
        sent = due;
    }
    tasks.join_all().await;
    seen
}

fn cold() -> String {
    format!("cold-{:016x}", fastrand::u64(..))
}

fn warm() -> String {
    format!("warm-{}", fastrand::u32(..1000))
}

async fn node(binary: &Path, more: &str, group: &str) -> ServerProcess {
    let port = free_port();
    let own = format!("listen = \"127.0.0.1:{port}\"\nnodes = [\"127.0.0.1:{port}\"]\n{more}\n");
    ServerProcess::start_with(&binary.display().to_string(), &format!("{own}{group}")).await
}

async fn client(server: &ServerProcess) -> Client {
    Client::builder().nodes([server.addr()]).build().await.expect("a node that listens")
}

#[tokio::main]
async fn main() {
    let server: PathBuf = std::env::current_exe().expect("the path of this program");
    let server = server.with_file_name("peanut-server-under-test");
    let part = std::env::args().nth(1);
    let is_wanted = |name| part.as_ref().is_none_or(|part| part == name);
    if is_wanted("loads") {
        loads(&server).await;
    }
    if is_wanted("hits") {
        hits(&server).await;
    }
    if is_wanted("hostile") {
        hostile(&server).await;
    }
}

/// An origin that takes ten milliseconds, sixteen loads at once: 1,600 keys a second at most.
async fn loads(binary: &Path) {
    let origin = Origin::start(Duration::from_millis(10)).await;
    let group = group_from("g", origin.url(), "max_loads = 16");
    let server = node(binary, "", &group).await;
    let group = client(&server).await.group("g");
    closed(&group, 64, cold, Duration::from_secs(2)).await;
    let length = Duration::from_secs(SECONDS);
    let peak = closed(&group, 64, cold, length).await.count()[0] / SECONDS;
    println!("cold keys, an origin of 10 ms, 16 loads at once: {peak} a second at most");
    let seen = open(&group, peak * 5, cold, length).await;
    let [good, refused, late, other] = seen.count();
    println!(
        "five times that, {SECONDS} s: {} a second good ({:.0} %), p99 {:.0} ms; {refused} refused, {late} late, {other} else; \
         until a refusal p50 {:.2} ms, p99 {:.2} ms",
        good / SECONDS,
        good as f64 * 100.0 / (peak * SECONDS) as f64,
        quantile(&seen.values, 0.99),
        quantile(&seen.refusals, 0.5),
        quantile(&seen.refusals, 0.99),
    );
    let begun = now();
    for second in 1..=30 {
        let seen = open(&group, peak / 2, cold, Duration::from_secs(1)).await;
        let [good, refused, late, other] = seen.count();
        if refused + late + other == 0 {
            println!(
                "half of that again: nothing refused in second {second}, {good} good ({:.1?})",
                begun.elapsed()
            );
            break;
        }
    }
}

/// All hits: what callers beyond what the node can serve cost those within.
async fn hits(binary: &Path) {
    let origin = Origin::start(Duration::ZERO).await;
    let mut server = node(binary, "", &group_from("g", origin.url(), "ttl = \"1h\"")).await;
    let group = client(&server).await.group("g");
    closed(&group, 256, warm, Duration::from_secs(2)).await;
    let node = server.process().id().to_string();
    let mut peak = 0;
    println!(
        "hits: callers, good a second, p99 in ms, refused, late, else; CPU time a get in us: node, callers"
    );
    for callers in [256, 1024, 5 * 1024, 100_000] {
        let before = (cpu_time(&node), cpu_time("self"));
        let seen = closed(&group, callers, warm, Duration::from_secs(SECONDS)).await;
        let [good, refused, late, other] = seen.count();
        let a_get = |spent: Duration| spent.as_secs_f64() * 1e6 / good as f64;
        peak = peak.max(good / SECONDS);
        println!(
            "{callers:>7} {:>8} ({:>3.0} % of the most so far) {:>8.1} {refused:>8} {late:>6} {other:>4} {:>6.2} {:>6.2}",
            good / SECONDS,
            good as f64 * 100.0 / (peak * SECONDS) as f64,
            quantile(&seen.values, 0.99),
            a_get(cpu_time(&node) - before.0),
            a_get(cpu_time("self") - before.1),
        );
    }
}

/// 5,000 gets a second beside those who do not speak as they should, to that node or to another on this
/// machine: what both have in common is the price of the peers' own work on the same cores, and what is left
/// is what they do to the node.
async fn hostile(binary: &Path) {
    let origin = Origin::start(Duration::ZERO).await;
    let config = group_from("g", origin.url(), "ttl = \"1h\"");
    let server = node(binary, "handshake_timeout = \"1s\"", &config).await;
    let neighbour = node(binary, "handshake_timeout = \"1s\"", &config).await;
    let group = client(&server).await.group("g");
    open(&group, 5000, warm, Duration::from_secs(2)).await;
    println!(
        "5,000 gets a second beside 50 peers: p50 and p99 in ms, medians of five rounds, with the peers"
    );
    println!("{:>28}  at another node    at this one        p99: this/another, this/alone", "");
    let names = ["half of a handshake", "noise", "requests taken back", "silent after the handshake"];
    let mut alone = Vec::new();
    let mut beside = vec![[const { Vec::new() }; 2]; names.len()];
    for _ in 0..5 {
        alone.push(gets_beside(&group, None).await);
        for (kind, of_kind) in beside.iter_mut().enumerate() {
            for (addr, of_addr) in [neighbour.addr(), server.addr()].into_iter().zip(of_kind) {
                of_addr.push(gets_beside(&group, Some((kind, addr))).await);
            }
        }
    }
    let median = |of: &[(f64, f64)], which: fn(&(f64, f64)) -> f64| {
        let mut values: Vec<f64> = of.iter().map(which).collect();
        values.sort_by(f64::total_cmp);
        values[values.len() / 2]
    };
    let both = |of: &[(f64, f64)]| (median(of, |of| of.0), median(of, |of| of.1));
    let (p50, alone) = both(&alone);
    println!("{:>28} {p50:>7.2} {alone:>7.2}", "alone");
    for (name, [another, this]) in names.iter().zip(&beside) {
        let (another, this) = (both(another), both(this));
        println!(
            "{name:>28} {:>7.2} {:>7.2}    {:>7.2} {:>7.2}    {:>6.2} {:>6.2}",
            another.0,
            another.1,
            this.0,
            this.1,
            this.1 / another.1,
            this.1 / alone,
        );
    }
}

/// Three seconds of gets, and 50 peers of a kind that speak to an address meanwhile; p50 and p99 in
/// milliseconds.
async fn gets_beside(group: &Group, kind: Option<(usize, &str)>) -> (f64, f64) {
    let stop = Arc::new(AtomicBool::new(false));
    let peers = kind.map(|(kind, addr)| {
        let (addr, stop) = (addr.to_owned(), stop.clone());
        // In a thread of their own: they are not the gets' work.
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.expect("a runtime").block_on(async {
                let peers: JoinSet<()> = (0..50).map(|_| peer(kind, addr.clone(), stop.clone())).collect();
                peers.join_all().await;
            });
        })
    });
    sleep(Duration::from_millis(300)).await;
    let gets = open(group, 5000, warm, Duration::from_secs(3)).await;
    assert_eq!(gets.count()[1..], [0, 0, 0], "nobody else's gets fail");
    stop.store(true, Ordering::Relaxed);
    if let Some(peers) = peers {
        peers.join().expect("peers end when they are to");
    }
    (quantile(&gets.values, 0.5), quantile(&gets.values, 0.99))
}

/// One who connects ten times a second, as long as it is to.
async fn peer(kind: usize, addr: String, stop: Arc<AtomicBool>) {
    sleep(Duration::from_millis(fastrand::u64(..100))).await;
    let mut held = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        if let Ok(mut stream) = TcpStream::connect(&addr).await {
            let said: Vec<u8> = match kind {
                0 => PREFACE[..10].to_vec(),
                1 => vec![0xff; 1024],
                2 => {
                    let request = [0x83, 0x86, 0x84, 0x41, 1, b'x'];
                    let resets = (0..200_u32).flat_map(|n| {
                        let stream = (2 * n + 1).to_be_bytes();
                        [
                            &[0, 0, 6, 1, 5][..],
                            &stream,
                            &request,
                            &[0, 0, 4, 3, 0],
                            &stream,
                            &8_u32.to_be_bytes(),
                        ]
                        .concat()
                    });
                    PREFACE.iter().copied().chain(resets).collect()
                }
                _ => PREFACE.to_vec(),
            };
            let _ = stream.write_all(&said).await;
            if kind == 2 {
                let _ = timeout(Duration::from_millis(50), stream.read(&mut [0; 1024])).await;
            } else if kind != 1 && held.len() < 8 {
                held.push(stream);
            }
        }
        sleep(Duration::from_millis(100)).await;
    }
}
