//! What one key costs a fleet that is nine tenths of what sixteen clients ask for, with near copies and without.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use peanut_client::{Client, NearCache};
use tokio::task::JoinSet;
use tokio::task::coop::consume_budget;

use super::servers;

const CLIENTS: usize = 16;
const TASKS: usize = 16;
const COLD: usize = 10_000;

pub(crate) async fn run(binary: &Path, time: Duration) {
    let (nodes, addrs) = servers::peanut(binary, 3).await;
    let writer = servers::client(&addrs).build().await.expect("a client");
    let value = "v".repeat(100);
    let cold: Vec<String> = (0..COLD).map(|n| format!("key-{n}")).collect();
    let cold: Arc<[String]> = cold.into();
    let keys = cold.iter().map(String::as_str).chain(["hot"]);
    let set = writer.group("bench").set_many(keys.map(|key| (key, &value))).await;
    set.into_iter().for_each(|set| set.expect("it is set"));
    let mut rows = Vec::new();
    for is_near in [false, true, false, true] {
        rows.push((is_near, measure(&addrs, &writer, &cold, is_near, time).await));
    }
    println!(
        "| near copies | gets a second | gets of the owner a second | writes | p50 | p99 of a write |\n|---|--:|--:|--:|--:|--:|"
    );
    for (is_near, (gets, of_owner, latencies)) in rows {
        let at = |part: f64| latencies[(latencies.len() as f64 * part) as usize] * 1e3;
        let near = if is_near { "hot keys" } else { "none" };
        let (p50, p99) = (at(0.5), at(0.99));
        println!("| {near} | {gets:.0} | {of_owner:.0} | {} | {p50:.2} ms | {p99:.2} ms |", latencies.len());
    }
    drop(nodes);
}

async fn gets_of_busiest(client: &Client) -> Vec<u64> {
    let reports = client.reports(0).await.into_iter();
    let gets =
        reports.map(|(_, report)| report.expect("a report").groups.iter().map(|group| group.gets()).sum());
    gets.collect()
}

/// Gets a second, those of the busiest node, and how long writes of the hot key took, in order, in seconds.
async fn measure(
    addrs: &[String],
    writer: &Client,
    cold: &Arc<[String]>,
    is_near: bool,
    time: Duration,
) -> (f64, f64, Vec<f64>) {
    let (gets, stop) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
    let mut tasks = JoinSet::new();
    for _ in 0..CLIENTS {
        let builder = servers::client(addrs);
        let builder = if is_near { builder.near_cache(NearCache::bytes(16 << 20)) } else { builder };
        let group = builder.build().await.expect("a client").group("bench");
        for _ in 0..TASKS {
            let (group, gets, stop, cold) = (group.clone(), gets.clone(), stop.clone(), cold.clone());
            tasks.spawn(async move {
                while !stop.load(Ordering::Relaxed) {
                    let is_hot = fastrand::u8(..10) < 9;
                    let key = if is_hot { "hot" } else { &cold[fastrand::usize(..COLD)] };
                    group.get(key).await.expect("it is read");
                    gets.fetch_add(1, Ordering::Relaxed);
                    consume_budget().await;
                }
            });
        }
    }
    tokio::time::sleep(Duration::from_secs(3)).await;
    let (begun, before, of_nodes) =
        (Instant::now(), gets.load(Ordering::Relaxed), gets_of_busiest(writer).await);
    let mut latencies = Vec::new();
    while begun.elapsed() < time {
        let written = Instant::now();
        writer.group("bench").set("hot", "v".repeat(100)).await.expect("it is set");
        latencies.push(written.elapsed().as_secs_f64());
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let (took, after) = (begun.elapsed().as_secs_f64(), gets_of_busiest(writer).await);
    let all = gets.load(Ordering::Relaxed) - before;
    stop.store(true, Ordering::Relaxed);
    tasks.join_all().await;
    let busiest = after.iter().zip(of_nodes).map(|(after, before)| after - before).max().unwrap_or(0);
    latencies.sort_by(f64::total_cmp);
    (all as f64 / took, busiest as f64 / took, latencies)
}
