//! Lanes: the way of operations to one node, many at once.
//!
//! A lane is one bidirectional stream on a connection of its own. Whoever has an operation writes it into
//! the lane's next frame and waits; when the transport is ready to send, it takes the frame as it is, with
//! one operation in it or with hundreds. There is no timer and no task in between. One task, the driver,
//! opens the stream, matches answers to callers, and fails whoever waits when the lane dies.
//!
//! [`state`] is all of that as data, without socket or clock.

mod batch;
mod choice;
mod driver;
mod requests;
mod state;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::Waker;
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::{AbortHandle, abortable};
use parking_lot::{Mutex, MutexGuard};
use peanut_proto::frame::Write;
use peanut_proto::v1::{ErrorCode, OnMiss, Outcome};
use tokio::sync::{Notify, oneshot};
use tokio::time::Instant;
use tonic::transport::Channel;
use tower::load::Load;

use crate::config::Config;
use crate::connection::ConnectionTask;
use crate::node::Node;
pub(crate) use batch::Batch;
use batch::Part;
pub(crate) use choice::Choice;
pub(crate) use state::Limits;
use state::{Caller, LaneState, Waiter};

/// An operation, as it is handed to a node.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ask<'a> {
    /// The group's number in this client, and its name.
    pub(crate) group: u32,
    pub(crate) group_name: &'a str,
    pub(crate) key: &'a [u8],
    /// Hash of group and key.
    pub(crate) hash: u64,
    pub(crate) ring_version: u64,
    pub(crate) owned_since: u64,
    /// The node is asked in the owner's place.
    pub(crate) failover: bool,
    pub(crate) deadline: Instant,
    pub(crate) want: Want<'a>,
    /// W3C trace context of the caller; empty: none.
    pub(crate) traceparent: &'a str,
}

/// What is wanted of a key.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Want<'a> {
    /// Its value. `token` is a fill token that is given back, or 0.
    Get {
        on_miss: OnMiss,
        token: u64,
    },
    Write(Write<'a>),
}

impl Want<'_> {
    /// The value, loaded where it is missing.
    pub(crate) const LOAD: Self = Want::Get { on_miss: OnMiss::Load, token: 0 };

    /// Whether one answer does for several who want this.
    pub(crate) fn can_be_shared(&self) -> bool {
        matches!(self, Want::Get { on_miss: OnMiss::Load, token: 0 })
    }
}

/// An answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Reply {
    pub(crate) outcome: Outcome,
    pub(crate) value: bytes::Bytes,
    /// How long ago the value was loaded.
    pub(crate) age: Duration,
    /// How long the value stays fresh.
    pub(crate) ttl: Duration,
    /// The fill token, with the outcome that says so.
    pub(crate) token: u64,
    /// Newest ring version that the node has heard of.
    pub(crate) ring_version: u64,
}

impl Reply {
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
    /// The node knows no lanes.
    Unimplemented,
}

pub(crate) type Answer = Result<Reply, Failure>;

/// One lane to one node.
pub(crate) struct Lane {
    shared: Arc<Shared>,
    channel: Channel,
    /// Where the channel's connection runs, and the driver with it.
    task: ConnectionTask,
    slot: u32,
    driver: Mutex<Option<AbortHandle>>,
}

struct Shared {
    state: Mutex<LaneState>,
    /// Operations in flight, for those who choose a lane.
    in_flight: AtomicUsize,
    /// There is something to send, and no stream to send it on or nobody who looks at it.
    work: Notify,
}

impl Lane {
    pub(crate) fn new(channel: Channel, task: ConnectionTask, slot: u32, limits: Limits) -> Self {
        let shared = Shared {
            state: Mutex::new(LaneState::new(limits)),
            in_flight: AtomicUsize::new(0),
            work: Notify::new(),
        };
        Lane { shared: Arc::new(shared), channel, task, slot, driver: Mutex::new(None) }
    }

    /// Sets how much it may have in flight from now on.
    pub(crate) fn limit(&self, limits: Limits) {
        self.shared.state.lock().limits = limits;
    }

    /// Its position among the node's lanes.
    pub(crate) fn slot(&self) -> u32 {
        self.slot
    }

    /// Writes an operation into the next frame, or joins an identical get that is in flight.
    pub(crate) fn ask(
        &self,
        node: &Arc<Node>,
        ask: &Ask<'_>,
        now: Instant,
        config: &Config,
    ) -> oneshot::Receiver<Answer> {
        let (sender, receiver) = oneshot::channel();
        let caller = Caller { waiter: Waiter::Alone(sender), deadline: ask.deadline };
        let mut state = self.shared.state.lock();
        let writer = state.push(ask, caller, now);
        self.pushed(state, writer, node, config);
        receiver
    }

    /// As [`ask`](Self::ask), for many gets at once.
    pub(crate) fn ask_many<'a>(
        &self,
        node: &Arc<Node>,
        asks: impl Iterator<Item = (&'a Ask<'a>, Part)>,
        now: Instant,
        config: &Config,
    ) {
        let mut state = self.shared.state.lock();
        let mut writer = None;
        for (ask, part) in asks {
            let caller = Caller { waiter: Waiter::InBatch(part), deadline: ask.deadline };
            writer = state.push(ask, caller, now).or(writer);
        }
        self.pushed(state, writer, node, config);
    }

    /// Sees to it that what was pushed is sent.
    fn pushed(
        &self,
        mut state: MutexGuard<'_, LaneState>,
        writer: Option<Waker>,
        node: &Arc<Node>,
        config: &Config,
    ) {
        self.shared.in_flight.store(state.in_flight(), Ordering::Relaxed);
        let (is_open, was_parked) = (state.is_open(), std::mem::take(&mut state.parked));
        drop(state);
        if let Some(writer) = writer {
            self.task.knock(writer);
        }
        if was_parked {
            self.shared.work.notify_one();
        } else if !is_open {
            self.start(node, config);
        }
    }

    /// Starts the driver if it is not there yet, and tells it that there is work.
    fn start(&self, node: &Arc<Node>, config: &Config) {
        self.driver.lock().get_or_insert_with(|| {
            let driver = driver::Driver {
                shared: self.shared.clone(),
                node: Arc::downgrade(node),
                channel: self.channel.clone(),
                task: self.task.clone(),
                slot: self.slot,
                config: config.clone(),
            };
            let (driving, handle) = abortable(driver.run());
            self.task.spawn(driving.map(drop));
            handle
        });
        self.shared.work.notify_one();
    }
}

/// Operations in flight, as tower's `PendingRequests` counts them.
impl Load for Lane {
    type Metric = usize;

    fn load(&self) -> usize {
        self.shared.in_flight.load(Ordering::Relaxed)
    }
}

impl Drop for Lane {
    fn drop(&mut self) {
        if let Some(driver) = self.driver.get_mut() {
            driver.abort();
        }
    }
}
