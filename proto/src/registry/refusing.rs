//! For tests: the registry of one process, which refuses some of what it is asked.

use std::fmt;
use std::time::Duration;

use async_trait::async_trait;

use super::{Changes, KeyRange, LeaseId, LocalRegistry, Page, PageOptions, Registry, RegistryError};

/// What may be refused.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub enum Asked<'a> {
    /// To read a page of this range.
    Page(&'a KeyRange),
    /// To swap this value in.
    Swap(&'a [u8]),
    /// To put a value at this key.
    Put(&'a str),
}

type Refuses = dyn Fn(Asked<'_>) -> Option<RegistryError> + Send + Sync;

/// A registry in which everything goes to another but for what is refused.
pub struct Refusing {
    registry: LocalRegistry,
    refuses: Box<Refuses>,
}

impl Refusing {
    /// An empty one that answers with the error that `refuses` gives, if any.
    pub fn new(refuses: impl Fn(Asked<'_>) -> Option<RegistryError> + Send + Sync + 'static) -> Self {
        Refusing::of(LocalRegistry::new(), refuses)
    }

    /// This one, with the same: before it is asked, others may write to it.
    pub fn of(
        registry: LocalRegistry,
        refuses: impl Fn(Asked<'_>) -> Option<RegistryError> + Send + Sync + 'static,
    ) -> Self {
        Refusing { registry, refuses: Box::new(refuses) }
    }

    fn check(&self, asked: Asked<'_>) -> Result<(), RegistryError> {
        (self.refuses)(asked).map_or(Ok(()), Err)
    }
}

impl fmt::Debug for Refusing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Refusing").finish_non_exhaustive()
    }
}

#[async_trait]
impl Registry for Refusing {
    async fn page(&self, range: &KeyRange, options: PageOptions) -> Result<Page, RegistryError> {
        self.check(Asked::Page(range))?;
        self.registry.page(range, options).await
    }
    async fn watch(&self, ranges: &[KeyRange]) -> Result<Box<dyn Changes>, RegistryError> {
        self.registry.watch(ranges).await
    }
    async fn put(&self, key: &str, value: Vec<u8>, lease: Option<LeaseId>) -> Result<(), RegistryError> {
        self.check(Asked::Put(key))?;
        self.registry.put(key, value, lease).await
    }
    async fn swap(&self, key: &str, expected: i64, value: Vec<u8>) -> Result<bool, RegistryError> {
        self.check(Asked::Swap(&value))?;
        self.registry.swap(key, expected, value).await
    }
    async fn delete_if(&self, key: &str, expected: i64) -> Result<bool, RegistryError> {
        self.registry.delete_if(key, expected).await
    }
    async fn delete(&self, key: &str) -> Result<(), RegistryError> {
        self.registry.delete(key).await
    }
    async fn grant(&self, ttl: Duration) -> Result<LeaseId, RegistryError> {
        self.registry.grant(ttl).await
    }
    async fn renew(&self, lease: LeaseId) -> Result<bool, RegistryError> {
        self.registry.renew(lease).await
    }
    async fn revoke(&self, lease: LeaseId) -> Result<(), RegistryError> {
        self.registry.revoke(lease).await
    }
}
