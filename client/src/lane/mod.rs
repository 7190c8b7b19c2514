//! Lanes: the way of operations to one node, many at once.
//!
//! A lane is one bidirectional stream on a connection of its own. A caller writes its operation into
//! the lane's next frame and waits; when the transport is ready to send, it takes the frame as it is, with
//! one operation in it or with hundreds. There is no timer and no task in between. One task, the driver,
//! opens the stream, matches answers to callers, and fails the callers that wait when the lane dies.
//!
//! The driver runs where the first caller does. A caller on another runtime finds the driver gone, or
//! standing still, where that runtime is: it makes a new one, with a connection of its own.
//!
//! [`state`] is all of that as data, without socket or clock.

mod caller;
mod choice;
mod driver;
#[cfg(feature = "fuzzing")]
pub(crate) mod fuzzing;
mod lease;
mod requests;
mod state;

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::task::Waker;
use std::time::Duration;

use futures_util::TryFutureExt as _;
use futures_util::future::{AbortHandle, Either, abortable};
use parking_lot::{Mutex, MutexGuard};
use peanut_proto::clock::{nanoseconds, uptime_nanos};
use peanut_proto::numbers::{FillToken, RingVersion};
use peanut_proto::v1::{ErrorCode, Outcome};
use tokio::runtime::{Handle, Id};
use tokio::sync::{Notify, oneshot};
use tokio::time::{Instant, timeout_at};
use tower::load::Load;

use crate::connect::Connector;
use crate::connection::ConnectionTask;
use crate::monitor::Monitor;
use crate::near::LaneCopies;
use crate::request::{Attempt, ManyAttempt};
use caller::{Caller, Delivery, ManyCaller};
pub(crate) use caller::{EachSender, Limits};
pub(crate) use choice::Choice;
pub(crate) use lease::Lease;
use state::LaneState;

/// Whose lane it is: what it sees of the node is told to the node's monitor.
pub(crate) trait Owner: Send + Sync + 'static {
    fn monitor(&self) -> &Arc<Monitor>;

    /// A connection has died without a word: the lanes that are idle, but for this one, may have died with
    /// it.
    fn leave_idle_lanes(&self, died: u32);
}

/// A lane that could not be opened is tried again after so long, or where no other is better.
const OPENED_AGAIN_AFTER: Duration = Duration::from_millis(500);

/// How long a driver on another runtime may stand still.
pub(crate) const STANDSTILL: Duration = Duration::from_millis(100);

/// An answer.
#[derive(Clone, Debug)]
pub(crate) struct Reply {
    pub(crate) outcome: Outcome,
    pub(crate) value: bytes::Bytes,
    /// How long ago the value was loaded.
    pub(crate) age: Duration,
    /// How long the value stays fresh.
    pub(crate) ttl: Duration,
    /// The fill token, with the outcome that says so.
    pub(crate) token: FillToken,
    /// With a token: the key may have been written since the node came to own it.
    pub(crate) written: bool,
    /// Of a delete: the key's sequence at the node.
    pub(crate) sequence: u64,
    /// Gives it back.
    pub(crate) lease: Option<Arc<Lease>>,
    /// Newest ring version that the node has heard of.
    pub(crate) ring_version: RingVersion,
}

impl PartialEq for Reply {
    fn eq(&self, other: &Self) -> bool {
        let fields = |reply: &Self| (reply.outcome, reply.age, reply.ttl, reply.token, reply.ring_version);
        fields(self) == fields(other) && self.value == other.value
    }
}

impl Eq for Reply {}

impl Reply {
    /// The answer to a write.
    pub(crate) fn of_write(outcome: Outcome) -> Self {
        Reply {
            outcome,
            value: bytes::Bytes::new(),
            age: Duration::ZERO,
            ttl: Duration::ZERO,
            token: FillToken::NONE,
            written: false,
            sequence: 0,
            lease: None,
            ring_version: RingVersion::NONE,
        }
    }

    /// Whether what a previous owner has can be brought under the token, for a caller that goes by this ring:
    /// with a later one, or once the key may have been written, it may be outdated.
    pub(crate) fn may_hand_over(&self, ring_version: RingVersion) -> bool {
        self.ring_version <= ring_version && !self.written
    }

