//! `Lane`: frames of operations in, frames of answers out, in the stream itself.
//!
//! There is no task per operation and none between the frames: polling the stream of answers reads
//! requests. Hits are written into the outgoing frame where they are found; misses board their flights and
//! are written into a later frame. Values longer than a frame go in pieces between other answers. A client
//! that does not read is not read from: flow control stops the polling.

use std::collections::{HashMap, VecDeque};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt as _, Stream, StreamExt as _};
use peanut_proto::frame::{
    AnswerFields, FRAME_BYTES, FrameError, Operation, RequestField, RequestFrame, ResponseFrame,
    ResponseWriter,
};
use peanut_proto::limits::is_traceparent;
use peanut_proto::v1::operation::Kind;
use peanut_proto::v1::{ErrorCode, OnMiss};
use tokio::time::Instant;
use tonic::{Status, Streaming};

use super::fence::Opening;
use super::{Node, whole_ms};
use crate::cache::{Answer, Begun, Cache, Fetched, Get, Set};
use crate::error::Failure;
use crate::flight::Token;
use crate::rights::Rights;
use crate::store::Origin;

/// Operations of one lane that may wait for flights, or for the rest of their values to be sent.
const MAX_WAITING: usize = 16_384;
/// Operations whose keys are looked for in memory together: few enough that all that was found is in the cache still.
const AT_A_TIME: usize = 64;
/// Groups that one lane may name.
const MAX_GROUPS: usize = 4_096;
/// Bytes of values that may wait to be sent on one lane, and on all lanes of the node.
const MAX_LANE_BYTES: usize = 64 << 20;
const MAX_NODE_BYTES: usize = 1 << 30;

type Landed = (u32, Arc<Cache>, Result<Answer, Failure>);

/// The stream of answers of one lane.
pub(super) struct Answers {
    node: Node,
    requests: Streaming<RequestFrame>,
    /// The client has said everything.
    ended: bool,
    /// The node is shutting down, and has said so.
    closing: bool,
    stopping: BoxFuture<'static, ()>,
    rights: Arc<Rights>,
    /// By the client's number.
    groups: Vec<Option<Result<Named, Failure>>>,
    /// Which opening of which slot this is, where the client has said.
    opening: Option<Opening>,
    /// How often the node had woken when the lane was opened.
    wakes: u64,
    /// Fill tokens that this lane was given, with their groups, until their values come.
    leases: HashMap<Token, Arc<Cache>>,
    ring_version: u64,
    told_version: u64,
    waiting: FuturesUnordered<BoxFuture<'static, Landed>>,
    long: VecDeque<LongValue>,
    long_bytes: usize,
    /// Operations of the frame that is being read.
    read: Vec<Operation>,
    frame: ResponseWriter,
}

/// A group that the client has named, and what it may do there.
#[derive(Clone)]
struct Named {
    cache: Arc<Cache>,
    read: Result<(), Failure>,
    write: Result<(), Failure>,
}

/// What is left to send of a value that does not fit into a frame.
struct LongValue {
    id: u32,
    rest: Bytes,
}

