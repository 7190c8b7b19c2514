//! A loader over a SQL database: one query per key, or one for many.
//!
//! What the databases share is here; how each binds keys and gives values is in a file of its own.

#[cfg(any(feature = "postgres", feature = "mysql"))]
mod connections;
#[cfg(feature = "mysql")]
mod mysql;
#[cfg(feature = "postgres")]
mod postgres;
mod rows;
#[cfg(feature = "sqlite")]
mod sqlite;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::StreamExt as _;
use futures_util::future::BoxFuture;
use futures_util::stream::iter;
use tokio::time::Instant;
use xxhash_rust::xxh3::xxh3_64;

use self::rows::Rows;
use super::{LoadRequest, Loaded, Loader, LoaderError, check_timeout, last_begin, no_time_for};

/// More than a database has, and still far from harm.
const MOST_CONNECTIONS: u32 = 10_000;
/// Keys in one query at most.
const MOST_KEYS: usize = 500;

/// Loads keys from SQLite, PostgreSQL, MySQL or MariaDB.
///
/// The first column of the first row is the value: text, JSON and bytes as they are, numbers in decimal,
/// booleans as `true` and `false`. Values of other types are errors that say so: cast them to text in the
/// query. No row, and NULL, are not found. A key is bound, never pasted in: as text where it is UTF-8, else
/// as bytes.
#[derive(Clone, Debug)]
pub struct SqlLoader {
    database: Arc<dyn Database>,
    query: Arc<str>,
    batch_query: Option<Arc<str>>,
}

/// How a [`SqlLoader`] asks.
#[derive(Clone, Debug)]
pub struct SqlOptions {
    /// A query for many keys at once, whose rows are a key and its value; none by default. PostgreSQL has the
    /// keys in an array: `SELECT name, score FROM scores WHERE name = ANY($1)`. The others have a list in
    /// place of the `?`: `… WHERE name IN (?)`. A key that has no row is not found; keys are compared byte by
    /// byte with those that come back, so where the database takes different ones for the same (a collation,
    /// `1` and `01`) do without this query.
    pub batch_query: Option<String>,
    /// Most connections to the database at once; 8 by default, from 1 to 10,000.
    pub max_connections: u32,
    /// How long a statement may take, and how long a connection is waited for while the database answers
    /// nobody; 2 seconds by default, from 1 ms to an hour. For SQLite also how long its lock is waited for.
    pub timeout: Duration,
}

impl Default for SqlOptions {
    fn default() -> Self {
        SqlOptions { batch_query: None, max_connections: 8, timeout: Duration::from_secs(2) }
    }
}

/// One kind of database behind a pool of connections.
#[async_trait]
trait Database: std::fmt::Debug + Send + Sync {
    /// The first row's value for a key.
    async fn one(&self, query: &str, key: &[u8]) -> Result<Option<Bytes>, sqlx::Error>;

    /// The rows for keys, all of them UTF-8; `texts` are the same keys.
    async fn many(&self, query: &str, keys: &[Bytes], texts: &[&str]) -> Result<Rows, sqlx::Error>;

    /// Names the database, without secrets.
    fn name(&self) -> String;
}

impl SqlLoader {
    /// A loader of that query with one parameter, the key, on the database at `url`:
    /// `sqlite:scores.db?mode=ro`, `postgres://user:password@host/database`,
    /// `mysql://user:password@host/database`. The parameter is `?`, for PostgreSQL `$1`. The database is
    /// connected to with the first load, and again after it has failed.
    ///
    /// # Errors
    /// Where the URL is none of these, this build does not have that kind, or a query has no parameter.
    pub fn new(url: &str, query: &str) -> Result<Self, LoaderError> {
        SqlLoader::with_options(url, query, SqlOptions::default())
    }

