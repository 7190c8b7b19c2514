//! Hashes of entries that have left, for about as long as as many have left after them.

use std::collections::VecDeque;

use hashbrown::HashTable;

use super::slots::spread;

/// Hashes of entries that have left, in the order in which they did. Twelve bytes each.
#[derive(Debug, Default)]
pub(super) struct Ghost {
    order: VecDeque<u32>,
    /// Number of the first of `order`; each has the next number, and they go round.
    first: u32,
    /// By hash, the numbers of those that have not come back.
    away: HashTable<u32>,
}

impl Ghost {
    /// Remembers a hash, and forgets the oldest ones beyond nine tenths of `entries`.
    pub(super) fn insert(&mut self, hash: u32, entries: usize) {
        let most = (entries - entries / 10).max(1);
        while self.order.len() >= most
            && let Some(oldest) = self.order.pop_front()
        {
            let number = self.first;
            self.first = self.first.wrapping_add(1);
            if let Ok(found) = self.away.find_entry(spread(oldest), |other| *other == number) {
                found.remove();
            }
        }
        self.take(hash);
        let number = self.first.wrapping_add(self.order.len() as u32);
        self.order.push_back(hash);
        let (order, first) = (&self.order, self.first);
        self.away
            .insert_unique(spread(hash), number, |number| spread(order[number.wrapping_sub(first) as usize]));
    }

    /// Whether a hash was remembered; then it is no more, though it keeps its place in the order.
    pub(super) fn take(&mut self, hash: u32) -> bool {
        let (order, first) = (&self.order, self.first);
        let same = |number: &u32| order[number.wrapping_sub(first) as usize] == hash;
        self.away.find_entry(spread(hash), same).is_ok_and(|found| {
            found.remove();
            true
        })
    }
}
