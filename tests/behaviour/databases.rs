//! Databases that are behind a pooler, have limits of their own, change their tables, or restart.

use std::time::Duration;

use bytes::Bytes;
use peanut_client::{Client, Group};
use peanut_tests::{Database, PgBouncer, ServerProcess, eventually, free_port};

use crate::SERVER;
use crate::loaders::node;
use crate::origins::get;

/// Two nodes with these groups, each asking the database at `url` with a query and a batch query of its own,
/// and a client of them.
async fn two_nodes(url: &str, columns: &[&str], more: &str) -> (Vec<ServerProcess>, Client) {
    let ports = [free_port(), free_port()];
    let addrs = ports.map(|port| format!("127.0.0.1:{port}"));
    let groups: String = columns
        .iter()
        .map(|column| {
            format!(
                "[[group]]\nname = \"{column}\"\n[group.loader]\nkind = \"sql\"\nurl = \"{url}\"\n{more}\n\
                 query = \"SELECT {column} FROM t WHERE id = $1::int\"\n\
                 batch_query = \"SELECT id::text, {column} FROM t WHERE id = ANY($1::int[])\"\n"
            )
        })
        .collect();
    let mut servers = Vec::new();
    for addr in &addrs {
        let config = format!("listen = \"{addr}\"\nnodes = {addrs:?}\n{groups}");
        servers.push(ServerProcess::start_with(SERVER, &config).await);
    }
    let client = Client::builder().nodes(addrs).deadline(Duration::from_secs(10)).build().await.unwrap();
    (servers, client)
}

const TABLE: [&str; 2] = [
    "CREATE TABLE t (id int PRIMARY KEY, a text, b text)",
    "INSERT INTO t SELECT n, 'a of ' || n, 'b of ' || n FROM generate_series(1, 1000) n",
];

