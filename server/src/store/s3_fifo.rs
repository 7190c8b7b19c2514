//! S3-FIFO: Yang et al., "FIFO queues are all you need for cache eviction", SOSP 2023.
//!
//! New entries go through a small queue, a tenth of the capacity. Those that were hit there go on to the main
//! queue; the others leave, and their hashes are remembered for a while: an entry that comes back in that
//! time goes to the main queue at once. In the main queue an entry that was hit goes round again.

use super::ghost::Ghost;
use super::policy::Policy;
use super::slots::{List, Size, Slots};

/// The small queue's part of the capacity.
const SMALL_PART: usize = 10;
/// Hits in the small queue that bring an entry into the main queue.
const ENOUGH_HITS: u8 = 2;

#[derive(Debug)]
pub(super) struct S3Fifo {
    small: List,
    small_size: usize,
    small_capacity: usize,
    main: List,
    ghost: Ghost,
}

impl S3Fifo {
    pub(super) fn new(capacity: usize) -> Self {
        S3Fifo {
            small: List::new(),
            small_size: 0,
            small_capacity: capacity / SMALL_PART,
            main: List::new(),
            ghost: Ghost::default(),
        }
    }

    fn push_main(&mut self, slots: &mut Slots, at: u32) {
        slots.get_mut(at).set_second_list(true);
        self.main.push(slots, at);
    }
}

impl Policy for S3Fifo {
    fn insert(&mut self, slots: &mut Slots, at: u32, size: Size) {
        let slot = slots.get(at);
        if self.ghost.take(slot.hash) {
            self.push_main(slots, at);
        } else {
            self.small_size += size(slot.length());
            self.small.push(slots, at);
        }
    }

    /// What is restored has proved itself.
    fn restore(&mut self, slots: &mut Slots, at: u32) {
        slots.get_mut(at).set_second_list(true);
        self.main.push_oldest(slots, at);
    }

    /// By hits; of as many, first those of the main queue.
    fn hottest_first(&self, slots: &Slots) -> Vec<u32> {
        let mut all: Vec<u32> = self.main.iter(slots).chain(self.small.iter(slots)).collect();
        all.sort_by_key(|at| std::cmp::Reverse(slots.get(*at).hits.get()));
        all
    }

    fn remove(&mut self, slots: &mut Slots, at: u32, size: Size) {
        let slot = slots.get(at);
        if slot.is_in_second_list() {
            self.main.unlink(slots, at);
        } else {
            self.small_size -= size(slot.length());
            self.small.unlink(slots, at);
        }
    }

    fn evict(&mut self, slots: &mut Slots, size: Size) -> Option<u32> {
        loop {
            if self.small_size > self.small_capacity || self.main.is_empty() {
                let at = self.small.pop(slots)?;
                let slot = slots.get_mut(at);
                self.small_size -= size(slot.length());
                if slot.hits.get() >= ENOUGH_HITS {
                    slot.hits.set(0);
                    self.push_main(slots, at);
                } else {
                    let hash = slot.hash;
                    self.ghost.insert(hash, slots.live());
                    return Some(at);
                }
            } else {
                let at = self.main.pop(slots)?;
                let slot = slots.get_mut(at);
                match slot.hits.get() {
                    0 => return Some(at),
                    hits => slot.hits.set(hits - 1),
                }
                self.main.push(slots, at);
            }
        }
    }
}
