//! A loader over a SQL database: one query per key.

use std::str::FromStr as _;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use sqlx::sqlite::{SqliteConnectOptions, SqlitePool, SqlitePoolOptions, SqliteRow, SqliteValueRef};
use sqlx::{AssertSqlSafe, Row as _, TypeInfo as _, ValueRef as _};

use xxhash_rust::xxh3::xxh3_64;

use super::{Loaded, Loader, LoaderError};

/// Loads a key with a query of one parameter, the key, on SQLite.
///
/// The first column of the first row is the value: text and blobs as they are, numbers in decimal. No row,
/// and NULL, are not found. A key that is UTF-8 is bound as text, any other as a blob.
#[derive(Clone, Debug)]
pub struct SqlLoader {
    pool: SqlitePool,
    query: Arc<str>,
}

impl SqlLoader {
    /// Most connections to the database at once.
    pub const MAX_CONNECTIONS: u32 = 8;

    /// A loader of that query on the database at `url`, for example `sqlite:scores.db?mode=ro`. The
    /// database is opened with the first load, and again after it has failed.
    ///
    /// # Errors
    /// Where the URL is not SQLite's, or the query has no parameter.
    pub fn new(url: &str, query: &str) -> Result<Self, LoaderError> {
        if !url.starts_with("sqlite:") {
            return Err(format!("url `{url}` is not like sqlite:scores.db").into());
        }
        if !query.contains('?') {
            return Err(format!("query `{query}` has no ? in it for the key").into());
        }
        let options = SqliteConnectOptions::from_str(url)
            .map_err(|e| format!("url `{url}`: {e}"))?
            .busy_timeout(Duration::from_secs(2));
        let pool = SqlitePoolOptions::new()
            .max_connections(SqlLoader::MAX_CONNECTIONS)
            .acquire_timeout(Duration::from_secs(5))
            .connect_lazy_with(options);
        Ok(SqlLoader { pool, query: query.into() })
    }
}

impl Loader for SqlLoader {
    fn fingerprint(&self) -> u64 {
        let options = self.pool.connect_options();
        xxh3_64(format!("{}\0{}", options.get_filename().display(), self.query).as_bytes())
    }

    async fn load(&self, _group: &str, key: &[u8]) -> Result<Loaded, LoaderError> {
        let query = sqlx::query(AssertSqlSafe(self.query.to_string()));
        let query = match std::str::from_utf8(key) {
            Ok(text) => query.bind(text.to_owned()),
            Err(_) => query.bind(key.to_vec()),
        };
        let row = query.fetch_optional(&self.pool).await?;
        Ok(row.map(first_column).transpose()?.flatten().into())
    }
}

fn first_column(row: SqliteRow) -> Result<Option<Bytes>, sqlx::Error> {
    let value: SqliteValueRef<'_> = row.try_get_raw(0)?;
    Ok(match value.type_info().name() {
        _ if value.is_null() => None,
        "INTEGER" => Some(row.try_get_unchecked::<i64, _>(0)?.to_string().into()),
        "REAL" => Some(row.try_get_unchecked::<f64, _>(0)?.to_string().into()),
        _ => Some(row.try_get_unchecked::<Vec<u8>, _>(0)?.into()),
    })
}

#[cfg(test)]
mod tests;
