//! `Lane`: frames of operations in, frames of answers out, in the stream itself.
//!
//! There is no task per operation and none between the frames: polling the stream of answers reads requests.
//! Hits are written into the outgoing frame where they are found; misses board their flights and are written
//! into a later frame. A frame of answers is closed at its size, wherever in a frame of requests that comes:
//! the rest of the requests waits its turn. Values longer than a frame go in pieces between other answers. A
//! client that does not read is not read from: flow control stops the polling, and so does what waits to be
//! sent.
//!
//! What one poll does is bounded, and so is what a lane holds ([`crate::budget`]).

mod long;
mod named;
mod near;
mod request;
mod room;

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt as _, Stream, StreamExt as _};
use peanut_proto::clock::milliseconds;
use peanut_proto::frame::{
    AnswerFields, FRAME_BYTES, FrameError, Operation, RequestField, RequestFrame, RequestReader,
    ResponseFrame, ResponseWriter, Target,
};
use peanut_proto::numbers::{FillToken, RingVersion};
use peanut_proto::v1::operation::Kind;
use peanut_proto::v1::{ErrorCode, OnMiss};
use tokio::time::Instant;
use tonic::{Status, Streaming};

use long::LongValues;
use named::{Admitted, Named};
use near::{Keep, NearStream};
use request::LaneRequest;
use room::{Stalled, Started};

use crate::budget::{Account, OpenLane};
use crate::cache::{Answer, Begun, Cache};
use crate::node::{Node, ring_unknown};
use crate::rights::Caller;
use peanut_edge::Failure;

/// Operations of one lane that may wait for flights: as many as a client has in flight to a node by default.
const MAX_WAITING: usize = 65_536;
/// Operations whose keys are looked for in memory together: few enough that all that was found is in the
/// cache still.
const AT_A_TIME: usize = 64;
/// Fields that one poll reads; after them others have their turn.
const FIELDS_PER_POLL: usize = 4_096;
/// Groups that a lane may name beside those that the node has.
const UNKNOWN_GROUPS: usize = 64;
/// Leases from which on a lane looks for those that have ended.
const MANY_LEASES: usize = 1_024;

/// What an operation that waited has come to.
struct Landed {
    to: Target,
    cache: Arc<Cache>,
    was_write: bool,
    keep: Option<Keep>,
    answer: Result<Answer, Failure>,
}

/// The stream of answers of one lane.
pub(super) struct Answers {
    node: Node,
    requests: Streaming<RequestFrame>,
    /// The client has said everything.
    ended: bool,
    /// The node is shutting down, and has said so.
    closing: bool,
    stopping: BoxFuture<'static, ()>,
    caller: Caller,
    account: Arc<Account>,
    /// Counts for the connection.
    _open: Option<OpenLane>,
    /// By the client's number.
    groups: HashMap<u32, Result<Named, Failure>>,
    unknown_groups: usize,
    /// The client has said who it is.
    is_open: bool,
    /// How often the node had woken when the lane was opened.
    wakes: u64,
    /// Fill tokens that this lane was given, with their groups, until their values come.
    leases: BTreeMap<FillToken, Arc<Cache>>,
    many_leases: usize,
    /// The ring that the client goes by.
    ring_version: RingVersion,
    told_version: RingVersion,
    waiting: FuturesUnordered<BoxFuture<'static, Landed>>,
    /// How many of them are writes.
    writes: usize,
    long: LongValues,
    /// An answer for whose value there is no room yet: nothing more is begun before it.
    stalled: Option<Stalled>,
    /// What is left of the frame that is being read.
    reading: Option<RequestReader>,
    /// For how long its operations had waited when it was sent.
    waited_ms: u32,
    /// When it came.
    came: Instant,
    /// Operations that were read and have not begun.
    read: VecDeque<Operation>,
    near: NearStream,
    frame: ResponseWriter,
}

impl Answers {
    pub(super) fn new(
        node: Node,
        caller: Caller,
        account: Arc<Account>,
        open: Option<OpenLane>,
        wakes: u64,
        requests: Streaming<RequestFrame>,
    ) -> Self {
        let stopping = node.stopping().clone().cancelled_owned().boxed();
        node.metrics().lanes.fetch_add(1, Relaxed);
        Answers {
            node,
            requests,
            ended: false,
            closing: false,
            stopping,
            caller,
            account,
            _open: open,
            groups: HashMap::new(),
            unknown_groups: 0,
            is_open: false,
            wakes,
            leases: BTreeMap::new(),
            many_leases: MANY_LEASES,
            ring_version: RingVersion::NONE,
            told_version: RingVersion::NONE,
            waiting: FuturesUnordered::new(),
            writes: 0,
            long: LongValues::default(),
            stalled: None,
            reading: None,
            waited_ms: 0,
            came: Instant::now(),
            read: VecDeque::new(),
            near: NearStream::default(),
            frame: ResponseWriter::default(),
        }
    }

