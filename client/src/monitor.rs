//! What this client knows of a node's health, and how it finds out: probes, and the channel for them.
//!
//! It knows nothing of lanes. Those and unary calls tell it what they saw of the node.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::Mutex;
use peanut_proto::backoff::Backoff;
use peanut_proto::causes::causes;
use peanut_proto::v1::ErrorCode;
use tokio::runtime::{Handle, Id};
use tokio::sync::watch;
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
use crate::refusal::Refusal;

/// A node that is down is probed after a part of the first delay, doubling up to the longest.
const PROBE_FIRST: Duration = Duration::from_millis(100);
const PROBE_LONGEST: Duration = Duration::from_secs(2);
/// A task that is so late is on a runtime that stands still.
const OVERDUE: Duration = Duration::from_secs(1);
/// Runtimes whose channels are kept.
const MOST_CHANNELS: usize = 4;

/// A node as its health goes.
pub(crate) struct Monitor {
    id: String,
    addr: String,
    /// `Err`: why no connection can be made.
    connector: Result<Arc<Connector>, Arc<str>>,
    /// For probes, and for nodes that know no lanes: of each runtime that has used it lately, the latest
    /// last. A connection of its own: what fills a lane must not make its node look dead.
    channels: Mutex<Vec<(Id, Channel)>>,
    config: Config,
    health: Mutex<Health>,
    /// `health` for those who only look.
    down: AtomicBool,
    down_since: Mutex<Option<Instant>>,
    /// When gets last began or ceased to go to its successor; `None`: never.
    left_at: Mutex<Option<Instant>>,
    /// Nothing listened at its address when it was last connected to.
    refusing: AtomicBool,
    /// It holds no lease, although the registry can be read and most nodes hold one.
    unleased: AtomicBool,
    /// It has been looked whether hints are there for it, since it was last seen to hold a lease.
    looked_for_hints: AtomicBool,
    /// It is asked by nobody until it is known whether hints wait for it.
    awaits_look: AtomicBool,
    /// It knows no lanes, or the client is to use none.
    unary_only: AtomicBool,
    /// The probe that is under way.
    probe: Mutex<Option<watch::Receiver<Option<Probed>>>>,
    /// When somebody who probes it until it is back was last seen to; `None`: nobody does.
    probing: Mutex<Option<Instant>>,
}

/// What a probe found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Probed {
    Serving,
    /// It is there and wants no new calls; those in flight it will finish.
    NotServing,
    Silent,
}

impl Monitor {
    pub(crate) fn new(id: &str, addr: &str, config: &Config) -> Self {
        let connector = Connector::new(id, addr, config);
        let connector = connector.inspect_err(|why| tracing::warn!(id, addr, why, "a node out of reach"));
        Monitor {
            id: id.to_owned(),
            addr: addr.to_owned(),
            connector: connector.map(Arc::new).map_err(Arc::from),
            channels: Mutex::default(),
            config: config.clone(),
            health: Mutex::default(),
            down: AtomicBool::new(false),
            down_since: Mutex::new(None),
            left_at: Mutex::new(None),
            refusing: AtomicBool::new(false),
            unleased: AtomicBool::new(false),
            looked_for_hints: AtomicBool::new(false),
            awaits_look: AtomicBool::new(false),
            unary_only: AtomicBool::new(config.unary),
            probe: Mutex::new(None),
            probing: Mutex::new(None),
        }
    }

    pub(crate) fn id(&self) -> &str {
        &self.id
    }

    pub(crate) fn addr(&self) -> &str {
        &self.addr
    }

    /// How connections to it are made, where they can be.
    pub(crate) fn connector(&self) -> Option<&Arc<Connector>> {
        self.connector.as_ref().ok()
    }

    /// Whether it is asked by unary calls alone.
    pub(crate) fn is_unary_only(&self) -> bool {
        self.unary_only.load(Ordering::Relaxed)
    }

