//! Counts of what a client's gets came to.

use std::sync::atomic::{AtomicU64, Ordering};

use peanut_proto::striped::Striped;
use peanut_proto::v1::Outcome;

/// What a client's gets came to since it was made. A get that was answered is in exactly one of `hits`,
/// `stale`, `loaded`, `coalesced`, `not_found` and `near_hits`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Stats {
    /// The value was in the node's store.
    pub hits: u64,
    /// The value was in the node's store, past its time to live, and could not be loaded.
    pub stale: u64,
    /// The get caused a load.
    pub loaded: u64,
    /// The get waited for a load that another had caused.
    pub coalesced: u64,
    /// The origin has no such key.
    pub not_found: u64,
    /// The operation was sent and failed.
    pub errors: u64,
    /// Sets and deletes that were done.
    pub writes: u64,
    /// Answered, in one of the ways above, by the successor in place of the owner.
    pub failovers: u64,
    /// Writes for which a hint was stored in the registry, since the owner could not be reached.
    pub hints: u64,
    /// Values that a key's previous owner still had, and that its new owner was filled with.
    pub hand_overs: u64,
    /// Values that `get_or_load` loaded without a node, since none could be asked, and did not keep.
    pub uncached: u64,
    /// Gets answered from a near copy, including a cached "no such key".
    pub near_hits: u64,
    /// Near copies that there are now.
    pub near_copies: u64,
    /// Bytes that near copies take.
    pub near_bytes: u64,
    /// Near copies that were dropped for a write.
    pub near_invalidations: u64,
    /// Near leases that were renewed.
    pub near_renewals: u64,
}

#[derive(Debug, Default)]
pub(crate) struct Counters {
    hits: Striped<AtomicU64>,
    stale: AtomicU64,
    loaded: AtomicU64,
    coalesced: AtomicU64,
    not_found: AtomicU64,
    errors: AtomicU64,
    failovers: AtomicU64,
    writes: AtomicU64,
    hints: AtomicU64,
    hand_overs: AtomicU64,
    uncached: AtomicU64,
}

impl Counters {
    pub(crate) fn answered(&self, outcome: Outcome, failover: bool) {
        let counter = match outcome {
            Outcome::Loaded => &self.loaded,
            Outcome::Coalesced => &self.coalesced,
            Outcome::NotFound => &self.not_found,
            Outcome::Hit => self.hits.mine(),
            Outcome::Stale => &self.stale,
            _ => &self.errors,
        };
        counter.fetch_add(1, Ordering::Relaxed);
        if failover {
            self.failovers.fetch_add(1, Ordering::Relaxed);
        }
    }

    pub(crate) fn written(&self, is_done: bool) {
        let counter = if is_done { &self.writes } else { &self.errors };
        counter.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn stored_hint(&self) {
        self.hints.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn handed_over(&self) {
        self.hand_overs.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn loaded_uncached(&self) {
        self.uncached.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn failed(&self) {
        self.errors.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn read(&self) -> Stats {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Stats {
            hits: self.hits.iter().map(read).sum(),
            stale: read(&self.stale),
            writes: read(&self.writes),
            loaded: read(&self.loaded),
            coalesced: read(&self.coalesced),
            not_found: read(&self.not_found),
            errors: read(&self.errors),
            failovers: read(&self.failovers),
            hints: read(&self.hints),
            hand_overs: read(&self.hand_overs),
            uncached: read(&self.uncached),
            ..Stats::default()
        }
    }
}
