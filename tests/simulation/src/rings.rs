//! When there was more than one ring.
//!
//! A node that starts after the registry has lost its data knows no ring, and may found one, before a node
//! that knows the last one has written that again. Until then clients of either ring are not told of what
//! those of the other write (docs/consistency.md), so what they read is not held against them.

use std::ops::Range;
use std::time::Duration;

use peanut_proto::intervals::OLDER_RING_BELIEVED;

/// From when the last ring was written again until all have heard of it.
const HEARD: Duration = Duration::from_secs(3);
/// Where nobody writes the last ring again, all have heard of the other one, and believe it, after so long.
const BELIEVED: Duration = OLDER_RING_BELIEVED.saturating_add(HEARD);

/// The times at which rings stood beside one another.
#[derive(Debug, Default)]
pub(super) struct Rings {
    /// The newest version that there was.
    newest: u64,
    /// Since when there are several, and until when there may be.
    now: Option<Range<Duration>>,
    over: Vec<Range<Duration>>,
}

impl Rings {
    /// A ring was stored.
    pub(super) fn stored(&mut self, version: u64, now: Duration) {
        if version <= self.newest {
            self.go_on(now);
            return;
        }
        self.newest = version;
        if let Some(many) = self.now.take() {
            self.over.push(many.start..many.end.min(now + HEARD));
        }
    }

    /// All that was stored is lost: those who have not heard of the last ring yet do not hear of it any more.
    pub(super) fn lost(&mut self, now: Duration) {
        if let Some(last) = self.over.pop_if(|last| last.end > now) {
            self.now = Some(last);
        }
        if self.now.is_some() {
            self.go_on(now);
        }
    }

    /// There are several from now on, or still.
    fn go_on(&mut self, now: Duration) {
        let before = self.now.take();
        let since = before.as_ref().filter(|many| many.end > now).map_or(now, |many| many.start);
        self.over.extend(before.filter(|many| many.end <= now));
        self.now = Some(since..now + BELIEVED);
    }

    /// The newest version that there was.
    pub(super) fn newest(&self) -> u64 {
        self.newest
    }

    /// Until when there may be more than one, where there is at that time.
    pub(super) fn are_many_until(&self, at: Duration) -> Option<Duration> {
        let many = self.now.iter().chain(&self.over).filter(|many| many.contains(&at));
        many.map(|many| many.end).max()
    }

    /// Whether there was more than one.
    pub(super) fn were_many(&self, at: Duration) -> bool {
        self.are_many_until(at).is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rings_are_many_from_the_founding_of_another_until_the_last_one_is_back_and_heard_of() {
        let (mut rings, at) = (Rings::default(), Duration::from_secs);
        (1..=3).for_each(|now| rings.stored(now, at(now)));
        rings.lost(at(10));
        rings.stored(4, at(11));
        assert!((0..20).all(|now| !rings.were_many(at(now))), "it was written again");
        rings.lost(at(20));
        rings.stored(1, at(21));
        rings.stored(2, at(22));
        assert!(!rings.were_many(at(20)) && rings.were_many(at(21)) && rings.were_many(at(39)));
        assert!(!rings.were_many(at(41)), "the other one is believed");
        assert_eq!((rings.are_many_until(at(22)), rings.are_many_until(at(41))), (Some(at(40)), None));
        rings.stored(1004, at(30));
        assert!(rings.were_many(at(32)) && !rings.were_many(at(34)));
        rings.lost(at(31));
        rings.stored(2004, at(35));
        assert!(rings.were_many(at(36)), "not all had heard of it");
        assert!(!rings.were_many(at(39)));
    }
}
