//! What the operations of a lane hold while they wait.

use std::sync::Arc;

use peanut_proto::frame::{Operation, Target};
use peanut_proto::v1::ErrorCode;
use peanut_proto::v1::operation::Kind;

use super::Answers;
use crate::budget::{Held, OPERATION_BYTES};
use crate::cache::{Answer, Begun, Cache};
use peanut_edge::Failure;

/// Writes of a lane that may wait without counting for their caller: more of them wait only where a disk, the
/// registry or a holder of near copies stands still.
const UNCOUNTED_WRITES: usize = 1_024;

/// An operation that has begun.
pub(super) struct Started {
    pub(super) cache: Arc<Cache>,
    pub(super) begun: Begun,
    /// For a write that may have to wait.
    pub(super) held: Option<Held>,
}

/// An answer that waits for room for its value.
pub(super) struct Stalled {
    pub(super) to: Target,
    pub(super) cache: Arc<Cache>,
    pub(super) answer: Answer,
    _held: Held,
}

impl Answers {
    /// Room for an operation that waits.
    pub(super) fn room_to_wait(&self, bytes: usize) -> Result<Held, Failure> {
        self.account.operations.try_take(OPERATION_BYTES + bytes).ok_or_else(|| {
            Failure::new(ErrorCode::Overloaded, "too many operations of this connection are waiting")
        })
    }

    /// Room for a write, which may have to wait when it is done, where many do already.
    pub(super) fn room_for_write(&self, operation: &Operation) -> Result<Option<Held>, Failure> {
        let is_write = matches!(operation.kind, Kind::Set | Kind::Delete | Kind::Clear);
        let counts = is_write && self.writes >= UNCOUNTED_WRITES;
        counts.then(|| self.room_to_wait(operation.key.len())).transpose()
    }

    /// Keeps an answer until another of the lane's is out: its value is in memory, and counts, too.
    pub(super) fn stall(&mut self, to: Target, cache: Arc<Cache>, answer: Answer) {
        match self.account.spare.try_take(answer.value.len()) {
            Some(held) if !self.long.is_empty() => {
                self.stalled = Some(Stalled { to, cache, answer, _held: held });
            }
            _ => {
                let why =
                    "there is no room for the value: others wait to be taken by this caller, or by others";
                self.refuse(to, &Failure::new(ErrorCode::Overloaded, why));
            }
        }
    }
}
