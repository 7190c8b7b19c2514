//! A node dies or freezes: reads go to its successor and come home when it is back.

use std::time::Duration;

use nix::sys::signal::Signal;
use peanut_client::{Client, ErrorKind};
use peanut_tests::{Origin, ServerProcess, eventually, group_from};

use crate::{client, fleet};

/// Reads `count` keys, 16 at a time, and expects every one.
async fn read_all(client: &Client, count: u32) {
    use futures_util::StreamExt as _;
    let group = client.group("scores");
    let gets = (0..count).map(|n| {
        let group = group.clone();
        async move {
            let key = format!("key-{n}");
            let value = group.get(&key).await.unwrap_or_else(|error| panic!("{key}: {error} ({error:?})"));
            assert_eq!(value.unwrap(), format!("value of {key}"));
        }
    });
    futures_util::stream::iter(gets).buffer_unordered(16).collect::<Vec<_>>().await;
}

fn health(client: &Client, server: &ServerProcess) -> bool {
    client.nodes().into_iter().find(|node| node.id == server.addr()).unwrap().up
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_node_costs_no_call_and_is_used_again_when_it_is_back() {
    let origin = Origin::start(Duration::ZERO).await;
    let groups = group_from("scores", origin.url(), "failover_ttl = \"1m\"");
    let (etcd, mut servers) = fleet(3, &groups).await;
    let client = client(&etcd, 3).await;
    read_all(&client, 600).await;
    servers[0].process().kill();
    read_all(&client, 600).await;
    assert!(!health(&client, &servers[0]));
    let stats = client.stats();
    assert!(stats.failovers > 50 && stats.errors == 0, "{stats:?}");
    assert_eq!(client.ring().members().len(), 3, "a dead node stays a member");

    // Another round costs no more loads: the successor keeps what it loaded.
    let loads: u64 = origin.asked().values().sum();
    read_all(&client, 600).await;
    assert_eq!(origin.asked().values().sum::<u64>(), loads);

    servers[0].start_again().await;
    eventually("the node to be used again", async || health(&client, &servers[0]).then_some(())).await;
    let failovers = client.stats().failovers;
    read_all(&client, 600).await;
    assert_eq!(client.stats().failovers, failovers);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_frozen_node_is_left_before_the_deadline_and_used_again_when_it_thaws() {
    let origin = Origin::start(Duration::ZERO).await;
    let (etcd, mut servers) = fleet(3, &group_from("scores", origin.url(), "")).await;
    let client = client(&etcd, 3).await;
    read_all(&client, 300).await;
    servers[1].process().signal(Signal::SIGSTOP);
    read_all(&client, 300).await;
    assert!(!health(&client, &servers[1]));
    servers[1].process().signal(Signal::SIGCONT);
    eventually("the node to be used again", async || health(&client, &servers[1]).then_some(())).await;
    read_all(&client, 300).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_load_is_waited_for_and_not_repeated_elsewhere() {
    let origin = Origin::start(Duration::from_millis(800)).await;
    let (etcd, _servers) = fleet(2, &group_from("scores", origin.url(), "")).await;
    let client = crate::client_of(&etcd).deadline(Duration::from_secs(2)).build().await.unwrap();
    assert_eq!(client.group("scores").get("slow").await.unwrap().unwrap(), "value of slow");
    assert_eq!((origin.asked_for("slow"), client.stats().failovers), (1, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_loaders_failure_is_not_taken_elsewhere() {
    let origin = Origin::start(Duration::ZERO).await;
    let (etcd, _servers) = fleet(3, &group_from("scores", origin.url(), "")).await;
    let client = client(&etcd, 3).await;
    let error = client.group("scores").get("broken").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Loader);
    assert!(error.to_string().contains("500") && error.node().is_some(), "{error}");
    assert_eq!(origin.asked_for("broken"), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_any_node_the_error_says_so_within_the_deadline() {
    let (etcd, mut servers) = fleet(2, crate::SCORES).await;
    let client = client(&etcd, 2).await;
    servers.iter_mut().for_each(|server| server.process().kill());
    let begun = peanut_tests::now();
    let error = client.group("scores").get("Tom").await.unwrap_err();
    assert!(begun.elapsed() < Duration::from_secs(8), "the deadline is 5 s");
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert!(error.is_retryable() && error.node().is_some(), "{error:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn gets_that_run_into_their_deadline_do_not_make_a_node_look_dead() {
    let origin = Origin::start(Duration::from_secs(20)).await;
    let (etcd, _servers) = fleet(2, &group_from("scores", origin.url(), "")).await;
    let client = crate::client_of(&etcd).deadline(Duration::from_secs(2)).build().await.unwrap();
    let group = client.group("scores");
    let gets = futures_util::future::join_all((0..8).map(|n| group.get(format!("slow-{n}")))).await;
    for get in gets {
        let error = get.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::DeadlineExceeded, "{error:?}");
    }
    assert!(client.nodes().iter().all(|node| node.up));
    assert_eq!(origin.asked().values().max(), Some(&1), "and no load is repeated elsewhere");
}

#[tokio::test(flavor = "multi_thread")]
async fn gets_of_one_key_of_a_dead_owner_cost_one_load() {
    let origin = Origin::start(Duration::ZERO).await;
    let (etcd, mut servers) = fleet(3, &group_from("scores", origin.url(), "")).await;
    let client = client(&etcd, 3).await;
    let ring = client.ring();
    let owner = &ring.members()[ring.place("scores", b"k").unwrap().owner].id;
    servers.iter_mut().find(|server| server.addr() == owner).unwrap().process().kill();
    for _ in 0..20 {
        assert_eq!(client.group("scores").get("k").await.unwrap().unwrap(), "value of k");
    }
    assert_eq!(origin.asked_for("k"), 1);
}
