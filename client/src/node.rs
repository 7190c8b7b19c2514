//! A handle to one node: its lanes, and its health as this client sees it.
//!
//! Handles outlive ring swaps: the same node keeps its handle, with its connections, from ring to ring.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::{BoxFuture, Shared};
use parking_lot::Mutex;
use peanut_proto::backoff::Backoff;
use peanut_proto::membership::Fence;
use peanut_proto::v1::ErrorCode;
use tokio::time::{Instant, sleep, timeout};
use tonic::Status;
use tonic::transport::Channel;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

use crate::config::Config;
use crate::connect::Connector;
use crate::connection::ConnectionTask;
use crate::error::{Error, ErrorKind};
use crate::health::{Change, Health, Signal};
use crate::lane::{Answer, Ask, Batch, Choice, Failure, Lane, Limits, Reply};
use crate::unary;

/// Lanes to the only node of a fleet.
const LANES_OF_ONE_NODE: usize = 2;
/// A node that is down is probed after a part of the first delay, doubling up to the longest.
const PROBE_FIRST: Duration = Duration::from_millis(100);
const PROBE_LONGEST: Duration = Duration::from_secs(2);

/// A node of the fleet.
pub(crate) struct Node {
    id: String,
    addr: String,
    lanes: Box<[Lane]>,
    /// How many of them are used.
    lanes_in_use: AtomicUsize,
    choice: Choice,
    /// For probes, and for nodes that know no lanes. A connection of its own: what fills a lane must not
    /// make its node look dead.
    channel: Option<Channel>,
    unary_only: AtomicBool,
    config: Config,
    health: Mutex<Health>,
    /// `health` for those who only look.
    down: AtomicBool,
    down_since: Mutex<Option<Instant>>,
    /// Words left for it in the registry since it was last reached.
    words: AtomicU32,
    probe: Mutex<Option<Shared<BoxFuture<'static, Probed>>>>,
    /// Why no connection can be made, where none can.
    out_of_reach: Option<Arc<str>>,
}

/// What a probe found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Probed {
    Serving,
    /// It is there and wants no new calls; those in flight it will finish.
    NotServing,
    Silent,
}

/// Why a node did not answer with what it was asked for.
#[derive(Debug)]
pub(crate) enum Refusal {
    /// The node itself has failed the operation: final.
    Final(Error),
    /// The call died on the way, or the node is on its way out: another node may be asked.
    Elsewhere(Error),
}

impl Node {
    /// A handle to the node of that id at that address. Connects when it is first used. An address that
    /// is none, or one that a token must not go to, makes a node that is never reached: it must not keep anyone from the others.
    pub(crate) fn new(id: &str, addr: &str, config: &Config) -> Self {
        let connector = Connector::new(id, addr, config);
        let connector = connector.inspect_err(|why| tracing::warn!(id, addr, why, "a node out of reach"));
        let connect = || {
            let task = ConnectionTask::default();
            Some((connector.as_ref().ok()?.channel(task.clone()), task))
        };
        let most = config.lanes_per_node.unwrap_or(LANES_OF_ONE_NODE);
        let limits = limits(config, most);
        let lanes = (0..).zip(std::iter::from_fn(connect)).take(most);
        Node {
            id: id.to_owned(),
            addr: addr.to_owned(),
            lanes: lanes.map(|(slot, (channel, task))| Lane::new(channel, task, slot, limits)).collect(),
            lanes_in_use: AtomicUsize::new(most),
            choice: Choice::new(),
            channel: connect().map(|(channel, _)| channel),
            unary_only: AtomicBool::new(config.unary),
            config: config.clone(),
            health: Mutex::default(),
            down: AtomicBool::new(false),
            down_since: Mutex::new(None),
            words: AtomicU32::new(0),
            probe: Mutex::new(None),
            out_of_reach: connector.err().map(Into::into),
        }
    }

    /// Why it cannot be asked anything, where that is so.
    pub(crate) fn out_of_reach(&self) -> Arc<str> {
        self.out_of_reach.clone().unwrap_or_else(|| format!("`{}` cannot be reached", self.addr).into())
    }

    /// Hears how many nodes the fleet has, which decides how many lanes are worth it.
    pub(crate) fn among(&self, nodes: usize) {
        let lanes = self.config.lanes_per_node.unwrap_or(if nodes > 1 { 1 } else { LANES_OF_ONE_NODE });
        if self.lanes_in_use.swap(lanes, Ordering::Relaxed) != lanes {
            self.lanes.iter().for_each(|lane| lane.limit(limits(&self.config, lanes)));
        }
    }

    fn lanes(&self) -> &[Lane] {
        &self.lanes[..self.lanes_in_use.load(Ordering::Relaxed).min(self.lanes.len())]
    }

    /// Operations in flight to it.
    #[cfg(feature = "metrics")]
    pub(crate) fn in_flight(&self) -> usize {
        self.lanes().iter().map(tower::load::Load::load).sum()
    }

    pub(crate) fn id(&self) -> &str {
        &self.id
    }

