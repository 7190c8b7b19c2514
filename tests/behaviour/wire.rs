//! What other gRPC clients see: the original service, status codes, limits, health, reflection.

use bytes::Bytes;
use peanut_proto::limits::MAX_VALUE_BYTES;
use peanut_proto::peanutcachepb::peanut_cache_client::PeanutCacheClient;
use peanut_proto::registry::Registry as _;
use peanut_proto::v1::peanut_client::PeanutClient;
use peanut_proto::v1::{ErrorCode, GetRequest, Outcome};
use peanut_proto::{failure, peanutcachepb, v1};
use peanut_server::{Group, Loaded, Server, loader_fn};
use tokio::net::TcpListener;
use tokio_util::task::AbortOnDropHandle;
use tonic::Code;
use tonic::transport::Channel;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;
use tonic_reflection::pb::v1::ServerReflectionRequest;
use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
use tonic_reflection::pb::v1::server_reflection_response::MessageResponse;

use crate::{SCORES, fleet};

async fn channel(addr: &str) -> Channel {
    Channel::from_shared(format!("http://{addr}")).unwrap().connect().await.unwrap()
}

fn original(key: &str) -> peanutcachepb::GetRequest {
    peanutcachepb::GetRequest { group: "scores".into(), key: key.into() }
}

