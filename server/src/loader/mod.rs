//! Loaders: where a missing value comes from.
//!
//! A loader says what it found for one key, or for several at once. It knows nothing of caching: that each
//! key is loaded once for all who wait, that a load may take only so long and that a panic is an error like
//! any other is the flight's business.

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
use peanut_proto::causes::causes;

pub use closure::{LoaderFn, loader_fn};
#[cfg(feature = "grpc")]
pub use grpc::GrpcLoader;
#[cfg(feature = "http")]
pub use http::HttpLoader;
pub use peanut_proto::loaded::Loaded;
#[cfg(feature = "redis")]
pub use redis::RedisLoader;
#[cfg(feature = "sql")]
pub use sql::{SqlLoader, SqlOptions};
pub use r#static::StaticLoader;
use tokio::time::Instant;

/// The bytes of values that loaders take in one answer for many keys. What does not fit is asked for again,
/// fewer keys at a time, so that an answer takes no more memory than four of the longest values.
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
/// use peanut_server::{LoadRequest, Loaded, Loader, LoaderError};
///
/// struct Squares;
///
/// impl Loader for Squares {
///     async fn load(&self, request: &LoadRequest) -> Result<Loaded, LoaderError> {
///         let number: u64 = request.text()?.parse()?;
///         Ok(Loaded::found((number * number).to_string()))
///     }
/// }
/// ```
#[diagnostic::on_unimplemented(
    message = "`{Self}` is no `Loader`",
    note = "wrap a closure in `loader_fn`, or implement `Loader`"
)]
pub trait Loader: Send + Sync + 'static {
    /// Loads one key.
    ///
    /// # Errors
    /// Whatever keeps the loader from knowing. The message reaches every caller that waits; nothing is
    /// remembered, so the next get loads again. That the origin has no such key is not an error but
    /// [`Loaded::not_found`].
    fn load(&self, request: &LoadRequest) -> impl Future<Output = Result<Loaded, LoaderError>> + Send;

    /// Loads many keys of one group at once, where [`max_batch_size`](Self::max_batch_size) says that it can:
    /// one result for each request, in their order. By default each is loaded by itself.
    fn load_many(
        &self,
        requests: &[LoadRequest],
    ) -> impl Future<Output = Vec<Result<Loaded, LoaderError>>> + Send {
        join_all(requests.iter().map(|request| self.load(request)))
    }

    /// The most keys that [`load_many`](Self::load_many) takes at once; 1, the default: it is not called.
    /// Keys that are missed in the same moment are loaded together, and so are those that wait for their
    /// turn.
    fn max_batch_size(&self) -> usize {
        1
    }

    /// Tries whether the origin is there and understands what it will be asked, and changes nothing there;
    /// for `peanut-server --check-config --connect`. By default nothing is tried.
    ///
    /// # Errors
    /// Why it could not load.
    fn check(&self, _group: &str) -> impl Future<Output = Result<(), LoaderError>> + Send {
        async { Ok(()) }
    }

    /// Names the origin: what a loader with another fingerprint has loaded is not restored after a restart.
    /// By default all loaders have the same one.
    fn fingerprint(&self) -> u64 {
        0
    }
}

/// What a loader is asked for: one key, by when, and in whose trace.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct LoadRequest {
    /// The group.
    pub group: Arc<str>,
    /// The key, 1 to 1024 bytes.
    pub key: Bytes,
    /// When the load's time is over, after the group's `load_timeout`: the load is dropped then.
    pub deadline: Instant,
    /// The W3C trace context (`traceparent`) of the get that caused the load, where it has one. Loaders over
    /// HTTP and gRPC send it on.
    pub traceparent: Option<Arc<str>>,
}

impl LoadRequest {
    /// A request without a trace whose deadline is a minute ahead, for tests of loaders.
    pub fn new(group: &str, key: impl Into<Bytes>) -> Self {
        let deadline = Instant::now() + Duration::from_secs(60);
        LoadRequest { group: group.into(), key: key.into(), deadline, traceparent: None }
    }

    /// The key as text.
    ///
    /// # Errors
    /// Where it is not UTF-8: an error that is this key's alone.
    pub fn text(&self) -> Result<&str, LoaderError> {
        std::str::from_utf8(&self.key).map_err(LoaderError::of_key)
    }
}

