//! The driver of a lane: opens the stream when there is something to send, hands answers to callers, and
//! notices when nothing comes any more.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use peanut_proto::failure;
use peanut_proto::frame::ResponseFrame;
use peanut_proto::limits::MAX_MESSAGE_BYTES;
use peanut_proto::v1::ErrorCode;
use peanut_proto::v1::peanut_client::PeanutClient;
use tokio::time::{Instant, sleep_until, timeout};
use tonic::transport::Channel;
use tonic::{Code, Status, Streaming};

use super::requests::Requests;
use super::state::{Delivery, LaneState};
use super::{Failure, Shared};
use crate::config::Config;
use crate::connection::ConnectionTask;
use crate::health::Signal;
use crate::node::{Node, Probed, never_connected, reason};

/// How often deadlines and silence are looked at while something is in flight.
const TICK: Duration = Duration::from_millis(10);

/// A lane that has had nothing in flight for so long is not looked at any more until it has.
const PARK_AFTER: Duration = Duration::from_secs(1);

pub(super) struct Driver {
    pub(super) shared: Arc<Shared>,
    pub(super) node: Weak<Node>,
    pub(super) channel: Channel,
    pub(super) task: ConnectionTask,
    pub(super) slot: u32,
    pub(super) config: Config,
}

impl Driver {
    /// Opens the lane whenever there is work and it is not open, for as long as the handle lives.
    pub(super) async fn run(self) {
        loop {
            self.shared.work.notified().await;
            if self.shared.state.lock().in_flight() == 0 {
                continue;
            }
            let epoch = self.config.identity.next_epoch();
            let failure = match self.open(epoch).await {
                Ok(answers) => self.read(answers).await,
                Err(failure) => failure,
            };
            tracing::debug!(slot = self.slot, ?failure, "lane closed");
            self.with_state(|state, deliveries| state.fail_all(&failure, deliveries));
        }
    }

    async fn open(&self, epoch: u64) -> Result<Streaming<ResponseFrame>, Failure> {
        self.shared.state.lock().opened(self.config.identity.client_id, self.slot, epoch);
        let requests = Requests { shared: self.shared.clone(), epoch };
        let mut client = PeanutClient::new(self.channel.clone()).max_decoding_message_size(MAX_MESSAGE_BYTES);
        let limit = self.config.connect_timeout * 2;
        match timeout(limit, client.lane(self.config.request(requests))).await {
            Ok(Ok(response)) => Ok(response.into_inner()),
            Ok(Err(status)) if status.code() == Code::Unimplemented => Err(Failure::Unimplemented),
            Ok(Err(status)) => match failure::from_status(&status) {
                Some(code @ (ErrorCode::Unauthenticated | ErrorCode::PermissionDenied)) => {
                    self.saw(Signal::Answered);
                    Err(Failure::Said(code, status.message().into()))
                }
                _ => Err(self.lost(&status)),
            },
            Err(_) => {
                self.saw(Signal::Failed);
                Err(Failure::Lost(format!("the lane was not opened within {limit:?}").into()))
            }
        }
    }

    /// Reads answers until the stream ends, and tells why it did.
    async fn read(&self, mut answers: Streaming<ResponseFrame>) -> Failure {
        let mut heard = Instant::now();
        let mut next_tick = heard + TICK;
        let mut probe: Option<BoxFuture<'static, Probed>> = None;
        let mut parked = false;
        loop {
            tokio::select! {
                biased;
                message = answers.message() => {
                    let frame = match message {
                        Ok(Some(frame)) => frame,
                        Ok(None) if self.shared.state.lock().is_draining() => return LaneState::closing(),
                        Ok(None) => return Failure::Lost("the node closed the lane".into()),
                        Err(status) => return self.lost(&status),
                    };
                    heard = Instant::now();
                    match self.with_state(|state, deliveries| {
                        let taken = state.take_answers(&frame, deliveries);
                        taken.map(|()| (state.is_draining(), state.is_fenced()))
                    }) {
                        Ok((_, true)) => {
                            return Failure::Lost("the lane was shut out and is opened again".into());
                        }
                        Ok((false, _)) => self.saw(Signal::Answered),
                        Ok((true, _)) => self.saw(Signal::ProbeFailed),
                        Err(error) => return Failure::Lost(error.to_string().into()),
                    }
                }
                () = sleep_until(next_tick), if !parked => {
                    let now = Instant::now();
                    next_tick = now + TICK;
                    let busy_since = self.with_state(|state, deliveries| {
                        state.expire(now, deliveries);
                        state.parked = state.busy_since().is_none() && now.duration_since(heard) > PARK_AFTER;
                        parked = state.parked;
                        state.busy_since()
                    });
                    let silent_since = busy_since.map(|since| since.max(heard));
                    if silent_since.is_some_and(|since| now.duration_since(since) > self.config.suspect_after())
                        && probe.is_none()
                        && let Some(node) = self.node.upgrade()
                    {
                        probe = Some(async move { node.probe().await }.boxed());
                    }
                }
                () = self.shared.work.notified(), if parked => {
                    parked = false;
                    next_tick = Instant::now() + TICK;
                }
                probed = poll_probe(&mut probe), if probe.is_some() => {
                    probe = None;
                    if probed == Probed::Silent {
                        let silent = heard.elapsed();
                        return Failure::Lost(format!("no answer for {silent:.1?}, nor to a probe").into());
                    }
                    // It is busy with loads, be they its last; ask again when it has been silent for as long again.
                    heard = Instant::now();
                }
            }
        }
    }

    /// Does something with the lane's state and delivers what came of it, with the lock released.
    fn with_state<R>(&self, work: impl FnOnce(&mut LaneState, &mut Vec<Delivery>) -> R) -> R {
        let mut deliveries = Vec::new();
        let mut state = self.shared.state.lock();
        let result = work(&mut state, &mut deliveries);
        self.shared.in_flight.store(state.in_flight(), Ordering::Relaxed);
        drop(state);
        if !deliveries.is_empty() {
            self.task.expect_company(deliveries.len() > 1);
        }
        deliveries.into_iter().for_each(|(caller, answer)| caller.tell(answer));
        result
    }

    fn saw(&self, signal: Signal) {
        if let Some(node) = self.node.upgrade() {
            node.saw(signal);
        }
    }

    fn lost(&self, status: &Status) -> Failure {
        self.saw(if never_connected(status) { Signal::NotConnected } else { Signal::Failed });
        Failure::Lost(reason(status).into())
    }
}

async fn poll_probe(probe: &mut Option<BoxFuture<'static, Probed>>) -> Probed {
    match probe {
        Some(probe) => probe.await,
        None => std::future::pending().await,
    }
}
