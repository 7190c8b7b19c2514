//! The driver of a lane: opens the stream when there is something to send, hands answers to callers, and
//! notices when nothing comes any more.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::task::Waker;
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use peanut_proto::clock::uptime;
use peanut_proto::failure;
use peanut_proto::frame::ResponseFrame;
use peanut_proto::limits::MAX_MESSAGE_BYTES;
use peanut_proto::numbers::FillToken;
use peanut_proto::v1::ErrorCode;
use peanut_proto::v1::peanut_client::PeanutClient;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until, timeout};
use tonic::{Code, Status, Streaming};

use super::caller::Delivery;
use super::requests::Requests;
use super::state::LaneState;
use super::{Failure, Lease, OPENED_AGAIN_AFTER, Shared};
use crate::config::Config;
use crate::connect::Connector;
use crate::connection::ConnectionTask;
use crate::health::Signal;
use crate::lane::Owner;
use crate::monitor::{Probed, reason};

/// How often deadlines and silence are looked at while something is in flight.
const TICK: Duration = Duration::from_millis(10);

/// A lane that has had nothing in flight for so long is not looked at any more until it has.
const PARK_AFTER: Duration = Duration::from_secs(1);

pub(super) struct Driver {
    pub(super) shared: Arc<Shared>,
    pub(super) node: Weak<dyn Owner>,
    pub(super) connector: Arc<Connector>,
    pub(super) task: ConnectionTask,
    pub(super) work: Arc<Notify>,
    pub(super) slot: u32,
    /// That of this driver among those of the lane.
    pub(super) number: u64,
    pub(super) config: Config,
}

/// What is known of a lane's silence.
struct Watch {
    heard: Instant,
    next_tick: Instant,
    probe: Option<BoxFuture<'static, Probed>>,
    /// When the node was asked for a pong, of which nothing has been heard yet.
    pinged: Option<Instant>,
    is_open: bool,
    parked: bool,
    /// When near copies are to be looked after.
    next_near: Option<Instant>,
}

impl Watch {
    fn new(now: Instant) -> Self {
        Watch {
            heard: now,
            next_tick: now + TICK,
            probe: None,
            pinged: None,
            is_open: false,
            parked: false,
            next_near: None,
        }
    }

    /// Something has come.
    fn heard(&mut self, now: Instant) {
        // The node has said that it is there; what a probe finds is no news.
        (self.heard, self.pinged, self.probe) = (now, None, None);
    }
}

impl Driver {
    /// Opens the lane whenever there is work and it is not open, for as long as the handle lives.
    pub(super) async fn run(self) {
        loop {
            self.work.notified().await;
            if self.shared.state.lock().in_flight() == 0 {
                continue;
            }
            let epoch = self.config.identity.next_epoch();
            let failure = self.open_and_read(epoch).await;
            tracing::debug!(slot = self.slot, ?failure, "lane closed");
            self.with_state(|state, deliveries| state.ended(epoch, &failure, deliveries));
        }
    }

    /// Opens the lane, on a connection of its own, and reads answers until it ends; tells why it did.
    async fn open_and_read(&self, epoch: u64) -> Failure {
        let mut watch = Watch::new(Instant::now());
        let opening = self.open(epoch);
        tokio::pin!(opening);
        let answers = tokio::select! {
            biased;
            opened = &mut opening => opened,
            failure = self.watch(&mut watch, epoch) => return failure,
        };
        match answers {
            Ok(answers) => {
                self.shared.opened();
                watch.heard(Instant::now());
                watch.is_open = true;
                self.read(answers, watch, epoch).await
            }
            Err(failure) => {
                self.shared.not_open_for(OPENED_AGAIN_AFTER);
                failure
            }
        }
    }

