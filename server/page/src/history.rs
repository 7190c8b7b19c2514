//! What nodes counted in the last minutes, a sample a second.
//!
//! Counts only grow while a process lives; the difference between two samples is what happened between them.
//! A second in which a node gave no sample has no difference, and is a gap.

use std::collections::{BTreeMap, HashMap, VecDeque};

use peanut_proto::v1::{Gets, GroupStatus, StatusResponse};
use serde::Serialize;

/// Five minutes.
const SAMPLES: usize = 300;
/// Rates "lately" are over so many samples.
const LATELY: usize = 10;
/// Samples further apart than this have a gap between them.
const GAP_MS: u64 = 2_500;
/// A node's last sample that is so much older than the newest one of any is not of now.
const OLD_MS: u64 = 5_000;
/// As many as a node has bounds, and one for longer times.
const BUCKETS: usize = 13;
/// Upper bounds of a node's buckets, in milliseconds.
const BOUNDS_MS: [f64; BUCKETS - 1] =
    [0.5, 1.0, 2.5, 5.0, 10.0, 25.0, 50.0, 100.0, 250.0, 500.0, 1_000.0, 2_500.0];

/// Counts of a group, of a node, or of several.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Counts {
    gets: u64,
    /// Answered from memory: hits, stale values and keys that are known not to exist.
    from_memory: u64,
    errors: u64,
    loads: u64,
    load_seconds: f64,
    buckets: [u64; BUCKETS],
}

impl Counts {
    /// Of one group.
    pub(crate) fn of(group: &GroupStatus) -> Self {
        let Gets { hit, stale, loaded, coalesced, negative, miss, fill, error, peek: _ } =
            group.gets.unwrap_or_default();
        let sum = |counts: &[u64]| counts.iter().fold(0, |sum: u64, count| sum.saturating_add(*count));
        Counts {
            gets: sum(&[hit, stale, loaded, coalesced, negative, miss, fill, error]),
            from_memory: sum(&[hit, stale, negative]),
            errors: error,
            loads: group.loads,
            load_seconds: group.load_seconds,
            buckets: std::array::from_fn(|at| group.get_buckets.get(at).copied().unwrap_or(0)),
        }
    }

    fn each(self, other: Counts, combine: fn(u64, u64) -> u64) -> Self {
        Counts {
            gets: combine(self.gets, other.gets),
            from_memory: combine(self.from_memory, other.from_memory),
            errors: combine(self.errors, other.errors),
            loads: combine(self.loads, other.loads),
            load_seconds: self.load_seconds,
            buckets: std::array::from_fn(|at| combine(self.buckets[at], other.buckets[at])),
        }
    }

    pub(crate) fn plus(self, other: Counts) -> Self {
        Counts {
            load_seconds: self.load_seconds + other.load_seconds,
            ..self.each(other, u64::saturating_add)
        }
    }

    /// What was counted since `earlier`.
    fn since(self, earlier: Counts) -> Self {
        let load_seconds = (self.load_seconds - earlier.load_seconds).max(0.0);
        Counts { load_seconds, ..self.each(earlier, u64::saturating_sub) }
    }

    /// What that is a second, where it took so long to be counted.
    pub(crate) fn over(self, at_ms: u64, ms: u64) -> Rates {
        let seconds = ms as f64 / 1e3;
        let part = |part: f64, of: u64| (of > 0).then(|| part / of as f64);
        Rates {
            at_ms,
            gets: self.gets as f64 / seconds,
            hits: part(self.from_memory as f64, self.gets),
            errors: self.errors as f64 / seconds,
            loads: self.loads as f64 / seconds,
            load_ms: part(self.load_seconds * 1e3, self.loads),
            p50_ms: quantile(&self.buckets, 0.5),
            p99_ms: quantile(&self.buckets, 0.99),
        }
    }
}

/// What happened around a time, a second.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Rates {
    /// Until when, in milliseconds since 1970.
    pub at_ms: u64,
    /// Gets a second.
    pub gets: f64,
    /// The part of them that was answered from memory; nothing where there were none.
    pub hits: Option<f64>,
    /// Errors a second.
    pub errors: f64,
    /// Calls of loaders a second.
    pub loads: f64,
    /// How long one took, on the average.
    pub load_ms: Option<f64>,
    /// The median of the times of gets at their nodes.
    pub p50_ms: Option<f64>,
    /// And the time within which 99 of 100 were answered.
    pub p99_ms: Option<f64>,
}

/// The time that this part of all gets took at most, by interpolation within a bucket, as Prometheus has it.
/// Beyond the last bound it is that bound.
fn quantile(buckets: &[u64; BUCKETS], part: f64) -> Option<f64> {
    let all: u64 = buckets.iter().sum();
    let rank = part * all as f64;
    let mut below = 0.0;
    let mut lower = 0.0;
    for (bound, count) in BOUNDS_MS.iter().zip(buckets) {
        let count = *count as f64;
        if count > 0.0 && below + count >= rank {
            return Some(lower + (bound - lower) * (rank - below) / count);
        }
        (below, lower) = (below + count, *bound);
    }
    (all > 0).then_some(lower)
}

