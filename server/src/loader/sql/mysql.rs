//! MySQL and MariaDB.

use std::str::FromStr as _;

use async_trait::async_trait;
use bytes::Bytes;
use sqlx::mysql::{MySqlConnectOptions, MySqlPool, MySqlPoolOptions, MySqlRow};
use sqlx::{AssertSqlSafe, Column as _, Executor as _, Row as _, TypeInfo as _, ValueRef as _};

use super::{Database, LoaderError, Row, SqlOptions, in_time, with_parameters};

#[derive(Debug)]
pub(super) struct MySql {
    pool: MySqlPool,
    timeout: std::time::Duration,
}

impl MySql {
    pub(super) fn new(url: &str, options: &SqlOptions) -> Result<Self, LoaderError> {
        // The error names what is wrong, but not the password.
        let connect = MySqlConnectOptions::from_str(url).map_err(|e| format!("url of kind mysql: {e}"))?;
        let timeout = options.timeout;
        let pool = MySqlPoolOptions::new()
            .max_connections(options.max_connections)
            .acquire_timeout(timeout)
            .after_connect(move |connection, _| {
                Box::pin(async move {
                    // MariaDB counts seconds, MySQL milliseconds; each refuses the other's variable.
                    let seconds = format!("SET SESSION max_statement_time = {}", timeout.as_secs_f64());
                    if connection.execute(AssertSqlSafe(seconds)).await.is_err() {
                        let ms = format!("SET SESSION max_execution_time = {}", timeout.as_millis().max(1));
                        connection.execute(AssertSqlSafe(ms)).await?;
                    }
                    Ok(())
                })
            })
            .connect_lazy_with(connect);
        Ok(MySql { pool, timeout })
    }
}

#[async_trait]
impl Database for MySql {
    async fn one(&self, query: &str, key: &[u8]) -> Result<Option<Bytes>, sqlx::Error> {
        let query = sqlx::query(AssertSqlSafe(query.to_owned()));
        let query = match std::str::from_utf8(key) {
            Ok(text) => query.bind(text.to_owned()),
            Err(_) => query.bind(key.to_vec()),
        };
        let row = in_time(self.timeout, query.fetch_optional(&self.pool)).await?;
        row.map_or(Ok(None), |row| column(&row, 0))
    }

    async fn many(&self, query: &str, keys: &[&str]) -> Result<Vec<Row>, sqlx::Error> {
        let (query, parameters) = with_parameters(query, keys.len());
        let query = sqlx::query(AssertSqlSafe(query));
        // The last one stands for those that are too many.
        let keys = (0..parameters).map(|at| keys[at.min(keys.len() - 1)].to_owned());
        let query = keys.fold(query, |query, key| query.bind(key));
        let rows = in_time(self.timeout, query.fetch_all(&self.pool)).await?;
        rows.iter().map(|row| Ok((column(row, 0)?.unwrap_or_default(), column(row, 1)?))).collect()
    }

    fn name(&self) -> String {
        let options = self.pool.connect_options();
        let (host, port) = (options.get_host(), options.get_port());
        format!("mysql\0{host}\0{port}\0{}", options.get_database().unwrap_or_default())
    }
}

fn column(row: &MySqlRow, at: usize) -> Result<Option<Bytes>, sqlx::Error> {
    let value = row.try_get_raw(at)?;
    if value.is_null() {
        return Ok(None);
    }
    let text = match value.type_info().name() {
        "BOOLEAN" => row.try_get_unchecked::<i8, _>(at)?.to_string(),
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
