//! Origins in trouble: connections that die, with a sign and without one, and origins that are down.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use peanut_client::{ErrorKind, Group};
use peanut_tests::{Database, Proxy};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use crate::loaders::{node, serve_loader};

pub(crate) async fn get(group: &Group, key: &str) -> String {
    let value = group.get(key).await.unwrap_or_else(|error| panic!("{key}: {error}"));
    String::from_utf8(value.unwrap_or_else(|| panic!("{key} is not found")).to_vec()).unwrap()
}

/// An HTTP/1.1 origin that answers every request with its path.
async fn http_origin() -> u16 {
    let answer = |request: axum::extract::Request| async move { request.uri().path().to_owned() };
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move { axum::serve(listener, axum::Router::new().fallback(answer)).await });
    port
}

/// A gRPC origin whose values are the keys.
async fn grpc_origin() -> u16 {
    serve_loader(crate::batches::Echo).await.0
}

/// Of the loaders here. A database opens connections one after the other, so that a busy machine needs some
/// time for six.
const TIMEOUT: &str = "4s";

/// Each kind of origin behind a proxy of its own, with a loader. The databases end with their handles.
async fn every_kind() -> (Vec<(&'static str, Arc<Proxy>, String)>, Vec<Database>) {
    let rows =
        "INSERT INTO t VALUES ('k1', 'v'), ('k2', 'v'), ('k3', 'v'), ('k4', 'v'), ('k5', 'v'), ('k6', 'v')";
    let postgres = Database::postgres(&["CREATE TABLE t (id text PRIMARY KEY, v text)", rows]).await;
    let mariadb = Database::mariadb(&["CREATE TABLE t (id varchar(9) PRIMARY KEY, v text)", rows]).await;
    let redis = Database::redis().await;
    let mut connection =
        redis::Client::open(redis.url()).unwrap().get_multiplexed_async_connection().await.unwrap();
    for n in 1..=6 {
        let _: () =
            redis::cmd("SET").arg(format!("k{n}")).arg("v").query_async(&mut connection).await.unwrap();
    }
    let sql = |database: &Database, proxy: &Proxy, parameter: &str| {
        let url = database.url_by(proxy.addr().port());
        format!(
            "kind = \"sql\"\nurl = \"{url}\"\nquery = \"SELECT v FROM t WHERE id = {parameter}\"\ntimeout = \"{TIMEOUT}\""
        )
    };
    let mut kinds = Vec::new();
    let proxy = Proxy::start(http_origin().await).await;
    let loader =
        format!("kind = \"http\"\nurl = \"http://{}/{{key}}\"\ntimeout = \"{TIMEOUT}\"", proxy.addr());
    kinds.push(("http", Arc::new(proxy), loader));
    let proxy = Proxy::start(grpc_origin().await).await;
    let loader = format!("kind = \"grpc\"\nurl = \"http://{}\"\ntimeout = \"{TIMEOUT}\"", proxy.addr());
    kinds.push(("grpc", Arc::new(proxy), loader));
    let proxy = Proxy::start(redis.port()).await;
    let loader = format!("kind = \"redis\"\nurl = \"redis://{}/0\"\ntimeout = \"{TIMEOUT}\"", proxy.addr());
    kinds.push(("redis", Arc::new(proxy), loader));
    let proxy = Proxy::start(postgres.port()).await;
    let loader = sql(&postgres, &proxy, "$1");
    kinds.push(("postgres", Arc::new(proxy), loader));
    let proxy = Proxy::start(mariadb.port()).await;
    let loader = sql(&mariadb, &proxy, "?");
    kinds.push(("mariadb", Arc::new(proxy), loader));
    (kinds, vec![postgres, mariadb, redis])
}

/// Loads that key six times at once, on connections of their own where the kind has such.
async fn at_once(group: &Group, keys: [&str; 6]) -> Vec<Result<Option<Bytes>, peanut_client::Error>> {
    futures_util::future::join_all(keys.map(|key| group.get(key))).await
}

const KEYS: [&str; 6] = ["k1", "k2", "k3", "k4", "k5", "k6"];

#[tokio::test(flavor = "multi_thread")]
async fn connections_that_swallow_everything_cost_the_loads_on_them_and_no_later_one() {
    let (kinds, _databases) = every_kind().await;
    // The loader's time runs out, or the load's, which the loader is not told.
    for (timeout, more) in [(TIMEOUT, ""), ("20s", "load_timeout = \"4s\"")] {
        for (kind, proxy, loader) in &kinds {
            let loader =
                loader.replace(&format!("timeout = \"{TIMEOUT}\""), &format!("timeout = \"{timeout}\""));
            let (_server, client) = node(&loader, more).await;
            let group = client.group("g");
            // Several connections, all of which fall silent.
            for found in at_once(&group, KEYS).await {
                found.unwrap_or_else(|error| panic!("{kind}: {error}"));
            }
            group.clear().await.unwrap();
            proxy.stall_present();
            let begun = peanut_tests::now();
            if let Err(error) = group.get("k1").await {
                assert_eq!(error.kind(), ErrorKind::Loader, "{kind}: {error}");
                let error = error.to_string();
                assert!(error.contains("answer within") || error.contains("timed out"), "{error}");
            }
            // The time-out, half a second for the database to say so, and a slow machine.
            assert!(begun.elapsed() < Duration::from_secs(15), "{kind}: {:?}", begun.elapsed());
            for found in at_once(&group, KEYS).await {
                found.unwrap_or_else(|error| panic!("{kind}, {more}, after one that failed: {error}"));
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn idle_connections_that_the_origin_has_closed_cost_no_load() {
    let (kinds, _databases) = every_kind().await;
    for (kind, proxy, loader) in kinds {
        let (_server, client) = node(&loader, "").await;
        let group = client.group("g");
        for round in 0..10 {
            for found in at_once(&group, KEYS).await {
                found.unwrap_or_else(|error| panic!("{kind}, {round}: {error}"));
            }
            group.clear().await.unwrap();
            proxy.cut_present();
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_origin_that_is_down_fails_at_once_and_is_asked_once_for_each_load() {
    let (kinds, _databases) = every_kind().await;
    for (kind, proxy, loader) in kinds {
        let (_server, client) = node(&loader, "breaker = false").await;
        let group = client.group("g");
        group.get("k1").await.unwrap();
        group.clear().await.unwrap();
        proxy.cut();
        let (before, begun) = (proxy.accepted(), peanut_tests::now());
        for _ in 0..20 {
            let error = group.get("k1").await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Loader, "{kind}: {error}");
        }
        assert!(begun.elapsed() < Duration::from_secs(10), "{kind}: {:?}", begun.elapsed());
        // Once more for the first, whose connection had answered.
        let asked = proxy.accepted() - before;
        assert!(asked <= 21, "{kind}: {asked} connections for 20 loads");
        proxy.mend();
        group.get("k1").await.unwrap_or_else(|error| panic!("{kind}, mended: {error}"));
    }
}

/// An origin that answers each connection's first request as if it would go on, and then does as it is told.
async fn http_origin_of_one_answer(
    then: fn(TcpStream) -> futures_util::future::BoxFuture<'static, ()>,
) -> (u16, Arc<AtomicU64>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (port, connections) = (listener.local_addr().unwrap().port(), Arc::new(AtomicU64::new(0)));
    let counted = connections.clone();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            counted.fetch_add(1, Ordering::Relaxed);
            tokio::spawn(async move {
                let mut request = vec![0; 4096];
                if stream.read(&mut request).await.is_ok() {
                    let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await;
                    then(stream).await;
                }
            });
        }
    });
    (port, connections)
}

#[tokio::test(flavor = "multi_thread")]
async fn an_http_origin_that_ends_connections_after_one_answer_costs_no_load() {
    let at_once = http_origin_of_one_answer(|stream| Box::pin(async move { drop(stream) })).await;
    let when_asked_again = http_origin_of_one_answer(|mut stream| {
        Box::pin(async move {
            let _ = stream.read(&mut [0; 4096]).await;
        })
    })
    .await;
    for (port, connections) in [at_once, when_asked_again] {
        let loader = format!("kind = \"http\"\nurl = \"http://127.0.0.1:{port}/{{key}}\"");
        let (_server, client) = node(&loader, "").await;
        for n in 0..100 {
            assert_eq!(get(&client.group("g"), &format!("k{n}")).await, "ok");
        }
        let connections = connections.load(Ordering::Relaxed);
        assert!(connections <= 101, "{connections} for 100 loads");
    }
}
