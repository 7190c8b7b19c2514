//! What calls of each group came to, and how long gets took, for the crate `metrics`.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::{Mutex, MutexGuard};
use peanut_proto::striped::Striped;
use peanut_proto::v1::Outcome;
use tokio::time::Instant;

use crate::stats::Stats;

/// What a call may come to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Came {
    Hit,
    Stale,
    Loaded,
    Coalesced,
    NotFound,
    Near,
    Failed,
    Written,
}

const KINDS: usize = Came::Written as usize + 1;

/// Upper bounds of the classes in which times of gets are counted; what takes longer is in the last one, too.
pub(crate) const BOUNDS: [Duration; 17] = {
    let us = [
        50, 100, 200, 500, 1_000, 2_000, 5_000, 10_000, 20_000, 50_000, 100_000, 200_000, 500_000, 1_000_000,
        2_000_000, 5_000_000, 10_000_000,
    ];
    let mut bounds = [Duration::ZERO; 17];
    let mut at = 0;
    while at < us.len() {
        bounds[at] = Duration::from_micros(us[at]);
        at += 1;
    }
    bounds
};

#[derive(Debug, Default)]
struct Counts {
    came: [AtomicU64; KINDS],
    took: [AtomicU64; BOUNDS.len()],
}

/// The counts of one group, since the client was made.
#[derive(Clone, Debug, Default)]
pub(crate) struct Tally(Arc<Striped<Counts>>);

impl Tally {
    fn count(&self, came: Came) {
        self.0.mine().came[came as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// A get was answered by a node.
    pub(crate) fn answered(&self, outcome: Outcome) {
        self.count(match outcome {
            Outcome::Hit => Came::Hit,
            Outcome::Stale => Came::Stale,
            Outcome::Loaded => Came::Loaded,
            Outcome::Coalesced => Came::Coalesced,
            Outcome::NotFound => Came::NotFound,
            _ => Came::Failed,
        });
    }

    /// A get was answered by a near copy.
    pub(crate) fn near(&self) {
        self.count(Came::Near);
    }

    /// A call failed.
    pub(crate) fn failed(&self) {
        self.count(Came::Failed);
    }

    /// A write ended.
    pub(crate) fn written(&self, is_done: bool) {
        self.count(if is_done { Came::Written } else { Came::Failed });
    }

    /// A get ended that began then.
    pub(crate) fn took(&self, begun: Instant) {
        let took = begun.elapsed();
        let class = BOUNDS.partition_point(|bound| *bound < took).min(BOUNDS.len() - 1);
        self.0.mine().took[class].fetch_add(1, Ordering::Relaxed);
    }

    /// How many calls came to that.
    pub(crate) fn came(&self, came: Came) -> u64 {
        self.0.iter().map(|counts| counts.came[came as usize].load(Ordering::Relaxed)).sum()
    }

    /// How many gets took as long as each class has it.
    pub(crate) fn times(&self) -> [u64; BOUNDS.len()] {
        let class = |at: usize| self.0.iter().map(|counts| counts.took[at].load(Ordering::Relaxed)).sum();
        std::array::from_fn(class)
    }
}

/// The counts of all groups that a client was asked for.
#[derive(Debug, Default)]
pub(crate) struct Tallies {
    groups: Mutex<BTreeMap<Arc<str>, Tally>>,
    told: Mutex<Told>,
}

/// What of the counts has been told to a recorder. It is the client's and not that of the task that tells,
/// since there may be several one after the other, or at once.
#[derive(Debug, Default)]
pub(crate) struct Told {
    pub(crate) stats: Stats,
    pub(crate) groups: BTreeMap<Arc<str>, ToldOfGroup>,
}

/// What of the counts of a group has been told.
#[derive(Debug, Default)]
pub(crate) struct ToldOfGroup {
    pub(crate) came: [u64; KINDS],
    pub(crate) times: [u64; BOUNDS.len()],
}

impl Tallies {
    /// Those of a group.
    pub(crate) fn of(&self, group: &str) -> Tally {
        let mut all = self.groups.lock();
        if let Some(tally) = all.get(group) {
            return tally.clone();
        }
        all.entry(group.into()).or_default().clone()
    }

    pub(crate) fn told(&self) -> MutexGuard<'_, Told> {
        self.told.lock()
    }

    pub(crate) fn all(&self) -> Vec<(Arc<str>, Tally)> {
        self.groups.lock().iter().map(|(group, tally)| (group.clone(), tally.clone())).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn each_group_has_its_counts_and_times_are_in_the_class_that_bounds_them() {
        let tallies = Tallies::default();
        let (one, begun) = (tallies.of("one"), Instant::now());
        one.answered(Outcome::Hit);
        tallies.of("one").near();
        tallies.of("other").written(false);
        assert_eq!((one.came(Came::Hit), one.came(Came::Near), one.came(Came::Failed)), (1, 1, 0));
        assert_eq!(tallies.all().len(), 2);
        for (took, class) in [(0, 0), (50, 0), (51, 1), (1_500, 5), (20_000_000, BOUNDS.len() - 1)] {
            let before = one.times();
            one.took(begun.checked_sub(Duration::from_micros(took)).expect("a time"));
            let after = one.times();
            assert_eq!((0..BOUNDS.len()).find(|at| before[*at] != after[*at]), Some(class), "{took} µs");
        }
    }
}
