//! One shard: slots, a table that finds them by key, and a policy.

use hashbrown::HashTable;
use smallvec::SmallVec;

use super::Value;
use super::entry::StoredEntry;
use super::eviction::Eviction;
use super::policy::Policy;
use super::slots::{MAX_KEY_BYTES, Size, Slot, Slots, spread};
use super::value::{Record, record};
use super::{Entry, Origin};

#[derive(Debug)]
pub(super) struct Shard {
    slots: Slots,
    by_key: HashTable<u32>,
    eviction: Eviction,
    policy: Box<dyn Policy>,
    size: Size,
    used: usize,
    capacity: usize,
    /// Where the next sweep begins.
    swept: u32,
}

/// What there is of a key.
#[derive(Debug)]
pub(super) enum Found {
    Nothing,
    Expired,
    Entry(StoredEntry),
}

/// What has left for an entry: it is freed when nobody waits for it.
#[derive(Debug)]
pub(super) struct Left {
    _replaced: Option<Record>,
    pub(super) evicted: Vec<Evicted>,
    /// The value of the entry that has come.
    pub(super) stored: Option<Value>,
}

/// An entry that has made room for another.
#[derive(Debug)]
pub(super) struct Evicted {
    record: Record,
    key_bytes: usize,
    was_live: bool,
    origin: Origin,
}

impl Evicted {
    /// Why the node held it.
    pub(super) fn origin(&self) -> Origin {
        self.origin
    }

    pub(super) fn key(&self) -> &[u8] {
        &self.record.slice[..self.key_bytes]
    }

    /// Whether it had not expired yet.
    pub(super) fn was_live(&self) -> bool {
        self.was_live
    }
}

/// What became of an entry from the process's life before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Restored {
    /// It is back.
    Stored,
    /// There is an entry of the key already.
    Known,
    /// There is no room for it without another's leaving.
    NoRoom,
}

fn entry(slot: &Slot) -> StoredEntry {
    StoredEntry {
        value: slot.value(),
        loaded_ms: slot.loaded_ms(),
        expires_ms: slot.expires_ms(),
        stamp: slot.stamp(),
        origin: slot.origin(),
    }
}

impl Shard {
    pub(super) fn new(capacity: usize, eviction: Eviction, size: Size) -> Self {
        let (slots, by_key, policy) = (Slots::new(), HashTable::new(), eviction.policy(capacity));
        Shard { slots, by_key, eviction, policy, size, used: 0, capacity, swept: 0 }
    }

    pub(super) fn used(&self) -> usize {
        self.used
    }

    pub(super) fn len(&self) -> usize {
        self.slots.live()
    }

    pub(super) fn slots(&self) -> usize {
        self.slots.len()
    }

    /// What this node keeps as the owner and what it keeps in another's place are entries of their own:
    /// neither replaces the other.
    fn find(&self, key: &[u8], hash: u32, origin: Origin) -> Option<u32> {
        let same = |at: &u32| {
            let slot = self.slots.get(*at);
            slot.hash == hash && slot.origin() == origin && slot.key() == key
        };
        self.by_key.find(spread(hash), same).copied()
    }

    /// Reads what [`get`](Self::get) reads of keys with these hashes, step by step for all of them: no step
    /// of one waits for memory that another's could be waiting for at the same time.
    pub(super) fn prefetch(&self, hashes: impl Iterator<Item = u32>) {
        let mut places = SmallVec::<[u32; 64]>::new();
        // The first that looks like it, which seldom is another.
        places.extend(hashes.filter_map(|hash| self.by_key.find(spread(hash), |_| true).copied()));
        let slots = places.iter().fold(0, |sum, at| sum ^ self.slots.get(*at).hash);
        let keys = places.iter().fold(0, |sum, at| sum ^ self.slots.get(*at).key().first().unwrap_or(&0));
        std::hint::black_box((slots, keys));
    }

    #[inline]
    pub(super) fn get(&self, key: &[u8], hash: u32, origin: Origin, now_ms: u64) -> Found {
        self.find(key, hash, origin).map_or(Found::Nothing, |at| self.read(at, now_ms))
    }

    /// As [`get`](Self::get), where hits change the order.
    pub(super) fn get_promoting(&mut self, key: &[u8], hash: u32, origin: Origin, now_ms: u64) -> Found {
        let Some(at) = self.find(key, hash, origin) else { return Found::Nothing };
        let found = self.read(at, now_ms);
        if matches!(found, Found::Entry(_)) {
            self.policy.promote(&mut self.slots, at);
        }
        found
    }

    fn read(&self, at: u32, now_ms: u64) -> Found {
        let slot = self.slots.get(at);
        if slot.expires_ms() <= now_ms {
            return Found::Expired;
        }
        slot.hits.add();
        Found::Entry(entry(slot))
    }

    /// As [`get`](Self::get), but nobody has asked: it is no hit.
    pub(super) fn peek(&self, key: &[u8], hash: u32, origin: Origin, now_ms: u64) -> Option<StoredEntry> {
        let slot = self.slots.get(self.find(key, hash, origin)?);
        (slot.expires_ms() > now_ms).then(|| entry(slot))
    }

