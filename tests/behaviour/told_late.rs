//! Writers that hear late who answers for a key: nodes that came to answer for it meanwhile are told too.
//!
//! Nodes and clients here have registries of their own, which the tests fill by hand, as late as each is to
//! hear of something.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use peanut_client::registry::{LocalRegistry, Registry as _};
use peanut_client::ring::Ring;
use peanut_client::{Client, Failover};
use peanut_proto::membership::{Keys, NodeInfo, RingDocument};
use peanut_server::{Group, Loaded, LoaderError, Server, loader_fn};
use peanut_tests::eventually;
use tokio::net::TcpListener;
use tokio_util::task::AbortOnDropHandle;

/// Whose values are the node's id and how many its loader has made.
fn group(id: &'static str) -> Group {
    let loads = Arc::new(AtomicU64::new(0));
    let loader = loader_fn(move |_: Bytes| {
        let load = loads.fetch_add(1, Ordering::Relaxed);
        async move { Ok::<_, LoaderError>(Loaded::found(format!("{id} {load}"))) }
    });
    Group::new("g", loader)
}

/// Starts a node; without a group where `group` is none.
async fn start(
    id: &str,
    group: Option<Group>,
    registry: &LocalRegistry,
    listener: TcpListener,
) -> AbortOnDropHandle<()> {
    let builder = Server::builder().registry(registry.clone()).node_id(id);
    let builder = match group {
        Some(group) => builder.group(group),
        None => builder.group(Group::without_loader("another")),
    };
    let server = builder.build().unwrap();
    let run = async move { server.run(listener, std::future::pending()).await.unwrap() };
    AbortOnDropHandle::new(tokio::spawn(run))
}

async fn listener() -> TcpListener {
    TcpListener::bind("127.0.0.1:0").await.unwrap()
}

/// The ring in a registry, once it has so many members, all of which hold leases.
async fn ring_of(registry: &LocalRegistry, members: usize) -> RingDocument {
    eventually("all nodes to register", async || {
        let ring = registry.get(&Keys::new("default").ring()).await.unwrap()?;
        let ring = RingDocument::decode(&ring.value).ok().filter(|ring| ring.members.len() == members)?;
        for member in &ring.members {
            registry.get(&Keys::new("default").live(&member.id)).await.unwrap()?;
        }
        Some(ring)
    })
    .await
}

/// Copies the liveness of nodes from one registry to another.
async fn copy_live(from: &LocalRegistry, to: &LocalRegistry, ids: &[&str]) {
    for id in ids {
        let key = Keys::new("default").live(id);
        let entry = from.get(&key).await.unwrap().unwrap();
        to.put(&key, entry.value, None).await.unwrap();
    }
}

async fn put_ring(to: &LocalRegistry, ring: &RingDocument) {
    to.put(&Keys::new("default").ring(), ring.encode(), None).await.unwrap();
}

/// A registry that knows this ring and the leases of these nodes.
async fn knows(from: &LocalRegistry, ring: &RingDocument, ids: &[&str]) -> LocalRegistry {
    let to = LocalRegistry::new();
    copy_live(from, &to, ids).await;
    put_ring(&to, ring).await;
    to
}

async fn client(registry: &LocalRegistry, failover: Failover) -> Client {
    let client = Client::builder().registry(registry.clone()).failover(failover);
    client.deadline(Duration::from_secs(10)).build().await.unwrap()
}

async fn get(client: &Client, key: &str) -> String {
    String::from_utf8(client.group("g").get(key).await.unwrap().unwrap().to_vec()).unwrap()
}

