//! What a lane knows, without socket or clock: the frame that is being written, and who waits for what.

mod many;
mod near;
mod outgoing;
mod pieces;

use std::collections::VecDeque;
use std::sync::Arc;
use std::task::Waker;
use std::time::Duration;

use bytes::Bytes;
use hashbrown::HashTable;
use peanut_proto::frame::{
    AnswerFields, FrameError, RequestFrame, RequestWriter, ResponseField, ResponseFrame, Target, Write,
};
use peanut_proto::numbers::{FillToken, RingVersion};
use peanut_proto::v1::{ErrorCode, Near};
use slab::Slab;
use smallvec::SmallVec;
use tokio::runtime::Id;
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::caller::{Caller, Delivery, Limits, ManyCaller};
use super::{Answer, Failure, Reply};
use crate::near::LaneCopies;
use crate::request::{Attempt, Each, ManyAttempt, Op, Placement, Request};
use many::Many;
pub(super) use outgoing::NextFrame;
use pieces::Pieces;

/// By when a token that is given back should have arrived.
const RELEASE_WITHIN: Duration = Duration::from_secs(5);

#[derive(Debug)]
pub(super) struct LaneState {
    pub(super) limits: Limits,
    /// The frame that the next operation is written into.
    frame: RequestWriter,
    frame_begun: Option<Instant>,
    /// Frames that are full.
    full: VecDeque<(RequestFrame, Instant)>,
    full_bytes: usize,
    /// How many frames the transport has taken.
    frames_sent: u64,
    /// The ring version that the node has been told.
    told_version: RingVersion,
    /// By number, the groups that the node has been told.
    told_groups: Vec<bool>,
    /// Operations in flight. An operation keeps its place until it is answered, even when nobody waits
    /// for it any more, so that a late answer finds no stranger there.
    operations: Slab<Operation>,
    /// Operations of many keys in flight; the two have even and odd numbers on the wire.
    many: Slab<Many>,
    /// How many of their keys have not been answered.
    many_keys: usize,
    /// Operations by hash of group and key, for those who want the same.
    by_key: HashTable<u32>,
    /// Newest ring version that the node has said.
    heard_version: RingVersion,
    /// The stream that frames are sent on; a number for each time it was opened.
    open: Option<u64>,
    /// What the first frame of the stream begins with.
    opening: Option<RequestFrame>,
    /// The node closes the lane: nothing more goes in.
    draining: bool,
    writer: Option<Waker>,
    /// Its near copies, where the client keeps some.
    near: Option<LaneCopies>,
    /// Since when there has been something in flight.
    busy_since: Option<Instant>,
    /// The driver sleeps until it is told that something is in flight.
    pub(super) parked: bool,
    /// The runtime that the driver is on.
    pub(super) home: Option<Id>,
    /// When the driver, or the caller that pushed the first operation, has looked last.
    pub(super) looked: Instant,
}

#[derive(Debug)]
struct Operation {
    hash: u64,
    group: u32,
    key: SmallVec<[u8; 24]>,
    owned_since: RingVersion,
    ring_version: RingVersion,
    failover: bool,
    /// It says that the caller reads a near copy.
    is_near: bool,
    /// The frame it was written into; `None` where it is nobody else's.
    shared_in: Option<u64>,
    callers: SmallVec<[Caller; 1]>,
    /// When it was asked for.
    asked: Instant,
    /// What has arrived of a value that comes in pieces.
    pieces: Option<Box<Pieces>>,
}

impl Operation {
    /// Whether an answer does for both, in the time that the new one has: the node goes by the first one's
    /// deadline.
    fn does_for(&self, ask: &Attempt<'_>, now: Instant) -> bool {
        let time = ask.request.deadline.saturating_duration_since(now);
        let is_in_time =
            self.callers.first().is_some_and(|first| first.deadline + time / 8 >= ask.request.deadline);
        is_in_time && self.is_same(ask)
    }

    fn is_same(&self, ask: &Attempt<'_>) -> bool {
        (self.hash, self.group, self.failover)
            == (ask.request.hash, ask.request.group, ask.placement.failover)
            && (self.owned_since, self.ring_version)
                == (ask.placement.owned_since, ask.placement.ring_version)
            && self.key[..] == *ask.request.key
            && (self.is_near || !ask.request.op.is_near())
    }
}

