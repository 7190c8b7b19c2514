//! The table of slots that a shard's entries are in, and the lists that policies keep them in.
//!
//! Slots are named by their position, so that a list costs two numbers in each slot and nothing elsewhere.

use super::hits::Hits;
use super::value::Record;
use super::{Origin, Value};

/// No slot.
pub(super) const NONE: u32 = u32::MAX;

/// The age of an entry is kept in steps of so many milliseconds: 32 bits are then eight years.
const AGE_STEP_MS: u64 = 64;

/// One entry.
#[derive(Debug)]
pub(super) struct Slot {
    /// Key and value; `None` in a slot that is free.
    record: Option<Record>,
    pub(super) expires_ms: u64,
    loaded_steps: u32,
    pub(super) stamp: u32,
    /// The key's hash.
    pub(super) hash: u32,
    older: u32,
    newer: u32,
    key_bytes: u16,
    pub(super) hits: Hits,
    flags: u8,
}

const NEGATIVE: u8 = 1;
const FAILOVER: u8 = 2;
/// For the policy: which of its lists the slot is in.
const SECOND_LIST: u8 = 4;

impl Slot {
    pub(super) fn new(record: Record, key_bytes: u16, hash: u32, is_negative: bool, origin: Origin) -> Self {
        Slot {
            record: Some(record),
            expires_ms: 0,
            loaded_steps: 0,
            stamp: 0,
            hash,
            older: NONE,
            newer: NONE,
            key_bytes,
            hits: Hits::none(),
            flags: if is_negative { NEGATIVE } else { 0 }
                | if origin == Origin::Failover { FAILOVER } else { 0 },
        }
    }

    fn bytes(&self) -> &[u8] {
        self.record.as_ref().map_or(&[], |record| &record.slice)
    }

    pub(super) fn is_free(&self) -> bool {
        self.record.is_none()
    }

    pub(super) fn key(&self) -> &[u8] {
        &self.bytes()[..usize::from(self.key_bytes)]
    }

    /// Bytes of key and value.
    pub(super) fn length(&self) -> usize {
        self.bytes().len()
    }

    pub(super) fn value(&self) -> Option<Value> {
        let record = self.record.clone().filter(|_| self.flags & NEGATIVE == 0)?;
        Some(Value::stored(record, self.key_bytes.into()))
    }

    pub(super) fn origin(&self) -> Origin {
        if self.flags & FAILOVER == 0 { Origin::Owner } else { Origin::Failover }
    }

    pub(super) fn loaded_ms(&self) -> u64 {
        u64::from(self.loaded_steps) * AGE_STEP_MS
    }

    /// Takes the step before the time: the entry is never shown as younger than it is.
    pub(super) fn set_loaded_ms(&mut self, ms: u64) {
        self.loaded_steps = u32::try_from(ms / AGE_STEP_MS).unwrap_or(u32::MAX);
    }

    pub(super) fn is_in_second_list(&self) -> bool {
        self.flags & SECOND_LIST != 0
    }

    pub(super) fn set_second_list(&mut self, second: bool) {
        self.flags = self.flags & !SECOND_LIST | if second { SECOND_LIST } else { 0 };
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
