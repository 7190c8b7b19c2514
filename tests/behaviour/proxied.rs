//! Programs that have no client: through `peanut proxy`, with clients of Redis as distributions ship them,
//! HTTP and gRPC.

use std::path::Path;
use std::process::{Command, Output};
use std::time::Duration;

use nix::sys::signal::Signal;
use peanut_client::Client;
use peanut_proto::peanutcachepb;
use peanut_proto::peanutcachepb::peanut_cache_client::PeanutCacheClient;
use peanut_proto::v1::peanut_client::PeanutClient;
use peanut_proto::v1::{DeleteRequest, GetRequest, OnMiss, Outcome, SetRequest};
use peanut_tests::{
    Authority, Origin, Process, ServerProcess, eventually, free_port, group_from, http_client, token_in,
};
use redis::AsyncCommands as _;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tonic::transport::{Channel, ClientTlsConfig, Endpoint};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

use crate::admin::{documented, said_by};
use crate::walk::{Walk, lines_on_page, repository};
use crate::{PEANUT, SCORES, SERVER};

const WALK: &str = "examples/python/walk.sh";
const PAGES: &str = "[[group]]\nname = \"pages\"\n[group.loader]\nkind = \"none\"\n";

/// A node, and a proxy of it with a port for each protocol.
struct Proxied {
    node: ServerProcess,
    proxy: Process,
    redis: String,
    http: String,
    grpc: String,
    directory: TempDir,
}

async fn node(groups: &str) -> ServerProcess {
    let port = free_port();
    let alone = format!("listen = \"127.0.0.1:{port}\"\nnodes = [\"127.0.0.1:{port}\"]\n");
    ServerProcess::start_with(SERVER, &format!("{alone}{SCORES}{PAGES}{groups}")).await
}

/// A proxy process of a node, with its ports.
async fn proxy_of(node: &ServerProcess, more: &[String]) -> (Process, [String; 3]) {
    let ports = [(); 3].map(|()| format!("127.0.0.1:{}", free_port()));
    let [redis, http, grpc] = &ports;
    let mut command = Command::new(PEANUT);
    command.args(["--nodes", node.addr(), "proxy", "--redis", redis, "--http", http, "--grpc", grpc]);
    command.args(more).env("NO_COLOR", "1").env("RUST_LOG", "info");
    let mut proxy = Process::start("peanut proxy", &mut command);
    proxy.wait_for_line("gRPC on ").await;
    (proxy, ports)
}

impl Proxied {
    async fn start(groups: &str, more: &[String]) -> Self {
        let node = node(groups).await;
        let (proxy, [redis, http, grpc]) = proxy_of(&node, more).await;
        Proxied { node, proxy, redis, http, grpc, directory: tempfile::tempdir().unwrap() }
    }

    fn redis_port(&self) -> &str {
        self.redis.rsplit(':').next().unwrap()
    }

    fn redis_cli(&self, args: &[&str]) -> String {
        let run = Command::new("redis-cli").args(["-p", self.redis_port()]).args(args).output();
        said(run.expect("redis-cli comes with redis-server"))
    }

    async fn ask(&self, method: reqwest::Method, path: &str, body: &str) -> (u16, String) {
        let request =
            http_client().request(method, format!("http://{}{path}", self.http)).body(body.to_owned());
        let response = request.send().await.unwrap();
        (response.status().as_u16(), response.text().await.unwrap())
    }
}