/// Why a loader could not say what it found. Any error converts into it; its message is what callers see.
#[derive(Clone)]
pub struct LoaderError {
    error: Arc<dyn std::error::Error + Send + Sync>,
    of_key: bool,
}

impl LoaderError {
    /// An error that is this key's alone, and says nothing of how the origin is: it does not count for the
    /// group's
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
        f.write_str(&with_causes(self.error.to_string(), &*self.error))
    }
}

/// A message, and those of causes that say more.
fn with_causes(mut said: String, error: &(dyn std::error::Error + 'static)) -> String {
    for message in causes(error).map(ToString::to_string) {
        if !said.contains(&message) {
            said.push_str(": ");
            said.push_str(&message);
        }
    }
    said
}

/// When the last request to the origin may begin for keys that have to be asked for apart: three quarters of
/// what is left of the load, so that what has been found by then is not lost with the rest.
#[cfg(any(feature = "grpc", feature = "sql"))]
fn last_begin(requests: &[LoadRequest]) -> Instant {
    let now = Instant::now();
    let left = requests.iter().map(|request| request.deadline.saturating_duration_since(now)).min();
    now + left.unwrap_or_default().mul_f64(0.75)
}

/// That a key was asked for with others of which one is refused, and not alone in time. It does not count for
/// the group's breaker.
#[cfg(any(feature = "grpc", feature = "sql"))]
fn no_time_for(refused: impl fmt::Display) -> LoaderError {
    LoaderError::of_key(format!(
        "asked for with keys that the origin refuses, and no time was left for it: {refused}"
    ))
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
    pub(crate) fn max_batch_size(&self) -> usize {
        self.0.as_ref().map_or(1, |loader| loader.max_batch_size().max(1))
    }

    pub(crate) async fn load(self, requests: Vec<LoadRequest>) -> Vec<Result<Loaded, LoaderError>> {
        match (self.0, &requests[..]) {
            (Some(loader), [request]) => vec![loader.load(request).await],
            (Some(loader), requests) => loader.load_many(requests).await,
            (None, requests) => vec![Ok(Loaded::not_found()); requests.len()],
        }
    }
}

impl fmt::Debug for AnyLoader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Loader")
    }
}

trait DynLoader: Send + Sync {
    fn load<'a>(&'a self, request: &'a LoadRequest) -> BoxFuture<'a, Result<Loaded, LoaderError>>;
    fn load_many<'a>(
        &'a self,
        requests: &'a [LoadRequest],
    ) -> BoxFuture<'a, Vec<Result<Loaded, LoaderError>>>;
    fn check<'a>(&'a self, group: &'a str) -> BoxFuture<'a, Result<(), LoaderError>>;
    fn max_batch_size(&self) -> usize;
    fn fingerprint(&self) -> u64;
}

impl<L: Loader> DynLoader for L {
    fn load<'a>(&'a self, request: &'a LoadRequest) -> BoxFuture<'a, Result<Loaded, LoaderError>> {
        Box::pin(Loader::load(self, request))
    }

    fn load_many<'a>(
        &'a self,
        requests: &'a [LoadRequest],
    ) -> BoxFuture<'a, Vec<Result<Loaded, LoaderError>>> {
        Box::pin(Loader::load_many(self, requests))
    }

    fn check<'a>(&'a self, group: &'a str) -> BoxFuture<'a, Result<(), LoaderError>> {
        Box::pin(Loader::check(self, group))
    }

    fn max_batch_size(&self) -> usize {
        Loader::max_batch_size(self)
    }

    fn fingerprint(&self) -> u64 {
        Loader::fingerprint(self)
    }
}

/// Asks a loader for some keys of group `g`, in tests.
#[cfg(all(test, any(feature = "http", feature = "sql")))]
pub(crate) mod asked {
    use super::{Bytes, LoadRequest, Loaded, Loader, LoaderError};

    pub(crate) async fn one(loader: &impl Loader, key: &[u8]) -> Result<Loaded, LoaderError> {
        loader.load(&LoadRequest::new("g", key.to_vec())).await
    }

    #[cfg(feature = "sql")]
    pub(crate) async fn many<K: Into<Bytes>>(
        loader: &impl Loader,
        keys: impl IntoIterator<Item = K>,
    ) -> Vec<Result<Loaded, LoaderError>> {
        let requests: Vec<_> = keys.into_iter().map(|key| LoadRequest::new("g", key)).collect();
        loader.load_many(&requests).await
    }
}
