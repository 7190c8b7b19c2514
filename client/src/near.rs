//! The near cache: copies of hot keys in the application's own memory, read while their nodes answer for
//! them.
//!
//! A node that lets an answer be kept puts down that this client's lane has a copy. The lane's *lease*, asked
//! for every so often, says until when its copies may be read; a write of one of them is acknowledged when
//! the lane has dropped it, or the lease is over. The client reckons from when it has sent what it asked, by
//! a clock that counts suspension, so its end comes before the node's. [`lane`] has the lease; here are the
//! copies.

mod lane;

use std::hash::{BuildHasherDefault, Hasher};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use lru::LruCache;
use parking_lot::{Mutex, MutexGuard};
use peanut_proto::bounds::Bounds;
use peanut_proto::clock::{nanoseconds, uptime_nanos};
use peanut_proto::frame::FRAME_BYTES;
use peanut_proto::intervals::near_lease;
use peanut_proto::numbers::RingVersion;
use peanut_proto::v1::Near;
use tokio::time::Instant;

use crate::stats::Stats;
pub(crate) use lane::{LaneCopies, NearLease};

const STALENESS: Bounds = Bounds::new(Duration::from_millis(10), Duration::from_secs(60));
const LEAST_BYTES: u64 = 64 << 10;
/// Parts with a lock each, where each is large enough for some of the longest values.
const MOST_SHARDS: u64 = 16;
const BYTES_OF_SHARD: u64 = 1 << 20;
/// A copy that is read in the last part of its time is asked for anew.
const RENEWED_IN: f64 = 0.25;
/// Nanoseconds for which a copy that is read keeps its place in the order of eviction.
const PROMOTED_EVERY: u64 = 100_000_000;
/// Memory that a copy takes beside its key and value: its node in the list, its place in the table, what the
/// allocator and the value's count take; measured.
const COPY_BYTES: usize = 256;

/// Of which keys of a group near copies are kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum NearKeys {
    /// Of none.
    Off,
    /// Of those that many ask for, as the node counts them: some ten gets a second and more.
    #[default]
    Hot,
    /// Of all that are read.
    All,
}

/// A near cache: the client's own copies of hot keys. A get of one costs no network, and shows every write
/// that was acknowledged before it began, as any get does: who writes a key waits until those who hold copies
/// have dropped them, at most 550 ms where one does not answer.
///
/// ```no_run
/// # async fn f() -> Result<(), peanut_client::Error> {
/// use peanut_client::{Client, NearCache, NearKeys};
///
/// let near = NearCache::bytes(64 << 20).group("settings", NearKeys::All).group("sessions", NearKeys::Off);
/// let client = Client::builder().etcd("http://127.0.0.1:2379").near_cache(near).build().await?;
/// # drop(client); Ok(()) }
/// ```
#[derive(Clone, Debug)]
#[must_use = "hand it to `ClientBuilder::near_cache`"]
pub struct NearCache {
    bytes: u64,
    keys: NearKeys,
    groups: Vec<(String, NearKeys)>,
    max_value_bytes: usize,
    max_staleness: Option<Duration>,
}

impl NearCache {
    /// One that takes so many bytes of memory at most, keys and overhead included; at least 64 KiB.
    pub fn bytes(bytes: u64) -> Self {
        NearCache {
            bytes,
            keys: NearKeys::default(),
            groups: Vec::new(),
            max_value_bytes: FRAME_BYTES,
            max_staleness: None,
        }
    }

    /// Of which keys copies are kept; [`NearKeys::Hot`] by default.
    pub fn keys(mut self, keys: NearKeys) -> Self {
        self.keys = keys;
        self
    }

    /// As [`keys`](Self::keys), of one group.
    pub fn group(mut self, name: impl Into<String>, keys: NearKeys) -> Self {
        self.groups.push((name.into(), keys));
        self
    }

    /// The longest value of which a copy is kept; 64 KiB by default, which is the most.
    pub fn max_value_bytes(mut self, bytes: usize) -> Self {
        self.max_value_bytes = bytes.min(FRAME_BYTES);
        self
    }

