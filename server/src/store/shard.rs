//! One shard: the `lru` crate's list and map, with a bound in bytes around it.

use lru::LruCache;
use tokio::time::Instant;

use super::{Entry, Origin};

/// What an entry costs beside its key and value: list node (entry, key pointer, links) 120 bytes, slot in
/// the hash table at its usual load 24, headers of three allocations and the value's counter 56.
pub(super) const OVERHEAD_BYTES: usize = 200;

#[derive(Debug)]
pub(super) struct Shard {
    entries: LruCache<Box<[u8]>, Entry>,
    used_bytes: usize,
    capacity_bytes: usize,
}

impl Shard {
    pub(super) fn new(capacity_bytes: usize) -> Self {
        Shard { entries: LruCache::unbounded(), used_bytes: 0, capacity_bytes }
    }

    pub(super) fn get(
        &mut self,
        key: &[u8],
        origin: Origin,
        owned_since: u64,
        now: Instant,
    ) -> Option<Entry> {
        let entry = self.entries.get(key)?;
        if entry.expires <= now {
            self.remove(key);
            return None;
        }
        // An entry from before the node came to own the key may have missed a write at another owner.
        (entry.stamp >= owned_since && entry.origin == origin).then(|| entry.clone())
    }

    pub(super) fn insert(&mut self, key: &[u8], mut entry: Entry) {
        self.remove(key);
        let size = size(key, &entry);
        if size > self.capacity_bytes {
            return;
        }
        while self.used_bytes + size > self.capacity_bytes {
            let Some((key, evicted)) = self.entries.pop_lru() else { break };
            self.used_bytes -= self::size(&key, &evicted);
        }
        entry.unpin();
        self.used_bytes += size;
        self.entries.put(key.into(), entry);
    }

    fn remove(&mut self, key: &[u8]) {
        if let Some(old) = self.entries.pop(key) {
            self.used_bytes -= size(key, &old);
        }
    }

    #[cfg(test)]
    pub(super) fn used_bytes(&self) -> usize {
        self.used_bytes
    }
}

fn size(key: &[u8], entry: &Entry) -> usize {
    key.len() + entry.value_bytes() + OVERHEAD_BYTES
}
