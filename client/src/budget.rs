//! The budget that retries draw on, so that a fleet in trouble is not asked much more because of it.

use std::time::Duration;

use tower::retry::budget::{Budget as _, TpsBudget};

/// Retries as a part of all calls (0.2) plus some that are always there (100 each second), counted over
/// ten seconds.
#[derive(Debug)]
pub(crate) struct RetryBudget {
    budget: TpsBudget,
}

/// The budget takes a lock, so only one call of five is counted, picked at random, and five times as much.
const COUNTED: usize = 5;

impl RetryBudget {
    pub(crate) fn new() -> Self {
        let budget = TpsBudget::new(Duration::from_secs(10), 100, 0.2 * COUNTED as f32);
        RetryBudget { budget }
    }

    pub(crate) fn deposit(&self) {
        self.deposit_for(1);
    }

    /// Takes in that so many keys are asked for.
    pub(crate) fn deposit_for(&self, keys: usize) {
        let counted = keys / COUNTED + usize::from(fastrand::usize(..COUNTED) < keys % COUNTED);
        (0..counted).for_each(|_| self.budget.deposit());
    }

    pub(crate) fn withdraw(&self) -> bool {
        self.budget.withdraw()
    }
}
