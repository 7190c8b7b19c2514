//! The origin: a SQLite database.

use std::path::Path;

use sqlx::sqlite::{SqliteConnectOptions, SqlitePoolOptions};

use crate::Result;

pub(crate) const GROUP: &str = "scores";
pub(crate) const QUERY: &str = "SELECT score FROM scores WHERE name = ?";

/// A database with a table of scores.
pub(crate) struct Database {
    pub(crate) url: String,
}

/// The key of row `n`.
pub(crate) fn key(n: usize) -> String {
    format!("player-{n:05}")
}

impl Database {
    /// Makes a database with that many rows.
    pub(crate) async fn fill(directory: &Path, rows: usize) -> Result<Self> {
        let file = directory.join("scores.db");
        let options = SqliteConnectOptions::new().filename(&file).create_if_missing(true);
        let pool = SqlitePoolOptions::new().max_connections(1).connect_with(options).await?;
        sqlx::query("CREATE TABLE scores (name TEXT PRIMARY KEY, score TEXT NOT NULL) WITHOUT ROWID")
            .execute(&pool)
            .await?;
        let mut all = pool.begin().await?;
        for n in 0..rows {
            let score = format!("{{\"name\":\"{}\",\"score\":{}}}", key(n), fastrand::u32(..1_000_000));
            sqlx::query("INSERT INTO scores VALUES (?, ?)")
                .bind(key(n))
                .bind(score)
                .execute(&mut *all)
                .await?;
        }
        all.commit().await?;
        pool.close().await;
        Ok(Database { url: format!("sqlite:{}?mode=ro", file.display()) })
    }
}
