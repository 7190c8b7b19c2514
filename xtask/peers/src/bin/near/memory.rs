//! How much memory near copies take.

use std::path::Path;
use std::time::Duration;

use futures_util::future::join_all;
use peanut_client::{Client, NearCache, NearKeys};
use peanut_processes::{Process, resident_bytes};

use super::servers;

const COPIES: usize = 100_000;
const BOUND: u64 = 64 << 20;
const CLIENTS: usize = 1_000;
const COPIES_EACH: usize = 1_000;
/// Tokens that the clients have in turn: one caller may hold a quarter of a node's copies.
const CALLERS: usize = 4;

pub(crate) async fn run(binary: &Path) {
    of_client(binary).await;
    let (without, _) = of_node(binary, false).await;
    let (with, copies) = of_node(binary, true).await;
    println!(
        "a node with {CLIENTS} clients: {:.0} bytes a copy",
        (with as f64 - without as f64) / copies as f64
    );
}

/// Fills a near cache until it holds as many copies as fit.
async fn of_client(binary: &Path) {
    let (_nodes, addrs) = servers::peanut(binary, 1).await;
    // So long that a hundred thousand fit, by what a copy counts for.
    let value = "v".repeat((BOUND as usize / COPIES).saturating_sub(300));
    let keys: Vec<String> = (0..COPIES).map(|n| format!("key-{n}")).collect();
    let near = NearCache::bytes(BOUND).keys(NearKeys::All);
    let client = servers::client(&addrs).near_cache(near).build().await.expect("a client");
    let plain = servers::client(&addrs).build().await.expect("a client");
    plain.group("bench").set_many(keys.iter().map(|key| (key, &value))).await;
    for client in [&plain, &client] {
        let before = resident_bytes("self");
        for keys in keys.chunks(1_000) {
            client
                .group("bench")
                .get_many(keys)
                .await
                .into_iter()
                .for_each(|got| drop(got.expect("it is read")));
        }
        let (stats, grown) = (client.stats(), resident_bytes("self").saturating_sub(before));
        println!(
            "a client with {} copies: {} bytes by its count, {grown} more resident ({:.2} of the bound of {BOUND})",
            stats.near_copies,
            stats.near_bytes,
            grown as f64 / BOUND as f64
        );
    }
}

/// Resident memory of a node whose clients have read all keys, and how many copies they have of them.
async fn of_node(binary: &Path, is_near: bool) -> (u64, u64) {
    let secret = |caller: usize| format!("secret-of-caller-{}", caller % CALLERS);
    let directory = tempfile::tempdir().expect("a directory for secrets");
    let mut tokens = String::new();
    for caller in 0..CALLERS {
        let file = directory.path().join(caller.to_string());
        std::fs::write(&file, secret(caller)).expect("the secret is written");
        let (name, file) = (format!("caller-{caller}"), file.display());
        tokens += &format!(
            "[[token]]\nname = \"{name}\"\nsecret_files = [\"{file}\"]\nread = [\"bench\"]\nwrite = [\"bench\"]\n"
        );
    }
    let (nodes, addrs) = servers::peanut_with(binary, 1, &tokens).await;
    let keys: Vec<String> = (0..COPIES_EACH).map(|n| format!("key-{n}")).collect();
    let first = servers::client(&addrs).token(secret(0)).build().await.expect("a client");
    first.group("bench").set_many(keys.iter().map(|key| (key, "value"))).await;
    let mut clients: Vec<Client> = Vec::new();
    for caller in 0..CLIENTS {
        let near = if is_near { NearKeys::All } else { NearKeys::Off };
        let builder = servers::client(&addrs).token(secret(caller)).lanes_per_node(1);
        let near = NearCache::bytes(1 << 20).keys(near);
        clients.push(builder.near_cache(near).build().await.expect("a client"));
    }
    for clients in clients.chunks(50) {
        let reads = clients.iter().map(|client| async {
            client
                .group("bench")
                .get_many(&keys)
                .await
                .into_iter()
                .for_each(|got| drop(got.expect("it is read")));
        });
        join_all(reads).await;
    }
    tokio::time::sleep(Duration::from_millis(500)).await;
    let copies: u64 = clients.iter().map(|client| client.stats().near_copies).sum();
    let resident = resident_bytes(&nodes.iter().map(Process::id).next().expect("a node").to_string());
    println!("a node with {CLIENTS} clients and {copies} copies: {resident} bytes resident");
    (resident, copies)
}
