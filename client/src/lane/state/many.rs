//! An operation of many keys in flight: one caller, an answer for each key.

use bytes::Bytes;
use peanut_proto::frame::{AnswerFields, FrameError};
use peanut_proto::numbers::RingVersion;
use tokio::time::Instant;

use super::Pieces;
use crate::lane::caller::{Delivery, ManyCaller};
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
    caller: Option<ManyCaller>,
    /// Number of the group.
    group: u32,
    deadline: Instant,
    /// When it was asked for, by which ring, and, where answers may be kept, the keys with their hashes.
    pub(super) asked: Instant,
    pub(super) ring_version: RingVersion,
    pub(super) keys: Box<[(u64, Box<[u8]>)]>,
}

impl Many {
    pub(super) fn new(keys: usize, caller: ManyCaller, group: u32, deadline: Instant) -> Self {
        let answers = (0..keys).map(|_| None).collect();
        Many {
            answers,
            left: keys,
            pieces: Vec::new(),
            caller: Some(caller),
            group,
            deadline,
            asked: deadline,
            ring_version: RingVersion::NONE,
            keys: Box::default(),
        }
    }

    /// The group and the key at a position, with its hash, and when and by which ring it was asked for.
    pub(super) fn asked_for(&self, position: u32) -> Option<(u32, &[u8], u64, Instant, RingVersion)> {
        let (hash, key) = self.keys.get(position as usize)?;
        Some((self.group, key, *hash, self.asked, self.ring_version))
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

    /// Takes in the answer to the key at a position. What comes too late for the caller is delivered to
    /// nobody, since it may have to be given back.
    pub(super) fn take(
        &mut self,
        position: u32,
        answer: Answer,
        deliveries: &mut Vec<Delivery>,
    ) -> Result<(), FrameError> {
        let place = self.answers.get_mut(position as usize).filter(|place| place.is_none());
        let place = place.ok_or(FrameError::UNKNOWN_ID)?;
        self.left -= 1;
        if let Some(ManyCaller::Together(_)) = self.caller {
            *place = Some(answer);
            return Ok(());
        }
        *place = Some(Err(Failure::Late));
        let group = self.group;
        deliveries.push(match &self.caller {
            Some(ManyCaller::AsTheyCome { sender, first }) => {
                let (caller, position) = (sender.clone(), first + position as usize);
                Delivery::Each { caller, position, answer, group }
            }
            _ => Delivery::One { caller: None, answer, group },
        });
        Ok(())
    }

    /// Gives up on the caller, if the deadline has passed: what has not been answered is late.
    pub(super) fn expire(&mut self, now: Instant, deliveries: &mut Vec<Delivery>) {
        if self.deadline <= now {
            self.deliver(&Failure::Late, deliveries);
        }
    }

    /// Tells the caller, if there is one still; what has not been answered fails with this.
    pub(super) fn deliver(&mut self, missing: &Failure, deliveries: &mut Vec<Delivery>) {
        // The places stay taken or free, for answers that are late.
        let (answers, group) = (&mut self.answers, self.group);
        match self.caller.take() {
            Some(ManyCaller::Together(caller)) => {
                let answer = |place: &mut Option<Answer>| match place {
                    Some(answer) => std::mem::replace(answer, Err(Failure::Late)),
                    None => Err(missing.clone()),
                };
                let answers = answers.iter_mut().map(answer).collect();
                deliveries.push(Delivery::Many { caller, answers, group });
            }
            Some(ManyCaller::AsTheyCome { sender, first }) => {
                let left = answers.iter().enumerate().filter(|(_, place)| place.is_none());
                deliveries.extend(left.map(|(position, _)| Delivery::Each {
                    caller: sender.clone(),
                    position: first + position,
                    answer: Err(missing.clone()),
                    group,
                }));
            }
            None => {}
        }
    }
}
