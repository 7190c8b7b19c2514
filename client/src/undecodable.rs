//! What is known of values that are no JSON documents of the type that a caller wants. One for a client, so
//! that all of its groups and calls leave alone what one of them has found.

use std::collections::{BTreeSet, HashMap};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::MutexGuard;
use tokio::time::{Instant, timeout_at};

/// How long such a value is left alone.
const LEFT_ALONE: Duration = Duration::from_secs(10);
/// Keys that are remembered at most.
const MOST: usize = 1024;

/// Keys are named by their hashes, those of the ring.
#[derive(Debug, Default)]
pub(crate) struct Undecodable {
    /// Keys whose values were none after they had been asked for anew, and when that was.
    given_up: Mutex<HashMap<u64, Instant>>,
    /// One of the callers that want to delete a value does, as a delete makes the loads of others void; by
    /// key.
    turns: [tokio::sync::Mutex<()>; 16],
}

impl Undecodable {
    pub(crate) fn is_given_up(&self, hash: u64) -> bool {
        self.given_up.lock().get(&hash).is_some_and(|at| at.elapsed() < LEFT_ALONE)
    }

    pub(crate) fn give_up(&self, hash: u64) {
        let mut given_up = self.given_up.lock();
        if given_up.len() >= MOST {
            given_up.clear();
        }
        given_up.insert(hash, Instant::now());
    }

    /// The turns of keys, taken in one order by everybody; `None` where they could not be had in time.
    pub(crate) async fn turns(
        &self,
        hashes: impl Iterator<Item = u64>,
        until: Instant,
    ) -> Option<Vec<MutexGuard<'_, ()>>> {
        let places: BTreeSet<usize> = hashes.map(|hash| hash as usize % self.turns.len()).collect();
        let mut turns = Vec::with_capacity(places.len());
        for place in places {
            turns.push(timeout_at(until, self.turns[place].lock()).await.ok()?);
        }
        Some(turns)
    }
}
