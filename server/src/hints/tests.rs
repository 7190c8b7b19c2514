//! Reading what is left for a node, from a registry that does not answer everything.

use std::sync::atomic::AtomicU32;

use async_trait::async_trait;
use peanut_proto::registry::{Changes, LeaseId, LocalRegistry, Page, PageOptions};
use tokio::time::timeout;

use super::*;

/// A registry that does not tell of marks, so many times.
#[derive(Debug)]
struct WithoutMarks {
    registry: LocalRegistry,
    times: AtomicU32,
}

#[async_trait]
impl Registry for WithoutMarks {
    async fn page(&self, range: &KeyRange, options: PageOptions) -> Result<Page, RegistryError> {
        let is_mark = *range == KeyRange::key("/peanut/f/lineage/a");
        let left = |times: u32| times.checked_sub(u32::from(is_mark));
        let order = atomic::Ordering::Relaxed;
        if is_mark && self.times.fetch_update(order, order, left).is_ok() {
            return Err(RegistryError::new("too slow"));
        }
        self.registry.page(range, options).await
    }
    async fn watch(&self, ranges: &[KeyRange]) -> Result<Box<dyn Changes>, RegistryError> {
        self.registry.watch(ranges).await
    }
    async fn put(&self, key: &str, value: Vec<u8>, lease: Option<LeaseId>) -> Result<(), RegistryError> {
        self.registry.put(key, value, lease).await
    }
    async fn swap(&self, key: &str, expected: i64, value: Vec<u8>) -> Result<bool, RegistryError> {
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

/// Nothing comes back from a disk, and no near copies are given, before the mark is read.
#[tokio::test(start_paused = true)]
async fn a_mark_that_could_not_be_read_is_read_again() {
    let registry = WithoutMarks { registry: LocalRegistry::new(), times: AtomicU32::new(2) };
    let reader = HintReader {
        registry: Arc::new(registry),
        keys: Keys::new("f"),
        node_id: "a".into(),
        addr: "a:1".into(),
        node: Node::alone([]),
        is_shared: true,
    };
    let (known, mut lineage) = watch::channel(None);
    let reading = AbortOnDropHandle::new(tokio::spawn(reader.run(known)));
    let told = timeout(Duration::from_secs(3600), lineage.wait_for(Option::is_some)).await;
    assert!(told.is_ok_and(|told| told.is_ok_and(|lineage| lineage.is_some_and(|it| it.found.is_none()))));
    drop(reading);
}
