//! Writes of the last few seconds, in case the ring has changed without this client's knowing.
//!
//! A client that has not heard of a change yet, and a node that has not either, may agree on a write at an
//! owner that is one no more, while others already ask the new one. As soon as the client hears of the change
//! it has the new owner forget what was written in the meantime: in the last seconds, or since it has been
//! cut off from the registry.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

use crate::request::Request;
use crate::routing::{Handle, Routing, Written};

/// Beyond so many the oldest are given up.
const MOST: usize = 65_536;

#[derive(Debug)]
pub(crate) struct RecentWrites {
    list: Mutex<List>,
}

#[derive(Debug)]
struct List {
    /// How long writes are kept: longer than a change of the ring takes to reach anyone who is not cut off
    /// from the registry.
    window: Duration,
    writes: VecDeque<Recent>,
    /// The registry cannot be read.
    is_in_trouble: bool,
    /// When that was last so.
    last_trouble: Option<Instant>,
}

impl List {
    /// Whether writes are kept however old they are: the ring may have changed at any time since the registry
    /// could be read.
    fn keeps_all(&self, now: Instant) -> bool {
        self.is_in_trouble || self.last_trouble.is_some_and(|at| now <= at + self.window)
    }

    /// Gives up what is too old.
    fn prune(&mut self, now: Instant) {
        while self.writes.len() >= MOST
            || (!self.keeps_all(now)
                && self.writes.front().is_some_and(|oldest| now > oldest.ended + self.window))
        {
            self.writes.pop_front();
        }
    }
}

/// A write that was done.
#[derive(Clone, Debug)]
pub(crate) struct Recent {
    ended: Instant,
    pub(crate) group: u32,
    pub(crate) group_name: Arc<str>,
    pub(crate) key: Box<[u8]>,
    pub(crate) hash: u64,
    written: Written,
}

impl RecentWrites {
    /// Keeps what was written in the last `window`.
    pub(crate) fn new(window: Duration) -> Self {
        let list = List { window, writes: VecDeque::new(), is_in_trouble: false, last_trouble: None };
        RecentWrites { list: Mutex::new(list) }
    }

    /// Takes down a write that is done.
    pub(crate) fn add(&self, request: &Request<'_>, group_name: &Arc<str>, written: Written, now: Instant) {
        let recent = Recent {
            ended: now,
            group: request.group,
            group_name: group_name.clone(),
            key: request.key.into(),
            hash: request.hash,
            written,
        };
        let mut list = self.list.lock();
        list.prune(now);
        list.writes.push_back(recent);
    }

    /// Those whose keys have had other owners since, or have other successors that are to be told.
    pub(crate) fn misplaced<N: Handle>(&self, routing: &Routing<N>, now: Instant) -> Vec<Recent> {
        let mut misplaced = Vec::new();
        let mut list = self.list.lock();
        // Those that are old by now as well: this process may have stood still since they were done.
        list.writes.retain(|recent| {
            let is_there = !routing.has_misplaced(recent.hash, recent.written);
            if !is_there {
                misplaced.push(recent.clone());
            }
            is_there
        });
        list.prune(now);
        misplaced
    }

    /// Takes in whether the registry can be read.
    pub(crate) fn tell(&self, is_in_trouble: bool, now: Instant) {
        let mut list = self.list.lock();
        if list.is_in_trouble || is_in_trouble {
            list.last_trouble = Some(now);
        }
        list.is_in_trouble = is_in_trouble;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use peanut_proto::numbers::RingVersion;

    use crate::routing::tests::routing;

    fn recent(key: &str, ended: Instant) -> Recent {
        Recent {
            ended,
            group: 0,
            group_name: "g".into(),
            key: key.as_bytes().into(),
            hash: 1,
            written: Written { under: RingVersion(1), successor: 0 },
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_written_since_the_registry_could_be_read_is_kept_however_long_that_is() {
        let (writes, begun) = (RecentWrites::new(Duration::from_secs(5)), Instant::now());
        let at = |seconds| begun + Duration::from_secs(seconds);
        let left = |now: Instant| {
            let mut list = writes.list.lock();
            list.prune(now);
            list.writes.len()
        };
        writes.list.lock().writes.push_back(recent("a", at(0)));
        assert_eq!((left(at(5)), left(at(6))), (1, 0), "a few seconds while all is well");
        writes.tell(true, at(10));
        writes.list.lock().writes.push_back(recent("b", at(11)));
        writes.list.lock().writes.push_back(recent("c", at(100)));
        assert_eq!(left(at(600)), 2);
        writes.tell(false, at(600));
        assert_eq!(left(at(604)), 2, "the ring that was missed is only just heard of");
        assert_eq!(left(at(606)), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_writer_that_stood_still_repeats_what_it_wrote_before() {
        let (writes, begun) = (RecentWrites::new(Duration::from_secs(5)), Instant::now());
        let before = routing(&["a"], None, begun);
        let after = routing(&["a", "b"], Some(&before), begun);
        let is_moved = |hash: &u64| after.has_moved_since(*hash, before.ring.version());
        let moved = (0..u64::MAX).step_by(usize::MAX / 199).find(is_moved).expect("a half of all keys");
        let written = Written { under: before.ring.version(), successor: 0 };
        let recent = Recent { hash: moved, written, ..recent("a", begun) };
        writes.list.lock().writes.push_back(recent);
        let woken = begun + Duration::from_secs(60);
        assert_eq!(writes.misplaced(&after, woken).len(), 1, "however long ago");
        assert_eq!(writes.misplaced(&after, woken).len(), 0, "once");
    }
}
