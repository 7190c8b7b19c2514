//! What stands in etcd is doubted: bad, long and countless records cost themselves, and no more.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use peanut_client::{Client, ErrorKind};
use peanut_proto::membership::{self, FORMAT, Keys, Member, RingDocument, Undelivered};
use peanut_proto::registry::{KeyRange, Registry as _};
use peanut_tests::{Etcd, Origin, ServerProcess, eventually, group_from};
use tokio::task::JoinHandle;

use crate::{SCORES, SERVER, client, client_of, fleet};

const LONG: Duration = Duration::from_secs(10);

/// Two groups of that origin.
fn two_groups(origin: &Origin) -> String {
    group_from("g", origin.url(), "") + &group_from("other", origin.url(), "")
}

fn keys() -> Keys {
    Keys::new("default")
}

async fn put(etcd: &Etcd, key: &str, value: impl Into<Vec<u8>>) {
    etcd.registry().put(key, value.into(), None).await.unwrap();
}

async fn stored_ring(etcd: &Etcd) -> Option<RingDocument> {
    RingDocument::decode(&etcd.registry().get(&keys().ring()).await.unwrap()?.value).ok()
}

/// An invalidation of these keys, or of the whole group.
fn hint(of: Option<Vec<Vec<u8>>>) -> Vec<u8> {
    Undelivered { format: FORMAT, keys: of, ring_version: 1, at_ms: 0, fence: None }.encode()
}

/// Writes many keys at once.
async fn put_many(etcd: &Etcd, entries: impl IntoIterator<Item = (String, Vec<u8>)>) {
    let mut client = etcd_client::Client::connect([etcd.endpoint()], None).await.unwrap();
    let entries: Vec<_> = entries.into_iter().collect();
    // A transaction has at most 128 operations, and a request 1.5 MiB.
    let per_request = (1 << 20) / entries.iter().map(|(_, value)| value.len() + 200).max().unwrap_or(1);
    for some in entries.chunks(per_request.clamp(1, 128)) {
        let puts = some.iter().map(|(key, value)| etcd_client::TxnOp::put(key.as_str(), value.clone(), None));
        client.txn(etcd_client::Txn::new().and_then(puts.collect::<Vec<_>>())).await.unwrap();
    }
}

async fn text(client: &Client, group: &str, key: &str) -> String {
    let value = client.group(group).get(key).await.unwrap_or_else(|error| panic!("{group}/{key}: {error}"));
    String::from_utf8(value.unwrap().to_vec()).unwrap()
}

/// Gets, one after the other by each of four callers, until it is stopped: how many there were, and the errors.
struct Gets(Arc<AtomicBool>, Vec<JoinHandle<(u64, Vec<String>)>>);

