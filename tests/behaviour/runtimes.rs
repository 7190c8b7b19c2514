//! A client that outlives runtimes, or is used from several: every call ends by its deadline, and the next
//! one works.

use std::time::Duration;

use nix::sys::signal::Signal;
use peanut_client::Client;
use peanut_tests::{PATIENCE, ServerProcess, eventually, now};
use tokio::runtime::{Builder, Runtime};
use tokio::time::timeout;

use crate::{SCORES, SERVER};

fn small_runtime() -> Runtime {
    Builder::new_current_thread().enable_all().build().unwrap()
}

fn large_runtime() -> Runtime {
    Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
}

async fn works(client: &Client) {
    let group = client.group("scores");
    for _ in 0..3 {
        assert_eq!(group.get("Tom").await.unwrap().unwrap(), "630");
        let many = group.get_many(["Tom", "Jack"]).await;
        assert!(many.iter().all(|answer| answer.as_ref().unwrap().is_some()), "{many:?}");
        group.set("Sam", "567").await.unwrap();
        group.delete("Sam").await.unwrap();
    }
}

/// A fleet on a runtime of its own, and a client with one way to ask it.
fn fleet(runtime: &Runtime) -> (peanut_tests::Etcd, ServerProcess) {
    runtime.block_on(async {
        let etcd = peanut_tests::Etcd::start().await;
        let mut server = ServerProcess::start(SERVER, &etcd.endpoint(), SCORES).await;
        server.registered().await;
        (etcd, server)
    })
}

#[test]
fn a_client_is_used_on_one_runtime_after_the_other() {
    let home = large_runtime();
    let (etcd, mut server) = fleet(&home);
    for unary in [false, true] {
        let builder = Client::builder().etcd([etcd.endpoint()]).deadline(Duration::from_secs(5));
        let builder = if unary { builder.unary() } else { builder };
        let client = small_runtime().block_on(async { builder.build().await.unwrap() });
        for runtime in [small_runtime(), large_runtime(), small_runtime()] {
            runtime.block_on(async { timeout(PATIENCE, works(&client)).await.expect("none of them hangs") });
        }
        // What goes on beside calls does so too: a node that was down comes back.
        let last = large_runtime();
        home.block_on(async {
            server.process().kill();
            server.start_again().await;
            server.registered().await;
        });
        last.block_on(async {
            eventually("the node to be back", async || client.group("scores").get("Tom").await.ok()).await;
        });
    }
}

#[test]
fn a_runtime_that_stands_still_does_not_hold_its_clients_up() {
    let home = large_runtime();
    let (etcd, _server) = fleet(&home);
    let still = small_runtime();
    let client = still.block_on(async {
        let client = Client::builder().etcd([etcd.endpoint()]).deadline(Duration::from_secs(3));
        let client = client.build().await.unwrap();
        works(&client).await;
        client
    });
    // It is there, and nobody runs it.
    let other = small_runtime();
    other.block_on(async {
        let begun = now();
        let first = client.group("scores").get("Tom").await;
        assert!(begun.elapsed() < PATIENCE, "it ends by its deadline");
        assert_eq!(first.unwrap().unwrap(), "630");
        timeout(PATIENCE, works(&client)).await.expect("none of them hangs");
    });
    drop(still);
    other.block_on(async { timeout(PATIENCE, works(&client)).await.expect("none of them hangs") });
}

/// The ring changes, and a node goes and comes, while nobody runs what the client was built on.
#[test]
fn a_fleet_is_followed_although_the_clients_first_runtime_stands_still() {
    let home = large_runtime();
    let (etcd, mut server) = fleet(&home);
    let still = small_runtime();
    let client = still.block_on(async {
        let client = Client::builder().etcd([etcd.endpoint()]).deadline(Duration::from_secs(5));
        let client = client.build().await.unwrap();
        works(&client).await;
        client
    });
    let other = small_runtime();
    other.block_on(async {
        let mut second = ServerProcess::start(SERVER, &etcd.endpoint(), SCORES).await;
        second.registered().await;
        eventually("the newcomer to be seen", async || {
            let _ = client.group("scores").get("Tom").await;
            (client.nodes().len() == 2).then_some(())
        })
        .await;
        works(&client).await;
        server.process().kill();
        server.start_again().await;
        server.registered().await;
        eventually("the node to be used again", async || {
            let _ = client.group("scores").get_many(["Tom", "Jack", "Sam"]).await;
            client.nodes().iter().all(|node| node.alive && node.up).then_some(())
        })
        .await;
        works(&client).await;
    });
    // What it was on runs again, and ends: that is no reason to begin anew.
    still.block_on(async { works(&client).await });
    drop(still);
    other.block_on(async { timeout(PATIENCE, works(&client)).await.expect("none of them hangs") });
}

#[test]
fn calls_in_flight_end_when_their_runtime_does() {
    let home = large_runtime();
    let (etcd, mut server) = fleet(&home);
    let client = home.block_on(async {
        let client = Client::builder().etcd([etcd.endpoint()]).deadline(Duration::from_secs(5)).build().await;
        client.unwrap()
    });
    let doomed = small_runtime();
    doomed.block_on(async { works(&client).await });
    server.process().signal(Signal::SIGSTOP);
    let waiting = home.spawn({
        let group = client.group("scores");
        async move { group.get("Tom").await }
    });
    std::thread::sleep(Duration::from_millis(300));
    drop(doomed);
    server.process().signal(Signal::SIGCONT);
    let answer = home.block_on(async { timeout(PATIENCE, waiting).await.expect("it ends").unwrap() });
    assert_eq!(answer.unwrap().unwrap(), "630");
}
