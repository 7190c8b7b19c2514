//! SQLite.

use std::str::FromStr as _;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::TryStreamExt as _;
use sqlx::query::Query;
use sqlx::sqlite::{
    SqliteArguments, SqliteConnectOptions, SqliteConnection, SqlitePool, SqlitePoolOptions, SqliteRow,
    SqliteValueRef,
};
use sqlx::{AssertSqlSafe, Row as _, Transaction, TypeInfo as _, ValueRef as _};

use super::rows::Rows;
use super::{Database, LoaderError, SqlOptions, with_parameters};

/// A statement looks at the clock once in so many instructions of SQLite's machine: some tens of
/// microseconds.
const INSTRUCTIONS: i32 = 10_000;
/// How long a connection is waited for.
const MOST_WAITING: Duration = Duration::from_secs(3600);
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
            .map_err(|e| format!("`url` `{url}`: {e}"))?
            .busy_timeout(options.timeout);
        let timeout = options.timeout;
        let pool = SqlitePoolOptions::new()
            .max_connections(options.max_connections)
            // A load has a time-out of its own, and a statement that takes too long is interrupted: that
            // there are more loads than connections is no fault of the database.
            .acquire_timeout(MOST_WAITING)
            .acquire_slow_threshold(MOST_WAITING)
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
            return self.with_file(error);
        }
        let why = format!("the statement took longer than {:?}", self.timeout);
        std::io::Error::new(std::io::ErrorKind::TimedOut, why).into()
    }

    /// Begins to read, by the tables as they are now and stay until the end. Without that SQLite may prepare
    /// a statement by those that were, and again while it runs, and a column more or less then ends sqlx's
    /// thread, which looks like the end of the rows.
    async fn begin(&self) -> Result<Transaction<'static, sqlx::Sqlite>, sqlx::Error> {
        let mut transaction = self.pool.begin().await.map_err(|error| self.told(error))?;
        let read = sqlx::raw_sql("SELECT 1 FROM sqlite_schema LIMIT 1");
        read.execute(&mut *transaction).await.map_err(|error| self.told(error))?;
        Ok(transaction)
    }

    fn with_file(&self, error: sqlx::Error) -> sqlx::Error {
        // The extended code has the primary one in its low byte.
        let code = error.as_database_error().and_then(|error| error.code()?.parse::<i32>().ok());
        if !code.is_some_and(|code| OF_FILE.contains(&(code & 0xff))) {
            return error;
        }
        let options = self.pool.connect_options();
        std::io::Error::other(format!("database file `{}`: {error}", options.get_filename().display())).into()
    }
}

/// What SQLite says of a file rather than of a statement: that it cannot be read or written, is damaged,
/// cannot be opened, or is no database. It does not say which file.
const OF_FILE: [i32; 6] = [8, 10, 11, 13, 14, 26];

/// Ends what this connection is asked from now on, should it take longer. A statement runs on a thread of its
/// own, which nobody else can tell that its caller has gone.
#[expect(clippy::disallowed_methods, reason = "statements take real time")]
async fn interrupt_after(timeout: Duration, connection: &mut SqliteConnection) -> Result<(), sqlx::Error> {
    let begun = Instant::now();
    connection.lock_handle().await?.set_progress_handler(INSTRUCTIONS, move || begun.elapsed() < timeout);
    Ok(())
}

#[async_trait]
impl Database for Sqlite {
    async fn one(&self, query: &str, key: &[u8]) -> Result<Option<Bytes>, sqlx::Error> {
        let query = statement(query.to_owned());
        let query = match std::str::from_utf8(key) {
            Ok(text) => query.bind(text.to_owned()),
            Err(_) => query.bind(key.to_vec()),
        };
        let mut transaction = self.begin().await?;
        let row = query.fetch_optional(&mut *transaction).await.map_err(|error| self.told(error))?;
        let value = row.map_or(Ok(None), |row| column(&row, 0))?;
        transaction.commit().await.map_err(|error| self.told(error))?;
        Ok(value)
    }

    async fn many(&self, query: &str, keys: &[Bytes], texts: &[&str]) -> Result<Rows, sqlx::Error> {
        let (query, parameters) = with_parameters(query, texts.len());
        // The last one stands for those that are too many.
        let texts = (0..parameters).map(|at| texts[at.min(texts.len() - 1)].to_owned());
        let query = texts.fold(statement(query), |query, key| query.bind(key));
        let mut transaction = self.begin().await?;
        let mut found = Rows::of(keys);
        let mut rows = query.fetch(&mut *transaction);
        while let Some(row) = rows.try_next().await.map_err(|error| self.told(error))? {
            found.take(&column(&row, 0)?.unwrap_or_default(), column(&row, 1)?);
        }
        drop(rows);
        transaction.commit().await.map_err(|error| self.told(error))?;
        Ok(found)
    }

    fn name(&self) -> String {
        self.pool.connect_options().get_filename().display().to_string()
    }
}

/// A statement that is prepared for this load: sqlx remembers the columns of those that it keeps, which their
/// tables may lose.
fn statement(query: String) -> Query<'static, sqlx::Sqlite, SqliteArguments> {
    sqlx::query(AssertSqlSafe(query)).persistent(false)
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
