//! Lanes: long values beside short ones, loads beside hits, bounds, and nodes that know no lanes.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use peanut_client::registry::{LocalRegistry, Registry as _};
use peanut_client::{Client, ErrorKind};
use peanut_proto::frame::{RequestFrame, ResponseFrame};
use peanut_proto::limits::MAX_VALUE_BYTES;
use peanut_proto::membership::{Keys, RingDocument};
use peanut_proto::v1::peanut_client::PeanutClient;
use peanut_proto::v1::peanut_server::{Peanut, PeanutServer};
use peanut_proto::v1::{GetRequest, GetResponse, Outcome, SetRequest, SetResponse};
use peanut_server::{Group, Loaded, LoaderError, Server, loader_fn};
use tokio::net::TcpListener;
use tokio_util::task::AbortOnDropHandle;
use tonic::codegen::BoxStream;
use tonic::transport::server::TcpIncoming;
use tonic::{Request, Response, Status, Streaming};

/// A node whose loader gives `<n> bytes` for the key `<n>`, and takes an hour for `slow…`.
async fn node() -> (Client, AbortOnDropHandle<()>) {
    let loader = loader_fn(|key: Bytes| async move {
        if key.starts_with(b"slow") {
            tokio::time::sleep(Duration::from_secs(3600)).await;
        }
        let size: usize = std::str::from_utf8(&key)?.split('-').next().unwrap_or_default().parse()?;
        Ok::<_, LoaderError>(Loaded::found(pattern(size)))
    });
    let group = Group::new("g", loader).capacity_bytes(256 << 20).load_timeout(Duration::from_secs(3600));
    let registry = LocalRegistry::new();
    let server = Server::builder().group(group).registry(registry.clone()).build().unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let serving = tokio::spawn(async move { server.run(listener, std::future::pending()).await.unwrap() });
    let client =
        Client::builder().registry(registry).deadline(Duration::from_secs(10)).build().await.unwrap();
    (client, AbortOnDropHandle::new(serving))
}

