//! A handle to one node: its lanes, and its health as this client sees it.
//!
//! Handles outlive ring swaps: the same node keeps its handle, with its connections, from ring to ring.

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::Mutex;
use peanut_proto::backoff::Backoff;
use peanut_proto::v1::ErrorCode;
use tokio::runtime::{Handle, Id};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout, timeout_at};
use tonic::Status;
use tonic::transport::Channel;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

use crate::claims::Claims;
use crate::config::Config;
use crate::connect::Connector;
use crate::connection::ConnectionTask;
use crate::error::{Error, ErrorKind};
use crate::health::{Change, Health, Signal};
use crate::lane::{Answer, Ask, Batch, Choice, Failure, Lane, Limits, Reply};
use crate::plan::Failed;
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
    /// `Err`: why no connection can be made.
    connector: Result<Arc<Connector>, Arc<str>>,
    /// For probes, and for nodes that know no lanes: of each runtime that has used it lately, the latest last. A connection
    /// of its own: what fills a lane must not make its node look dead.
    channels: Mutex<Vec<(Id, Channel)>>,
    unary_only: AtomicBool,
    config: Config,
    health: Mutex<Health>,
    /// `health` for those who only look.
    down: AtomicBool,
    down_since: Mutex<Option<Instant>>,
    /// What it says of rings that the client does not know.
    claims: Mutex<Claims>,
    /// Hints stored for it in the registry since it was last reached, and not seen to be read.
    hints: AtomicU32,
    /// When gets last began or ceased to go to its successor; `None`: never.
    left_at: Mutex<Option<Instant>>,
    /// Nothing listened at its address when it was last connected to.
    refusing: AtomicBool,
    /// It holds no lease, although the registry can be read and most nodes hold one.
    unleased: AtomicBool,
    /// The probe that is under way.
    probe: Mutex<Option<watch::Receiver<Option<Probed>>>>,
    /// Somebody probes it until it is back.
    probing: AtomicBool,
}

/// Runtimes whose channels are kept.
const MOST_CHANNELS: usize = 4;

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
    /// The lane died, and not for want of the node: it may be asked again.
    Again(Error),
    /// The node was asked in the owner's place, has no entry, and cannot load: nobody but the owner knows.
    OwnerOnly(Error),
    /// The node has no such group; another may have it.
    NoGroup(Error),
}

impl Refusal {
    /// By what may be done about it.
    pub(crate) fn failed(&self) -> Failed {
        match self {
            Refusal::Final(_) => Failed::Finally,
            Refusal::Elsewhere(_) => Failed::Elsewhere,
            Refusal::Again(_) => Failed::Again,
            Refusal::OwnerOnly(_) => Failed::OwnerOnly,
            Refusal::NoGroup(_) => Failed::NoGroup,
        }
    }

    /// What the caller is told where nothing more is tried.
    pub(crate) fn into_error(self) -> Error {
        match self {
            Refusal::Final(error)
            | Refusal::Elsewhere(error)
            | Refusal::Again(error)
            | Refusal::OwnerOnly(error)
            | Refusal::NoGroup(error) => error,
        }
    }
}

impl Node {
    /// A handle to the node of that id at that address. Connects when it is first used. An address that
    /// is none, or one that a token must not go to, makes a node that is never reached: it must not keep anyone from the others.
    pub(crate) fn new(id: &str, addr: &str, config: &Config) -> Self {
        let connector = Connector::new(id, addr, config);
        let connector = connector.inspect_err(|why| tracing::warn!(id, addr, why, "a node out of reach"));
        let connector = connector.map(Arc::new).map_err(Arc::from);
        let most = config.lanes_per_node.unwrap_or(LANES_OF_ONE_NODE);
        let limits = limits(config, most);
        let lanes =
            connector.iter().flat_map(|connector| (0..).take(most).map(move |slot| (connector, slot)));
        Node {
            id: id.to_owned(),
            addr: addr.to_owned(),
            lanes: lanes.map(|(connector, slot)| Lane::new(connector.clone(), slot, limits)).collect(),
            lanes_in_use: AtomicUsize::new(most),
            choice: Choice::new(),
            connector,
            channels: Mutex::default(),
            unary_only: AtomicBool::new(config.unary),
            config: config.clone(),
            health: Mutex::default(),
            down: AtomicBool::new(false),
            down_since: Mutex::new(None),
            claims: Mutex::default(),
            hints: AtomicU32::new(0),
            left_at: Mutex::new(None),
            refusing: AtomicBool::new(false),
            unleased: AtomicBool::new(false),
            probe: Mutex::new(None),
            probing: AtomicBool::new(false),
        }
    }

