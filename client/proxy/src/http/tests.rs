//! HTTP against a fleet in this process.

use std::time::Duration;

use axum::body::{Body, to_bytes};
use axum::http::{Request as HttpRequest, StatusCode};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use peanut_client::Client;
use peanut_edge::Token;
use peanut_edge::budget::Budget;
use peanut_edge::rights::Tokens;
use peanut_proto::limits::MAX_VALUE_BYTES;
use peanut_server::testing::TestFleet;
use peanut_server::{Group, Loaded, LoaderError, loader_fn};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::task::AbortOnDropHandle;
use tower::ServiceExt as _;

use super::*;
use crate::groups::Groups;

struct Fixture {
    _fleet: TestFleet,
    core: Arc<Core>,
    /// Of connections that come with a peer.
    of_peers: Router,
    router: Router,
}

impl Fixture {
    async fn start() -> Self {
        Fixture::with(&[]).await
    }

    async fn with(tokens: &[Token]) -> Self {
        let scores = loader_fn(|key| async move {
            match &key[..] {
                b"Tom" => Ok(Loaded::found("630")),
                b"broken" => Err(LoaderError::from("the database is on fire")),
                b"\xff\x00/" => Ok(Loaded::found(vec![0xff])),
                _ => Ok(Loaded::not_found()),
            }
        });
        let scores = Group::new("scores", scores).ttl(Duration::from_secs(60));
        let fleet = TestFleet::start(1, [scores, Group::without_loader("pages")]).await.unwrap();
        let client = Client::builder().registry(fleet.registry()).build().await.unwrap();
        let tokens = Tokens::new(tokens, false).unwrap();
        let core = Arc::new(Core::new(Groups::new(client), tokens, Vec::new()));
        let of_peers = router(core.clone());
        let router = of_peers.clone().layer(Extension(Peer::of("127.0.0.1:1", false)));
        Fixture { _fleet: fleet, core, of_peers, router }
    }

    /// What a request comes to when others hold the budgets of its connection but for so many bytes.
    async fn ask_with_room_for(&self, left: usize, request: HttpRequest<Body>) -> Response {
        let peer = Peer::of("127.0.0.1:1", false);
        let account = peer.accounts.of(&Arc::from(""));
        let held = |of: &Arc<Budget>| of.try_take(of.most() - left).unwrap();
        let _beside = (held(&account.values), held(&account.incoming));
        self.of_peers.clone().layer(Extension(peer)).oneshot(request).await.unwrap()
    }

    async fn ask(&self, method: &str, uri: &str, headers: &[(&str, &str)], body: &str) -> Response {
        let mut request = HttpRequest::builder().method(method).uri(uri);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        self.router.clone().oneshot(request.body(Body::from(body.to_owned())).unwrap()).await.unwrap()
    }

    async fn get(&self, uri: &str) -> (StatusCode, Vec<u8>) {
        let response = self.ask("GET", uri, &[], "").await;
        let status = response.status();
        (status, to_bytes(response.into_body(), usize::MAX).await.unwrap().to_vec())
    }
}

fn header_of(response: &Response, name: header::HeaderName) -> String {
    response.headers().get(&name).unwrap_or_else(|| panic!("no {name}")).to_str().unwrap().to_owned()
}

#[tokio::test]
async fn a_value_is_loaded_and_says_how_long_it_may_be_kept() {
    let fixture = Fixture::start().await;
    let response = fixture.ask("GET", "/v1/scores/Tom", &[], "").await;
    assert_eq!(response.status(), StatusCode::OK);
    assert_eq!(header_of(&response, header::AGE), "0");
    let kept = header_of(&response, header::CACHE_CONTROL);
    let seconds: u64 = kept.strip_prefix("max-age=").unwrap().parse().unwrap();
    assert!((1..=60).contains(&seconds), "{kept}");
    let tag = header_of(&response, header::ETAG);
    assert_eq!(to_bytes(response.into_body(), 99).await.unwrap(), "630");

    let known = fixture.ask("GET", "/v1/scores/Tom", &[("if-none-match", &tag)], "").await;
    assert_eq!((known.status(), header_of(&known, header::ETAG)), (StatusCode::NOT_MODIFIED, tag));
    let other = fixture.ask("GET", "/v1/scores/Tom", &[("if-none-match", "\"x\"")], "").await;
    assert_eq!(other.status(), StatusCode::OK);
    assert_eq!(fixture.get("/v1/scores/%ff%00%2f").await, (StatusCode::OK, vec![0xff]));
}

