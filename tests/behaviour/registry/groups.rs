//! What is recorded of groups and nodes: generations, liveness, and who has which group.

use std::time::Duration;

use peanut_client::{ErrorKind, Failover};
use peanut_proto::membership::{self, FORMAT};
use peanut_proto::numbers::Generation;
use peanut_proto::registry::{KeyRange, Registry as _};
use peanut_tests::{Etcd, Origin, ServerProcess, eventually, group_from};

use super::{Gets, LONG, keys, put, put_many, stored_ring, text, two_groups};
use crate::{PATIENT, PEANUT, SCORES, SERVER, client, client_of, fleet};

#[expect(clippy::too_many_lines, reason = "one scene after the other")]
/// Whatever a group's record says, the next `clear` clears: on running nodes, and on one that comes back
/// warm.
#[tokio::test(flavor = "multi_thread")]
async fn clear_clears_whatever_the_record_of_the_group_says() {
    let origin = Origin::start(Duration::ZERO).await;
    let etcd = Etcd::start().await;
    let directory = tempfile::tempdir().unwrap();
    let config = format!(
        "listen = \"127.0.0.1:{}\"\ndata_dir = \"{}\"\n[etcd]\nendpoints = [\"{}\"]\n{}",
        peanut_tests::free_port(),
        directory.path().display(),
        etcd.endpoint(),
        two_groups(&origin)
    );
    let mut server = ServerProcess::start_with(SERVER, &config).await;
    server.registered().await;
    let client = client(&etcd, 1).await;
    let record =
        |generation: u64| membership::Group { format: FORMAT, generation: Generation(generation) }.encode();
    let bad = [
        record(1),
        record(u64::from(u32::MAX)),
        record(u64::from(u32::MAX) + 1),
        record(1 << 53),
        record(u64::MAX - 1),
        record(u64::MAX),
        b"garbage".to_vec(),
        Vec::new(),
        br#"{"format":9,"generation":"x"}"#.to_vec(),
    ];
    let key = keys().group("g");
    client.group("other").set("k", "kept").await.unwrap();
    for (round, bad) in bad.into_iter().enumerate() {
        let shown = String::from_utf8_lossy(&bad).into_owned();
        put(&etcd, &key, bad).await;
        // What an honest number does meanwhile is to clear; afterwards what is set stays.
        eventually("a value to stay", async || {
            client.group("g").set("k", "old").await.unwrap();
            tokio::time::sleep(Duration::from_millis(200)).await;
            (text(&client, "g", "k").await == "old").then_some(())
        })
        .await;
        if round % 3 == 2 {
            // The node is down when the group is cleared, and has the value on its disk.
            server.process().kill();
            client.group("g").clear().await.unwrap();
            server.start_again().await;
            server.registered().await;
            eventually("the node to be used", async || {
                client.probe().await;
                client.nodes()[0].up.then_some(())
            })
            .await;
        } else {
            client.group("g").clear().await.unwrap();
        }
        assert_eq!(text(&client, "g", "k").await, "value of k", "{shown}");
        let generation =
            membership::Group::decode(&etcd.registry().get(&key).await.unwrap().unwrap().value).unwrap();
        assert!(generation.generation < Generation(u64::MAX / 2), "{shown}");
    }
    // And where the registry has lost the record altogether.
    client.group("g").set("k", "old").await.unwrap();
    etcd.registry().delete(&key).await.unwrap();
    client.group("g").clear().await.unwrap();
    assert_eq!(text(&client, "g", "k").await, "value of k");
    assert_eq!(text(&client, "other", "k").await, "kept");
    // A name that cannot be a group's is written nowhere.
    let before = etcd.registry().load(&keys().group("")).await.unwrap().entries.len();
    for name in ["", "a/b", "g\n", &"x".repeat(1000)] {
        let refused = client.group(name).clear().await.unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::InvalidArgument, "{name:?}");
    }
    assert_eq!(etcd.registry().load(&keys().group("")).await.unwrap().entries.len(), before);
}

