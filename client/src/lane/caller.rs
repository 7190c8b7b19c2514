//! Who waits for an answer on a lane, and how it is delivered.

use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use super::Answer;

/// How much one lane may have in flight.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    pub(crate) operations: usize,
    pub(crate) queued_bytes: usize,
}

/// One who waits for an operation.
#[derive(Debug)]
pub(super) struct Caller {
    pub(super) sender: oneshot::Sender<Answer>,
    pub(super) deadline: Instant,
}

impl Caller {
    /// A caller that has stopped waiting is not missed.
    pub(super) fn tell(self, answer: Answer) {
        let _ = self.sender.send(answer);
    }
}

/// One who waits for an operation of many keys.
#[derive(Debug)]
pub(super) enum ManyCaller {
    /// For the answers to all of them together.
    Together(oneshot::Sender<Vec<Answer>>),
    /// For each answer as it comes, by the key's position, which is counted on from `first`.
    AsTheyCome { sender: EachSender, first: usize },
}

/// Takes answers by position.
pub(crate) type EachSender = mpsc::UnboundedSender<(usize, Answer)>;

/// An answer with the one who waits for it; sent after the lane's lock is released.
#[derive(Debug)]
pub(super) enum Delivery {
    One {
        /// `None` where nobody waits any more: what the answer gives has to be given back.
        caller: Option<Caller>,
        answer: Answer,
        /// Number of the group.
        group: u32,
    },
    Many {
        caller: oneshot::Sender<Vec<Answer>>,
        answers: Vec<Answer>,
        group: u32,
    },
    /// The answer to one of many keys.
    Each {
        caller: EachSender,
        position: usize,
        answer: Answer,
        group: u32,
    },
}

impl Delivery {
    pub(super) fn tell(self) {
        match self {
            Delivery::One { caller: Some(caller), answer, .. } => caller.tell(answer),
            Delivery::One { caller: None, .. } => {}
            Delivery::Many { caller, answers, .. } => drop(caller.send(answers)),
            Delivery::Each { caller, position, answer, .. } => drop(caller.send((position, answer))),
        }
    }

    /// The answers, and the number of their group.
    pub(super) fn answers(&mut self) -> (&mut [Answer], u32) {
        match self {
            Delivery::One { answer, group, .. } | Delivery::Each { answer, group, .. } => {
                (std::slice::from_mut(answer), *group)
            }
            Delivery::Many { answers, group, .. } => (answers, *group),
        }
    }
}
