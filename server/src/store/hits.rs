//! How often an entry was hit lately: counted with the shard locked for reading only, by many threads at
//! once.

use super::atomic::{AtomicU8, Ordering};

/// Hits beyond this many are not counted.
const MOST: u8 = 3;

/// From 0 to 3.
#[derive(Debug)]
pub(super) struct Hits(AtomicU8);

impl Hits {
    pub(super) fn none() -> Self {
        Hits(AtomicU8::new(0))
    }

    /// Counts a hit. Two at once may count as one: that is cheaper than an exchange, and a policy needs no
    /// more.
    pub(super) fn add(&self) {
        let hits = self.get();
        if hits < MOST {
            self.0.store(hits + 1, Ordering::Relaxed);
        }
    }

    pub(super) fn get(&self) -> u8 {
        self.0.load(Ordering::Relaxed)
    }

    /// With the shard locked for writing.
    pub(super) fn set(&mut self, hits: u8) {
        self.0.store(hits, Ordering::Relaxed);
    }
}
