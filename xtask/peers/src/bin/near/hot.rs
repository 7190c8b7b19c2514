//! What one key costs a fleet that is nine tenths of what sixteen clients ask for, with near copies and
//! without.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use peanut_client::{Client, NearCache};
use peanut_processes::now;
use tokio::task::{JoinSet, yield_now};

use super::servers;

const CLIENTS: usize = 16;
const COLD: usize = 10_000;
/// Gets from memory take no turn of the runtime by themselves.
const GETS_OF_A_TURN: u64 = 16;

/// What was seen of a fleet.
struct Seen {
    gets: f64,
    /// Gets of the hot key that its owner has answered.
    of_owner: f64,
    /// Seconds that each write of the hot key took, in order.
    latencies: Vec<f64>,
}

pub(crate) async fn run(binary: &Path, time: Duration) {
    let (nodes, addrs) = servers::peanut(binary, 3).await;
    let writer = servers::client(&addrs).build().await.expect("a client");
    let value = "v".repeat(100);
    let cold: Vec<String> = (0..COLD).map(|n| format!("key-{n}")).collect();
    let cold: Arc<[String]> = cold.into();
    let set = writer.group("bench").set_many(cold.iter().map(|key| (key, &value))).await;
    set.into_iter().for_each(|set| set.expect("it is set"));
    println!(
        "| tasks of a client | near copies | gets/s | gets/s of the hot key at its owner | writes: p50 | p99 |\n|--:|---|--:|--:|--:|--:|"
    );
    for tasks in [1, 4, 16] {
        for is_near in [false, true] {
            let seen = measure(&addrs, &writer, &cold, (tasks, is_near), time).await;
            let at = |part: f64| seen.latencies[(seen.latencies.len() as f64 * part) as usize] * 1e3;
            let near = if is_near { "of hot keys" } else { "none" };
            let (p50, p99) = (at(0.5), at(0.99));
            println!(
                "| {tasks} | {near} | {:.0} | {:.0} | {p50:.2} ms | {p99:.2} ms |",
                seen.gets, seen.of_owner
            );
        }
    }
    drop(nodes);
}

/// Gets of the hot key that nodes have answered.
async fn hot_gets(client: &Client) -> u64 {
    let reports = client.reports(0).await.into_iter().map(|(_, report)| report.expect("a report"));
    let groups = reports.flat_map(|report| report.groups);
    groups.filter(|group| group.name == "hot").map(|group| group.gets()).sum()
}

async fn measure(
    addrs: &[String],
    writer: &Client,
    cold: &Arc<[String]>,
    (tasks_each, is_near): (usize, bool),
    time: Duration,
) -> Seen {
    let (gets, stop) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
    let (hot, value) = (writer.group("hot"), "v".repeat(100));
    hot.set("hot", &value).await.expect("it is set");
    let mut tasks = JoinSet::new();
    for _ in 0..CLIENTS {
        let builder = servers::client(addrs);
        let builder = if is_near { builder.near_cache(NearCache::bytes(16 << 20)) } else { builder };
        let client = builder.build().await.expect("a client");
        let groups = [client.group("hot"), client.group("bench")];
        for _ in 0..tasks_each {
            let (groups, gets, stop, cold) = (groups.clone(), gets.clone(), stop.clone(), cold.clone());
            tasks.spawn(async move {
                let mut done = 0;
                while !stop.load(Ordering::Relaxed) {
                    let [hot, others] = &groups;
                    let got = match fastrand::u8(..10) {
                        0 => others.get(&cold[fastrand::usize(..COLD)]).await,
                        _ => hot.get("hot").await,
                    };
                    got.expect("it is read");
                    done += 1;
                    if done % GETS_OF_A_TURN == 0 {
                        gets.fetch_add(GETS_OF_A_TURN, Ordering::Relaxed);
                        yield_now().await;
                    }
                }
            });
        }
    }
    tokio::time::sleep(Duration::from_secs(3)).await;
    let (begun, before, hot_before) = (now(), gets.load(Ordering::Relaxed), hot_gets(writer).await);
    let mut latencies = Vec::new();
    while begun.elapsed() < time {
        let written = now();
        hot.set("hot", &value).await.expect("it is set");
        latencies.push(written.elapsed().as_secs_f64());
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let (took, hot_after) = (begun.elapsed().as_secs_f64(), hot_gets(writer).await);
    let all = gets.load(Ordering::Relaxed) - before;
    stop.store(true, Ordering::Relaxed);
    tasks.join_all().await;
    latencies.sort_by(f64::total_cmp);
    Seen { gets: all as f64 / took, of_owner: (hot_after - hot_before) as f64 / took, latencies }
}