/// What a node had counted at a time.
#[derive(Debug)]
struct Sample {
    at_ms: u64,
    uptime_ms: u64,
    all: Counts,
    /// Of the last samples only.
    groups: BTreeMap<String, Counts>,
}

impl Sample {
    fn of(status: &StatusResponse, at_ms: u64) -> Self {
        let groups: BTreeMap<_, _> =
            status.groups.iter().map(|group| (group.name.clone(), Counts::of(group))).collect();
        let mut all = groups.values().fold(Counts::default(), |sum, group| sum.plus(*group));
        // A node refuses more than gets of groups.
        all.errors = status.failures.iter().map(|failures| failures.count).sum();
        Sample { at_ms, uptime_ms: status.uptime_ms, all, groups }
    }

    /// Whether both are of one life of the process, with no gap between them.
    fn follows(&self, earlier: &Sample) -> bool {
        self.uptime_ms > earlier.uptime_ms
            && self.at_ms > earlier.at_ms
            && self.at_ms - earlier.at_ms <= GAP_MS
    }
}

/// Samples of nodes, by their ids, the oldest first.
#[derive(Debug, Default)]
pub struct Histories {
    nodes: HashMap<String, VecDeque<Sample>>,
}

impl Histories {
    /// Adds what a node has told, at a time in milliseconds since 1970.
    pub fn add(&mut self, node: &str, status: &StatusResponse, at_ms: u64) {
        let samples = self.nodes.entry(node.to_owned()).or_default();
        if samples.len() == SAMPLES {
            samples.pop_front();
        }
        samples.push_back(Sample::of(status, at_ms));
        if let Some(older) = samples.len().checked_sub(LATELY + 2) {
            samples[older].groups.clear();
        }
    }

    /// Forgets nodes that are none of these.
    pub fn retain(&mut self, is_node: impl Fn(&str) -> bool) {
        self.nodes.retain(|node, _| is_node(node));
    }

    fn of<'h>(&'h self, node: Option<&'h str>) -> impl Iterator<Item = &'h VecDeque<Sample>> {
        self.nodes
            .iter()
            .filter(move |(id, _)| node.is_none_or(|node| node == *id))
            .map(|(_, samples)| samples)
    }

    /// The rates of each second, of one node, or of all together. Seconds in which nothing was measured are
    /// not there.
    pub fn rates(&self, node: Option<&str>) -> Vec<Rates> {
        // By the second: what was counted, until when, and over how long, which is the longest of any node.
        let mut seconds: BTreeMap<u64, (Counts, u64, u64)> = BTreeMap::new();
        for samples in self.of(node) {
            for (second, (counts, at_ms, ms)) in by_second(samples) {
                let (sum, last_ms, longest) = seconds.entry(second).or_default();
                *sum = sum.plus(counts);
                (*last_ms, *longest) = (at_ms.max(*last_ms), ms.max(*longest));
            }
        }
        seconds.into_values().map(|(sum, at_ms, ms)| sum.over(at_ms, ms)).collect()
    }

    /// The rates of the last ten seconds, of one node, or of all together.
    pub fn lately(&self, node: Option<&str>) -> Option<Rates> {
        self.last(node, |sample| Some(sample.all))
    }

    /// The rates of a group in the last ten seconds.
    pub fn group_lately(&self, node: Option<&str>, group: &str) -> Option<Rates> {
        self.last(node, |sample| sample.groups.get(group).copied())
    }

    fn last(&self, node: Option<&str>, read: impl Fn(&Sample) -> Option<Counts>) -> Option<Rates> {
        let (mut sum, mut at_ms, mut ms) = (Counts::default(), 0, 0);
        let newest_ms = self.nodes.values().filter_map(|samples| samples.back()).map(|last| last.at_ms).max();
        for samples in self.of(node) {
            let mut newest = samples.iter().rev();
            // What a node that has stopped to answer did last is not what it does.
            let is_old = |last: &&Sample| newest_ms.is_some_and(|newest| last.at_ms + OLD_MS < newest);
            let Some(last) = newest.next().filter(|last| !is_old(last)) else { continue };
            // As far back as there is no gap.
            let mut first = last;
            for sample in newest.take(LATELY) {
                if !first.follows(sample) {
                    break;
                }
                first = sample;
            }
            if let (Some(last_counts), Some(first_counts)) = (read(last), read(first))
                && last.at_ms > first.at_ms
            {
                sum = sum.plus(last_counts.since(first_counts));
                (at_ms, ms) = (last.at_ms.max(at_ms), (last.at_ms - first.at_ms).max(ms));
            }
        }
        (ms > 0).then(|| sum.over(at_ms, ms))
    }
}