    /// The token has been used.
    pub(crate) fn end_lease(&self) {
        self.lease.as_ref().inspect(|lease| lease.end());
    }

    /// The answer for one who joined the operation of another.
    fn shared(self) -> Self {
        let outcome = if self.outcome == Outcome::Loaded { Outcome::Coalesced } else { self.outcome };
        Reply { outcome, ..self }
    }
}

/// Why an operation has no answer. Cheap to clone: a lane that dies tells all who wait.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Failure {
    /// The node says so.
    Said(ErrorCode, Arc<str>),
    /// The deadline has passed.
    Late,
    /// Too much is in flight; nothing was sent.
    Full(&'static str),
    /// The lane could not be opened, or died.
    Lost(Arc<str>),
    /// The lane is of no use any more, which says nothing of the node: the same node is to be asked again.
    Broken(Arc<str>),
    /// The node knows no lanes.
    Unimplemented,
}

pub(crate) type Answer = Result<Reply, Failure>;

/// One lane to one node.
pub(crate) struct Lane {
    shared: Arc<Shared>,
    connector: Arc<Connector>,
    slot: u32,
    driving: Mutex<Option<Driving>>,
}

/// A driver at work.
struct Driving {
    abort: AbortHandle,
    /// Where the connection runs, and the driver with it.
    task: ConnectionTask,
    runtime: Id,
    /// Whether there is something to send, and no stream to send it on or nobody who looks at it.
    work: Arc<Notify>,
    /// Whether the driver is there still: it goes with its runtime.
    alive: Weak<()>,
}

struct Shared {
    state: Mutex<LaneState>,
    /// Operations in flight, for those who choose a lane.
    in_flight: AtomicUsize,
    /// It is being opened, or could not be: nanoseconds of uptime until when others are better; 0: it is
    /// open, or has not been used.
    not_open_until: AtomicU64,
    /// Counts the drivers: an earlier one has nothing to say.
    driver: AtomicU64,
}

/// What stands for a driver while it is there: when it goes, all callers that wait are told.
struct Alive {
    shared: Arc<Shared>,
    number: u64,
    _alive: Arc<()>,
}

impl Drop for Alive {
    fn drop(&mut self) {
        if self.shared.driver.load(Ordering::SeqCst) == self.number {
            self.shared.fail(&Failure::Broken("the runtime that the lane was on has ended".into()));
        }
    }
}

impl Shared {
    /// The lane is not open, and others are better for so long.
    fn not_open_for(&self, time: Duration) {
        self.not_open_until.store(uptime_nanos() + nanoseconds(time), Ordering::Relaxed);
    }

    /// The lane is open.
    fn opened(&self) {
        self.not_open_until.store(0, Ordering::Relaxed);
    }

    /// Tells everyone who waits, and begins anew.
    fn fail(&self, failure: &Failure) {
        let mut deliveries = Vec::new();
        let mut state = self.state.lock();
        state.fail_all(failure, &mut deliveries);
        self.in_flight.store(0, Ordering::Relaxed);
        drop(state);
        deliveries.into_iter().for_each(Delivery::tell);
    }
}

/// An operation that was handed to a lane.
pub(crate) struct Asked<'a> {
    answer: oneshot::Receiver<Answer>,
    /// Where the driver is on another runtime than the caller, which may stand still.
    afar: Option<Box<Afar<'a>>>,
}

struct Afar<'a> {
    lane: &'a Lane,
    deadline: Instant,
}

impl Asked<'_> {
    /// Waits for the answer: no longer than until the deadline, wherever the driver is.
    pub(crate) fn answer(self) -> impl Future<Output = Answer> {
        match self.afar {
            Some(afar) => Either::Left(Box::pin(afar.answer(self.answer))),
            None => Either::Right(self.answer.unwrap_or_else(|_| Err(dropped()))),
        }
    }
}

/// Operations of many keys that were handed to a lane, whose answers are waited for together.
pub(crate) struct AskedMany<'a> {
    /// For each of them the answers, and how many there are.
    answers: Vec<(oneshot::Receiver<Vec<Answer>>, usize)>,
    afar: Option<Afar<'a>>,
}