    /// Whether an answer more may be made now.
    fn has_room(&self) -> bool {
        self.frame.len() < FRAME_BYTES && !self.long.is_full() && self.stalled.is_none()
    }

    /// Begins operations while there is room for their answers; hits are answered at once.
    fn poll_requests(&mut self, context: &mut Context<'_>) -> Result<(), Status> {
        let malformed = |error: FrameError| Status::invalid_argument(error.to_string());
        let (mut fields, now) = (FIELDS_PER_POLL, Instant::now());
        while self.has_room() {
            if let Some(operation) = self.read.pop_front() {
                self.begin(operation, now);
            } else if fields == 0 {
                context.waker().wake_by_ref();
                return Ok(());
            } else if self.reading.is_some() {
                self.read_fields(&mut fields).map_err(malformed)?;
            } else if self.ended || !self.poll_frame_of_requests(context, now)? {
                return Ok(());
            }
        }
        Ok(())
    }

    /// Takes the next frame of requests, where there is one.
    fn poll_frame_of_requests(&mut self, context: &mut Context<'_>, now: Instant) -> Result<bool, Status> {
        match self.requests.poll_next_unpin(context) {
            Poll::Ready(Some(Ok(request))) => {
                // After it was read: what had been read before the node slept was asked before.
                if self.node.wake().wakes() != self.wakes {
                    return Err(Status::unavailable("the node has slept; open the lane again"));
                }
                self.look_again().map_err(|gone| self.node.refuse(gone))?;
                (self.reading, self.waited_ms, self.came) = (Some(request.into_reader()), 0, now);
            }
            Poll::Ready(Some(Err(status))) => return Err(status),
            Poll::Ready(None) => self.ended = true,
            Poll::Pending => return Ok(false),
        }
        Ok(true)
    }

    /// Looks the caller's rights up again where tokens have changed since the last frame.
    fn look_again(&mut self) -> Result<(), Failure> {
        if self.caller.look_again(self.node.tokens())? {
            for named in self.groups.values_mut().flatten() {
                named.rights = self.caller.rights().of_group(named.cache.name());
            }
        }
        Ok(())
    }

    /// Reads some operations, or what stands before the next ones.
    fn read_fields(&mut self, left: &mut usize) -> Result<(), FrameError> {
        let Some(mut reading) = self.reading.take() else { return Ok(()) };
        while *left > 0 && self.read.len() < AT_A_TIME {
            // What stands between operations is for those after it.
            if !self.read.is_empty() && !reading.is_at_operation() {
                break;
            }
            let Some(field) = reading.next_field() else {
                self.prefetch();
                self.node.ring().knows(self.ring_version);
                self.tell_ring();
                return Ok(());
            };
            *left -= 1;
            match field? {
                RequestField::Operation(operation) => self.read.push_back(operation),
                RequestField::RingVersion(version) => self.ring_version = version,
                RequestField::Group(number, name, near) => self.name_group(number, name, near)?,
                RequestField::Open { client_id, near_staleness_ms }
                    if !std::mem::replace(&mut self.is_open, true) =>
                {
                    self.near.open(Duration::from_millis(near_staleness_ms.into()));
                    tracing::trace!(client = client_id, "a lane is opened");
                }
                RequestField::Open { .. } => return Err(FrameError::OPENED_TWICE),
                RequestField::WaitedMs(ms) => self.waited_ms = ms,
                RequestField::Ping => self.frame.pong(),
                RequestField::NearRenewal(number) if !self.closing => {
                    self.tell_ring();
                    self.near.renew(self.node.near(), number, &mut self.frame);
                }
                RequestField::NearRenewal(_) => {}
                RequestField::NearConfirmed(number) => self.near.confirm(number),
            }
        }
        self.prefetch();
        self.reading = Some(reading);
        Ok(())
    }

    fn prefetch(&mut self) {
        let read = self.read.make_contiguous();
        for of_one in read.chunk_by(|a, b| a.group == b.group).filter(|of_one| of_one.len() > 1) {
            if let Some(Ok(named)) = self.groups.get(&of_one[0].group) {
                named.cache.entries().prefetch(of_one.iter().map(|operation| &*operation.key));
            }
        }
    }

