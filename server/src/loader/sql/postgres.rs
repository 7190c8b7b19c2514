//! PostgreSQL.

use std::str::FromStr as _;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use sqlx::postgres::{PgConnectOptions, PgPool, PgPoolOptions, PgRow};
use sqlx::{AssertSqlSafe, Column as _, Row as _, TypeInfo as _, ValueRef as _};

use super::{Database, LoaderError, Row, SqlOptions, in_time};

#[derive(Debug)]
pub(super) struct Postgres {
    pool: PgPool,
    timeout: Duration,
}

impl Postgres {
    pub(super) fn new(url: &str, options: &SqlOptions) -> Result<Self, LoaderError> {
        // The error names what is wrong, but not the password.
        let connect = PgConnectOptions::from_str(url).map_err(|e| format!("url of kind postgres: {e}"))?;
        let connect = connect
            .application_name("peanut-server")
            .options([("statement_timeout", options.timeout.as_millis().max(1).to_string())]);
        let pool = PgPoolOptions::new()
            .max_connections(options.max_connections)
            .acquire_timeout(options.timeout)
            .connect_lazy_with(connect);
        Ok(Postgres { pool, timeout: options.timeout })
    }
}

#[async_trait]
impl Database for Postgres {
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
        let keys: Vec<String> = keys.iter().map(|key| (*key).to_owned()).collect();
        let query = sqlx::query(AssertSqlSafe(query.to_owned())).bind(keys);
        let rows = in_time(self.timeout, query.fetch_all(&self.pool)).await?;
        rows.iter().map(|row| Ok((column(row, 0)?.unwrap_or_default(), column(row, 1)?))).collect()
    }

    fn name(&self) -> String {
        let options = self.pool.connect_options();
        let (host, port) = (options.get_host(), options.get_port());
        format!("postgres\0{host}\0{port}\0{}", options.get_database().unwrap_or_default())
    }
}

fn column(row: &PgRow, at: usize) -> Result<Option<Bytes>, sqlx::Error> {
    let value = row.try_get_raw(at)?;
    if value.is_null() {
        return Ok(None);
    }
    let refuse = |source| sqlx::Error::ColumnDecode { index: row.column(at).name().to_owned(), source };
    let raw = || value.as_bytes().map_err(refuse);
    let text = match value.type_info().name() {
        "INT2" => row.try_get_unchecked::<i16, _>(at)?.to_string(),
        "INT4" => row.try_get_unchecked::<i32, _>(at)?.to_string(),
        "INT8" => row.try_get_unchecked::<i64, _>(at)?.to_string(),
        "FLOAT4" => row.try_get_unchecked::<f32, _>(at)?.to_string(),
        "FLOAT8" => row.try_get_unchecked::<f64, _>(at)?.to_string(),
        "BOOL" => row.try_get_unchecked::<bool, _>(at)?.to_string(),
        "TEXT" | "VARCHAR" | "CHAR" | "BPCHAR" | "NAME" | "JSON" | "BYTEA" | "XML" | "UNKNOWN" => {
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
