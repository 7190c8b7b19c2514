//! A loader over Redis or Valkey: GET, and MGET for many.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use redis::aio::{ConnectionManager, ConnectionManagerConfig};
use redis::{AsyncCommands as _, Client, IntoConnectionInfo as _};
use tokio::sync::OnceCell;
use xxhash_rust::xxh3::xxh3_64;

use super::{Loaded, Loader, LoaderError, check_timeout};

/// Keys in one MGET at most.
const MOST_KEYS: usize = 500;

/// Loads strings from Redis. A key that is not there is not found. One that is no string is an error where it is asked for alone,
/// and not found among others, as MGET has it.
#[derive(Clone)]
pub struct RedisLoader {
    client: Client,
    /// What comes before and after a key.
    around: (Arc<[u8]>, Arc<[u8]>),
    timeout: Duration,
    connection: Arc<OnceCell<ConnectionManager>>,
    fingerprint: u64,
}

impl RedisLoader {
    /// How long connecting, and one command, may take by default.
    pub const DEFAULT_TIMEOUT: Duration = Duration::from_secs(2);

    /// A loader from the server at `url`, like `redis://user:password@host:6379/0` (`rediss://` with TLS, `redis+unix://` for a
    /// socket). `key` says where a key is found, like `score:{key}`. Connects with the first load, and
    /// again when the connection is lost.
    ///
    /// # Errors
    /// Where the URL is none of Redis's, `key` has no `{key}` in it, or the time-out is not from 1 ms to an hour.
    pub fn new(url: &str, key: &str, timeout: Duration) -> Result<Self, LoaderError> {
        let Some((before, after)) = key.split_once("{key}") else {
            return Err(format!("key `{key}` has no {{key}} in it").into());
        };
        check_timeout(timeout)?;
        // Where a program has chosen its provider already, that one is used.
        let _ = rustls::crypto::ring::default_provider().install_default();
        // Its message does not have the password.
        let info = url.into_connection_info().map_err(|e| format!("url of kind redis: {e}"))?;
        let (addr, database) = (info.addr().to_string(), info.redis_settings().db());
        let client = Client::open(info).map_err(|e| format!("url of kind redis: {e}"))?;
        Ok(RedisLoader {
            client,
            around: (before.as_bytes().into(), after.as_bytes().into()),
            timeout,
            connection: Arc::default(),
            fingerprint: xxh3_64(format!("{addr}\0{database}\0{key}").as_bytes()),
        })
    }

    async fn connection(&self) -> Result<ConnectionManager, LoaderError> {
        let config = ConnectionManagerConfig::new()
            .set_connection_timeout(Some(self.timeout))
            .set_response_timeout(Some(self.timeout))
            // A load that fails says so at once; the next one tries again.
            .set_number_of_retries(0);
        let connect = || ConnectionManager::new_with_config(self.client.clone(), config);
        Ok(self.connection.get_or_try_init(connect).await?.clone())
    }

    fn place(&self, key: &[u8]) -> Vec<u8> {
        [&self.around.0, key, &self.around.1].concat()
    }
}

impl std::fmt::Debug for RedisLoader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RedisLoader").finish_non_exhaustive()
    }
}

impl Loader for RedisLoader {
    /// Logs in and asks for a key that nobody has.
    async fn check(&self, group: &str) -> Result<(), LoaderError> {
        let key = format!("peanut-check-{:016x}", fastrand::u64(..));
        self.load(group, key.as_bytes()).await.map(drop)
    }

    fn fingerprint(&self) -> u64 {
        self.fingerprint
    }

    fn most_keys(&self) -> usize {
        MOST_KEYS
    }

    async fn load(&self, _group: &str, key: &[u8]) -> Result<Loaded, LoaderError> {
        let value: Result<Option<Bytes>, _> = self.connection().await?.get(self.place(key)).await;
        match value {
            Ok(value) => Ok(value.into()),
            Err(error) if error.code() == Some("WRONGTYPE") => Err(LoaderError::of_key(error)),
            Err(error) => Err(error.into()),
        }
    }

    async fn load_many(&self, _group: &str, keys: &[Bytes]) -> Vec<Result<Loaded, LoaderError>> {
        let places: Vec<_> = keys.iter().map(|key| self.place(key)).collect();
        let values = async {
            let values: Vec<Option<Bytes>> = self.connection().await?.mget(places).await?;
            Ok::<_, LoaderError>(values)
        };
        match values.await {
            Ok(values) => values.into_iter().map(|value| Ok(value.into())).collect(),
            Err(error) => vec![Err(error); keys.len()],
        }
    }
}
