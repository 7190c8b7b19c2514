//! The store: what a group remembers, bounded in bytes.
//!
//! Shards with a lock each; the key's hash picks the shard. A shard is a table of slots, one for each entry,
//! and a policy ([`Eviction`]) that keeps the slots in order and says which one leaves. The store knows
//! entries, their age and their size, not where they come from. Time is an argument.
//!
//! ```
//! use std::time::Duration;
//! use peanut_server::store::{Entry, Eviction, Origin, RingVersion, Store};
//!
//! # tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap().block_on(async {
//! let now = tokio::time::Instant::now();
//! let store = Store::new(64 << 20, Eviction::S3Fifo, now);
//! let entry = Entry {
//!     value: Some(b"630".to_vec().into()),
//!     loaded: now,
//!     expires: now + Duration::from_secs(60),
//!     stamp: RingVersion::NONE,
//!     origin: Origin::Owner,
//! };
//! store.insert(b"Tom", &entry);
//! let found = store.get(b"Tom", Origin::Owner, RingVersion::NONE, now).expect("it was stored just now");
//! assert_eq!(&*found.value.expect("a value"), b"630");
//! # });
//! ```

mod entry;
mod eviction;
mod ghost;
mod hits;
mod lru;
mod policy;
mod s3_fifo;
mod shard;
mod slots;
mod suspended;
mod value;

/// What is compiled a second time under loom has these from there.
mod atomic {
    pub(super) use std::sync::atomic::{AtomicU8, Ordering};
}

use std::hash::BuildHasher as _;
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use hashbrown::DefaultHashBuilder;
use parking_lot::RwLock;
use smallvec::SmallVec;
use tokio::time::Instant;

use entry::StoredEntry;
pub use entry::{Entry, Origin};
pub use eviction::Eviction;
pub use peanut_proto::numbers::RingVersion;
pub use shard::Restored;
use shard::{Evicted, Found, Shard};
use slots::Size;
pub use suspended::Suspended;
pub use value::Value;

/// A shard is not made smaller than this, so that few large values do not crowd each other out.
const MIN_SHARD_BYTES: usize = 32 << 20;
const MAX_SHARDS: usize = 64;
/// Entries are older than the store where they were restored; beyond this, their age is not known.
const OLDEST: Duration = Duration::from_secs(366 * 24 * 3600);

/// Entries by key.
#[derive(Debug)]
pub struct Store {
    shards: Box<[RwLock<Shard>]>,
    hasher: DefaultHashBuilder,
    began: Instant,
    suspended: Suspended,
    /// Hits change the order, so that they need the shard to themselves.
    promotes: bool,
    /// Entries that had to leave before they expired.
    evicted: AtomicU64,
}

impl Store {
    /// What an entry counts beside its key and value: its slot (40 bytes), its place in the table (8), the
    /// counters and the allocator's share of its record (32), and what the policy remembers of entries that
    /// have left (12), rounded up.
    pub const OVERHEAD_BYTES: usize = 96;

    /// A store of at most `capacity_bytes`, overhead included.
    pub fn new(capacity_bytes: usize, eviction: Eviction, now: Instant) -> Self {
        let shards = Store::default_shards(capacity_bytes);
        Store::with_shards(capacity_bytes, shards, eviction, now, |bytes| bytes + Store::OVERHEAD_BYTES)
    }

    /// How many shards a store of that capacity has: one for each 32 MiB, at least one and at most 64.
    pub fn default_shards(capacity_bytes: usize) -> usize {
        (capacity_bytes / MIN_SHARD_BYTES).clamp(1, MAX_SHARDS)
    }

    /// A store that counts entries in place of bytes: for comparisons with figures of others.
    pub fn of_entries(entries: usize, shards: usize, eviction: Eviction, now: Instant) -> Self {
        Store::with_shards(entries, shards, eviction, now, |_| 1)
    }

