//! Loaders: where a missing value comes from.
//!
//! A loader says what it found for one key, or for several at once. It knows nothing of caching: that each key is loaded once for
//! all who wait, that a load may take only so long and that a panic is an error like any other is the
//! flight's business.

mod closure;
#[cfg(feature = "grpc")]
mod grpc;
#[cfg(feature = "http")]
mod http;
#[cfg(any(feature = "http", feature = "redis", feature = "grpc"))]
mod reconnect;
#[cfg(feature = "redis")]
mod redis;
#[cfg(feature = "sql")]
mod sql;
mod r#static;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::{BoxFuture, join_all};
#[cfg(any(feature = "http", feature = "sql", feature = "redis", feature = "grpc"))]
use peanut_proto::bounds::Bounds;

pub use closure::{LoaderFn, loader_fn};
#[cfg(feature = "grpc")]
pub use grpc::GrpcLoader;
#[cfg(feature = "http")]
pub use http::HttpLoader;
#[cfg(feature = "redis")]
pub use redis::RedisLoader;
#[cfg(feature = "sql")]
pub use sql::{SqlLoader, SqlOptions};
pub use r#static::StaticLoader;

/// The bytes of values that loaders take in one answer for many keys. What does not fit is asked for again, fewer keys at a time, so that
/// an answer takes no more memory than four of the longest values.
#[cfg(any(feature = "redis", feature = "sql"))]
const MOST_BATCH_BYTES: usize = 4 * peanut_proto::limits::MAX_VALUE_BYTES;

/// How long one request to an origin may take.
#[cfg(any(feature = "http", feature = "sql", feature = "redis", feature = "grpc"))]
fn check_timeout(timeout: Duration) -> Result<(), LoaderError> {
    let bounds = Bounds::new(Duration::from_millis(1), Duration::from_secs(3600));
    bounds.check(timeout).map_err(|why| format!("`timeout` {why}").into())
}

/// Where a group's missing values come from.
///
/// ```
/// use peanut_server::{Loaded, Loader, LoaderError};
///
/// struct Squares;
///
/// impl Loader for Squares {
///     async fn load(&self, _group: &str, key: &[u8]) -> Result<Loaded, LoaderError> {
///         let number: u64 = std::str::from_utf8(key)?.parse()?;
///         Ok(Loaded::found((number * number).to_string()))
///     }
/// }
/// ```
pub trait Loader: Send + Sync + 'static {
    /// Loads one key.
    ///
    /// # Errors
    /// Whatever keeps the loader from knowing. The message reaches every caller that waits; nothing is
    /// remembered, so the next get loads again. That the origin has no such key is not an error but
    /// [`Loaded::NotFound`].
    fn load(&self, group: &str, key: &[u8]) -> impl Future<Output = Result<Loaded, LoaderError>> + Send;

    /// Loads many keys at once, where [`most_keys`](Self::most_keys) says that it can: one result for each key, in their
    /// order. By default each is loaded by itself.
    fn load_many(
        &self,
        group: &str,
        keys: &[Bytes],
    ) -> impl Future<Output = Vec<Result<Loaded, LoaderError>>> + Send {
        join_all(keys.iter().map(|key| self.load(group, key)))
    }

    /// The most keys that [`load_many`](Self::load_many) takes at once; 1, the default: it is not called. Keys that are missed in the same moment
    /// are loaded together, and so are those that wait for their turn.
    fn most_keys(&self) -> usize {
        1
    }

    /// Tries whether the origin is there and understands what it will be asked, and changes nothing there; for
    /// `peanut-server --check-config --connect`. By default nothing is tried.
    ///
    /// # Errors
    /// Why it could not load.
    fn check(&self, _group: &str) -> impl Future<Output = Result<(), LoaderError>> + Send {
        async { Ok(()) }
    }

    /// Names the origin: what a loader with another fingerprint has loaded is not restored after a restart. By default
    /// all loaders have the same one.
    fn fingerprint(&self) -> u64 {
        0
    }
}

/// What a loader found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Loaded {
    /// The origin has this value.
    Found {
        /// The value.
        value: Bytes,
        /// How long it stays fresh, in place of the group's `ttl`; zero: it is not kept at all.
        ttl: Option<Duration>,
    },
    /// The origin has no such key. That is remembered for the group's `negative_ttl`.
    NotFound,
}

impl Loaded {
    /// The origin has this value; it lives as long as the group says.
    pub fn found(value: impl Into<Bytes>) -> Self {
        Loaded::Found { value: value.into(), ttl: None }
    }

    /// The origin has this value and says how long it stays fresh.
    pub fn found_for(value: impl Into<Bytes>, ttl: Duration) -> Self {
        Loaded::Found { value: value.into(), ttl: Some(ttl) }
    }
}

impl<V: Into<Bytes>> From<Option<V>> for Loaded {
    fn from(value: Option<V>) -> Self {
        value.map_or(Loaded::NotFound, Loaded::found)
    }
}

tokio::task_local! {
    static TRACE: Option<String>;
}

