//! The registry: the small, consistent store in which a fleet keeps its ring, its liveness and its
//! hints.
//!
//! [`Registry`] is what Peanut needs of such a store and no more: it knows keys, revisions and leases,
//! not rings. [`LocalRegistry`] keeps everything in the process (embedding, tests, the demo) and serves
//! fixed node lists; [`EtcdRegistry`] is the one that fleets use, and the only place that names etcd's
//! client.

#[cfg(feature = "etcd")]
mod etcd;
mod local;
mod range;
#[cfg(any(test, feature = "testing"))]
mod refusing;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;

#[cfg(feature = "etcd")]
pub use etcd::EtcdRegistry;
pub use local::LocalRegistry;
pub use range::{KeyRange, Page, PageOptions};
#[cfg(any(test, feature = "testing"))]
pub use refusing::{Asked, Refusing};

use crate::causes::write_causes;

/// A lease, as the registry numbers them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
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

/// Every key of a range, as of one revision.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    /// The revision.
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

/// A stream of changes in some ranges of keys.
#[async_trait]
pub trait Changes: Send {
    /// The next changes, in order; never an empty list. Cancel-safe.
    ///
    /// # Errors
    /// Where the stream has ended: cancelled, broken, or silent for too long. The watcher begins another, and
    /// reads again.
    async fn next(&mut self) -> Result<Vec<Change>, RegistryError>;
}

/// Reads every key of some ranges, page by page, all as of one revision, which is given.
///
/// # Errors
/// As [`Registry::page`].
pub async fn read_pages<R: Registry + ?Sized>(
    registry: &R,
    ranges: &[KeyRange],
    mut each: impl FnMut(Vec<Entry>),
) -> Result<i64, RegistryError> {
    let mut revision = 0;
    for range in ranges {
        let mut rest = Some(range.clone());
        while let Some(range) = rest {
            let page = registry.page(&range, PageOptions::at(revision)).await?;
            if revision == 0 {
                revision = page.revision;
            }
            each(page.entries);
            rest = page.next;
        }
    }
    Ok(revision)
}

/// What Peanut needs of a coordination store. Every call is bounded in time by the implementation.
#[async_trait]
pub trait Registry: fmt::Debug + Send + Sync + 'static {
    /// Reads the first keys of a range: as many as fit into one answer, and [`Page::next`] for the rest.
    ///
    /// # Errors
    /// Where the registry cannot be reached or refuses, or no longer has the revision that is asked for.
    async fn page(&self, range: &KeyRange, options: PageOptions) -> Result<Page, RegistryError>;

    /// Watches every key of these ranges. Every change that is made after this has returned is told, those
    /// within one range in order; some that were made before may be.
    ///
    /// Who needs what is there as well reads it after this has returned. Nothing is missed then, and not
    /// where the store's data are lost meanwhile either, since that ends the watch. A watch that begins where
    /// an earlier read has ended does miss that: the store that has lost them may have fewer revisions than
    /// were read, or others.
    ///
    /// # Errors
    /// Where the registry cannot be reached or refuses.
    async fn watch(&self, ranges: &[KeyRange]) -> Result<Box<dyn Changes>, RegistryError>;

    /// Whether it keeps everything for as long as whoever uses it runs: it is in their process.
    fn keeps_all(&self) -> bool {
        false
    }

    /// Reads every key that begins with `prefix`, page by page, all as of one revision. A reader of what
    /// others may have written in any number takes the [`pages`](Self::page) one by one instead.
    ///
    /// # Errors
    /// As [`page`](Self::page).
    async fn load(&self, prefix: &str) -> Result<Snapshot, RegistryError> {
        let mut entries = Vec::new();
        let revision = read_pages(self, &[KeyRange::prefix(prefix)], |page| entries.extend(page)).await?;
        Ok(Snapshot { revision, entries })
    }

    /// Reads one key; `None` where it is absent.
    ///
    /// # Errors
    /// Where the registry cannot be reached or refuses.
    async fn get(&self, key: &str) -> Result<Option<Entry>, RegistryError> {
        Ok(self.page(&KeyRange::key(key), PageOptions::default()).await?.entries.pop())
    }

    /// How many keys a range has.
    ///
    /// # Errors
    /// Where the registry cannot be reached or refuses.
    async fn count(&self, range: &KeyRange) -> Result<u64, RegistryError> {
        let (mut count, mut revision, mut rest) = (0, 0, Some(range.clone()));
        while let Some(range) = rest {
            let options = PageOptions { keys_only: true, ..PageOptions::at(revision) };
            let page = self.page(&range, options).await?;
            count += page.entries.len() as u64;
            (revision, rest) = (page.revision, page.next);
        }
        Ok(count)
    }

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

    /// Deletes each key whose last change was at the revision beside it.
    ///
    /// # Errors
    /// Where the registry cannot be reached or refuses. Some may then have been deleted.
    async fn delete_all_if(&self, stale: &[(String, i64)]) -> Result<(), RegistryError> {
        for (key, expected) in stale {
            self.delete_if(key, *expected).await?;
        }
        Ok(())
    }

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
    is_too_large: bool,
}

impl RegistryError {
    /// An error of that message.
    pub fn new(message: impl Into<String>) -> Self {
        RegistryError { message: message.into().into(), source: None, is_too_large: false }
    }

    /// The same error, of a value that is longer than the registry takes.
    #[must_use]
    pub fn too_large(mut self) -> Self {
        self.is_too_large = true;
        self
    }

    /// Whether the registry refused a value because of its length.
    pub fn is_too_large(&self) -> bool {
        self.is_too_large
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
        f.write_str(&self.message)?;
        write_causes(self, f)
    }
}

impl std::error::Error for RegistryError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.source.as_ref().map(|source| &**source as _)
    }
}