    /// It knows no lanes. When it is back after an outage that is tried again.
    pub(crate) fn set_unary_only(&self) {
        self.unary_only.store(true, Ordering::Relaxed);
    }

    /// Why it cannot be asked anything, where that is so.
    pub(crate) fn out_of_reach(&self) -> Arc<str> {
        let unreachable = || format!("`{}` cannot be reached", self.addr).into();
        self.connector.as_ref().err().cloned().unwrap_or_else(unreachable)
    }

    /// Whether the node is believed to be down. While it is, somebody probes it: where the runtime that did
    /// so has ended, or stands still, the caller's.
    pub(crate) fn is_down(self: &Arc<Self>) -> bool {
        let is_down = self.down.load(Ordering::Relaxed);
        if is_down {
            self.keep_probing();
        }
        is_down
    }

    fn keep_probing(self: &Arc<Self>) {
        let overdue = PROBE_LONGEST + self.config.probe_timeout() * 2 + OVERDUE;
        let mut probing = self.probing.lock();
        if probing.is_some_and(|at| at.elapsed() <= overdue) {
            return;
        }
        let Ok(runtime) = Handle::try_current() else { return };
        *probing = Some(Instant::now());
        drop(probing);
        let probing = Probing(Arc::downgrade(self));
        runtime.spawn(async move { probing.until_back().await });
    }

    /// Whether gets go to its successor, or did in that time.
    pub(crate) fn was_left_within(self: &Arc<Self>, time: Duration, now: Instant) -> bool {
        self.is_left() || self.left_at.lock().is_some_and(|at| now < at + time)
    }

    /// Whether gets have gone to its successor since then.
    pub(crate) fn left_since(&self, begun: Instant) -> bool {
        self.left_at.lock().is_some_and(|at| at >= begun)
    }

    /// Gets go to its successor, or do no more.
    pub(crate) fn left(&self, now: Instant) {
        *self.left_at.lock() = Some(now);
    }

    /// Whether gets go to its successor: it is down, or holds no lease, so that writers do not wait for it.
    pub(crate) fn is_left(self: &Arc<Self>) -> bool {
        self.is_down() || self.is_unleased()
    }

    /// Whether it holds no lease, so that it may not have been told of writes.
    pub(crate) fn is_unleased(&self) -> bool {
        self.unleased.load(Ordering::Relaxed)
    }

    /// Whether it has been looked for hints for it since it last held a lease.
    pub(crate) fn has_looked_for_hints(&self) -> bool {
        self.looked_for_hints.load(Ordering::Relaxed)
    }

    /// Records whether hints are stored for it; if so, gets skip it.
    pub(crate) fn looked_for_hints(&self, there_are: bool) {
        let was_held_back = self.awaits_look.swap(false, Ordering::Relaxed);
        if there_are || was_held_back {
            self.set_leased(!there_are);
        }
        self.looked_for_hints.store(true, Ordering::Relaxed);
    }

    /// It holds no lease, and that is believed.
    pub(crate) fn lost_lease(&self) {
        self.awaits_look.store(false, Ordering::Relaxed);
        self.set_leased(false);
    }

    /// It could not be looked for hints for it. Whether gets are held back from it until then.
    pub(crate) fn hold_back(&self, is_held_back: bool) {
        if self.awaits_look.swap(is_held_back, Ordering::Relaxed) != is_held_back {
            self.set_leased(!is_held_back);
        }
    }

    /// Whether it is still to be looked for hints for it, where it is not believed that it holds no lease.
    pub(crate) fn is_to_be_looked_for(&self) -> bool {
        !self.has_looked_for_hints() && (!self.is_unleased() || self.awaits_look.load(Ordering::Relaxed))
    }

