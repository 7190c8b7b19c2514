//! Real databases, and a service of the user's, behind a fleet.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use peanut_client::{Client, ErrorKind, Source};
use peanut_proto::loader_v1::loader_server::{Loader, LoaderServer};
use peanut_proto::loader_v1::{Found, LoadRequest, LoadResponse, LoadResult, NotFound, load_result};
use peanut_tests::{Database, ServerProcess, eventually};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tonic::{Request, Response, Status};

use crate::SERVER;

/// One node with a group `g` of that loader, and a client of it.
pub(crate) async fn node(loader: &str, more: &str) -> (ServerProcess, Client) {
    let port = peanut_tests::free_port();
    let group = format!("[[group]]\nname = \"g\"\n{more}\n[group.loader]\n{loader}\n");
    let config = format!("listen = \"127.0.0.1:{port}\"\nnodes = [\"127.0.0.1:{port}\"]\n{group}");
    let server = ServerProcess::start_with(SERVER, &config).await;
    let client = Client::builder().nodes([server.addr()]).deadline(std::time::Duration::from_secs(10));
    (server, client.build().await.unwrap())
}

/// Serves a loader's service. Gives its port, and the task that does.
pub(crate) async fn serve_loader(
    service: impl Loader,
) -> (u16, JoinHandle<Result<(), tonic::transport::Error>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let serving = tonic::transport::Server::builder().add_service(LoaderServer::new(service));
    let incoming = tonic::transport::server::TcpIncoming::from(listener);
    (port, tokio::spawn(async move { serving.serve_with_incoming(incoming).await }))
}

/// What `get` and `get_many` give for keys, which has to be the same.
async fn values(client: &Client, keys: &[&str]) -> HashMap<String, Option<String>> {
    let group = client.group("g");
    let text = |value: Option<Bytes>| value.map(|value| String::from_utf8(value.to_vec()).unwrap());
    let many = group.get_many(keys).await;
    group.clear().await.unwrap();
    let mut found = HashMap::new();
    for (key, value) in keys.iter().zip(many) {
        let one = text(group.get(key).await.unwrap_or_else(|error| panic!("{key}: {error}")));
        assert_eq!(one, text(value.unwrap()), "{key}");
        found.insert((*key).to_owned(), one);
    }
    found
}

fn is(found: &HashMap<String, Option<String>>, expected: &[(&str, Option<&str>)]) {
    for (key, value) in expected {
        assert_eq!(found[*key].as_deref(), *value, "{key}");
    }
}

const TYPES: [&str; 2] = [
    "CREATE TABLE t (id int PRIMARY KEY, name text, i bigint, f double precision, b bool, j jsonb, y bytea, n numeric)",
    "INSERT INTO t SELECT n, 'name ' || n, n * 10, n + 0.5, n % 2 = 0, '{\"n\": 1}', 'bytes', n FROM generate_series(1, 1000) n",
];