    pub(crate) fn addr(&self) -> &str {
        &self.addr
    }

    /// Whether the node is believed to be down.
    pub(crate) fn is_down(&self) -> bool {
        self.down.load(Ordering::Relaxed)
    }

    /// Asks the node for one key.
    pub(crate) async fn get(self: &Arc<Self>, ask: &Ask<'_>, now: Instant) -> Result<Reply, Refusal> {
        if !self.unary_only.load(Ordering::Relaxed) {
            match self.ask_a_lane(ask, now).await {
                Err(Failure::Unimplemented) => self.unary_only.store(true, Ordering::Relaxed),
                answer => return answer.map_err(|failure| self.failed(failure, ask)),
            }
        }
        Box::pin(unary::get(self, ask, &self.config)).await
    }

    /// Has the node write. Writes of one key take one lane, in order.
    pub(crate) async fn write(self: &Arc<Self>, ask: &Ask<'_>, now: Instant) -> Result<Reply, Refusal> {
        let Some(lane) = self.write_lane(ask.hash) else {
            return Err(Refusal::Elsewhere(Error::at(
                ErrorKind::Unavailable,
                &self.id,
                &*self.out_of_reach(),
            )));
        };
        if !self.unary_only.load(Ordering::Relaxed) {
            let answer = lane.ask(self, ask, now, &self.config).await;
            match answer.unwrap_or_else(|_| Err(Failure::Lost("the lane was dropped".into()))) {
                Err(Failure::Unimplemented) => self.unary_only.store(true, Ordering::Relaxed),
                answer => return answer.map_err(|failure| self.failed(failure, ask)),
            }
        }
        Box::pin(unary::write(self, ask)).await
    }

    fn write_lane(&self, hash: u64) -> Option<&Lane> {
        // The higher bits: the lower ones choose slots.
        self.lanes.get((hash >> 32) as usize % self.lanes.len().max(1))
    }

    /// What shuts out whatever writes of such keys are still on their way to the node.
    pub(crate) fn fence(&self, hash: u64) -> Option<Fence> {
        let slot = self.write_lane(hash)?.slot();
        let identity = &self.config.identity;
        Some(Fence { client: identity.client_id, slot, epoch: identity.next_epoch() })
    }

    /// How many words were left for it in the registry since it was last reached.
    pub(crate) fn words(&self) -> &AtomicU32 {
        &self.words
    }

    /// Since when the node is believed to be down.
    pub(crate) fn down_since(&self) -> Option<Instant> {
        *self.down_since.lock()
    }

    async fn ask_a_lane(self: &Arc<Self>, ask: &Ask<'_>, now: Instant) -> Answer {
        if self.lanes.is_empty() {
            return Err(Failure::Lost(self.out_of_reach()));
        }
        let chosen = self.choice.choose(ask.hash, self.lanes(), |lanes| fastrand::usize(..lanes));
        let answer = self.lanes[chosen.lane].ask(self, ask, now, &self.config);
        answer.await.unwrap_or_else(|_| Err(Failure::Lost("the lane was dropped".into())))
    }

