//! Per-caller limits on near copies: how many there may be, and no leases for a while for a caller whose
//! lanes let writes wait again and again.

use std::collections::VecDeque;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::Mutex;

use super::TARDY;

/// Lanes of one caller that may let writes wait within [`TARDY`]; with one more none of its lanes has a
/// lease.
const MAX_TARDY: usize = 3;

/// Who a caller is, as far as near copies go: its token's name, and its address.
pub(crate) type Who = (Arc<str>, Option<IpAddr>);

/// The lanes of one caller.
#[derive(Debug, Default)]
pub(super) struct NearCaller {
    held: AtomicUsize,
    /// When lanes let writes wait, as of [`uptime`](peanut_proto::clock::uptime), the last ones.
    tardy: Mutex<VecDeque<Duration>>,
}

impl NearCaller {
    /// Copies that are put down for it.
    pub(super) fn held(&self) -> usize {
        self.held.load(Ordering::Relaxed)
    }

    pub(super) fn took(&self) {
        self.held.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn let_go(&self, copies: usize) {
        self.held.fetch_sub(copies, Ordering::Relaxed);
    }

    /// One of its lanes has let a write wait for the whole of its lease.
    pub(super) fn was_tardy(&self, now: Duration) {
        let mut tardy = self.tardy.lock();
        if tardy.len() > MAX_TARDY {
            tardy.pop_front();
        }
        tardy.push_back(now);
    }

    /// Whether any has of late, so that it counts still.
    pub(super) fn was_tardy_lately(&self, now: Duration) -> bool {
        self.tardy.lock().back().is_some_and(|last| now < *last + TARDY)
    }

    /// Whether so many have of late that it is given no leases.
    pub(super) fn is_tardy(&self, now: Duration) -> bool {
        let tardy = self.tardy.lock();
        tardy.len() > MAX_TARDY && tardy.front().is_some_and(|first| now < *first + TARDY)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_caller_whose_lanes_are_late_again_and_again_has_no_leases_for_a_while() {
        let (caller, second) = (NearCaller::default(), Duration::from_secs(1));
        for lane in 1..=3 {
            caller.was_tardy(second * lane);
        }
        assert!(!caller.is_tardy(second * 3), "a process that stands still has that many");
        assert!(caller.was_tardy_lately(second * 12) && !caller.was_tardy_lately(second * 3 + TARDY));
        caller.was_tardy(second * 4);
        assert!(caller.is_tardy(second * 5));
        assert!(!caller.is_tardy(second + TARDY));
        caller.was_tardy(second * 30);
        assert!(!caller.is_tardy(second * 31));
    }
}
