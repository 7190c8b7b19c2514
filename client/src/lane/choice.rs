//! Which of a node's lanes an operation takes.

use std::sync::atomic::{AtomicU32, Ordering};

use tower::load::Load;

/// Slots by hash of the key: far more than there are operations in flight as a rule.
const SLOTS: usize = 4096;
const LANE_BITS: u32 = 8;

/// Chooses lanes: the less busy of two picked at random (Mitzenmacher, "The Power of Two Choices in
/// Randomized Load Balancing"), except that a key goes where the same key is in flight, so that identical
/// operations meet and share one.
///
/// Each slot has the number of operations that are under way with a hash like that, and the lane they take.
#[derive(Debug)]
pub(crate) struct Choice {
    slots: Box<[AtomicU32]>,
}

/// A lane that was chosen. Operations of the same key take it too until this is dropped.
#[derive(Debug)]
pub(crate) struct Chosen<'a> {
    slot: &'a AtomicU32,
    /// Position of the lane.
    pub(crate) lane: usize,
}

impl Choice {
    /// As many lanes as can be told apart.
    pub(crate) const MOST_LANES: usize = 1 << LANE_BITS;
    /// The load of a lane that is being opened, or could not be, beside what is in flight on it: it is left
    /// while there is another.
    pub(crate) const NOT_OPEN: usize = usize::MAX / 2;

    pub(crate) fn new() -> Self {
        Choice { slots: std::iter::repeat_with(AtomicU32::default).take(SLOTS).collect() }
    }

    /// Chooses one of `lanes`; `random` gives numbers below a bound.
    pub(crate) fn choose(
        &self,
        hash: u64,
        lanes: &[impl Load<Metric = usize>],
        random: impl FnMut(usize) -> usize,
    ) -> Chosen<'_> {
        let otherwise = Choice::less_busy(lanes, random);
        let mut chosen = self.join(hash, otherwise);
        // Others of the same key may take it still, which have found out nothing yet.
        if chosen.lane != otherwise
            && lanes.get(chosen.lane).is_some_and(|lane| lane.load() >= Choice::NOT_OPEN)
        {
            chosen.lane = otherwise;
        }
        chosen
    }

    /// The position of the less busy of two lanes.
    pub(crate) fn less_busy(
        lanes: &[impl Load<Metric = usize>],
        mut random: impl FnMut(usize) -> usize,
    ) -> usize {
        let (first, second) = (random(lanes.len()), random(lanes.len()));
        let (load, other) = (lanes[first].load(), lanes[second].load());
        let (less_busy, load) = if load > other { (second, other) } else { (first, load) };
        if load < Choice::NOT_OPEN {
            return less_busy;
        }
        (0..lanes.len()).min_by_key(|lane| lanes[*lane].load()).unwrap_or(less_busy)
    }

    /// The lane that the same key takes, or else `otherwise`.
    pub(crate) fn join(&self, hash: u64, otherwise: usize) -> Chosen<'_> {
        let slot = &self.slots[hash as usize % SLOTS];
        let joined = |state: u32| match state >> LANE_BITS {
            0 => (1 << LANE_BITS) | otherwise as u32,
            _ => state + (1 << LANE_BITS),
        };
        // Every closure gives Some, so this does not fail.
        let before = slot.fetch_update(Ordering::AcqRel, Ordering::Acquire, |state| Some(joined(state)));
        let state = joined(before.unwrap_or_else(|state| state));
        Chosen { slot, lane: state as usize % Choice::MOST_LANES }
    }
}

impl Drop for Chosen<'_> {
    fn drop(&mut self) {
        self.slot.fetch_sub(1 << LANE_BITS, Ordering::AcqRel);
    }
}

#[cfg(test)]
mod tests {
    use tower::load::Constant;

    use super::*;

    /// Random numbers that are none: 0, 1, 2 and so on by turns.
    fn by_turns() -> impl FnMut(usize) -> usize {
        let mut turn = 0;
        move |below| {
            turn += 1;
            (turn - 1) % below
        }
    }

    fn lanes(loads: &[usize]) -> Vec<Constant<(), usize>> {
        loads.iter().map(|load| Constant::new((), *load)).collect()
    }

    #[test]
    fn the_less_busy_of_two_is_chosen() {
        let (choice, lanes) = (Choice::new(), lanes(&[9, 2, 5]));
        assert_eq!(choice.choose(1, &lanes, by_turns()).lane, 1, "of the lanes 0 and 1");
        let mut random = by_turns();
        let _ = (random(3), random(3));
        assert_eq!(choice.choose(1, &lanes, random).lane, 2, "of the lanes 2 and 0");
    }

    #[test]
    fn a_lane_that_is_not_open_is_left_while_there_is_another() {
        let choice = Choice::new();
        let broken = Choice::NOT_OPEN;
        let first = choice.choose(7, &lanes(&[0, 3]), by_turns());
        assert_eq!(first.lane, 0);
        let lanes_now = lanes(&[broken + 1, 3]);
        for n in [0, 1] {
            assert_eq!(choice.choose(7, &lanes_now, |_| n).lane, 1, "though others of the key take it");
            assert_eq!(choice.choose(8, &lanes_now, |_| n).lane, 1);
        }
        assert_eq!(choice.choose(9, &lanes(&[broken + 1, broken]), |_| 0).lane, 1, "there is no other");
    }

    #[test]
    fn the_same_key_takes_the_same_lane_while_it_is_in_flight() {
        let choice = Choice::new();
        let first = choice.choose(7, &lanes(&[0, 1]), by_turns());
        assert_eq!(first.lane, 0);
        let lanes = lanes(&[1, 0]);
        let others: Vec<_> = (0..100).map(|_| choice.choose(7, &lanes, by_turns())).collect();
        assert!(others.iter().all(|other| other.lane == 0), "though the other lane is less busy now");
        assert_eq!(choice.choose(8, &lanes, by_turns()).lane, 1, "another key does not");
        drop(first);
        assert_eq!(choice.choose(7, &lanes, by_turns()).lane, 0, "some are left");
        drop(others);
        assert_eq!(choice.choose(7, &lanes, by_turns()).lane, 1, "none are left");
    }
}