    /// Asks the node for many keys at once. `None` where it has no lanes: then each has to be asked for alone.
    pub(crate) async fn get_many(
        self: &Arc<Self>,
        asks: &[Ask<'_>],
        now: Instant,
    ) -> Option<Vec<Result<Reply, Refusal>>> {
        if self.lanes.is_empty() || self.unary_only.load(Ordering::Relaxed) {
            return None;
        }
        let answers = self.ask_lanes(asks, now).await;
        if answers.iter().any(|answer| matches!(answer, Err(Failure::Unimplemented))) {
            self.unary_only.store(true, Ordering::Relaxed);
            return None;
        }
        let refusals =
            |(answer, ask): (Answer, &Ask<'_>)| answer.map_err(|failure| self.failed(failure, ask));
        Some(answers.into_iter().zip(asks).map(refusals).collect())
    }

    /// All go onto one lane, except those whose keys are in flight on another.
    async fn ask_lanes(self: &Arc<Self>, asks: &[Ask<'_>], now: Instant) -> Vec<Answer> {
        let lane = Choice::less_busy(self.lanes(), |lanes| fastrand::usize(..lanes));
        let chosen: Vec<_> = asks.iter().map(|ask| self.choice.join(ask.hash, lane)).collect();
        let (batch, parts) = Batch::new(asks.len());
        let mut by_lane: Vec<Vec<_>> = self.lanes.iter().map(|_| Vec::new()).collect();
        for ((chosen, ask), part) in chosen.iter().zip(asks).zip(parts) {
            by_lane[chosen.lane].push((ask, part));
        }
        for (lane, asks) in self.lanes.iter().zip(by_lane).filter(|(_, asks)| !asks.is_empty()) {
            lane.ask_many(self, asks.into_iter(), now, &self.config);
        }
        batch.await
    }

    pub(crate) fn config(&self) -> &Config {
        &self.config
    }

    /// The channel for unary calls and probes.
    pub(crate) fn channel(&self) -> Option<&Channel> {
        self.channel.as_ref()
    }

    fn failed(&self, failure: Failure, ask: &Ask<'_>) -> Refusal {
        match failure {
            Failure::Said(code, message) => self.said(code, &message, ask.deadline),
            Failure::Late => Refusal::Final(self.too_late()),
            Failure::Full(why) => Refusal::Final(Error::at(ErrorKind::Overloaded, &self.id, why)),
            Failure::Lost(why) => Refusal::Elsewhere(Error::at(ErrorKind::Unavailable, &self.id, &*why)),
            Failure::Unimplemented => {
                Refusal::Final(Error::at(ErrorKind::Protocol, &self.id, "the node knows no lanes"))
            }
        }
    }

    /// What the node itself says has failed.
    pub(crate) fn said(&self, code: ErrorCode, message: &str, deadline: Instant) -> Refusal {
        let error = Error::at(code.into(), &self.id, message);
        match error.kind() {
            ErrorKind::Unavailable => Refusal::Elsewhere(error),
            // Somebody else's deadline, with whom this get shared an operation.
            ErrorKind::DeadlineExceeded if Instant::now() < deadline => Refusal::Elsewhere(error),
            _ => Refusal::Final(error),
        }
    }

    pub(crate) fn too_late(&self) -> Error {
        let why = format!("no answer within {:?}", self.config.deadline);
        Error::at(ErrorKind::DeadlineExceeded, &self.id, why)
    }

    /// Takes in what was seen of the node. One that goes down is probed until it is back.
    pub(crate) fn saw(self: &Arc<Self>, signal: Signal) {
        let mut health = self.health.lock();
        let change = health.on(signal);
        // Under the lock, so that the flag says what the last change said.
        if let Some(change) = change {
            self.down.store(change == Change::WentDown, Ordering::Relaxed);
            *self.down_since.lock() = (change == Change::WentDown).then(Instant::now);
        }
        drop(health);
        match change {
            None => {}
            Some(Change::CameUp) => {
                // It may be another program than before.
                self.unary_only.store(self.config.unary, Ordering::Relaxed);
                tracing::info!(node = self.id, "node is back");
            }
            Some(Change::WentDown) => {
                tracing::warn!(node = self.id, "node is down; its successor is asked meanwhile");
                tokio::spawn(probe_until_back(Arc::downgrade(self)));
            }
        }
    }

    /// Asks the node whether it serves, and takes in the answer. Those who ask at the same time share one
    /// probe.
    pub(crate) async fn probe(self: &Arc<Self>) -> Probed {
        let probe = {
            let mut slot = self.probe.lock();
            match &*slot {
                Some(running) => running.clone(),
                None => {
                    let node = self.clone();
                    let probe = async move {
                        let probed = node.probe_once().await;
                        node.probe.lock().take();
                        let passed = probed == Probed::Serving;
                        node.saw(if passed { Signal::ProbePassed } else { Signal::ProbeFailed });
                        probed
                    };
                    let probe = probe.boxed().shared();
                    *slot = Some(probe.clone());
                    // It goes on even if all who wait for it leave, so that the slot is freed.
                    tokio::spawn(probe.clone());
                    probe
                }
            }
        };
        probe.await
    }

    async fn probe_once(&self) -> Probed {
        let Some(channel) = self.channel() else { return Probed::Silent };
        let mut health = HealthClient::new(channel.clone());
        let check = health.check(HealthCheckRequest { service: String::new() });
        match timeout(self.config.probe_timeout(), check).await {
            Ok(Ok(answer)) if answer.get_ref().status() == ServingStatus::Serving => Probed::Serving,
            Ok(Ok(_)) => Probed::NotServing,
            Ok(Err(_)) | Err(_) => Probed::Silent,
        }
    }
}

impl fmt::Debug for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Node").field("id", &self.id).field("addr", &self.addr).finish_non_exhaustive()
    }
}

/// What one of so many lanes may have in flight.
fn limits(config: &Config, lanes: usize) -> Limits {
    Limits {
        operations: config.operations_per_node / lanes,
        queued_bytes: config.queued_bytes_per_node / lanes,
    }
}

/// Ends when the node is back, or nobody holds its handle any more.
async fn probe_until_back(node: std::sync::Weak<Node>) {
    let mut backoff = Backoff::new(PROBE_FIRST, PROBE_LONGEST);
    loop {
        sleep(backoff.next_delay(fastrand::f64())).await;
        let Some(node) = node.upgrade() else { return };
        if !node.is_down() || node.probe().await == Probed::Serving {
            return;
        }
    }
}

fn sources<'a>(status: &'a Status) -> impl Iterator<Item = &'a (dyn std::error::Error + 'static)> {
    std::iter::successors(std::error::Error::source(status), |error| error.source())
}

pub(crate) fn never_connected(status: &Status) -> bool {
    sources(status).any(|error| error.is::<tonic::ConnectError>())
}

/// The innermost message, which is the one that says something.
pub(crate) fn reason(status: &Status) -> String {
    sources(status).last().map_or_else(|| status.message().to_owned(), ToString::to_string)
}