impl LaneState {
    pub(super) fn new(limits: Limits, near: Option<LaneCopies>) -> Self {
        LaneState {
            near,
            limits,
            frame: RequestWriter::default(),
            frame_begun: None,
            full: VecDeque::new(),
            full_bytes: 0,
            frames_sent: 0,
            told_version: RingVersion::NONE,
            told_groups: Vec::new(),
            operations: Slab::new(),
            many: Slab::new(),
            many_keys: 0,
            by_key: HashTable::new(),
            heard_version: RingVersion::NONE,
            open: None,
            opening: None,
            draining: false,
            writer: None,
            busy_since: None,
            parked: false,
            home: None,
            looked: Instant::now(),
        }
    }

    /// Since when there has been something in flight; `None` while nothing is.
    pub(super) fn busy_since(&self) -> Option<Instant> {
        self.busy_since.filter(|_| self.in_flight() > 0)
    }

    /// Keys in flight, and other operations.
    pub(super) fn in_flight(&self) -> usize {
        self.operations.len() + self.many_keys
    }

    pub(super) fn is_open(&self) -> bool {
        self.open.is_some()
    }

    /// Takes in an operation, or tells the caller at once that there is no room. Gives the writer where it
    /// sleeps and has something to do now.
    pub(super) fn push(&mut self, ask: &Attempt<'_>, caller: Caller, now: Instant) -> Option<Waker> {
        let operations = &mut self.operations;
        let can_be_shared = ask.request.op.can_be_shared();
        if !self.draining
            && can_be_shared
            && let Some(same) = self.by_key.find(ask.request.hash, |id| {
                let other = &operations[*id as usize];
                // One that is on its way may be answered with what was before a write that has ended
                // meanwhile.
                other.shared_in.is_some_and(|frame| frame >= self.frames_sent) && other.does_for(ask, now)
            })
        {
            operations[*same as usize].callers.push(caller);
            return None;
        }
        // Others may be waiting for a token that is given back.
        let is_release = matches!(ask.request.op, Op::Write(Write::Release { .. }));
        if !is_release && let Err(failure) = self.room() {
            caller.tell(Err(failure));
            return None;
        }
        self.begin(now);
        let operations = &mut self.operations;
        let id = u32::try_from(operations.insert(Operation {
            hash: ask.request.hash,
            group: ask.request.group,
            key: SmallVec::from_slice(ask.request.key),
            owned_since: ask.placement.owned_since,
            ring_version: ask.placement.ring_version,
            failover: ask.placement.failover,
            is_near: ask.request.op.is_near(),
            shared_in: None,
            callers: SmallVec::from_buf([caller]),
            asked: now,
            pieces: None,
        }));
        let id = id.expect("far fewer operations are in flight");
        if can_be_shared {
            self.by_key.insert_unique(ask.request.hash, id, |id| operations[*id as usize].hash);
        }
        self.write(id << 1, ask, now);
        if can_be_shared {
            self.operations[id as usize].shared_in = Some(self.frames_sent + self.full.len() as u64);
        }
        self.writer.take()
    }

    /// Takes in an operation of many keys, as [`push`](Self::push) does a single one.
    pub(super) fn push_many(
        &mut self,
        ask: &ManyAttempt<'_>,
        caller: ManyCaller,
        now: Instant,
    ) -> Option<Waker> {
        let (request, keys) = (&ask.request, ask.each.len());
        let mut many = Many::new(keys, caller, request.group, request.deadline);
        many.asked = now;
        if let (Some(near), Each::Get(keys)) = (&self.near, ask.each)
            && near.of_group(request.group_name) != Near::Off
        {
            many.ring_version = ask.placement.ring_version;
            many.keys = keys.iter().map(|(_, key)| (key.hash, key.bytes.into())).collect();
        }
        if let Err(failure) = self.room() {
            let mut deliveries = Vec::new();
            many.deliver(&failure, &mut deliveries);
            deliveries.into_iter().for_each(Delivery::tell);
            return None;
        }
        self.begin(now);
        self.many_keys += keys;
        let id = u32::try_from(self.many.insert(many)).expect("far fewer operations are in flight");
        self.write_many(id << 1 | 1, ask, now);
        self.writer.take()
    }

    /// Something is in flight from now on.
    fn begin(&mut self, now: Instant) {
        if self.in_flight() == 0 {
            self.busy_since = Some(now);
            self.looked = now;
        }
    }