impl Gets {
    fn start(client: &Client) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let caller = |_| {
            let (stop, group) = (stop.clone(), client.group("scores"));
            tokio::spawn(async move {
                let (mut gets, mut errors) = (0, Vec::new());
                while !stop.load(Ordering::Relaxed) {
                    let key = ["Tom", "Jack", "Sam", "nobody"][fastrand::usize(..4)];
                    errors.extend(group.get(key).await.err().map(|error| error.to_string()));
                    gets += 1;
                    tokio::time::sleep(Duration::from_millis(2)).await;
                }
                (gets, errors)
            })
        };
        Gets(stop.clone(), (0..4).map(caller).collect())
    }

    async fn none_failed(self) {
        self.0.store(true, Ordering::Relaxed);
        for caller in self.1 {
            let (gets, errors) = caller.await.unwrap();
            assert!(
                gets > 0 && errors.is_empty(),
                "{gets} gets, {} errors: {:?}",
                errors.len(),
                errors.first()
            );
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn five_mebibytes_of_invalidations_stop_no_client_and_their_node_reads_them_before_it_shows_anything() {
    let origin = Origin::start(Duration::ZERO).await;
    let etcd = Etcd::start().await;
    let folder = tempfile::tempdir().unwrap();
    let mut servers = Vec::new();
    for n in 0..2 {
        let config = format!(
            "listen = \"127.0.0.1:{}\"\ndata_dir = \"{}\"\n[etcd]\nendpoints = [\"{}\"]\n{}",
            peanut_tests::free_port(),
            folder.path().join(n.to_string()).display(),
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
            before.group(group).set(key, "old", None).await.unwrap();
        }
    }
    servers[0].process().kill();

    // As 80 clients leave 64 each of the longest keys, and more for nodes that nobody knows; the ones that matter come last.
    let long = |n: usize| format!("{n:04}").repeat(256).into_bytes();
    let left = |node: &str, n: usize| {
        (format!("{}w{:02}-{n:05}", keys().undelivered_of(node, "g"), n / 64), hint(Some(vec![long(n)])))
    };
    put_many(&etcd, (0..5_200).map(|n| left(&id, n))).await;
    put_many(&etcd, (0..300).map(|n| left("stranger:1", n))).await;
    let last = |(n, key): (usize, &String)| {
        (format!("{}zz-{n:05}", keys().undelivered_of(&id, "g")), hint(Some(vec![key.clone().into_bytes()])))
    };
    put_many(&etcd, of_g.iter().enumerate().map(last)).await;
    let all = etcd.registry().load(&keys().undelivered(&id)).await.unwrap();
    assert!(all.entries.iter().map(|entry| entry.value.len()).sum::<usize>() > 5 << 20);

    // A client is there at once, and reads none of it.
    let fresh = client_of(&etcd).deadline(LONG).build().await.unwrap();
    assert_eq!(fresh.nodes().len(), 2);

    servers[0].start_again().await;
    servers[0].registered().await;
    let mine = KeyRange::prefix(&keys().undelivered(&id));
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
    let from = registry.load("/q").await.unwrap().revision + 1;
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
    put_many(&etcd, (0..6).map(|n| (format!("/w/{n}"), vec![n; 1_400_000]))).await;
    put_many(&etcd, [("/x/1".to_owned(), vec![1])]).await;
    let ranges = [KeyRange::prefix("/w/"), KeyRange::key("/x/1")];
    let mut changes = registry.watch(&ranges, from).await.unwrap();
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
    let with =
        |members| RingDocument { version: good.version + 1, points: 160, members, ..good.clone() }.encode();
    let bad: [(&str, Vec<u8>); 8] = [
        ("nothing", Vec::new()),
        ("garbage", b"garbage".to_vec()),
        ("a megabyte of noise", vec![0xa5; 1 << 20]),
        ("10,000 bogus members", with(bogus(10_000))),
        ("1,025 bogus members", with(bogus(1_025))),
        ("members twice", with([good.members.clone(), good.members.clone()].concat())),
        ("the last version there is", RingDocument { version: u64::MAX, ..good.clone() }.encode()),
        ("a version that was not counted", RingDocument { version: 1 << 52, ..good.clone() }.encode()),
    ];
    for (what, bad) in bad {
        put(&etcd, &keys().ring(), bad).await;
        let mended = eventually(what, async || {
            stored_ring(&etcd).await.filter(|ring| ring.version < 1_000 && ring.members.len() == 3)
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
        since: good.version + 1,
        ..good.members[0].clone()
    };
    let mut members: Vec<_> = (1..900).map(bogus).collect();
    members.extend(good.members.clone());
    let version = good.version + 1;
    put(&etcd, &keys().ring(), RingDocument { version, members, points: 160, ..good.clone() }.encode()).await;
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(client.nodes().len(), 2);
    put(&etcd, &keys().ring(), RingDocument { version: version + 1, ..good }.encode()).await;
    eventually("the ring after it", async || (client.ring().version() == version + 1).then_some(())).await;
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

/// Whatever a group's record says, the next `clear` clears: on running nodes, and on one that comes back warm.
#[tokio::test(flavor = "multi_thread")]
async fn clear_clears_whatever_the_record_of_the_group_says() {
    let origin = Origin::start(Duration::ZERO).await;
    let etcd = Etcd::start().await;
    let folder = tempfile::tempdir().unwrap();
    let config = format!(
        "listen = \"127.0.0.1:{}\"\ndata_dir = \"{}\"\n[etcd]\nendpoints = [\"{}\"]\n{}",
        peanut_tests::free_port(),
        folder.path().display(),
        etcd.endpoint(),
        two_groups(&origin)
    );
    let mut server = ServerProcess::start_with(SERVER, &config).await;
    server.registered().await;
    let client = client(&etcd, 1).await;
    let record = |generation: u64| membership::Group { format: FORMAT, generation }.encode();
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
    client.group("other").set("k", "kept", None).await.unwrap();
    for (round, bad) in bad.into_iter().enumerate() {
        let shown = String::from_utf8_lossy(&bad).into_owned();
        put(&etcd, &key, bad).await;
        // What an honest number does meanwhile is to clear; afterwards what is set stays.
        eventually("a value to stay", async || {
            client.group("g").set("k", "old", None).await.unwrap();
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
        assert!(generation.generation < u64::MAX / 2, "{shown}");
    }
    // And where the registry has lost the record altogether.
    client.group("g").set("k", "old", None).await.unwrap();
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
async fn a_malformed_invalidation_costs_the_group_that_its_key_names() {
    let origin = Origin::start(Duration::ZERO).await;
    let (etcd, servers) = fleet(1, &two_groups(&origin)).await;
    let client = client(&etcd, 1).await;
    let id = servers[0].addr();
    let none = async || {
        let left = KeyRange::prefix(&keys().undelivered(id));
        eventually("it to be done", async || {
            (etcd.registry().count(&left).await.unwrap() == 0).then_some(())
        })
        .await;
    };
    let set = async || {
        for group in ["g", "other"] {
            client.group(group).set("k", "set", None).await.unwrap();
            client.group(group).set("k2", "set", None).await.unwrap();
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
        put(&etcd, &format!("{}x-1", keys().undelivered_of(id, "g")), bad).await;
        none().await;
        assert_eq!(text(&client, "g", "k").await, "value of k");
        assert_eq!(text(&client, "other", "k").await, "set");
    }
    // The key says of which group it is, whatever the record says: so rights on keys are rights on groups.
    set().await;
    let liar =
        br#"{"format":1,"group":"other","keys":["aw=="],"ring_version":18446744073709551615,"at_ms":0}"#;
    put(&etcd, &format!("{}x-2", keys().undelivered_of(id, "g")), liar.to_vec()).await;
    none().await;
    assert_eq!(text(&client, "g", "k").await, "value of k");
    assert_eq!([text(&client, "g", "k2").await, text(&client, "other", "k").await], ["set", "set"]);
    // Of a group that the node has not, and keys that nobody knows.
    let unknown = ["undelivered/", "undelivered/x", "live", "ring/", "groups", "policy/1", "ringz"];
    put(&etcd, &format!("{}x-3", keys().undelivered_of(id, "gone")), "garbage").await;
    put_many(&etcd, unknown.map(|key| (format!("{}{key}", keys().prefix()), b"?".to_vec()))).await;
    put(&etcd, &format!("{}no-group", keys().undelivered(id)), "garbage").await;
    // Nor are all keys text.
    let mut raw = etcd_client::Client::connect([etcd.endpoint()], None).await.unwrap();
    for key in
        [keys().undelivered_of(id, "other"), keys().live(""), keys().group(""), keys().all_undelivered()]
    {
        raw.put([key.as_bytes(), b"\xff\xfe"].concat(), "?", None).await.unwrap();
    }
    put(&etcd, &format!("{}x-4", keys().undelivered_of(id, "g")), hint(None)).await;
    eventually("the last to be done", async || {
        (etcd.registry().count(&KeyRange::prefix(&keys().undelivered_of(id, "g"))).await.unwrap() == 0)
            .then_some(())
    })
    .await;
    assert_eq!(text(&client, "g", "k2").await, "value of k2");
    assert_eq!(text(&client, "other", "k").await, "set");
    let fresh = client_of(&etcd).deadline(LONG).build().await.unwrap();
    assert_eq!(text(&fresh, "other", "k2").await, "set");
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
async fn writers_do_not_overwrite_each_others_invalidations_and_leave_few() {
    let origin = Origin::start(Duration::ZERO).await;
    let (etcd, mut servers) = fleet(2, &two_groups(&origin)).await;
    let id = servers[0].addr().to_owned();
    let mut writers = Vec::new();
    for _ in 0..3 {
        writers.push(client(&etcd, 2).await);
    }
    let ring = writers[0].ring();
    let is_mine = |key: &String| ring.members()[ring.place("g", key.as_bytes()).unwrap().owner].id == id;
    let long: Vec<String> = (0..).map(|n| format!("{n:04}").repeat(250)).filter(is_mine).take(40).collect();
    let short: Vec<String> = (0..).map(|n| format!("k{n}")).filter(is_mine).take(100).collect();
    servers[0].process().signal(nix::sys::signal::Signal::SIGSTOP);
    for writer in &writers {
        let deleted = writer.group("g").delete_many(&long).await;
        assert!(deleted.iter().all(Result::is_ok), "{:?}", deleted.iter().find(|deleted| deleted.is_err()));
    }
    let left = etcd.registry().load(&keys().undelivered(&id)).await.unwrap().entries;
    assert!(left.iter().all(|entry| entry.key.starts_with(&keys().undelivered_of(&id, "g"))));
    let whole: Vec<_> =
        left.iter().filter(|entry| Undelivered::decode(&entry.value).unwrap().keys.is_none()).collect();
    assert!(whole.len() >= 3, "each writer has one of its own: {whole:?}");
    let bytes: usize = left.iter().map(|entry| entry.value.len()).sum();
    assert!(bytes < 3 * (40 << 10), "{bytes} bytes of 120 KB of keys");

    // Where many wait already, the next is for the whole group, whoever leaves it.
    put_many(
        &etcd,
        (0..1_100)
            .map(|n| (format!("{}zz-{n}", keys().undelivered_of(&id, "g")), hint(Some(vec![b"x".to_vec()])))),
    )
    .await;
    let before = left.len() + 1_100;
    let late = client(&etcd, 2).await;
    assert!(late.group("g").delete_many(&short).await.iter().all(Result::is_ok));
    let after = etcd.registry().count(&KeyRange::prefix(&keys().undelivered(&id))).await.unwrap();
    assert!(after as usize <= before + 16, "{after} after {before}");
    servers[0].process().signal(nix::sys::signal::Signal::SIGCONT);
    eventually("all to be done", async || {
        (etcd.registry().count(&KeyRange::prefix(&keys().undelivered(&id))).await.unwrap() == 0).then_some(())
    })
    .await;
    for key in short.iter().chain(&long) {
        assert_eq!(text(&late, "g", key).await, format!("value of {key}"));
    }
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
        let mut peanut = std::process::Command::new(env!("CARGO_BIN_EXE_peanut-under-test"));
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
    let client = client(&etcd, 1).await;
    for name in names {
        let group = client.group(name);
        group.set("k", "old", None).await.unwrap();
        group.clear().await.unwrap();
        assert_eq!(text(&client, name, "k").await, "value of k", "{name}");
        group.set("k", "old", None).await.unwrap();
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
        let left = KeyRange::prefix(&keys().all_undelivered());
        (etcd.registry().count(&left).await.unwrap() == 0).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_joins_a_ring_whose_document_has_grown_long_and_one_that_is_full_says_what_to_do() {
    let etcd = Etcd::start().await;
    let member = |n: usize| Member {
        id: format!("a-pod-with-a-rather-long-name-{n:05}"),
        addr: format!("192.0.2.1:{n}"),
        zone: String::new(),
        weight: 1,
        since: 1,
        since_ms: 0,
    };
    let members: Vec<_> = (1..1_024).map(member).collect();
    let now = std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap().as_millis() as u64;
    let earlier = (1..12).rev().map(|version| membership::Earlier {
        version,
        replaced_ms: now,
        members: members.clone(),
    });
    let ring = RingDocument {
        version: 12,
        members: members.clone(),
        earlier: earlier.collect(),
        ..RingDocument::empty(64)
    };
    assert!((1 << 20..1_500_000).contains(&ring.encode().len()), "{}", ring.encode().len());
    put(&etcd, &keys().ring(), ring.encode()).await;
    let mut first = ServerProcess::start(SERVER, &etcd.endpoint(), SCORES).await;
    first.registered().await;
    let stored = stored_ring(&etcd).await.unwrap();
    assert_eq!((stored.version, stored.members.len()), (13, 1_024));
    assert!(!stored.earlier.is_empty() && stored.encode().len() <= membership::MAX_DOCUMENT_BYTES);

    let mut second = ServerProcess::start(SERVER, &etcd.endpoint(), SCORES).await;
    let said = second.process().wait_for_line("cannot join").await;
    assert!(said.contains("1025 members are more than 1024") && said.contains("peanut remove"), "{said}");
    // It joins once there is room.
    let ring = stored.without(&members[0].id, now).unwrap();
    put(&etcd, &keys().ring(), RingDocument { earlier: Vec::new(), ..ring }.encode()).await;
    second.registered().await;
}
