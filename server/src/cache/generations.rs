//! To which generations a group was cleared, as the registry has told them.

use std::collections::VecDeque;

use peanut_proto::numbers::Generation;

/// As many clears may overlap, and each is done once.
const REMEMBERED: usize = 16;

/// The generations that were told: each is a clear that was done.
///
/// They are not compared by size: a registry that has lost its data counts on from the clock of the client
/// that clears next, which may be behind.
#[derive(Debug, Default)]
pub(super) struct Generations {
    pub(super) last: Generation,
    before: VecDeque<Generation>,
}

impl Generations {
    /// Whether this one was told, lately.
    pub(super) fn has(&self, generation: Generation) -> bool {
        self.last == generation || self.before.contains(&generation)
    }

    /// Takes in the next one; whether it is another.
    pub(super) fn next(&mut self, generation: Generation) -> bool {
        if self.last == generation {
            return false;
        }
        self.before.push_back(std::mem::replace(&mut self.last, generation));
        if self.before.len() > REMEMBERED {
            self.before.pop_front();
        }
        true
    }
}