    async fn open(&self, epoch: u64) -> Result<Streaming<ResponseFrame>, Failure> {
        {
            let mut state = self.shared.state.lock();
            // One that was left, and has not noticed yet, opens nothing: another may have by now.
            if self.shared.driver.load(Ordering::SeqCst) != self.number {
                return Err(Failure::Broken("the lane was left".into()));
            }
            state.opened(self.config.identity.client_id, epoch);
        }
        let requests = Requests { shared: self.shared.clone(), epoch };
        let channel = self.connector.channel(self.task.clone());
        let mut client = PeanutClient::new(channel).max_decoding_message_size(MAX_MESSAGE_BYTES);
        let limit = self.config.connect_timeout * 2;
        self.shared.not_open_for(limit);
        match timeout(limit, client.lane(self.connector.request(requests))).await {
            Ok(Ok(response)) => Ok(response.into_inner()),
            Ok(Err(status)) if status.code() == Code::Unimplemented => Err(Failure::Unimplemented),
            Ok(Err(status)) => Err(self.ended(&status)),
            Err(_) => {
                self.saw(Signal::Failed);
                Err(Failure::Lost(format!("the lane was not opened within {limit:?}").into()))
            }
        }
    }

    /// Reads answers until the stream ends, and tells why it did.
    async fn read(&self, mut answers: Streaming<ResponseFrame>, mut watch: Watch, epoch: u64) -> Failure {
        loop {
            let message = tokio::select! {
                biased;
                message = answers.message() => message,
                failure = self.watch(&mut watch, epoch) => return failure,
            };
            let frame = match message {
                Ok(Some(frame)) => frame,
                Ok(None) if self.shared.state.lock().is_draining() => return LaneState::closing(),
                Ok(None) => return Failure::Lost("the node closed the lane".into()),
                // Answers that break the lane say nothing of the node.
                Err(status) if matches!(status.code(), Code::OutOfRange | Code::InvalidArgument) => {
                    return Failure::Broken(reason(&status).into());
                }
                Err(status) => return self.ended(&status),
            };
            watch.heard(Instant::now());
            match self.with_state(|state, deliveries| {
                let taken = state.take_answers(epoch, &frame, self.uptime(), deliveries);
                taken.map(|()| state.is_draining())
            }) {
                Ok(false) => {
                    self.saw(Signal::Answered);
                    self.tend_near(&mut watch, epoch);
                }
                Ok(true) => self.saw(Signal::ProbeFailed),
                Err(error) => return Failure::Broken(error.to_string().into()),
            }
        }
    }

    /// Looks at deadlines and at silence until the lane is to be left, and tells why.
    async fn watch(&self, watch: &mut Watch, epoch: u64) -> Failure {
        loop {
            tokio::select! {
                biased;
                () = sleep_until(watch.next_tick), if !watch.parked => {
                    if let Some(failure) = self.tick(watch, Instant::now()) {
                        return failure;
                    }
                }
                () = sleep_until(watch.next_near.unwrap_or(watch.next_tick)), if watch.next_near.is_some() => {
                    self.tend_near(watch, epoch);
                }
                () = self.work.notified(), if watch.parked => {
                    watch.parked = false;
                    watch.next_tick = Instant::now() + TICK;
                }
                probed = poll_probe(&mut watch.probe), if watch.probe.is_some() => {
                    watch.probe = None;
                    match probed {
                        Probed::Silent => {
                            self.saw(Signal::ProbeFailed);
                            self.leave_idle_lanes();
                            let silent = watch.heard.elapsed();
                            return Failure::Lost(format!("no answer for {silent:.1?}, nor to a probe").into());
                        }
                        Probed::Serving => self.saw(Signal::ProbePassed),
                        Probed::NotServing => self.saw(Signal::ProbeFailed),
                    }
                    // Not open yet, or the pong is on its way: then it is busy with loads, be they its last.
                    if !watch.is_open {
                        watch.heard = Instant::now();
                    }
                }
            }
        }
    }

    /// The time, where it is needed.
    fn uptime(&self) -> Duration {
        if self.config.near.is_some() { uptime() } else { Duration::ZERO }
    }

    /// Says what is to be said of near copies.
    fn tend_near(&self, watch: &mut Watch, epoch: u64) {
        if self.config.near.is_none() {
            return;
        }
        let now = uptime();
        let (writer, again) = self.shared.state.lock().tend_near(epoch, now);
        watch.next_near = again.map(|at| Instant::now() + at.saturating_sub(now));
        writer.into_iter().for_each(Waker::wake);
    }

