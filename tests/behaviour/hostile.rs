//! Those who do not speak as they should: only their own connection suffers.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use peanut_client::Client;
use peanut_tests::{Authority, PATIENCE, Process, ServerProcess, cpu_time, eventually, free_port};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use crate::{SCORES, SERVER};

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const SETTINGS: &[u8] = &[0, 0, 0, 4, 0, 0, 0, 0, 0];
/// The static table's `:method POST`, `:scheme http`, `:path /`, and an authority.
const REQUEST: &[u8] = &[0x83, 0x86, 0x84, 0x41, 0x01, b'x'];

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

async fn node(settings: &str) -> ServerProcess {
    let port = free_port();
    let own = format!("listen = \"127.0.0.1:{port}\"\nnodes = [\"127.0.0.1:{port}\"]\n");
    ServerProcess::start_with(SERVER, &format!("{own}{settings}\n{SCORES}")).await
}

/// A client that gets for as long as it is asked to; none of its gets may fail.
struct Bystander {
    stop: Arc<AtomicBool>,
    gets: Arc<AtomicU64>,
    task: JoinHandle<()>,
}

impl Bystander {
    async fn start(builder: peanut_client::ClientBuilder) -> Self {
        let client = builder.deadline(PATIENCE).build().await.unwrap();
        let (stop, gets) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let task = tokio::spawn({
            let (stop, gets, group) = (stop.clone(), gets.clone(), client.group("scores"));
            async move {
                while !stop.load(Ordering::Relaxed) {
                    assert_eq!(group.get("Tom").await.unwrap().unwrap(), "630");
                    gets.fetch_add(1, Ordering::Relaxed);
                }
            }
        });
        Bystander { stop, gets, task }
    }

    async fn of(server: &ServerProcess) -> Self {
        Bystander::start(Client::builder().nodes([server.addr()])).await
    }

    /// Waits until it has had more answers.
    async fn goes_on(&self) {
        let so_far = self.gets.load(Ordering::Relaxed);
        eventually("more gets", async || (self.gets.load(Ordering::Relaxed) > so_far + 100).then_some(()))
            .await;
    }

    async fn end(self) {
        self.goes_on().await;
        self.stop.store(true, Ordering::Relaxed);
        self.task.await.expect("none of its gets has failed");
    }
}

/// Waits until the other side has closed.
async fn is_closed(mut stream: TcpStream, what: &str) {
    let mut buffer = vec![0; 64 << 10];
    let closed = async {
        loop {
            match stream.read(&mut buffer).await {
                Ok(0) | Err(_) => return,
                Ok(_) => {}
            }
        }
    };
    timeout(PATIENCE, closed).await.unwrap_or_else(|_| panic!("{what} is still connected"));
}