    /// As [`new`](Self::new), with options.
    ///
    /// # Errors
    /// As [`new`](Self::new), and where options are out of bounds.
    #[cfg_attr(
        not(any(feature = "sqlite", feature = "postgres", feature = "mysql")),
        expect(
            unreachable_code,
            unused_variables,
            reason = "without any kind of database there is none to make"
        )
    )]
    pub fn with_options(url: &str, query: &str, options: SqlOptions) -> Result<Self, LoaderError> {
        check_timeout(options.timeout)?;
        if !(1..=MOST_CONNECTIONS).contains(&options.max_connections) {
            return Err(format!("`max_connections` must be from 1 to {MOST_CONNECTIONS}").into());
        }
        let (scheme, _) = url.split_once(':').unwrap_or(("", ""));
        let (parameter, database): (&str, Arc<dyn Database>) = match scheme {
            #[cfg(feature = "sqlite")]
            "sqlite" => ("?", Arc::new(sqlite::Sqlite::new(url, &options)?)),
            #[cfg(feature = "postgres")]
            "postgres" | "postgresql" => ("$1", Arc::new(postgres::Postgres::connections(url, &options)?)),
            #[cfg(feature = "mysql")]
            "mysql" | "mariadb" => ("?", Arc::new(mysql::MySql::connections(url, &options)?)),
            // Not the whole of it: there may be a password in it.
            _ => {
                let why = format!(
                    "`url`: one that begins with `{scheme}:` is none of sqlite:, postgres:// and mysql://"
                );
                return Err(format!("{why} that this build knows").into());
            }
        };
        for (setting, query) in [("query", Some(query)), ("batch_query", options.batch_query.as_deref())] {
            if let Some(query) = query.filter(|query| !query.contains(parameter)) {
                return Err(format!("`{setting}`: `{query}` has no {parameter} in it for the key").into());
            }
        }
        let batch_query = options.batch_query.map(Into::into);
        Ok(SqlLoader { database, query: query.into(), batch_query })
    }

    async fn one(&self, key: &[u8]) -> Result<Loaded, LoaderError> {
        let found = self.database.one(&self.query, key).await;
        // A key that is no text is bound as bytes, which the query's types may not take.
        let is_of_key = |error: &sqlx::Error| {
            let is_text = std::str::from_utf8(key).is_ok();
            is_of_a_key(error) || !is_text && is_of_a_type(error)
        };
        let told = |error| if is_of_key(&error) { LoaderError::of_key(error) } else { told(error) };
        Ok(found.map_err(told)?.into())
    }

    /// Those keys in one query, or in several where some of them are bad, of which none begins later than
    /// `until`.
    fn batch<'a>(
        &'a self,
        keys: &'a [Bytes],
        until: Instant,
    ) -> BoxFuture<'a, Vec<Result<Loaded, LoaderError>>> {
        Box::pin(async move {
            let Some(query) = self.batch_query.as_ref().filter(|_| keys.len() > 1) else {
                return self.each(keys, until).await;
            };
            let texts: Vec<&str> = keys.iter().filter_map(|key| std::str::from_utf8(key).ok()).collect();
            if texts.len() < keys.len() {
                return self.texts_and_others(keys, until).await;
            }
            let rows = match self.database.many(query, keys, &texts).await {
                Ok(rows) => rows,
                Err(error) if is_of_a_key(&error) && Instant::now() >= until => {
                    return vec![Err(no_time_for(error)); keys.len()];
                }
                // Halves, until the bad ones are alone.
                Err(error) if is_of_a_key(&error) => {
                    let (first, second) = keys.split_at(keys.len() / 2);
                    let mut loaded = self.batch(first, until).await;
                    loaded.extend(self.batch(second, until).await);
                    return loaded;
                }
                Err(error) => return vec![Err(told(error)); keys.len()],
            };
            if rows.are_by_another_comparison() {
                return self.each(keys, until).await;
            }
            // Those for which there was no room; the first of them has room next time.
            let again: Vec<Bytes> = keys.iter().filter(|key| rows.loaded(key).is_none()).cloned().collect();
            let mut again = self.batch(&again, until).await.into_iter();
            keys.iter()
                .map(|key| rows.loaded(key).or_else(|| again.next()).unwrap_or(Ok(Loaded::not_found())))
                .collect()
        })
    }

    /// The texts among those keys in one query, and the others, which it cannot have, one by one.
    async fn texts_and_others(&self, keys: &[Bytes], until: Instant) -> Vec<Result<Loaded, LoaderError>> {
        let is_text = |key: &Bytes| std::str::from_utf8(key).is_ok();
        let (texts, others): (Vec<Bytes>, Vec<Bytes>) = keys.iter().cloned().partition(is_text);
        let mut texts = self.batch(&texts, until).await.into_iter();
        let mut others = self.each(&others, until).await.into_iter();
        let next = |key| if is_text(key) { texts.next() } else { others.next() };
        keys.iter().filter_map(next).collect()
    }

    /// Those keys one by one, a few at a time.
    async fn each(&self, keys: &[Bytes], until: Instant) -> Vec<Result<Loaded, LoaderError>> {
        let one = async |key: &Bytes| match Instant::now() < until {
            true => self.one(key).await,
            false => Err(no_time_for("some keys of the batch can be asked for only one by one")),
        };
        let loads: Vec<_> = keys.iter().map(one).collect();
        iter(loads).buffered(4).collect().await
    }
}