fn get(group: &str, key: impl Into<Bytes>) -> GetRequest {
    GetRequest { group: group.into(), key: key.into(), ..GetRequest::default() }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_of_the_original_service_gets_tom_from_any_node() {
    let (etcd, servers) = fleet(3, SCORES).await;
    for server in &servers {
        let mut client = PeanutCacheClient::new(channel(server.addr()).await);
        assert_eq!(client.get(original("Tom")).await.unwrap().into_inner().value, "630");
        let status = client.get(original("Nobody")).await.unwrap_err();
        assert_eq!(status.code(), Code::NotFound);

        let naming = etcd.registry().load(&format!("peanutcache/{}", server.addr())).await.unwrap();
        let record: serde_json::Value = serde_json::from_slice(&naming.entries[0].value).unwrap();
        assert_eq!(record, serde_json::json!({ "Op": 0, "Addr": server.addr(), "Metadata": null }));
    }
}

struct OneNode {
    addr: String,
    _server: AbortOnDropHandle<()>,
}

async fn one_node() -> OneNode {
    let loader = loader_fn(|key: Bytes| async move {
        match &key[..] {
            b"huge" => Ok(Loaded::found(vec![0; MAX_VALUE_BYTES + 1])),
            b"largest" => Ok(Loaded::found(vec![0; MAX_VALUE_BYTES])),
            b"broken" => Err("no such table: scores".into()),
            b"talkative" => Err("x".repeat(200_000).into()),
            b"missing" => Ok(Loaded::not_found()),
            _ => Ok(Loaded::found("value")),
        }
    });
    let server = Server::builder().group(Group::new("g", loader)).build().unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap().to_string();
    let serving = tokio::spawn(async move { server.run(listener, std::future::pending()).await.unwrap() });
    OneNode { addr, _server: AbortOnDropHandle::new(serving) }
}

#[tokio::test(flavor = "multi_thread")]
async fn refusals_have_their_code_name_the_limit_and_leave_the_connection_alone() {
    let node = one_node().await;
    let channel = channel(&node.addr).await;
    let mut client = PeanutClient::new(channel.clone()).max_decoding_message_size(16 << 20);
    for (request, code, names) in [
        (get("g", ""), Code::InvalidArgument, "the key is empty"),
        (get("g", vec![b'k'; 1025]), Code::InvalidArgument, "the limit is 1024"),
        (get("nowhere", "k"), Code::NotFound, "no group `nowhere`"),
        (get("g", "broken"), Code::Aborted, "no such table: scores"),
        (get("g", "talkative"), Code::Aborted, "xxx"),
        (get("g", "huge"), Code::ResourceExhausted, "the limit is 8388608"),
        (GetRequest { on_miss: 99, ..get("g", "k") }, Code::InvalidArgument, "unknown on_miss 99"),
    ] {
        let status = client.get(request).await.unwrap_err();
        assert_eq!(status.code(), code, "{status:?}");
        assert!(status.message().contains(names), "{status:?}");
        assert!(failure::from_status(&status).is_some(), "a server's own failure is marked");
        let alive = client.get(get("g", "k")).await.unwrap().into_inner();
        assert_eq!(alive.value, "value");
    }
    // A message over the limit is refused before it is read.
    let status = client.get(get("g", vec![b'k'; 9 << 20])).await.unwrap_err();
    assert_eq!(status.code(), Code::OutOfRange, "{status:?}");
    assert_eq!(client.get(get("g", "k")).await.unwrap().into_inner().value, "value");

    let largest = client.get(get("g", "largest")).await.unwrap().into_inner();
    assert_eq!(largest.value.len(), MAX_VALUE_BYTES);
    let missing = client.get(get("g", "missing")).await.unwrap().into_inner();
    assert_eq!((missing.outcome(), missing.value.len()), (Outcome::NotFound, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_tell_how_they_came_about() {
    let node = one_node().await;
    let mut client = PeanutClient::new(channel(&node.addr).await);
    let peek = GetRequest { on_miss: v1::OnMiss::Peek.into(), ..get("g", "k") };
    assert_eq!(client.get(peek.clone()).await.unwrap().into_inner().outcome(), Outcome::Miss);
    let loaded = client.get(GetRequest { ring_version: 7, ..get("g", "k") }).await.unwrap().into_inner();
    assert_eq!((loaded.outcome(), loaded.ring_version), (Outcome::Loaded, 1), "it has heard of no ring 7");
    assert!(loaded.ttl_ms > 500_000 && loaded.ttl_ms <= 600_000);
    let hit = client.get(peek).await.unwrap().into_inner();
    assert_eq!(hit.outcome(), Outcome::Hit);
    for owned_since in [2, u64::from(u32::MAX), u64::MAX] {
        let newer = GetRequest { ring_version: u64::MAX, owned_since, ..get("g", "k") };
        let status = client.get(newer).await.unwrap_err();
        assert_eq!(failure::from_status(&status), Some(ErrorCode::RingUnknown), "{status:?}");
    }
    let contradiction = GetRequest { ring_version: 0, owned_since: 1, ..get("g", "k") };
    let status = client.get(contradiction).await.unwrap_err();
    assert_eq!(failure::from_status(&status), Some(ErrorCode::InvalidRequest), "{status:?}");
    assert_eq!(
        client.get(get("g", "k")).await.unwrap().into_inner().outcome(),
        Outcome::Hit,
        "it is all there"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn health_and_reflection_are_served() {
    let node = one_node().await;
    let channel = channel(&node.addr).await;
    let mut health = HealthClient::new(channel.clone());
    for service in ["", "peanut.v1.Peanut", "peanutcachepb.PeanutCache"] {
        let answer = health.check(HealthCheckRequest { service: service.into() }).await.unwrap().into_inner();
        assert_eq!(answer.status, 1, "{service} is serving");
    }
    let request = ServerReflectionRequest {
        host: String::new(),
        message_request: Some(MessageRequest::ListServices(String::new())),
    };
    let mut reflection = ServerReflectionClient::new(channel);
    let request = futures_util::stream::iter([request]);
    let mut answers = reflection.server_reflection_info(request).await.unwrap().into_inner();
    let Some(MessageResponse::ListServicesResponse(list)) =
        answers.message().await.unwrap().unwrap().message_response
    else {
        panic!("a list was asked for");
    };
    let names: Vec<_> = list.service.iter().map(|service| service.name.as_str()).collect();
    for service in ["peanut.v1.Peanut", "peanutcachepb.PeanutCache", "grpc.health.v1.Health"] {
        assert!(names.contains(&service), "{service} is not in {names:?}");
    }
}
