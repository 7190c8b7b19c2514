//! Near copies of a group's keys: which answers may be kept by clients, and what writes wait for.

use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use peanut_proto::clock::uptime;
use peanut_proto::frame::FRAME_BYTES;
use peanut_proto::intervals::near_copy;
use peanut_proto::key::key_hash;
use peanut_proto::v1::Outcome;
use tokio::time::Instant;

use super::{Answer, Cache};
use crate::near::{LaneId, NearLane, Put, Unconfirmed};
use crate::store::Origin;
use crate::validity::Validity;

/// A copy that would end sooner is not worth it.
const SHORTEST: Duration = Duration::from_millis(20);

impl Cache {
    /// Whether clients should keep a key, as far as this get tells.
    pub(crate) fn is_hot(&self, key: &[u8]) -> bool {
        self.hot.is_hot(key)
    }

    /// Answers once more, as of now, with leave to keep the answer on this lane; `None` where it may not be
    /// kept. A write that changes the store after it was read here finds the lane among those that hold the
    /// key.
    pub(crate) fn answer_to_keep(
        &self,
        key: &Bytes,
        validity: Validity,
        outcome: Outcome,
        lane: &NearLane,
    ) -> Option<Answer> {
        // A stale value is no value to keep, nor is what was never stored: values that are brought later
        // outdate nothing.
        if !matches!(outcome, Outcome::Hit | Outcome::Loaded | Outcome::Coalesced | Outcome::NotFound) {
            return None;
        }
        let hash = key_hash(&self.group, key);
        let put = self.copies.put(&self.near, lane, hash, uptime());
        if put == Put::Full {
            return None;
        }
        let answer = self.fresh_to_keep(key, validity, outcome);
        match &answer {
            Some(_) => _ = self.near.metrics.given.fetch_add(1, Ordering::Relaxed),
            // One that it had stands: it may be read still.
            None if put == Put::New => self.copies.take_back(&self.near, lane, hash),
            None => {}
        }
        answer
    }

    /// What the store has by now, with leave to keep it.
    fn fresh_to_keep(&self, key: &Bytes, validity: Validity, outcome: Outcome) -> Option<Answer> {
        let now = Instant::now();
        let entry = self.valid(key, Origin::Owner, validity, now)?;
        if !self.is_fresh(&entry, now) || entry.value.as_ref().is_some_and(|it| it.len() > FRAME_BYTES) {
            return None;
        }
        // What was not found may have been set meanwhile.
        let found = if outcome == Outcome::NotFound { Outcome::Hit } else { outcome };
        let answer = self.answer(found, &entry, now);
        let until_refresh = self.policy.refresh_after.map(|after| entry.loaded + after);
        let until_refresh = until_refresh.map(|at| at.saturating_duration_since(now));
        let left = near_copy().min(answer.ttl).min(until_refresh.unwrap_or(near_copy()));
        let near_ms = u32::try_from(left.as_millis()).unwrap_or(u32::MAX);
        (left >= SHORTEST).then_some(Answer { near_ms, ..answer })
    }

    /// Has those who hold near copies of a key told that they are outdated; after the store was changed.
    pub(super) fn outdate_copies(&self, key: &[u8], by: Option<LaneId>) -> Unconfirmed {
        self.copies.outdate(&self.near, || key_hash(&self.group, key), by)
    }

    pub(super) fn outdate_all_copies(&self, by: Option<LaneId>) -> Unconfirmed {
        self.copies.outdate_all(&self.near, by)
    }

    pub(super) fn unconfirmed_copies(&self, by: Option<LaneId>) -> Unconfirmed {
        self.copies.unconfirmed(&self.near, by)
    }

    pub(super) async fn confirmed(&self, copies: Unconfirmed) {
        copies.confirmed(&self.near).await;
    }

    /// How many lanes hold near copies of a key.
    pub(crate) fn near_holders(&self, key: &[u8]) -> usize {
        self.copies.holders(key_hash(&self.group, key))
    }
}
