//! The registry: the small, consistent store in which a fleet keeps its ring, its liveness and its
//! undelivered invalidations.
//!
//! [`Registry`] is what Peanut needs of such a store and no more: it knows keys, revisions and leases,
//! not rings. [`LocalRegistry`] keeps everything in the process (embedding, tests, the demo) and serves
//! fixed node lists; [`EtcdRegistry`] is the one that fleets use, and the only place that names etcd's
//! client.

#[cfg(feature = "etcd")]
mod etcd;
mod local;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;

#[cfg(feature = "etcd")]
pub use etcd::EtcdRegistry;
pub use local::LocalRegistry;

/// A lease, as the registry numbers them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct LeaseId(pub i64);

/// One key with its value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The key.
    pub key: String,
    /// Its value.
    pub value: Vec<u8>,
    /// Revision of its last change.
    pub revision: i64,
}

/// Every key under a prefix, as of one revision.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    /// The revision; changes after it are watched from `revision + 1`.
    pub revision: i64,
    /// The keys, in order.
    pub entries: Vec<Entry>,
}

/// One change to a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// The key.
    pub key: String,
    /// Its new value; `None` where it was deleted or its lease ended.
    pub value: Option<Vec<u8>>,
    /// Revision of the change.
    pub revision: i64,
}

/// A stream of changes under a prefix.
#[async_trait]
pub trait Changes: Send {
    /// The next changes, in order; never an empty list. Cancel-safe.
    ///
    /// # Errors
    /// Where the stream has ended: cancelled, compacted away, or silent for too long. The watcher loads
    /// again and watches from there.
    async fn next(&mut self) -> Result<Vec<Change>, RegistryError>;
}

/// What Peanut needs of a coordination store. Every call is bounded in time by the implementation.
#[async_trait]
pub trait Registry: fmt::Debug + Send + Sync + 'static {
    /// Reads every key that begins with `prefix`.
    ///
    /// # Errors
    /// Where the registry cannot be reached or refuses.
    async fn load(&self, prefix: &str) -> Result<Snapshot, RegistryError>;

    /// Watches every key that begins with `prefix`, from revision `from` on, inclusive.
    ///
    /// # Errors
    /// Where the registry cannot be reached or refuses. A compacted `from` may also show in the stream.
    async fn watch(&self, prefix: &str, from: i64) -> Result<Box<dyn Changes>, RegistryError>;

    /// Writes a key, on a lease or for good.
    ///
    /// # Errors
    /// Where the registry cannot be reached or refuses, or the lease is gone.
    async fn put(&self, key: &str, value: Vec<u8>, lease: Option<LeaseId>) -> Result<(), RegistryError>;

    /// Writes a key if its last change was at revision `expected` (0: if it is absent), and says whether
    /// it did.
    ///
    /// # Errors
    /// Where the registry cannot be reached or refuses. The write may then have happened or not.
    async fn swap(&self, key: &str, expected: i64, value: Vec<u8>) -> Result<bool, RegistryError>;

    /// Deletes a key if its last change was at revision `expected`, and says whether it did.
    ///
    /// # Errors
    /// Where the registry cannot be reached or refuses. The deletion may then have happened or not.
    async fn delete_if(&self, key: &str, expected: i64) -> Result<bool, RegistryError>;

    /// Deletes a key; one that is absent is no error.
    ///
    /// # Errors
    /// Where the registry cannot be reached or refuses.
    async fn delete(&self, key: &str) -> Result<(), RegistryError>;

    /// Grants a lease: keys put on it go when it has not been renewed for `ttl`, rounded up to seconds.
    ///
    /// # Errors
    /// Where the registry cannot be reached or refuses.
    async fn grant(&self, ttl: Duration) -> Result<LeaseId, RegistryError>;

    /// Renews a lease and says whether it still stands. `Ok(true)` means that the reply has arrived.
    ///
    /// # Errors
    /// Where the registry cannot be reached or refuses.
    async fn renew(&self, lease: LeaseId) -> Result<bool, RegistryError>;

    /// Ends a lease and deletes its keys; one that is gone is no error.
    ///
    /// # Errors
    /// Where the registry cannot be reached or refuses.
    async fn revoke(&self, lease: LeaseId) -> Result<(), RegistryError>;
}

/// The registry could not be reached, or refused.
#[derive(Clone, Debug)]
pub struct RegistryError {
    message: Arc<str>,
    source: Option<Arc<dyn std::error::Error + Send + Sync>>,
}

impl RegistryError {
    /// An error of that message.
    pub fn new(message: impl Into<String>) -> Self {
        RegistryError { message: message.into().into(), source: None }
    }

    /// The same error with what caused it.
    #[must_use]
    pub fn with_source(mut self, source: impl std::error::Error + Send + Sync + 'static) -> Self {
        self.source = Some(Arc::new(source));
        self
    }
}

impl fmt::Display for RegistryError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for RegistryError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.source.as_ref().map(|source| &**source as _)
    }
}
