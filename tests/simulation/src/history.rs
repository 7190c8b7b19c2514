//! A history checker: what many clients did and saw, held against what writes were acknowledged when.
//!
//! The origin has a version for each key, which every write raises before the cache is told. Writes of one
//! key come one after the other, so versions are in the order of time. A read that begins after a write was
//! acknowledged must show that version or a later one, and never one that nobody had begun to write.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

/// One operation, as its caller saw it. Times count from the beginning of the history.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Op {
    /// The key.
    pub key: u32,
    /// What was done.
    pub kind: Kind,
    /// When it began.
    pub begun: Duration,
    /// When its caller knew of its end.
    pub ended: Duration,
}

/// What an operation did.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Kind {
    /// A set or delete of this version was acknowledged.
    Written(u64),
    /// One was not: it may have been done or not, or be done later.
    WriteFailed(u64),
    /// This version was read.
    Read(u64),
    /// The answer was that there is no such key.
    ReadAbsent,
    /// Nothing was read.
    ReadFailed,
}

/// A read that saw what it must not have seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Violation {
    /// The read.
    pub read: Op,
    /// It had to show at least this version.
    pub at_least: u64,
    /// And at most this one.
    pub at_most: u64,
    /// How long before the read the write was acknowledged that it does not show.
    pub late_by: Duration,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Violation { read, at_least, at_most, late_by } = self;
        write!(
            f,
            "key {} at {:.3?}: {:?}, where {at_least} (acknowledged {late_by:.3?} before) to {at_most} were allowed",
            read.key, read.begun, read.kind
        )
    }
}

/// Takes down operations of many tasks.
#[derive(Debug, Default)]
pub struct History {
    ops: Mutex<Vec<Op>>,
}

impl History {
    /// Takes down an operation.
    pub fn add(&self, op: Op) {
        self.ops.lock().push(op);
    }

    /// All operations so far.
    pub fn ops(&self) -> Vec<Op> {
        self.ops.lock().clone()
    }
}

/// The reads that break the promise, where an outdated value may be shown for `bound` after a write was
/// acknowledged.
pub fn check(ops: &[Op], bound: Duration) -> Vec<Violation> {
    let ops: Vec<_> = ops.iter().map(|op| (0, *op)).collect();
    let violations = check_with(&ops, bound, Duration::ZERO, |_, _| false);
    violations.into_iter().map(|(_, violation)| violation).collect()
}

/// As [`check`], of operations of several clients, by clocks that differ by at most `skew`; `is_absent` says
/// which versions of a key are that it is not there.
pub fn check_with(
    ops: &[(usize, Op)],
    bound: Duration,
    skew: Duration,
    is_absent: impl Fn(u32, u64) -> bool,
) -> Vec<(usize, Violation)> {
    let mut by_key: BTreeMap<u32, Vec<(usize, Op)>> = BTreeMap::new();
    ops.iter().for_each(|(client, op)| by_key.entry(op.key).or_default().push((*client, *op)));
    let check = |ops: &Vec<_>| check_key(ops, bound, skew, &is_absent);
    let mut violations: Vec<_> = by_key.values().flat_map(check).collect();
    violations.sort_by_key(|(_, violation)| violation.read.begun);
    violations
}

fn check_key(
    ops: &[(usize, Op)],
    bound: Duration,
    skew: Duration,
    is_absent: &impl Fn(u32, u64) -> bool,
) -> Vec<(usize, Violation)> {
    let mut written: Vec<(Duration, u64)> = Vec::new();
    let mut begun: Vec<(Duration, u64)> = Vec::new();
    for (_, op) in ops {
        match op.kind {
            Kind::Written(version) => {
                written.push((op.ended, version));
                begun.push((op.begun, version));
            }
            Kind::WriteFailed(version) => begun.push((op.begun, version)),
            Kind::Read(_) | Kind::ReadAbsent | Kind::ReadFailed => {}
        }
    }
    let check = |(client, op): &(usize, Op)| {
        if !matches!(op.kind, Kind::Read(_) | Kind::ReadAbsent) {
            return None;
        }
        let before = written.iter().filter(|(ended, _)| *ended + bound <= op.begun);
        let newest = before.max_by_key(|(_, version)| *version);
        let at_least = newest.map_or(0, |(_, version)| *version);
        let at_most =
            begun.iter().filter(|(begun, _)| *begun <= op.ended + skew).map(|(_, version)| *version).max();
        let at_most = at_most.unwrap_or(0);
        let late_by = newest.map_or(Duration::ZERO, |(ended, _)| op.begun - *ended);
        let is_right = match op.kind {
            Kind::Read(version) => (at_least..=at_most).contains(&version),
            _ => (at_least..=at_most).any(|version| is_absent(op.key, version)),
        };
        (!is_right).then_some((*client, Violation { read: *op, at_least, at_most, late_by }))
    };
    ops.iter().filter_map(check).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn op(kind: Kind, begun: u64, ended: u64) -> Op {
        Op { key: 1, kind, begun: Duration::from_millis(begun), ended: Duration::from_millis(ended) }
    }

    fn violations(ops: &[Op]) -> usize {
        check(ops, Duration::ZERO).len()
    }

    #[test]
    fn a_read_after_an_acknowledged_write_shows_it() {
        let write = op(Kind::Written(1), 10, 20);
        assert_eq!(violations(&[write, op(Kind::Read(1), 20, 21)]), 0);
        assert_eq!(violations(&[write, op(Kind::Read(0), 20, 21)]), 1, "stale");
        assert_eq!(violations(&[write, op(Kind::Read(0), 19, 30)]), 0, "both went on at the same time");
        assert_eq!(violations(&[write, op(Kind::Read(1), 5, 11)]), 0);
        assert_eq!(violations(&[write, op(Kind::Read(1), 5, 9)]), 1, "from the future");
        assert_eq!(violations(&[write, op(Kind::Read(2), 20, 21)]), 1, "nobody wrote it");
        assert_eq!(violations(&[write, op(Kind::ReadFailed, 20, 21)]), 0);
        assert_eq!(violations(&[Op { key: 2, ..write }, op(Kind::Read(0), 20, 21)]), 0, "of another key");
    }

    #[test]
    fn a_write_that_failed_may_show_or_not_until_a_later_one_is_acknowledged() {
        let failed = op(Kind::WriteFailed(1), 10, 20);
        let later = op(Kind::Written(2), 30, 40);
        for version in [0, 1] {
            assert_eq!(violations(&[failed, op(Kind::Read(version), 25, 26)]), 0);
        }
        assert_eq!(violations(&[failed, later, op(Kind::Read(1), 41, 42)]), 1);
    }

    #[test]
    fn within_the_bound_an_outdated_value_is_allowed() {
        let ops = [op(Kind::Written(1), 10, 20), op(Kind::Read(0), 119, 120), op(Kind::Read(0), 120, 121)];
        let found = check(&ops, Duration::from_millis(100));
        assert_eq!(found.len(), 1);
        assert_eq!((found[0].read.begun.as_millis(), found[0].late_by.as_millis()), (120, 100));
    }
}