fn said(output: Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_redis_command_line_and_its_benchmark_work() {
    let proxied = Proxied::start("", &["--databases=pages".to_owned()]).await;
    assert_eq!(proxied.redis_cli(&["GET", "scores:Tom"]), "630\n");
    assert_eq!(proxied.redis_cli(&["-3", "GET", "scores:Nobody"]), "\n");
    assert_eq!(proxied.redis_cli(&["-n", "1", "SET", "home", "a page", "EX", "100"]), "OK\n");
    assert_eq!(proxied.redis_cli(&["MGET", "pages:home", "scores:Tom", "pages:x"]), "a page\n630\n\n");
    let ttl: u64 = proxied.redis_cli(&["TTL", "pages:home"]).trim().parse().unwrap();
    assert!((50..=100).contains(&ttl), "{ttl}");
    assert_eq!(proxied.redis_cli(&["DEL", "pages:home"]), "1\n");
    assert!(proxied.redis_cli(&["SET", "pages:home", "x", "NX"]).contains("cannot be kept"));
    assert!(proxied.redis_cli(&["COMMAND", "COUNT"]).trim().parse::<u32>().unwrap() > 15);
    let benchmark = Command::new("redis-benchmark")
        .args(["-p", proxied.redis_port(), "-n", "20000", "-c", "20", "-P", "16", "-r", "1000", "-q"])
        .args(["SET", "pages:__rand_int__", "value"])
        .output();
    let benchmark = said(benchmark.unwrap());
    assert!(benchmark.contains("requests per second") && !benchmark.contains("Error"), "{benchmark}");
    let read = Command::new("redis-benchmark")
        .args(["-p", proxied.redis_port(), "-n", "20000", "-c", "20", "-q", "GET", "pages:000000000001"])
        .output();
    let read = said(read.unwrap());
    assert!(read.contains("requests per second") && !read.contains("Error"), "{read}");
}

/// A connection of redis-rs that has time, also on a busy machine.
async fn connect(url: &str) -> redis::aio::MultiplexedConnection {
    let patient = redis::AsyncConnectionConfig::new().set_response_timeout(Some(Duration::from_secs(20)));
    let client = redis::Client::open(url).unwrap();
    client.get_multiplexed_async_connection_with_config(&patient).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rust_client_of_redis_works_in_both_versions_of_the_protocol() {
    let proxied = Proxied::start("", &[]).await;
    for protocol in ["", "?protocol=resp3"] {
        let mut connection = connect(&format!("redis://{}/0{protocol}", proxied.redis)).await;
        let tom: Option<String> = connection.get("scores:Tom").await.unwrap();
        assert_eq!(tom.as_deref(), Some("630"));
        let () = connection.set_ex("pages:a", "1", 50).await.unwrap();
        let many: Vec<Option<String>> = connection.mget(&["pages:a", "pages:b"]).await.unwrap();
        assert_eq!(many, [Some("1".to_owned()), None]);
        let mut pipe = redis::pipe();
        (0..500).for_each(|n| _ = pipe.cmd("SET").arg(format!("pages:{n}")).arg(n).ignore());
        (0..500).for_each(|n| _ = pipe.cmd("GET").arg(format!("pages:{n}")));
        let answers: Vec<usize> = pipe.query_async(&mut connection).await.unwrap();
        assert_eq!(answers, (0..500).collect::<Vec<_>>());
        let gone: usize = connection.del("pages:a").await.unwrap();
        assert_eq!(gone, 1);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_table_of_metrics_is_what_a_proxy_says() {
    let proxied = Proxied::start("", &[]).await;
    assert_eq!(proxied.redis_cli(&["MGET", "scores:Tom", "scores:Nobody"]), "630\n\n");
    let (status, metrics) = proxied.ask(reqwest::Method::GET, "/metrics", "").await;
    assert_eq!((status, documented("peanut_proxy_", &[])), (200, said_by(&metrics)));
    assert!(metrics.contains("peanut_proxy_requests_total{protocol=\"redis\"} 1\n"), "{metrics}");
    assert!(metrics.contains("peanut_proxy_gets_total{outcome=\"negative\"} 1\n"), "{metrics}");
    assert_eq!(proxied.ask(reqwest::Method::GET, "/readyz", "").await, (200, "ready\n".to_owned()));
}

#[test]
fn the_page_has_the_python_walk_as_it_runs() {
    let lines = lines_on_page(WALK, "docs/proxy.md");
    assert!(lines < 10, "{lines} lines");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_python_program_reads_a_database_through_the_cache() {
    let mut walk = Walk::prepare().await;
    // The package is that of the system's own Python.
    if Path::new("/usr/bin/python3").exists() {
        std::os::unix::fs::symlink("/usr/bin/python3", walk.bin().join("python3")).unwrap();
    }
    walk.start(WALK, &[]);
    let ended = walk.ended().await;
    assert!(ended.success(), "{}", walk.log());
    assert_eq!(walk.log().lines().last(), Some("4.20 True None"), "{}", walk.log());
}

/// The program for Node on docs/proxy.md, with ioredis as npm ships it, where npm can fetch it.
#[tokio::test(flavor = "multi_thread")]
async fn the_node_program_on_the_page_runs() {
    let origin = Origin::start(Duration::ZERO).await;
    let proxied = Proxied::start(&group_from("prices", origin.url(), ""), &[]).await;
    let install = ["install", "--silent", "--no-audit", "--fetch-retries=0", "--fetch-timeout=20000"];
    let directory = proxied.directory.path();
    let installed = Command::new("npm").args(install).arg("ioredis@5").current_dir(directory).status();
    if !installed.is_ok_and(|status| status.success()) {
        println!("the program for Node was not tried: npm cannot install ioredis");
        return;
    }
    let page = std::fs::read_to_string(repository().join("docs/proxy.md")).unwrap();
    let program = page.split("```js\n").nth(1).and_then(|rest| rest.split("```").next()).unwrap();
    let program = program.replace("6380", proxied.redis_port());
    std::fs::write(directory.join("shop.mjs"), program).unwrap();
    let run = Command::new("node").arg("shop.mjs").current_dir(directory).output().unwrap();
    assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stderr));
    assert_eq!(String::from_utf8_lossy(&run.stdout), "value of tea\n");
    assert_eq!(proxied.redis_cli(&["GET", "pages:home"]), "<h1>Home</h1>\n");
    assert_eq!(proxied.redis_cli(&["GET", "prices:tea"]), "value of tea\n");
    assert_eq!(origin.asked_for("tea"), 2, "it was deleted");
}

#[tokio::test(flavor = "multi_thread")]
async fn http_and_grpc_serve_the_same_keys() {
    let mut proxied = Proxied::start("", &[]).await;
    assert_eq!(proxied.ask(reqwest::Method::GET, "/v1/scores/Tom", "").await, (200, "630".to_owned()));
    assert_eq!(proxied.ask(reqwest::Method::PUT, "/v1/pages/a%2Fb?ttl=50", "hello").await.0, 204);
    let channel = Channel::from_shared(format!("http://{}", proxied.grpc)).unwrap().connect().await.unwrap();
    let mut peanut = PeanutClient::new(channel.clone());
    let get =
        |key: &str| GetRequest { group: "pages".into(), key: key.to_owned().into(), ..GetRequest::default() };
    let got = peanut.get(get("a/b")).await.unwrap().into_inner();
    assert_eq!((got.value.as_ref(), got.outcome()), (&b"hello"[..], Outcome::Hit));
    assert!(got.ttl_ms > 20_000 && got.ttl_ms <= 50_000, "{}", got.ttl_ms);
    let set =
        SetRequest { group: "pages".into(), key: "c".into(), value: "1".into(), ..SetRequest::default() };
    assert_eq!(peanut.set(set.clone()).await.unwrap().into_inner().outcome(), Outcome::Done);
    assert_eq!(proxied.ask(reqwest::Method::GET, "/v1/pages/c", "").await, (200, "1".to_owned()));
    let delete = DeleteRequest { group: "pages".into(), keys: vec!["c".into()], ..DeleteRequest::default() };
    peanut.delete(delete).await.unwrap();
    assert_eq!(peanut.get(get("c")).await.unwrap().into_inner().outcome(), Outcome::NotFound);
    for refused in
        [GetRequest { on_miss: OnMiss::Lease as i32, ..get("a") }, GetRequest { failover: true, ..get("a") }]
    {
        assert_eq!(peanut.get(refused).await.unwrap_err().code(), tonic::Code::InvalidArgument);
    }
    let with_token = peanut.set(SetRequest { token: 1, ..set }).await.unwrap_err();
    assert_eq!(with_token.code(), tonic::Code::InvalidArgument);
    let mut original = PeanutCacheClient::new(channel.clone());
    let ask = |key: &str| peanutcachepb::GetRequest { group: "scores".into(), key: key.into() };
    assert_eq!(original.get(ask("Tom")).await.unwrap().into_inner().value, "630");
    assert_eq!(original.get(ask("Nobody")).await.unwrap_err().code(), tonic::Code::NotFound);
    let all = DeleteRequest { group: "pages".into(), all: true, ..DeleteRequest::default() };
    peanut.delete(all).await.unwrap();
    assert_eq!(peanut.get(get("a/b")).await.unwrap().into_inner().outcome(), Outcome::NotFound);
    proxied.proxy.wait_for_line("action=\"clear\" group=\"pages\"").await;
    let health = HealthClient::new(channel);
    let serves = async |service: &str| {
        let checked = health.clone().check(HealthCheckRequest { service: service.to_owned() }).await;
        checked.unwrap().into_inner().status() == ServingStatus::Serving
    };
    for service in ["", "peanut.v1.Peanut", "peanutcachepb.PeanutCache"] {
        // It may have begun before it knew its fleet.
        eventually("the proxy to serve", async || serves(service).await.then_some(())).await;
    }
    // As the compose file has it.
    let is_healthy = |grpc: &str| {
        let mut health = Command::new(PEANUT);
        health.args(["--nodes", grpc, "health"]).env("PEANUT_ETCD_ENDPOINTS", "http://127.0.0.1:1");
        health.status().unwrap().success()
    };
    assert!(is_healthy(&proxied.grpc));
    proxied.node.process().kill();
    eventually("the proxy to say that it reaches no node", async || {
        // It is noticed when a node is asked.
        proxied.ask(reqwest::Method::GET, "/v1/scores/Tom", "").await;
        let (status, _) = proxied.ask(reqwest::Method::GET, "/readyz", "").await;
        (status == 503 && !serves("").await && !serves("peanut.v1.Peanut").await).then_some(())
    })
    .await;
    assert_eq!(proxied.ask(reqwest::Method::GET, "/healthz", "").await.0, 200, "it runs");
    assert!(!is_healthy(&proxied.grpc));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_one_proxy_writes_the_near_copies_of_another_show() {
    // Of hot keys, or of all that are read of a group.
    for (flags, least) in [(&[][..], 500), (&["--near-groups=other,pages".to_owned()], 5000)] {
        let proxied = Proxied::start("", flags).await;
        let (_second, [redis, ..]) = proxy_of(&proxied.node, &[]).await;
        let open = async |addr: &str| connect(&format!("redis://{addr}/")).await;
        let (mut reader, mut writer) = (open(&proxied.redis).await, open(&redis).await);
        for n in 0..200 {
            let () = writer.set("pages:hot", n).await.unwrap();
            for _ in 0..30 {
                let read: usize = reader.get("pages:hot").await.unwrap();
                assert_eq!(read, n);
            }
        }
        let info: String = redis::cmd("INFO").query_async(&mut reader).await.unwrap();
        let near = info.lines().find_map(|line| line.strip_prefix("near_hits:")).unwrap();
        assert!(near.parse::<u64>().unwrap() > least, "{flags:?}: {near} of 6000 gets were of near copies");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn tls_and_tokens_are_those_of_a_node() {
    let authority = Authority::new();
    let certificate = authority.issue("proxy", &["127.0.0.1", "localhost"]);
    let directory = tempfile::tempdir().unwrap();
    let tokens = directory.path().join("tokens.toml");
    let shop =
        token_in(directory.path(), "shop", "read = [\"scores\", \"pages:shop/*\"]\nset = [\"pages:shop/*\"]");
    std::fs::write(&tokens, &shop).unwrap();
    let flags = [
        format!("--tokens={}", tokens.display()),
        format!("--serve-cert={}", certificate.cert.display()),
        format!("--serve-key={}", certificate.key.display()),
    ];
    let proxied = Proxied::start("", &flags).await;
    let ca = authority.ca();
    let cli =
        |more: &[&str]| proxied.redis_cli(&[&["--tls", "--cacert", ca.to_str().unwrap()], more].concat());
    assert!(cli(&["GET", "scores:Tom"]).contains("NOAUTH"));
    let secret = "secret-of-the-shop";
    assert!(cli(&["-a", secret, "--no-auth-warning", "GET", "scores:Tom"]).starts_with("630"));
    assert!(cli(&["-a", secret, "--no-auth-warning", "SET", "pages:shop/a", "1"]).starts_with("OK"));
    assert!(cli(&["-a", secret, "--no-auth-warning", "SET", "pages:other", "1"]).contains("NOPERM"));
    assert!(
        cli(&["-a", "a-wrong-secret-of-16", "--no-auth-warning", "GET", "scores:Tom"]).contains("WRONGPASS")
    );
    let plain = proxied.redis_cli(&["GET", "scores:Tom"]);
    assert!(!plain.contains("630"), "{plain}");
    http_and_grpc_have_them_too(&proxied, &ca, secret).await;

    // Another secret, while it runs.
    std::fs::write(directory.path().join("shop"), "another-secret-of-16\n").unwrap();
    eventually("the new secret to be good", async || {
        cli(&["-a", "another-secret-of-16", "--no-auth-warning", "GET", "scores:Tom"])
            .starts_with("630")
            .then_some(())
    })
    .await;
    assert!(cli(&["-a", secret, "--no-auth-warning", "GET", "scores:Tom"]).contains("WRONGPASS"));
    assert!(!proxied.proxy.log().iter().any(|line| line.contains("secret-of")), "{:?}", proxied.proxy.log());
}

/// The other two ports, with the proxy's certificate and a caller's secret.
async fn http_and_grpc_have_them_too(proxied: &Proxied, ca: &Path, secret: &str) {
    let (ca, plainly) = (std::fs::read(ca).unwrap(), http_client());
    let root = reqwest::Certificate::from_pem(&ca).unwrap();
    let http = reqwest::Client::builder().tls_certs_only([root]).build().unwrap();
    let url = |scheme: &str, key: &str| format!("{scheme}://{}/v1/{key}", proxied.http);
    let code = async |request: reqwest::RequestBuilder| request.send().await.unwrap().status().as_u16();
    assert_eq!(code(http.get(url("https", "scores/Tom"))).await, 401);
    assert_eq!(code(http.get(url("https", "scores/Tom")).bearer_auth("a-wrong-secret-of-16")).await, 401);
    assert_eq!(code(http.get(url("https", "scores/Tom")).bearer_auth(secret)).await, 200);
    assert_eq!(code(http.put(url("https", "pages/shop%2Fb")).body("1").bearer_auth(secret)).await, 204);
    assert_eq!(code(http.put(url("https", "pages/other")).body("1").bearer_auth(secret)).await, 403);
    let plain = plainly.get(url("http", "scores/Tom")).bearer_auth(secret).send().await;
    assert!(plain.is_err(), "{plain:?}");

    let tls = ClientTlsConfig::new().ca_certificate(tonic::transport::Certificate::from_pem(&ca));
    let channel = Channel::from_shared(format!("https://{}", proxied.grpc)).unwrap().tls_config(tls).unwrap();
    let mut peanut = PeanutClient::new(channel.connect().await.unwrap());
    let mut get = async |key: &str, secret: &str| {
        let get = GetRequest { group: "scores".into(), key: key.to_owned().into(), ..GetRequest::default() };
        let mut request = tonic::Request::new(get);
        let bearer = format!("Bearer {secret}").parse().unwrap();
        request.metadata_mut().insert("authorization", bearer);
        peanut.get(request).await.map(|got| got.into_inner().value)
    };
    assert_eq!(get("Tom", secret).await.unwrap(), "630");
    let wrong = get("Tom", "a-wrong-secret-of-16").await.unwrap_err();
    assert_eq!(wrong.code(), tonic::Code::Unauthenticated);
    let plain = Channel::from_shared(format!("http://{}", proxied.grpc)).unwrap().connect_lazy();
    let get = GetRequest { group: "scores".into(), key: "Tom".into(), ..GetRequest::default() };
    assert!(PeanutClient::new(plain).get(get).await.is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_is_refused_at_the_start_in_one_line() {
    let node = node("").await;
    let directory = tempfile::tempdir().unwrap();
    let empty = directory.path().join("tokens.toml");
    std::fs::write(&empty, "[[tokens]]\nname = \"a\"\n").unwrap();
    let refused = |args: &[&str]| {
        let run = Command::new(PEANUT).args(["--nodes", node.addr(), "proxy"]).args(args).output().unwrap();
        let why = said(run.clone());
        assert_eq!((run.status.code(), why.lines().count()), (Some(2), 1), "{args:?}: {why}");
        why
    };
    assert!(refused(&[]).contains("--redis"));
    assert!(refused(&["--redis", "0.0.0.0:0"]).contains("without TLS"));
    assert!(refused(&["--redis", "127.0.0.1:0", "--serve-cert", "x"]).contains("serve-key"));
    assert!(
        refused(&["--redis", "127.0.0.1:0", "--tokens", empty.to_str().unwrap()]).contains("no [[token]]")
    );
    assert!(refused(&["--redis", "127.0.0.1:0", "--tokens", "/nowhere"]).contains("/nowhere"));
    assert!(refused(&["--redis", "nowhere:x"]).contains("cannot listen on nowhere:x"));
    let file = empty.to_str().unwrap();
    assert!(refused(&["--redis", file]).contains(&format!("cannot listen on {file}")));
    assert!(empty.is_file(), "what is no socket stays");
    let taken = directory.path().join("taken.sock");
    let _listening = std::os::unix::net::UnixListener::bind(&taken).unwrap();
    assert!(refused(&["--redis", taken.to_str().unwrap()]).contains("cannot listen on"));
    assert!(std::os::unix::net::UnixStream::connect(&taken).is_ok(), "one that is in use stays");
}

#[tokio::test(flavor = "multi_thread")]
async fn sockets_in_the_file_system_are_served_too() {
    let proxied = Proxied::start("", &[]).await;
    let paths = ["redis", "http", "grpc"].map(|name| proxied.directory.path().join(format!("{name}.sock")));
    let [redis, http, grpc] = paths.each_ref().map(|path| path.to_str().unwrap());
    let start = || {
        let mut command = Command::new(PEANUT);
        command.args([
            "--nodes",
            proxied.node.addr(),
            "proxy",
            "--redis",
            redis,
            "--http",
            http,
            "--grpc",
            grpc,
        ]);
        Process::start("peanut proxy", command.env("NO_COLOR", "1"))
    };
    // The second finds what the first has left.
    for _ in 0..2 {
        let mut proxy = start();
        proxy.wait_for_line("gRPC on ").await;
        let run = Command::new("redis-cli").args(["-s", redis, "GET", "scores:Tom"]).output();
        assert_eq!(said(run.unwrap()), "630\n");
        let _ = http_client();
        let client = reqwest::Client::builder().unix_socket(http).build().unwrap();
        let got = client.get("http://localhost/v1/scores/Tom").send().await.unwrap();
        assert_eq!(got.text().await.unwrap(), "630");
        let channel = Endpoint::new(format!("unix://{grpc}")).unwrap().connect().await.unwrap();
        let get = GetRequest { group: "scores".into(), key: "Tom".into(), ..GetRequest::default() };
        let got = PeanutClient::new(channel).get(get).await.unwrap().into_inner();
        assert_eq!(got.value, "630");
        proxy.kill();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_proxy_may_be_started_before_its_fleet() {
    let http = format!("127.0.0.1:{}", free_port());
    let mut command = Command::new(PEANUT);
    command.args(["--etcd", "http://127.0.0.1:1", "proxy", "--http", &http]).env("NO_COLOR", "1");
    let mut proxy = Process::start("peanut proxy", &mut command);
    proxy.wait_for_line("HTTP on ").await;
    for (path, code) in [("healthz", 200), ("readyz", 503)] {
        let got = http_client().get(format!("http://{http}/{path}")).send().await.unwrap();
        assert_eq!(got.status().as_u16(), code, "{path}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_answers_what_was_asked_and_ends() {
    let origin = Origin::start(Duration::from_secs(2)).await;
    let mut proxied = Proxied::start(&group_from("slow", origin.url(), ""), &[]).await;
    let mut stream = TcpStream::connect(&proxied.redis).await.unwrap();
    stream.write_all(b"GET slow:key\r\n").await.unwrap();
    eventually("the load to begin", async || (origin.asked_for("key") > 0).then_some(())).await;
    proxied.proxy.signal(Signal::SIGTERM);
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with('$'), "{answer}");
    assert!(proxied.proxy.ended().await.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hangup_reads_tokens_and_certificates_again_and_ends_nothing() {
    let without_tokens = Proxied::start("", &[]).await;
    without_tokens.proxy.signal(Signal::SIGHUP);
    let directory = tempfile::tempdir().unwrap();
    let (file, secret) = (directory.path().join("tokens.toml"), directory.path().join("secret"));
    std::fs::write(&secret, "0123456789abcdef").unwrap();
    let token = format!("[[token]]\nname = \"app\"\nsecret_files = [{secret:?}]\nread = [\"*\"]\n");
    std::fs::write(&file, token).unwrap();
    let mut proxied = Proxied::start("", &[format!("--tokens={}", file.display())]).await;
    std::fs::write(&file, "nonsense").unwrap();
    proxied.proxy.signal(Signal::SIGHUP);
    proxied.proxy.wait_for_line("tokens cannot be used").await;
    let known = ["-a", "0123456789abcdef", "--no-auth-warning", "GET", "scores:Tom"];
    assert_eq!(proxied.redis_cli(&known), "630\n");
    assert_eq!(without_tokens.redis_cli(&["GET", "scores:Tom"]), "630\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn hostile_bytes_end_their_connection_and_nobody_elses() {
    let proxied = Proxied::start("", &[]).await;
    let before = TcpStream::connect(&proxied.redis).await.unwrap();
    let nested = b"*1\r\n".repeat(500_000);
    for hostile in [
        &nested[..],
        b"*1000000000\r\n",
        b"*2\r\n$3\r\nGET\r\n$99999999999\r\n",
        b"*1\r\n$-5\r\n",
        &[0xff; 100_000],
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    ] {
        let mut stream = TcpStream::connect(&proxied.redis).await.unwrap();
        let _ = stream.write_all(hostile).await;
        let _ = stream.shutdown().await;
        let mut said = Vec::new();
        let _ = stream.read_to_end(&mut said).await;
    }
    let mut before = before;
    before.write_all(b"GET scores:Tom\r\nQUIT\r\n").await.unwrap();
    let mut answer = String::new();
    before.read_to_string(&mut answer).await.unwrap();
    assert_eq!(answer, "$3\r\n630\r\n+OK\r\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_write_past_the_proxy_is_seen_through_it() {
    let proxied = Proxied::start("", &[]).await;
    let direct = Client::builder().nodes([proxied.node.addr()]).build().await.unwrap();
    for n in 0..50 {
        direct.group("pages").set("k", n.to_string()).await.unwrap();
        assert_eq!(proxied.ask(reqwest::Method::GET, "/v1/pages/k", "").await, (200, n.to_string()));
    }
}
