//! One shard: slots, a table that finds them by key, and a policy.

use hashbrown::HashTable;

use super::Entry;
use super::entry::StoredEntry;
use super::policy::Policy;
use super::slots::{Slot, Slots};
use super::value::{Record, record};

/// What an entry counts, by the bytes of its key and value.
pub(super) type Size = fn(usize) -> usize;

#[derive(Debug)]
pub(super) struct Shard {
    slots: Slots,
    by_key: HashTable<u32>,
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

impl Shard {
    pub(super) fn new(capacity: usize, policy: Box<dyn Policy>, size: Size) -> Self {
        Shard { slots: Slots::new(), by_key: HashTable::new(), policy, size, used: 0, capacity, swept: 0 }
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

    fn find(&self, key: &[u8], hash: u32) -> Option<u32> {
        let same = |at: &u32| {
            let slot = self.slots.get(*at);
            slot.hash == hash && slot.key() == key
        };
        self.by_key.find(spread(hash), same).copied()
    }

    pub(super) fn get(&self, key: &[u8], hash: u32, now_ms: u64) -> Found {
        self.find(key, hash).map_or(Found::Nothing, |at| self.read(at, now_ms))
    }

    /// As [`get`](Self::get), where hits change the order.
    pub(super) fn get_promoting(&mut self, key: &[u8], hash: u32, now_ms: u64) -> Found {
        let Some(at) = self.find(key, hash) else { return Found::Nothing };
        let found = self.read(at, now_ms);
        if matches!(found, Found::Entry(_)) {
            self.policy.promote(&mut self.slots, at);
        }
        found
    }

    fn read(&self, at: u32, now_ms: u64) -> Found {
        let slot = self.slots.get(at);
        if slot.expires_ms <= now_ms {
            return Found::Expired;
        }
        slot.hit();
        Found::Entry(StoredEntry {
            value: slot.value(),
            loaded_ms: slot.loaded_ms(),
            expires_ms: slot.expires_ms,
            stamp: slot.stamp.into(),
            origin: slot.origin(),
        })
    }

    /// Gives what had to leave.
    pub(super) fn insert(
        &mut self,
        key: &[u8],
        hash: u32,
        entry: &Entry,
        (loaded_ms, expires_ms): (u64, u64),
    ) -> Vec<Record> {
        let mut left = Vec::new();
        if let Some(old) = self.find(key, hash) {
            left.extend(self.take_out(old));
        }
        let value = entry.value.as_deref().unwrap_or_default();
        let size = (self.size)(key.len() + value.len());
        let (Ok(key_bytes), Ok(stamp)) = (u16::try_from(key.len()), u32::try_from(entry.stamp)) else {
            return left;
        };
        if size > self.capacity {
            return left;
        }
        while self.used + size > self.capacity {
            let Some(at) = self.policy.evict(&mut self.slots, self.size) else { break };
            left.extend(self.forget(at));
        }
        let record = record(key, value);
        let mut slot = Slot::new(record, key_bytes, hash, entry.value.is_none(), entry.origin);
        (slot.expires_ms, slot.stamp) = (expires_ms, stamp);
        slot.set_loaded_ms(loaded_ms);
        let at = self.slots.insert(slot);
        let slots = &self.slots;
        self.by_key.insert_unique(spread(hash), at, |at| spread(slots.get(*at).hash));
        self.policy.insert(&mut self.slots, at, self.size);
        self.used += size;
        left
    }

    pub(super) fn remove(&mut self, key: &[u8], hash: u32) -> bool {
        self.find(key, hash).map(|at| self.take_out(at)).is_some()
    }

    pub(super) fn remove_expired(&mut self, key: &[u8], hash: u32, now_ms: u64) {
        if let Some(at) = self.find(key, hash)
            && self.slots.get(at).expires_ms <= now_ms
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
            if !slot.is_free() && slot.expires_ms <= now_ms {
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

/// What a table is given for a hash of 32 bits: it goes by the lowest bits and by the highest.
pub(super) fn spread(hash: u32) -> u64 {
    u64::from(hash).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}
