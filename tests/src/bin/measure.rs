//! `cargo xtask bench fleet`: what side by side measurements do not show. Small values beside large ones,
//! the cost of a get in fleets of one to eight nodes, and what idle lanes and connections cost.
//!
//! Every server is a process of its own; all is on this machine.

use std::fmt::Write as _;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use hdrhistogram::Histogram;
use peanut_client::{Client, Group};
use peanut_tests::{ServerProcess, cpu_time, free_port, now, resident_bytes};
use tokio::task::JoinSet;
use tokio::time::sleep;

const KEYS: usize = 10_000;
const LARGE_BYTES: usize = 1 << 20;
const LARGE_KEYS: usize = 4;
const ROUNDS: usize = 5;
/// For differences of a few in a hundred.
const MANY_ROUNDS: usize = 15;
const TIME: Duration = Duration::from_secs(2);

#[tokio::main]
async fn main() {
    let only = std::env::args().nth(1);
    let server = std::env::current_exe().expect("the path of this program");
    let server = server.with_file_name("peanut-server-under-test");
    let wanted = |part: &str| only.as_deref().is_none_or(|only| only == part);
    if wanted("large") {
        beside_large_values(&server).await;
    }
    if wanted("fleets") {
        fleets(&server).await;
    }
    if wanted("idle") {
        idle_clients(&server).await;
    }
    if wanted("warm") {
        warm_restarts(&server).await;
    }
}

async fn start(binary: &Path, listen: &str) -> ServerProcess {
    start_with(binary, &format!("listen = \"{listen}\""), "").await
}

async fn start_with(binary: &Path, settings: &str, small: &str) -> ServerProcess {
    let mut config = format!(
        "{settings}\n[[group]]\nname = \"small\"\nttl = \"1d\"\n{small}\n[group.loader]\nkind = \"static\"\n\
         [group.loader.entries]\n"
    );
    for key in 0..KEYS {
        let _ = writeln!(config, "key-{key} = \"{}\"", "v".repeat(100));
    }
    config += "[[group]]\nname = \"large\"\nttl = \"1d\"\n[group.loader]\nkind = \"static\"\n[group.loader.entries]\n";
    for key in 0..LARGE_KEYS {
        let _ = writeln!(config, "key-{key} = \"{}\"", "w".repeat(LARGE_BYTES));
    }
    ServerProcess::start_with(&binary.display().to_string(), &config).await
}

async fn connect(addrs: &[String]) -> Client {
    Client::builder().nodes(addrs).build().await.expect("a client of a fixed list")
}

async fn load(group: &Group) {
    let keys: Vec<String> = (0..KEYS).map(|key| format!("key-{key}")).collect();
    for keys in keys.chunks(1000) {
        assert!(
            group.get_many(keys).await.iter().all(|answer| matches!(answer, Ok(Some(_)))),
            "all are loaded"
        );
    }
}

/// What a closed loop of small gets gave.
struct Loop {
    gets: u64,
    took: Duration,
    p50_us: f64,
    p99_us: f64,
}

/// Gets small values by `tasks` tasks for a while.
async fn small_gets(group: &Group, tasks: usize) -> Loop {
    let stop = Arc::new(AtomicBool::new(false));
    let mut running = JoinSet::new();
    let begun = now();
    for _ in 0..tasks {
        let (group, stop) = (group.clone(), stop.clone());
        running.spawn(async move {
            let mut latencies = Histogram::<u64>::new(2).expect("two digits are allowed");
            while !stop.load(Ordering::Relaxed) {
                let key = format!("key-{}", fastrand::usize(..KEYS));
                let begun = now();
                assert!(matches!(group.get(key).await, Ok(Some(_))), "a small value");
                latencies
                    .record(u64::try_from(begun.elapsed().as_nanos()).unwrap_or(u64::MAX))
                    .unwrap_or_default();
            }
            latencies
        });
    }
    sleep(TIME).await;
    stop.store(true, Ordering::Relaxed);
    let took = begun.elapsed();
    let mut all = Histogram::<u64>::new(2).expect("two digits are allowed");
    for latencies in running.join_all().await {
        all.add(latencies).expect("both are of the same shape");
    }
    let us = |quantile| all.value_at_quantile(quantile) as f64 / 1e3;
    Loop { gets: all.len(), took, p50_us: us(0.5), p99_us: us(0.99) }
}

