//! A loader over Redis or Valkey: GETRANGE, which is a GET of bounded length, in pipelines for many.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use peanut_proto::limits::MAX_VALUE_BYTES;
use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, Client, IntoConnectionInfo as _, Pipeline, RedisError, RedisResult};
use tokio::sync::OnceCell;
use tokio::time::{Instant, timeout_at};
use xxhash_rust::xxh3::xxh3_64;

use super::reconnect::Reconnect;
use super::{LoadRequest, Loaded, Loader, LoaderError, MOST_BATCH_BYTES, check_timeout};

/// Keys in one pipeline at most.
const MOST_KEYS: usize = 500;
/// Values that are longer than their share of an answer are asked for again, so many times fewer of them at
/// once.
const FEWER: usize = 8;

/// Loads strings from Redis. A key that is not there is not found; one that is no string is an error of its
/// own.
///
/// All loads share one connection. One on which a load has waited for all of its time is not used by later
/// ones. A load whose connection breaks is done once more on a new one, if the server had answered on the old
/// one.
#[derive(Clone)]
pub struct RedisLoader {
    /// What comes before and after a key.
    around: (Arc<[u8]>, Arc<[u8]>),
    timeout: Duration,
    client: Client,
    connection: Arc<Reconnect<Connecting>>,
    fingerprint: u64,
}

/// A connection that the first load makes.
type Connecting = Arc<OnceCell<MultiplexedConnection>>;

impl RedisLoader {
    /// How long a command may take by default, connecting and trying again included.
    pub const DEFAULT_TIMEOUT: Duration = Duration::from_secs(2);

    /// A loader from the server at `url`, like `redis://user:password@host:6379/0` (`rediss://` with TLS,
    /// `redis+unix://` for a socket). `key` says where a key is found, like `score:{key}`. Connects with the
    /// first load, and again when the connection is lost.
    ///
    /// # Errors
    /// Where the URL is none of Redis's, `key` has no `{key}` in it, or the time-out is not from 1 ms to an
    /// hour.
    pub fn new(url: &str, key: &str, timeout: Duration) -> Result<Self, LoaderError> {
        let Some((before, after)) = key.split_once("{key}") else {
            return Err(format!("`key`: `{key}` has no {{key}} in it").into());
        };
        check_timeout(timeout)?;
        // Where a program has chosen its provider already, that one is used.
        let _ = rustls::crypto::ring::default_provider().install_default();
        // Its message does not have the password.
        let info = url.into_connection_info().map_err(|e| format!("`url` of kind redis: {e}"))?;
        let (addr, database) = (info.addr().to_string(), info.redis_settings().db());
        let client = Client::open(info).map_err(|e| format!("`url` of kind redis: {e}"))?;
        Ok(RedisLoader {
            client,
            around: (before.as_bytes().into(), after.as_bytes().into()),
            timeout,
            connection: Arc::new(Reconnect::new(Arc::default(), || Some(Arc::default()))),
            fingerprint: xxh3_64(format!("{addr}\0{database}\0{key}").as_bytes()),
        })
    }

    /// Runs commands: once more, where the connection breaks on which the server had answered before.
    async fn run<T: redis::FromRedisValue>(
        &self,
        pipeline: &Pipeline,
    ) -> Result<Vec<RedisResult<T>>, LoaderError> {
        let deadline = Instant::now() + self.timeout;
        let mut is_second = false;
        loop {
            let used = self.connection.begin();
            let answer = timeout_at(deadline, self.run_on(used.connection(), pipeline)).await;
            match answer {
                Ok(Ok(answer)) => {
                    used.answered();
                    return Ok(answer);
                }
                Ok(Err(error)) if error.is_io_error() || error.is_unrecoverable_error() => {
                    let may_repeat = used.may_repeat() && !is_second;
                    used.replace();
                    if !may_repeat {
                        return Err(error.into());
                    }
                    is_second = true;
                }
                Ok(Err(error)) => {
                    used.answered();
                    return Err(error.into());
                }
                Err(_) => {
                    used.replace();
                    return Err(format!("Redis did not answer within {:?}", self.timeout).into());
                }
            }
        }
    }

