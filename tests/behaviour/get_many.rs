//! Many keys in one call: one operation for each owner, an answer for each key.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use peanut_client::{Client, ErrorKind};
use peanut_server::testing::TestFleet;
use peanut_server::{Group, Loaded, loader_fn};
use peanut_tests::eventually;
use tokio::sync::Notify;

/// Loads a key as itself; one with `no` at its front is not found, one with `bad` is an error, one with
/// `long` has 60 KiB. Counts the loads.
async fn fleet(nodes: usize) -> (TestFleet, Client, Arc<AtomicUsize>) {
    let loads = Arc::new(AtomicUsize::new(0));
    let counted = loads.clone();
    let loader = loader_fn(move |key| {
        counted.fetch_add(1, Ordering::Relaxed);
        async move {
            if key.starts_with(b"bad") {
                return Err("no such table".into());
            }
            if key.starts_with(b"no") {
                return Ok(Loaded::not_found());
            }
            let value =
                if key.starts_with(b"long") { key.repeat((60 << 10) / key.len()).into() } else { key };
            Ok(Loaded::found(value))
        }
    });
    let group = Group::new("g", loader).capacity_bytes(512 << 20).max_loads(10_000);
    let fleet = TestFleet::start(nodes, [group]).await.unwrap();
    let deadline = Duration::from_secs(60);
    let client = Client::builder().registry(fleet.registry()).deadline(deadline).build().await.unwrap();
    (fleet, client, loads)
}

#[tokio::test(flavor = "multi_thread")]
async fn each_key_has_a_value_or_an_error_of_its_own_and_one_that_is_there_twice_is_asked_for_once() {
    let (_fleet, client, loads) = fleet(3).await;
    let group = client.group("g");
    for round in 0..2 {
        let long_key = "k".repeat(1025);
        let keys = ["a", "no", "a", "bad", "", "b", &long_key, "no", "bad", "long"];
        let answers = group.get_many(keys).await;
        let values: Vec<_> = answers.iter().map(|answer| answer.as_ref().map_err(|e| e.kind())).collect();
        assert_eq!(values[0].unwrap().as_deref(), Some(&b"a"[..]));
        assert_eq!(values[5].unwrap().as_deref(), Some(&b"b"[..]));
        assert_eq!((values[1], values[3]), (Ok(&None), Err(ErrorKind::Loader)));
        assert_eq!((values[2], values[7], values[8]), (values[0], values[1], values[3]), "the twins");
        assert_eq!(
            (values[4], values[6]),
            (Err(ErrorKind::InvalidArgument), Err(ErrorKind::InvalidArgument))
        );
        assert_eq!(values[9].unwrap().as_ref().unwrap().len(), (60 << 10) / 4 * 4);
        // Errors are not kept, all else is.
        assert_eq!(loads.load(Ordering::Relaxed), 5 + round);
    }
    assert!(group.get_many(Vec::<&str>::new()).await.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_is_not_refused_for_the_number_of_its_keys() {
    let (_fleet, client, loads) = fleet(3).await;
    let keys: Vec<String> = (0..100_000).map(|n| format!("key-{n}")).collect();
    for _ in 0..2 {
        let answers = client.group("g").get_many(&keys).await;
        for (key, answer) in keys.iter().zip(answers) {
            assert_eq!(answer.unwrap().unwrap(), *key);
        }
    }
    assert_eq!(loads.load(Ordering::Relaxed), keys.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_is_not_refused_for_the_size_of_its_values_and_small_gets_go_on_beside_it() {
    let (_fleet, client, _) = fleet(2).await;
    let keys: Vec<String> = (0..3_000).map(|n| format!("long-{n}")).collect();
    let large = tokio::spawn({
        let (group, keys) = (client.group("g"), keys.clone());
        async move { group.get_many(&keys).await }
    });
    let mut small = 0;
    while !large.is_finished() {
        assert_eq!(client.group("g").get("small").await.unwrap().unwrap(), "small");
        small += 1;
        tokio::task::yield_now().await;
    }
    assert!(small > 0);
    for (key, answer) in keys.iter().zip(large.await.unwrap()) {
        assert!(answer.unwrap().unwrap().starts_with(key.as_bytes()));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_dies_in_the_middle_costs_no_key() {
    let (fleet, client, _) = fleet(3).await;
    let keys: Vec<String> = (0..2_000).map(|n| format!("key-{n}")).collect();
    let group = client.group("g");
    assert!(group.get_many(&keys).await.iter().all(Result::is_ok));
    let asked = tokio::spawn({
        let (group, keys) = (group.clone(), keys.clone());
        async move {
            let mut answers = Vec::new();
            for _ in 0..20 {
                answers.extend(group.get_many(&keys).await);
            }
            answers
        }
    });
    fleet.kill(1);
    for (key, answer) in keys.iter().cycle().zip(asked.await.unwrap()) {
        assert_eq!(answer.unwrap().unwrap(), *key);
    }
}

/// A load that waits until all other keys have been loaded, those of a node that is down as well: they would
/// be waited for in vain if they waited for it.
#[tokio::test(flavor = "multi_thread")]
async fn keys_of_a_node_that_is_down_do_not_wait_for_a_slow_load_of_another() {
    const OTHERS: usize = 300;
    let (loads, gate) = (Arc::new(AtomicUsize::new(0)), Arc::new(Notify::new()));
    let loader = {
        let (loads, gate) = (loads.clone(), gate.clone());
        loader_fn(move |key| {
            let (loads, gate) = (loads.clone(), gate.clone());
            async move {
                if key.starts_with(b"slow") {
                    gate.notified().await;
                } else if loads.fetch_add(1, Ordering::SeqCst) + 1 == OTHERS {
                    gate.notify_one();
                }
                Ok::<_, peanut_server::LoaderError>(Loaded::found(key))
            }
        })
    };
    let group = Group::new("g", loader).load_timeout(Duration::from_secs(60));
    let fleet = TestFleet::start(3, [group]).await.unwrap();
    let deadline = Duration::from_secs(40);
    let client = Client::builder().registry(fleet.registry()).deadline(deadline).build().await.unwrap();
    fleet.kill(1);
    let down = eventually("a node to be seen to be down", async || {
        client.probe().await;
        client.nodes().into_iter().find(|node| !node.up).map(|node| node.id)
    })
    .await;
    let ring = client.ring();
    let owner = |key: &String| ring.place("g", key.as_bytes()).map(|place| &ring.members()[place.owner].id);
    let is_of_another = |key: &String| owner(key).is_some_and(|owner| *owner != down);
    let slow = (0..).map(|n| format!("slow-{n}")).find(is_of_another).unwrap();
    let others: Vec<String> = (0..OTHERS).map(|n| format!("key-{n}")).collect();
    let keys: Vec<&String> = std::iter::once(&slow).chain(&others).collect();
    for (key, got) in keys.iter().zip(client.group("g").get_many(&keys).await) {
        assert_eq!(got.unwrap().unwrap(), **key);
    }
}