    /// Tells the client of a newer ring, before what was found under it.
    fn tell_ring(&mut self) {
        let newest = self.node.ring().told();
        if newest > self.told_version {
            self.told_version = newest;
            self.frame.ring_version(newest);
        }
    }

    fn begin(&mut self, operation: Operation, now: Instant) {
        let to = operation.target();
        let keep = self.to_keep(&operation);
        match self.try_begin(operation, now, &keep) {
            Ok(Some(Started { cache, begun: Begun::Answered(answer), .. })) => {
                self.answer(to, cache, answer, keep)
            }
            Ok(Some(Started { cache, begun: Begun::Waiting(waiting), held })) => {
                let is_write = waiting.is_write();
                self.wait((to, cache, keep), is_write, async move {
                    let _held = held;
                    waiting.answer().await
                });
            }
            Ok(None) => {}
            Err(failure) => self.refuse(to, &failure),
        }
    }

    /// What the caller may keep of an operation's answer, if it is to keep anything.
    fn to_keep(&self, operation: &Operation) -> Option<Keep> {
        if !self.near.is_begun() || operation.kind != Kind::Get {
            return None;
        }
        let named = self.groups.get(&operation.group)?.as_ref().ok()?;
        named.is_kept(operation).then(|| Keep::new(operation, self.node.ring(), self.ring_version))
    }

    fn wait(
        &mut self,
        (to, cache, keep): (Target, Arc<Cache>, Option<Keep>),
        is_write: bool,
        answer: impl Future<Output = Result<Answer, Failure>> + Send + 'static,
    ) {
        self.node.metrics().in_flight.fetch_add(1, Relaxed);
        self.writes += usize::from(is_write);
        let keep = keep.map(Keep::kept);
        let landed = async move { Landed { to, cache, was_write: is_write, keep, answer: answer.await } };
        self.waiting.push(landed.boxed());
    }

    fn refuse(&mut self, to: Target, failure: &Failure) {
        self.node.metrics().failed(failure.code);
        self.frame.failure(to, failure.code, &failure.message);
    }

    /// Begins an operation; `None` where it waits for the registry first.
    fn try_begin(
        &mut self,
        operation: Operation,
        now: Instant,
        keep: &Option<Keep>,
    ) -> Result<Option<Started>, Failure> {
        if self.closing {
            return Err(Failure::new(ErrorCode::ShuttingDown, "the node is shutting down"));
        }
        let deadline = deadline(operation.deadline_ms, self.waited_ms, self.came);
        if deadline.is_some_and(|deadline| deadline <= now) {
            return Err(Failure::new(ErrorCode::DeadlinePassed, "the deadline had passed when it was read"));
        }
        let Admitted { cache, may_fill, audited } = self.admit(&operation)?;
        // A disk that stands still keeps writes waiting, and is no reason to refuse a get.
        let (of_kind, what) = match operation.kind {
            Kind::Set | Kind::Delete | Kind::Clear => (self.writes, "writes"),
            Kind::Get | Kind::Release => (self.waiting.len() - self.writes + self.long.len(), "gets"),
        };
        if of_kind >= MAX_WAITING {
            let why = format!("{MAX_WAITING} {what} of this lane are waiting");
            return Err(Failure::new(ErrorCode::Overloaded, why));
        }
        let claimed = match operation.kind {
            // A previous owner that does not know yet that it is one may be written to still.
            Kind::Get if operation.on_miss == OnMiss::Peek => self.ring_version,
            Kind::Get => operation.owned_since,
            Kind::Set => self.ring_version,
            Kind::Delete if operation.on_miss == OnMiss::Lease => self.ring_version,
            Kind::Delete | Kind::Clear | Kind::Release => RingVersion::NONE,
        };
        if operation.owned_since > self.ring_version {
            let why = "a key cannot have been owned since a later ring than the caller's";
            return Err(Failure::new(ErrorCode::InvalidRequest, why));
        }
        let (ring_version, by, token) = (self.ring_version, self.near.id(), operation.token);
        let request = LaneRequest { operation, ring_version, may_fill, deadline, by };
        if self.node.ring().knows(claimed) {
            let held = self.room_for_write(&request.operation)?;
            let begun = request.begin(&self.node, &cache, &self.account, now)?;
            self.audit(audited, &cache);
            // Until then it is void with the lane.
            if token.is_some() {
                self.leases.remove(&token);
            }
            return Ok(Some(Started { cache, begun, held }));
        }
        let (to, request) = (request.operation.target(), request.kept());
        let held = self.room_to_wait(request.bytes())?;
        self.audit(audited, &cache);
        let (node, account, waits) = (self.node.clone(), self.account.clone(), cache.clone());
        self.wait((to, cache, keep.clone()), false, async move {
            if !node.ring().look_for(claimed).await {
                return Err(ring_unknown(claimed));
            }
            let begun = request.begin(&node, &waits, &account, Instant::now())?;
            drop(held);
            begun.answer().await
        });
        Ok(None)
    }

