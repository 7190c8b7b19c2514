//! The budget that retries draw on, so that a fleet in trouble is not asked much more because of it.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tower::retry::budget::{Budget as _, TpsBudget};

/// Retries as a part of all calls (0.2) plus some that are always there (100 each second), counted over
/// ten seconds.
#[derive(Debug)]
pub(crate) struct RetryBudget {
    budget: TpsBudget,
    calls: AtomicU64,
}

/// The budget takes a lock, so only each fifth call is counted, five times as much.
const COUNTED: u64 = 5;

impl RetryBudget {
    pub(crate) fn new() -> Self {
        let budget = TpsBudget::new(Duration::from_secs(10), 100, 0.2 * COUNTED as f32);
        RetryBudget { budget, calls: AtomicU64::new(0) }
    }

    pub(crate) fn deposit(&self) {
        self.deposit_for(1);
    }

    /// Takes in that so many keys are asked for.
    pub(crate) fn deposit_for(&self, keys: usize) {
        let before = self.calls.fetch_add(keys as u64, Ordering::Relaxed);
        let counted = (before + keys as u64).div_ceil(COUNTED) - before.div_ceil(COUNTED);
        (0..counted).for_each(|_| self.budget.deposit());
    }

    pub(crate) fn withdraw(&self) -> bool {
        self.budget.withdraw()
    }
}
