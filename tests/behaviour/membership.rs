//! Nodes join, and every client agrees on what that means.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use peanut_client::registry::{LocalRegistry, Registry as _};
use peanut_client::{Client, ErrorKind};
use peanut_proto::membership::{Keys, RingDocument};
use peanut_proto::numbers::RingVersion;
use peanut_server::{Group, Loaded, Server, loader_fn};
use peanut_tests::{Origin, ServerProcess, eventually, group_from, now};
use tokio::net::TcpListener;
use tokio_util::task::AbortOnDropHandle;

use crate::{SCORES, SERVER, client, client_of, fleet};

fn owners(client: &Client) -> Vec<String> {
    let ring = client.ring();
    (0..100_000_u32)
        .map(|n| {
            let place = ring.place("scores", format!("key-{n}").as_bytes()).unwrap();
            ring.members()[place.owner].id.clone()
        })
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_running_client_sees_a_joining_node_within_a_second_without_a_failed_call() {
    let origin = Origin::start(Duration::ZERO).await;
    let groups = group_from("scores", origin.url(), "");
    let (etcd, mut servers) = fleet(3, &groups).await;
    let client = client(&etcd, 3).await;
    let before = owners(&client);

    let stop = Arc::new(AtomicBool::new(false));
    let readers: Vec<_> = (0..8)
        .map(|_| {
            let (group, stop) = (client.group("scores"), stop.clone());
            tokio::spawn(async move {
                let (mut reads, mut errors) = (0, Vec::new());
                while !stop.load(Ordering::Relaxed) {
                    let key = format!("key-{}", fastrand::u32(..500));
                    match group.get(&key).await {
                        Ok(value) => assert_eq!(value.unwrap(), format!("value of {key}")),
                        Err(error) => errors.push(error),
                    }
                    reads += 1;
                }
                (reads, errors)
            })
        })
        .collect();

    let mut joining = ServerProcess::start(SERVER, &etcd.endpoint(), &groups).await;
    joining.registered().await;
    let registered = now();
    eventually("the client to see the node", async || (client.nodes().len() == 4).then_some(())).await;
    assert!(registered.elapsed() < Duration::from_secs(1), "seen after {:?}", registered.elapsed());
    tokio::time::sleep(Duration::from_millis(500)).await;
    stop.store(true, Ordering::Relaxed);
    for reader in readers {
        let (reads, errors) = reader.await.unwrap();
        assert!(reads > 0 && errors.is_empty(), "{reads} reads, {errors:?}");
    }

    let after = owners(&client);
    let moved: Vec<_> = before.iter().zip(&after).filter(|(was, is)| was != is).collect();
    assert!(moved.iter().all(|(_, is)| *is == joining.addr()), "keys move to the newcomer only");
    let share = moved.len() as f64 / after.len() as f64;
    assert!(share <= 0.25 + 0.03, "{share} of the keys have moved");
    servers.push(joining);
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_with_the_same_ring_version_agree_on_every_key() {
    let (etcd, _servers) = fleet(4, SCORES).await;
    let (one, other) = (client(&etcd, 4).await, client(&etcd, 4).await);
    assert_eq!(one.ring().version(), other.ring().version());
    assert_eq!(owners(&one), owners(&other));
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_that_start_together_all_join() {
    let (etcd, servers) = fleet(6, SCORES).await;
    let client = client(&etcd, 6).await;
    assert_eq!(client.ring().version(), RingVersion(6), "each join is one version");
    let mut addrs: Vec<_> = servers.iter().map(ServerProcess::addr).collect();
    addrs.sort_unstable();
    assert_eq!(client.nodes().iter().map(|node| node.addr.as_str()).collect::<Vec<_>>(), addrs);
    assert!(client.nodes().iter().all(|node| node.alive && node.up));
}

#[tokio::test(flavor = "multi_thread")]
async fn fleets_do_not_see_each_other() {
    let (etcd, _servers) = fleet(1, SCORES).await;
    let builder = client_of(&etcd).fleet("another").ready_timeout(Duration::from_millis(500));
    let error = builder.build().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert!(error.to_string().contains("fleet `another` has no nodes"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fixed_list_needs_no_etcd() {
    let ports = [peanut_tests::free_port(), peanut_tests::free_port()];
    let addrs = ports.map(|port| format!("127.0.0.1:{port}"));
    let nodes = format!("nodes = [\"{}\", \"{}\"]", addrs[0], addrs[1]);
    let mut servers = Vec::new();
    for addr in &addrs {
        let config = format!("listen = \"{addr}\"\n{nodes}\n{SCORES}");
        servers.push(ServerProcess::start_with(SERVER, &config).await);
    }
    let client = Client::builder().nodes(addrs).build().await.unwrap();
    for (key, score) in [("Tom", "630"), ("Jack", "589"), ("Sam", "567")] {
        assert_eq!(client.group("scores").get(key).await.unwrap().unwrap(), score);
    }
}

/// A node outside any registry, which answers for itself alone.
async fn lone_node() -> (String, AbortOnDropHandle<()>) {
    let loader = loader_fn(|_| async { Ok(Loaded::found("value")) });
    let server = Server::builder().group(Group::new("g", loader)).build().unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap().to_string();
    let serving = tokio::spawn(async move { server.run(listener, std::future::pending()).await.unwrap() });
    (addr, AbortOnDropHandle::new(serving))
}

async fn put_ring(registry: &LocalRegistry, ring: &RingDocument) {
    registry.put(&Keys::new("default").ring(), ring.encode(), None).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_ring_without_most_of_its_nodes_is_doubted_while_they_answer() {
    let (mut addrs, mut nodes) = (Vec::new(), Vec::new());
    for _ in 0..3 {
        let (addr, node) = lone_node().await;
        addrs.push(addr);
        nodes.push(node);
    }
    let registry = LocalRegistry::new();
    let whole = RingDocument::fixed(&addrs);
    put_ring(&registry, &whole).await;
    let builder = Client::builder().registry(registry.clone()).deadline(Duration::from_secs(4));
    let client = builder.build().await.unwrap();
    let in_order = whole.without(&addrs[0], 0).unwrap().without(&addrs[1], 0).unwrap();
    let most_gone = RingDocument { departed: Vec::new(), ..in_order.clone() };
    put_ring(&registry, &most_gone).await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(client.nodes().len(), 3, "they answer, so the ring is in doubt");

    // One node less is believed at once.
    let one_gone = RingDocument { version: RingVersion(9), ..whole.without(&addrs[0], 0).unwrap() };
    put_ring(&registry, &one_gone).await;
    client.wait_for_ring(9).await.unwrap();
    assert_eq!(client.nodes().len(), 2);

    // And so are most of them that have left one after the other, which this client has not heard of.
    put_ring(&registry, &RingDocument { version: RingVersion(10), ..whole.clone() }).await;
    client.wait_for_ring(10).await.unwrap();
    let mut in_order = RingDocument { version: RingVersion(12), ..in_order };
    in_order.departed.iter_mut().zip([11, 12]).for_each(|(gone, left)| gone.left = RingVersion(left));
    put_ring(&registry, &in_order).await;
    client.wait_for_ring(12).await.unwrap();
    assert_eq!(client.nodes().len(), 1);

    // And so are most of them once they answer no more.
    put_ring(&registry, &RingDocument { version: RingVersion(13), ..whole }).await;
    client.wait_for_ring(13).await.unwrap();
    nodes.truncate(1);
    let server_gone =
        |addr: String| async move { tokio::net::TcpStream::connect(addr).await.is_err().then_some(()) };
    eventually("the sockets to close", async || server_gone(addrs[2].clone()).await).await;
    put_ring(&registry, &RingDocument { version: RingVersion(14), ..most_gone }).await;
    eventually("the ring to be believed", async || {
        (client.ring().version() == RingVersion(14)).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_with_an_address_that_is_none_keeps_nobody_from_the_others() {
    let (addr, _node) = lone_node().await;
    let registry = LocalRegistry::new();
    put_ring(&registry, &RingDocument::fixed([addr.as_str(), "not an address"])).await;
    let client = Client::builder().registry(registry).build().await.unwrap();
    let group = client.group("g");
    for n in 0..50_u32 {
        assert_eq!(group.get(n.to_string()).await.unwrap().unwrap(), "value");
    }
    assert!(client.stats().failovers > 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_that_has_lost_its_data_is_no_evidence_that_a_node_has_no_lease_or_has_read_its_hint() {
    // A node that this client cannot reach, and others may.
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap().to_string();
    let silent = tokio::spawn(async move {
        let mut accepted = Vec::new();
        loop {
            accepted.push(listener.accept().await);
        }
    });
    let (registry, keys) = (LocalRegistry::new(), Keys::new("default"));
    put_ring(&registry, &RingDocument::fixed(std::slice::from_ref(&addr))).await;
    let connect = || {
        let builder = Client::builder().registry(registry.clone());
        builder.connect_timeout(Duration::from_millis(200)).deadline(Duration::from_secs(3)).build()
    };
    let client = connect().await.unwrap();
    let refused = client.group("g").delete("k").await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Unavailable, "neither lease nor mark: {refused}");
    // The hint is lost with all else.
    let client = connect().await.unwrap();
    let deleting = tokio::spawn(async move { client.group("g").delete("k").await });
    let hints = keys.hints_for(&addr);
    let before = registry.load(&hints).await.unwrap().entries.len();
    eventually("another hint", async || {
        let entries = registry.load(&hints).await.unwrap().entries;
        if entries.len() <= before {
            return None;
        }
        for entry in entries {
            registry.delete(&entry.key).await.unwrap();
        }
        Some(())
    })
    .await;
    assert!(deleting.await.unwrap().is_err(), "a hint that is lost was not read");
    // A mark says that the registry has all.
    registry.put(&keys.lineage(&addr), b"1".to_vec(), None).await.unwrap();
    connect().await.unwrap().group("g").delete("k").await.unwrap();
    registry.delete(&keys.lineage(&addr)).await.unwrap();
    // A node that is gone for good never makes one. It would have noticed by now.
    let patient = connect().await.unwrap();
    let group = patient.group("g").with_deadline(Duration::from_secs(60));
    group.delete("k").await.unwrap();
    silent.abort();
}
