//! Least recently used: one list, and a hit makes a slot its newest.

use super::policy::Policy;
use super::slots::{List, Size, Slots};

#[derive(Debug)]
pub(super) struct Lru {
    list: List,
}

impl Lru {
    pub(super) fn new() -> Self {
        Lru { list: List::new() }
    }
}

impl Policy for Lru {
    fn promote(&mut self, slots: &mut Slots, at: u32) {
        self.list.unlink(slots, at);
        self.list.push(slots, at);
    }

    fn insert(&mut self, slots: &mut Slots, at: u32, _: Size) {
        self.list.push(slots, at);
    }

    fn restore(&mut self, slots: &mut Slots, at: u32) {
        self.list.push_oldest(slots, at);
    }

    fn hottest_first(&self, slots: &Slots) -> Vec<u32> {
        self.list.iter(slots).collect()
    }

    fn remove(&mut self, slots: &mut Slots, at: u32, _: Size) {
        self.list.unlink(slots, at);
    }

    fn evict(&mut self, slots: &mut Slots, _: Size) -> Option<u32> {
        self.list.pop(slots)
    }
}