/// Ids of a key's owner and successor.
fn place<'r>(ring: &'r RingDocument, key: &str) -> (&'r str, &'r str) {
    let place = Ring::new(ring).place("g", key.as_bytes()).unwrap();
    let id = |at: usize| ring.members[at].id.as_str();
    (id(place.owner), id(place.successor.unwrap()))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_write_is_done_at_the_successor_that_a_later_ring_has_given_the_key() {
    let registry = LocalRegistry::new();
    let mut nodes = Vec::new();
    for id in ["a", "b"] {
        nodes.push(start(id, Some(group(id)), &registry, listener().await).await);
    }
    let before = ring_of(&registry, 2).await;
    let of_writer = knows(&registry, &before, &["a", "b"]).await;
    let writer = client(&of_writer, Failover::Strict).await;
    nodes.push(start("c", Some(group("c")), &registry, listener().await).await);
    let after = ring_of(&registry, 3).await;
    let moves = |key: &String| place(&before, key).0 == place(&after, key).0 && place(&after, key).1 == "c";
    let keys: Vec<_> = (0..).map(|n| format!("key {n}")).filter(moves).take(3).collect();
    for (n, key) in keys.iter().enumerate() {
        // To the reader the owner is not to be asked.
        let owner = place(&after, key).0;
        let others: Vec<_> = ["a", "b", "c"].into_iter().filter(|id| *id != owner).collect();
        let of_reader = knows(&registry, &after, &others).await;
        let reader = client(&of_reader, Failover::Strict).await;
        let stale = get(&reader, key).await;
        assert!(stale.starts_with("c "), "{stale}");
        let (group, writes) = (writer.group("g"), key.clone());
        let write = tokio::spawn(async move {
            match n {
                0 => group.delete(writes).await,
                1 => group.set(writes, "new").await,
                _ => group.delete_many([writes]).await.remove(0),
            }
        });
        if n == 0 {
            // The owner names the ring, and the writer waits until it hears of that.
            tokio::time::sleep(Duration::from_millis(100)).await;
            assert!(!write.is_finished());
            put_ring(&of_writer, &after).await;
            copy_live(&registry, &of_writer, &["c"]).await;
        }
        write.await.unwrap().unwrap();
        assert_ne!(get(&reader, key).await, stale, "write {n}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_sees_its_own_write_where_it_asked_the_successor_of_an_owner_that_is_not_down() {
    let registry = LocalRegistry::new();
    let (of_owner, listening) = (LocalRegistry::new(), listener().await);
    let mut nodes = Vec::new();
    for id in ["a", "b"] {
        nodes.push(start(id, Some(group(id)), &registry, listener().await).await);
    }
    let addr = listening.local_addr().unwrap().to_string();
    let info = NodeInfo { id: "c".into(), addr, zone: String::new(), weight: 1 };
    let before = ring_of(&registry, 2).await.with(&info, 0).unwrap();
    copy_live(&registry, &of_owner, &["a", "b"]).await;
    put_ring(&of_owner, &before).await;
    put_ring(&registry, &before).await;
    nodes.push(start("c", Some(group("c")), &of_owner, listening).await);
    ring_of(&of_owner, 3).await;
    copy_live(&of_owner, &registry, &["c"]).await;
    // One node is taken out of the ring, of which the node that owns its keys then does not hear.
    let key = (0..).map(|n| format!("key {n}")).find(|key| place(&before, key) == ("a", "c")).unwrap();
    let after = before.drained("a", 0).unwrap();
    assert_eq!(place(&after, &key), ("c", "b"));
    put_ring(&registry, &after).await;
    let client = client(&registry, Failover::Bounded).await;
    // Sets are refused by a node that does not know the ring.
    for n in 0..3 {
        let stale = get(&client, &key).await;
        assert!(stale.starts_with("b "), "the owner says that it does not know the ring: {stale}");
        assert_eq!(get(&client, &key).await, stale, "it is kept");
        let group = client.group("g");
        match n {
            0 => group.delete(&*key).await.unwrap(),
            1 => group.delete_many([&*key]).await.remove(0).unwrap(),
            _ => group.begin_write(&*key).await.unwrap().delete().await.unwrap(),
        }
        assert_ne!(get(&client, &key).await, stale, "write {n}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_owner_is_not_filled_from_a_previous_one_without_a_lease() {
    let registry = LocalRegistry::new();
    let mut nodes = Vec::new();
    for id in ["a", "b", "c"] {
        nodes.push(start(id, Some(group(id)), &registry, listener().await).await);
    }
    let before = ring_of(&registry, 3).await;
    let of_reader = knows(&registry, &before, &["a", "b", "c"]).await;
    let reader = client(&of_reader, Failover::Bounded).await;
    let keys: Vec<_> =
        (0..).map(|n| format!("key {n}")).filter(|key| place(&before, key).0 == "a").take(2).collect();
    let previous = [get(&reader, &keys[0]).await, get(&reader, &keys[1]).await];
    // The owner is taken out of the ring, and runs on.
    let after = before.drained("a", 0).unwrap();
    put_ring(&registry, &after).await;
    put_ring(&of_reader, &after).await;
    reader.wait_for_ring(after.version.0).await.unwrap();
    assert_eq!(get(&reader, &keys[0]).await, previous[0], "it is handed over");
    of_reader.delete(&Keys::new("default").live("a")).await.unwrap();
    // What one registry tells comes in order.
    let next = RingDocument { version: after.version.plus(1), ..after.clone() };
    put_ring(&registry, &next).await;
    put_ring(&of_reader, &next).await;
    reader.wait_for_ring(after.version.0 + 1).await.unwrap();
    let loaded = get(&reader, &keys[1]).await;
    assert!(loaded.starts_with("b ") || loaded.starts_with("c "), "{loaded}: a writer may not have told it");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_was_started_with_the_group_meanwhile_is_told_in_the_place_of_one_without() {
    let registry = LocalRegistry::new();
    let mut nodes = vec![
        start("owner", None, &registry, listener().await).await,
        start("old", Some(group("old")), &registry, listener().await).await,
        start("new", None, &registry, listener().await).await,
    ];
    let ring = ring_of(&registry, 3).await;
    let of_writer = knows(&registry, &ring, &["owner", "old", "new"]).await;
    let writer = client(&of_writer, Failover::Strict).await;
    // It starts again, of which the writer does not hear.
    drop(nodes.pop());
    let addr = ring.member("new").unwrap().addr.clone();
    let listening = eventually("the port to be free", async || TcpListener::bind(&addr).await.ok()).await;
    registry.delete(&Keys::new("default").live("new")).await.unwrap();
    nodes.push(start("new", Some(group("new")), &registry, listening).await);
    let ring = ring_of(&registry, 3).await;
    let reader = client(&registry, Failover::Strict).await;
    // Strict writers tell the successor in any case.
    let mut keys = (0..).map(|n| format!("key {n}")).filter(|key| place(&ring, key) == ("owner", "old"));
    let mut asked_of_new = Vec::new();
    while asked_of_new.len() < 2 {
        let key = keys.next().unwrap();
        let value = get(&reader, &key).await;
        if value.starts_with("new ") {
            asked_of_new.push((key, value));
        }
    }
    for (key, stale) in asked_of_new {
        assert_eq!(get(&reader, &key).await, stale, "it is kept");
        writer.group("g").delete(&*key).await.unwrap();
        assert_ne!(get(&reader, &key).await, stale);
    }
}