impl Loader for SqlLoader {
    /// Runs the queries for a key that nobody has.
    async fn check(&self, _group: &str) -> Result<(), LoaderError> {
        let name = self.database.name().replace('\0', " ");
        let told = |error: sqlx::Error| match error {
            // The database takes other keys than text.
            error if is_of_a_key(&error) => Ok(()),
            error => Err(LoaderError::from(format!("{}: {}", name.trim(), told(error)))),
        };
        let key = format!("peanut-check-{:016x}", fastrand::u64(..));
        self.database.one(&self.query, key.as_bytes()).await.map(drop).or_else(told)?;
        let keys = [Bytes::from(key.clone()), Bytes::from(key.clone())];
        match &self.batch_query {
            Some(query) => self.database.many(query, &keys, &[&key, &key]).await.map(drop).or_else(told),
            None => Ok(()),
        }
    }

    fn fingerprint(&self) -> u64 {
        let batch_query = self.batch_query.as_deref().unwrap_or_default();
        xxh3_64(format!("{}\0{}\0{batch_query}", self.database.name(), self.query).as_bytes())
    }

    async fn load(&self, request: &LoadRequest) -> Result<Loaded, LoaderError> {
        self.one(&request.key).await
    }

    fn max_batch_size(&self) -> usize {
        if self.batch_query.is_some() { MOST_KEYS } else { 1 }
    }

    async fn load_many(&self, requests: &[LoadRequest]) -> Vec<Result<Loaded, LoaderError>> {
        let keys: Vec<Bytes> = requests.iter().map(|request| request.key.clone()).collect();
        self.batch(&keys, last_begin(requests)).await
    }
}

/// Whether one key among many may be to blame: a data exception (class 22 of the SQL standard), like a cast
/// that fails; a subquery with several rows (21); what functions raise (2F, 38, 39, PostgreSQL's P0, MySQL's
/// 45).
fn is_of_a_key(error: &sqlx::Error) -> bool {
    const CLASSES: [&str; 7] = ["21", "22", "2F", "38", "39", "45", "P0"];
    const OF_SQLITE: [&str; 4] = ["malformed JSON", "integer overflow", "bad JSON path", "too big"];
    let Some(error) = error.as_database_error() else { return false };
    let code = error.code().unwrap_or_default();
    match code.len() {
        5 => CLASSES.iter().any(|class| code.starts_with(class)),
        // SQLite's numbers do not tell these from errors of syntax.
        _ => OF_SQLITE.iter().any(|message| error.message().contains(message)),
    }
}

/// Whether types do not match: a datatype mismatch, a function or operator that there is not for them, or a
/// cast that there is not.
fn is_of_a_type(error: &sqlx::Error) -> bool {
    let code = error.as_database_error().and_then(|error| error.code());
    code.is_some_and(|code| ["42804", "42883", "42846"].contains(&&*code))
}

fn told(error: sqlx::Error) -> LoaderError {
    match error {
        sqlx::Error::PoolTimedOut => "no connection to the database in time".into(),
        error => error.into(),
    }
}

/// `query` with so many parameters in place of its `?`: a power of two, so that there are few different
/// statements to prepare.
#[cfg(any(feature = "sqlite", feature = "mysql"))]
fn with_parameters(query: &str, keys: usize) -> (String, usize) {
    let parameters = keys.next_power_of_two();
    (query.replacen('?', &vec!["?"; parameters].join(","), 1), parameters)
}

#[cfg(test)]
#[cfg(feature = "sqlite")]
mod tests;