#[tokio::test]
async fn what_cannot_be_answered_is_a_problem_with_its_reason() {
    let fixture = Fixture::start().await;
    let problem = async |method: &str, uri: &str, headers: &[(&str, &str)], body: &str| {
        let response = fixture.ask(method, uri, headers, body).await;
        assert_eq!(header_of(&response, header::CONTENT_TYPE), "application/problem+json");
        let status = response.status();
        let body: Value =
            serde_json::from_slice(&to_bytes(response.into_body(), 9999).await.unwrap()).unwrap();
        assert_eq!(body["status"], status.as_u16());
        (status.as_u16(), body["detail"].as_str().unwrap().to_owned())
    };
    let (status, detail) = problem("GET", "/v1/scores/broken", &[], "").await;
    assert!(status == 502 && detail.contains("the database is on fire"), "{detail}");
    assert_eq!(problem("GET", "/v1/scores/Nobody", &[], "").await.0, 404);
    let (status, detail) = problem("GET", "/v1/nothing/Tom", &[], "").await;
    assert!(status == 404 && detail.contains("nothing"), "{detail}");
    assert_eq!(problem("GET", "/v1/%ff/Tom", &[], "").await.0, 400);
    assert_eq!(problem("GET", &format!("/v1/scores/{}", "k".repeat(1025)), &[], "").await.0, 400);
    assert_eq!(problem("GET", "/v1/scores", &[], "").await.0, 405);
    assert_eq!(problem("PATCH", "/v1/scores/Tom", &[], "").await.0, 405);
    assert_eq!(problem("GET", "/elsewhere", &[], "").await.0, 404);
    for (method, uri) in [
        ("GET", "/v1/pages/a?q=1"),
        ("DELETE", "/v1/pages/a?q"),
        ("POST", "/v1/pages?a=1"),
        ("GET", "/v1/pages/what?"),
        ("PUT", "/v1/pages/what?"),
    ] {
        assert_eq!(problem(method, uri, &[], "{\"keys\": []}").await.0, 400, "{method} {uri}: part of a key");
    }
    for uri in ["/v1/pages/100%", "/v1/pages/%zz", "/v1/%/a"] {
        assert_eq!(problem("GET", uri, &[], "").await.0, 400, "{uri}");
    }
    assert_eq!(problem("PUT", "/v1/pages/a?ttl=0", &[], "x").await.0, 400);
    assert_eq!(problem("PUT", "/v1/pages/a", &[("if-none-match", "*")], "x").await.0, 400);
    assert_eq!(problem("DELETE", "/v1/pages/a", &[("if-match", "\"x\"")], "").await.0, 400);
    let part = [("content-range", "bytes 0-3/10")];
    assert_eq!(problem("PUT", "/v1/pages/a", &part, "part").await.0, 400);
    let long = "x".repeat(MAX_VALUE_BYTES + 1);
    assert_eq!(problem("PUT", "/v1/pages/a", &[], &long).await.0, 413);
    for body in
        ["", "{}", "[]", "{\"keys\": 1}", "{\"keys\": [{\"base64\": \"?\"}]}", "{\"keys\": [], \"x\": 1}"]
    {
        assert_eq!(problem("POST", "/v1/scores", &[], body).await.0, 400, "{body}");
    }
}