fn pattern(size: usize) -> Vec<u8> {
    (0..size).map(|at| (at % 251) as u8).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn values_of_every_size_arrive_as_they_were() {
    let (client, _node) = node().await;
    let group = client.group("g");
    let sizes = [0, 1, 100, 65_535, 65_536, 65_537, 131_072, 1 << 20, MAX_VALUE_BYTES];
    for _ in 0..2 {
        let answers = group.get_many(sizes.map(|size| size.to_string())).await;
        for (size, answer) in sizes.into_iter().zip(answers) {
            let value = answer.unwrap().unwrap();
            assert!(value.len() == size && value == pattern(size), "{size} bytes");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn short_values_come_between_the_pieces_of_long_ones_and_loads_hold_up_nothing() {
    let (client, _node) = node().await;
    let group = client.group("g");
    group.get("100").await.unwrap();
    let slow = tokio::spawn({
        let group = group.clone();
        async move { group.get("slow").await }
    });
    // Six long values at once; the short one is asked for last and answered before they all are.
    let long: Vec<_> = (0..6).map(|n| format!("{MAX_VALUE_BYTES}-{n}")).collect();
    let long = tokio::spawn({
        let group = group.clone();
        async move { group.get_many(long).await }
    });
    let mut between = 0;
    while !long.is_finished() {
        assert_eq!(group.get("100").await.unwrap().unwrap().len(), 100);
        between += 1;
    }
    assert!(long.await.unwrap().into_iter().all(|answer| answer.unwrap().unwrap().len() == MAX_VALUE_BYTES));
    assert!(between > 2, "{between} short values came meanwhile");
    assert!(!slow.is_finished());
    slow.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn beyond_the_operations_in_flight_gets_are_refused_at_once() {
    let (client, node) = node().await;
    let addr = client.nodes()[0].addr.clone();
    let bounded = Client::builder().nodes([addr]).operations_per_node(10).deadline(Duration::from_secs(5));
    let bounded = bounded.build().await.unwrap();
    let group = bounded.group("g");
    // Each tries until it is in: the gets below take a place of their own now and then.
    let waiting: Vec<_> = (0..10)
        .map(|n| {
            let group = group.clone();
            AbortOnDropHandle::new(tokio::spawn(async move {
                while group.get(format!("slow-{n}")).await.is_err_and(|e| e.kind() == ErrorKind::Overloaded) {
                    tokio::task::yield_now().await;
                }
            }))
        })
        .collect();
    peanut_tests::eventually("the lane to be full", async || {
        let begun = peanut_tests::now();
        let error = group.get("100").await.err()?;
        assert_eq!(error.kind(), ErrorKind::Overloaded, "{error:?}");
        assert!(error.is_retryable() && begun.elapsed() < Duration::from_secs(4), "at once");
        Some(())
    })
    .await;
    drop(waiting);
    drop(node);
}

/// A node of another making, which knows only unary calls.
struct Plain;

#[tonic::async_trait]
impl Peanut for Plain {
    async fn get(&self, request: Request<GetRequest>) -> Result<Response<GetResponse>, Status> {
        let value = request.into_inner().key;
        Ok(Response::new(GetResponse { outcome: Outcome::Hit.into(), value, ..GetResponse::default() }))
    }

    async fn lane(
        &self,
        _: Request<Streaming<RequestFrame>>,
    ) -> Result<Response<BoxStream<ResponseFrame>>, Status> {
        Err(Status::unimplemented("no lanes here"))
    }
}

/// A node that names a ring which there is not, a later one each time where it is `eager`.
struct Liar {
    eager: bool,
    named: AtomicU64,
}

impl Liar {
    fn version(&self) -> u64 {
        if self.eager { self.named.fetch_add(1, Ordering::Relaxed) } else { u64::MAX }
    }
}

#[tonic::async_trait]
impl Peanut for Liar {
    async fn get(&self, request: Request<GetRequest>) -> Result<Response<GetResponse>, Status> {
        let (value, ring_version) = (request.into_inner().key, self.version());
        let outcome = Outcome::Hit.into();
        Ok(Response::new(GetResponse { outcome, value, ring_version, ..GetResponse::default() }))
    }

    async fn set(&self, _: Request<SetRequest>) -> Result<Response<SetResponse>, Status> {
        let (outcome, ring_version) = (Outcome::Done.into(), self.version());
        Ok(Response::new(SetResponse { outcome, ring_version }))
    }

    async fn lane(
        &self,
        _: Request<Streaming<RequestFrame>>,
    ) -> Result<Response<BoxStream<ResponseFrame>>, Status> {
        Err(Status::unimplemented("no lanes here"))
    }
}

/// Serves on a port of any number.
async fn serve(peanut: impl Peanut) -> (String, AbortOnDropHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap().to_string();
    let serving = tonic::transport::Server::builder().add_service(PeanutServer::new(peanut));
    let serving = AbortOnDropHandle::new(tokio::spawn(async move {
        serving.serve_with_incoming(TcpIncoming::from(listener)).await.unwrap();
    }));
    (addr, serving)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_names_a_ring_which_there_is_not_is_not_believed() {
    for eager in [false, true] {
        let (addr, _serving) = serve(Liar { eager, named: AtomicU64::new(1 << 40) }).await;
        let registry = LocalRegistry::new();
        registry.put(&Keys::new("default").ring(), RingDocument::fixed([addr]).encode(), None).await.unwrap();
        let client =
            Client::builder().registry(registry).deadline(Duration::from_secs(1)).build().await.unwrap();
        let group = client.group("g");
        // A write waits for the ring that it hears of, until the registry turns out not to have it.
        peanut_tests::eventually("the node to be found out", async || group.set("k", "v").await.ok()).await;
        for _ in 0..10 {
            group.set("k", "v").await.unwrap();
            assert_eq!(group.get("k").await.unwrap().unwrap(), "k");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_without_lanes_is_asked_by_unary_calls() {
    let (addr, _serving) = serve(Plain).await;
    let registry = LocalRegistry::new();
    registry.put(&Keys::new("default").ring(), RingDocument::fixed([addr]).encode(), None).await.unwrap();
    let client = Client::builder().registry(registry).build().await.unwrap();
    for key in ["a", "b"] {
        assert_eq!(client.group("g").get(key).await.unwrap().unwrap(), key);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lane_that_speaks_nonsense_is_closed_and_its_connection_lives() {
    let (client, _node) = node().await;
    let addr = client.nodes()[0].addr.clone();
    let channel =
        tonic::transport::Channel::from_shared(format!("http://{addr}")).unwrap().connect().await.unwrap();
    let mut peanut = PeanutClient::new(channel);
    let nonsense =
        futures_util::stream::iter([RequestFrame(Bytes::from_static(b"\x22\xff\xff\xff\xff\x0f"))]);
    let mut answers = peanut.lane(nonsense).await.unwrap().into_inner();
    let status = answers.message().await.unwrap_err();
    assert_eq!(status.code(), tonic::Code::InvalidArgument, "{status:?}");
    let get = GetRequest { group: "g".into(), key: "5".into(), ..GetRequest::default() };
    assert_eq!(peanut.get(get).await.unwrap().into_inner().value.len(), 5);
}
