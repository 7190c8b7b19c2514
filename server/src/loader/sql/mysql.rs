//! MySQL and MariaDB, themselves or behind a proxy.
//!
//! A statement's time limit is a variable of the session, since neither has a form of it for one statement
//! that both know. A proxy that shares server connections (ProxySQL, MaxScale) keeps such a session to itself
//! or repeats the variable where it goes, and numbers prepared statements for each client; unlike
//! PostgreSQL's their numbers come from the server, so clients cannot collide. A server prepares a statement
//! again by itself when its tables have changed.

use std::str::FromStr as _;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::TryStreamExt as _;
use sqlx::mysql::{MySqlConnectOptions, MySqlConnection, MySqlDatabaseError, MySqlRow};
use sqlx::{AssertSqlSafe, Column as _, Executor as _, Row as _, TypeInfo as _, ValueRef as _};

use super::connections::{Connections, Dialect};
use super::rows::Rows;
use super::{LoaderError, SqlOptions, with_parameters};

/// Errors that end a connection, or after which its statements are not to be had: shutdown, a handle of a
/// statement that is unknown or out of date, killed, idle for too long.
const OF_CONNECTION: [u16; 6] = [1053, 1243, 1615, 1927, 4031, 3169];

#[derive(Debug)]
pub(super) struct MySql {
    options: MySqlConnectOptions,
    timeout: Duration,
}

impl MySql {
    pub(super) fn connections(url: &str, options: &SqlOptions) -> Result<Connections<Self>, LoaderError> {
        // The error names what is wrong, but not the password.
        let connect = MySqlConnectOptions::from_str(url).map_err(|e| format!("`url` of kind mysql: {e}"))?;
        let mysql = MySql { options: connect, timeout: options.timeout };
        Ok(Connections::new(mysql, options.max_connections, options.timeout))
    }
}

#[async_trait]
impl Dialect for MySql {
    type Database = sqlx::MySql;

    fn options(&self) -> &MySqlConnectOptions {
        &self.options
    }

    async fn prepare(&self, connection: &mut MySqlConnection) -> Result<(), sqlx::Error> {
        // MariaDB counts seconds, MySQL milliseconds; each refuses the other's variable.
        let seconds = format!("SET SESSION max_statement_time = {}", self.timeout.as_secs_f64());
        match connection.execute(AssertSqlSafe(seconds)).await {
            Err(sqlx::Error::Database(_)) => {
                let ms = format!("SET SESSION max_execution_time = {}", self.timeout.as_millis().max(1));
                connection.execute(AssertSqlSafe(ms)).await.map(|_| ())
            }
            done => done.map(|_| ()),
        }
    }

    fn ends_connection(&self, error: &dyn sqlx::error::DatabaseError) -> bool {
        let error = error.try_downcast_ref::<MySqlDatabaseError>();
        error.is_some_and(|error| OF_CONNECTION.contains(&error.number()))
    }

    async fn one(
        &self,
        connection: &mut MySqlConnection,
        query: &str,
        key: &[u8],
    ) -> Result<Option<Bytes>, sqlx::Error> {
        let query = sqlx::query(AssertSqlSafe(query.to_owned()));
        let query = match std::str::from_utf8(key) {
            Ok(text) => query.bind(text.to_owned()),
            Err(_) => query.bind(key.to_vec()),
        };
        query.fetch_optional(connection).await?.map_or(Ok(None), |row| column(&row, 0))
    }

    async fn many(
        &self,
        connection: &mut MySqlConnection,
        query: &str,
        keys: &[Bytes],
        texts: &[&str],
    ) -> Result<Rows, sqlx::Error> {
        let (query, parameters) = with_parameters(query, texts.len());
        let query = sqlx::query(AssertSqlSafe(query));
        // The last one stands for those that are too many.
        let texts = (0..parameters).map(|at| texts[at.min(texts.len() - 1)].to_owned());
        let query = texts.fold(query, |query, key| query.bind(key));
        let (mut rows, mut found) = (query.fetch(connection), Rows::of(keys));
        while let Some(row) = rows.try_next().await? {
            found.take(&column(&row, 0)?.unwrap_or_default(), column(&row, 1)?);
        }
        Ok(found)
    }

    fn name(&self) -> String {
        let options = &self.options;
        let (host, port) = (options.get_host(), options.get_port());
        let (database, user) = (options.get_database().unwrap_or_default(), options.get_username());
        format!("mysql\0{host}\0{port}\0{database}\0{user}")
    }
}

fn column(row: &MySqlRow, at: usize) -> Result<Option<Bytes>, sqlx::Error> {
    let value = row.try_get_raw(at)?;
    if value.is_null() {
        return Ok(None);
    }
    let text = match value.type_info().name() {
        // What sqlx calls so is a number of one digit's width, signed or not.
        "BOOLEAN" if <u64 as sqlx::Type<sqlx::MySql>>::compatible(&value.type_info()) => {
            row.try_get_unchecked::<u64, _>(at)?.to_string()
        }
        "BOOLEAN" => row.try_get_unchecked::<i64, _>(at)?.to_string(),
        "TINYINT" | "SMALLINT" | "MEDIUMINT" | "INT" | "BIGINT" | "YEAR" => {
            row.try_get_unchecked::<i64, _>(at)?.to_string()
        }
        "TINYINT UNSIGNED" | "SMALLINT UNSIGNED" | "MEDIUMINT UNSIGNED" | "INT UNSIGNED"
        | "BIGINT UNSIGNED" => row.try_get_unchecked::<u64, _>(at)?.to_string(),
        "FLOAT" => row.try_get_unchecked::<f32, _>(at)?.to_string(),
        "DOUBLE" => row.try_get_unchecked::<f64, _>(at)?.to_string(),
        name @ ("DATE" | "TIME" | "DATETIME" | "TIMESTAMP" | "BIT" | "GEOMETRY") => {
            let (index, name) = (row.column(at).name().to_owned(), name.to_owned());
            let source = format!("{name} is no type of values here; cast it to char in the query").into();
            return Err(sqlx::Error::ColumnDecode { index, source });
        }
        // Text, bytes, decimals and JSON are bytes on the wire.
        _ => return Ok(Some(row.try_get_unchecked::<Vec<u8>, _>(at)?.into())),
    };
    Ok(Some(text.into()))
}
