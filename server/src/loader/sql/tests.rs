//! The SQL loader against a real database.

use std::str::FromStr as _;

use sqlx::sqlite::{SqliteConnectOptions, SqlitePoolOptions};

use super::*;
use crate::loader::asked;

async fn database() -> (tempfile::TempDir, String) {
    let dir = tempfile::tempdir().unwrap();
    let url = format!("sqlite:{}", dir.path().join("scores.db").display());
    let options = SqliteConnectOptions::from_str(&url).unwrap().create_if_missing(true);
    let pool = SqlitePoolOptions::new().connect_with(options).await.unwrap();
    for statement in [
        "CREATE TABLE scores (key TEXT PRIMARY KEY, value)",
        "INSERT INTO scores VALUES ('Tom', '630'), ('number', 42), ('real', 1.5), ('none', NULL)",
        "INSERT INTO scores VALUES ('blob', X'00FF'), (X'FE', 'binary key')",
    ] {
        sqlx::query(statement).execute(&pool).await.unwrap();
    }
    pool.close().await;
    (dir, url)
}

const QUERY: &str = "SELECT value FROM scores WHERE key = ?";

#[tokio::test]
async fn the_first_column_is_the_value() {
    let (_dir, url) = database().await;
    let loader = SqlLoader::new(&url, QUERY).unwrap();
    let load = async |key: &[u8]| asked::one(&loader, key).await.unwrap();
    assert_eq!(load(b"Tom").await, Loaded::found("630"));
    assert_eq!(load(b"number").await, Loaded::found("42"));
    assert_eq!(load(b"real").await, Loaded::found("1.5"));
    assert_eq!(load(b"blob").await, Loaded::found(vec![0, 255]));
    assert_eq!(load(b"\xfe").await, Loaded::found("binary key"));
    assert_eq!(load(b"none").await, Loaded::not_found());
    assert_eq!(load(b"Tom' OR '1'='1").await, Loaded::not_found(), "a key is bound, never pasted in");
}

#[tokio::test]
async fn what_fails_names_what_failed() {
    let (dir, url) = database().await;
    let error =
        asked::one(&SqlLoader::new(&url, "SELECT value FROM nowhere WHERE key = ?").unwrap(), b"k").await;
    assert!(error.unwrap_err().to_string().contains("no such table: nowhere"));
    let missing = format!("sqlite:{}", dir.path().join("missing.db").display());
    let error = asked::one(&SqlLoader::new(&missing, QUERY).unwrap(), b"k").await;
    let error = error.unwrap_err().to_string();
    assert!(error.contains("unable to open database file") && error.contains("missing.db`"), "{error}");
    let other = dir.path().join("other.db");
    std::fs::write(&other, "This is a text, and a long one, of more bytes than a header has. ".repeat(9))
        .unwrap();
    let error =
        asked::one(&SqlLoader::new(&format!("sqlite:{}", other.display()), QUERY).unwrap(), b"k").await;
    let error = error.unwrap_err().to_string();
    assert!(error.contains("not a database") && error.contains("other.db`"), "{error}");
}

#[tokio::test]
async fn what_is_built_wrong_names_the_setting() {
    let (_dir, url) = database().await;
    let default = SqlOptions::default;
    let no_time = SqlOptions { timeout: Duration::ZERO, ..default() };
    let no_connections = SqlOptions { max_connections: 0, ..default() };
    let no_parameter = SqlOptions { batch_query: Some("SELECT 1".to_owned()), ..default() };
    for (url, query, options, names) in [
        ("oracle://x", QUERY, default(), "`url`: one that begins with `oracle:`"),
        ("postgres://h:port/x", "SELECT $1", default(), "`url`"),
        ("mysql://h:port/x", "SELECT ?", default(), "`url`"),
        ("sqlite:x?mode=odd", QUERY, default(), "`url`"),
        (&*url, "SELECT 1", default(), "`query`"),
        (&*url, QUERY, no_parameter, "`batch_query`"),
        (&*url, QUERY, no_time, "`timeout`"),
        (&*url, QUERY, no_connections, "`max_connections`"),
    ] {
        let error = SqlLoader::with_options(url, query, options).unwrap_err().to_string();
        assert!(error.contains(names), "{names}: {error}");
    }
}

#[tokio::test]
async fn tables_change_while_a_loader_runs() {
    let (_dir, url) = database().await;
    let pool = SqlitePoolOptions::new().max_connections(1).connect(&url).await.unwrap();
    let batch_query = Some("SELECT key, * FROM scores WHERE key IN (?)".to_owned());
    let query = "SELECT * FROM scores WHERE key = ?";
    let loader =
        SqlLoader::with_options(&url, query, SqlOptions { batch_query, ..SqlOptions::default() }).unwrap();
    for (change, expected) in [
        ("SELECT 1", Some("Tom")),
        ("ALTER TABLE scores ADD extra INTEGER", Some("Tom")),
        ("ALTER TABLE scores DROP value", Some("Tom")),
        (
            "DROP TABLE scores; CREATE TABLE scores (first REAL, key TEXT); INSERT INTO scores VALUES (2.5, 'Tom')",
            Some("2.5"),
        ),
        ("DROP TABLE scores; CREATE TABLE scores (first BLOB, second, third, key TEXT)", None),
        ("INSERT INTO scores VALUES (X'4142', 1, 2, 'Tom')", Some("AB")),
        (
            "ALTER TABLE scores RENAME TO old; CREATE VIEW scores AS SELECT second AS first, key FROM old",
            Some("1"),
        ),
    ] {
        sqlx::raw_sql(sqlx::AssertSqlSafe(change)).execute(&pool).await.unwrap();
        for _ in 0..3 {
            let expected = expected.map_or(Loaded::not_found(), Loaded::found);
            assert_eq!(asked::one(&loader, b"Tom").await.unwrap(), expected, "{change}");
            let many = asked::many(&loader, ["Tom", "absent"]).await.swap_remove(0);
            assert_eq!(many.unwrap(), expected, "{change}");
        }
    }
}

