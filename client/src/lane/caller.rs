//! Who waits for an answer on a lane, and how it is delivered.

use tokio::sync::oneshot;
use tokio::time::Instant;

use super::Answer;
use super::batch::Part;

/// How much one lane may have in flight.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    pub(crate) operations: usize,
    pub(crate) queued_bytes: usize,
}

/// One who waits for an operation.
#[derive(Debug)]
pub(super) struct Caller {
    pub(super) waiter: Waiter,
    pub(super) deadline: Instant,
}

/// How one waits: for this answer alone, or for all answers of a batch.
#[derive(Debug)]
pub(super) enum Waiter {
    Alone(oneshot::Sender<Answer>),
    InBatch(Part),
}

impl Caller {
    /// A caller that has stopped waiting is not missed.
    pub(super) fn tell(self, answer: Answer) {
        match self.waiter {
            Waiter::Alone(sender) => {
                let _ = sender.send(answer);
            }
            Waiter::InBatch(part) => part.give(answer),
        }
    }
}

/// An answer with the one who waits for it; sent after the lane's lock is released.
#[derive(Debug)]
pub(super) struct Delivery {
    /// `None` where nobody waits any more: what the answer gives has to be given back.
    pub(super) caller: Option<Caller>,
    pub(super) answer: Answer,
    /// Number of the group.
    pub(super) group: u32,
}

impl Delivery {
    pub(super) fn tell(self) {
        if let Some(caller) = self.caller {
            caller.tell(self.answer);
        }
    }
}
