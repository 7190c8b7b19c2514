//! Writes of this process, counted, so that it reads what it has written: a get that begins after a write joins no get from
//! before it.

use std::sync::atomic::{AtomicU32, Ordering};

/// Counters by hash of the key. Two keys that share one only miss a chance to share a get.
const SLOTS: usize = 4096;

#[derive(Debug)]
pub(crate) struct Writes {
    by_hash: Box<[AtomicU32]>,
    of_all: AtomicU32,
}

impl Default for Writes {
    fn default() -> Self {
        let by_hash = std::iter::repeat_with(AtomicU32::default).take(SLOTS).collect();
        Writes { by_hash, of_all: AtomicU32::new(0) }
    }
}

impl Writes {
    /// A write of this key, or with `None` of all, begins or has ended.
    pub(crate) fn count(&self, hash: Option<u64>) {
        let counter = hash.map_or(&self.of_all, |hash| &self.by_hash[hash as usize % SLOTS]);
        counter.fetch_add(1, Ordering::AcqRel);
    }

    /// A number that is another one after every write.
    pub(crate) fn of(&self, hash: u64) -> u32 {
        let own = self.by_hash[hash as usize % SLOTS].load(Ordering::Acquire);
        own.wrapping_add(self.of_all.load(Ordering::Acquire))
    }
}