#[tokio::test(flavor = "multi_thread")]
async fn who_says_nothing_or_too_little_is_gone_in_time() {
    let authority = Authority::new();
    let node_cert = authority.issue("node", &["127.0.0.1"]);
    let tls = format!(
        "handshake_timeout = \"500ms\"\n[tls]\ncert = \"{}\"\nkey = \"{}\"\n",
        node_cert.cert.display(),
        node_cert.key.display()
    );
    let plain = node("handshake_timeout = \"500ms\"").await;
    let private = node(&tls).await;
    let bystander = Bystander::of(&plain).await;
    let trusting = Client::builder().nodes([private.addr()]).tls(peanut_client::Tls::new(authority.ca()));
    let private_bystander = Bystander::start(trusting).await;
    // Nothing; half of HTTP/2's first words; half of TLS's.
    let mut streams = Vec::new();
    for n in 0..60 {
        let addr = if n % 2 == 0 { plain.addr() } else { private.addr() };
        let mut stream = TcpStream::connect(addr).await.unwrap();
        match n % 3 {
            0 => {}
            1 => stream.write_all(&PREFACE[..10]).await.unwrap(),
            _ => stream.write_all(&[0x16, 3, 1, 2, 0, 1]).await.unwrap(),
        }
        streams.push(stream);
    }
    bystander.goes_on().await;
    for stream in streams {
        is_closed(stream, "a silent connection").await;
    }
    bystander.end().await;
    private_bystander.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_http2_or_too_much_of_it_ends_its_own_connection() {
    let server = node("").await;
    let bystander = Bystander::of(&server).await;
    let hello = [PREFACE, SETTINGS].concat();
    let resets: Vec<u8> = (0..2000)
        .flat_map(|n| {
            let stream = 2 * n + 1;
            [frame(1, 5, stream, REQUEST), frame(3, 0, stream, &8u32.to_be_bytes())].concat()
        })
        .collect();
    // Streams that the server itself has to reset: a window that is raised by nothing.
    let mistakes: Vec<u8> = (0..2000)
        .flat_map(|n| {
            let stream = 2 * n + 1;
            [frame(1, 4, stream, REQUEST), frame(8, 0, stream, &0u32.to_be_bytes())].concat()
        })
        .collect();
    // Headers that never end.
    let endless = [frame(1, 1, 1, REQUEST), frame(9, 0, 1, &[0x40; 16_000]).repeat(200)].concat();
    let cases: [(&str, Vec<u8>); 9] = [
        ("HTTP/1.1", b"GET / HTTP/1.1\r\nHost: x\r\n\r\n".to_vec()),
        ("noise", vec![0xff; 4096]),
        ("a frame longer than any may be", [&hello[..], &[0xff, 0xff, 0xff, 0, 0, 0, 0, 0, 1]].concat()),
        ("settings with half a setting", [PREFACE, &frame(4, 0, 0, &[0, 1, 0])].concat()),
        ("data on a stream that is not open", [&hello[..], &frame(0, 0, 5, b"data")].concat()),
        ("headers that cannot be read", [&hello[..], &frame(1, 5, 1, &[0xff; 20])].concat()),
        ("headers without an end", [&hello[..], &endless].concat()),
        ("requests that have to be reset", [&hello[..], &mistakes].concat()),
        ("requests that are taken back at once", [&hello[..], &resets].concat()),
    ];
    for (what, bytes) in cases {
        let mut stream = TcpStream::connect(server.addr()).await.unwrap();
        // It may be closed before everything is written.
        let _ = stream.write_all(&bytes).await;
        is_closed(stream, what).await;
        bystander.goes_on().await;
    }
    bystander.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_that_is_gone_without_a_word_is_noticed() {
    let server = node("keepalive = \"500ms\"").await;
    let bystander = Bystander::of(&server).await;
    let mut stream = TcpStream::connect(server.addr()).await.unwrap();
    stream.write_all(&[PREFACE, SETTINGS].concat()).await.unwrap();
    // It never answers the pings.
    is_closed(stream, "a half-open connection").await;
    bystander.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_are_bounded_and_those_that_stand_are_left_alone() {
    let server = node("max_connections_per_peer = 10").await;
    let bystander = Bystander::of(&server).await;
    let mut held = Vec::new();
    let mut refused = 0;
    for _ in 0..40 {
        let mut stream = TcpStream::connect(server.addr()).await.unwrap();
        let _ = stream.write_all(&[PREFACE, SETTINGS].concat()).await;
        match timeout(PATIENCE, stream.read(&mut [0; 64])).await.unwrap() {
            Ok(0) | Err(_) => refused += 1,
            Ok(_) => held.push(stream),
        }
    }
    assert!(refused >= 30 && !held.is_empty() && held.len() < 10, "{refused} refused, {} held", held.len());
    bystander.goes_on().await;
    drop(held);
    eventually("room for one more", async || {
        let mut stream = TcpStream::connect(server.addr()).await.ok()?;
        stream.write_all(&[PREFACE, SETTINGS].concat()).await.ok()?;
        stream.read(&mut [0; 64]).await.ok().filter(|read| *read > 0)
    })
    .await;
    bystander.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_is_refused_is_left_while_another_stands() {
    let server = node("max_connections_per_peer = 1").await;
    let client = Client::builder().nodes([server.addr()]).deadline(PATIENCE).build().await.unwrap();
    let gets = (0..16).map(|n| {
        let scores = client.group("scores");
        // Some of one key, which share what they are sent with, and some of others.
        let key = if n % 2 == 0 { "Tom".to_owned() } else { format!("key-{n}") };
        async move {
            for _ in 0..200 {
                scores.get(key.clone()).await.unwrap();
                scores.delete(format!("another-{n}")).await.unwrap();
                let many = scores.get_many([format!("one-{n}"), format!("two-{n}")]).await;
                many.into_iter().for_each(|got| drop(got.unwrap()));
            }
        }
    });
    futures_util::future::join_all(gets).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn running_out_of_descriptors_is_survived_without_spinning() {
    let port = free_port();
    let directory = tempfile::tempdir().unwrap();
    let config = format!("listen = \"127.0.0.1:{port}\"\nhandshake_timeout = \"1h\"\nthreads = 1\n{SCORES}");
    std::fs::write(directory.path().join("peanut.toml"), config).unwrap();
    let run =
        format!("ulimit -n 48; exec {SERVER} --config {}", directory.path().join("peanut.toml").display());
    let mut command = std::process::Command::new("sh");
    let mut process = Process::start("peanut-server", command.args(["-c", &run]).env("NO_COLOR", "1"));
    process.wait_for_line("listening on ").await;
    let addr = format!("127.0.0.1:{port}");
    let bystander = Bystander::start(Client::builder().nodes([&addr])).await;
    // Its connections are there before there are no descriptors left.
    bystander.goes_on().await;
    let mut streams = Vec::new();
    for _ in 0..100 {
        streams.push(TcpStream::connect(&addr).await.unwrap());
    }
    process.wait_for_line("connections cannot be accepted").await;
    bystander.goes_on().await;
    bystander.end().await;
    let id = process.id().to_string();
    let before = cpu_time(&id);
    tokio::time::sleep(Duration::from_secs(2)).await;
    let used = cpu_time(&id) - before;
    assert!(used < Duration::from_millis(1000), "{used:?} of CPU time in two seconds of nothing");
    assert_eq!(process.log().iter().filter(|line| line.contains("cannot be accepted")).count(), 1);
    drop(streams);
    let client = Client::builder().nodes([&addr]).deadline(PATIENCE).build().await.unwrap();
    eventually("it to accept again", async || client.group("scores").get("Tom").await.ok()).await;
}

/// Speaks HTTP/2 and answers pings, and makes no call. Ends when the other side does, and says whether it
/// said goodbye (GOAWAY) first.
async fn polite(addr: &str) -> bool {
    let mut stream = TcpStream::connect(addr).await.unwrap();
    stream.write_all(&[PREFACE, SETTINGS].concat()).await.unwrap();
    let mut was_told = false;
    loop {
        let mut header = [0; 9];
        if stream.read_exact(&mut header).await.is_err() {
            return was_told;
        }
        let mut payload = vec![0; u32::from_be_bytes([0, header[0], header[1], header[2]]) as usize];
        if stream.read_exact(&mut payload).await.is_err() {
            return was_told;
        }
        let (kind, is_ack) = (header[3], header[4] & 1 == 1);
        let answer = match kind {
            4 if !is_ack => frame(4, 1, 0, &[]),
            6 if !is_ack => frame(6, 1, 0, &payload),
            _ => Vec::new(),
        };
        was_told |= kind == 7;
        let _ = stream.write_all(&answer).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_only_answers_pings_has_no_place_for_ever() {
    let secrets = tempfile::tempdir().unwrap();
    let token = peanut_tests::token_in(secrets.path(), "app", "read = [\"*\"]");
    let server = node(&format!("keepalive = \"500ms\"\nfirst_call_timeout = \"1s\"\n{token}")).await;
    let bystander =
        Bystander::start(Client::builder().nodes([server.addr()]).token("secret-of-the-app")).await;
    let strangers: Vec<_> = (0..20)
        .map(|_| {
            let addr = server.addr().to_owned();
            tokio::spawn(async move { polite(&addr).await })
        })
        .collect();
    bystander.goes_on().await;
    for stranger in strangers {
        let was_told = timeout(PATIENCE, stranger).await.expect("a stranger is still there").unwrap();
        assert!(was_told, "with a goodbye");
    }
    // A call without a token is none that was let in, and one that lasts is cut off.
    let endpoint = tonic::transport::Endpoint::from_shared(format!("http://{}", server.addr())).unwrap();
    let mut health = tonic_health::pb::health_client::HealthClient::new(endpoint.connect().await.unwrap());
    let watch = tonic_health::pb::HealthCheckRequest::default();
    let mut watching = health.watch(watch).await.unwrap().into_inner();
    let ended = async { while let Ok(Some(_)) = watching.message().await {} };
    timeout(PATIENCE, ended).await.expect("a stranger still watches");
    bystander.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn strangers_give_way_where_there_are_too_many() {
    let secrets = tempfile::tempdir().unwrap();
    let token = peanut_tests::token_in(secrets.path(), "app", "read = [\"*\"]");
    let server = node(&format!("max_connections_per_peer = 10\n{token}")).await;
    let strangers: Vec<_> = (0..10)
        .map(|_| {
            let addr = server.addr().to_owned();
            tokio::spawn(async move { polite(&addr).await })
        })
        .collect();
    // All places are taken for the first seconds.
    let client = Client::builder().nodes([server.addr()]).token("secret-of-the-app");
    let client = client.deadline(Duration::from_secs(1)).build().await.unwrap();
    eventually("a place", async || client.group("scores").get("Tom").await.ok()).await;
    strangers.iter().for_each(JoinHandle::abort);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_is_only_idle_loses_no_call() {
    let secrets = tempfile::tempdir().unwrap();
    let tokens = peanut_tests::token_in(secrets.path(), "app", "read = [\"*\"]")
        + &peanut_tests::token_in(secrets.path(), "operator", "admin = true");
    let admin = format!("127.0.0.1:{}", free_port());
    let server =
        node(&format!("idle_timeout = \"1s\"\nfirst_call_timeout = \"1s\"\nadmin = \"{admin}\"\n{tokens}"))
            .await;
    let connections = async || {
        let asked = peanut_tests::http_client().get(format!("http://{admin}/status"));
        let status = asked.bearer_auth("secret-of-the-operator").send().await.unwrap().text().await.unwrap();
        let status: serde_json::Value = serde_json::from_str(&status).unwrap();
        status["nodes"][0]["told"]["connections"].as_u64().unwrap()
    };
    let client = async |unary: bool| {
        let builder = Client::builder().nodes([server.addr()]).token("secret-of-the-app").deadline(PATIENCE);
        if unary { builder.unary() } else { builder }.build().await.unwrap()
    };
    let (unary, lanes) = (client(true).await, client(false).await);
    for _ in 0..3 {
        assert_eq!(unary.group("scores").get("Tom").await.unwrap().unwrap(), "630");
        assert_eq!(lanes.group("scores").get("Tom").await.unwrap().unwrap(), "630");
        lanes.probe().await;
        // An open lane is no idle connection; the others go.
        eventually("idle connections to go", async || (connections().await <= 2).then_some(())).await;
        assert!(connections().await >= 1, "the lane stays");
    }
    // Calls that come just when a connection is to go.
    for pause in (900..1100).step_by(10) {
        tokio::time::sleep(Duration::from_millis(pause)).await;
        assert_eq!(unary.group("scores").get("Tom").await.unwrap().unwrap(), "630");
    }
}