impl AskedMany<'_> {
    /// Waits for the answers to all keys, in their order.
    pub(crate) async fn answers(self) -> Vec<Answer> {
        let mut all = Vec::new();
        for (answers, keys) in self.answers {
            let answers = match &self.afar {
                None => answers.await.map_err(|_| dropped()),
                Some(afar) => Box::pin(afar.wait(answers)).await,
            };
            let mut answers = answers.unwrap_or_else(|failure| vec![Err(failure); keys]);
            // As a rule there is one.
            if all.is_empty() { all = answers } else { all.append(&mut answers) }
        }
        all
    }
}

impl Afar<'_> {
    async fn answer(self: Box<Self>, answer: oneshot::Receiver<Answer>) -> Answer {
        self.wait(answer).await.unwrap_or_else(Err)
    }

    async fn wait<A>(&self, mut answer: oneshot::Receiver<A>) -> Result<A, Failure> {
        while Instant::now() < self.deadline {
            let until = self.deadline.min(Instant::now() + STANDSTILL);
            match timeout_at(until, &mut answer).await {
                Ok(answer) => return answer.map_err(|_| dropped()),
                Err(_) => self.lane.leave_if_still(),
            }
        }
        // What the driver has said in the last moment counts.
        answer.try_recv().map_err(|_| Failure::Late)
    }
}

fn dropped() -> Failure {
    Failure::Broken("the lane was dropped".into())
}

impl Lane {
    pub(crate) fn new(
        connector: Arc<Connector>,
        slot: u32,
        limits: Limits,
        near: Option<LaneCopies>,
    ) -> Self {
        let shared = Shared {
            state: Mutex::new(LaneState::new(limits, near)),
            in_flight: AtomicUsize::new(0),
            not_open_until: AtomicU64::new(0),
            driver: AtomicU64::new(0),
        };
        Lane { shared: Arc::new(shared), connector, slot, driving: Mutex::new(None) }
    }

    /// Sets how much it may have in flight from now on.
    pub(crate) fn limit(&self, limits: Limits) {
        self.shared.state.lock().limits = limits;
    }

    /// Its position among the node's lanes.
    pub(crate) fn slot(&self) -> u32 {
        self.slot
    }

    /// Whether no other lane is better for what it is: it is open, or has not been used or tried for a while.
    pub(crate) fn is_open(&self) -> bool {
        let until = self.shared.not_open_until.load(Ordering::Relaxed);
        until == 0 || uptime_nanos() >= until
    }

    /// How many operations are in flight on it.
    pub(crate) fn in_flight(&self) -> usize {
        self.shared.in_flight.load(Ordering::Relaxed)
    }