#[tokio::test(flavor = "multi_thread")]
async fn behind_pgbouncer_two_nodes_and_two_groups_have_their_own_answers() {
    let database = Database::postgres(&TABLE).await;
    for settings in
        ["pool_mode = transaction", "pool_mode = transaction\ndefault_pool_size = 2", "pool_mode = session"]
    {
        let pooler = PgBouncer::start(&database, settings).await;
        // As many connections as session pooling has for both groups of both nodes.
        let more = "max_connections = 4";
        let (_servers, client) = two_nodes(&database.url_by(pooler.port()), &["a", "b"], more).await;
        let mut tasks = tokio::task::JoinSet::new();
        for at in 0..8_u32 {
            let client = client.clone();
            tasks.spawn(async move {
                for n in (1 + at..=400).step_by(8) {
                    for name in ["a", "b"] {
                        assert_eq!(get(&client.group(name), &n.to_string()).await, format!("{name} of {n}"));
                    }
                }
                let keys: Vec<String> = (500 + at * 50..550 + at * 50).map(|n| n.to_string()).collect();
                for name in ["a", "b"] {
                    for (key, value) in keys.iter().zip(client.group(name).get_many(&keys).await) {
                        assert_eq!(value.unwrap().unwrap(), format!("{name} of {key}"));
                    }
                }
            });
        }
        while let Some(done) = tasks.join_next().await {
            done.unwrap();
        }
        let log = pooler.log();
        assert!(
            !log.iter().any(|line| line.contains("ERROR") || line.contains("WARNING")),
            "{settings}: {log:?}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn behind_pgbouncer_a_slow_statement_ends_at_the_database_and_others_keep_their_limits() {
    let database = Database::postgres(&TABLE).await;
    let pooler = PgBouncer::start(&database, "pool_mode = transaction\ndefault_pool_size = 1").await;
    let url = database.url_by(pooler.port());
    let loader = format!(
        "kind = \"sql\"\nurl = \"{url}\"\ntimeout = \"500ms\"\n\
         query = \"SELECT CASE WHEN $1 = 'slow' THEN pg_sleep(60)::text WHEN $1 = 'zone' THEN current_setting('TimeZone') \
         ELSE current_setting('statement_timeout') END\""
    );
    let (_server, client) = node(&loader, "").await;
    assert_eq!(get(&client.group("g"), "limit").await, "500ms");
    assert_eq!(get(&client.group("g"), "zone").await, "UTC");
    let error = client.group("g").get("slow").await.unwrap_err().to_string();
    assert!(error.contains("statement timeout"), "{error}");
    // The one server connection is free again, and its next user has no limit of ours.
    let (_server, other) = node(&loader.replace("500ms", "20s"), "").await;
    assert_eq!(get(&other.group("g"), "limit").await, "20s");
    let limit: (String,) = {
        use sqlx::Connection as _;
        let mut connection = sqlx::PgConnection::connect(database.url()).await.unwrap();
        let active = "SELECT count(*)::text FROM pg_stat_activity WHERE query LIKE '%pg_sleep%' AND state = 'active' \
                      AND pid <> pg_backend_pid()";
        sqlx::query_as(active).fetch_one(&mut connection).await.unwrap()
    };
    assert_eq!(limit.0, "0", "the slow statement has ended");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stricter_limit_of_the_role_holds_and_a_laxer_one_gives_way() {
    let database = Database::postgres(&[
        "CREATE ROLE strict LOGIN",
        "ALTER ROLE strict SET statement_timeout = '200ms'",
        "CREATE ROLE lax LOGIN",
        "ALTER ROLE lax SET statement_timeout = '2h'",
    ])
    .await;
    for (role, limit) in [("peanut", "1s"), ("strict", "200ms"), ("lax", "1s")] {
        let url = database.url().replace("peanut@", &format!("{role}@"));
        let query = "SELECT current_setting('statement_timeout') || $1";
        let loader = format!("kind = \"sql\"\nurl = \"{url}\"\nquery = \"{query}\"\ntimeout = \"1s\"");
        let (_server, client) = node(&loader, "").await;
        assert_eq!(get(&client.group("g"), ".").await, format!("{limit}."), "{role}");
    }
}

/// Reads a key that is not cached, until the database's change is there.
async fn fresh(group: &Group, key: &str) -> Result<Option<Bytes>, String> {
    group.delete(key).await.unwrap();
    group.get(key).await.map_err(|error| error.to_string())
}

#[tokio::test(flavor = "multi_thread")]
async fn postgres_tables_change_while_a_node_runs() {
    let database = Database::postgres(&[
        "CREATE TABLE t (id int PRIMARY KEY, v int)",
        "INSERT INTO t VALUES (1, 7), (2, 8)",
    ])
    .await;
    let pooler = PgBouncer::start(&database, "pool_mode = transaction").await;
    let mut nodes = Vec::new();
    for port in [database.port(), pooler.port()] {
        let loader = format!(
            "kind = \"sql\"\nurl = \"{}\"\nquery = \"SELECT v FROM t WHERE id = $1::int\"\n\
             batch_query = \"SELECT id::text, v FROM t WHERE id = ANY($1::int[])\"",
            database.url_by(port)
        );
        nodes.push(node(&loader, "").await);
    }
    for (change, expected) in [
        ("SELECT 1", Ok("7")),
        ("ALTER TABLE t ALTER v TYPE bigint", Ok("7")),
        ("ALTER TABLE t ALTER v TYPE text USING 'x' || v", Ok("x7")),
        ("ALTER TABLE t ADD extra text; ALTER TABLE t DROP extra", Ok("x7")),
        (
            "DROP TABLE t; CREATE TABLE t (v float8, id bigint); INSERT INTO t VALUES (1.5, 1), (2.5, 2)",
            Ok("1.5"),
        ),
        ("CREATE TYPE mood AS ENUM ('ok'); ALTER TABLE t ALTER v TYPE mood USING 'ok'", Ok("ok")),
        ("ALTER TABLE t ALTER v TYPE mood[] USING ARRAY['ok'::mood]", Err("cast it to text")),
        ("ALTER TABLE t ALTER v TYPE uuid USING gen_random_uuid()", Err("cast it to text")),
        ("ALTER TABLE t ALTER v TYPE bytea USING '\\x41'::bytea", Ok("A")),
        ("DROP TABLE t", Err("does not exist")),
        ("CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t VALUES (1, 'new'), (2, 'x')", Ok("new")),
    ] {
        database.run::<sqlx::Postgres>(&[change]).await;
        for (_, client) in &nodes {
            let group = client.group("g");
            for round in 0..3 {
                let one = fresh(&group, "1").await;
                group.delete_many(["1", "2"]).await.into_iter().for_each(|done| done.unwrap());
                let many = group.get_many(["1", "2"]).await.swap_remove(0).map_err(|error| error.to_string());
                for found in [one, many] {
                    match (found, expected) {
                        (Ok(value), Ok(expected)) => {
                            assert_eq!(value.unwrap(), expected, "{change}, {round}")
                        }
                        (Err(error), Err(expected)) => assert!(error.contains(expected), "{change}: {error}"),
                        (found, _) => panic!("{change}, {round}: {found:?}"),
                    }
                }
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn mariadb_tables_change_while_a_node_runs() {
    let database = Database::mariadb(&[
        "CREATE TABLE t (id int PRIMARY KEY, v int)",
        "INSERT INTO t VALUES (1, 7), (2, 8)",
    ])
    .await;
    let loader = format!(
        "kind = \"sql\"\nurl = \"{}\"\nquery = \"SELECT v FROM t WHERE id = ?\"\n\
         batch_query = \"SELECT id, v FROM t WHERE id IN (?)\"",
        database.url()
    );
    let (_server, client) = node(&loader, "").await;
    let group = client.group("g");
    for (change, expected) in [
        ("SELECT 1", "7"),
        ("ALTER TABLE t MODIFY v bigint", "7"),
        ("ALTER TABLE t MODIFY v varchar(20)", "7"),
        (
            "DROP TABLE t; CREATE TABLE t (v double, id bigint); INSERT INTO t VALUES (1.5, 1), (2.5, 2)",
            "1.5",
        ),
        ("ALTER TABLE t MODIFY v blob", "1.5"),
        ("ALTER TABLE t MODIFY v decimal(10,3)", "1.500"),
    ] {
        database.run::<sqlx::MySql>(&[change]).await;
        for _ in 0..3 {
            assert_eq!(fresh(&group, "1").await.unwrap().unwrap(), expected, "{change}");
            group.delete_many(["1", "2"]).await.into_iter().for_each(|done| done.unwrap());
            assert_eq!(
                group.get_many(["1", "2"]).await.swap_remove(0).unwrap().unwrap(),
                expected,
                "{change}"
            );
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn databases_that_restart_cost_no_load_afterwards() {
    let mut postgres =
        Database::postgres(&["CREATE TABLE t (id text, v text)", "INSERT INTO t VALUES ('k', 'v')"]).await;
    let pooler = PgBouncer::start(&postgres, "pool_mode = transaction").await;
    let mut mariadb =
        Database::mariadb(&["CREATE TABLE t (id text, v text)", "INSERT INTO t VALUES ('k', 'v')"]).await;
    let sql = |url: &str, parameter: &str| {
        format!("kind = \"sql\"\nurl = \"{url}\"\nquery = \"SELECT v FROM t WHERE id = {parameter}\"")
    };
    let (_direct, direct) = node(&sql(postgres.url(), "$1"), "").await;
    let (_pooled, pooled) = node(&sql(&postgres.url_by(pooler.port()), "$1"), "").await;
    let (_maria, maria) = node(&sql(mariadb.url(), "?"), "").await;
    for round in 0..3 {
        for client in [&direct, &pooled, &maria] {
            client.group("g").clear().await.unwrap();
            assert_eq!(get(&client.group("g"), "k").await, "v", "{round}");
            // From the second round on the nodes hold connections to the servers that were there before.
        }
        for database in [&mut postgres, &mut mariadb] {
            database.stop();
            database.start_again().await;
        }
    }
    // Ended by the server one by one, as idle ones are.
    for client in [&direct, &maria] {
        client.group("g").clear().await.unwrap();
    }
    let end =
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'peanut-server'";
    postgres.run::<sqlx::Postgres>(&[end]).await;
    assert_eq!(get(&direct.group("g"), "k").await, "v");
    mariadb.run::<sqlx::MySql>(&["SET GLOBAL wait_timeout = 1"]).await;
    let (_maria, idle) = node(&sql(mariadb.url(), "?"), "").await;
    assert_eq!(get(&idle.group("g"), "k").await, "v");
    let is_gone =
        "SELECT count(*) FROM information_schema.processlist WHERE command = 'Sleep' AND user = 'root'";
    eventually("the server to end idle connections", async || {
        use sqlx::Connection as _;
        let mut connection = sqlx::MySqlConnection::connect(mariadb.url()).await.unwrap();
        let (count,): (i64,) = sqlx::query_as(is_gone).fetch_one(&mut connection).await.unwrap();
        // Those of the node that came before the setting, which has not asked since it was cleared.
        (count <= 1).then_some(())
    })
    .await;
    idle.group("g").clear().await.unwrap();
    assert_eq!(get(&idle.group("g"), "k").await, "v");
}

#[tokio::test(flavor = "multi_thread")]
async fn more_loads_than_connections_wait_for_their_turn_and_close_nothing() {
    let database = Database::postgres(&TABLE).await;
    let loader = format!(
        "kind = \"sql\"\nurl = \"{}\"\nmax_connections = 2\ntimeout = \"1s\"\n\
         query = \"SELECT $1 || pg_sleep(0.2)\"",
        database.url()
    );
    // Many times as long together as a connection is waited for where the database is silent.
    let (_server, client) = node(&loader, "load_timeout = \"60s\"\n").await;
    let group = client.group("g").with_deadline(Duration::from_secs(50));
    let keys: Vec<String> = (0..40).map(|n| n.to_string()).collect();
    for (key, got) in keys.iter().zip(group.get_many(&keys).await) {
        assert_eq!(got.unwrap().unwrap(), *key);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_that_are_no_text_are_errors_of_their_own_and_no_trouble_of_the_origin() {
    let database = Database::postgres(&TABLE).await;
    let loader = format!(
        "kind = \"sql\"\nurl = \"{}\"\nquery = \"SELECT a FROM t WHERE id = $1::int\"",
        database.url()
    );
    let (_server, client) = node(&loader, "").await;
    let group = client.group("g");
    for n in 0..60_u8 {
        let error = group.get([0xff, n]).await.unwrap_err();
        assert_eq!(error.kind(), peanut_client::ErrorKind::Loader, "{error:#}");
        assert!(!format!("{error:#}").contains("left alone"), "{error:#}");
    }
    assert_eq!(get(&group, "7").await, "a of 7");
}
