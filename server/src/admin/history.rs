//! The last minutes, a sample a second, so that a page that is opened now shows what was before.

use std::collections::VecDeque;
use std::time::Duration;

use parking_lot::Mutex;
use peanut_proto::v1::{Gets, StatusResponse};
use serde::Serialize;
use tokio::time::{MissedTickBehavior, interval};

use crate::node::Node;

/// Five minutes.
const SAMPLES: usize = 300;

/// Samples of counts, the oldest first.
#[derive(Debug, Default)]
pub(super) struct History {
    samples: Mutex<VecDeque<Sample>>,
}

/// What the counts of all groups came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub(super) struct Sample {
    /// Milliseconds since the process began.
    at_ms: u64,
    gets: u64,
    /// Answered from memory: hits, stale values and known absences.
    from_memory: u64,
    /// Operations and calls that were refused or failed.
    errors: u64,
    loads: u64,
    load_seconds: f64,
}

impl Sample {
    fn of(status: &StatusResponse) -> Self {
        let errors = status.failures.iter().map(|failures| failures.count).sum();
        let mut sample = Sample { at_ms: status.uptime_ms, errors, ..Sample::default() };
        for group in &status.groups {
            let Gets { hit, stale, loaded, coalesced, negative, miss, fill, error } =
                group.gets.unwrap_or_default();
            sample.gets += hit + stale + loaded + coalesced + negative + miss + fill + error;
            sample.from_memory += hit + stale + negative;
            sample.loads += group.loads;
            sample.load_seconds += group.load_seconds;
        }
        sample
    }
}

impl History {
    /// Takes a sample a second for as long as it is polled.
    pub(super) async fn sample(self: std::sync::Arc<Self>, node: Node) {
        let mut tick = interval(Duration::from_secs(1));
        tick.set_missed_tick_behavior(MissedTickBehavior::Skip);
        loop {
            tick.tick().await;
            self.add(Sample::of(&node.status_now(0)));
        }
    }

    fn add(&self, sample: Sample) {
        let mut samples = self.samples.lock();
        if samples.len() == SAMPLES {
            samples.pop_front();
        }
        samples.push_back(sample);
    }

    pub(super) fn samples(&self) -> Vec<Sample> {
        self.samples.lock().iter().copied().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_sample_goes_when_there_is_no_room() {
        let history = History::default();
        (0..SAMPLES as u64 + 3).for_each(|at_ms| history.add(Sample { at_ms, ..Sample::default() }));
        let samples = history.samples();
        assert_eq!((samples.len(), samples[0].at_ms), (SAMPLES, 3));
    }
}
