//! A node tells a caller of a later ring before anything that may no longer hold under it: every answer and
//! every renewal of near copies comes behind the version that the node knew when it gave it.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use peanut_client::Client;
use peanut_client::registry::{LocalRegistry, Registry as _};
use peanut_client::ring::Ring;
use peanut_proto::frame::{GetManyOperation, RequestWriter, ResponseField, Write, WriteOperation};
use peanut_proto::membership::{Keys, RingDocument};
use peanut_proto::numbers::{Generation, RingVersion};
use peanut_proto::v1::peanut_client::PeanutClient;
use peanut_proto::v1::{DeleteRequest, GetRequest, Near, OnMiss, Outcome};
use peanut_server::{Group, Loaded, LoaderError, Server, loader_fn};
use peanut_tests::eventually;
use peanut_tests::raw_lane::{RawLane, channel, get};
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, mpsc};
use tokio_util::task::AbortOnDropHandle;
use tonic::transport::Channel;

/// A node whose ring is raised by hand, and a lane to it.
struct Told {
    registry: LocalRegistry,
    channel: Channel,
    lane: RawLane,
    version: RingVersion,
    /// Lets one load of a key `slow…` end.
    slow: Arc<Semaphore>,
    /// Loads of such keys that have begun.
    begun: Arc<AtomicUsize>,
    _node: AbortOnDropHandle<()>,
}

impl Told {
    async fn start() -> Self {
        let (slow, begun) = (Arc::new(Semaphore::new(0)), Arc::new(AtomicUsize::new(0)));
        let loader = loader_fn({
            let (slow, begun) = (slow.clone(), begun.clone());
            move |key: Bytes| {
                let (slow, begun) = (slow.clone(), begun.clone());
                async move {
                    if key.starts_with(b"slow") {
                        begun.fetch_add(1, Ordering::Relaxed);
                        slow.acquire().await?.forget();
                    }
                    Ok::<_, LoaderError>(Loaded::found("value"))
                }
            }
        });
        let registry = LocalRegistry::new();
        let group = Group::new("g", loader);
        let server = Server::builder().group(group).registry(registry.clone()).build().unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap().to_string();
        let node = tokio::spawn(async move { server.run(listener, std::future::pending()).await.unwrap() });
        let channel = channel(&addr).await;
        let ring = eventually("the node to register", async || {
            let ring = registry.get(&Keys::new("default").ring()).await.unwrap()?;
            RingDocument::decode(&ring.value).ok().filter(|ring| !ring.members.is_empty())
        });
        let version = ring.await.version;
        let lane = RawLane::open(&channel).await;
        let mut frame = RequestWriter::default();
        frame.open(7, 0);
        frame.group(0, "g", Near::All);
        lane.send(frame.take());
        let node = AbortOnDropHandle::new(node);
        let mut told = Told { registry, channel, lane, version, slow, begun, _node: node };
        // From here on the lane knows the ring that there is.
        let mut first = RequestWriter::default();
        first.ring_version(version);
        first.get(&get(0, b"first", OnMiss::Load));
        told.lane.send(first.take());
        told.answers_until(1).await;
        told
    }

    /// Writes a later ring of the same members and waits until the node knows it.
    async fn raise(&mut self) {
        let key = Keys::new("default").ring();
        let stored = self.registry.get(&key).await.unwrap().unwrap();
        let ring = RingDocument::decode(&stored.value).unwrap();
        self.version = ring.version.plus(1);
        let ring = RingDocument { version: self.version, ..ring };
        self.registry.put(&key, ring.encode(), None).await.unwrap();
        let mut peanut = PeanutClient::new(self.channel.clone());
        eventually("the node to know the ring", async || {
            let peek = GetRequest {
                group: "g".into(),
                key: b"first".to_vec().into(),
                on_miss: OnMiss::Peek.into(),
                ..GetRequest::default()
            };
            let answer = peanut.get(peek).await.unwrap().into_inner();
            (answer.ring_version >= self.version.0).then_some(())
        })
        .await;
    }

    /// Reads until so many answers and renewals have come: the ring version that the lane had heard before
    /// each.
    async fn answers_until(&mut self, most: usize) -> Vec<RingVersion> {
        let (mut heard, mut answers) = (RingVersion::NONE, Vec::new());
        while answers.len() < most {
            for field in self.lane.next().await.fields() {
                match field.unwrap() {
                    ResponseField::RingVersion(version) => heard = version,
                    ResponseField::Answer(..) | ResponseField::NearRenewed { .. } => answers.push(heard),
                    ResponseField::Failure { message, .. } => panic!("{message}"),
                    _ => {}
                }
            }
        }
        answers
    }

    /// Raises the ring, sends what is written there, and sees that all answers come behind the new version.
    async fn tells_before(&mut self, what: &str, answers: usize, write: impl FnOnce(&mut RequestWriter)) {
        self.raise().await;
        let mut frame = RequestWriter::default();
        write(&mut frame);
        self.lane.send(frame.take());
        self.came_behind(what, answers).await;
    }