    fn with_shards(capacity: usize, shards: usize, eviction: Eviction, now: Instant, size: Size) -> Self {
        let shard = |number: usize| {
            // The first ones take what is left over.
            let share = capacity / shards + usize::from(number < capacity % shards);
            RwLock::new(Shard::new(share, eviction, size))
        };
        Store {
            shards: (0..shards).map(shard).collect(),
            hasher: DefaultHashBuilder::default(),
            began: now.checked_sub(OLDEST).unwrap_or(now),
            suspended: Suspended::default(),
            promotes: eviction.promotes(),
            evicted: AtomicU64::new(0),
        }
    }

    /// The same, whose entries grow older in suspensions too.
    #[must_use]
    pub fn counting(self, suspended: Suspended) -> Self {
        Store { suspended, ..self }
    }

    /// The entry of a key, if it is fresh and was written by `origin` under ring version `owned_since`
    /// or a later one.
    pub fn get(&self, key: &[u8], origin: Origin, owned_since: RingVersion, now: Instant) -> Option<Entry> {
        let (shard, hash) = self.shard(key);
        let now_ms = self.ms(now);
        let found = if self.promotes {
            shard.write().get_promoting(key, hash, origin, now_ms)
        } else {
            shard.read().get(key, hash, origin, now_ms)
        };
        match found {
            Found::Nothing => None,
            Found::Expired => {
                shard.write().remove_expired(key, hash, origin, now_ms);
                None
            }
            // An entry from before the node came to own the key may have missed a write at another owner.
            Found::Entry(entry) => (entry.stamp >= owned_since).then(|| self.entry(entry)),
        }
    }

