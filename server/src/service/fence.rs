//! Fences: a slot that a client has opened again shuts out what is left of the lane before.
//!
//! What is still in the buffers of the old connection may arrive after a later write of the same client; it is dropped. A client
//! that has given a node up leaves its fence in the registry.

use std::collections::HashMap;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

/// Fences older than that are forgotten when there are many: no buffer holds anything for so long.
const LONGEST: Duration = Duration::from_secs(600);
const MANY: usize = 10_000;

/// One opening of a slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Opening {
    pub(crate) client: u64,
    pub(crate) slot: u32,
    /// Raised each time the client opens the slot.
    pub(crate) epoch: u64,
}

/// The latest opening of each slot of each client.
#[derive(Debug, Default)]
pub(crate) struct Fences {
    latest: Mutex<HashMap<(u64, u32), (u64, Instant)>>,
}

impl Fences {
    /// Shuts out all openings of the slot before this one.
    pub(crate) fn raise(&self, opening: Opening, now: Instant) {
        let mut latest = self.latest.lock();
        if latest.len() >= MANY {
            latest.retain(|_, (_, raised)| now.duration_since(*raised) < LONGEST);
        }
        let (epoch, raised) = latest.entry((opening.client, opening.slot)).or_insert((0, now));
        (*epoch, *raised) = (opening.epoch.max(*epoch), now);
    }

    /// Whether there is a later opening of the slot.
    pub(crate) fn shut_out(&self, opening: Opening) -> bool {
        let latest = self.latest.lock();
        latest.get(&(opening.client, opening.slot)).is_some_and(|(epoch, _)| *epoch > opening.epoch)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_later_opening_shuts_out_the_earlier_and_nobody_else() {
        let (fences, now) = (Fences::default(), Instant::now());
        let opening = |client, epoch| Opening { client, slot: 1, epoch };
        fences.raise(opening(7, 2), now);
        assert!(fences.shut_out(opening(7, 1)) && !fences.shut_out(opening(7, 2)));
        assert!(!fences.shut_out(opening(8, 1)));
        assert!(!fences.shut_out(Opening { slot: 2, ..opening(7, 1) }));
        fences.raise(opening(7, 1), now);
        assert!(fences.shut_out(opening(7, 1)), "a late opening changes nothing");
    }

    #[tokio::test(start_paused = true)]
    async fn fences_are_forgotten_when_they_are_old_and_many() {
        let (fences, now) = (Fences::default(), Instant::now());
        (0..MANY as u64).for_each(|client| fences.raise(Opening { client, slot: 0, epoch: 1 }, now));
        fences.raise(Opening { client: 1 << 40, slot: 0, epoch: 1 }, now + LONGEST);
        assert_eq!(fences.latest.lock().len(), 1);
    }
}