/// The W3C trace context (`traceparent`) of the call for which a load runs, where it has one and this is called in the loader's
/// own task. Loaders over HTTP and gRPC send it on.
pub fn trace_context() -> Option<String> {
    TRACE.try_with(Clone::clone).ok().flatten()
}

/// Runs a load in the trace of whoever asked.
pub(crate) fn in_trace<F: Future>(traceparent: Option<String>, load: F) -> impl Future<Output = F::Output> {
    TRACE.scope(traceparent, load)
}

/// Why a loader could not say what it found. Any error converts into it; its message is what callers see.
#[derive(Clone)]
pub struct LoaderError {
    error: Arc<dyn std::error::Error + Send + Sync>,
    of_key: bool,
}

impl LoaderError {
    /// An error that is this key's alone, and says nothing of how the origin is: it does not count for the group's
    /// [`breaker`](crate::Group::breaker).
    pub fn of_key(error: impl Into<LoaderError>) -> Self {
        LoaderError { of_key: true, ..error.into() }
    }

    pub(crate) fn is_of_key(&self) -> bool {
        self.of_key
    }
}

impl<E: Into<Box<dyn std::error::Error + Send + Sync>>> From<E> for LoaderError {
    fn from(error: E) -> Self {
        LoaderError { error: error.into().into(), of_key: false }
    }
}

impl fmt::Debug for LoaderError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.error, f)
    }
}

/// The message, and those of its causes where they say more.
impl fmt::Display for LoaderError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&with_causes(self.error.to_string(), self.error.source()))
    }
}

/// A message, and those of causes that say more.
fn with_causes(mut said: String, mut cause: Option<&(dyn std::error::Error + 'static)>) -> String {
    while let Some(error) = cause {
        let message = error.to_string();
        if !said.contains(&message) {
            said.push_str(": ");
            said.push_str(&message);
        }
        cause = error.source();
    }
    said
}

/// A loader of any type. Owns its arguments, so that a load can outlive the call that caused it.
#[derive(Clone)]
pub(crate) struct AnyLoader(Option<Arc<dyn DynLoader>>);

impl AnyLoader {
    pub(crate) fn new(loader: impl Loader) -> Self {
        AnyLoader(Some(Arc::new(loader)))
    }

    /// Finds nothing: values come from clients only.
    pub(crate) fn none() -> Self {
        AnyLoader(None)
    }

    pub(crate) fn is_none(&self) -> bool {
        self.0.is_none()
    }

    pub(crate) async fn check(&self, group: &str) -> Result<(), LoaderError> {
        match &self.0 {
            Some(loader) => loader.check(group).await,
            None => Ok(()),
        }
    }

    pub(crate) fn fingerprint(&self) -> u64 {
        self.0.as_ref().map_or(0, |loader| loader.fingerprint())
    }

    /// The most keys that it takes at once; at least one.
    pub(crate) fn most_keys(&self) -> usize {
        self.0.as_ref().map_or(1, |loader| loader.most_keys().max(1))
    }

    pub(crate) async fn load(self, group: Arc<str>, keys: Vec<Bytes>) -> Vec<Result<Loaded, LoaderError>> {
        match (self.0, &keys[..]) {
            (Some(loader), [key]) => vec![loader.load(&group, key).await],
            (Some(loader), keys) => loader.load_many(&group, keys).await,
            (None, keys) => vec![Ok(Loaded::NotFound); keys.len()],
        }
    }
}

impl fmt::Debug for AnyLoader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Loader")
    }
}

trait DynLoader: Send + Sync {
    fn load<'a>(&'a self, group: &'a str, key: &'a [u8]) -> BoxFuture<'a, Result<Loaded, LoaderError>>;
    fn load_many<'a>(
        &'a self,
        group: &'a str,
        keys: &'a [Bytes],
    ) -> BoxFuture<'a, Vec<Result<Loaded, LoaderError>>>;
    fn check<'a>(&'a self, group: &'a str) -> BoxFuture<'a, Result<(), LoaderError>>;
    fn most_keys(&self) -> usize;
    fn fingerprint(&self) -> u64;
}

impl<L: Loader> DynLoader for L {
    fn load<'a>(&'a self, group: &'a str, key: &'a [u8]) -> BoxFuture<'a, Result<Loaded, LoaderError>> {
        Box::pin(Loader::load(self, group, key))
    }

    fn load_many<'a>(
        &'a self,
        group: &'a str,
        keys: &'a [Bytes],
    ) -> BoxFuture<'a, Vec<Result<Loaded, LoaderError>>> {
        Box::pin(Loader::load_many(self, group, keys))
    }

    fn check<'a>(&'a self, group: &'a str) -> BoxFuture<'a, Result<(), LoaderError>> {
        Box::pin(Loader::check(self, group))
    }

    fn most_keys(&self) -> usize {
        Loader::most_keys(self)
    }

    fn fingerprint(&self) -> u64 {
        Loader::fingerprint(self)
    }
}