    /// Writes an operation into the next frame, or joins an identical get that is in flight.
    pub(crate) fn ask(&self, node: &Arc<impl Owner>, ask: &Attempt<'_>, now: Instant) -> Asked<'_> {
        let (sender, answer) = oneshot::channel();
        let caller = Caller { sender, deadline: ask.request.deadline };
        let mut state = self.shared.state.lock();
        let writer = state.push(ask, caller, now);
        let is_foreign = self.pushed(state, writer, node);
        let afar = is_foreign.then(|| Box::new(Afar { lane: self, deadline: ask.request.deadline }));
        Asked { answer, afar }
    }

    /// As [`ask`](Self::ask), for operations of many keys.
    pub(crate) fn ask_many(
        &self,
        node: &Arc<impl Owner>,
        asks: &[ManyAttempt<'_>],
        now: Instant,
    ) -> AskedMany<'_> {
        let mut state = self.shared.state.lock();
        let (mut answers, mut writer) = (Vec::with_capacity(asks.len()), None);
        for ask in asks {
            let (sender, answer) = oneshot::channel();
            writer = state.push_many(ask, ManyCaller::Together(sender), now).or(writer);
            answers.push((answer, ask.each.len()));
        }
        let is_foreign = self.pushed(state, writer, node);
        let deadline = asks.iter().map(|ask| ask.request.deadline).max().unwrap_or(now);
        AskedMany { answers, afar: is_foreign.then_some(Afar { lane: self, deadline }) }
    }

    /// As [`ask_many`](Self::ask_many), where each answer goes to the sender as it comes, by the position of
    /// its key in all of them, counted on from `first`. Whether the driver is on another runtime than the
    /// caller.
    pub(crate) fn ask_each(
        &self,
        node: &Arc<impl Owner>,
        asks: &[ManyAttempt<'_>],
        (sender, mut first): (&EachSender, usize),
        now: Instant,
    ) -> bool {
        let mut state = self.shared.state.lock();
        let mut writer = None;
        for ask in asks {
            let caller = ManyCaller::AsTheyCome { sender: sender.clone(), first };
            writer = state.push_many(ask, caller, now).or(writer);
            first += ask.each.len();
        }
        self.pushed(state, writer, node)
    }

    /// Sees to it that what was pushed is sent. Whether the driver is on another runtime than the caller.
    fn pushed(
        &self,
        mut state: MutexGuard<'_, LaneState>,
        writer: Option<Waker>,
        node: &Arc<impl Owner>,
    ) -> bool {
        self.shared.in_flight.store(state.in_flight(), Ordering::Relaxed);
        let (is_open, was_parked) = (state.is_open(), std::mem::take(&mut state.parked));
        let home = state.home;
        drop(state);
        if writer.is_some() || was_parked || !is_open {
            let mut driving = self.driving.lock();
            if driving.as_ref().is_none_or(|driving| driving.alive.strong_count() == 0) {
                *driving = self.drive(node);
            }
            if let Some(Driving { task, work, .. }) = &*driving {
                if let Some(writer) = writer {
                    task.wake(writer);
                }
                if was_parked || !is_open {
                    work.notify_one();
                }
            }
        }
        home != Handle::try_current().ok().map(|runtime| runtime.id())
    }

    /// Makes a driver on the caller's runtime.
    fn drive(&self, node: &Arc<impl Owner>) -> Option<Driving> {
        let runtime = Handle::try_current().ok()?.id();
        let number = self.shared.driver.fetch_add(1, Ordering::SeqCst) + 1;
        self.shared.state.lock().home = Some(runtime);
        let (task, work, alive) = (ConnectionTask::default(), Arc::new(Notify::new()), Arc::new(()));
        let driver = driver::Driver {
            shared: self.shared.clone(),
            node: Arc::<_>::downgrade(node) as Weak<dyn Owner>,
            connector: self.connector.clone(),
            task: task.clone(),
            work: work.clone(),
            slot: self.slot,
            number,
            config: node.monitor().config().clone(),
        };
        let weak = Arc::downgrade(&alive);
        let alive = Alive { shared: self.shared.clone(), number, _alive: alive };
        let (driving, abort) = abortable(driver.run());
        task.spawn(async move {
            let _alive = alive;
            let _ = driving.await;
        });
        Some(Driving { abort, task, runtime, work, alive: weak })
    }

    /// Near copies that came by it are read no more.
    pub(crate) fn forget_near_copies(&self) {
        self.shared.state.lock().forget_near_copies();
    }

    /// Leaves a driver that stands still although operations are in flight: its runtime is not run.
    pub(crate) fn leave_if_still(&self) {
        let is_still = self.shared.state.lock().looked.elapsed() > STANDSTILL;
        self.leave("the runtime that the lane was on stands still", |driving| {
            is_still && Handle::try_current().is_ok_and(|runtime| runtime.id() != driving.runtime)
        });
    }

    /// Leaves an idle lane, whose connection may have died with another of the same node without a word: the
    /// next operation opens it anew, where it would have waited to find out.
    pub(crate) fn leave_if_idle(&self) {
        self.leave("another connection to the node has died", |_| self.shared.state.lock().in_flight() == 0);
    }

    fn leave(&self, reason: &str, when: impl FnOnce(&Driving) -> bool) {
        let mut driving = self.driving.lock();
        let Some(left) = driving.take_if(|driving| when(driving)) else { return };
        left.abort.abort();
        // What is left of it has nothing to say any more.
        self.shared.driver.fetch_add(1, Ordering::SeqCst);
        drop(driving);
        self.shared.fail(&Failure::Broken(reason.into()));
    }
}

/// Operations in flight, as tower's `PendingRequests` counts them, on a lane that is open.
impl Load for Lane {
    type Metric = usize;

    fn load(&self) -> usize {
        if self.is_open() { self.in_flight() } else { Choice::NOT_OPEN + self.in_flight() }
    }
}

impl Drop for Lane {
    fn drop(&mut self) {
        if let Some(driving) = self.driving.get_mut() {
            driving.abort.abort();
        }
    }
}
