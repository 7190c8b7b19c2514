//! A get of many keys in flight: one operation, one caller, an answer for each key.

use bytes::Bytes;
use peanut_proto::frame::{AnswerFields, FrameError};
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::Pieces;
use crate::lane::caller::Delivery;
use crate::lane::{Answer, Failure};

#[derive(Debug)]
pub(super) struct Many {
    /// By position of the key.
    answers: Vec<Option<Answer>>,
    /// How many are missing.
    left: usize,
    /// What has arrived of values that come in pieces, by position.
    pieces: Vec<(u32, Option<Box<Pieces>>)>,
    /// `None` once its deadline has passed. It keeps its place until the node has answered all of it, so that
    /// a late answer finds no stranger there.
    caller: Option<oneshot::Sender<Vec<Answer>>>,
    deadline: Instant,
}

impl Many {
    pub(super) fn new(keys: usize, caller: oneshot::Sender<Vec<Answer>>, deadline: Instant) -> Self {
        let answers = (0..keys).map(|_| None).collect();
        Many { answers, left: keys, pieces: Vec::new(), caller: Some(caller), deadline }
    }

    /// How many keys have not been answered.
    pub(super) fn left(&self) -> usize {
        self.left
    }

    /// Takes in the answer, or a piece of it, to one key. `Some`: it is whole now.
    pub(super) fn assemble(
        &mut self,
        answer: &AnswerFields,
        value: Bytes,
    ) -> Result<Option<(AnswerFields, Bytes)>, FrameError> {
        let begun = self.pieces.iter().position(|(position, _)| *position == answer.position);
        if begun.is_none() && answer.value_bytes == 0 {
            return Ok(Some((*answer, value)));
        }
        let at = begun.unwrap_or_else(|| {
            self.pieces.push((answer.position, None));
            self.pieces.len() - 1
        });
        let whole = Pieces::assemble(&mut self.pieces[at].1, answer, value)?;
        if whole.is_some() {
            self.pieces.swap_remove(at);
        }
        Ok(whole)
    }

    /// Takes in the answer to the key at a position.
    pub(super) fn take(&mut self, position: u32, answer: Answer) -> Result<(), FrameError> {
        let place = self.answers.get_mut(position as usize).filter(|place| place.is_none());
        *place.ok_or(FrameError::UNKNOWN_ID)? = Some(answer);
        self.left -= 1;
        Ok(())
    }

    /// Gives up on the caller, if the deadline has passed: what has not been answered is late.
    pub(super) fn expire(&mut self, now: Instant) -> Option<Delivery> {
        if self.deadline > now { None } else { self.deliver(&Failure::Late) }
    }

    /// Tells the caller, if there is one still; what has not been answered fails with this.
    pub(super) fn deliver(&mut self, missing: &Failure) -> Option<Delivery> {
        let caller = self.caller.take()?;
        // The places stay taken or free, for answers that are late.
        let answer = |place: &mut Option<Answer>| match place {
            Some(answer) => std::mem::replace(answer, Err(Failure::Late)),
            None => Err(missing.clone()),
        };
        Some(Delivery::Many { caller, answers: self.answers.iter_mut().map(answer).collect() })
    }
}
