//! What is remembered of writes: counters by classes of keys, and under which rings they were.

use peanut_proto::numbers::RingVersion;
use peanut_proto::sequence::{CLASSES, class, sequence};

/// Counts the writes of keys, of many by one counter.
#[derive(Debug)]
pub(super) struct Writes {
    pub(super) counters: Box<[u64]>,
    /// Writes of all keys.
    pub(super) clears: u64,
    /// Where sequences begin: another number for each process.
    pub(super) begun: u64,
    /// For each counter the newest ring version that a writer went by, and for writes of all keys. As
    /// numbers, as the counters are: zeroes take no memory before something is written over them.
    under: Box<[u64]>,
    pub(super) cleared_under: RingVersion,
}

impl Writes {
    pub(super) fn new() -> Self {
        Writes {
            counters: vec![0; CLASSES].into(),
            clears: 0,
            begun: fastrand::u64(1..1 << 40),
            under: vec![0; CLASSES].into(),
            cleared_under: RingVersion::NONE,
        }
    }

    /// A number that has changed where the key has been written since.
    pub(super) fn so_far(&self, key: &[u8]) -> (u64, u64) {
        (self.counters[class(key)], self.clears)
    }

    /// Counts a write of a key. Gives its sequence before and after: a number that each write of the key
    /// raises; not zero.
    pub(super) fn add(&mut self, key: &[u8], under: RingVersion) -> (u64, u64) {
        let class = class(key);
        let before = self.counters[class] + self.clears;
        self.counters[class] += 1;
        self.under[class] = under.0.max(self.under[class]);
        (sequence(class, self.begun, before), sequence(class, self.begun, before + 1))
    }

    /// The newest ring version under which a key has been written, or more.
    pub(super) fn written_under(&self, key: &[u8]) -> RingVersion {
        RingVersion(self.under[class(key)]).max(self.cleared_under)
    }
}