#[tokio::test(flavor = "multi_thread")]
async fn thousands_of_liveness_records_of_nobody_and_unreadable_ones_stop_nobody() {
    let (etcd, mut servers) = fleet(2, SCORES).await;
    let running = client(&etcd, 2).await;
    let gets = Gets::start(&running);
    let live = |n: usize| match n % 3 {
        0 => b"garbage".to_vec(),
        1 => vec![b' '; 1_500],
        _ => format!(r#"{{"format":1,"addr":"h:{n}","incarnation":"0","build":"","started_ms":0}}"#)
            .into_bytes(),
    };
    put_many(&etcd, (0..6_000).map(|n| (keys().live(&format!("nobody-{n:05}")), live(n)))).await;
    let fresh = client_of(&etcd).deadline(LONG).build().await.unwrap();
    assert!(fresh.nodes().iter().all(|node| node.alive), "members are known all the same");
    assert_eq!(text(&fresh, "scores", "Tom").await, "630");
    // A member's own record that cannot be read is written again.
    put(&etcd, &keys().live(servers[0].addr()), "garbage").await;
    eventually("the record to be mended", async || {
        let live = etcd.registry().get(&keys().live(servers[0].addr())).await.unwrap()?;
        membership::Liveness::decode(&live.value).ok()
    })
    .await;
    servers.push(ServerProcess::start(SERVER, &etcd.endpoint(), SCORES).await);
    servers[2].registered().await;
    eventually("the newcomer to be seen", async || {
        let nodes = running.nodes();
        (nodes.len() == 3 && nodes.iter().all(|node| node.alive)).then_some(())
    })
    .await;
    gets.none_failed().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn groups_that_only_some_nodes_have_and_shared_addresses_are_told_to_operators() {
    let origin = Origin::start(Duration::ZERO).await;
    let (etcd, mut servers) = fleet(1, &two_groups(&origin)).await;
    let admin = peanut_tests::free_port();
    let groups = group_from("g", origin.url(), "");
    let config = format!(
        "listen = \"127.0.0.1:{}\"\nadmin = \"127.0.0.1:{admin}\"\n[etcd]\nendpoints = [\"{}\"]\n{groups}",
        peanut_tests::free_port(),
        etcd.endpoint()
    );
    servers.push(ServerProcess::start_with(SERVER, &config).await);
    servers[1].registered().await;
    let (first, second) = (servers[0].addr().to_owned(), servers[1].addr().to_owned());
    let told = format!("group `other` is on {first} and not on {second}");
    for server in &mut servers {
        server.process().wait_for_line(&told).await;
    }
    let client = client(&etcd, 2).await;
    eventually("the client to know", async || {
        let notices: Vec<_> = client.notices().iter().map(ToString::to_string).collect();
        (notices == [told.clone()]).then_some(())
    })
    .await;
    let status = async || {
        let url = format!("http://127.0.0.1:{admin}/status");
        let body = peanut_tests::http_client().get(url).send().await.unwrap().text().await.unwrap();
        serde_json::from_str::<serde_json::Value>(&body).unwrap()["ring"]["notices"].clone()
    };
    assert_eq!(status().await, serde_json::json!([told]));

    // Another process with the first one's address.
    let ring = stored_ring(&etcd).await.unwrap();
    let twin =
        membership::NodeInfo { id: "twin".into(), addr: first.clone(), zone: String::new(), weight: 1 };
    put(&etcd, &keys().ring(), ring.with(&twin, 0).unwrap().encode()).await;
    let mut both = [first.as_str(), "twin"];
    both.sort_unstable();
    let shared = format!("{} have one address, {first}", both.join(", "));
    for server in &mut servers {
        server.process().wait_for_line(&shared).await;
    }
    let peanut = |command: &str| {
        let mut peanut = std::process::Command::new(PEANUT);
        peanut.args(["--etcd", &etcd.endpoint(), command]);
        String::from_utf8(peanut.output().unwrap().stdout).unwrap()
    };
    for command in ["ring", "nodes"] {
        let output = peanut(command);
        assert!(output.contains(&shared) && output.contains(&told), "{command}: {output}");
    }
    assert_eq!(status().await.as_array().unwrap().len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn groups_of_any_name_are_cleared_and_invalidated() {
    let origin = Origin::start(Duration::ZERO).await;
    let names = ["sp\u{e4}te G\u{e4}ste", "..", "%2F", "a.b c", "'\"\\", "live", "\u{10ffff}"];
    let groups: String = names
        .map(|name| {
            let quoted = name.replace('\\', "\\\\").replace('"', "\\\"");
            group_from(&quoted, &origin.url().replace("{group}", "any"), "")
        })
        .concat();
    let (etcd, mut servers) = fleet(1, &groups).await;
    // A node that stands still is waited for until its lease ends.
    let client = client_of(&etcd).deadline(PATIENT).build().await.unwrap();
    for name in names {
        let group = client.group(name);
        group.set("k", "old").await.unwrap();
        group.clear().await.unwrap();
        assert_eq!(text(&client, name, "k").await, "value of k", "{name}");
        group.set("k", "old").await.unwrap();
    }
    servers[0].process().signal(nix::sys::signal::Signal::SIGSTOP);
    for name in names {
        client.group(name).delete("k").await.unwrap();
    }
    servers[0].process().signal(nix::sys::signal::Signal::SIGCONT);
    for name in names {
        assert_eq!(text(&client, name, "k").await, "value of k", "{name}");
    }
    eventually("all to be done", async || {
        let left = KeyRange::prefix(&keys().all_hints());
        (etcd.registry().count(&left).await.unwrap() == 0).then_some(())
    })
    .await;
}

/// The owner is gone, its successor does not have the group, and so a third node answers for both: it is told
/// of writes in every mode, though neither owner nor successor is it.
#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_answers_for_two_others_is_told_of_writes() {
    let origin = Origin::start(Duration::ZERO).await;
    let long = "failover_ttl = \"1m\"";
    let with = group_from("g", origin.url(), long) + &group_from("other", origin.url(), "");
    let (etcd, mut servers) = fleet(2, &with).await;
    let without = group_from("other", origin.url(), "");
    servers.push(ServerProcess::start(SERVER, &etcd.endpoint(), &without).await);
    servers[2].registered().await;
    let reader = client(&etcd, 3).await;
    let ids = [0, 1, 2].map(|at| servers[at].addr().to_owned());
    let ring = reader.ring();
    let id = |member: usize| ring.members()[member].id.clone();
    let all = (0..).map(|n| format!("key-{n}"));
    let of_both = all.filter(|key| {
        let place = ring.place("g", key.as_bytes()).unwrap();
        id(place.owner) == ids[0] && place.successor.map(id).as_ref() == Some(&ids[2])
    });
    let keys: Vec<String> = of_both.take(3).collect();
    servers[0].process().kill();
    for (mode, key) in [Failover::Bounded, Failover::Strict, Failover::Off].into_iter().zip(&keys) {
        for loads in 1..=2 {
            assert_eq!(text(&reader, "g", key).await, format!("value of {key}"));
            assert_eq!(text(&reader, "g", key).await, format!("value of {key}"));
            assert_eq!(origin.asked_for(key), loads, "{mode:?}");
            let writer = client_of(&etcd).deadline(PATIENT).failover(mode).build().await.unwrap();
            writer.group("g").delete(key).await.unwrap();
        }
    }
}