/// What one node counted in each second, until when, and over how long.
fn by_second(samples: &VecDeque<Sample>) -> BTreeMap<u64, (Counts, u64, u64)> {
    let mut seconds: BTreeMap<u64, (Counts, u64, u64)> = BTreeMap::new();
    for (earlier, later) in samples.iter().zip(samples.iter().skip(1)) {
        if later.follows(earlier) {
            // Two samples may fall into one.
            let (sum, at_ms, ms) = seconds.entry(later.at_ms / 1000).or_default();
            *sum = sum.plus(later.all.since(earlier.all));
            (*at_ms, *ms) = (later.at_ms, *ms + (later.at_ms - earlier.at_ms));
        }
    }
    seconds
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A node after so many gets of a group, a tenth of them loaded.
    fn status(uptime_ms: u64, gets: u64) -> StatusResponse {
        let loaded = gets / 10;
        let mut get_buckets = vec![0; BUCKETS];
        (get_buckets[0], get_buckets[4]) = (gets - loaded, loaded);
        let group = GroupStatus {
            name: "scores".to_owned(),
            gets: Some(Gets { hit: gets - loaded, loaded, ..Gets::default() }),
            loads: loaded,
            load_seconds: loaded as f64 * 0.008,
            get_buckets,
            ..GroupStatus::default()
        };
        StatusResponse { uptime_ms, groups: vec![group], ..StatusResponse::default() }
    }

    #[test]
    fn rates_are_what_came_between_two_samples() {
        let mut histories = Histories::default();
        for second in 0..20 {
            histories.add("a", &status(1 + second * 1000, second * 100), 5_000_000 + second * 1000);
        }
        let rates = histories.rates(None);
        assert_eq!(rates.len(), 19);
        assert_eq!(
            (rates[0].at_ms, rates[0].gets, rates[0].hits, rates[0].loads),
            (5_001_000, 100.0, Some(0.9), 10.0)
        );
        assert!((rates[0].load_ms.unwrap() - 8.0).abs() < 1e-9);
        let lately = histories.lately(Some("a")).unwrap();
        assert_eq!((lately.gets, lately.hits), (100.0, Some(0.9)));
        assert_eq!(histories.group_lately(None, "scores"), Some(lately));
        assert_eq!(histories.lately(Some("b")), None);
        assert_eq!(histories.group_lately(None, "others"), None);
    }

    #[test]
    fn two_samples_in_one_second_are_twice_as_long() {
        let mut histories = Histories::default();
        for (at_ms, gets) in [(5_010, 0), (6_001, 100), (6_999, 200)] {
            histories.add("a", &status(at_ms, gets), at_ms);
        }
        let rates = histories.rates(None);
        assert_eq!(rates.len(), 1);
        assert!((rates[0].gets - 200.0 / 1.989).abs() < 1e-9);
    }

    #[test]
    fn a_restart_and_a_silence_are_gaps() {
        let mut histories = Histories::default();
        let times = [
            (0, 1000, 0),
            (1000, 2000, 100),
            (9000, 10_000, 900),
            (10_000, 11_000, 1000),
            (11_000, 500, 50),
            (12_000, 1500, 150),
        ];
        for (at_ms, uptime_ms, gets) in times {
            histories.add("a", &status(uptime_ms, gets), at_ms);
        }
        let at: Vec<_> = histories.rates(None).iter().map(|rates| (rates.at_ms, rates.gets)).collect();
        assert_eq!(at, [(1000, 100.0), (10_000, 100.0), (12_000, 100.0)]);
        assert_eq!(histories.lately(None).unwrap().gets, 100.0, "since the restart");
    }

    #[test]
    fn nodes_are_added_and_forgotten() {
        let mut histories = Histories::default();
        for second in 0..400 {
            for node in ["a", "b"] {
                histories.add(node, &status(1 + second * 1000, second * 50), second * 1000);
            }
        }
        assert_eq!((histories.rates(None).len(), histories.nodes["a"].len()), (SAMPLES - 1, SAMPLES));
        assert_eq!(histories.rates(None)[7].gets, 100.0);
        assert_eq!(histories.rates(Some("b"))[7].gets, 50.0);
        let with_groups = histories.nodes["a"].iter().filter(|sample| !sample.groups.is_empty()).count();
        assert_eq!(with_groups, LATELY + 1);
        histories.retain(|node| node == "a");
        assert_eq!(histories.lately(None).unwrap().gets, 50.0);
    }

    #[test]
    fn quantiles_are_within_their_buckets() {
        let mut buckets = [0; BUCKETS];
        assert_eq!(quantile(&buckets, 0.5), None);
        buckets[0] = 100;
        assert_eq!(quantile(&buckets, 0.5), Some(0.25));
        buckets[3] = 100;
        assert_eq!(quantile(&buckets, 0.75), Some(3.75));
        buckets[12] = 10_000;
        assert_eq!(quantile(&buckets, 0.99), Some(2500.0));
    }
}
