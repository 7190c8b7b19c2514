//! The store: what a group remembers, bounded in bytes.
//!
//! Shards with a lock each; the key's hash picks the shard. The store knows entries, their age and their
//! size, not where they come from. Time is an argument.

mod entry;
mod shard;

use std::hash::BuildHasher;

use lru::DefaultHasher as HashBuilder;
use parking_lot::Mutex;
use tokio::time::Instant;

pub(crate) use entry::{Entry, Origin};
use shard::Shard;

/// A shard is not made smaller than this, so that few large values do not crowd each other out.
const MIN_SHARD_BYTES: usize = 32 << 20;
const MAX_SHARDS: usize = 64;

/// Entries by key.
#[derive(Debug)]
pub(crate) struct Store {
    shards: Box<[Mutex<Shard>]>,
    hasher: HashBuilder,
}

impl Store {
    /// A store of at most `capacity_bytes`, overhead included.
    pub(crate) fn new(capacity_bytes: usize) -> Self {
        let shards = (capacity_bytes / MIN_SHARD_BYTES).clamp(1, MAX_SHARDS);
        let shard = || Mutex::new(Shard::new(capacity_bytes / shards));
        Store { shards: std::iter::repeat_with(shard).take(shards).collect(), hasher: HashBuilder::default() }
    }

    fn shard(&self, key: &[u8]) -> &Mutex<Shard> {
        let hash = u128::from(self.hasher.hash_one(key));
        &self.shards[((hash * self.shards.len() as u128) >> 64) as usize]
    }

    /// The entry of a key, if it is fresh and was written by `origin` under ring version `owned_since`
    /// or a later one.
    pub(crate) fn get(&self, key: &[u8], origin: Origin, owned_since: u64, now: Instant) -> Option<Entry> {
        self.shard(key).lock().get(key, origin, owned_since, now)
    }

    /// Stores an entry, evicting the least recently used ones for it. An entry larger than a shard is
    /// not stored, and nothing is evicted for it.
    pub(crate) fn insert(&self, key: &[u8], entry: Entry) {
        self.shard(key).lock().insert(key, entry);
    }

    #[cfg(test)]
    pub(crate) fn used_bytes(&self) -> usize {
        self.shards.iter().map(|shard| shard.lock().used_bytes()).sum()
    }
}

#[cfg(test)]
mod tests;
