//! The loads of a group that wait for their turn: each caller's in their order, the callers in turns.
//!
//! Somebody who asks for ten thousand cold keys at once does not keep the next from having one loaded (Nagle,
//! "On Packet Switches With Infinite Storage", RFC 970). It reads no clock.

use std::collections::{HashMap, VecDeque};

/// What waits, by who has caused it.
#[derive(Debug)]
pub(super) struct FairQueue<T> {
    by_caller: HashMap<usize, VecDeque<T>>,
    /// The callers who have something waiting, in the order of their turns.
    turns: VecDeque<usize>,
    length: usize,
}

impl<T> Default for FairQueue<T> {
    fn default() -> Self {
        FairQueue { by_caller: HashMap::new(), turns: VecDeque::new(), length: 0 }
    }
}

impl<T> FairQueue<T> {
    pub(super) fn push(&mut self, caller: usize, item: T) {
        let own = self.by_caller.entry(caller).or_default();
        if own.is_empty() {
            self.turns.push_back(caller);
        }
        own.push_back(item);
        self.length += 1;
    }

    /// The next item: of the caller whose turn it is, the oldest.
    pub(super) fn pop(&mut self) -> Option<T> {
        let caller = self.turns.pop_front()?;
        let own = self.by_caller.get_mut(&caller)?;
        let item = own.pop_front();
        if own.is_empty() {
            self.by_caller.remove(&caller);
        } else {
            self.turns.push_back(caller);
        }
        self.length -= usize::from(item.is_some());
        item
    }

    /// Takes out those at the front of their callers' queues that are due.
    pub(super) fn take_due(&mut self, is_due: impl Fn(&T) -> bool) -> Vec<T> {
        let mut due = Vec::new();
        for own in self.by_caller.values_mut() {
            due.extend(std::iter::from_fn(|| own.pop_front_if(|item| is_due(item))));
        }
        self.by_caller.retain(|_, own| !own.is_empty());
        self.turns.retain(|caller| self.by_caller.contains_key(caller));
        self.length -= due.len();
        due
    }

    pub(super) fn len(&self) -> usize {
        self.length
    }

    /// How many items come before one that this caller adds now.
    pub(super) fn ahead_of(&self, caller: usize) -> usize {
        let own = self.by_caller.get(&caller).map_or(0, VecDeque::len);
        let others = self.by_caller.iter().filter(|(other, _)| **other != caller);
        own + others.map(|(_, items)| items.len().min(own + 1)).sum::<usize>()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn callers_take_turns_and_each_ones_items_stay_in_order() {
        let mut queue = FairQueue::default();
        (0..5).for_each(|n| queue.push(1, (1, n)));
        (0..2).for_each(|n| queue.push(2, (2, n)));
        assert_eq!((queue.ahead_of(1), queue.ahead_of(2), queue.ahead_of(3)), (7, 5, 2));
        let order: Vec<_> = std::iter::from_fn(|| queue.pop()).collect();
        assert_eq!(order, [(1, 0), (2, 0), (1, 1), (2, 1), (1, 2), (1, 3), (1, 4)]);
        assert_eq!((queue.len(), queue.turns.len(), queue.by_caller.len()), (0, 0, 0));
    }

    #[test]
    fn what_is_due_leaves_and_the_rest_keeps_its_turns() {
        let mut queue = FairQueue::default();
        [(1, 10), (1, 30), (2, 20), (3, 40)].into_iter().for_each(|(caller, at)| queue.push(caller, at));
        let mut due = queue.take_due(|at| *at <= 20);
        due.sort_unstable();
        assert_eq!((due, queue.len()), (vec![10, 20], 2));
        assert_eq!([queue.pop(), queue.pop(), queue.pop()], [Some(30), Some(40), None]);
    }
}
