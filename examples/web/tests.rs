//! The handlers against a fleet in this process and a PostgreSQL of their own.

use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, to_bytes};
use axum::http::{Method, Request, StatusCode};
use peanut_client::Client;
use peanut_server::Group;
use peanut_server::testing::TestFleet;
use tokio::time::timeout;
use tower::ServiceExt as _;

use crate::service::{Database, Player, Scores, router};

struct App {
    router: axum::Router,
    scores: Arc<Scores>,
    database: Database,
    client: Client,
    _fleet: TestFleet,
    _postgres: peanut_tests::Database,
}

async fn app() -> App {
    let postgres = peanut_tests::Database::postgres(&[]).await;
    let fleet = TestFleet::start(2, [Group::without_loader("players")]).await.unwrap();
    let client = Client::builder().registry(fleet.registry()).build().await.unwrap();
    let database = Database::connect(postgres.url()).await.unwrap();
    let scores = Scores::new(database.clone(), &client);
    App { router: router(scores.clone()), scores, database, client, _fleet: fleet, _postgres: postgres }
}

impl Database {
    /// Keeps a player's row from being written until the transaction ends.
    async fn lock(&self, name: &str) -> sqlx::pool::PoolConnection<sqlx::Postgres> {
        let mut connection = self.0.acquire().await.unwrap();
        sqlx::query("BEGIN").execute(&mut *connection).await.unwrap();
        let lock = sqlx::query("SELECT * FROM players WHERE name = $1 FOR UPDATE").bind(name);
        lock.execute(&mut *connection).await.unwrap();
        connection
    }
}

impl App {
    async fn call(&self, method: Method, name: &str, body: &str) -> (StatusCode, String) {
        self.request(method, &format!("/scores/{name}"), body).await
    }

    async fn request(&self, method: Method, uri: &str, body: &str) -> (StatusCode, String) {
        let request = Request::builder().method(method).uri(uri);
        let request = request.header("content-type", "application/json").body(Body::from(body.to_owned()));
        let response = self.router.clone().oneshot(request.unwrap()).await.unwrap();
        let status = response.status();
        let body = to_bytes(response.into_body(), 1 << 20).await.unwrap();
        (status, String::from_utf8(body.to_vec()).unwrap())
    }

    async fn get(&self, name: &str) -> (StatusCode, String) {
        self.call(Method::GET, name, "").await
    }

    /// Tom has 630, and a caller that writes 999 has gone while the write waits for the database, where the
    /// row is locked.
    async fn write_and_hang_up(&self) -> sqlx::pool::PoolConnection<sqlx::Postgres> {
        assert_eq!(self.call(Method::PUT, "Tom", "630").await.0, StatusCode::NO_CONTENT);
        let lock = self.database.lock("Tom").await;
        let hung_up = timeout(Duration::from_millis(300), self.call(Method::PUT, "Tom", "999")).await;
        assert!(hung_up.is_err(), "the database is locked");
        assert!(self.get("Tom").await.1.contains("630"), "it is what the database has");
        lock
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_score_is_queried_once_and_shown_when_it_was_written() {
    let app = app().await;
    assert_eq!(app.get("Tom").await.0, StatusCode::NOT_FOUND);
    assert_eq!(app.call(Method::PUT, "Tom", "630").await.0, StatusCode::NO_CONTENT);
    for _ in 0..5 {
        assert_eq!(app.get("Tom").await, (StatusCode::OK, r#"{"name":"Tom","score":630}"#.to_owned()));
    }
    // What the database is told past the cache shows when the entry is deleted.
    app.database.store(&Player { name: "Tom".to_owned(), score: 631 }).await.unwrap();
    assert!(app.get("Tom").await.1.contains("630"), "it is in the cache");
    app.client.group("players").delete("Tom").await.unwrap();
    assert!(app.get("Tom").await.1.contains("631"));
    assert_eq!(app.client.stats().uncached, 0);
    assert_eq!(app.call(Method::PUT, "Tom", "no number").await.0, StatusCode::BAD_REQUEST);
}

#[tokio::test(flavor = "multi_thread")]
async fn several_scores_are_listed_in_order_and_kept() {
    let app = app().await;
    for (name, score) in [("Tom", 630), ("Jack", 589), ("Sam", 567)] {
        app.database.store(&Player { name: name.to_owned(), score }).await.unwrap();
    }
    assert!(app.get("Jack").await.1.contains("589"), "it is in the cache now");
    let list = || app.request(Method::GET, "/scores?names=Sam,Nobody,Jack,Tom", "");
    let all = r#"[{"name":"Sam","score":567},{"name":"Jack","score":589},{"name":"Tom","score":630}]"#;
    assert_eq!(list().await, (StatusCode::OK, all.to_owned()));
    // All of them are kept, and that there is nobody of that name.
    for name in ["Nobody", "Sam", "Tom"] {
        app.database.store(&Player { name: name.to_owned(), score: 0 }).await.unwrap();
    }
    assert_eq!(list().await.1, all);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_caller_that_hangs_up_leaves_no_older_score_in_the_cache() {
    let app = app().await;
    let mut lock = app.write_and_hang_up().await;
    sqlx::query("COMMIT").execute(&mut *lock).await.unwrap();
    peanut_tests::eventually("the new score, which stays", async || {
        app.get("Tom").await.1.contains("999").then_some(())
    })
    .await;
    assert!(app.get("Tom").await.1.contains("999"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_that_stops_ends_its_writes_before() {
    let app = app().await;
    let mut lock = app.write_and_hang_up().await;
    let finishing = app.scores.finish_writes();
    tokio::pin!(finishing);
    assert!(timeout(Duration::from_millis(300), &mut finishing).await.is_err(), "the write is under way");
    sqlx::query("COMMIT").execute(&mut *lock).await.unwrap();
    finishing.await;
    assert!(app.get("Tom").await.1.contains("999"), "nothing is left to do");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_dies_costs_no_request() {
    let app = app().await;
    for n in 0..20 {
        let put = app.call(Method::PUT, &format!("player-{n}"), &n.to_string()).await;
        assert_eq!(put.0, StatusCode::NO_CONTENT);
    }
    app._fleet.kill(0);
    for n in 0..20 {
        assert_eq!(app.get(&format!("player-{n}")).await.0, StatusCode::OK);
    }
}
