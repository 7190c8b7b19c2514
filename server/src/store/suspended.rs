//! How long the machine has been suspended while this process ran, which its monotonic clock does not count
//! and lifetimes do.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use peanut_proto::clock::{milliseconds, suspended};

/// The time of all suspensions that are counted; clones count the same.
#[derive(Clone, Debug)]
pub struct Suspended {
    /// Of the machine, when this was made.
    before: Duration,
    counted_ms: Arc<AtomicU64>,
}

impl Default for Suspended {
    fn default() -> Self {
        Suspended { before: suspended(), counted_ms: Arc::default() }
    }
}

impl Suspended {
    /// Counts all that there has been until now.
    pub fn count(&self) {
        self.counted_ms.fetch_max(milliseconds(self.until_now()), Ordering::Release);
    }

    /// What is counted, in milliseconds.
    pub(super) fn counted_ms(&self) -> u64 {
        self.counted_ms.load(Ordering::Acquire)
    }

    /// What is not counted yet: entries have not grown older by it.
    pub fn uncounted(&self) -> Duration {
        self.until_now().saturating_sub(Duration::from_millis(self.counted_ms()))
    }

    fn until_now(&self) -> Duration {
        suspended().saturating_sub(self.before)
    }

    /// Counts a suspension that there was not.
    #[cfg(test)]
    pub(crate) fn pretend(&self, time: Duration) {
        self.counted_ms.fetch_add(milliseconds(time), Ordering::Release);
    }
}