    async fn came_behind(&mut self, what: &str, answers: usize) {
        let heard = self.answers_until(answers).await;
        let late = heard.iter().filter(|heard| **heard < self.version).count();
        assert_eq!(late, 0, "of {answers} answers to {what} so many came before ring {}", self.version);
    }
}

fn write(id: u32, write: Write<'_>) -> WriteOperation<'_> {
    WriteOperation { id, group: 0, deadline_ms: 0, failover: false, write }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_answer_comes_behind_the_ring_that_the_node_knew_when_it_gave_it() {
    let mut told = Told::start().await;
    told.tells_before("a get", 1, |frame| frame.get(&get(0, b"first", OnMiss::Load))).await;
    told.tells_before("a get that says it", 1, |frame| {
        frame.ring_version(RingVersion(1));
        frame.get(&get(0, b"first", OnMiss::Load));
    })
    .await;
    told.tells_before("1,000 gets", 1_000, |frame| {
        (0..1_000).for_each(|id| frame.get(&get(id, b"first", OnMiss::Load)));
    })
    .await;
    told.tells_before("a get of many", 300, |frame| {
        let many = GetManyOperation {
            id: 1,
            group: 0,
            deadline_ms: 0,
            owned_since: RingVersion::NONE,
            on_miss: OnMiss::Load,
            traceparent: "",
        };
        frame.get_many(&many, std::iter::repeat_n(&b"first"[..], 300));
    })
    .await;
    told.tells_before("a miss", 1, |frame| frame.get(&get(0, b"another", OnMiss::Load))).await;
    told.tells_before("a delete", 1, |frame| {
        frame.write(&write(0, Write::Delete { key: b"first", then_set: false, sequence: 0 }));
    })
    .await;
    told.tells_before("many deletes", 100, |frame| {
        let delete = Write::Delete { key: b"first", then_set: false, sequence: 0 };
        frame.write_many((1, 0, 0), std::iter::repeat_n(&delete, 100));
    })
    .await;
    told.tells_before("a clear", 1, |frame| {
        frame.write(&write(0, Write::Clear { generation: Generation(1_000_000) }));
    })
    .await;
    told.tells_before("a renewal of near copies", 1, |frame| frame.near_renewal(1)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn so_does_the_answer_to_what_was_asked_before_the_node_knew_of_the_ring() {
    let mut told = Told::start().await;
    let mut frame = RequestWriter::default();
    frame.get(&get(0, b"slow", OnMiss::Load));
    told.lane.send(frame.take());
    eventually("the load to begin", async || (told.begun.load(Ordering::Relaxed) == 1).then_some(())).await;
    told.raise().await;
    told.slow.add_permits(1);
    told.came_behind("a get that waited", 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn so_does_the_answer_to_a_write_that_waited_for_near_copies() {
    let mut told = Told::start().await;
    // Another lane holds a copy, and never says that it has dropped it.
    let mut holder = RawLane::open(&told.channel).await;
    let mut frame = RequestWriter::default();
    frame.open(8, 0);
    frame.group(0, "g", Near::All);
    frame.ring_version(told.version);
    holder.send(frame.take());
    eventually("a copy to be held", async || {
        let mut frame = RequestWriter::default();
        frame.near_renewal(1);
        frame.get(&get(0, b"first", OnMiss::Load));
        holder.send(frame.take());
        loop {
            let frame = holder.next().await;
            let answer = frame.fields().find_map(|field| match field.unwrap() {
                ResponseField::Answer(answer, _) => Some(answer.near_ms > 0),
                _ => None,
            });
            if let Some(is_kept) = answer {
                return is_kept.then_some(());
            }
        }
    })
    .await;
    let mut frame = RequestWriter::default();
    frame.write(&write(0, Write::Delete { key: b"first", then_set: false, sequence: 0 }));
    told.lane.send(frame.take());
    let mut peanut = PeanutClient::new(told.channel.clone());
    let delete = DeleteRequest {
        group: "g".into(),
        keys: vec![b"first".to_vec().into()],
        ring_version: told.version.0,
        ..DeleteRequest::default()
    };
    let unary = tokio::spawn(async move { peanut.delete(delete).await.unwrap().into_inner() });
    // Both wait by now, and go on waiting for longer than a ring takes to arrive.
    while !holder.next().await.fields().any(|it| matches!(it, Ok(ResponseField::Invalidation { .. }))) {}
    tokio::time::sleep(Duration::from_millis(50)).await;
    told.raise().await;
    told.came_behind("a delete that waited", 1).await;
    assert_eq!(unary.await.unwrap().ring_version, told.version.0);
}

/// What a get under a ring comes to, by a unary call or on a lane of its own.
async fn outcome(told: &Told, key: &'static [u8], ring_version: RingVersion, is_lane: bool) -> Outcome {
    if !is_lane {
        let ring_version = ring_version.0;
        let get = GetRequest { group: "g".into(), key: key.into(), ring_version, ..GetRequest::default() };
        return PeanutClient::new(told.channel.clone()).get(get).await.unwrap().into_inner().outcome();
    }
    let mut lane = RawLane::open(&told.channel).await;
    let mut frame = RequestWriter::default();
    frame.open(9, 0);
    frame.group(0, "g", Near::Off);
    frame.ring_version(ring_version);
    frame.get(&get(0, key, OnMiss::Load));
    lane.send(frame.take());
    loop {
        let frame = lane.next().await;
        let answer = frame.fields().find_map(|field| match field.unwrap() {
            ResponseField::Answer(answer, _) => Some(answer.outcome),
            _ => None,
        });
        if let Some(outcome) = answer {
            return outcome;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_was_without_a_lease_while_the_ring_changed_shows_old_callers_nothing_from_before() {
    let mut told = Told::start().await;
    let old = told.version;
    for key in [&b"unary"[..], b"lane", b"kept"] {
        assert_eq!(outcome(&told, key, old, false).await, Outcome::Loaded);
    }
    told.raise().await;
    assert_eq!(outcome(&told, b"lane", old, true).await, Outcome::Hit, "it has been told of all");
    let keys = Keys::new("default");
    let ring = told.registry.get(&keys.ring()).await.unwrap().unwrap();
    let id = RingDocument::decode(&ring.value).unwrap().members[0].id.clone();
    told.registry.delete(&keys.live(&id)).await.unwrap();
    eventually("the node to be alive again", async || {
        told.registry.get(&keys.live(&id)).await.unwrap().map(drop)
    })
    .await;
    for (key, is_lane) in [(&b"unary"[..], false), (b"lane", true)] {
        eventually("the key to be loaded again", async || {
            (outcome(&told, key, old, is_lane).await == Outcome::Loaded).then_some(())
        })
        .await;
        // Entries know when they were loaded to some tens of milliseconds.
        eventually("what is loaded now to be kept", async || {
            (outcome(&told, key, old, is_lane).await == Outcome::Hit).then_some(())
        })
        .await;
    }
    assert_eq!(outcome(&told, b"kept", told.version, true).await, Outcome::Hit, "by the present ring");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_get_whose_owner_has_left_meanwhile_asks_the_new_owner() {
    let (registry, heard_late) = (LocalRegistry::new(), LocalRegistry::new());
    let (asked, mut is_asked) = mpsc::unbounded_channel();
    let go = Arc::new(Semaphore::new(0));
    let (mut nodes, ring_key) = (Vec::new(), Keys::new("default").ring());
    for id in ["a", "b", "c"] {
        let (asked, go) = (asked.clone(), go.clone());
        let loader = loader_fn(move |_: Bytes| {
            let (asked, go) = (asked.clone(), go.clone());
            async move {
                asked.send(id)?;
                go.acquire().await?.forget();
                Ok::<_, LoaderError>(Loaded::found(id))
            }
        });
        let builder = Server::builder().group(Group::new("g", loader)).registry(registry.clone()).node_id(id);
        let (server, listener) = (builder.build().unwrap(), TcpListener::bind("127.0.0.1:0").await.unwrap());
        let run = async move { server.run(listener, std::future::pending()).await.unwrap() };
        nodes.push(AbortOnDropHandle::new(tokio::spawn(run)));
    }
    let ring = eventually("all nodes to register", async || {
        let ring = registry.get(&ring_key).await.unwrap()?;
        RingDocument::decode(&ring.value).ok().filter(|ring| ring.members.len() == 3)
    })
    .await;
    for key in ["a", "b", "c"].map(|id| Keys::new("default").live(id)).iter().chain([&ring_key]) {
        let entry = registry.get(key).await.unwrap().unwrap();
        heard_late.put(key, entry.value, None).await.unwrap();
    }
    // Without what the previous owner has.
    let client = Client::builder().registry(heard_late.clone()).hand_over(Duration::ZERO);
    let client = client.build().await.unwrap();
    let owner = |ring: &RingDocument| {
        let place = Ring::new(ring).place("g", b"key").unwrap();
        ring.members[place.owner].clone()
    };
    let group = client.group("g");
    let get = tokio::spawn(async move { group.get("key").await.unwrap().unwrap() });
    let first = owner(&ring);
    assert_eq!(is_asked.recv().await.unwrap(), first.id);

    // An operator takes the owner out, which runs on, while it loads.
    let next = ring.drained(&first.id, 0).unwrap();
    registry.put(&ring_key, next.encode(), None).await.unwrap();
    heard_late.put(&ring_key, next.encode(), None).await.unwrap();
    let mut peanut = PeanutClient::new(channel(&first.addr).await);
    eventually("the owner to know that it is one no more", async || {
        let (on_miss, group) = (OnMiss::Peek.into(), "g".into());
        let peek = GetRequest { group, key: b"another".to_vec().into(), on_miss, ..GetRequest::default() };
        (peanut.get(peek).await.unwrap().into_inner().ring_version >= next.version.0).then_some(())
    })
    .await;
    client.wait_for_ring(next.version.0).await.unwrap();
    go.add_permits(10);
    assert_eq!(get.await.unwrap(), owner(&next).id, "not the new owner's successor");
}