    /// Has writes not wait: copies may show what was before a write of another client for so long after it,
    /// 10 ms to a minute. The client's own writes show at once.
    pub fn max_staleness(mut self, staleness: Duration) -> Self {
        self.max_staleness = Some(staleness);
        self
    }

    /// What cannot be.
    pub(crate) fn check(&self) -> Result<(), String> {
        if self.bytes < LEAST_BYTES {
            return Err(format!("near_cache: {} bytes are less than {LEAST_BYTES}", self.bytes));
        }
        let staleness = self.max_staleness.map_or(Ok(()), |staleness| STALENESS.check(staleness));
        staleness.map_err(|why| format!("near_cache: max_staleness: {why}"))
    }

    fn of_group(&self, name: &str) -> NearKeys {
        self.groups.iter().rev().find(|(group, _)| group == name).map_or(self.keys, |(_, keys)| *keys)
    }
}

/// The near copies of a client.
#[derive(Debug)]
pub(crate) struct NearCopies {
    options: NearCache,
    shards: Box<[Mutex<Shard>]>,
    bytes_of_shard: usize,
    /// The version of the ring that the client goes by: copies under another are read no more.
    ring_version: AtomicU64,
    pub(crate) counters: NearCounters,
}

/// What near copies have come to.
#[derive(Debug, Default)]
pub(crate) struct NearCounters {
    pub(crate) invalidated: AtomicU64,
    pub(crate) renewed: AtomicU64,
}

#[derive(Debug)]
struct Shard {
    /// By hash of group and key.
    copies: LruCache<u64, Copy, BuildHasherDefault<AsItIs>>,
    bytes: usize,
    /// Gets that a copy answered: counted under the lock, which costs less than an atomic count.
    hits: u64,
    /// When keys were last written by this client, by classes of keys: an answer that was asked for before is
    /// not kept.
    written: [Option<Instant>; CLASSES],
}

const CLASSES: usize = 64;

/// A copy of a key's value, or of that there is none.
#[derive(Debug)]
pub(crate) struct Copy {
    group: u32,
    /// A get to take the copy's place is on its way.
    is_renewing: bool,
    /// It is read no more. What is left of it says that the key was read, so that the next get brings a copy
    /// again.
    is_outdated: bool,
    key: Box<[u8]>,
    value: Option<Bytes>,
    /// When its value was loaded, until when that is fresh, when it is to be asked for anew, and when the
    /// copy is over; nanoseconds of [`uptime`].
    loaded: u64,
    fresh_until: u64,
    renew: u64,
    until: u64,
    /// When it was last moved to the head of the list.
    promoted: u64,
    ring_version: RingVersion,
    lease: Arc<NearLease>,
    epoch: u64,
}

/// What is found of a key.
pub(crate) enum Found<T> {
    Copy {
        /// What was read of it.
        read: T,
        /// The caller is to ask for it anew, beside what it does.
        is_to_renew: bool,
    },
    /// Its lease is over: the key is asked for, and the node told that a copy of it is read.
    Lapsed,
    Nothing,
}

/// How a copy was come by.
#[derive(Clone, Debug)]
pub(crate) struct About {
    pub(crate) age: Duration,
    pub(crate) ttl: Duration,
    pub(crate) node: Arc<str>,
}

/// An answer that may be kept.
#[derive(Debug)]
pub(crate) struct ToKeep<'a> {
    pub(crate) group: u32,
    pub(crate) key: &'a [u8],
    pub(crate) hash: u64,
    /// `None`: there is no such key.
    pub(crate) value: Option<&'a [u8]>,
    pub(crate) age: Duration,
    /// For how long it stays fresh, from now on.
    pub(crate) ttl: Duration,
    /// For how long, from when it was asked for.
    pub(crate) kept_for: Duration,
    pub(crate) asked: Instant,
    pub(crate) ring_version: RingVersion,
}

