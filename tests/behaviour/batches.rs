//! Loads of many keys of which one is bad, or has a value that is too long, or which are too long together.

use bytes::Bytes;
use peanut_client::ErrorKind;
use peanut_proto::loader_v1::loader_server::Loader;
use peanut_proto::loader_v1::{Found, LoadRequest, LoadResponse, LoadResult, load_result};
use peanut_tests::Database;
use tonic::{Request, Response, Status};

use crate::loaders::{node, serve_loader};

#[tokio::test(flavor = "multi_thread")]
async fn a_bad_key_or_a_value_too_long_costs_only_itself_in_redis() {
    let database = Database::redis().await;
    let mut connection =
        redis::Client::open(database.url()).unwrap().get_multiplexed_async_connection().await.unwrap();
    let long = (8 << 20) + 1;
    for script in [
        "for n = 1, 20 do redis.call('SET', 'k' .. n, 'value ' .. n) end redis.call('SET', 'empty', '')"
            .to_owned(),
        "redis.call('LPUSH', 'list', 'x') redis.call('HSET', 'hash', 'a', 'b')".to_owned(),
        format!(
            "redis.call('SETRANGE', 'long', {}, 'x') redis.call('SETRANGE', 'longest', {}, 'x')",
            long - 1,
            long - 2
        ),
        "for n = 1, 12 do redis.call('SETRANGE', 'big' .. n, 5000000, 'x') end".to_owned(),
    ] {
        let _: () = redis::cmd("EVAL").arg(script).arg(0).query_async(&mut connection).await.unwrap();
    }
    let loader = format!("kind = \"redis\"\nurl = \"{}\"", database.url());
    let (_server, client) = node(&loader, "capacity = \"1GiB\"\nnegative_ttl = \"0s\"").await;
    let group = client.group("g");
    let keys = ["k1", "list", "k2", "long", "missing", "longest", "hash", "empty", "k3"];
    for _ in 0..2 {
        let mut together = group.get_many(keys).await.into_iter();
        for key in keys {
            group.delete(key).await.unwrap();
            let (one, found) = (group.get(key).await, together.next().unwrap());
            assert_eq!(one.is_ok(), found.is_ok(), "{key}: {one:?}, {found:?}");
            let Ok(found) = found else {
                let error = found.unwrap_err().to_string();
                assert!(
                    error.contains(if key == "long" { "8388608" } else { "WRONGTYPE" }),
                    "{key}: {error}"
                );
                continue;
            };
            assert_eq!(one.unwrap(), found, "{key}");
            match key {
                "missing" => assert_eq!(found, None),
                "empty" => assert_eq!(found.unwrap(), ""),
                "longest" => assert_eq!(found.unwrap().len(), long - 1),
                key => assert_eq!(found.unwrap(), key.replace('k', "value ")),
            }
        }
        group.clear().await.unwrap();
    }
    // Together more than one answer may have.
    let big: Vec<String> =
        (1..=12).map(|n| format!("big{n}")).chain((1..=20).map(|n| format!("k{n}"))).collect();
    let lengths: Vec<usize> =
        group.get_many(&big).await.into_iter().map(|value| value.unwrap().unwrap().len()).collect();
    assert_eq!(lengths[..12], [5_000_001; 12]);
    assert!(lengths[12..].iter().all(|length| *length < 9));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bad_key_or_a_value_too_long_costs_only_itself_in_sql() {
    let setup = [
        "CREATE TABLE t (id text PRIMARY KEY, v text)",
        "INSERT INTO t SELECT 'k' || n, 'value ' || n FROM generate_series(1, 50) n",
        "INSERT INTO t SELECT 'big' || n, repeat('x', 5000000) FROM generate_series(1, 10) n",
        "INSERT INTO t VALUES ('long', repeat('x', 8388609)), ('longest', repeat('x', 8388608))",
        "CREATE FUNCTION f(id text) RETURNS text LANGUAGE plpgsql AS \
         $$ BEGIN IF id = 'bad' THEN RAISE EXCEPTION 'not that one'; END IF; RETURN id; END $$",
    ];
    let postgres = Database::postgres(&setup).await;
    let mariadb = Database::mariadb(&[
        "CREATE TABLE t (id varchar(20) PRIMARY KEY, v longtext)",
        "INSERT INTO t SELECT CONCAT('k', seq), CONCAT('value ', seq) FROM seq_1_to_50",
        "INSERT INTO t SELECT CONCAT('big', seq), REPEAT('x', 5000000) FROM seq_1_to_10",
        "INSERT INTO t VALUES ('long', REPEAT('x', 8388609)), ('longest', REPEAT('x', 8388608))",
    ])
    .await;
    let loaders = [
        (postgres.url(), "$1", "id = ANY(SELECT f(k) FROM unnest($1) k)"),
        (mariadb.url(), "?", "id IN (?)"),
    ];
    for (url, one, many) in loaders {
        let one = if one == "?" { one.to_owned() } else { format!("f({one})") };
        let loader = format!(
            "kind = \"sql\"\nurl = \"{url}\"\nquery = \"SELECT v FROM t WHERE id = {one}\"\n\
             batch_query = \"SELECT id, v FROM t WHERE {many}\"\ntimeout = \"10s\""
        );
        let (_server, client) = node(&loader, "capacity = \"1GiB\"\nload_timeout = \"30s\"").await;
        let group = client.group("g");
        let keys: Vec<String> = (1..=10)
            .flat_map(|n| [format!("k{n}"), format!("big{n}")])
            .chain(["long", "bad", "longest", "missing"].map(str::to_owned))
            .collect();
        let found = group.get_many(&keys).await;
        for (key, found) in keys.iter().zip(found) {
            match &**key {
                "long" => assert!(found.unwrap_err().to_string().contains("8388608"), "{url}"),
                "bad" if one != "?" => assert!(found.unwrap_err().to_string().contains("not that one")),
                "bad" | "missing" => assert_eq!(found.unwrap(), None),
                "longest" => assert_eq!(found.unwrap().unwrap().len(), 8 << 20),
                key if key.starts_with("big") => assert_eq!(found.unwrap().unwrap().len(), 5_000_000),
                key => assert_eq!(found.unwrap().unwrap(), key.replace('k', "value ")),
            }
        }
    }
}

/// Gives each key as its own value; of `big` ones a longer value than four fit into an answer, of `long` ones
/// more than a value may have. It takes no key that begins with `bad`, nor others with it.
#[derive(Clone)]
pub(crate) struct Echo;

#[tonic::async_trait]
impl Loader for Echo {
    async fn load(&self, request: Request<LoadRequest>) -> Result<Response<LoadResponse>, Status> {
        let keys = request.into_inner().keys;
        if keys.iter().any(|key| key.starts_with(b"slow")) {
            tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        }
        if keys.iter().any(|key| key.starts_with(b"bad") || key.starts_with(b"slow-bad")) {
            return Err(Status::invalid_argument("there is a bad one among them"));
        }
        let value = |key: &Bytes| match key.first() {
            _ if key.starts_with(b"big") => vec![b'x'; 5_000_000].into(),
            _ if key.starts_with(b"long") => vec![b'x'; (8 << 20) + 1].into(),
            _ if key.starts_with(b"huge") => vec![b'x'; 40 << 20].into(),
            _ => key.clone(),
        };
        let found = |key| load_result::Result::Found(Found { value: value(key), ttl_ms: None });
        let results = keys.iter().map(|key| LoadResult { result: Some(found(key)) }).collect();
        Ok(Response::new(LoadResponse { results }))
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bad_key_or_a_value_too_long_costs_only_itself_in_a_service() {
    let (port, serving) = serve_loader(Echo).await;
    let (_server, client) =
        node(&format!("kind = \"grpc\"\nurl = \"http://127.0.0.1:{port}\""), "capacity = \"1GiB\"").await;
    let group = client.group("g");
    let keys: Vec<String> = (1..=10)
        .flat_map(|n| [format!("k{n}"), format!("big{n}")])
        .chain(["long", "bad", "huge"].map(str::to_owned))
        .collect();
    for (key, found) in keys.iter().zip(group.get_many(&keys).await) {
        match &**key {
            "long" => assert_eq!(found.unwrap_err().kind(), ErrorKind::TooLarge),
            "bad" => assert!(found.unwrap_err().to_string().contains("a bad one")),
            "huge" => assert!(found.unwrap_err().to_string().contains("too large")),
            key if key.starts_with("big") => assert_eq!(found.unwrap().unwrap().len(), 5_000_000),
            key => assert_eq!(found.unwrap().unwrap(), key),
        }
    }
    serving.abort();
}

/// One caller's many bad keys take all the time of the load that they are in with another's good one.
#[tokio::test(flavor = "multi_thread")]
async fn many_bad_keys_cost_no_good_one_and_do_not_open_the_breaker() {
    let (port, serving) = serve_loader(Echo).await;
    let (_server, client) = node(
        &format!("kind = \"grpc\"\nurl = \"http://127.0.0.1:{port}\""),
        "load_timeout = \"4s\"\nmax_loads = 2",
    )
    .await;
    let group = client.group("g");
    for round in 0..3 {
        let bad = (0..200).map(|n| format!("slow-bad-{round}-{n}"));
        let keys: Vec<String> = [format!("good-{round}")].into_iter().chain(bad).collect();
        let mut found = group.get_many(&keys).await.into_iter();
        assert_eq!(found.next().unwrap().unwrap().unwrap(), *keys[0], "it was found long before the end");
        assert!(found.all(|found| found.is_err_and(|error| error.kind() == ErrorKind::Loader)));
    }
    assert_eq!(group.get("k").await.unwrap().unwrap(), "k", "the origin is asked as ever");
    serving.abort();
}
