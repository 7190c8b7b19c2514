//! One load per missing key in the whole fleet.

use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use peanut_client::registry::LocalRegistry;
use peanut_client::{Client, ErrorKind};
use peanut_server::testing::TestFleet;
use peanut_server::{Group, Loaded, LoaderError, Server, loader_fn};
use peanut_tests::{Etcd, Origin, group_from};
use tokio::net::TcpListener;
use tokio_util::task::AbortOnDropHandle;

use crate::fleet;

struct Reader {
    child: Child,
    out: BufReader<ChildStdout>,
}

impl Reader {
    fn start(etcd: &Etcd, key: &str, count: usize) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_reader"))
            .args([&etcd.endpoint(), "scores", key, &count.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut out = BufReader::new(child.stdout.take().unwrap());
        let mut ready = String::new();
        out.read_line(&mut ready).unwrap();
        assert_eq!(ready, "ready\n");
        Reader { child, out }
    }

    fn go(&mut self) {
        self.child.stdin.take().unwrap().write_all(b"go\n").unwrap();
    }

    fn result(mut self) -> String {
        let mut line = String::new();
        self.out.read_line(&mut line).unwrap();
        assert!(self.child.wait().unwrap().success());
        line
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn four_hundred_gets_of_one_cold_key_from_two_processes_are_one_load() {
    let origin = Origin::start(Duration::from_millis(500)).await;
    let (etcd, _servers) = fleet(3, &group_from("scores", origin.url(), "")).await;
    for key in ["cold", "missing"] {
        let mut readers = [Reader::start(&etcd, key, 200), Reader::start(&etcd, key, 200)];
        readers.iter_mut().for_each(Reader::go);
        for reader in readers {
            let result = tokio::task::spawn_blocking(|| reader.result()).await.unwrap();
            assert_eq!(result, "200 0 1\n", "answers, errors, different values of {key}");
        }
        assert_eq!(origin.asked_for(key), 1, "loads of {key} in the whole fleet");
    }
}

struct OneNode {
    client: Client,
    loads: Arc<AtomicU64>,
    _server: AbortOnDropHandle<()>,
}

/// A node in this process whose loader does as the key says, over a real socket.
async fn one_node(load_timeout: Duration) -> OneNode {
    let loads = Arc::new(AtomicU64::new(0));
    let count = loads.clone();
    let loader = loader_fn(move |key| {
        let count = count.clone();
        async move {
            let load = count.fetch_add(1, Ordering::SeqCst) + 1;
            match &key[..] {
                b"panic" => panic!("a bug in the loader"),
                b"asleep" => tokio::time::sleep(Duration::from_secs(3600)).await,
                // Blocks its thread, as a loader that should be async but is not.
                b"blocked" => std::thread::sleep(Duration::from_secs(3)),
                b"slow" => tokio::time::sleep(Duration::from_millis(700)).await,
                b"missing" => return Ok(Loaded::not_found()),
                b"broken" => return Err("no such table: scores".into()),
                _ => {}
            }
            Ok::<_, LoaderError>(Loaded::found(load.to_string()))
        }
    });
    let group = Group::new("g", loader)
        .load_timeout(load_timeout)
        .negative_ttl(Duration::from_secs(4))
        .ttl_jitter(0.0);
    let registry = LocalRegistry::new();
    let server = Server::builder().group(group).registry(registry.clone()).build().unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let serving = tokio::spawn(async move { server.run(listener, std::future::pending()).await.unwrap() });
    let builder = Client::builder().registry(registry).deadline(Duration::from_secs(20));
    OneNode { client: builder.build().await.unwrap(), loads, _server: AbortOnDropHandle::new(serving) }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_loader_that_panics_or_hangs_gives_every_waiter_an_error_and_frees_the_key() {
    let node = one_node(Duration::from_secs(1)).await;
    let group = node.client.group("g");
    let mut loads = 0;
    for (key, names) in [("panic", "panicked: a bug"), ("asleep", "within 1s"), ("blocked", "within 1s")] {
        for _again in 0..2 {
            let begun = peanut_tests::now();
            let waiters = futures_util::future::join_all((0..50).map(|_| group.get(key))).await;
            for waiter in waiters {
                let error = waiter.unwrap_err();
                assert_eq!(error.kind(), ErrorKind::Loader);
                assert!(error.to_string().contains(names) && !error.is_retryable(), "{error}");
            }
            assert!(begun.elapsed() < Duration::from_secs(15), "in time, not at the client's deadline");
            // Gets that arrive after a panic load again, so there may be more than one; the flight's own
            // tests count exactly.
            let before = std::mem::replace(&mut loads, node.loads.load(Ordering::SeqCst));
            assert!(loads > before, "{key} is loaded again");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_caller_that_gives_up_does_not_disturb_the_others() {
    let node = one_node(Duration::from_secs(10)).await;
    let group = node.client.group("g");
    let first = tokio::spawn({
        let group = group.clone();
        async move { group.get("slow").await }
    });
    peanut_tests::eventually("the load to begin", async || {
        (node.loads.load(Ordering::SeqCst) == 1).then_some(())
    })
    .await;
    let second = tokio::spawn({
        let group = group.clone();
        async move { group.get("slow").await }
    });
    first.abort();
    assert!(first.await.unwrap_err().is_cancelled());
    assert_eq!(second.await.unwrap().unwrap().unwrap(), "1");
    assert_eq!(node.loads.load(Ordering::SeqCst), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn not_found_is_none_and_remembered_for_the_negative_ttl() {
    let node = one_node(Duration::from_secs(1)).await;
    let group = node.client.group("g");
    let answers = futures_util::future::join_all((0..20).map(|_| group.get("missing"))).await;
    assert!(answers.into_iter().all(|answer| answer.unwrap().is_none()));
    let stats = node.client.stats();
    assert_eq!((stats.not_found, stats.errors), (20, 0));
    let first = node.loads.load(Ordering::SeqCst);
    assert_eq!(first, 1);
    tokio::time::sleep(Duration::from_millis(4100)).await;
    assert_eq!(group.get("missing").await.unwrap(), None);
    assert_eq!(node.loads.load(Ordering::SeqCst), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_loaders_error_is_its_own_message_and_is_asked_for_once() {
    let node = one_node(Duration::from_secs(1)).await;
    let error = node.client.group("g").get("broken").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Loader);
    assert!(error.to_string().ends_with("no such table: scores"), "{error}");
    assert_eq!(node.loads.load(Ordering::SeqCst), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn get_many_answers_in_order_and_each_key_for_itself() {
    let node = one_node(Duration::from_secs(1)).await;
    let group = node.client.group("g");
    let answers = group.get_many(["a", "missing", "broken", "a", ""]).await;
    assert!(answers[0].as_ref().unwrap().is_some());
    assert_eq!(answers[0].as_ref().unwrap(), answers[3].as_ref().unwrap());
    assert_eq!(answers[1].as_ref().unwrap(), &None);
    assert_eq!(answers[2].as_ref().unwrap_err().kind(), ErrorKind::Loader);
    assert_eq!(answers[4].as_ref().unwrap_err().kind(), ErrorKind::InvalidArgument);
    assert!(group.get_many::<&str>([]).await.is_empty());
}

/// Gets that share an operation, since its frame has not left when the second comes: the node goes by the
/// first one's deadline. The second has the owner's load still, and goes nowhere else.
#[tokio::test(flavor = "multi_thread")]
async fn a_get_that_shares_the_operation_of_one_with_less_time_asks_no_other_node() {
    let loads = Arc::new(AtomicU64::new(0));
    let count = loads.clone();
    let loader = loader_fn(move |_| {
        count.fetch_add(1, Ordering::SeqCst);
        async {
            tokio::time::sleep(Duration::from_secs(5)).await;
            Ok::<_, LoaderError>(Loaded::from("late"))
        }
    });
    let fleet = TestFleet::start(2, [Group::new("g", loader)]).await.unwrap();
    let client = Client::builder().registry(fleet.registry()).build().await.unwrap();
    for key in ["a", "b", "c", "d"] {
        let get = |ms| {
            let group = client.group("g").with_deadline(Duration::from_millis(ms));
            async move { group.get(key).await.unwrap_err() }
        };
        let (first, second) = futures_util::future::join(get(1800), get(2000)).await;
        assert_eq!([first.kind(), second.kind()], [ErrorKind::DeadlineExceeded; 2], "{first} {second}");
    }
    assert_eq!(loads.load(Ordering::SeqCst), 4, "one for each key");
}
