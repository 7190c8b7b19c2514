//! What one caller asks for, honest or not, costs nobody else: answers longer than a message, frames that ask
//! for more than memory holds, and what lanes, leases and connections may hold.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::join_all;
use peanut_client::{Client, ErrorKind, Group};
use peanut_proto::frame::{Filled, GetOperation, RequestWriter, ResponseField, Write, WriteOperation};
use peanut_proto::numbers::FillToken;
use peanut_proto::v1::peanut_client::PeanutClient;
use peanut_proto::v1::{DeleteRequest, ErrorCode, Near, OnMiss, Outcome};
use peanut_tests::raw_lane::{RawLane, channel, get};
use peanut_tests::{PATIENCE, ServerProcess, eventually, free_port, resident_bytes};
use tonic::codegen::{Service as _, http};

use crate::{PATIENT, SERVER};

const MIB: u64 = 1 << 20;

/// A node with a group that has no loader, and a client whose gets may take their time.
async fn node(settings: &str) -> (ServerProcess, Client) {
    let port = free_port();
    let own = format!("listen = \"127.0.0.1:{port}\"\nnodes = [\"127.0.0.1:{port}\"]\n{settings}\n");
    let group = "[[group]]\nname = \"g\"\ncapacity = \"2GiB\"\n[group.loader]\nkind = \"none\"\n";
    let server = ServerProcess::start_with(SERVER, &(own + group)).await;
    let client = Client::builder().nodes([server.addr()]).lanes_per_node(1).deadline(PATIENCE);
    let client = client.build().await.unwrap();
    (server, client)
}

fn resident(server: &mut ServerProcess) -> u64 {
    resident_bytes(&server.process().id().to_string())
}

fn value(key: usize, length: usize) -> Vec<u8> {
    (0..length).map(|at| (at % 251 + key) as u8).collect()
}