    /// Says whether it holds a lease, as the registry has it.
    pub(crate) fn set_leased(&self, is_leased: bool) {
        if is_leased {
            self.looked_for_hints.store(false, Ordering::Relaxed);
            self.awaits_look.store(false, Ordering::Relaxed);
        }
        if self.unleased.swap(!is_leased, Ordering::Relaxed) == is_leased {
            self.left(Instant::now());
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

    pub(crate) fn config(&self) -> &Config {
        &self.config
    }

    /// The channel for unary calls and probes: one for each runtime, since a connection ends with the runtime
    /// it is on. `None` where the node is out of reach, or outside a runtime.
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

    /// What the node itself says has failed.
    pub(crate) fn said(&self, code: ErrorCode, message: &str, deadline: Instant) -> Refusal {
        let error = Error::at(code.into(), &self.id, message);
        match error.kind() {
            _ if code == ErrorCode::NoLoader => Refusal::OwnerOnly(error),
            ErrorKind::UnknownGroup => Refusal::NoGroup(error),
            ErrorKind::Unavailable => Refusal::Elsewhere(error),
            // Somebody else's deadline, with whom this get shared an operation: this node has its load still.
            ErrorKind::DeadlineExceeded if Instant::now() < deadline => Refusal::Again(error),
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
            self.left(now);
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
                // It goes on even if all who wait for it leave; the place is freed also where its runtime
                // ends.
                let (node, free) = (self.clone(), FreeProbe(self.clone(), probed.clone()));
                tokio::spawn(async move {
                    let found = node.probe_once().await;
                    drop(free);
                    sender.send_replace(Some(found));
                });
            }
            let within = self.config.probe_timeout() + OVERDUE;
            match timeout(within, probed.wait_for(Option::is_some)).await.map(|ended| ended.map(|it| *it)) {
                Ok(Ok(probed)) => return probed.unwrap_or(Probed::Silent),
                // The runtime that it was on has ended.
                Ok(Err(_)) => tokio::task::yield_now().await,
                // Or it stands still.
                Err(_) => self.free_probe(&probed),
            }
        }
    }

    /// Frees the place of this probe, unless another has it by now.
    fn free_probe(&self, probed: &watch::Receiver<Option<Probed>>) {
        self.probe.lock().take_if(|running| running.same_channel(probed));
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
struct FreeProbe(Arc<Monitor>, watch::Receiver<Option<Probed>>);

impl Drop for FreeProbe {
    fn drop(&mut self) {
        self.0.free_probe(&self.1);
    }
}

impl fmt::Debug for Monitor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Monitor").field("id", &self.id).field("addr", &self.addr).finish_non_exhaustive()
    }
}

/// Probes a node until it is back, or nobody holds its handle any more. Where the runtime ends first, the
/// next who looks at the node begins anew.
struct Probing(Weak<Monitor>);

impl Probing {
    async fn until_back(&self) {
        let mut backoff = Backoff::new(PROBE_FIRST, PROBE_LONGEST);
        loop {
            sleep(backoff.next_delay(fastrand::f64())).await;
            let Some(node) = self.0.upgrade() else { return };
            *node.probing.lock() = Some(Instant::now());
            if !node.down.load(Ordering::Relaxed) || node.check().await == Probed::Serving {
                return;
            }
        }
    }
}

impl Drop for Probing {
    fn drop(&mut self) {
        if let Some(node) = self.0.upgrade() {
            *node.probing.lock() = None;
        }
    }
}

fn never_connected(status: &Status) -> bool {
    causes(status).any(|error| error.is::<tonic::ConnectError>())
}

/// Whether the machine is there, and nothing listens.
fn was_refused(status: &Status) -> bool {
    let kind = |error: &(dyn std::error::Error + 'static)| error.downcast_ref().map(std::io::Error::kind);
    causes(status).any(|error| kind(error) == Some(std::io::ErrorKind::ConnectionRefused))
}

/// The innermost message, which is the one that says something.
pub(crate) fn reason(status: &Status) -> String {
    causes(status).last().map_or_else(|| status.message().to_owned(), ToString::to_string)
}
