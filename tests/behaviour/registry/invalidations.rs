//! Invalidations that clients leave: long, many, malformed, and of several writers.

use std::time::Duration;

use nix::sys::signal::Signal;
use peanut_proto::membership::Hint;
use peanut_proto::registry::{KeyRange, Registry as _};
use peanut_tests::{Etcd, Origin, ServerProcess, eventually};

use super::{LONG, hint, keys, put, put_many, text, two_groups};
use crate::{PATIENT, SERVER, client, client_of, fleet};

#[expect(clippy::too_many_lines, reason = "one scene after the other")]
#[tokio::test(flavor = "multi_thread")]
async fn five_mebibytes_of_invalidations_stop_no_client_and_their_node_reads_them_before_it_shows_anything() {
    let origin = Origin::start(Duration::ZERO).await;
    let etcd = Etcd::start().await;
    let directory = tempfile::tempdir().unwrap();
    let mut servers = Vec::new();
    for n in 0..2 {
        let config = format!(
            "listen = \"127.0.0.1:{}\"\ndata_dir = \"{}\"\n[etcd]\nendpoints = [\"{}\"]\n{}",
            peanut_tests::free_port(),
            directory.path().join(n.to_string()).display(),
            etcd.endpoint(),
            two_groups(&origin)
        );
        servers.push(ServerProcess::start_with(SERVER, &config).await);
        servers[n].registered().await;
    }
    let before = client(&etcd, 2).await;
    let id = servers[0].addr().to_owned();
    let owned = |group: &str| {
        let (ring, id) = (before.ring(), id.clone());
        let is_mine =
            |key: &String| ring.members()[ring.place(group, key.as_bytes()).unwrap().owner].id == id;
        (0..).map(|n| format!("k{n}")).filter(is_mine).take(50).collect::<Vec<_>>()
    };
    let (of_g, of_other) = (owned("g"), owned("other"));
    for (group, keys) in [("g", &of_g), ("other", &of_other)] {
        for key in keys {
            before.group(group).set(key, "old").await.unwrap();
        }
    }
    // What is set is written to the disk every tenth of a second.
    tokio::time::sleep(Duration::from_secs(1)).await;
    servers[0].process().kill();

    // As 80 clients leave 64 each of the longest keys, and more for nodes that nobody knows; the ones that
    // matter come last.
    let long = |n: usize| format!("{n:04}").repeat(256).into_bytes();
    let left = |node: &str, n: usize| {
        (format!("{}w{:02}-{n:05}", keys().hints_of(node, "g"), n / 64), hint(Some(vec![long(n)])))
    };
    put_many(&etcd, (0..5_200).map(|n| left(&id, n))).await;
    put_many(&etcd, (0..300).map(|n| left("stranger:1", n))).await;
    let last = |(n, key): (usize, &String)| {
        (format!("{}zz-{n:05}", keys().hints_of(&id, "g")), hint(Some(vec![key.clone().into_bytes()])))
    };
    put_many(&etcd, of_g.iter().enumerate().map(last)).await;
    let all = etcd.registry().load(&keys().hints_for(&id)).await.unwrap();
    assert!(all.entries.iter().map(|entry| entry.value.len()).sum::<usize>() > 5 << 20);

    // A client is there at once, and reads none of it.
    let fresh = client_of(&etcd).deadline(LONG).build().await.unwrap();
    assert_eq!(fresh.nodes().len(), 2);

    servers[0].start_again().await;
    servers[0].registered().await;
    let mine = KeyRange::prefix(&keys().hints_for(&id));
    eventually("all of it to be done", async || {
        (etcd.registry().count(&mine).await.unwrap() == 0).then_some(())
    })
    .await;
    eventually("the node to be used", async || {
        fresh.probe().await;
        fresh.nodes().iter().all(|node| node.up && node.alive).then_some(())
    })
    .await;
    for key in &of_g {
        assert_eq!(text(&fresh, "g", key).await, format!("value of {key}"));
    }
    for key in &of_other {
        assert_eq!(text(&fresh, "other", key).await, "old", "the other group came back warm");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn values_as_long_as_etcd_takes_them_are_read_in_pages_too() {
    let etcd = Etcd::start().await;
    let registry = etcd.registry();
    put_many(&etcd, (0..12).map(|n| (format!("/p/a{n:02}"), vec![n; 1_400_000]))).await;
    put_many(&etcd, (12..3_000).map(|n| (format!("/p/b{n:04}"), vec![7; 10]))).await;
    let read = registry.load("/p/").await.unwrap();
    assert_eq!(read.entries.len(), 3_000);
    assert!(
        read.entries.iter().take(12).enumerate().all(|(n, entry)| entry.value == vec![n as u8; 1_400_000])
    );
    assert!(read.entries.windows(2).all(|pair| pair[0].key < pair[1].key));
    let again = registry.load("/p/").await.unwrap();
    assert_eq!(again.entries.len(), 3_000, "a registry that has learnt what fits");
    assert_eq!(registry.count(&KeyRange::prefix("/p/")).await.unwrap(), 3_000);

    // Changes that are more than a message of gRPC's usual length come in a watch as well.
    let ranges = [KeyRange::prefix("/w/"), KeyRange::key("/x/1")];
    let mut changes = registry.watch(&ranges).await.unwrap();
    put_many(&etcd, (0..6).map(|n| (format!("/w/{n}"), vec![n; 1_400_000]))).await;
    put_many(&etcd, [("/x/1".to_owned(), vec![1])]).await;
    let mut seen = Vec::new();
    while seen.len() < 7 {
        let some = tokio::time::timeout(LONG, changes.next()).await.unwrap().unwrap();
        seen.extend(some.into_iter().map(|change| change.key));
    }
    seen.sort();
    assert_eq!(seen, ["/w/0", "/w/1", "/w/2", "/w/3", "/w/4", "/w/5", "/x/1"]);

    let too_long = registry.put("/p/long", vec![0; 3 << 20], None).await.unwrap_err();
    assert!(too_long.is_too_large(), "{too_long}");
    let read = registry.load("/p/").await.unwrap();
    let stale: Vec<_> = read.entries.into_iter().map(|entry| (entry.key, entry.revision)).collect();
    put(&etcd, "/p/b0100", "newer").await;
    registry.delete_all_if(&stale).await.unwrap();
    let left = registry.load("/p/").await.unwrap().entries;
    assert_eq!(left.iter().map(|entry| entry.key.as_str()).collect::<Vec<_>>(), ["/p/b0100"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_malformed_invalidation_costs_the_group_that_its_key_names() {
    let origin = Origin::start(Duration::ZERO).await;
    let (etcd, servers) = fleet(1, &two_groups(&origin)).await;
    let client = client(&etcd, 1).await;
    let id = servers[0].addr();
    let none = async || {
        let left = KeyRange::prefix(&keys().hints_for(id));
        eventually("it to be done", async || {
            (etcd.registry().count(&left).await.unwrap() == 0).then_some(())
        })
        .await;
    };
    let set = async || {
        for group in ["g", "other"] {
            client.group(group).set("k", "set").await.unwrap();
            client.group(group).set("k2", "set").await.unwrap();
        }
    };
    let bad = [
        b"garbage".to_vec(),
        Vec::new(),
        vec![0xff; 1 << 20],
        br#"{"format":2,"keys":["aw=="]}"#.to_vec(),
        br#"{"format":1,"keys":["not base64!"],"ring_version":1,"at_ms":0}"#.to_vec(),
        br#"{"format":1,"keys":5,"ring_version":1,"at_ms":0}"#.to_vec(),
    ];
    for bad in bad {
        set().await;
        put(&etcd, &format!("{}x-1", keys().hints_of(id, "g")), bad).await;
        none().await;
        assert_eq!(text(&client, "g", "k").await, "value of k");
        assert_eq!(text(&client, "other", "k").await, "set");
    }
    // The key says of which group it is, whatever the record says: so rights on keys are rights on groups.
    set().await;
    let liar =
        br#"{"format":1,"group":"other","keys":["aw=="],"ring_version":18446744073709551615,"at_ms":0}"#;
    put(&etcd, &format!("{}x-2", keys().hints_of(id, "g")), liar.to_vec()).await;
    none().await;
    assert_eq!(text(&client, "g", "k").await, "value of k");
    assert_eq!([text(&client, "g", "k2").await, text(&client, "other", "k").await], ["set", "set"]);
    // Of a group that the node has not, and keys that nobody knows.
    let unknown = ["undelivered/", "undelivered/x", "live", "ring/", "groups", "policy/1", "ringz"];
    put(&etcd, &format!("{}x-3", keys().hints_of(id, "gone")), "garbage").await;
    put_many(&etcd, unknown.map(|key| (format!("{}{key}", keys().prefix()), b"?".to_vec()))).await;
    put(&etcd, &format!("{}no-group", keys().hints_for(id)), "garbage").await;
    // Nor are all keys text.
    let mut raw = etcd_client::Client::connect([etcd.endpoint()], None).await.unwrap();
    for key in [keys().hints_of(id, "other"), keys().live(""), keys().group(""), keys().all_hints()] {
        raw.put([key.as_bytes(), b"\xff\xfe"].concat(), "?", None).await.unwrap();
    }
    put(&etcd, &format!("{}x-4", keys().hints_of(id, "g")), hint(None)).await;
    eventually("the last to be done", async || {
        (etcd.registry().count(&KeyRange::prefix(&keys().hints_of(id, "g"))).await.unwrap() == 0)
            .then_some(())
    })
    .await;
    assert_eq!(text(&client, "g", "k2").await, "value of k2");
    assert_eq!(text(&client, "other", "k").await, "set");
    let fresh = client_of(&etcd).deadline(LONG).build().await.unwrap();
    assert_eq!(text(&fresh, "other", "k2").await, "set");
}

#[tokio::test(flavor = "multi_thread")]
async fn writers_do_not_overwrite_each_others_invalidations_and_leave_few() {
    let origin = Origin::start(Duration::ZERO).await;
    let (etcd, mut servers) = fleet(2, &two_groups(&origin)).await;
    let id = servers[0].addr().to_owned();
    let mut writers = Vec::new();
    for _ in 0..3 {
        // A node that stands still is waited for until its lease ends.
        writers.push(client_of(&etcd).deadline(PATIENT).build().await.unwrap());
    }
    let ring = writers[0].ring();
    let is_mine = |key: &String| ring.members()[ring.place("g", key.as_bytes()).unwrap().owner].id == id;
    let long: Vec<String> = (0..).map(|n| format!("{n:04}").repeat(250)).filter(is_mine).take(40).collect();
    let short: Vec<String> = (0..).map(|n| format!("k{n}")).filter(is_mine).take(100).collect();
    servers[0].process().signal(Signal::SIGSTOP);
    for writer in &writers {
        let deleted = writer.group("g").delete_many(&long).await;
        assert!(deleted.iter().all(Result::is_ok), "{:?}", deleted.iter().find(|deleted| deleted.is_err()));
    }
    let left = etcd.registry().load(&keys().hints_for(&id)).await.unwrap().entries;
    assert!(left.iter().all(|entry| entry.key.starts_with(&keys().hints_of(&id, "g"))));
    let whole: Vec<_> =
        left.iter().filter(|entry| Hint::decode(&entry.value).unwrap().keys.is_none()).collect();
    assert!(whole.len() >= 3, "each writer has one of its own: {whole:?}");
    let bytes: usize = left.iter().map(|entry| entry.value.len()).sum();
    assert!(bytes < 3 * (40 << 10), "{bytes} bytes of 120 KB of keys");

    // Where many wait already, the next is for the whole group, whoever leaves it.
    put_many(
        &etcd,
        (0..1_100).map(|n| (format!("{}zz-{n}", keys().hints_of(&id, "g")), hint(Some(vec![b"x".to_vec()])))),
    )
    .await;
    let before = left.len() + 1_100;
    let late = client_of(&etcd).deadline(PATIENT).build().await.unwrap();
    assert!(late.group("g").delete_many(&short).await.iter().all(Result::is_ok));
    let after = etcd.registry().count(&KeyRange::prefix(&keys().hints_for(&id))).await.unwrap();
    assert!(after as usize <= before + 16, "{after} after {before}");
    servers[0].process().signal(Signal::SIGCONT);
    eventually("all to be done", async || {
        (etcd.registry().count(&KeyRange::prefix(&keys().hints_for(&id))).await.unwrap() == 0).then_some(())
    })
    .await;
    for key in short.iter().chain(&long) {
        assert_eq!(text(&late, "g", key).await, format!("value of {key}"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_process_of_one_node_id_takes_no_hints_from_the_first() {
    let origin = Origin::start(Duration::ZERO).await;
    let etcd = Etcd::start().await;
    let config = || {
        let (port, etcd, groups) = (peanut_tests::free_port(), etcd.endpoint(), two_groups(&origin));
        format!(
            "listen = \"127.0.0.1:{port}\"\nnode_id = \"twin\"\nlease_ttl = \"20s\"\n[etcd]\nendpoints = [\"{etcd}\"]\n{groups}"
        )
    };
    let mut first = ServerProcess::start_with(SERVER, &config()).await;
    first.registered().await;
    let client = client(&etcd, 1).await;
    client.group("g").set("k", "old").await.unwrap();
    // It holds its lease, and reads nothing for a while.
    first.process().signal(Signal::SIGSTOP);
    let mut second = ServerProcess::start_with(SERVER, &config()).await;
    second.process().wait_for_line("is in use at").await;
    let at = format!("{}zz-1", keys().hints_of("twin", "g"));
    put(&etcd, &at, hint(Some(vec![b"k".to_vec()]))).await;
    // Time enough for whoever would read it.
    tokio::time::sleep(Duration::from_secs(2)).await;
    let left = async || etcd.registry().get(&at).await.unwrap();
    assert!(left().await.is_some(), "it is for the first");
    first.process().signal(Signal::SIGCONT);
    eventually("the hint to be read", async || left().await.is_none().then_some(())).await;
    assert_eq!(text(&client, "g", "k").await, "value of k");
    // When the first has gone for good, the second takes its place.
    first.process().signal(Signal::SIGTERM);
    first.process().ended().await;
    second.registered().await;
}
