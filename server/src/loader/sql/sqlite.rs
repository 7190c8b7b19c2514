//! SQLite.

use std::str::FromStr as _;

use async_trait::async_trait;
use bytes::Bytes;
use sqlx::sqlite::{SqliteConnectOptions, SqlitePool, SqlitePoolOptions, SqliteRow, SqliteValueRef};
use sqlx::{AssertSqlSafe, Row as _, TypeInfo as _, ValueRef as _};

use super::{Database, LoaderError, Row, SqlOptions, with_parameters};

#[derive(Debug)]
pub(super) struct Sqlite(SqlitePool);

impl Sqlite {
    pub(super) fn new(url: &str, options: &SqlOptions) -> Result<Self, LoaderError> {
        let connect = SqliteConnectOptions::from_str(url)
            .map_err(|e| format!("url `{url}`: {e}"))?
            .busy_timeout(options.timeout);
        let pool = SqlitePoolOptions::new()
            .max_connections(options.max_connections)
            .acquire_timeout(options.timeout)
            .connect_lazy_with(connect);
        Ok(Sqlite(pool))
    }
}

#[async_trait]
impl Database for Sqlite {
    async fn one(&self, query: &str, key: &[u8]) -> Result<Option<Bytes>, sqlx::Error> {
        let query = sqlx::query(AssertSqlSafe(query.to_owned()));
        let query = match std::str::from_utf8(key) {
            Ok(text) => query.bind(text.to_owned()),
            Err(_) => query.bind(key.to_vec()),
        };
        let row = query.fetch_optional(&self.0).await?;
        row.map_or(Ok(None), |row| column(&row, 0))
    }

    async fn many(&self, query: &str, keys: &[&str]) -> Result<Vec<Row>, sqlx::Error> {
        let (query, parameters) = with_parameters(query, keys.len());
        let query = sqlx::query(AssertSqlSafe(query));
        // The last one stands for those that are too many.
        let keys = (0..parameters).map(|at| keys[at.min(keys.len() - 1)].to_owned());
        let rows = keys.fold(query, |query, key| query.bind(key)).fetch_all(&self.0).await?;
        rows.iter().map(|row| Ok((column(row, 0)?.unwrap_or_default(), column(row, 1)?))).collect()
    }

    fn name(&self) -> String {
        self.0.connect_options().get_filename().display().to_string()
    }
}

fn column(row: &SqliteRow, at: usize) -> Result<Option<Bytes>, sqlx::Error> {
    let value: SqliteValueRef<'_> = row.try_get_raw(at)?;
    Ok(match value.type_info().name() {
        _ if value.is_null() => None,
        "INTEGER" => Some(row.try_get_unchecked::<i64, _>(at)?.to_string().into()),
        "REAL" => Some(row.try_get_unchecked::<f64, _>(at)?.to_string().into()),
        _ => Some(row.try_get_unchecked::<Vec<u8>, _>(at)?.into()),
    })
}
