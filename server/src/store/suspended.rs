//! How long the machine has been suspended while this process ran, which its monotonic clock does not count
//! and lifetimes do.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use peanut_proto::clock::milliseconds;

/// The time of all suspensions; clones count the same.
#[derive(Clone, Debug, Default)]
pub struct Suspended(Arc<AtomicU64>);

impl Suspended {
    /// Adds a suspension that is over.
    pub fn add(&self, time: Duration) {
        self.0.fetch_add(milliseconds(time), Ordering::Relaxed);
    }

    /// How long that was, together.
    pub fn time(&self) -> Duration {
        Duration::from_millis(self.0.load(Ordering::Relaxed))
    }
}