#[tokio::test(flavor = "multi_thread")]
async fn postgres_one_query_for_many_keys_every_common_type_and_errors_that_say_what_to_do() {
    let mut database = Database::postgres(&TYPES).await;
    let url = database.url().to_owned();
    let loader = |column: &str| {
        format!(
            "kind = \"sql\"\nurl = \"{url}\"\nquery = \"SELECT {column} FROM t WHERE id = $1::int\"\n\
             batch_query = \"SELECT id::text, {column} FROM t WHERE id = ANY($1::int[])\""
        )
    };
    let loaders = [
        ("name", Some("name 7")),
        ("i", Some("70")),
        ("f", Some("7.5")),
        ("b", Some("false")),
        ("j", Some("{\"n\": 1}")),
        ("y", Some("bytes")),
        ("n::text", Some("7")),
        ("NULL::text", None),
    ]
    .map(|(column, value)| (loader(column), value));
    for (loader, expected) in loaders {
        let (_server, client) = node(&loader, "").await;
        is(&values(&client, &["7", "5000"]).await, &[("7", expected), ("5000", None)]);
    }

    // A hundred cold keys are one query.
    let (_server, client) = node(&loader("name"), "").await;
    let keys: Vec<String> = (1..=100).map(|n| n.to_string()).collect();
    let asked = |database: &mut Database| {
        let log = database.process().unwrap().log();
        log.iter().filter(|line| line.contains("= ANY(") && line.contains("execute")).count()
    };
    let before = asked(&mut database);
    let answers = client.group("g").get_many(&keys).await;
    for (key, answer) in keys.iter().zip(answers) {
        assert_eq!(answer.unwrap().unwrap(), format!("name {key}"));
    }
    let after =
        eventually("the database's log", async || Some(asked(&mut database)).filter(|after| *after > before));
    assert_eq!(after.await - before, 1);

    // One key that is no number does not spoil the others.
    let answers = client.group("g").get_many(["201", "x", "202"]).await;
    assert!(answers[0].is_ok() && answers[2].is_ok());
    let error = answers[1].as_ref().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Loader);
    assert!(error.to_string().contains("invalid input syntax"), "{error}");

    let (_server, numeric) = node(&loader("n"), "").await;
    let error = numeric.group("g").get("1").await.unwrap_err().to_string();
    assert!(error.contains("NUMERIC") && error.contains("cast it to text"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn postgres_stopped_and_started_again_stale_answers_meanwhile_and_a_slow_statement_ends() {
    let mut database = Database::postgres(&TYPES).await;
    let url = database.url();
    let loader = format!(
        "kind = \"sql\"\nurl = \"{url}\"\nquery = \"SELECT name FROM t WHERE id = $1::int\"\ntimeout = \"500ms\""
    );
    let (_server, client) = node(&loader, "ttl = \"200ms\"\nttl_jitter = 0.0\nstale_if_error = \"1m\"").await;
    let group = client.group("g");
    let loaded = group.get_detailed("1").await.unwrap();
    assert_eq!((loaded.source, loaded.value.as_deref()), (Source::Loaded, Some(&b"name 1"[..])));
    assert_eq!(loaded.node, client.nodes()[0].id);
    assert!(!loaded.failover && loaded.ttl.as_millis() <= 200);
    assert_eq!(group.get_detailed("5000").await.unwrap().source, Source::NotFound);

    database.stop();
    let stale = eventually("a stale answer", async || {
        let answer = group.get_detailed("1").await.unwrap();
        (answer.source == Source::Stale).then_some(answer)
    });
    let stale = stale.await;
    assert_eq!((stale.value.as_deref(), stale.ttl.as_millis()), (Some(&b"name 1"[..]), 0));
    assert!(stale.age.as_millis() >= 200);
    assert_eq!(group.get("2").await.unwrap_err().kind(), ErrorKind::Loader);
    assert!(client.stats().stale >= 1);

    database.start_again().await;
    eventually("it to be loaded again", async || {
        (group.get_detailed("1").await.unwrap().source == Source::Loaded).then_some(())
    })
    .await;

    let slow = loader.replace("SELECT name FROM t WHERE", "SELECT pg_sleep(20)::text FROM t WHERE");
    let (_server, client) = node(&slow, "").await;
    let error = client.group("g").get("1").await.unwrap_err();
    assert!(error.to_string().contains("statement timeout"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn mariadb_many_keys_types_and_a_slow_statement() {
    let setup = [
        "CREATE TABLE t (name VARCHAR(20) PRIMARY KEY, s TEXT, i BIGINT UNSIGNED, d DECIMAL(10,2), f DOUBLE, y BLOB, at DATETIME, \
         u TINYINT(1) UNSIGNED, n TINYINT(1), o BOOLEAN, p TINYINT UNSIGNED)",
        "INSERT INTO t VALUES ('Tom', '630', 18446744073709551615, 1.50, 2.5, x'414243', '2026-01-02 03:04:05', \
         200, -5, TRUE, 255), ('Jack', '589', 1, 2, 3, 'x', NULL, 1, 1, FALSE, 1)",
    ];
    let database = Database::mariadb(&setup).await;
    let loader = |column: &str| {
        let url = database.url();
        format!(
            "kind = \"sql\"\nurl = \"{url}\"\nquery = \"SELECT {column} FROM t WHERE name = ?\"\n\
             batch_query = \"SELECT name, {column} FROM t WHERE name IN (?)\"\ntimeout = \"1s\""
        )
    };
    for (column, value) in [
        ("s", "630"),
        ("i", "18446744073709551615"),
        ("d", "1.50"),
        ("f", "2.5"),
        ("y", "ABC"),
        ("u", "200"),
        ("n", "-5"),
        ("o", "1"),
        ("p", "255"),
        ("CAST(at AS CHAR)", "2026-01-02 03:04:05"),
    ] {
        let (_server, client) = node(&loader(column), "").await;
        is(&values(&client, &["Tom", "Sam"]).await, &[("Tom", Some(value)), ("Sam", None)]);
    }
    // Its collation takes these for the same; one by one and together the answers are.
    let (_server, client) = node(&loader("s"), "").await;
    is(&values(&client, &["tom", "Jack", "Sam"]).await, &[("tom", Some("630")), ("Jack", Some("589"))]);
    let (_server, client) = node(&loader("at"), "").await;
    let error = client.group("g").get("Tom").await.unwrap_err().to_string();
    assert!(error.contains("cast it to char"), "{error}");
    let (_server, client) = node(&loader("SLEEP(20)"), "").await;
    let error = client.group("g").get("Tom").await.unwrap_err().to_string();
    assert!(error.contains("max_statement_time"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn redis_get_and_mget_and_a_server_that_comes_back() {
    let mut database = Database::redis().await;
    let fill = async |database: &Database| {
        let client = redis::Client::open(database.url()).unwrap();
        let mut connection = client.get_multiplexed_async_connection().await.unwrap();
        for (key, value) in [("score:Tom", "630"), ("score:Jack", "589")] {
            let _: () = redis::cmd("SET").arg(key).arg(value).query_async(&mut connection).await.unwrap();
        }
        let _: () =
            redis::cmd("LPUSH").arg("score:list").arg("x").query_async(&mut connection).await.unwrap();
    };
    fill(&database).await;
    let url = database.url();
    let loader = format!("kind = \"redis\"\nurl = \"{url}\"\nkey = \"score:{{key}}\"\ntimeout = \"500ms\"");
    let (_server, client) = node(&loader, "negative_ttl = \"0s\"").await;
    let expected = [("Tom", Some("630")), ("Jack", Some("589")), ("Sam", None)];
    is(&values(&client, &["Tom", "Jack", "Sam"]).await, &expected);
    let error = client.group("g").get("list").await.unwrap_err();
    assert!(error.to_string().contains("WRONGTYPE"), "{error}");

    client.group("g").clear().await.unwrap();
    database.stop();
    assert_eq!(client.group("g").get("Tom").await.unwrap_err().kind(), ErrorKind::Loader);
    database.start_again().await;
    fill(&database).await;
    eventually("the loader to connect again", async || {
        client.group("g").get("Tom").await.ok().filter(|value| value.as_deref() == Some(b"630"))
    })
    .await;
}

/// Knows scores, forgets who begins with an `m`, and fails for `bad`.
#[derive(Clone, Default)]
struct Scores {
    asked: Arc<Mutex<Vec<usize>>>,
}

#[tonic::async_trait]
impl Loader for Scores {
    async fn load(&self, request: Request<LoadRequest>) -> Result<Response<LoadResponse>, Status> {
        let LoadRequest { group, keys } = request.into_inner();
        self.asked.lock().unwrap().push(keys.len());
        if keys.iter().any(|key| key == "down") {
            return Err(Status::unavailable("closed on Sundays"));
        }
        let result = |key: &Bytes| match key.first() {
            Some(b'm') => load_result::Result::NotFound(NotFound {}),
            Some(b'b') => load_result::Result::Error("a bad one".to_owned()),
            _ => {
                let value = [group.as_bytes(), b" of ", key].concat().into();
                load_result::Result::Found(Found { value, ttl_ms: key.starts_with(b"short").then_some(50) })
            }
        };
        let results = keys.iter().map(|key| LoadResult { result: Some(result(key)) }).collect();
        Ok(Response::new(LoadResponse { results }))
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_of_the_users_loads_many_keys_in_one_call() {
    let service = Scores::default();
    let (port, serving) = serve_loader(service.clone()).await;
    let (_server, client) = node(&format!("kind = \"grpc\"\nurl = \"http://127.0.0.1:{port}\""), "").await;
    let group = client.group("g");
    is(&values(&client, &["Tom", "missing"]).await, &[("Tom", Some("g of Tom")), ("missing", None)]);
    service.asked.lock().unwrap().clear();
    let answers = group.get_many((0..100).map(|n| format!("k{n}"))).await;
    assert!(answers.iter().all(Result::is_ok));
    assert_eq!(*service.asked.lock().unwrap(), [100]);
    let error = group.get("bad").await.unwrap_err();
    assert_eq!((error.kind(), error.to_string().contains("a bad one")), (ErrorKind::Loader, true), "{error}");
    let error = group.get("down").await.unwrap_err();
    assert!(error.to_string().contains("closed on Sundays"), "{error}");
    assert!(group.get_detailed("short").await.unwrap().ttl.as_millis() <= 50);
    serving.abort();
}
