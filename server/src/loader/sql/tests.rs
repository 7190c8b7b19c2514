//! The SQL loader against a real database.

use super::*;

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
    let load = async |key: &[u8]| loader.load("scores", key).await.unwrap();
    assert_eq!(load(b"Tom").await, Loaded::found("630"));
    assert_eq!(load(b"number").await, Loaded::found("42"));
    assert_eq!(load(b"real").await, Loaded::found("1.5"));
    assert_eq!(load(b"blob").await, Loaded::found(vec![0, 255]));
    assert_eq!(load(b"\xfe").await, Loaded::found("binary key"));
    assert_eq!(load(b"none").await, Loaded::NotFound);
    assert_eq!(load(b"Tom' OR '1'='1").await, Loaded::NotFound, "a key is bound, never pasted in");
}

#[tokio::test]
async fn what_fails_names_what_failed() {
    let (dir, url) = database().await;
    let error =
        SqlLoader::new(&url, "SELECT value FROM nowhere WHERE key = ?").unwrap().load("g", b"k").await;
    assert!(error.unwrap_err().to_string().contains("no such table: nowhere"));
    let missing = format!("sqlite:{}", dir.path().join("missing.db").display());
    let error = SqlLoader::new(&missing, QUERY).unwrap().load("g", b"k").await;
    assert!(error.unwrap_err().to_string().contains("unable to open database file"));
    assert!(SqlLoader::new("oracle://x", QUERY).unwrap_err().to_string().contains("oracle://x"));
    assert!(SqlLoader::new(&url, "SELECT 1").unwrap_err().to_string().contains('?'));
}