impl NearCopies {
    pub(crate) fn new(options: NearCache) -> Self {
        let shard = || {
            Mutex::new(Shard {
                copies: LruCache::unbounded_with_hasher(BuildHasherDefault::default()),
                bytes: 0,
                hits: 0,
                written: [None; CLASSES],
            })
        };
        let shards = (options.bytes / BYTES_OF_SHARD).clamp(1, MOST_SHARDS);
        NearCopies {
            bytes_of_shard: usize::try_from(options.bytes / shards).unwrap_or(usize::MAX),
            options,
            shards: (0..shards).map(|_| shard()).collect(),
            ring_version: AtomicU64::new(0),
            counters: NearCounters::default(),
        }
    }

    /// Of which keys of a group copies are kept, as nodes are told.
    pub(crate) fn of_group(&self, name: &str) -> Near {
        match self.options.of_group(name) {
            NearKeys::Off => Near::Off,
            NearKeys::Hot => Near::Hot,
            NearKeys::All => Near::All,
        }
    }

    /// For how long a lease stands, and copies may be outdated where writes do not wait for them.
    pub(crate) fn lease_length(&self) -> Duration {
        self.options.max_staleness.unwrap_or(near_lease())
    }

    /// As nodes are told: zero where writes wait.
    pub(crate) fn staleness_ms(&self) -> u32 {
        let staleness = self.options.max_staleness.unwrap_or_default();
        u32::try_from(staleness.as_millis()).unwrap_or(u32::MAX)
    }

    /// The client goes by this ring from now on.
    pub(crate) fn go_by(&self, version: RingVersion) {
        self.ring_version.store(version.0, Ordering::Release);
    }

    pub(crate) fn ring_version(&self) -> RingVersion {
        RingVersion(self.ring_version.load(Ordering::Acquire))
    }

