//! A node is told to stop.

use std::time::Duration;

use nix::sys::signal::Signal;
use peanut_proto::registry::Registry as _;
use peanut_tests::{Origin, eventually, group_from, now};

use crate::{client_of, fleet};

#[tokio::test(flavor = "multi_thread")]
async fn calls_in_flight_finish_the_lease_goes_and_the_node_stays_a_member() {
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        let origin = Origin::start(Duration::from_secs(2)).await;
        let (etcd, mut servers) = fleet(1, &group_from("scores", origin.url(), "")).await;
        let client = client_of(&etcd).deadline(Duration::from_secs(20)).build().await.unwrap();
        let get = tokio::spawn({
            let group = client.group("scores");
            async move { group.get("slow").await }
        });
        eventually("the load to begin", async || (origin.asked_for("slow") == 1).then_some(())).await;

        servers[0].process().signal(signal);
        eventually("the lease to go", async || {
            let live = etcd.registry().load("/peanut/default/live/").await.unwrap();
            live.entries.is_empty().then_some(())
        })
        .await;
        assert_eq!(get.await.unwrap().unwrap().unwrap(), "value of slow");
        assert_eq!(servers[0].process().ended().await.code(), Some(0));
        assert!(etcd.registry().load("peanutcache/").await.unwrap().entries.is_empty());
        assert_eq!(client.ring().members().len(), 1);
        assert_eq!(origin.asked_for("slow"), 1);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_that_does_not_finish_holds_up_the_stop_no_longer_than_the_deadline() {
    let origin = Origin::start(Duration::from_secs(600)).await;
    let slow = "load_timeout = \"10m\"";
    let groups = format!("{}timeout = \"10m\"\n", group_from("scores", origin.url(), slow));
    let etcd = peanut_tests::Etcd::start().await;
    let config = format!(
        "listen = \"127.0.0.1:0\"\nshutdown_deadline = \"2s\"\n[etcd]\nendpoints = [\"{}\"]\n{groups}",
        etcd.endpoint()
    );
    let mut server = peanut_tests::ServerProcess::start_with(crate::SERVER, &config).await;
    server.registered().await;
    let client = client_of(&etcd).deadline(Duration::from_secs(60)).build().await.unwrap();
    let get = tokio::spawn({
        let group = client.group("scores");
        async move { group.get("slow").await }
    });
    eventually("the load to begin", async || (origin.asked_for("slow") == 1).then_some(())).await;
    let begun = now();
    server.process().signal(Signal::SIGTERM);
    assert_eq!(server.process().ended().await.code(), Some(0));
    assert!(begun.elapsed() >= Duration::from_secs(2), "the call had its time");
    let error = get.await.unwrap().unwrap_err();
    assert!(error.is_retryable(), "it was not the loader that failed: {error:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rolling_restart_fails_no_call() {
    let origin = Origin::start(Duration::ZERO).await;
    let (etcd, mut servers) = fleet(3, &group_from("scores", origin.url(), "")).await;
    let client = crate::client(&etcd, 3).await;
    let reading = tokio::spawn({
        let (group, client) = (client.group("scores"), client.clone());
        async move {
            loop {
                let key = format!("key-{}", fastrand::u32(..200));
                group.get(&key).await.unwrap_or_else(|error| panic!("{key}: {error} {error:?}"));
                if client.stats().hits > 1_000_000 {
                    return;
                }
            }
        }
    });
    for server in &mut servers {
        server.process().signal(Signal::SIGTERM);
        assert_eq!(server.process().ended().await.code(), Some(0));
        server.start_again().await;
        server.registered().await;
        let id = server.addr().to_owned();
        eventually("the client to use it again", async || {
            client.nodes().iter().any(|node| node.id == id && node.up && node.alive).then_some(())
        })
        .await;
    }
    assert!(!reading.is_finished(), "{:?}", reading.await);
    reading.abort();
    assert_eq!(client.stats().errors, 0);
}