    /// Whether one more operation may be taken in.
    fn room(&self) -> Result<(), Failure> {
        if self.draining {
            Err(LaneState::closing())
        } else if self.in_flight() >= self.limits.operations {
            Err(Failure::Full("too many operations are in flight to this node"))
        } else if self.full_bytes + self.frame.len() >= self.limits.queued_bytes {
            Err(Failure::Full("too many bytes wait to be sent to this node"))
        } else {
            Ok(())
        }
    }

    /// The number of the stream that is open.
    pub(super) fn epoch(&self) -> Option<u64> {
        self.open
    }

    /// Gives a fill token of a group back, if the stream that brought it is open still: the node has voided
    /// it with the stream, and a later one may not know the group by its number. Gives the writer as
    /// [`push`](Self::push) does.
    pub(super) fn release(
        &mut self,
        epoch: u64,
        (group, token): (u32, FillToken),
        now: Instant,
    ) -> Option<Waker> {
        if self.open != Some(epoch) || self.draining {
            return None;
        }
        let (ring_version, deadline) = (self.told_version, now + RELEASE_WITHIN);
        let request = Request {
            group,
            group_name: "",
            key: &[],
            hash: 0,
            deadline,
            op: Op::Write(Write::Release { token }),
            traceparent: "",
        };
        let ask = request.at(Placement::owner(ring_version, RingVersion::NONE));
        // Nobody waits for its answer.
        let (sender, _) = oneshot::channel();
        self.push(&ask, Caller { sender, deadline }, now)
    }

    /// Asks the node whether it still reads the lane.
    pub(super) fn ping(&mut self) -> Option<Waker> {
        self.frame.ping();
        self.writer.take()
    }

    /// Begins anew on a stream that has just been asked for; what was written before the stream was there
    /// goes first.
    pub(super) fn opened(&mut self, client_id: u64, epoch: u64) {
        let mut opening = RequestWriter::default();
        opening.open(client_id, self.near.as_ref().map_or(0, LaneCopies::staleness_ms));
        self.opening = Some(opening.take());
        self.open = Some(epoch);
        self.heard_version = RingVersion::NONE;
    }

    /// Takes in a frame of answers of the stream with that number, at a time as of
    /// [`uptime`](peanut_proto::clock::uptime). One that is open no more has nothing to say: its numbers of
    /// operations are others' now.
    pub(super) fn take_answers(
        &mut self,
        epoch: u64,
        frame: &ResponseFrame,
        now: Duration,
        deliveries: &mut Vec<Delivery>,
    ) -> Result<(), FrameError> {
        if self.open != Some(epoch) {
            return Ok(());
        }
        for field in frame.fields() {
            match field? {
                ResponseField::RingVersion(version) => self.heard_version = version,
                ResponseField::Answer(answer, value) => self.take_answer(&answer, value, now, deliveries)?,
                ResponseField::Failure { to, code, message } => {
                    self.finish(to, Err(Failure::Said(code, message.into())), deliveries)?;
                }
                ResponseField::Pong => {}
                ResponseField::Invalidation { number, keys } => {
                    if let Some(near) = &mut self.near {
                        near.outdated(number, keys);
                    }
                }
                ResponseField::NearRenewed { number, is_new } => {
                    if let Some(near) = &mut self.near {
                        near.renewed(number, is_new, self.heard_version, now);
                    }
                }
                ResponseField::Closing => {
                    // This side has said all, too, once what is written is sent.
                    self.draining = true;
                    self.writer.take().into_iter().for_each(Waker::wake);
                }
            }
        }
        Ok(())
    }

    pub(super) fn is_draining(&self) -> bool {
        self.draining
    }