    fn answer(&mut self, to: Target, cache: Arc<Cache>, mut answer: Answer, keep: Option<Keep>) {
        let Target { id, position } = to;
        self.tell_ring();
        // Before the answer to a write of this lane's own, and before what is read from the store to be kept.
        self.near.write(&mut self.frame);
        if let Some(keep) = keep.filter(|_| !self.closing) {
            let kept =
                self.near.answer_to_keep(self.node.near(), &cache, &keep, answer.outcome, &mut self.frame);
            answer = kept.unwrap_or(answer);
        }
        let mut fields = AnswerFields {
            id,
            position,
            outcome: answer.outcome,
            age_ms: milliseconds(answer.age),
            ttl_ms: milliseconds(answer.ttl),
            token: answer.token,
            value_bytes: 0,
            written: answer.written,
            sequence: answer.sequence,
            near_ms: answer.near_ms,
        };
        let length = answer.value.len();
        if length <= FRAME_BYTES {
            self.frame.answer(&fields, &answer.value);
            if answer.token.is_some() {
                self.remember_lease(answer.token, cache);
            }
            return;
        }
        let Some(held) = self.long.room(&self.account, length) else { return self.stall(to, cache, answer) };
        fields.value_bytes = length as u64;
        // An empty first piece: values go out in turn, not as they come in.
        self.frame.answer(&fields, &[]);
        self.long.push(to, answer.value.into_bytes(), held);
    }

    /// Writes the next piece of the value whose turn it is.
    fn write_piece(&mut self) {
        let Some((Target { id, position }, piece)) = self.long.next_piece() else { return };
        self.frame.answer(&AnswerFields { id, position, ..AnswerFields::default() }, &piece);
    }

    fn poll_frame(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Status>> {
        if !self.closing && self.stopping.poll_unpin(context).is_ready() {
            self.closing = true;
            self.frame.closing();
        }
        self.near.poll(context, &mut self.frame);
        if let Some(Stalled { to, cache, answer, .. }) = self.stalled.take() {
            self.answer(to, cache, answer, None);
        }
        self.poll_requests(context)?;
        // After the requests: a flight that was boarded just now has to be polled to be heard of.
        while self.has_room()
            && let Poll::Ready(Some(landed)) = self.waiting.poll_next_unpin(context)
        {
            let Landed { to, cache, was_write, keep, answer } = landed;
            self.writes -= usize::from(was_write);
            self.node.metrics().in_flight.fetch_sub(1, Relaxed);
            match answer {
                Ok(answer) => self.answer(to, cache, answer, keep),
                Err(failure) => self.refuse(to, &failure),
            }
        }
        if self.frame.len() < FRAME_BYTES {
            self.write_piece();
        }
        if !self.frame.is_empty() || self.is_over() {
            return Poll::Ready(Ok(()));
        }
        Poll::Pending
    }

    /// Whether all is said.
    fn is_over(&self) -> bool {
        self.ended && self.reading.is_none() && self.read.is_empty() && self.waiting.is_empty()
    }
}

impl Stream for Answers {
    type Item = Result<ResponseFrame, Status>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let polled = ready!(self.poll_frame(context));
        Poll::Ready(match polled {
            Ok(()) => (!self.frame.is_empty()).then(|| Ok(self.frame.take())),
            Err(status) => Some(Err(status)),
        })
    }
}

impl Drop for Answers {
    fn drop(&mut self) {
        self.node.metrics().lanes.fetch_sub(1, Relaxed);
        self.node.metrics().in_flight.fetch_sub(self.waiting.len() as u64, Relaxed);
        // The client that was to fill these has gone.
        std::mem::take(&mut self.leases).into_iter().for_each(|(token, cache)| cache.void(token));
    }
}

/// When an answer is of no use any more to its caller.
fn deadline(deadline_ms: u32, waited_ms: u32, came: Instant) -> Option<Instant> {
    (deadline_ms != 0).then(|| came + Duration::from_millis(deadline_ms.saturating_sub(waited_ms).into()))
}
