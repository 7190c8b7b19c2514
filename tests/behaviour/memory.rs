//! Capacity bounds the process: what a store takes as the system counts it, and what a node keeps of large
//! values that were loaded.

use std::process::Command;
use std::time::Duration;

use futures_util::StreamExt as _;
use peanut_client::Client;
use peanut_tests::{Origin, PATIENCE, ServerProcess, eventually, free_port, group_from, resident_bytes};
use serde_json::Value;

use crate::SERVER;

/// Fills a store in a process of its own.
fn fill(sets: u64, capacity_bytes: u64, value_bytes: &str) -> Value {
    let numbers = [sets.to_string(), capacity_bytes.to_string(), value_bytes.to_owned()];
    let output = Command::new(env!("CARGO_BIN_EXE_fill")).args(numbers).output().expect("it runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).expect("it prints JSON")
}

#[test]
fn values_of_mixed_sizes_take_no_more_than_capacity_allows() {
    const CAPACITY: u64 = 64 << 20;
    let filled = fill(300_000, CAPACITY, "mixed");
    let (used, resident) =
        (filled["used_bytes"].as_u64().unwrap(), filled["resident_bytes"].as_u64().unwrap());
    assert!(used > CAPACITY * 9 / 10 && used <= CAPACITY, "{used} bytes are in use");
    let most = CAPACITY * 115 / 100 + (64 << 20);
    assert!(resident <= most, "{resident} bytes are resident of at most {most}");
}

#[test]
fn a_small_entry_takes_at_most_96_bytes_beside_key_and_value() {
    const KEY_AND_VALUE: u64 = 16 + 32;
    let filled = fill(1_000_000, 64 << 20, "32");
    let entries = filled["entries"].as_u64().unwrap();
    assert!(entries > 400_000, "{entries} entries fit");
    let taken =
        filled["resident_bytes"].as_u64().unwrap() - filled["resident_before_bytes"].as_u64().unwrap();
    let overhead = taken as f64 / entries as f64 - KEY_AND_VALUE as f64;
    assert!(overhead <= 96.0, "{overhead:.1} bytes beside key and value");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_large_values_took_while_they_were_loaded_is_given_back() {
    const CAPACITY: u64 = 64 << 20;
    let origin = Origin::start(Duration::from_millis(5)).await;
    let port = free_port();
    let own = format!("listen = \"127.0.0.1:{port}\"\nnodes = [\"127.0.0.1:{port}\"]\n");
    let group = group_from("g", origin.url(), "capacity = \"64MiB\"\nload_timeout = \"60s\"");
    let mut server = ServerProcess::start_with(SERVER, &(own + &group)).await;
    let process = server.process().id().to_string();
    let before = resident_bytes(&process);
    let client = Client::builder().nodes([server.addr()]).deadline(PATIENCE).build().await.unwrap();
    let mut most = 0;
    for round in 0..3 {
        let gets = (0..100).map(|key| {
            let group = client.group("g");
            async move { group.get(format!("8-mib-{round}-{key}")).await.unwrap().unwrap().len() }
        });
        let mut gets = futures_util::stream::iter(gets).buffer_unordered(100);
        while let Some(length) = gets.next().await {
            assert_eq!(length, 8 << 20);
            most = most.max(resident_bytes(&process));
        }
    }
    drop(client);
    // The entries, and as much again for what an allocator keeps.
    let bound = before + CAPACITY + (64 << 20);
    let mut last = 0;
    eventually("the memory of 300 loads to be given back", async || {
        last = resident_bytes(&process);
        println!("from {before} over {most} to {last} bytes, {bound} allowed");
        (last <= bound).then_some(())
    })
    .await;
}