async fn beside_large_values(binary: &Path) {
    let mut server = start(binary, &format!("127.0.0.1:{}", free_port())).await;
    let client = connect(&[server.addr().to_owned()]).await;
    let (small, large) = (client.group("small"), client.group("large"));
    load(&small).await;
    println!("16 tasks get 100 bytes, medians of {ROUNDS} alternating rounds");
    println!("| beside | gets/s | p50 us | p99 us | large values/s |");
    println!("|---|--:|--:|--:|--:|");
    let (mut alone, mut beside) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        let found = small_gets(&small, 16).await;
        alone.push([found.gets as f64 / found.took.as_secs_f64(), found.p50_us, found.p99_us, 0.0]);
        let count = Arc::new(AtomicU64::new(0));
        let (group, counted) = (large.clone(), count.clone());
        let stream = tokio::spawn(async move {
            for key in (0..LARGE_KEYS).cycle() {
                let value = group.get(format!("key-{key}")).await;
                assert!(matches!(value, Ok(Some(value)) if value.len() == LARGE_BYTES), "a large value");
                counted.fetch_add(1, Ordering::Relaxed);
            }
        });
        let found = small_gets(&small, 16).await;
        stream.abort();
        let seconds = found.took.as_secs_f64();
        let large = count.load(Ordering::Relaxed) as f64 / seconds;
        beside.push([found.gets as f64 / seconds, found.p50_us, found.p99_us, large]);
    }
    for (what, rounds) in [("nothing", alone), ("a task that gets values of 1 MiB", beside)] {
        let [rate, p50, p99, large] = medians(&rounds);
        println!("| {what} | {rate:.0} | {p50:.0} | {p99:.0} | {large:.0} |");
    }
    server.process().kill();
}

async fn fleets(binary: &Path) {
    println!(
        "\n1024 tasks get 100 bytes from fleets of several sizes, medians of {ROUNDS} alternating rounds"
    );
    println!("| nodes | gets/s | p99 us | client CPU us/get | servers' CPU us/get |");
    println!("|--:|--:|--:|--:|--:|");
    let mut fleets = Vec::new();
    for nodes in [1, 2, 4, 8] {
        let mut servers = Vec::new();
        for _ in 0..nodes {
            servers.push(start(binary, &format!("127.0.0.1:{}", free_port())).await);
        }
        let addrs: Vec<String> = servers.iter().map(|server| server.addr().to_owned()).collect();
        let group = connect(&addrs).await.group("small");
        load(&group).await;
        fleets.push((servers, group, Vec::new()));
    }
    for _ in 0..ROUNDS {
        for (servers, group, rounds) in &mut fleets {
            let cpu = |servers: &mut [ServerProcess]| -> Duration {
                servers.iter_mut().map(|server| cpu_time(&server.process().id().to_string())).sum()
            };
            let (own, theirs) = (cpu_time("self"), cpu(servers));
            let found = small_gets(group, 1024).await;
            let per_get = |spent: Duration| spent.as_secs_f64() * 1e6 / found.gets as f64;
            rounds.push([
                found.gets as f64 / found.took.as_secs_f64(),
                found.p99_us,
                per_get(cpu_time("self") - own),
                per_get(cpu(servers) - theirs),
            ]);
        }
    }
    for (mut servers, _, rounds) in fleets {
        let [rate, p99, own, theirs] = medians(&rounds);
        println!("| {} | {rate:.0} | {p99:.0} | {own:.2} | {theirs:.2} |", servers.len());
        servers.iter_mut().for_each(|server| server.process().kill());
    }
}

