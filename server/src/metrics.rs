//! What is counted while a node runs: cheap enough for every get, and read on demand.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use peanut_proto::clock::nanoseconds;
use peanut_proto::striped::Striped;
use peanut_proto::v1::{ErrorCode, Gets, Outcome};

type Shown = (&'static str, fn(&Gets) -> u64);

/// How gets end, by the names under which they are shown.
pub(crate) const OUTCOMES: [Shown; 9] = [
    ("hit", |gets| gets.hit),
    ("stale", |gets| gets.stale),
    ("loaded", |gets| gets.loaded),
    ("coalesced", |gets| gets.coalesced),
    ("negative", |gets| gets.negative),
    ("miss", |gets| gets.miss),
    ("fill", |gets| gets.fill),
    ("error", |gets| gets.error),
    ("peek", |gets| gets.peek),
];
const ERROR: usize = 7;
/// The outcomes of gets that are no peeks.
const COUNTED: usize = 8;

fn place(outcome: Outcome) -> usize {
    match outcome {
        Outcome::Hit => 0,
        Outcome::Stale => 1,
        Outcome::Loaded => 2,
        Outcome::Coalesced => 3,
        Outcome::NotFound => 4,
        Outcome::Miss => 5,
        Outcome::Fill => 6,
        _ => ERROR,
    }
}

/// Upper bounds of the buckets for times of gets and loads, in seconds.
pub(crate) const BUCKETS: [f64; 12] =
    [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5];

/// The counts of one group.
#[derive(Debug, Default)]
pub(crate) struct GroupMetrics {
    gets: Striped<[AtomicU64; COUNTED]>,
    peeks: AtomicU64,
    /// Of gets that waited.
    waits: Durations,
    loads: Durations,
    keys_loaded: AtomicU64,
    pub(crate) load_failures: AtomicU64,
    pub(crate) refreshes: AtomicU64,
    pub(crate) sets: AtomicU64,
    pub(crate) deletes: AtomicU64,
    pub(crate) clears: AtomicU64,
    pub(crate) failover_gets: AtomicU64,
    pub(crate) fills: AtomicU64,
    pub(crate) fills_refused: AtomicU64,
    pub(crate) hand_overs: AtomicU64,
    /// Values that were too large to be kept.
    pub(crate) too_large: AtomicU64,
}

/// The counts of the node itself.
#[derive(Debug, Default)]
pub(crate) struct NodeMetrics {
    pub(crate) lanes: AtomicU64,
    pub(crate) in_flight: AtomicU64,
    pub(crate) hints_applied: AtomicU64,
    failures: [AtomicU64; CODES],
}

/// The last of the error codes is the largest.
const CODES: usize = ErrorCode::RingUnknown as usize + 1;

impl NodeMetrics {
    pub(crate) fn failed(&self, code: ErrorCode) {
        if let Some(count) = self.failures.get(code as usize) {
            count.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// What operations and calls were answered that were refused or failed, and how often.
    pub(crate) fn failures(&self) -> impl Iterator<Item = (ErrorCode, u64)> {
        let codes = (1..).map_while(|number| ErrorCode::try_from(number).ok());
        codes.zip(self.failures.iter().skip(1).map(|count| count.load(Ordering::Relaxed)))
    }
}

/// How long something took, each time.
#[derive(Debug, Default)]
struct Durations {
    buckets: [AtomicU64; BUCKETS.len() + 1],
    nanos: AtomicU64,
}

/// How often something took how long.
#[derive(Clone, Debug)]
pub(crate) struct Histogram {
    /// Times in each bucket, not cumulated; the last one is for those beyond all bounds.
    pub(crate) buckets: [u64; BUCKETS.len() + 1],
    /// All of them together.
    pub(crate) seconds: f64,
}

impl Durations {
    fn add(&self, took: Duration) {
        let bucket = BUCKETS.partition_point(|bound| *bound < took.as_secs_f64());
        self.buckets[bucket].fetch_add(1, Ordering::Relaxed);
        self.nanos.fetch_add(nanoseconds(took), Ordering::Relaxed);
    }

    fn read(&self) -> Histogram {
        Histogram {
            buckets: std::array::from_fn(|at| self.buckets[at].load(Ordering::Relaxed)),
            seconds: self.nanos.load(Ordering::Relaxed) as f64 / 1e9,
        }
    }
}

impl Histogram {
    pub(crate) fn count(&self) -> u64 {
        self.buckets.iter().sum()
    }
}

impl GroupMetrics {
    /// A get was answered at once.
    pub(crate) fn answered(&self, outcome: Outcome) {
        self.gets.mine()[place(outcome)].fetch_add(1, Ordering::Relaxed);
    }

    /// A peek was answered.
    pub(crate) fn peeked(&self) {
        self.peeks.fetch_add(1, Ordering::Relaxed);
    }

    /// A get failed at once.
    pub(crate) fn failed(&self) {
        self.gets.mine()[ERROR].fetch_add(1, Ordering::Relaxed);
    }

    /// A get was answered, or failed, after it had waited for so long.
    pub(crate) fn waited(&self, outcome: Option<Outcome>, waited: Duration) {
        self.gets.mine()[outcome.map_or(ERROR, place)].fetch_add(1, Ordering::Relaxed);
        self.waits.add(waited);
    }

    /// One call of the loader, for so many keys.
    pub(crate) fn loaded(&self, keys: usize, took: Duration) {
        self.loads.add(took);
        self.keys_loaded.fetch_add(keys as u64, Ordering::Relaxed);
    }

    pub(crate) fn gets(&self) -> Gets {
        let sum = |at: usize| self.gets.iter().map(|stripe| stripe[at].load(Ordering::Relaxed)).sum();
        let [hit, stale, loaded, coalesced, negative, miss, fill, error]: [u64; COUNTED] =
            std::array::from_fn(sum);
        let peek = self.peeks.load(Ordering::Relaxed);
        Gets { hit, stale, loaded, coalesced, negative, miss, fill, error, peek }
    }

    pub(crate) fn keys_loaded(&self) -> u64 {
        self.keys_loaded.load(Ordering::Relaxed)
    }

    /// How long calls of the loader took.
    pub(crate) fn load_times(&self) -> Histogram {
        self.loads.read()
    }

    /// How long gets took. Those that were answered at once are in the first bucket.
    pub(crate) fn get_times(&self) -> Histogram {
        let mut times = self.waits.read();
        let gets = self.gets();
        let all: u64 = OUTCOMES[..COUNTED].iter().map(|(_, read)| read(&gets)).sum();
        times.buckets[0] += all.saturating_sub(times.count());
        times
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_of_all_threads_are_added_and_each_outcome_has_its_name() {
        let metrics = GroupMetrics::default();
        std::thread::scope(|scope| {
            for _ in 0..20 {
                scope.spawn(|| metrics.answered(Outcome::Hit));
            }
        });
        let others = [
            (Outcome::Stale, "stale"),
            (Outcome::Loaded, "loaded"),
            (Outcome::Coalesced, "coalesced"),
            (Outcome::NotFound, "negative"),
            (Outcome::Miss, "miss"),
            (Outcome::Fill, "fill"),
        ];
        for (times, (outcome, _)) in (1..).zip(others) {
            (0..times).for_each(|_| metrics.answered(outcome));
        }
        (0..7).for_each(|_| metrics.failed());
        (0..8).for_each(|_| metrics.peeked());
        let shown = OUTCOMES.map(|(name, read)| (name, read(&metrics.gets())));
        let expected = (1..).zip(others).map(|(times, (_, name))| (name, times));
        assert_eq!(metrics.get_times().count(), 48, "peeks are no gets");
        assert!(
            shown
                .into_iter()
                .eq([("hit", 20)].into_iter().chain(expected).chain([("error", 7), ("peek", 8)])),
            "{shown:?}"
        );
    }

    #[test]
    fn every_error_code_has_its_count() {
        let metrics = NodeMetrics::default();
        assert!(ErrorCode::try_from(i32::try_from(CODES).unwrap()).is_err(), "the last one is counted");
        metrics.failed(ErrorCode::Overloaded);
        metrics.failed(ErrorCode::PermissionDenied);
        metrics.failed(ErrorCode::PermissionDenied);
        let failures: Vec<_> = metrics.failures().collect();
        assert_eq!(failures.len(), CODES - 1);
        assert!(failures.contains(&(ErrorCode::Overloaded, 1)));
        assert!(failures.contains(&(ErrorCode::PermissionDenied, 2)));
        assert_eq!(failures.iter().map(|(_, count)| count).sum::<u64>(), 3);
    }

    #[test]
    fn a_load_is_in_the_bucket_of_its_time() {
        let metrics = GroupMetrics::default();
        for ms in [0, 1, 30, 60_000] {
            metrics.loaded(2, Duration::from_millis(ms));
        }
        let times = metrics.load_times();
        assert_eq!(times.count(), 4);
        assert_eq!((times.buckets[0], times.buckets[1], times.buckets[6], times.buckets[12]), (1, 1, 1, 1));
        assert_eq!((times.seconds, metrics.keys_loaded()), (60.031, 8));
    }

    #[test]
    fn a_get_that_is_answered_at_once_is_in_the_first_bucket() {
        let metrics = GroupMetrics::default();
        (0..5).for_each(|_| metrics.answered(Outcome::Hit));
        metrics.failed();
        metrics.waited(Some(Outcome::Loaded), Duration::from_millis(30));
        metrics.waited(None, Duration::from_secs(60));
        let times = metrics.get_times();
        assert_eq!((times.buckets[0], times.buckets[6], times.buckets[12], times.count()), (6, 1, 1, 8));
        assert_eq!((metrics.gets().loaded, metrics.gets().error, times.seconds), (1, 2, 60.03));
    }
}