async fn set_all(group: &Group, keys: usize, length: usize) {
    for some in (0..keys).collect::<Vec<_>>().chunks(64) {
        let sets = some.iter().map(async |key| group.set(key.to_string(), value(*key, length)).await);
        assert!(join_all(sets).await.iter().all(Result::is_ok));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_longer_than_a_message_come_in_several_and_hold_up_nobody() {
    let (_server, client) = node("").await;
    let group = client.group("g");
    for (keys, length) in [(600, 60 << 10), (2_000, 10 << 10), (100, 1 << 20), (7, 8 << 20)] {
        set_all(&group, keys, length).await;
        let bystander = tokio::spawn({
            let group = group.clone();
            async move {
                for n in 0..50 {
                    group.set("bystander", n.to_string()).await.unwrap();
                    assert_eq!(group.get("bystander").await.unwrap().unwrap(), n.to_string());
                }
            }
        });
        for (key, answer) in
            group.get_many((0..keys).map(|key| key.to_string())).await.into_iter().enumerate()
        {
            let found = answer.unwrap_or_else(|error| panic!("{keys} values of {length} bytes: {error}"));
            assert!(found.is_some_and(|found| *found == value(key, length)), "key {key} of {length} bytes");
        }
        bystander.await.expect("none of its calls has failed");
        group.clear().await.unwrap();
    }
}

/// Answers a bystander while something is going on.
async fn others_are_answered(server: &ServerProcess) {
    let client = Client::builder().nodes([server.addr()]).deadline(PATIENCE).build().await.unwrap();
    for n in 0..20 {
        client.group("g").set("other", n.to_string()).await.unwrap();
        assert_eq!(client.group("g").get("other").await.unwrap().unwrap(), n.to_string());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_frame_that_asks_for_gigabytes_takes_no_more_than_is_sent() {
    let (mut server, client) = node("").await;
    client.group("g").set("k", vec![7; 60 << 10]).await.unwrap();
    let before = resident(&mut server);
    let channel = channel(server.addr()).await;
    let mut lane = RawLane::open(&channel).await;
    let mut frame = RequestWriter::default();
    frame.group(0, "g", Near::Off);
    (0..30_000).for_each(|id| frame.get(&get(id, b"k", OnMiss::Load)));
    lane.send(frame.take());
    others_are_answered(&server).await;
    let meanwhile = resident(&mut server);
    assert!(meanwhile < before + 64 * MIB, "from {before} to {meanwhile} bytes while nobody reads");
    // Whoever reads has all of it, in messages that are no longer than messages are.
    let mut answered = 0;
    while answered < 3_000 {
        let frame = lane.next().await;
        assert!(frame.0.len() < 256 << 10, "a frame of {} bytes", frame.0.len());
        for field in frame.fields() {
            match field.unwrap() {
                ResponseField::Answer(answer, value) => {
                    assert_eq!((answer.outcome, value.len()), (Outcome::Hit, 60 << 10));
                    answered += 1;
                }
                ResponseField::Failure { message, .. } => panic!("{message}"),
                _ => {}
            }
        }
    }
    let after = resident(&mut server);
    assert!(after < before + 64 * MIB, "from {before} to {after} bytes");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lane_is_opened_once_and_names_as_many_groups_as_there_are() {
    let (mut server, _client) = node("").await;
    let channel = channel(server.addr()).await;
    let mut lane = RawLane::open(&channel).await;
    let mut frame = RequestWriter::default();
    (0..200_000).for_each(|epoch| frame.open(epoch, 0));
    lane.send(frame.take());
    let status = lane.refusal().await;
    assert_eq!(status.code(), tonic::Code::InvalidArgument, "{status:?}");

    let before = resident(&mut server);
    let mut lane = RawLane::open(&channel).await;
    let mut frame = RequestWriter::default();
    (0..100_000).for_each(|number| frame.group(number, &format!("nowhere-{number}"), Near::Off));
    // One that the node has is answered all the same.
    frame.group(u32::MAX, "g", Near::Off);
    frame.get(&GetOperation { group: u32::MAX, ..get(1, b"k", OnMiss::Peek) });
    let last = GetOperation { group: 99_999, ..get(2, b"k", OnMiss::Load) };
    frame.get(&last);
    lane.send(frame.take());
    let frame = lane.next().await;
    let codes: Vec<_> = frame
        .fields()
        .filter_map(|field| match field.unwrap() {
            ResponseField::Failure { code, .. } => Some(code),
            _ => None,
        })
        .collect();
    assert_eq!(codes, [ErrorCode::UnknownGroup]);
    others_are_answered(&server).await;
    assert!(resident(&mut server) < before + 16 * MIB);

    // Names that are none end the lane; more lanes than a connection has are refused.
    let mut lane = RawLane::open(&channel).await;
    let mut frame = RequestWriter::default();
    frame.group(0, &"n".repeat(100_000), Near::Off);
    lane.send(frame.take());
    lane.refusal().await;
    let mut lanes = Vec::new();
    let refused = loop {
        let mut peanut = PeanutClient::new(channel.clone());
        match peanut.lane(futures_util::stream::pending()).await {
            Ok(lane) => lanes.push(lane),
            Err(status) => break status,
        }
        assert!(lanes.len() < 100, "{} lanes on one connection", lanes.len());
    };
    assert_eq!(refused.code(), tonic::Code::ResourceExhausted, "{refused:?}");
    others_are_answered(&server).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn leases_that_are_written_away_at_once_leave_nothing_behind() {
    let (mut server, _client) = node("").await;
    let channel = channel(server.addr()).await;
    let mut lane = RawLane::open(&channel).await;
    let before = resident(&mut server);
    // Twice as many as the budget of a connection has room for.
    let key = [b'k'; 1000];
    let (mut id, mut answers, mut is_first) = (0, 0, true);
    for _ in 0..40 {
        let mut frame = RequestWriter::default();
        if std::mem::take(&mut is_first) {
            frame.group(0, "g", Near::Off);
        }
        for _ in 0..2_000 {
            frame.get(&get(id, &key, OnMiss::Lease));
            let write = Write::Delete { key: &key, then_set: false, sequence: 0 };
            frame.write(&WriteOperation { id: id + 1, group: 0, deadline_ms: 0, failover: false, write });
            id += 2;
        }
        lane.send(frame.take());
        while answers < id {
            let frame = lane.next().await;
            answers +=
                frame.fields().filter(|field| !matches!(field, Ok(ResponseField::RingVersion(_)))).count()
                    as u32;
        }
    }
    let meanwhile = resident(&mut server);
    assert!(meanwhile < before + 160 * MIB, "from {before} to {meanwhile} bytes");
    others_are_answered(&server).await;
    drop(lane);
    let other = RawLane::open(&channel).await;
    let mut frame = RequestWriter::default();
    frame.group(0, "g", Near::Off);
    frame.get(&get(0, b"another", OnMiss::Lease));
    other.send(frame.take());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_waits_does_not_keep_the_frame_that_it_came_in() {
    let (mut server, client) = node("").await;
    // One whose call ends is no holder any more.
    let held = client.group("g").with_deadline(PATIENT * 10);
    // A lease that nobody fills: whoever wants the key waits. Should another be the first, this one is told
    // what its load came to, and asks again.
    let holder = tokio::spawn({
        let group = held.clone();
        async move {
            let load = std::future::pending::<Result<Option<Vec<u8>>, String>>;
            while group.get_or_load("k", load).await.is_err() {}
        }
    });
    eventually("the lease to be given", async || {
        let client = Client::builder().nodes([server.addr()]).deadline(Duration::from_millis(200));
        // Should it be the first, it stores nothing.
        let load = || async { Err::<Option<Vec<u8>>, _>("not mine") };
        let waited = client.build().await.unwrap().group("g").get_or_load("k", load).await;
        waited.is_err_and(|error| error.kind() == ErrorKind::DeadlineExceeded).then_some(())
    })
    .await;
    let before = resident(&mut server);
    let channel = channel(server.addr()).await;
    let lane = RawLane::open(&channel).await;
    for number in 0..40 {
        let mut frame = RequestWriter::default();
        if number == 0 {
            frame.group(0, "g", Near::Off);
        }
        frame.get(&get(number * 2, b"k", OnMiss::Lease));
        // Something long beside it, which is refused.
        let long = vec![0; 7 << 20];
        let outcome = Filled::Value(&long);
        let write = Write::Set { key: b"", outcome, ttl_ms: 0, token: FillToken::NONE };
        frame.write(&WriteOperation { id: number * 2 + 1, group: 0, deadline_ms: 0, failover: false, write });
        lane.send(frame.take());
    }
    others_are_answered(&server).await;
    eventually("what was sent to be read and let go", async || {
        (resident(&mut server) < before + 100 * MIB).then_some(())
    })
    .await;
    holder.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn many_cold_keys_of_several_callers_are_all_loaded() {
    let origin = peanut_tests::Origin::start(Duration::from_millis(2)).await;
    let port = free_port();
    let own = format!("listen = \"127.0.0.1:{port}\"\nnodes = [\"127.0.0.1:{port}\"]\n");
    let group = peanut_tests::group_from("g", origin.url(), "load_timeout = \"60s\"");
    let server = ServerProcess::start_with(SERVER, &(own + &group)).await;
    let client = Client::builder().nodes([server.addr()]).deadline(PATIENCE).build().await.unwrap();
    let calls = (0..3).map(async |call| {
        let keys = (0..1_024).map(|key| format!("{call}-{key}"));
        client.group("g").get_many(keys).await
    });
    for answer in join_all(calls).await.into_iter().flatten() {
        let value = answer.unwrap_or_else(|error| panic!("{error}"));
        assert!(value.unwrap().starts_with(b"value of "));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn large_values_that_nobody_takes_are_not_held() {
    let origin = peanut_tests::Origin::start(Duration::ZERO).await;
    let port = free_port();
    let own = format!("listen = \"127.0.0.1:{port}\"\nnodes = [\"127.0.0.1:{port}\"]\n");
    let more = "capacity = \"64MiB\"\nload_timeout = \"60s\"\nmax_loads = 32";
    let group = peanut_tests::group_from("g", origin.url(), more);
    let mut server = ServerProcess::start_with(SERVER, &(own + &group)).await;
    let client = Client::builder().nodes([server.addr()]).deadline(PATIENCE).build().await.unwrap();
    // As far as the node knows, values are small.
    client.group("g").get("k").await.unwrap();
    let channel = channel(server.addr()).await;
    let lane = RawLane::open(&channel).await;
    let before = resident(&mut server);
    let mut frame = RequestWriter::default();
    frame.group(0, "g", Near::Off);
    let large = |n: u32| format!("8-mib-{n}");
    (1..=200).for_each(|id| frame.get(&get(id, large(id).as_bytes(), OnMiss::Load)));
    lane.send(frame.take());
    eventually("all to be loaded", async || (origin.asked().len() > 200).then_some(())).await;
    let meanwhile = resident(&mut server);
    assert!(meanwhile < before + 700 * MIB, "from {before} to {meanwhile} bytes while nobody reads");
    assert_eq!(client.group("g").get("8-mib-other").await.unwrap().unwrap().len(), 8 << 20);
}

/// Each lane could have one that nobody is charged for, were it only for the lane's own sake.
#[tokio::test(flavor = "multi_thread")]
async fn large_values_on_many_lanes_that_nobody_takes_are_not_held() {
    const CONNECTIONS: usize = 8;
    const LANES: usize = 16;
    let origin = peanut_tests::Origin::start(Duration::ZERO).await;
    let port = free_port();
    let own = format!("listen = \"127.0.0.1:{port}\"\nnodes = [\"127.0.0.1:{port}\"]\n");
    let group = peanut_tests::group_from(
        "g",
        origin.url(),
        "capacity = \"64MiB\"\nload_timeout = \"60s\"\nmax_loads = 8",
    );
    let mut server = ServerProcess::start_with(SERVER, &(own + &group)).await;
    let client = Client::builder().nodes([server.addr()]).deadline(PATIENCE).build().await.unwrap();
    // As far as the node knows, values are large.
    client.group("g").get("8-mib-first").await.unwrap();
    let before = resident(&mut server);
    let mut lanes = Vec::new();
    for connection in 0..CONNECTIONS {
        let channel = channel(server.addr()).await;
        for lane in 0..LANES {
            let opened = RawLane::open(&channel).await;
            let mut frame = RequestWriter::default();
            frame.group(0, "g", Near::Off);
            for id in 1..=2 {
                let key = format!("8-mib-{connection}-{lane}-{id}");
                frame.get(&get(id, key.as_bytes(), OnMiss::Load));
            }
            opened.send(frame.take());
            lanes.push(opened);
        }
    }
    eventually("many to be loaded", async || (origin.asked().len() > 40).then_some(())).await;
    tokio::time::sleep(Duration::from_secs(3)).await;
    let meanwhile = resident(&mut server);
    assert!(meanwhile < before + 900 * MIB, "from {before} to {meanwhile} bytes while nobody reads");
    assert_eq!(client.group("g").get("k").await.unwrap().unwrap(), "value of k", "others have their answers");
    drop(lanes);
}

/// The body of a call: what has been said so far, and no end.
struct Unfinished(Option<Bytes>);

impl http_body::Body for Unfinished {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _context: &mut Context<'_>,
    ) -> Poll<Option<Result<http_body::Frame<Bytes>, Self::Error>>> {
        self.0.take().map_or(Poll::Pending, |said| Poll::Ready(Some(Ok(http_body::Frame::data(said)))))
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_that_are_begun_and_not_ended_take_no_more_than_there_is_room_for() {
    const CALLS: usize = 400;
    let (mut server, client) = node("").await;
    let before = resident(&mut server);
    // The header of a message of 8 MiB, and all but its last bytes.
    let mut said = vec![0, 0, 128, 0, 0];
    said.resize((8 << 20) - 100, 7);
    let said = Bytes::from(said);
    for (path, most) in
        [("/peanut.v1.Peanut/Set", CALLS), ("/peanut.v1.Peanut/Get", CALLS), ("/peanut.v1.Peanut/Lane", 16)]
    {
        let mut channel = channel(server.addr()).await;
        let (mut calls, mut refused) = (tokio::task::JoinSet::new(), 0);
        for _ in 0..most {
            let request = http::Request::post(format!("http://{}{path}", server.addr()))
                .header("content-type", "application/grpc")
                .body(tonic::body::Body::new(Unfinished(Some(said.clone()))))
                .unwrap();
            std::future::poll_fn(|context| channel.poll_ready(context)).await.unwrap();
            let call = channel.call(request);
            calls.spawn(async move { call.await.map(|answer| answer.headers().get("grpc-status").cloned()) });
        }
        eventually("most to be refused, or none of few", async || {
            while let Some(answer) = calls.try_join_next() {
                let status = answer.unwrap().unwrap();
                refused += usize::from(status.is_some_and(|status| status == "8"));
            }
            (refused >= most.saturating_sub(16)).then_some(())
        })
        .await;
        others_are_answered(&server).await;
        let meanwhile = resident(&mut server);
        assert!(meanwhile < before + 600 * MIB, "{path}: from {before} to {meanwhile} bytes");
    }
    // Whoever has room for its messages is not refused, be they many.
    let group = client.group("g");
    set_all(&group, 100, 1 << 20).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn lists_of_millions_of_keys_take_no_more_than_there_is_room_for() {
    let (mut server, client) = node("").await;
    client.group("g").set("k", "v").await.unwrap();
    let before = resident(&mut server);
    let channel = channel(server.addr()).await;
    let calls = (0..30).map(|call| {
        let mut peanut = PeanutClient::new(channel.clone()).max_encoding_message_size(usize::MAX);
        // Twice as many keys as bytes beside them: of no length at all, or of one byte.
        let key = Bytes::from(vec![b'k'; call % 2]);
        let request =
            DeleteRequest { group: "g".into(), keys: vec![key; 2_500_000], ..DeleteRequest::default() };
        tokio::spawn(async move { peanut.delete(request).await })
    });
    let calls = calls.collect::<Vec<_>>();
    others_are_answered(&server).await;
    let mut most = 0;
    for call in calls {
        most = most.max(resident(&mut server));
        // Refused for want of room, for a key that is none, or done.
        let _ = call.await.unwrap();
    }
    assert!(most < before + 500 * MIB, "from {before} to {most} bytes");
    let delete =
        DeleteRequest { group: "g".into(), keys: vec!["k".into(); 2_500_000], ..DeleteRequest::default() };
    PeanutClient::new(channel).max_encoding_message_size(usize::MAX).delete(delete).await.unwrap();
    assert_eq!(client.group("g").get("k").await.unwrap(), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn names_and_messages_of_every_length_break_no_lane() {
    let (_server, client) = node("").await;
    let group = client.group("g");
    let long = "x".repeat(20 << 20);
    let error = group.get_or_load("k", || async { Err::<Option<Bytes>, _>(long.clone()) }).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Loader);
    assert!(error.to_string().len() < 4096);
    let error = client.group(&"g".repeat(10 << 20)).get("k").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{error}");
    group.set("k", "v").await.unwrap();
    assert_eq!(group.get("k").await.unwrap().unwrap(), "v");
}