    /// The places of all entries, first those that should stay the longest.
    pub(super) fn hottest_first(&self) -> Vec<u32> {
        self.policy.hottest_first(&self.slots)
    }

    /// What is at a place, with its key.
    pub(super) fn at(&self, at: u32) -> Option<(Vec<u8>, StoredEntry)> {
        let slot = self.slots.get(at);
        (!slot.is_free()).then(|| (slot.key().to_vec(), entry(slot)))
    }

    /// Gives what had to leave.
    pub(super) fn insert(&mut self, key: &[u8], hash: u32, entry: &Entry, times: (u64, u64)) -> Left {
        let replaced = self.find(key, hash, entry.origin).and_then(|at| self.take_out(at));
        let mut left = Left { _replaced: replaced, evicted: Vec::new(), stored: None };
        let size = self.size_of(key, entry);
        if size > self.capacity {
            return left;
        }
        while self.used + size > self.capacity {
            let Some(at) = self.policy.evict(&mut self.slots, self.size) else { break };
            let slot = self.slots.get(at);
            let (key_bytes, was_live) = (slot.key().len(), slot.expires_ms() > times.0);
            let origin = slot.origin();
            left.evicted.extend(self.forget(at).map(|record| Evicted {
                record,
                key_bytes,
                was_live,
                origin,
            }));
        }
        if let Some(at) = self.put(key, hash, entry, times) {
            left.stored = self.slots.get(at).value();
            self.policy.insert(&mut self.slots, at, self.size);
        }
        left
    }

    /// Takes in an entry from the process's life before, where there is room and none of this life.
    pub(super) fn restore(&mut self, key: &[u8], hash: u32, entry: &Entry, times: (u64, u64)) -> Restored {
        if self.find(key, hash, entry.origin).is_some() {
            return Restored::Known;
        }
        if self.used + self.size_of(key, entry) > self.capacity {
            return Restored::NoRoom;
        }
        match self.put(key, hash, entry, times) {
            Some(at) => {
                self.policy.restore(&mut self.slots, at);
                Restored::Stored
            }
            None => Restored::NoRoom,
        }
    }

    /// Whether an entry of so many bytes, key included, is ever kept.
    pub(super) fn fits(&self, bytes: usize) -> bool {
        (self.size)(bytes) <= self.capacity
    }

    fn size_of(&self, key: &[u8], entry: &Entry) -> usize {
        (self.size)(key.len() + entry.value.as_ref().map_or(0, |value| value.len()))
    }

    /// Makes a slot that the policy does not know yet. `None` where the key is longer than a slot has room
    /// for.
    fn put(&mut self, key: &[u8], hash: u32, entry: &Entry, times: (u64, u64)) -> Option<u32> {
        if key.len() > MAX_KEY_BYTES {
            return None;
        }
        let record = record(key, entry.value.as_deref().unwrap_or_default());
        let mut slot = Slot::new(record, key.len(), hash, entry.value.is_none(), entry.origin);
        slot.set_stamp(entry.stamp);
        slot.set_expires_ms(times.1);
        slot.set_loaded_ms(times.0);
        let at = self.slots.insert(slot);
        let slots = &self.slots;
        self.by_key.insert_unique(spread(hash), at, |at| spread(slots.get(*at).hash));
        self.used += self.size_of(key, entry);
        Some(at)
    }

    /// Begins anew, and gives what there was.
    pub(super) fn clear(&mut self) -> Self {
        let fresh = Shard::new(self.capacity, self.eviction, self.size);
        std::mem::replace(self, fresh)
    }

    pub(super) fn remove(&mut self, key: &[u8], hash: u32, origin: Origin) -> bool {
        self.find(key, hash, origin).map(|at| self.take_out(at)).is_some()
    }

    pub(super) fn remove_expired(&mut self, key: &[u8], hash: u32, origin: Origin, now_ms: u64) {
        if let Some(at) = self.find(key, hash, origin)
            && self.slots.get(at).expires_ms() <= now_ms
        {
            self.take_out(at);
        }
    }

    /// Drops what has expired among the next `some` slots.
    pub(super) fn sweep(&mut self, some: usize, now_ms: u64) {
        for _ in 0..some.min(self.slots.len()) {
            if self.swept as usize >= self.slots.len() {
                self.swept = 0;
            }
            let slot = self.slots.get(self.swept);
            if !slot.is_free() && slot.expires_ms() <= now_ms {
                self.take_out(self.swept);
            }
            self.swept += 1;
        }
    }

    fn take_out(&mut self, at: u32) -> Option<Record> {
        self.policy.remove(&mut self.slots, at, self.size);
        self.forget(at)
    }

    /// Forgets a slot that the policy has let go.
    fn forget(&mut self, at: u32) -> Option<Record> {
        let slot = self.slots.get(at);
        self.used -= (self.size)(slot.length());
        if let Ok(place) = self.by_key.find_entry(spread(slot.hash), |other| *other == at) {
            place.remove();
        }
        self.slots.free(at)
    }
}