    fn shard(&self, hash: u64) -> MutexGuard<'_, Shard> {
        // The table takes the lower bits. A product in place of a division (Lemire, "Fast Random Integer
        // Generation in an Interval", 2019).
        self.shards[(((hash >> 32) * self.shards.len() as u64) >> 32) as usize].lock()
    }

    /// What there is of a key. `read` takes what is wanted of a copy, as of a time.
    pub(crate) fn find<T>(
        &self,
        group: u32,
        hash: u64,
        key: &[u8],
        read: impl FnOnce(&Copy, u64) -> T,
    ) -> Found<T> {
        let now = now();
        let mut shard = self.shard(hash);
        let Some(copy) = shard.copies.peek_mut(&hash).filter(|copy| copy.is_of(group, key)) else {
            return Found::Nothing;
        };
        if !copy.is_good(now, self.ring_version()) {
            return if now < copy.until { Found::Lapsed } else { Found::Nothing };
        }
        let is_to_renew = now >= copy.renew && !copy.is_renewing;
        copy.is_renewing |= is_to_renew;
        copy.lease.read();
        let read = read(copy, now);
        // The order of what is read all the time does not matter.
        if now >= copy.promoted + PROMOTED_EVERY {
            copy.promoted = now;
            shard.copies.promote(&hash);
        }
        shard.hits += 1;
        Found::Copy { read, is_to_renew }
    }

    /// A get to take the copy's place has come to nothing.
    pub(crate) fn not_renewed(&self, hash: u64) {
        if let Some(copy) = self.shard(hash).copies.peek_mut(&hash) {
            copy.is_renewing = false;
        }
    }

    /// Keeps an answer, as it stands in the stream of a lane. Whether it was kept.
    fn keep(&self, answer: &ToKeep<'_>, lease: &Arc<NearLease>, epoch: u64) -> bool {
        let bytes = bytes_of(answer.key, answer.value.unwrap_or_default());
        if answer.value.is_some_and(|value| value.len() > self.options.max_value_bytes)
            || bytes > self.bytes_of_shard
        {
            return false;
        }
        let (now, since) = (now(), nanoseconds(answer.asked.elapsed()));
        let asked = now.saturating_sub(since);
        let kept_for = nanoseconds(answer.kept_for);
        let copy = Copy {
            group: answer.group,
            is_renewing: false,
            is_outdated: false,
            key: answer.key.into(),
            value: answer.value.map(Bytes::copy_from_slice),
            loaded: now.saturating_sub(nanoseconds(answer.age)),
            fresh_until: now.saturating_add(nanoseconds(answer.ttl)),
            renew: asked + (kept_for as f64 * (1.0 - RENEWED_IN)) as u64,
            until: asked + kept_for,
            promoted: now,
            ring_version: answer.ring_version,
            lease: lease.clone(),
            epoch,
        };
        let mut shard = self.shard(answer.hash);
        if shard.written[class(answer.hash)].is_some_and(|written| answer.asked <= written) {
            return false;
        }
        shard.bytes += bytes;
        if let Some((_, before)) = shard.copies.push(answer.hash, copy) {
            shard.bytes -= before.bytes();
        }
        while shard.bytes > self.bytes_of_shard {
            let Some((_, oldest)) = shard.copies.pop_lru() else { break };
            shard.bytes -= oldest.bytes();
        }
        true
    }

    /// Drops a copy that is outdated.
    fn drop_copy(&self, hash: u64) {
        if self.shard(hash).outdate(hash) {
            self.counters.invalidated.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// This client has written a key, or is about to.
    pub(crate) fn wrote(&self, hash: u64) {
        let mut shard = self.shard(hash);
        shard.written[class(hash)] = Some(Instant::now());
        shard.outdate(hash);
    }

    /// This client has written all keys.
    pub(crate) fn wrote_all(&self) {
        let now = Instant::now();
        for shard in &self.shards {
            let mut shard = shard.lock();
            shard.written = [Some(now); CLASSES];
            shard.copies.clear();
            shard.bytes = 0;
        }
    }

    /// Adds what it has come to.
    pub(crate) fn count(&self, to: &mut Stats) {
        let read = |count: &AtomicU64| count.load(Ordering::Relaxed);
        to.near_invalidations = read(&self.counters.invalidated);
        to.near_renewals = read(&self.counters.renewed);
        for shard in &self.shards {
            let shard = shard.lock();
            to.near_hits += shard.hits;
            to.near_copies += shard.copies.len() as u64;
            to.near_bytes += shard.bytes as u64;
        }
    }
}

impl Shard {
    /// Has a copy be read no more. Whether it was.
    fn outdate(&mut self, hash: u64) -> bool {
        let Some(copy) = self.copies.peek_mut(&hash).filter(|copy| !copy.is_outdated) else { return false };
        copy.is_outdated = true;
        self.bytes -= copy.value.take().map_or(0, |value| value.len());
        true
    }
}

impl Copy {
    /// The value; `None`: there is no such key.
    pub(crate) fn value(&self) -> Option<Bytes> {
        self.value.clone()
    }

    pub(crate) fn about(&self, now: u64) -> About {
        About {
            age: Duration::from_nanos(now.saturating_sub(self.loaded)),
            ttl: Duration::from_nanos(self.fresh_until.saturating_sub(now)),
            node: self.lease.node().clone(),
        }
    }

    fn is_of(&self, group: u32, key: &[u8]) -> bool {
        self.group == group && *self.key == *key
    }

    fn is_good(&self, now: u64, ring_version: RingVersion) -> bool {
        !self.is_outdated
            && now < self.until
            && self.ring_version == ring_version
            && self.lease.stands(now, self.epoch)
    }

    fn bytes(&self) -> usize {
        bytes_of(&self.key, self.value.as_deref().unwrap_or_default())
    }
}

fn bytes_of(key: &[u8], value: &[u8]) -> usize {
    COPY_BYTES + key.len() + value.len()
}

fn class(hash: u64) -> usize {
    (hash >> 40) as usize % CLASSES
}

fn now() -> u64 {
    uptime_nanos()
}

/// Takes a hash for what it is.
#[derive(Clone, Copy, Debug, Default)]
struct AsItIs(u64);

impl Hasher for AsItIs {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, _: &[u8]) {
        unreachable!("keys are numbers");
    }

    fn write_u64(&mut self, hash: u64) {
        self.0 = hash;
    }
}

#[cfg(test)]
mod tests;