async fn idle_clients(binary: &Path) {
    const CLIENTS: usize = 200;
    let mut server = start(binary, &format!("127.0.0.1:{}", free_port())).await;
    let addrs = [server.addr().to_owned()];
    let id = server.process().id().to_string();
    load(&connect(&addrs).await.group("small")).await;
    let idle = async || {
        let (own, theirs) = (cpu_time("self"), cpu_time(&id));
        sleep(Duration::from_secs(10)).await;
        let ms = |spent: Duration| spent.as_secs_f64() * 1e3 / 10.0;
        (ms(cpu_time("self") - own), ms(cpu_time(&id) - theirs))
    };
    sleep(Duration::from_secs(2)).await;
    let (own_before, server_before) = idle().await;
    let (own_bytes, server_bytes) = (resident_bytes("self"), resident_bytes(&id));
    let mut clients = Vec::new();
    for _ in 0..CLIENTS {
        let client = connect(&addrs).await;
        // Enough different keys for all of its lanes.
        assert!(
            client
                .group("small")
                .get_many((0..16).map(|key| format!("key-{key}")))
                .await
                .iter()
                .all(Result::is_ok)
        );
        clients.push(client);
    }
    sleep(Duration::from_secs(2)).await;
    let per_client =
        |before: u64, after: u64| (after.saturating_sub(before)) as f64 / 1024.0 / CLIENTS as f64;
    println!("\n{CLIENTS} more clients of one node, that have each got 16 keys and are idle");
    println!(
        "memory for each client of two lanes: {:.0} KiB at the server, {:.0} KiB at the client",
        per_client(server_bytes, resident_bytes(&id)),
        per_client(own_bytes, resident_bytes("self")),
    );
    let (own, server_cpu) = idle().await;
    println!(
        "CPU while all are idle: server {server_before:.1} ms/s before and {server_cpu:.1} after, clients together \
         {own_before:.1} and {own:.1}"
    );
    drop(clients);
    server.process().kill();
}

/// What a directory for warm restarts costs those who get: nothing is written for hits, so some must miss.
async fn warm_restarts(binary: &Path) {
    println!(
        "\n256 tasks get 100 bytes, with and without `data_dir`, medians of {MANY_ROUNDS} alternating rounds"
    );
    println!("| entries that have room | data_dir | gets/s | p99 us | server's CPU us/get |");
    println!("|--:|---|--:|--:|--:|");
    for percent in [110, 90, 50] {
        let directory = tempfile::tempdir().expect("a directory");
        // Key, value and overhead are about 204 bytes.
        let capacity = format!("capacity = \"{}B\"", KEYS * 204 * percent / 100);
        let mut servers = Vec::new();
        for data_dir in ["", &format!("data_dir = \"{}\"", directory.path().display())] {
            let settings = format!("listen = \"127.0.0.1:{}\"\n{data_dir}", free_port());
            let server = start_with(binary, &settings, &capacity).await;
            let group = connect(&[server.addr().to_owned()]).await.group("small");
            load(&group).await;
            servers.push((server, group, Vec::new()));
        }
        for _ in 0..MANY_ROUNDS {
            for (server, group, rounds) in &mut servers {
                let id = server.process().id().to_string();
                let before = cpu_time(&id);
                let found = small_gets(group, 256).await;
                let cpu_us = (cpu_time(&id) - before).as_secs_f64() * 1e6 / found.gets as f64;
                rounds.push([found.gets as f64 / found.took.as_secs_f64(), found.p99_us, cpu_us]);
            }
        }
        for ((mut server, _, rounds), with) in servers.into_iter().zip(["no", "yes"]) {
            let [rate, p99, cpu_us] = medians(&rounds);
            println!("| {percent} % | {with} | {rate:.0} | {p99:.0} | {cpu_us:.2} |");
            server.process().kill();
        }
    }
}

fn medians<const N: usize>(rounds: &[[f64; N]]) -> [f64; N] {
    std::array::from_fn(|at| {
        let mut values: Vec<f64> = rounds.iter().map(|round| round[at]).collect();
        values.sort_by(f64::total_cmp);
        values[values.len() / 2]
    })
}
