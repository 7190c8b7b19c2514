//! What a lane's stream has to do with near copies.

use std::task::Waker;
use std::time::Duration;

use bytes::Bytes;
use peanut_proto::frame::AnswerFields;
use peanut_proto::v1::Outcome;

use super::{LaneState, is_of_many};
use crate::near::ToKeep;

impl LaneState {
    /// Keeps an answer in the near cache.
    pub(super) fn keep(&mut self, answer: &AnswerFields, value: &Bytes, now: Duration) {
        let Some(near) = &mut self.near else { return };
        let at = answer.id as usize >> 1;
        let asked = if is_of_many(answer.id) {
            self.many.get(at).and_then(|many| many.asked_for(answer.position))
        } else {
            self.operations
                .get(at)
                .map(|one| (one.group, &one.key[..], one.hash, one.asked, one.ring_version))
        };
        let Some((group, key, hash, asked, ring_version)) = asked else { return };
        let answer = ToKeep {
            group,
            key,
            hash,
            value: (answer.outcome != Outcome::NotFound).then_some(value),
            age: Duration::from_millis(answer.age_ms),
            ttl: Duration::from_millis(answer.ttl_ms),
            kept_for: Duration::from_millis(answer.near_ms.into()),
            asked,
            ring_version,
        };
        near.keep(&answer, self.heard_version, now);
    }

    /// Says what is to be said of near copies by now. Gives the writer as [`push`](Self::push) does, and when
    /// to look again.
    pub(in crate::lane) fn tend_near(
        &mut self,
        epoch: u64,
        now: Duration,
    ) -> (Option<Waker>, Option<Duration>) {
        let Some(near) = self.near.as_mut().filter(|_| self.open == Some(epoch) && !self.draining) else {
            return (None, None);
        };
        let before = self.frame.len();
        let again = near.write(&mut self.frame, now);
        (if self.frame.len() > before { self.writer.take() } else { None }, again)
    }

    /// Near copies that came by it are read no more.
    pub(in crate::lane) fn forget_near_copies(&mut self) {
        if let Some(near) = &mut self.near {
            near.lost();
        }
    }
}
