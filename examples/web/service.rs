//! The service itself: a handler reads through the cache, and writes the database first and the cache after
//! it.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use axum::routing::get;
use axum::{Json, Router};
use peanut_client::{Bytes, Client, JsonGroup};
use serde::{Deserialize, Serialize};
use sqlx::PgPool;
use tokio_util::task::TaskTracker;

/// What is known of a player.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Player {
    pub(crate) name: String,
    pub(crate) score: i64,
}

/// The table `players (name text PRIMARY KEY, score bigint)`.
#[derive(Clone, Debug)]
pub(crate) struct Database(pub(crate) PgPool);

impl Database {
    pub(crate) async fn connect(url: &str) -> Result<Self, sqlx::Error> {
        let pool = PgPool::connect(url).await?;
        sqlx::query("CREATE TABLE IF NOT EXISTS players (name text PRIMARY KEY, score bigint NOT NULL)")
            .execute(&pool)
            .await?;
        Ok(Database(pool))
    }

    pub(crate) async fn player(&self, name: &str) -> Result<Option<Player>, sqlx::Error> {
        let found = sqlx::query_as::<_, (String, i64)>("SELECT name, score FROM players WHERE name = $1");
        let found = found.bind(name).fetch_optional(&self.0).await?;
        Ok(found.map(|(name, score)| Player { name, score }))
    }

    /// Those of the names that there are, each with its player.
    async fn players(&self, names: Vec<Bytes>) -> Result<Vec<(String, Option<Player>)>, sqlx::Error> {
        let names: Vec<_> = names.iter().map(|name| String::from_utf8_lossy(name).into_owned()).collect();
        let found =
            sqlx::query_as::<_, (String, i64)>("SELECT name, score FROM players WHERE name = ANY($1)");
        let found = found.bind(names).fetch_all(&self.0).await?;
        Ok(found.into_iter().map(|(name, score)| (name.clone(), Some(Player { name, score }))).collect())
    }

    pub(crate) async fn store(&self, player: &Player) -> Result<(), sqlx::Error> {
        let insert = "INSERT INTO players VALUES ($1, $2) ON CONFLICT (name) DO UPDATE SET score = $2";
        sqlx::query(insert).bind(&player.name).bind(player.score).execute(&self.0).await?;
        Ok(())
    }
}

/// Players by name, from the cache and behind it the database.
#[derive(Debug)]
pub(crate) struct Scores {
    database: Database,
    players: JsonGroup<Player>,
    /// Those under way, also where their callers have gone.
    writes: TaskTracker,
}

impl Scores {
    pub(crate) fn new(database: Database, client: &Client) -> Arc<Self> {
        let players = client.group("players").with_deadline(Duration::from_secs(2)).json();
        Arc::new(Scores { database, players, writes: TaskTracker::new() })
    }

    /// Waits for writes whose callers have gone: they would end with the process, between the database and
    /// the cache.
    pub(crate) async fn finish_writes(&self) {
        self.writes.close();
        self.writes.wait().await;
    }
}

/// What a handler fails with: the log has the reason, the caller has the status.
struct Failed(StatusCode);

impl axum::response::IntoResponse for Failed {
    fn into_response(self) -> axum::response::Response {
        self.0.into_response()
    }
}

impl<E: Into<Box<dyn std::error::Error + Send + Sync>>> From<E> for Failed {
    fn from(error: E) -> Self {
        // A source is not part of its error's message.
        let error: Box<dyn std::error::Error + Send + Sync> = error.into();
        eprintln!("{error}");
        let mut cause = error.source();
        while let Some(error) = cause {
            eprintln!("  because: {error}");
            cause = error.source();
        }
        Failed(StatusCode::SERVICE_UNAVAILABLE)
    }
}

pub(crate) fn router(scores: Arc<Scores>) -> Router {
    let one = get(read).put(write);
    Router::new().route("/scores", get(list)).route("/scores/{name}", one).with_state(scores)
}

/// One query in the whole fleet for each player that is missing, for all processes.
async fn read(State(scores): State<Arc<Scores>>, Path(name): Path<String>) -> Result<Json<Player>, Failed> {
    let found = scores.players.get_or_load(&name, || scores.database.player(&name)).await?;
    found.map(Json).ok_or(Failed(StatusCode::NOT_FOUND))
}

/// What stands behind the question mark: `?names=Tom,Jack`.
#[derive(Deserialize)]
struct Names {
    names: String,
}

/// One query for all that are missing.
async fn list(
    State(scores): State<Arc<Scores>>,
    Query(Names { names }): Query<Names>,
) -> Result<Json<Vec<Player>>, Failed> {
    let names = names.split(',');
    let found = scores.players.get_or_load_many(names, |missing| scores.database.players(missing)).await;
    // Each has a result of its own, in the order of the names.
    let found: Vec<Option<Player>> = found.into_iter().collect::<Result<_, _>>()?;
    Ok(Json(found.into_iter().flatten().collect()))
}

/// In a task of its own: when a caller hangs up axum drops the handler, and the write is not to end between
/// the database and the cache.
async fn write(
    State(scores): State<Arc<Scores>>,
    Path(name): Path<String>,
    Json(score): Json<i64>,
) -> Result<StatusCode, Failed> {
    let writes = scores.writes.clone();
    writes.spawn(async move { scores.write(&Player { name, score }).await }).await?
}

impl Scores {
    /// `begin_write` before the database is written: of two requests that write a player at the same time,
    /// neither leaves an older score in the cache.
    async fn write(&self, player: &Player) -> Result<StatusCode, Failed> {
        let begun = self.players.begin_write(&player.name).await?;
        if let Err(error) = self.database.store(player).await {
            let _ = begun.delete().await; // it may have been committed all the same
            return Err(error.into());
        }
        begun.set(player).await?;
        Ok(StatusCode::NO_CONTENT)
    }
}
