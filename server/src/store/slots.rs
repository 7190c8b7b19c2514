//! The table of slots that a shard's entries are in, and the lists that policies keep them in.
//!
//! Slots are named by their position, so that a list costs two numbers in each slot and nothing elsewhere.

use super::hits::Hits;
use super::value::Record;
use super::{Origin, Value};
use peanut_proto::numbers::RingVersion;

/// No slot.
pub(super) const NONE: u32 = u32::MAX;

/// The age of an entry is kept in steps of so many milliseconds: 32 bits are then eight years.
const AGE_STEP_MS: u64 = 64;

/// What an entry counts, by the bytes of its key and value.
pub(super) type Size = fn(usize) -> usize;

/// What a table is given for a hash of 32 bits: it goes by the lowest bits and by the highest.
pub(super) fn spread(hash: u32) -> u64 {
    u64::from(hash).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

/// One entry.
#[derive(Debug)]
pub(super) struct Slot {
    /// Key and value; `None` in a slot that is free.
    record: Option<Record>,
    /// From the highest bits on: milliseconds (48), flags (5), length of the key (11).
    expires_flags_key: u64,
    loaded_steps: u32,
    /// The key's hash.
    pub(super) hash: u32,
    older: u32,
    newer: u32,
    /// The lowest 56 bits: no ring has been changed so often, and less than the truth is only a miss.
    stamp: [u8; 7],
    pub(super) hits: Hits,
}

const KEY_BITS: u32 = 11;
const KEY_MASK: u64 = (1 << KEY_BITS) - 1;
const EXPIRES_SHIFT: u32 = 16;
const FLAGS_MASK: u64 = (1 << EXPIRES_SHIFT) - 1;
const NEGATIVE: u64 = 1 << KEY_BITS;
const FAILOVER: u64 = 2 << KEY_BITS;
/// For the policy: which of its lists the slot is in.
const SECOND_LIST: u64 = 4 << KEY_BITS;
/// The longest key that a slot has room for.
pub(super) const MAX_KEY_BYTES: usize = KEY_MASK as usize;
const MAX_STAMP: u64 = (1 << 56) - 1;

impl Slot {
    pub(super) fn new(
        record: Record,
        key_bytes: usize,
        hash: u32,
        is_negative: bool,
        origin: Origin,
    ) -> Self {
        let flags =
            if is_negative { NEGATIVE } else { 0 } | if origin == Origin::Failover { FAILOVER } else { 0 };
        Slot {
            record: Some(record),
            expires_flags_key: flags | (key_bytes as u64 & KEY_MASK),
            loaded_steps: 0,
            hash,
            older: NONE,
            newer: NONE,
            stamp: [0; 7],
            hits: Hits::none(),
        }
    }

    fn has(&self, flag: u64) -> bool {
        self.expires_flags_key & flag != 0
    }

    pub(super) fn expires_ms(&self) -> u64 {
        self.expires_flags_key >> EXPIRES_SHIFT
    }

    pub(super) fn set_expires_ms(&mut self, ms: u64) {
        let ms = ms.min(u64::MAX >> EXPIRES_SHIFT);
        self.expires_flags_key = self.expires_flags_key & FLAGS_MASK | ms << EXPIRES_SHIFT;
    }

    /// The ring version under which it was written.
    pub(super) fn stamp(&self) -> RingVersion {
        let mut bytes = [0; 8];
        bytes[..7].copy_from_slice(&self.stamp);
        RingVersion(u64::from_le_bytes(bytes))
    }

    pub(super) fn set_stamp(&mut self, stamp: RingVersion) {
        self.stamp.copy_from_slice(&stamp.0.min(MAX_STAMP).to_le_bytes()[..7]);
    }

    fn bytes(&self) -> &[u8] {
        self.record.as_ref().map_or(&[], |record| &record.slice)
    }

    pub(super) fn is_free(&self) -> bool {
        self.record.is_none()
    }

    pub(super) fn key(&self) -> &[u8] {
        &self.bytes()[..self.key_bytes()]
    }

    fn key_bytes(&self) -> usize {
        (self.expires_flags_key & KEY_MASK) as usize
    }

    /// Bytes of key and value.
    pub(super) fn length(&self) -> usize {
        self.bytes().len()
    }

    pub(super) fn value(&self) -> Option<Value> {
        let record = self.record.clone().filter(|_| !self.has(NEGATIVE))?;
        Some(Value::stored(record, self.key_bytes()))
    }

    pub(super) fn origin(&self) -> Origin {
        if self.has(FAILOVER) { Origin::Failover } else { Origin::Owner }
    }

    pub(super) fn loaded_ms(&self) -> u64 {
        u64::from(self.loaded_steps) * AGE_STEP_MS
    }

    /// Takes the step before the time: the entry is never shown as younger than it is.
    pub(super) fn set_loaded_ms(&mut self, ms: u64) {
        self.loaded_steps = u32::try_from(ms / AGE_STEP_MS).unwrap_or(u32::MAX);
    }

    pub(super) fn is_in_second_list(&self) -> bool {
        self.has(SECOND_LIST)
    }

    pub(super) fn set_second_list(&mut self, second: bool) {
        self.expires_flags_key = self.expires_flags_key & !SECOND_LIST | if second { SECOND_LIST } else { 0 };
    }
}

/// Slots by position.
#[derive(Debug)]
pub(super) struct Slots {
    list: Vec<Slot>,
    /// The first free slot; the others follow by `older`.
    free: u32,
    live: usize,
}

impl Slots {
    pub(super) fn new() -> Self {
        Slots { list: Vec::new(), free: NONE, live: 0 }
    }

    /// Slots that have an entry.
    pub(super) fn live(&self) -> usize {
        self.live
    }

    /// All slots.
    pub(super) fn len(&self) -> usize {
        self.list.len()
    }

    pub(super) fn get(&self, at: u32) -> &Slot {
        &self.list[at as usize]
    }

    pub(super) fn get_mut(&mut self, at: u32) -> &mut Slot {
        &mut self.list[at as usize]
    }

    pub(super) fn insert(&mut self, slot: Slot) -> u32 {
        self.live += 1;
        match self.free {
            NONE => {
                self.list.push(slot);
                u32::try_from(self.list.len() - 1).expect("fewer entries than memory has room for")
            }
            at => {
                self.free = self.get(at).older;
                self.list[at as usize] = slot;
                at
            }
        }
    }

    /// Frees a slot that is in no list any more, and gives its record.
    pub(super) fn free(&mut self, at: u32) -> Option<Record> {
        self.live -= 1;
        let free = std::mem::replace(&mut self.free, at);
        let slot = self.get_mut(at);
        slot.older = free;
        slot.record.take()
    }
}

/// A list through slots, from the newest to the oldest.
#[derive(Debug)]
pub(super) struct List {
    newest: u32,
    oldest: u32,
}

impl List {
    pub(super) fn new() -> Self {
        List { newest: NONE, oldest: NONE }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.oldest == NONE
    }

    /// Puts a slot that is in no list in as the newest.
    pub(super) fn push(&mut self, slots: &mut Slots, at: u32) {
        let slot = slots.get_mut(at);
        (slot.older, slot.newer) = (self.newest, NONE);
        match self.newest {
            NONE => self.oldest = at,
            newest => slots.get_mut(newest).newer = at,
        }
        self.newest = at;
    }

    /// Puts a slot that is in no list in as the oldest.
    pub(super) fn push_oldest(&mut self, slots: &mut Slots, at: u32) {
        let slot = slots.get_mut(at);
        (slot.older, slot.newer) = (NONE, self.oldest);
        match self.oldest {
            NONE => self.newest = at,
            oldest => slots.get_mut(oldest).older = at,
        }
        self.oldest = at;
    }

    /// From the newest to the oldest.
    pub(super) fn iter<'a>(&self, slots: &'a Slots) -> impl Iterator<Item = u32> + use<'a> {
        let some = |at: u32| (at != NONE).then_some(at);
        std::iter::successors(some(self.newest), move |at| some(slots.get(*at).older))
    }

    /// Takes out a slot that is in this list.
    pub(super) fn unlink(&mut self, slots: &mut Slots, at: u32) {
        let (older, newer) = (slots.get(at).older, slots.get(at).newer);
        match newer {
            NONE => self.newest = older,
            newer => slots.get_mut(newer).older = older,
        }
        match older {
            NONE => self.oldest = newer,
            older => slots.get_mut(older).newer = newer,
        }
    }

    /// Takes out the oldest.
    pub(super) fn pop(&mut self, slots: &mut Slots) -> Option<u32> {
        let oldest = self.oldest;
        (oldest != NONE).then(|| {
            self.unlink(slots, oldest);
            oldest
        })
    }
}