#[tokio::test]
async fn one_bad_key_of_many_costs_only_itself() {
    let (_dir, url) = database().await;
    let query = "SELECT json_extract(key, '$.a') FROM (SELECT ? AS key)";
    let batch_query = "WITH keys(key) AS (\
                       SELECT key FROM scores WHERE key IN (?)) SELECT key, json_extract(key, '$.a') FROM keys";
    let options = SqlOptions { batch_query: Some(batch_query.to_owned()), ..SqlOptions::default() };
    let pool = SqlitePoolOptions::new().connect(&url).await.unwrap();
    let keys = ["{\"a\":1}", "Tom", "{\"a\":2}", "{\"a\":3}"];
    for key in keys {
        sqlx::query("INSERT OR IGNORE INTO scores VALUES (?, 1)").bind(key).execute(&pool).await.unwrap();
    }
    let loader = SqlLoader::with_options(&url, query, options).unwrap();
    let many = asked::many(&loader, keys).await;
    assert!(many[1].as_ref().unwrap_err().to_string().contains("malformed JSON"), "{many:?}");
    for (at, value) in [(0, "1"), (2, "2"), (3, "3")] {
        assert_eq!(*many[at].as_ref().unwrap(), Loaded::found(value));
    }
}

#[tokio::test]
async fn a_statement_that_takes_too_long_is_ended_and_gives_its_connection_back() {
    let (_dir, url) = database().await;
    let endless = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE ?1 = 'endless' OR i < 9) \
                   SELECT max(i) FROM n";
    let options = SqlOptions {
        batch_query: Some(
            "SELECT 'a', max(i) FROM (WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT i FROM n) \
             WHERE i IN (?)"
                .to_owned(),
        ),
        max_connections: 1,
        timeout: Duration::from_millis(100),
    };
    let loader = SqlLoader::with_options(&url, endless, options).unwrap();
    for _ in 0..2 {
        let error = asked::one(&loader, b"endless").await.unwrap_err();
        assert!(error.to_string().contains("took longer than 100ms"), "{error}");
        assert_eq!(asked::one(&loader, b"short").await.unwrap(), Loaded::found("9"));
    }
    let many = asked::many(&loader, ["endless", "other"]).await;
    assert!(many[0].as_ref().unwrap_err().to_string().contains("took longer than"), "{many:?}");
}

#[tokio::test]
async fn many_keys_are_one_query_and_the_same_as_one_by_one() {
    let (_dir, url) = database().await;
    let batch_query = Some("SELECT key, value FROM scores WHERE key IN (?)".to_owned());
    let options = SqlOptions { batch_query, ..SqlOptions::default() };
    let loader = SqlLoader::with_options(&url, QUERY, options).unwrap();
    assert_eq!(SqlLoader::new(&url, QUERY).unwrap().max_batch_size(), 1);
    assert_eq!(loader.max_batch_size(), MOST_KEYS);
    for keys in [&["Tom"][..], &["Tom", "number", "absent", "none", "blob"], &["real", "Tom", "Tom"]] {
        let keys: Vec<Bytes> = keys.iter().map(|key| Bytes::from(*key)).collect();
        let many = asked::many(&loader, keys.clone()).await;
        for (key, found) in keys.iter().zip(many) {
            assert_eq!(found.unwrap(), asked::one(&loader, key).await.unwrap(), "{key:?}");
        }
    }
    let binary = [Bytes::from_static(b"\xfe"), "Tom".into()];
    let found: Vec<_> = asked::many(&loader, binary.clone()).await.into_iter().map(Result::unwrap).collect();
    assert_eq!(found, [Loaded::found("binary key"), Loaded::found("630")]);
}

#[tokio::test]
async fn keys_that_the_database_takes_for_others_are_found_as_one_by_one() {
    let (_dir, url) = database().await;
    let nocase = "SELECT value FROM scores WHERE key = ? COLLATE NOCASE";
    let batch_query = Some("SELECT key, value FROM scores WHERE key COLLATE NOCASE IN (?)".to_owned());
    let loader =
        SqlLoader::with_options(&url, nocase, SqlOptions { batch_query, ..SqlOptions::default() }).unwrap();
    let found = asked::many(&loader, ["tom", "absent"]).await;
    let found: Vec<_> = found.into_iter().map(Result::unwrap).collect();
    assert_eq!(found, [Loaded::found("630"), Loaded::not_found()]);
}

#[test]
fn a_password_is_never_told() {
    for url in ["postgres://u:secret@[/x", "mysql://u:secret@[/x", "oracle://u:secret@h/x"] {
        let error = SqlLoader::new(url, "SELECT 1 WHERE ? = $1").unwrap_err().to_string();
        assert!(!error.contains("secret"), "{error}");
    }
}