    /// Why it cannot be asked anything, where that is so.
    pub(crate) fn out_of_reach(&self) -> Arc<str> {
        let unreachable = || format!("`{}` cannot be reached", self.addr).into();
        self.connector.as_ref().err().cloned().unwrap_or_else(unreachable)
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

    /// Whether the node is believed to be down. While it is, somebody probes it: where the runtime that did so has ended, the
    /// caller's.
    pub(crate) fn is_down(self: &Arc<Self>) -> bool {
        let is_down = self.down.load(Ordering::Relaxed);
        if is_down && !self.probing.load(Ordering::Relaxed) {
            self.keep_probing();
        }
        is_down
    }

    fn keep_probing(self: &Arc<Self>) {
        let Ok(runtime) = Handle::try_current() else { return };
        if !self.probing.swap(true, Ordering::AcqRel) {
            let probing = Probing(Arc::downgrade(self));
            runtime.spawn(async move { probing.until_back().await });
        }
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
            match lane.ask(self, ask, now, &self.config).answer().await {
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

    /// What it has said of rings that the client does not know.
    pub(crate) fn claims(&self) -> &Mutex<Claims> {
        &self.claims
    }

    /// How many hints were stored for it in the registry since it was last reached, and not seen to be read.
    pub(crate) fn hints(&self) -> &AtomicU32 {
        &self.hints
    }

    /// Whether gets go to its successor, or did in that time.
    pub(crate) fn was_left_within(self: &Arc<Self>, time: Duration, now: Instant) -> bool {
        self.is_left() || self.left_at.lock().is_some_and(|at| now < at + time)
    }

    /// Whether gets go to its successor: it is down, or holds no lease, so that writers do not wait for it.
    pub(crate) fn is_left(self: &Arc<Self>) -> bool {
        self.is_down() || self.is_unleased()
    }

    /// Whether it holds no lease, so that it may not have been told of writes.
    pub(crate) fn is_unleased(&self) -> bool {
        self.unleased.load(Ordering::Relaxed)
    }

    /// Says whether it holds a lease, as the registry has it.
    pub(crate) fn set_leased(&self, is_leased: bool) {
        if self.unleased.swap(!is_leased, Ordering::Relaxed) == is_leased {
            *self.left_at.lock() = Some(Instant::now());
            tracing::info!(node = self.id, is_leased, "whether the node holds a lease has changed");
        }
    }

    /// Whether nothing listens at its address.
    pub(crate) fn is_refusing(&self) -> bool {
        self.refusing.load(Ordering::Relaxed)
    }

    /// Takes in how a connection or a call ended that the node did not answer.
    pub(crate) fn lost(self: &Arc<Self>, status: &Status) {
        self.refusing.store(was_refused(status), Ordering::Relaxed);
        self.saw(if never_connected(status) { Signal::NotConnected } else { Signal::Failed });
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
        self.lanes[chosen.lane].ask(self, ask, now, &self.config).answer().await
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
        let (mut batch, parts) = Batch::new(asks.len());
        let mut is_foreign = false;
        let mut by_lane: Vec<Vec<_>> = self.lanes.iter().map(|_| Vec::new()).collect();
        for ((chosen, ask), part) in chosen.iter().zip(asks).zip(parts) {
            by_lane[chosen.lane].push((ask, part));
        }
        for (lane, asks) in self.lanes.iter().zip(by_lane).filter(|(_, asks)| !asks.is_empty()) {
            is_foreign |= lane.ask_many(self, asks.into_iter(), now, &self.config);
        }
        if !is_foreign {
            return batch.await;
        }
        let deadline = asks.iter().map(|ask| ask.deadline).max().unwrap_or(now);
        while Instant::now() < deadline {
            let until = deadline.min(Instant::now() + Duration::from_millis(100));
            if let Ok(answers) = timeout_at(until, &mut batch).await {
                return answers;
            }
            self.lanes.iter().for_each(Lane::leave_if_still);
        }
        batch.so_far()
    }

    pub(crate) fn config(&self) -> &Config {
        &self.config
    }

    /// The channel for unary calls and probes: one for each runtime, since a connection ends with the runtime it is on. `None` where
    /// the node is out of reach, or outside a runtime.
    pub(crate) fn channel(&self) -> Option<Channel> {
        let (connector, runtime) = (self.connector.as_ref().ok()?, Handle::try_current().ok()?.id());
        let mut channels = self.channels.lock();
        if let Some((_, channel)) = channels.iter().find(|(id, _)| *id == runtime) {
            return Some(channel.clone());
        }
        if channels.len() >= MOST_CHANNELS {
            channels.remove(0);
        }
        let channel = connector.channel(ConnectionTask::default());
        channels.push((runtime, channel.clone()));
        Some(channel)
    }

    /// Uses this runtime's channel no more: what is on it was not answered.
    fn leave_channel(&self) {
        if let Ok(runtime) = Handle::try_current() {
            self.channels.lock().retain(|(id, _)| *id != runtime.id());
        }
    }

    /// A call to this node.
    pub(crate) fn request<T>(&self, message: T) -> tonic::Request<T> {
        match &self.connector {
            Ok(connector) => connector.request(message),
            Err(_) => tonic::Request::new(message),
        }
    }

    fn failed(&self, failure: Failure, ask: &Ask<'_>) -> Refusal {
        match failure {
            Failure::Said(code, message) => self.said(code, &message, ask.deadline),
            Failure::Late => Refusal::Final(self.too_late()),
            Failure::Full(why) => Refusal::Final(Error::at(ErrorKind::Overloaded, &self.id, why)),
            Failure::Lost(why) => Refusal::Elsewhere(Error::at(ErrorKind::Unavailable, &self.id, &*why)),
            Failure::Broken(why) => Refusal::Again(Error::at(ErrorKind::Unavailable, &self.id, &*why)),
            Failure::Unimplemented => {
                Refusal::Final(Error::at(ErrorKind::Protocol, &self.id, "the node knows no lanes"))
            }
        }
    }

    /// What the node itself says has failed.
    pub(crate) fn said(&self, code: ErrorCode, message: &str, deadline: Instant) -> Refusal {
        let error = Error::at(code.into(), &self.id, message);
        match error.kind() {
            _ if code == ErrorCode::NoLoader => Refusal::OwnerOnly(error),
            ErrorKind::UnknownGroup => Refusal::NoGroup(error),
            ErrorKind::Unavailable => Refusal::Elsewhere(error),
            // Somebody else's deadline, with whom this get shared an operation.
            ErrorKind::DeadlineExceeded if Instant::now() < deadline => Refusal::Elsewhere(error),
            _ => Refusal::Final(error),
        }
    }

    pub(crate) fn too_late(&self) -> Error {
        Error::at(ErrorKind::DeadlineExceeded, &self.id, "no answer by the call's deadline")
    }

    /// Takes in what was seen of the node. One that goes down is probed until it is back.
    pub(crate) fn saw(self: &Arc<Self>, signal: Signal) {
        if matches!(signal, Signal::Answered | Signal::ProbePassed) {
            self.refusing.store(false, Ordering::Relaxed);
        }
        let mut health = self.health.lock();
        let change = health.on(signal);
        // Under the lock, so that the flag says what the last change said.
        if let Some(change) = change {
            self.down.store(change == Change::WentDown, Ordering::Relaxed);
            let now = Instant::now();
            *self.down_since.lock() = (change == Change::WentDown).then_some(now);
            *self.left_at.lock() = Some(now);
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
                self.keep_probing();
            }
        }
    }

    /// The connection of a lane has died without a word: those that are idle may have died with it.
    pub(crate) fn leave_idle_lanes(&self, died: u32) {
        self.lanes.iter().filter(|lane| lane.slot() != died).for_each(Lane::leave_if_idle);
    }

    /// Asks the node whether it serves, and takes in the answer.
    pub(crate) async fn check(self: &Arc<Self>) -> Probed {
        let probed = self.probe().await;
        self.saw(if probed == Probed::Serving { Signal::ProbePassed } else { Signal::ProbeFailed });
        probed
    }

    /// Asks the node whether it serves. Those who ask at the same time share one probe.
    pub(crate) async fn probe(self: &Arc<Self>) -> Probed {
        loop {
            let (mut probed, begun) = {
                let mut slot = self.probe.lock();
                match &*slot {
                    Some(running) => (running.clone(), None),
                    None => {
                        let (sender, probed) = watch::channel(None);
                        *slot = Some(probed.clone());
                        (probed, Some(sender))
                    }
                }
            };
            if let Some(sender) = begun {
                // It goes on even if all who wait for it leave; the place is freed also where its runtime ends.
                let (node, free) = (self.clone(), FreeProbe(self.clone()));
                tokio::spawn(async move {
                    let found = node.probe_once().await;
                    drop(free);
                    sender.send_replace(Some(found));
                });
            }
            match probed.wait_for(Option::is_some).await.map(|probed| *probed) {
                Ok(probed) => return probed.unwrap_or(Probed::Silent),
                // The runtime that it was on has ended.
                Err(_) => tokio::task::yield_now().await,
            }
        }
    }

    async fn probe_once(&self) -> Probed {
        let Some(channel) = self.channel() else { return Probed::Silent };
        let mut health = HealthClient::new(channel);
        let check = health.check(self.request(HealthCheckRequest { service: String::new() }));
        let probed = match timeout(self.config.probe_timeout(), check).await {
            Ok(Ok(answer)) if answer.get_ref().status() == ServingStatus::Serving => Probed::Serving,
            Ok(Ok(_)) => Probed::NotServing,
            Ok(Err(status)) => {
                self.refusing.store(was_refused(&status), Ordering::Relaxed);
                return Probed::Silent;
            }
            Err(_) => {
                self.leave_channel();
                Probed::Silent
            }
        };
        self.refusing.store(false, Ordering::Relaxed);
        probed
    }
}

/// Frees the place of a probe when it is dropped.
struct FreeProbe(Arc<Node>);

impl Drop for FreeProbe {
    fn drop(&mut self) {
        self.0.probe.lock().take();
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

/// Probes a node until it is back, or nobody holds its handle any more. Where the runtime ends first, the next who looks at the node
/// begins anew.
struct Probing(Weak<Node>);

impl Probing {
    async fn until_back(&self) {
        let mut backoff = Backoff::new(PROBE_FIRST, PROBE_LONGEST);
        loop {
            sleep(backoff.next_delay(fastrand::f64())).await;
            let Some(node) = self.0.upgrade() else { return };
            if !node.down.load(Ordering::Relaxed) || node.check().await == Probed::Serving {
                return;
            }
        }
    }
}

impl Drop for Probing {
    fn drop(&mut self) {
        if let Some(node) = self.0.upgrade() {
            node.probing.store(false, Ordering::Release);
        }
    }
}

fn sources<'a>(status: &'a Status) -> impl Iterator<Item = &'a (dyn std::error::Error + 'static)> {
    std::iter::successors(std::error::Error::source(status), |error| error.source())
}

fn never_connected(status: &Status) -> bool {
    sources(status).any(|error| error.is::<tonic::ConnectError>())
}

/// Whether the machine is there, and nothing listens.
fn was_refused(status: &Status) -> bool {
    let kind = |error: &(dyn std::error::Error + 'static)| error.downcast_ref().map(std::io::Error::kind);
    sources(status).any(|error| kind(error) == Some(std::io::ErrorKind::ConnectionRefused))
}

/// The innermost message, which is the one that says something.
pub(crate) fn reason(status: &Status) -> String {
    sources(status).last().map_or_else(|| status.message().to_owned(), ToString::to_string)
}
