//! PostgreSQL, itself or behind a pooler.
//!
//! A pooler in transaction mode, like PgBouncer, gives each transaction a server connection that others used
//! before and will use after. So nothing here outlives a transaction: each query runs in one of its own, as
//! the unnamed statement, with its time limit set by `SET LOCAL`. Without the explicit transaction preparing
//! and executing, two round trips, could go to different server connections. As startup parameters there are
//! only those that PgBouncer takes by default. Statements are planned anew each time, so a table may change
//! while a node runs.

use std::str::FromStr as _;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::TryStreamExt as _;
use sqlx::postgres::{PgArguments, PgConnectOptions, PgConnection, PgRow, PgTypeKind};
use sqlx::query::Query;
use sqlx::{AssertSqlSafe, Column as _, Executor as _, Row as _, TypeInfo as _, ValueRef as _};

use super::connections::{Connections, Dialect};
use super::rows::Rows;
use super::{LoaderError, SqlOptions};

#[derive(Debug)]
pub(super) struct Postgres {
    options: PgConnectOptions,
    /// Begins a transaction with a time limit.
    begin: String,
}

impl Postgres {
    pub(super) fn connections(url: &str, options: &SqlOptions) -> Result<Connections<Self>, LoaderError> {
        // The error names what is wrong, but not the password.
        let connect = PgConnectOptions::from_str(url).map_err(|e| format!("`url` of kind postgres: {e}"))?;
        let connect =
            connect.application_name("peanut-server").extra_float_digits(None).statement_cache_capacity(0);
        let postgres = Postgres { options: connect, begin: begin(options.timeout) };
        Ok(Connections::new(postgres, options.max_connections, options.timeout))
    }

    async fn begin(&self, connection: &mut PgConnection) -> Result<(), sqlx::Error> {
        connection.execute(sqlx::raw_sql(AssertSqlSafe(self.begin.clone()))).await.map(|_| ())
    }
}

/// A stricter limit that the role has keeps its place.
fn begin(timeout: Duration) -> String {
    let ms = timeout.as_millis().clamp(1, i32::MAX as u128);
    format!(
        "BEGIN; SELECT set_config('statement_timeout', '{ms}', true) \
         WHERE current_setting('statement_timeout')::interval NOT BETWEEN '1 ms' AND '{ms} ms'"
    )
}

/// Ends a transaction: after an error this rolls it back.
async fn end<T>(connection: &mut PgConnection, answer: Result<T, sqlx::Error>) -> Result<T, sqlx::Error> {
    let ended = connection.execute(sqlx::raw_sql("COMMIT")).await;
    answer.and_then(|answer| ended.map(|_| answer))
}

#[async_trait]
impl Dialect for Postgres {
    type Database = sqlx::Postgres;

    fn options(&self) -> &PgConnectOptions {
        &self.options
    }

    fn ends_connection(&self, error: &dyn sqlx::error::DatabaseError) -> bool {
        let code = error.code().unwrap_or_default();
        // Connection exceptions; the server or its administrator ends it; statements that are there already,
        // or are not.
        code.starts_with("08")
            || matches!(&*code, "57P01" | "57P02" | "57P03" | "57P05" | "25P03" | "26000" | "42P05")
            || code == "0A000" && error.message().contains("cached plan")
    }

    async fn one(
        &self,
        connection: &mut PgConnection,
        query: &str,
        key: &[u8],
    ) -> Result<Option<Bytes>, sqlx::Error> {
        let mut is_second = false;
        loop {
            let query = statement(query);
            let query = match std::str::from_utf8(key) {
                Ok(text) => query.bind(text.to_owned()),
                Err(_) => query.bind(key.to_vec()),
            };
            self.begin(connection).await?;
            let row = query.fetch_optional(&mut *connection).await;
            match end(connection, row).await {
                Err(error) if !is_second && has_lost_statement(&error) => is_second = true,
                row => return row?.map_or(Ok(None), |row| column(&row, 0)),
            }
        }
    }

    async fn many(
        &self,
        connection: &mut PgConnection,
        query: &str,
        keys: &[Bytes],
        texts: &[&str],
    ) -> Result<Rows, sqlx::Error> {
        let texts: Vec<String> = texts.iter().map(|key| (*key).to_owned()).collect();
        let mut is_second = false;
        loop {
            self.begin(connection).await?;
            let rows = read(statement(query).bind(texts.clone()), connection, keys).await;
            match end(connection, rows).await {
                Err(error) if !is_second && has_lost_statement(&error) => is_second = true,
                rows => return rows,
            }
        }
    }

    fn name(&self) -> String {
        let options = &self.options;
        let (host, port) = (options.get_host(), options.get_port());
        let database = options.get_database().unwrap_or_default();
        // The role and its options, as `search_path`, decide which tables a query means.
        let (user, more) = (options.get_username(), options.get_options().unwrap_or_default());
        format!("postgres\0{host}\0{port}\0{database}\0{user}\0{more}")
    }
}

/// When sqlx meets a type that it does not know, like an enum, it asks for it between preparing and
/// executing, by a simple query, which ends the unnamed statement. The next time it knows the type.
fn has_lost_statement(error: &sqlx::Error) -> bool {
    error.as_database_error().and_then(|error| error.code()).is_some_and(|code| code == "26000")
}

async fn read(
    query: Query<'static, sqlx::Postgres, PgArguments>,
    connection: &mut PgConnection,
    keys: &[Bytes],
) -> Result<Rows, sqlx::Error> {
    let (mut rows, mut found) = (query.fetch(connection), Rows::of(keys));
    while let Some(row) = rows.try_next().await? {
        found.take(&column(&row, 0)?.unwrap_or_default(), column(&row, 1)?);
    }
    Ok(found)
}

fn statement(query: &str) -> Query<'static, sqlx::Postgres, PgArguments> {
    sqlx::query(AssertSqlSafe(query.to_owned())).persistent(false)
}

fn column(row: &PgRow, at: usize) -> Result<Option<Bytes>, sqlx::Error> {
    let value = row.try_get_raw(at)?;
    if value.is_null() {
        return Ok(None);
    }
    let refuse = |source| sqlx::Error::ColumnDecode { index: row.column(at).name().to_owned(), source };
    let raw = || value.as_bytes().map_err(refuse);
    let type_info = value.type_info();
    if matches!(type_info.kind(), PgTypeKind::Enum(_)) {
        return Ok(Some(Bytes::copy_from_slice(raw()?)));
    }
    let text = match type_info.name() {
        "INT2" => row.try_get_unchecked::<i16, _>(at)?.to_string(),
        "INT4" => row.try_get_unchecked::<i32, _>(at)?.to_string(),
        "INT8" => row.try_get_unchecked::<i64, _>(at)?.to_string(),
        "FLOAT4" => row.try_get_unchecked::<f32, _>(at)?.to_string(),
        "FLOAT8" => row.try_get_unchecked::<f64, _>(at)?.to_string(),
        "BOOL" => row.try_get_unchecked::<bool, _>(at)?.to_string(),
        "TEXT" | "VARCHAR" | "CHAR" | "BPCHAR" | "NAME" | "JSON" | "BYTEA" | "XML" | "UNKNOWN" | "citext" => {
            return Ok(Some(Bytes::copy_from_slice(raw()?)));
        }
        // A byte with the format's version comes before the text.
        "JSONB" => return Ok(Some(Bytes::copy_from_slice(raw()?.get(1..).unwrap_or_default()))),
        name => {
            return Err(refuse(
                format!("{name} is no type of values here; cast it to text in the query").into(),
            ));
        }
    };
    Ok(Some(text.into()))
}
