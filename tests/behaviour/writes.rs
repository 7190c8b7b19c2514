//! Set, delete and clear: what was acknowledged is what is shown, whatever the nodes go through.

use std::time::Duration;

use nix::sys::signal::Signal;
use peanut_client::{Client, ErrorKind, Failover};
use peanut_proto::registry::Registry as _;
use peanut_tests::{Etcd, Origin, ServerProcess, eventually, group_from};

use crate::{SERVER, client, client_of, fleet};

/// The node that owns a key, by its place among these.
fn owner_of(client: &Client, servers: &[ServerProcess], key: &str) -> usize {
    let ring = client.ring();
    let place = ring.place("g", key.as_bytes()).unwrap();
    let id = &ring.members()[place.owner].id;
    servers.iter().position(|server| server.addr() == id).unwrap()
}

async fn text(client: &Client, key: &str) -> Option<String> {
    let value = client.group("g").get(key).await.unwrap_or_else(|error| panic!("{key}: {error}"));
    value.map(|value| String::from_utf8(value.to_vec()).unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_set_is_shown_and_what_is_deleted_or_cleared_is_loaded_anew() {
    let origin = Origin::start(Duration::ZERO).await;
    let (etcd, _servers) = fleet(3, &group_from("g", origin.url(), "")).await;
    for unary in [false, true] {
        let mut builder = client_of(&etcd).deadline(Duration::from_secs(5));
        if unary {
            builder = builder.unary();
        }
        let client = builder.build().await.unwrap();
        let other = crate::client(&etcd, 3).await;
        let group = client.group("g");
        let keys: Vec<String> = (0..50).map(|n| format!("{unary}-{n}")).collect();
        for key in &keys {
            group.set(key, format!("set {key}")).await.unwrap();
            assert_eq!(text(&other, key).await, Some(format!("set {key}")));
        }
        let before = origin.asked().values().sum::<u64>();
        assert!(group.delete_many(&keys[..40]).await.iter().all(Result::is_ok));
        for key in &keys[..40] {
            assert_eq!(text(&other, key).await, Some(format!("value of {key}")));
        }
        assert_eq!(origin.asked().values().sum::<u64>() - before, 40);
        group.clear().await.unwrap();
        for key in &keys {
            assert_eq!(text(&other, key).await, Some(format!("value of {key}")));
        }
        assert_eq!(origin.asked().values().sum::<u64>() - before, 90);
        // A value as long as values may be, and one beyond.
        let long = vec![b'x'; 8 << 20];
        group.set_with_ttl("long", &long, Duration::from_secs(60)).await.unwrap();
        assert!(other.group("g").get("long").await.unwrap().unwrap() == long);
        let error = group.set("long", vec![b'x'; (8 << 20) + 1]).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::TooLarge);
        // The database has been written, so what was there before is gone.
        assert_eq!(text(&other, "long").await, Some("value of long".to_owned()));
        let begun = group.begin_write("long").await.unwrap();
        assert_eq!(text(&other, "long").await, Some("value of long".to_owned()));
        let before = origin.asked_for("long");
        assert_eq!(begun.set(vec![b'x'; (8 << 20) + 1]).await.unwrap_err().kind(), ErrorKind::TooLarge);
        assert_eq!(text(&other, "long").await, Some("value of long".to_owned()));
        assert_eq!(origin.asked_for("long"), before + 1);
        assert_eq!(group.delete("").await.unwrap_err().kind(), ErrorKind::InvalidArgument);
        assert_eq!(client.group("none").clear().await.unwrap_err().kind(), ErrorKind::UnknownGroup);
        // A lifetime of its own.
        group.set_with_ttl("short", "x", Duration::from_millis(50)).await.unwrap();
        tokio::time::sleep(Duration::from_millis(60)).await;
        assert_eq!(text(&client, "short").await.as_deref(), Some("value of short"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_load_in_progress_is_not_kept_over_a_write() {
    let origin = Origin::start(Duration::from_millis(300)).await;
    let (etcd, _servers) = fleet(1, &group_from("g", origin.url(), "")).await;
    let client = client(&etcd, 1).await;
    let loading = tokio::spawn({
        let client = client.clone();
        async move { text(&client, "k").await }
    });
    eventually("the load to begin", async || (origin.asked_for("k") == 1).then_some(())).await;
    client.group("g").set("k", "set").await.unwrap();
    assert_eq!(text(&client, "k").await.as_deref(), Some("set"), "and this get did not join the load");
    assert_eq!(loading.await.unwrap().as_deref(), Some("value of k"), "who waited has what was loaded");
    assert_eq!(text(&client, "k").await.as_deref(), Some("set"));
}

/// The owner is stopped while a delete is acknowledged, and wakes with its memory and a request waiting in
/// its socket.
#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_was_asleep_does_not_show_what_was_deleted_meanwhile() {
    let origin = Origin::start(Duration::ZERO).await;
    let (etcd, mut servers) = fleet(3, &group_from("g", origin.url(), "")).await;
    // A node that stands still is waited for until its lease ends.
    let writer = client_of(&etcd).deadline(crate::PATIENT).build().await.unwrap();
    writer.wait_for_ring(3).await.unwrap();
    let reader = client(&etcd, 3).await;
    let patient = client_of(&etcd).deadline(Duration::from_secs(30)).build().await.unwrap();
    for round in 0..3 {
        let key = format!("k{round}");
        let old = format!("old {round}");
        writer.group("g").set(&key, &old).await.unwrap();
        // Whoever has not heard yet that the node is back asks its successor, which has not been told the
        // value.
        for client in [&reader, &patient] {
            let reads = async || (text(client, &key).await.as_ref() == Some(&old)).then_some(());
            eventually("the owner to be asked", reads).await;
        }
        let owner = owner_of(&writer, &servers, &key);
        servers[owner].process().signal(Signal::SIGSTOP);
        writer.group("g").delete(&key).await.unwrap();
        // This one waits in the owner's socket: its client takes 7 seconds to suspect a silent node.
        let waiting = tokio::spawn({
            let (patient, key) = (patient.clone(), key.clone());
            async move { text(&patient, &key).await }
        });
        tokio::time::sleep(Duration::from_millis(300)).await;
        servers[owner].process().signal(Signal::SIGCONT);
        assert_eq!(waiting.await.unwrap(), Some(format!("value of {key}")), "round {round}");
        assert_eq!(text(&reader, &key).await, Some(format!("value of {key}")));
        let id = servers[owner].addr().to_owned();
        eventually("the writer to use the node again", async || {
            writer.nodes().iter().any(|node| node.id == id && node.up && node.alive).then_some(())
        })
        .await;
    }
}

/// Killed with a warm restart: what was deleted while it was down does not come back from its disk.
#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_was_killed_does_not_restore_what_was_deleted_meanwhile_or_just_before() {
    let origin = Origin::start(Duration::ZERO).await;
    let etcd = Etcd::start().await;
    let directory = tempfile::tempdir().unwrap();
    let mut servers = Vec::new();
    for node in 0..2 {
        let (port, data) = (peanut_tests::free_port(), directory.path().join(node.to_string()));
        let config = format!(
            "listen = \"127.0.0.1:{port}\"\ndata_dir = \"{}\"\n[etcd]\nendpoints = [\"{}\"]\n{}",
            data.display(),
            etcd.endpoint(),
            group_from("g", origin.url(), "ttl = \"1h\"")
        );
        servers.push(ServerProcess::start_with(SERVER, &config).await);
    }
    let client = client(&etcd, 2).await;
    let group = client.group("g");
    let keys: Vec<String> = (0..300).map(|n| format!("k{n}")).collect();
    let mine: Vec<&String> = keys.iter().filter(|key| owner_of(&client, &servers, key) == 0).collect();
    let (kept, rest) = mine.split_at(20);
    let (just_before, rest) = rest.split_at(20);
    let (meanwhile, set_meanwhile) = rest.split_at(20);
    for key in &mine {
        group.set(key, "old").await.unwrap();
    }
    for key in just_before {
        group.delete(key).await.unwrap();
    }
    // What is set is written to the disk every tenth of a second.
    tokio::time::sleep(Duration::from_secs(1)).await;
    servers[0].process().kill();
    for key in meanwhile {
        group.delete(key).await.unwrap();
    }
    for key in &set_meanwhile[..10] {
        group.set(key, "new").await.unwrap();
        // The successor has not been given it: what is late there must not bring it back.
        assert_eq!(text(&client, key).await, Some(format!("value of {key}")));
    }
    servers[0].start_again().await;
    servers[0].process().wait_for_line("warm restart").await;
    let id = servers[0].addr().to_owned();
    eventually("the node to be used again", async || {
        client.nodes().iter().any(|node| node.id == id && node.up && node.alive).then_some(())
    })
    .await;
    let before = client.stats().loaded;
    for key in kept {
        assert_eq!(text(&client, key).await.as_deref(), Some("old"));
    }
    assert_eq!(client.stats().loaded, before, "what was not written meanwhile is warm");
    for key in just_before.iter().chain(meanwhile).chain(&set_meanwhile[..10]) {
        assert_eq!(text(&client, key).await, Some(format!("value of {key}")), "{key}");
    }
    // They go when nobody can have a near copy from the process before.
    eventually("the hints to be removed", async || {
        let left = etcd.registry().load("/peanut/default/undelivered/").await.unwrap();
        left.entries.is_empty().then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn many_invalidations_for_one_node_become_one_for_the_group() {
    let origin = Origin::start(Duration::ZERO).await;
    let (etcd, mut servers) = fleet(2, &group_from("g", origin.url(), "")).await;
    // Longer than a lease, which has to end before the deletes do.
    let client =
        client_of(&etcd).deadline(Duration::from_secs(20)).build().await.expect("the fleet is there");
    client.wait_for_ring(2).await.expect("the client lives");
    let keys: Vec<String> = (0..2_000).map(|n| format!("k{n}")).collect();
    let mine: Vec<&String> = keys.iter().filter(|key| owner_of(&client, &servers, key) == 0).collect();
    for key in &mine {
        client.group("g").set(key, "old").await.unwrap();
    }
    servers[0].process().signal(Signal::SIGSTOP);
    let deleted = client.group("g").delete_many(&mine).await;
    assert!(deleted.iter().all(Result::is_ok), "{:?}", deleted.iter().find(|deleted| deleted.is_err()));
    let left = etcd.registry().load("/peanut/default/undelivered/").await.unwrap();
    // One for the whole group from each lane.
    assert!((2..=68).contains(&left.entries.len()), "{} records", left.entries.len());
    servers[0].process().signal(Signal::SIGCONT);
    eventually("the records to be done", async || {
        etcd.registry().load("/peanut/default/undelivered/").await.unwrap().entries.is_empty().then_some(())
    })
    .await;
    for key in mine {
        assert_eq!(text(&client, key).await, Some(format!("value of {key}")));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn without_owner_and_registry_a_delete_says_so() {
    let origin = Origin::start(Duration::ZERO).await;
    let (mut etcd, mut servers) = fleet(2, &group_from("g", origin.url(), "")).await;
    let client = client(&etcd, 2).await;
    let key = (0..).map(|n| format!("k{n}")).find(|key| owner_of(&client, &servers, key) == 0).unwrap();
    client.group("g").set(&key, "old").await.unwrap();
    etcd.stop();
    servers[0].process().kill();
    let error = client.group("g").delete(&key).await.unwrap_err();
    assert!(error.is_retryable(), "{error:?}");
    // In a fixed list there is no registry at all.
    let fixed = Client::builder().nodes([servers[0].addr(), servers[1].addr()]).build().await.unwrap();
    let key = (0..).map(|n| format!("k{n}")).find(|key| owner_of(&fixed, &servers, key) == 0).unwrap();
    assert_eq!(fixed.group("g").delete(&key).await.unwrap_err().kind(), ErrorKind::Unavailable);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_strict_write_reaches_the_successor_too_and_without_failover_nobody_is_asked() {
    let origin = Origin::start(Duration::ZERO).await;
    let (etcd, mut servers) = fleet(2, &group_from("g", origin.url(), "")).await;
    let strict = client_of(&etcd).failover(Failover::Strict).build().await.unwrap();
    let off = client_of(&etcd).failover(Failover::Off).build().await.unwrap();
    strict.wait_for_ring(2).await.unwrap();
    off.wait_for_ring(2).await.unwrap();
    let key = (0..).map(|n| format!("k{n}")).find(|key| owner_of(&strict, &servers, key) == 0).unwrap();
    strict.group("g").set(&key, "1").await.unwrap();
    servers[0].process().kill();
    assert_eq!(off.group("g").get(&key).await.unwrap_err().kind(), ErrorKind::Unavailable);
    assert_eq!(text(&strict, &key).await, Some(format!("value of {key}")), "the successor forgot, and loads");
}