    fn take_answer(
        &mut self,
        answer: &AnswerFields,
        value: Bytes,
        now: Duration,
        deliveries: &mut Vec<Delivery>,
    ) -> Result<(), FrameError> {
        let at = answer.id as usize >> 1;
        let whole = if is_of_many(answer.id) {
            self.many.get_mut(at).ok_or(FrameError::UNKNOWN_ID)?.assemble(answer, value)?
        } else {
            let operation = self.operations.get_mut(at).ok_or(FrameError::UNKNOWN_ID)?;
            Pieces::assemble(&mut operation.pieces, answer, value)?
        };
        let Some((answer, value)) = whole else { return Ok(()) };
        let AnswerFields { outcome, token, age_ms, ttl_ms, written, sequence, .. } = answer;
        let (age, ttl) = (Duration::from_millis(age_ms), Duration::from_millis(ttl_ms));
        let ring_version = self.heard_version;
        if answer.near_ms > 0 {
            self.keep(&answer, &value, now);
        }
        let reply = Reply { outcome, value, age, ttl, token, written, sequence, lease: None, ring_version };
        self.finish(answer.target(), Ok(reply), deliveries)
    }

    fn finish(
        &mut self,
        Target { id, position }: Target,
        answer: Answer,
        deliveries: &mut Vec<Delivery>,
    ) -> Result<(), FrameError> {
        let is_of_many = is_of_many(id);
        let id = id >> 1;
        if is_of_many {
            let many = self.many.get_mut(id as usize).ok_or(FrameError::UNKNOWN_ID)?;
            many.take(position, answer, deliveries)?;
            self.many_keys -= 1;
            if many.left() == 0 {
                many.deliver(&Failure::Late, deliveries);
                self.many.remove(id as usize);
            }
            return Ok(());
        }
        let operation = self.operations.try_remove(id as usize).ok_or(FrameError::UNKNOWN_ID)?;
        if let Ok(entry) = self.by_key.find_entry(operation.hash, |other| *other == id) {
            entry.remove();
        }
        let (mut callers, group) = (operation.callers.into_iter(), operation.group);
        let first = callers.next();
        // The load was the first one's; the others shared it.
        deliveries.extend(callers.map(|caller| Delivery::One {
            caller: Some(caller),
            answer: answer.clone().map(Reply::shared),
            group,
        }));
        deliveries.push(Delivery::One { caller: first, answer, group });
        Ok(())
    }

    /// Gives up on callers whose deadline has passed.
    pub(super) fn expire(&mut self, now: Instant, deliveries: &mut Vec<Delivery>) {
        self.looked = now;
        for (_, operation) in &mut self.operations {
            let mut at = 0;
            while at < operation.callers.len() {
                if operation.callers[at].deadline <= now {
                    let caller = Some(operation.callers.swap_remove(at));
                    let (answer, group) = (Err(Failure::Late), operation.group);
                    deliveries.push(Delivery::One { caller, answer, group });
                } else {
                    at += 1;
                }
            }
            // The node may have dropped it for the same reason, so nobody else may rely on it.
            if operation.callers.is_empty() {
                operation.shared_in = None;
            }
        }
        self.many.iter_mut().for_each(|(_, many)| many.expire(now, deliveries));
    }

    /// The stream with that number has ended; another that has been opened since goes on.
    pub(super) fn ended(&mut self, epoch: u64, failure: &Failure, deliveries: &mut Vec<Delivery>) {
        if self.open == Some(epoch) {
            self.fail_all(failure, deliveries);
        }
    }

    /// The stream is gone: everyone who waits is told, and the next operation begins anew.
    pub(super) fn fail_all(&mut self, failure: &Failure, deliveries: &mut Vec<Delivery>) {
        for operation in self.operations.drain() {
            let group = operation.group;
            deliveries.extend(operation.callers.into_iter().map(|caller| Delivery::One {
                caller: Some(caller),
                answer: Err(failure.clone()),
                group,
            }));
        }
        self.forget_near_copies();
        self.many.drain().for_each(|mut many| many.deliver(failure, deliveries));
        self.many_keys = 0;
        self.by_key.clear();
        self.frame = RequestWriter::default();
        self.frame_begun = None;
        self.full.clear();
        self.full_bytes = 0;
        self.told_version = RingVersion::NONE;
        self.told_groups.clear();
        self.open = None;
        self.opening = None;
        self.draining = false;
        self.parked = false;
        self.writer.take().into_iter().for_each(Waker::wake);
    }

    /// The failure that a node's own word amounts to when the lane is closing.
    pub(super) fn closing() -> Failure {
        Failure::Said(ErrorCode::ShuttingDown, Arc::from("the node is shutting down"))
    }
}

/// Whether a number on the wire is that of an operation of many keys.
fn is_of_many(id: u32) -> bool {
    id & 1 == 1
}

#[cfg(test)]
mod tests;
