//! What a policy of eviction does: it says which entry leaves when there is no room for another.

use std::fmt;

use super::slots::{Size, Slots};

/// Keeps the slots of one shard in order. Every slot that was inserted is in one of the policy's lists until
/// it is removed or evicted.
pub(super) trait Policy: fmt::Debug + Send + Sync {
    /// Takes in a hit, where [hits change the order](super::Eviction::promotes).
    fn promote(&mut self, _: &mut Slots, _: u32) {}

    /// Takes in a new slot.
    fn insert(&mut self, slots: &mut Slots, at: u32, size: Size);

    /// Takes in a slot that had a place here in the process's life before: it comes after all that have one.
    fn restore(&mut self, slots: &mut Slots, at: u32);

    /// All slots, first those that should stay the longest.
    fn hottest_first(&self, slots: &Slots) -> Vec<u32>;

    /// Takes out a slot that has gone for other reasons.
    fn remove(&mut self, slots: &mut Slots, at: u32, size: Size);

    /// Takes out the slot that is to leave; `None` where there is none.
    fn evict(&mut self, slots: &mut Slots, size: Size) -> Option<u32>;
}
