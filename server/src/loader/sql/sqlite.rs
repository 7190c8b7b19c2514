//! SQLite.

use std::str::FromStr as _;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bytes::Bytes;
use sqlx::sqlite::{
    SqliteConnectOptions, SqliteConnection, SqlitePool, SqlitePoolOptions, SqliteRow, SqliteValueRef,
};
use sqlx::{AssertSqlSafe, Row as _, TypeInfo as _, ValueRef as _};

use super::{Database, LoaderError, Row, SqlOptions, with_parameters};

/// A statement looks at the clock once in so many instructions of SQLite's machine: some tens of microseconds.
const INSTRUCTIONS: i32 = 10_000;
/// What an interrupted statement fails with.
const SQLITE_INTERRUPT: &str = "9";

#[derive(Debug)]
pub(super) struct Sqlite {
    pool: SqlitePool,
    timeout: Duration,
}

impl Sqlite {
    pub(super) fn new(url: &str, options: &SqlOptions) -> Result<Self, LoaderError> {
        let connect = SqliteConnectOptions::from_str(url)
            .map_err(|e| format!("url `{url}`: {e}"))?
            .busy_timeout(options.timeout);
        let timeout = options.timeout;
        let pool = SqlitePoolOptions::new()
            .max_connections(options.max_connections)
            .acquire_timeout(timeout)
            .after_connect(move |connection, _| Box::pin(interrupt_after(timeout, connection)))
            .before_acquire(move |connection, _| {
                Box::pin(async move { interrupt_after(timeout, connection).await.map(|()| true) })
            })
            .connect_lazy_with(connect);
        Ok(Sqlite { pool, timeout })
    }

    fn told(&self, error: sqlx::Error) -> sqlx::Error {
        let is_interrupt =
            |error: &dyn sqlx::error::DatabaseError| error.code().as_deref() == Some(SQLITE_INTERRUPT);
        if !error.as_database_error().is_some_and(is_interrupt) {
            return error;
        }
        let why = format!("the statement took longer than {:?}", self.timeout);
        std::io::Error::new(std::io::ErrorKind::TimedOut, why).into()
    }
}

/// Ends what this connection is asked from now on, should it take longer. A statement runs on a thread of its own, which nobody else
/// can tell that its caller has gone.
#[expect(clippy::disallowed_methods, reason = "statements take real time")]
async fn interrupt_after(timeout: Duration, connection: &mut SqliteConnection) -> Result<(), sqlx::Error> {
    let begun = Instant::now();
    connection.lock_handle().await?.set_progress_handler(INSTRUCTIONS, move || begun.elapsed() < timeout);
    Ok(())
}

#[async_trait]
impl Database for Sqlite {
    async fn one(&self, query: &str, key: &[u8]) -> Result<Option<Bytes>, sqlx::Error> {
        let query = sqlx::query(AssertSqlSafe(query.to_owned()));
        let query = match std::str::from_utf8(key) {
            Ok(text) => query.bind(text.to_owned()),
            Err(_) => query.bind(key.to_vec()),
        };
        let row = query.fetch_optional(&self.pool).await.map_err(|error| self.told(error))?;
        row.map_or(Ok(None), |row| column(&row, 0))
    }

    async fn many(&self, query: &str, keys: &[&str]) -> Result<Vec<Row>, sqlx::Error> {
        let (query, parameters) = with_parameters(query, keys.len());
        let query = sqlx::query(AssertSqlSafe(query));
        // The last one stands for those that are too many.
        let keys = (0..parameters).map(|at| keys[at.min(keys.len() - 1)].to_owned());
        let query = keys.fold(query, |query, key| query.bind(key));
        let rows = query.fetch_all(&self.pool).await.map_err(|error| self.told(error))?;
        rows.iter().map(|row| Ok((column(row, 0)?.unwrap_or_default(), column(row, 1)?))).collect()
    }

    fn name(&self) -> String {
        self.pool.connect_options().get_filename().display().to_string()
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