    /// Brings what [`get`](Self::get) reads of these keys into the processor's cache. For many keys that are
    /// about to be got one by one: the processor waits for the memory of all of them at the same time, where
    /// it would for one after the other.
    pub fn prefetch<'k>(&self, keys: impl Iterator<Item = &'k [u8]>) {
        let mut hashes: SmallVec<[u64; 64]> = keys.map(|key| self.hasher.hash_one(key)).collect();
        // The upper half picks the shard.
        hashes.sort_unstable();
        let shard = |hash: u64| self.shard_of(hash);
        for of_one in hashes.chunk_by(|a, b| shard(*a) == shard(*b)) {
            self.shards[shard(of_one[0])].read().prefetch(of_one.iter().map(|hash| *hash as u32));
        }
    }

    /// Stores a copy of an entry, for which others leave as the policy has it. An entry larger than a shard
    /// is not stored, and nothing leaves for it.
    pub fn insert(&self, key: &[u8], entry: &Entry) {
        self.insert_telling(key, entry, |_| {});
    }

    /// Whether an entry of that key, with a value of so many bytes, is ever kept.
    pub fn fits(&self, key: &[u8], value_bytes: usize) -> bool {
        self.shard(key).0.read().fits(key.len().saturating_add(value_bytes))
    }

    /// As [`insert`](Self::insert), and tells the keys that this node kept as their owner and that had to
    /// leave for it. Gives the value as it is stored; `None` where there is none, or it is not kept.
    pub fn insert_telling(&self, key: &[u8], entry: &Entry, evicted: impl FnMut(&[u8])) -> Option<Value> {
        let (shard, hash) = self.shard(key);
        let times = (self.ms(entry.loaded), self.ms(entry.expires));
        // What has left is freed with the lock released.
        let left = shard.write().insert(key, hash, entry, times);
        let live = left.evicted.iter().filter(|evicted| evicted.was_live()).count();
        if live > 0 {
            self.evicted.fetch_add(live as u64, Ordering::Relaxed);
        }
        let owned = left.evicted.iter().filter(|evicted| evicted.origin() == Origin::Owner);
        owned.map(Evicted::key).for_each(evicted);
        left.stored
    }

    /// Stores a copy of an entry from the process's life before, unless the key has one or another would have
    /// to leave for it. What is restored first stays the longest.
    pub fn restore(&self, key: &[u8], entry: &Entry) -> Restored {
        let (shard, hash) = self.shard(key);
        shard.write().restore(key, hash, entry, (self.ms(entry.loaded), self.ms(entry.expires)))
    }

    /// The entry of a key if it is fresh, under whatever ring it was written; it does not count as a hit.
    pub fn peek(&self, key: &[u8], origin: Origin, now: Instant) -> Option<Entry> {
        let (shard, hash) = self.shard(key);
        let found = shard.read().peek(key, hash, origin, self.ms(now));
        found.map(|entry| self.entry(entry))
    }

    /// Shows every entry, the expired ones included, first those that should stay the longest, until `visit`
    /// breaks off. Others may use the store meanwhile: what comes or goes in that time is shown or not.
    pub fn visit_hottest_first(&self, mut visit: impl FnMut(&[u8], Entry) -> ControlFlow<()>) {
        // The places are taken down first; a place may have another entry when its turn comes.
        let orders: Vec<_> = self.shards.iter().map(|shard| shard.read().hottest_first()).collect();
        let most = orders.iter().map(Vec::len).max().unwrap_or(0);
        for rank in 0..most {
            for (shard, order) in self.shards.iter().zip(&orders) {
                let found = order.get(rank).and_then(|at| shard.read().at(*at));
                if let Some((key, entry)) = found
                    && visit(&key, self.entry(entry)).is_break()
                {
                    return;
                }
            }
        }
    }

    /// Forgets a key, whatever the node holds it for. Whether there was an entry.
    pub fn remove(&self, key: &[u8]) -> bool {
        let (shard, hash) = self.shard(key);
        let mut shard = shard.write();
        let was_owned = shard.remove(key, hash, Origin::Owner);
        shard.remove(key, hash, Origin::Failover) | was_owned
    }

    /// Forgets what the node holds of a key as the owner, or in the owner's place. Whether there was an
    /// entry.
    pub fn remove_of(&self, key: &[u8], origin: Origin) -> bool {
        let (shard, hash) = self.shard(key);
        shard.write().remove(key, hash, origin)
    }

    /// Forgets all keys at once, and gives what has to be freed: that takes a while.
    #[must_use]
    pub fn clear(&self) -> impl Send + 'static {
        self.shards.iter().map(|shard| shard.write().clear()).collect::<Vec<_>>()
    }

    /// Looks for entries that have expired among the next `part` of all slots (0 to 1), and drops them. No
    /// shard is locked for more than a few hundred slots at a time.
    pub fn sweep(&self, part: f64, now: Instant) {
        let now_ms = self.ms(now);
        for shard in &self.shards {
            let mut left = (shard.read().slots() as f64 * part).ceil() as usize;
            while left > 0 {
                let some = left.min(256);
                shard.write().sweep(some, now_ms);
                left -= some;
            }
        }
    }

    /// Entries, expired ones included that have not been met yet.
    pub fn len(&self) -> usize {
        self.shards.iter().map(|shard| shard.read().len()).sum()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Entries that had to leave for others before they had expired, since the store was made.
    pub fn evicted(&self) -> u64 {
        self.evicted.load(Ordering::Relaxed)
    }

    /// Bytes in use, overhead included.
    pub fn used_bytes(&self) -> usize {
        self.shards.iter().map(|shard| shard.read().used()).sum()
    }

    #[inline]
    fn shard(&self, key: &[u8]) -> (&RwLock<Shard>, u32) {
        let hash = self.hasher.hash_one(key);
        // One half picks the shard, the other is the shard's.
        (&self.shards[self.shard_of(hash)], hash as u32)
    }

    fn shard_of(&self, hash: u64) -> usize {
        ((hash >> 32) as usize * self.shards.len()) >> 32
    }

    /// How long the machine has been suspended, as far as its entries know.
    pub fn suspended(&self) -> &Suspended {
        &self.suspended
    }

    /// Milliseconds since it began, suspensions included.
    fn ms(&self, time: Instant) -> u64 {
        let ms = u64::try_from(time.saturating_duration_since(self.began).as_millis()).unwrap_or(u64::MAX);
        ms.saturating_add(self.suspended.counted_ms())
    }

    fn entry(&self, stored: StoredEntry) -> Entry {
        stored.since(self.began, self.suspended.counted_ms())
    }
}

#[cfg(test)]
mod tests;