    async fn run_on<T: redis::FromRedisValue>(
        &self,
        connection: &Connecting,
        pipeline: &Pipeline,
    ) -> RedisResult<Vec<RedisResult<T>>> {
        // The load's own time is what bounds them.
        let config = AsyncConnectionConfig::new().set_connection_timeout(None).set_response_timeout(None);
        let connect = || self.client.get_multiplexed_async_connection_with_config(&config);
        let mut connection = connection.get_or_try_init(connect).await?.clone();
        pipeline.query_async(&mut connection).await
    }

    /// Loads what is at those places. Of each no more comes than its share of an answer, so that all answers
    /// are bounded.
    async fn load_places(&self, places: &[Vec<u8>]) -> Vec<Result<Loaded, LoaderError>> {
        let mut loaded: Vec<Option<Result<Loaded, LoaderError>>> = vec![None; places.len()];
        let (mut due, mut most): (Vec<usize>, usize) = ((0..places.len()).collect(), MOST_KEYS);
        while !due.is_empty() {
            let mut long = Vec::new();
            most = most.min(due.len());
            let share = (MOST_BATCH_BYTES / most).min(MAX_VALUE_BYTES);
            for part in due.chunks(most) {
                let mut pipeline = redis::pipe();
                part.iter().for_each(|at| {
                    pipeline.cmd("GETRANGE").arg(&places[*at]).arg(0).arg(share);
                });
                let values = match self.run::<Bytes>(pipeline.ignore_errors()).await {
                    Ok(values) => values,
                    Err(error) => {
                        part.iter().for_each(|at| loaded[*at] = Some(Err(error.clone())));
                        continue;
                    }
                };
                for (at, value) in part.iter().zip(values) {
                    loaded[*at] = match value {
                        Ok(value) if value.len() <= share => Some(Ok(Loaded::found(value))),
                        Ok(_) if share < MAX_VALUE_BYTES => {
                            long.push(*at);
                            None
                        }
                        Ok(_) => Some(Err(too_long())),
                        Err(error) => Some(Err(told(error))),
                    };
                }
            }
            (due, most) = (long, (most / FEWER).max(1));
        }
        self.tell_missing_from_empty(places, &mut loaded).await;
        let unknown = || Err("Redis answered fewer commands than it was sent".into());
        loaded.into_iter().map(|loaded| loaded.unwrap_or_else(unknown)).collect()
    }

    /// GETRANGE takes a key that is not there for an empty string.
    async fn tell_missing_from_empty(
        &self,
        places: &[Vec<u8>],
        loaded: &mut [Option<Result<Loaded, LoaderError>>],
    ) {
        let is_empty = |loaded: &Option<Result<Loaded, LoaderError>>| matches!(loaded, Some(Ok(loaded)) if loaded.value().is_some_and(Bytes::is_empty));
        let empty: Vec<usize> = (0..loaded.len()).filter(|at| is_empty(&loaded[*at])).collect();
        if empty.is_empty() {
            return;
        }
        let mut pipeline = redis::pipe();
        empty.iter().for_each(|at| {
            pipeline.get(&places[*at]);
        });
        match self.run::<Option<Bytes>>(pipeline.ignore_errors()).await {
            Ok(values) => {
                for (at, value) in empty.into_iter().zip(values) {
                    loaded[at] = Some(value.map(Loaded::from).map_err(told));
                }
            }
            Err(error) => empty.into_iter().for_each(|at| loaded[at] = Some(Err(error.clone()))),
        }
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
        self.load(&LoadRequest::new(group, key)).await.map(drop)
    }

    fn fingerprint(&self) -> u64 {
        self.fingerprint
    }

    fn max_batch_size(&self) -> usize {
        MOST_KEYS
    }

    async fn load(&self, request: &LoadRequest) -> Result<Loaded, LoaderError> {
        let mut loaded = self.load_places(&[self.place(&request.key)]).await;
        loaded.pop().unwrap_or_else(|| Err("Redis answered nothing".into()))
    }

    async fn load_many(&self, requests: &[LoadRequest]) -> Vec<Result<Loaded, LoaderError>> {
        let places: Vec<_> = requests.iter().map(|request| self.place(&request.key)).collect();
        self.load_places(&places).await
    }
}

fn too_long() -> LoaderError {
    LoaderError::of_key(format!("the value is over the value limit of {MAX_VALUE_BYTES} bytes"))
}

/// What the server says of one command. That its key is no string says nothing of the others.
fn told(error: RedisError) -> LoaderError {
    if error.code() == Some("WRONGTYPE") { LoaderError::of_key(error) } else { error.into() }
}