impl Answers {
    pub(super) fn new(
        node: Node,
        rights: Arc<Rights>,
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
            rights,
            groups: Vec::new(),
            opening: None,
            wakes,
            leases: HashMap::new(),
            ring_version: 0,
            told_version: 0,
            waiting: FuturesUnordered::new(),
            long: VecDeque::new(),
            long_bytes: 0,
            read: Vec::new(),
            frame: ResponseWriter::default(),
        }
    }

    /// Begins every operation of a frame; hits are answered at once.
    fn take(&mut self, request: &RequestFrame) -> Result<(), FrameError> {
        let now = Instant::now();
        let mut waited_ms = 0;
        // Deadlines shrink by the time that the frame has waited, wherever it says so.
        for field in request.fields() {
            if let RequestField::WaitedMs(ms) = field? {
                waited_ms = ms;
            }
        }
        for field in request.fields() {
            let field = field?;
            // Operations do not go by what stands after them.
            if self.read.len() == AT_A_TIME || !matches!(field, RequestField::Operation(_)) {
                self.begin_read(waited_ms, now);
            }
            match field {
                RequestField::Operation(operation) => self.read.push(operation),
                RequestField::RingVersion(version) => {
                    self.ring_version = self.node.believed(version, &self.rights);
                }
                RequestField::Group(number, name) => self.name_group(number, name)?,
                RequestField::Open { client_id: client, slot, epoch } => {
                    let opening = Opening { client, slot, epoch };
                    // Who cannot write shuts nobody out.
                    if self.rights.writes() {
                        self.node.fences().raise(opening, now);
                    }
                    self.opening = Some(opening);
                }
                RequestField::WaitedMs(_) => {}
            }
        }
        self.begin_read(waited_ms, now);
        let newest = self.node.hear_of_ring(self.ring_version);
        if newest > self.told_version {
            self.told_version = newest;
            self.frame.ring_version(newest);
        }
        Ok(())
    }

    fn name_group(&mut self, number: u32, name: &str) -> Result<(), FrameError> {
        let at = number as usize;
        if at >= MAX_GROUPS {
            return Err(FrameError::TOO_MANY_GROUPS);
        }
        if at >= self.groups.len() {
            self.groups.resize(at + 1, None);
        }
        let named = |cache: &Arc<Cache>| Named {
            cache: cache.clone(),
            read: self.rights.check_read(name),
            write: self.rights.check_write(name),
        };
        self.groups[at] = Some(self.node.cache(name).map(named));
        Ok(())
    }

    /// Begins the operations that were read, in their order.
    fn begin_read(&mut self, waited_ms: u32, now: Instant) {
        let mut read = std::mem::take(&mut self.read);
        for of_one in read.chunk_by(|a, b| a.group == b.group).filter(|of_one| of_one.len() > 1) {
            if let Some(Some(Ok(named))) = self.groups.get(of_one[0].group as usize) {
                named.cache.entries().prefetch(of_one.iter().map(|operation| &*operation.key));
            }
        }
        read.drain(..).for_each(|operation| self.begin(operation, waited_ms, now));
        self.read = read;
    }

    fn begin(&mut self, operation: Operation, waited_ms: u32, now: Instant) {
        let id = operation.id;
        match self.try_begin(operation, waited_ms, now) {
            Ok((cache, Begun::Answered(answer))) => self.answer(id, &cache, answer),
            Ok((cache, Begun::Waiting(waiting))) => {
                self.node.metrics().in_flight.fetch_add(1, Relaxed);
                self.waiting.push(async move { (id, cache, waiting.answer().await) }.boxed());
            }
            Err(failure) => self.refuse(id, &failure),
        }
    }

    fn refuse(&mut self, id: u32, failure: &Failure) {
        self.node.metrics().failed(failure.code);
        self.frame.failure(id, failure.code, &failure.message);
    }

    fn try_begin(
        &mut self,
        operation: Operation,
        waited_ms: u32,
        now: Instant,
    ) -> Result<(Arc<Cache>, Begun), Failure> {
        if self.closing {
            return Err(Failure::new(ErrorCode::ShuttingDown, "the node is shutting down"));
        }
        if operation.deadline_ms != 0 && operation.deadline_ms <= waited_ms {
            return Err(Failure::new(ErrorCode::DeadlinePassed, "the deadline had passed when it was read"));
        }
        let mut may_fill = Ok(());
        let cache = match self.groups.get(operation.group as usize) {
            Some(Some(Ok(named))) => {
                if operation.kind == Kind::Get { &named.read } else { &named.write }.clone()?;
                if operation.on_miss == OnMiss::Lease {
                    may_fill = named.write.clone();
                }
                named.cache.clone()
            }
            Some(Some(Err(unknown))) => return Err(unknown.clone()),
            _ => {
                let why = format!("group number {} has not been named", operation.group);
                return Err(Failure::new(ErrorCode::InvalidRequest, why));
            }
        };
        if self.waiting.len() + self.long.len() >= MAX_WAITING {
            let why = format!("{MAX_WAITING} operations of this lane are waiting");
            return Err(Failure::new(ErrorCode::Overloaded, why));
        }
        let origin = Origin::of(operation.failover);
        if operation.token != 0 {
            self.leases.remove(&operation.token);
        }
        if operation.kind != Kind::Get && self.opening.is_some_and(|it| self.node.fences().shut_out(it)) {
            return Err(Failure::new(ErrorCode::Fenced, "a later lane of this client has taken over"));
        }
        let rare = operation.rare.map(|rare| *rare).unwrap_or_default();
        let begun = match operation.kind {
            Kind::Get => {
                let get = Get {
                    key: operation.key,
                    on_miss: operation.on_miss,
                    ring_version: self.ring_version,
                    owned_since: operation.owned_since,
                    origin,
                    token: operation.token,
                    traceparent: Some(rare.traceparent).filter(|it| is_traceparent(it)).unwrap_or_default(),
                    may_fill,
                    deadline: deadline(operation.deadline_ms, waited_ms, now),
                };
                cache.begin(&get, now)?
            }
            Kind::Set => {
                let set = Set {
                    key: operation.key,
                    fetched: Fetched::new(rare.value, rare.not_found, rare.load_error),
                    ttl: (rare.ttl_ms > 0).then(|| Duration::from_millis(rare.ttl_ms)),
                    ring_version: self.ring_version,
                    origin,
                    token: operation.token,
                };
                cache.set(set, now)?
            }
            Kind::Delete => cache.delete(&operation.key)?,
            Kind::Clear => cache.clear(rare.generation),
        };
        Ok((cache, begun))
    }

    fn answer(&mut self, id: u32, cache: &Arc<Cache>, answer: Answer) {
        if answer.token != 0 {
            self.leases.insert(answer.token, cache.clone());
        }
        let mut fields = AnswerFields {
            id,
            outcome: answer.outcome,
            age_ms: whole_ms(answer.age),
            ttl_ms: whole_ms(answer.ttl),
            token: answer.token,
            value_bytes: 0,
        };
        let length = answer.value.len();
        if length <= FRAME_BYTES {
            self.frame.answer(&fields, &answer.value);
            return;
        }
        let sent = self.node.long_bytes();
        if self.long_bytes + length > MAX_LANE_BYTES || !sent.add(length, MAX_NODE_BYTES) {
            let why = "too many bytes of values are waiting to be sent";
            self.refuse(id, &Failure::new(ErrorCode::Overloaded, why));
            return;
        }
        self.long_bytes += length;
        fields.value_bytes = length as u64;
        // An empty first piece: values go out in turn, not as they come in.
        self.frame.answer(&fields, &[]);
        self.long.push_back(LongValue { id, rest: answer.value.into_bytes() });
    }

    /// Writes the next piece of the value whose turn it is.
    fn write_piece(&mut self) {
        let Some(mut long) = self.long.pop_front() else { return };
        let piece = long.rest.split_to(long.rest.len().min(FRAME_BYTES));
        self.frame.answer(&AnswerFields { id: long.id, ..AnswerFields::default() }, &piece);
        self.long_bytes -= piece.len();
        self.node.long_bytes().subtract(piece.len());
        if !long.rest.is_empty() {
            self.long.push_back(long);
        }
    }

    fn poll_frame(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Status>> {
        if !self.closing && self.stopping.poll_unpin(context).is_ready() {
            self.closing = true;
            self.frame.closing();
        }
        while self.frame.len() < FRAME_BYTES && !self.ended {
            match self.requests.poll_next_unpin(context) {
                Poll::Ready(Some(Ok(request))) => {
                    // After it was read: what had been read before the node slept was asked before.
                    if self.node.wake().wakes() != self.wakes {
                        return Poll::Ready(Err(Status::unavailable(
                            "the node has slept; open the lane again",
                        )));
                    }
                    self.take(&request).map_err(|error| Status::invalid_argument(error.to_string()))?;
                }
                Poll::Ready(Some(Err(status))) => return Poll::Ready(Err(status)),
                Poll::Ready(None) => self.ended = true,
                Poll::Pending => break,
            }
        }
        // After the requests: a flight that was boarded just now has to be polled to be heard of.
        while self.frame.len() < FRAME_BYTES
            && let Poll::Ready(Some((id, cache, landed))) = self.waiting.poll_next_unpin(context)
        {
            self.node.metrics().in_flight.fetch_sub(1, Relaxed);
            match landed {
                Ok(answer) => self.answer(id, &cache, answer),
                Err(failure) => self.refuse(id, &failure),
            }
        }
        self.write_piece();
        if !self.frame.is_empty() || (self.ended && self.waiting.is_empty()) {
            return Poll::Ready(Ok(()));
        }
        Poll::Pending
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
        self.node.long_bytes().subtract(self.long_bytes);
        self.node.metrics().lanes.fetch_sub(1, Relaxed);
        self.node.metrics().in_flight.fetch_sub(self.waiting.len() as u64, Relaxed);
        // Whoever was to fill these has gone.
        self.leases.drain().for_each(|(token, cache)| cache.void(token));
    }
}

/// When an answer is of no use any more to whoever gave it so long.
fn deadline(deadline_ms: u32, waited_ms: u32, now: Instant) -> Option<Instant> {
    let left = deadline_ms.checked_sub(waited_ms).filter(|_| deadline_ms != 0)?;
    Some(now + Duration::from_millis(left.into()))
}

/// A count of bytes with a limit.
#[derive(Debug, Default)]
pub(super) struct ByteCount(std::sync::atomic::AtomicUsize);

impl ByteCount {
    /// Adds, unless that would go over the limit.
    fn add(&self, bytes: usize, limit: usize) -> bool {
        let within = |count: usize| Some(count + bytes).filter(|sum| *sum <= limit);
        self.0.fetch_update(Relaxed, Relaxed, within).is_ok()
    }

    fn subtract(&self, bytes: usize) {
        self.0.fetch_sub(bytes, Relaxed);
    }
}