#[tokio::test]
async fn a_key_is_put_for_as_long_as_is_said_and_deleted() {
    let fixture = Fixture::start().await;
    let status =
        async |method: &str, uri: &str, body: &str| fixture.ask(method, uri, &[], body).await.status();
    assert_eq!(status("GET", "/v1/pages/a", "").await, StatusCode::NOT_FOUND);
    assert_eq!(status("PUT", "/v1/pages/a?ttl=100", "hello").await, StatusCode::NO_CONTENT);
    assert_eq!(fixture.get("/v1/pages/a").await, (StatusCode::OK, b"hello".to_vec()));
    let head = fixture.ask("HEAD", "/v1/pages/a", &[], "").await;
    let kept = header_of(&head, header::CACHE_CONTROL);
    let seconds: u64 = kept.strip_prefix("max-age=").unwrap().parse().unwrap();
    assert!((50..=100).contains(&seconds), "{kept}");
    assert_eq!(status("DELETE", "/v1/pages/a", "").await, StatusCode::NO_CONTENT);
    assert_eq!(status("GET", "/v1/pages/a", "").await, StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn many_keys_come_in_order_each_with_its_own_error() {
    let fixture = Fixture::start().await;
    let body = json!({ "keys": ["Tom", "Nobody", "broken", { "base64": "/wAv" }, "Tom"] }).to_string();
    let response = fixture.ask("POST", "/v1/scores", &[], &body).await;
    assert_eq!(response.status(), StatusCode::OK);
    let body = to_bytes(response.into_body(), 9999).await.unwrap();
    let mut body: Value = serde_json::from_slice(&body).unwrap();
    let error = body["values"][2]["error"].take();
    assert!(error["status"] == 502 && error["detail"].as_str().unwrap().contains("on fire"), "{error}");
    let expected = json!({ "values": [
        { "key": "Tom", "value": "630" },
        { "key": "Nobody", "value": null },
        { "key": "broken", "error": null },
        { "key": { "base64": "/wAv" }, "value_base64": "/w==" },
        { "key": "Tom", "value": "630" },
    ]});
    assert_eq!(body, expected);
}

#[tokio::test]
async fn as_many_keys_are_answered_as_a_request_may_have() {
    let fixture = Fixture::start().await;
    let keys: Vec<_> = (0..10_000).map(|n| if n % 2 == 0 { "Tom" } else { "Nobody" }).collect();
    let response = fixture.ask("POST", "/v1/scores", &[], &json!({ "keys": keys }).to_string()).await;
    let body = to_bytes(response.into_body(), usize::MAX).await.unwrap();
    let body: Value = serde_json::from_slice(&body).unwrap();
    let values = body["values"].as_array().unwrap();
    assert_eq!(values.len(), 10_000);
    assert_eq!(values[9_998], json!({ "key": "Tom", "value": "630" }));
    assert_eq!(values[9_999], json!({ "key": "Nobody", "value": null }));
}

#[tokio::test]
async fn a_name_is_looked_at_before_it_is_remembered() {
    let token = Token::new("app").secret("0123456789abcdef").read(["scores"]);
    let fixture = Fixture::with(&[token]).await;
    let shown = [("authorization", "Bearer 0123456789abcdef")];
    let status = async |method: &str, uri: &str| {
        fixture.ask(method, uri, &shown, "{\"keys\": [\"a\"]}").await.status().as_u16()
    };
    for n in 0..600 {
        assert_eq!(status("GET", &format!("/v1/secret{n}/a")).await, 403);
        assert_eq!(status("POST", &format!("/v1/secret{n}x")).await, 403);
    }
    assert_eq!(status("GET", "/v1/scores/Tom").await, 200);
    let fixture = Fixture::start().await;
    for name in ["g".repeat(129), "a%0ab".to_owned()] {
        assert_eq!(fixture.get(&format!("/v1/{name}/a")).await.0, StatusCode::BAD_REQUEST);
    }
}

#[tokio::test]
async fn a_body_that_stops_on_its_way_is_not_waited_for() {
    let fixture = Fixture::start().await;
    tokio::time::pause();
    for (method, uri) in [("PUT", "/v1/pages/a"), ("POST", "/v1/pages")] {
        let never = Body::from_stream(futures_util::stream::pending::<Result<&[u8], std::io::Error>>());
        let request = HttpRequest::builder().method(method).uri(uri).body(never).unwrap();
        let response = fixture.router.clone().oneshot(request).await.unwrap();
        assert_eq!(response.status(), StatusCode::REQUEST_TIMEOUT, "{method}");
    }
}

#[tokio::test]
async fn who_finds_no_room_for_a_minute_is_told_so() {
    let fixture = Fixture::start().await;
    fixture.ask("PUT", "/v1/pages/long", &[], &"v".repeat(60 << 10)).await;
    for left in [1, 20 << 10] {
        for (method, uri) in [("GET", "/v1/pages/long"), ("PUT", "/v1/pages/a"), ("POST", "/v1/pages")] {
            let body = "v".repeat(60 << 10);
            let request = HttpRequest::builder().method(method).uri(uri).body(Body::from(body)).unwrap();
            tokio::time::pause();
            let response = fixture.ask_with_room_for(left, request).await;
            tokio::time::resume();
            assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE, "{method} {left}");
            assert_eq!(header_of(&response, header::RETRY_AFTER), "1");
        }
    }
    let request = HttpRequest::builder().uri("/v1/pages/long").body(Body::empty()).unwrap();
    let response = fixture.ask_with_room_for(100 << 10, request).await;
    assert_eq!(response.status(), StatusCode::OK);
}

#[tokio::test]
async fn groups_that_no_node_was_asked_for_take_no_place() {
    let fixture = Fixture::start().await;
    for n in 0..20 {
        let response = fixture.ask("POST", &format!("/v1/junk{n}"), &[], "{\"keys\": []}").await;
        assert_eq!(response.status(), StatusCode::OK);
        let response = fixture.ask("PUT", &format!("/v1/junk{n}/k?ttl=x"), &[], "").await;
        assert_eq!(response.status(), StatusCode::BAD_REQUEST);
    }
    assert_eq!(fixture.get("/v1/pages/a").await.0, StatusCode::NOT_FOUND);
    assert_eq!(fixture.core.groups.used(), ["pages"]);
}

#[tokio::test]
async fn json_that_is_longer_than_its_values_takes_room_too() {
    let fixture = Fixture::start().await;
    // As JSON each byte of it takes six.
    let value = "\0".repeat(40 << 10);
    assert_eq!(fixture.ask("PUT", "/v1/pages/zeros", &[], &value).await.status(), StatusCode::NO_CONTENT);
    let ask = || {
        let request = HttpRequest::builder().method("POST").uri("/v1/pages");
        request.body(Body::from("{\"keys\": [\"zeros\"]}")).unwrap()
    };
    tokio::time::pause();
    let response = fixture.ask_with_room_for(100 << 10, ask()).await;
    assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
    tokio::time::resume();
    let response = fixture.ask_with_room_for(300 << 10, ask()).await;
    assert_eq!(response.status(), StatusCode::OK);
}

#[tokio::test]
async fn the_document_describes_what_is_served() {
    let fixture = Fixture::start().await;
    let (status, document) = fixture.get("/openapi.json").await;
    assert_eq!(status, StatusCode::OK);
    let document: openapiv3::OpenAPI = serde_json::from_slice(&document).unwrap();
    for (path, item) in document.paths.iter() {
        let item = item.as_item().unwrap();
        let uri = path.replace("{group}", "pages").replace("{key}", "documented");
        let served: Vec<_> =
            item.iter().map(|(method, operation)| (method.to_uppercase(), operation)).collect();
        for (method, operation) in &served {
            let response = fixture.ask(method, &uri, &[], "{\"keys\": []}").await;
            let status = openapiv3::StatusCode::Code(response.status().as_u16());
            assert!(operation.responses.responses.contains_key(&status), "{method} {path}: {status}");
        }
        for method in ["GET", "HEAD", "PUT", "POST", "DELETE", "PATCH"] {
            // axum answers HEAD wherever there is a GET.
            let is_documented = served.iter().any(|(it, _)| it == method || it == "GET" && method == "HEAD");
            let response = fixture.ask(method, &uri, &[], "{\"keys\": []}").await;
            let is_served = response.status() != StatusCode::METHOD_NOT_ALLOWED;
            assert_eq!(is_served, is_documented, "{method} {path}");
        }
    }
}

#[tokio::test]
async fn a_caller_shows_a_token_and_may_do_what_it_allows() {
    let token = Token::new("app").secret("0123456789abcdef").read(["scores", "pages:a*"]).set(["pages:a*"]);
    let fixture = Fixture::with(&[token]).await;
    let status = async |method: &str, uri: &str, shown: &str| {
        let response =
            fixture.ask(method, uri, &[("authorization", shown)], "{\"keys\": [\"a\", \"b\"]}").await;
        response.status().as_u16()
    };
    let unknown = fixture.ask("GET", "/v1/scores/Tom", &[], "").await;
    assert_eq!(unknown.status(), StatusCode::UNAUTHORIZED);
    // A header each: browsers do not look for a second scheme behind a comma.
    let schemes: Vec<_> = unknown.headers().get_all(header::WWW_AUTHENTICATE).iter().collect();
    assert_eq!(schemes, ["Bearer", "Basic realm=\"peanut: a token as the password\""]);
    assert_eq!(status("GET", "/v1/scores/Tom", "Bearer wrong").await, 401);
    let bearer = "Bearer 0123456789abcdef";
    assert_eq!(status("GET", "/v1/scores/Tom", bearer).await, 200);
    let basic = format!("Basic {}", STANDARD.encode("anybody:0123456789abcdef"));
    assert_eq!(status("GET", "/v1/scores/Tom", &basic).await, 200);
    for shown in [bearer.to_lowercase(), bearer.replace("Bearer", "BEARER"), basic.replace("Basic", "basic")]
    {
        assert_eq!(status("GET", "/v1/scores/Tom", &shown).await, 200, "{shown}");
    }
    assert_eq!(status("GET", "/v1/scores/Tom", "Digest 0123456789abcdef").await, 401);
    assert_eq!(status("PUT", "/v1/pages/ab", bearer).await, 204);
    for (method, uri) in
        [("GET", "/v1/pages/b"), ("PUT", "/v1/pages/b"), ("DELETE", "/v1/pages/ab"), ("POST", "/v1/pages")]
    {
        assert_eq!(status(method, uri, bearer).await, 403, "{method} {uri}");
    }
    assert_eq!(fixture.get("/openapi.json").await.0, StatusCode::OK);
}

/// The next request of a connection is not read out of the body of one that was refused, nor is the answer to
/// that lost with the connection.
#[tokio::test]
async fn a_request_that_is_refused_before_its_body_leaves_a_connection_that_can_be_used_or_says_that_it_ends()
{
    let fixture = Fixture::start().await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let router = fixture.router.clone();
    let _serving = AbortOnDropHandle::new(tokio::spawn(async move { axum::serve(listener, router).await }));
    let mut stream = TcpStream::connect(addr).await.unwrap();
    let answer = async |stream: &mut TcpStream, begins: &str| {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(stream.read_u8().await.expect("the connection stands"));
        }
        let head = String::from_utf8(head).unwrap();
        assert!(head.starts_with(begins), "{head}");
        let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
        let length = length.map_or(0, |length| length.parse::<usize>().unwrap());
        if begins == "HTTP/1.1 4" {
            stream.read_exact(&mut vec![0; length]).await.unwrap();
        }
        head
    };
    let long = MAX_VALUE_BYTES + (1 << 20);
    for (path, length) in [("pages/a?x=1", 3), ("pages/a?x=1", 1 << 20), ("pages/a", long)] {
        let head = format!("PUT /v1/{path} HTTP/1.1\r\nhost: p\r\ncontent-length: {length}\r\n\r\n");
        stream.write_all(head.as_bytes()).await.unwrap();
        // The body comes after whatever the server makes of the head.
        tokio::time::sleep(Duration::from_millis(20)).await;
        stream.write_all(&vec![b'x'; length]).await.unwrap();
        let refused = answer(&mut stream, "HTTP/1.1 4").await;
        assert!(!refused.contains("connection: close"), "{refused}");
    }
    stream.write_all(b"HEAD /v1/scores/Tom HTTP/1.1\r\nhost: p\r\n\r\n").await.unwrap();
    let head = answer(&mut stream, "HTTP/1.1 200 ").await;
    assert!(head.contains("content-length: 3\r\n"), "{head}");
    let tag = head.lines().find_map(|line| line.strip_prefix("etag: ")).unwrap().to_owned();
    let known = format!("HEAD /v1/scores/Tom HTTP/1.1\r\nhost: p\r\nif-none-match: {tag}\r\n\r\n");
    stream.write_all(known.as_bytes()).await.unwrap();
    let head = answer(&mut stream, "HTTP/1.1 304 ").await;
    assert!(!head.contains("content-length: 0"), "{head}");
    let waits =
        "PUT /v1/pages/a?x=1 HTTP/1.1\r\nhost: p\r\nexpect: 100-continue\r\ncontent-length: 3\r\n\r\n";
    stream.write_all(waits.as_bytes()).await.unwrap();
    let refused = answer(&mut stream, "HTTP/1.1 400 ").await;
    assert!(refused.contains("connection: close"), "its body may come or not: {refused}");
}