    /// One look. `Some`: the connection swallows what is sent, though the node is there.
    fn tick(&self, watch: &mut Watch, now: Instant) -> Option<Failure> {
        watch.next_tick = now + TICK;
        let (heard, is_open) = (watch.heard, watch.is_open);
        let (busy_since, parked) = self.with_state(|state, deliveries| {
            state.expire(now, deliveries);
            let is_idle = state.busy_since().is_none() && now.duration_since(heard) > PARK_AFTER;
            state.parked = is_open && is_idle;
            (state.busy_since(), state.parked)
        });
        watch.parked = parked;
        if let Some(pinged) = watch.pinged
            && watch.probe.is_none()
            && now.duration_since(pinged) > self.config.probe_timeout()
        {
            self.leave_idle_lanes();
            let silent = now.duration_since(heard);
            return Some(Failure::Broken(format!("the connection has been silent for {silent:.1?}").into()));
        }
        let silent_since = busy_since.map(|since| since.max(heard))?;
        if now.duration_since(silent_since) > self.config.suspect_after()
            && watch.probe.is_none()
            && watch.pinged.is_none()
            && let Some(node) = self.node.upgrade()
        {
            let monitor = node.monitor().clone();
            watch.probe = Some(async move { monitor.probe().await }.boxed());
            if watch.is_open {
                watch.pinged = Some(now);
                self.shared.state.lock().ping().into_iter().for_each(Waker::wake);
            }
        }
        None
    }

    /// Does something with the lane's state and delivers what came of it, with the lock released.
    fn with_state<R>(&self, work: impl FnOnce(&mut LaneState, &mut Vec<Delivery>) -> R) -> R {
        let mut deliveries = Vec::new();
        let mut state = self.shared.state.lock();
        let result = work(&mut state, &mut deliveries);
        self.shared.in_flight.store(state.in_flight(), Ordering::Relaxed);
        let epoch = state.epoch();
        drop(state);
        if !deliveries.is_empty() {
            self.task.expect(deliveries.len());
        }
        for mut delivery in deliveries {
            let (answers, group) = delivery.answers();
            for reply in answers.iter_mut().flatten().filter(|reply| reply.token.is_some()) {
                reply.lease = epoch.map(|epoch| Arc::new(self.lease(epoch, group, reply.token)));
            }
            delivery.tell();
        }
        result
    }

    /// A lease that is given back on this lane, while the stream is open that has brought it.
    fn lease(&self, epoch: u64, group: u32, token: FillToken) -> Lease {
        let shared = Arc::downgrade(&self.shared);
        Lease::new(move || {
            if let Some(shared) = shared.upgrade() {
                let writer = shared.state.lock().release(epoch, (group, token), Instant::now());
                writer.into_iter().for_each(Waker::wake);
            }
        })
    }

    fn leave_idle_lanes(&self) {
        if let Some(node) = self.node.upgrade() {
            node.leave_idle_lanes(self.slot);
        }
    }

    fn saw(&self, signal: Signal) {
        if let Some(node) = self.node.upgrade() {
            node.monitor().saw(signal);
        }
    }

    /// Why a lane was not opened, or has ended: the node has no more to do with this client, or it is lost.
    fn ended(&self, status: &Status) -> Failure {
        match failure::from_status(status) {
            Some(
                code @ (ErrorCode::Unauthenticated | ErrorCode::PermissionDenied | ErrorCode::Overloaded),
            ) => {
                self.saw(Signal::Answered);
                Failure::Said(code, status.message().into())
            }
            // Another process is at the address.
            Some(ErrorCode::WrongNode) => {
                self.saw(Signal::NotConnected);
                Failure::Lost(status.message().into())
            }
            _ => self.lost(status),
        }
    }

    fn lost(&self, status: &Status) -> Failure {
        if let Some(node) = self.node.upgrade() {
            node.monitor().lost(status);
        }
        Failure::Lost(reason(status).into())
    }
}

async fn poll_probe(probe: &mut Option<BoxFuture<'static, Probed>>) -> Probed {
    match probe {
        Some(probe) => probe.await,
        None => std::future::pending().await,
    }
}
