//! The ring document: damaged, bogus, long, or of a newer build.

use std::time::Duration;

use peanut_proto::intervals::Windows;
use peanut_proto::membership::{self, Member, RingDocument};
use peanut_proto::numbers::RingVersion;
use peanut_proto::registry::Registry as _;
use peanut_tests::{Etcd, ServerProcess, eventually};

use super::{Gets, keys, put, stored_ring, text};
use crate::{SCORES, SERVER, client, fleet};

#[tokio::test(flavor = "multi_thread")]
async fn a_bad_ring_document_is_written_again_and_no_client_loses_its_ring() {
    let (etcd, _servers) = fleet(3, SCORES).await;
    let client = client(&etcd, 3).await;
    let gets = Gets::start(&client);
    let good = stored_ring(&etcd).await.unwrap();
    let member = good.members[0].clone();
    let bogus = |count: usize| {
        let named = |n| Member { id: format!("bogus-{n}"), addr: format!("192.0.2.1:{n}"), ..member.clone() };
        (0..count).map(named).collect::<Vec<_>>()
    };
    let with = |members| {
        RingDocument { version: good.version.plus(1), points: 160, members, ..good.clone() }.encode()
    };
    let bad: [(&str, Vec<u8>); 8] = [
        ("nothing", Vec::new()),
        ("garbage", b"garbage".to_vec()),
        ("a megabyte of noise", vec![0xa5; 1 << 20]),
        ("10,000 bogus members", with(bogus(10_000))),
        ("1,025 bogus members", with(bogus(1_025))),
        ("members twice", with([good.members.clone(), good.members.clone()].concat())),
        (
            "the last version there is",
            RingDocument { version: RingVersion(u64::MAX), ..good.clone() }.encode(),
        ),
        (
            "a version that was not counted",
            RingDocument { version: RingVersion(1 << 52), ..good.clone() }.encode(),
        ),
    ];
    for (what, bad) in bad {
        put(&etcd, &keys().ring(), bad).await;
        let mended = eventually(what, async || {
            stored_ring(&etcd)
                .await
                .filter(|ring| ring.version < RingVersion(1 << 20) && ring.members.len() == 3)
        })
        .await;
        assert_eq!(mended.members, good.members, "{what}");
        assert_eq!(client.nodes().len(), 3, "{what}");
        eventually("the client to follow", async || {
            (client.ring().version() >= mended.version).then_some(())
        })
        .await;
    }
    gets.none_failed().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_ring_of_mostly_lifeless_newcomers_is_doubted() {
    let (etcd, _servers) = fleet(2, SCORES).await;
    let client = client(&etcd, 2).await;
    let gets = Gets::start(&client);
    let good = stored_ring(&etcd).await.unwrap();
    let bogus = |n| Member {
        id: format!("bogus-{n}"),
        addr: format!("192.0.2.1:{n}"),
        since: good.version.plus(1),
        ..good.members[0].clone()
    };
    let mut members: Vec<_> = (1..900).map(bogus).collect();
    members.extend(good.members.clone());
    let version = good.version.plus(1);
    put(&etcd, &keys().ring(), RingDocument { version, members, points: 160, ..good.clone() }.encode()).await;
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(client.nodes().len(), 2);
    put(&etcd, &keys().ring(), RingDocument { version: version.plus(1), ..good }.encode()).await;
    eventually("the ring after it", async || (client.ring().version() == version.plus(1)).then_some(()))
        .await;
    gets.none_failed().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_ring_of_a_newer_build_is_told_of_once_and_left_alone() {
    let (etcd, mut servers) = fleet(1, SCORES).await;
    let client = client(&etcd, 1).await;
    let newer = br#"{"format":2,"version":7,"anything":{}}"#.to_vec();
    put(&etcd, &keys().ring(), newer.clone()).await;
    servers[0].process().wait_for_line("format 2 is not known to this build").await;
    etcd.revoke_all_leases().await;
    eventually("the node to be alive again", async || {
        etcd.registry().get(&keys().live(servers[0].addr())).await.unwrap().map(drop)
    })
    .await;
    assert_eq!(etcd.registry().get(&keys().ring()).await.unwrap().unwrap().value, newer);
    assert_eq!(text(&client, "scores", "Tom").await, "630");
    let said = servers[0].process().log().into_iter().filter(|line| line.contains("format 2")).count();
    assert_eq!(said, 1, "it is said once");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_joins_a_ring_whose_document_has_grown_long_and_one_that_is_full_says_what_to_do() {
    let etcd = Etcd::start().await;
    let member = |n: usize| Member {
        id: format!("a-pod-with-a-rather-long-name-{n:05}"),
        addr: format!("192.0.2.1:{n}"),
        zone: String::new(),
        weight: 1,
        since: RingVersion(1),
        since_ms: 0,
    };
    let members: Vec<_> = (1..1_024).map(member).collect();
    let now = std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap().as_millis() as u64;
    let earlier = (1..12).rev().map(|version| membership::Earlier {
        version: RingVersion(version),
        replaced_ms: now,
        members: members.clone(),
    });
    let ring = RingDocument {
        version: RingVersion(12),
        members: members.clone(),
        earlier: earlier.collect(),
        ..RingDocument::empty(64)
    };
    assert!((1 << 20..1_500_000).contains(&ring.encode().len()), "{}", ring.encode().len());
    put(&etcd, &keys().ring(), ring.encode()).await;
    let mut first = ServerProcess::start(SERVER, &etcd.endpoint(), SCORES).await;
    first.registered().await;
    let stored = stored_ring(&etcd).await.unwrap();
    assert_eq!((stored.version.0, stored.members.len()), (13, 1_024));
    assert!(!stored.earlier.is_empty() && stored.encode().len() <= membership::MAX_DOCUMENT_BYTES);

    let mut second = ServerProcess::start(SERVER, &etcd.endpoint(), SCORES).await;
    let said = second.process().wait_for_line("cannot join").await;
    assert!(said.contains("1025 members are more than 1024") && said.contains("peanut remove"), "{said}");
    // It joins once there is room.
    let ring = stored.without(&members[0].id, now).unwrap();
    put(&etcd, &keys().ring(), RingDocument { earlier: Vec::new(), ..ring }.encode()).await;
    second.registered().await;
}

/// The key's owner is taken out of the ring while a write is open, and joins again by itself: whatever was
/// written at the other owner, it was not told of.
#[tokio::test(flavor = "multi_thread")]
async fn a_begun_write_whose_key_was_elsewhere_meanwhile_leaves_no_value() {
    let (etcd, _servers) = fleet(2, SCORES).await;
    let client = client(&etcd, 2).await;
    let begun = client.group("scores").begin_write("Tom").await.unwrap();
    // Longer than the client repeats what the write began with where the ring changes.
    tokio::time::sleep(Windows::FLEET.recent_writes + Duration::from_secs(1)).await;
    let ring = client.ring();
    let owner = ring.members()[ring.place("scores", b"Tom").unwrap().owner].id.clone();
    let stored = stored_ring(&etcd).await.unwrap();
    put(&etcd, &keys().ring(), stored.without(&owner, 1).unwrap().encode()).await;
    eventually("the owner to be back", async || {
        let now = client.ring();
        (now.version() >= stored.version.plus(2) && now.members().len() == 2).then_some(())
    })
    .await;
    begun.set("of before").await.unwrap();
    assert_eq!(text(&client, "scores", "Tom").await, "630");
}
