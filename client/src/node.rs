//! A handle to one node: its channels, and its health as this client sees it.
//!
//! Handles outlive ring swaps: the same node keeps its handle, with its connections, from ring to ring.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::{BoxFuture, Shared};
use parking_lot::Mutex;
use peanut_proto::backoff::Backoff;
use peanut_proto::failure;
use peanut_proto::limits::MAX_MESSAGE_BYTES;
use peanut_proto::v1::peanut_client::PeanutClient;
use peanut_proto::v1::{GetRequest, GetResponse};
use tokio::time::{Instant, sleep, timeout};
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

use crate::config::Config;
use crate::error::{Error, ErrorKind};
use crate::health::{Change, Health, Signal};

/// HTTP/2 pings on a connection that hears nothing, so that one which died silently is noticed.
const KEEPALIVE_EVERY: Duration = Duration::from_secs(10);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(5);
/// By how much the deadline that a server is told lies after the caller's own.
const DEADLINE_SLACK: Duration = Duration::from_millis(100);
/// A node that is down is probed after a part of the first delay, doubling up to the longest.
const PROBE_FIRST: Duration = Duration::from_millis(100);
const PROBE_LONGEST: Duration = Duration::from_secs(2);

/// A node of the fleet.
pub(crate) struct Node {
    id: String,
    addr: String,
    channels: Box<[Pooled]>,
    health: Mutex<Health>,
    /// `health` for those who only look.
    down: AtomicBool,
    probe: Mutex<Option<Shared<BoxFuture<'static, bool>>>>,
    probe_timeout: Duration,
}

struct Pooled {
    channel: Channel,
    in_flight: AtomicUsize,
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
    /// is none makes a node that is never reached: it must not keep anyone from the others.
    pub(crate) fn new(id: &str, addr: &str, config: &Config) -> Self {
        let channels = match Endpoint::from_shared(format!("http://{addr}")) {
            Ok(endpoint) => {
                let endpoint = endpoint
                    .connect_timeout(config.connect_timeout)
                    .tcp_nodelay(true)
                    .http2_keep_alive_interval(KEEPALIVE_EVERY)
                    .keep_alive_timeout(KEEPALIVE_TIMEOUT)
                    .keep_alive_while_idle(true);
                let pooled = || Pooled { channel: endpoint.connect_lazy(), in_flight: AtomicUsize::new(0) };
                std::iter::repeat_with(pooled).take(config.channels_per_node.max(1)).collect()
            }
            Err(error) => {
                tracing::warn!(id, addr, %error, "a node with an address that is none");
                Box::default()
            }
        };
        Node {
            id: id.to_owned(),
            addr: addr.to_owned(),
            channels,
            health: Mutex::default(),
            down: AtomicBool::new(false),
            probe: Mutex::new(None),
            probe_timeout: config.probe_timeout(),
        }
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

    /// Asks the node for one key. The caller stops waiting at `deadline`.
    pub(crate) async fn get(
        self: &Arc<Self>,
        request: GetRequest,
        deadline: Instant,
    ) -> Result<GetResponse, Refusal> {
        let Some(pooled) = self.choose_channel() else {
            let why = format!("`{}` is not an address", self.addr);
            return Err(Refusal::Elsewhere(Error::at(ErrorKind::Unavailable, &self.id, why)));
        };
        let _counted = Counted::new(&pooled.in_flight);
        let mut client =
            PeanutClient::new(pooled.channel.clone()).max_decoding_message_size(MAX_MESSAGE_BYTES);
        let mut request = Request::new(request);
        // The server need not go on for long after this side has stopped waiting.
        request.set_timeout(deadline.saturating_duration_since(Instant::now()) + DEADLINE_SLACK);
        match client.get(request).await {
            Ok(response) => {
                self.saw(Signal::Answered);
                Ok(response.into_inner())
            }
            Err(status) => Err(self.refused(status, deadline)),
        }
    }

    /// Takes in what was seen of the node. One that goes down is probed until it is back.
    pub(crate) fn saw(self: &Arc<Self>, signal: Signal) {
        let change = self.health.lock().on(signal);
        match change {
            None => {}
            Some(Change::CameUp) => {
                self.down.store(false, Ordering::Relaxed);
                tracing::info!(node = self.id, "node is back");
            }
            Some(Change::WentDown) => {
                self.down.store(true, Ordering::Relaxed);
                tracing::warn!(node = self.id, "node is down; its successor is asked meanwhile");
                tokio::spawn(probe_until_back(Arc::downgrade(self)));
            }
        }
    }

    /// Asks the node whether it serves, and takes in the answer. Those who ask at the same time share one
    /// probe.
    pub(crate) async fn probe(self: &Arc<Self>) -> bool {
        let probe = {
            let mut slot = self.probe.lock();
            match &*slot {
                Some(running) => running.clone(),
                None => {
                    let node = self.clone();
                    let probe = async move {
                        let serves = node.probe_once().await;
                        node.probe.lock().take();
                        node.saw(if serves { Signal::ProbePassed } else { Signal::ProbeFailed });
                        serves
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

    async fn probe_once(&self) -> bool {
        let Some(first) = self.channels.first() else { return false };
        let mut health = HealthClient::new(first.channel.clone());
        let check = health.check(HealthCheckRequest { service: String::new() });
        match timeout(self.probe_timeout, check).await {
            Ok(Ok(answer)) => answer.into_inner().status() == ServingStatus::Serving,
            Ok(Err(_)) | Err(_) => false,
        }
    }

    /// The less busy of two channels picked at random (Mitzenmacher, "The Power of Two Choices").
    fn choose_channel(&self) -> Option<&Pooled> {
        let (first, second) = (fastrand::choice(&self.channels)?, fastrand::choice(&self.channels)?);
        let busier = first.in_flight.load(Ordering::Relaxed) > second.in_flight.load(Ordering::Relaxed);
        Some(if busier { second } else { first })
    }

    /// Tells the node's own refusals from the transport's failures.
    fn refused(self: &Arc<Self>, status: Status, deadline: Instant) -> Refusal {
        if let Some(code) = failure::from_status(&status) {
            self.saw(Signal::Answered);
            let error = Error::at(code.into(), &self.id, status.message());
            let moves = error.kind() == ErrorKind::Unavailable;
            return if moves { Refusal::Elsewhere(error) } else { Refusal::Final(error) };
        }
        let message = reason(&status);
        let error = |kind, status| Error::caused_by(kind, Some(&self.id), message, Box::new(status));
        match status.code() {
            // Codes that only a live server, or this side's own codec, comes to.
            Code::OutOfRange | Code::ResourceExhausted => Refusal::Final(error(ErrorKind::TooLarge, status)),
            Code::Unimplemented
            | Code::InvalidArgument
            | Code::NotFound
            | Code::PermissionDenied
            | Code::Unauthenticated => Refusal::Final(error(ErrorKind::Protocol, status)),
            Code::DeadlineExceeded => Refusal::Final(error(ErrorKind::DeadlineExceeded, status)),
            // Whatever it looks like, a call that ends after its deadline was ended by it.
            _ if Instant::now() >= deadline => Refusal::Final(error(ErrorKind::DeadlineExceeded, status)),
            // A transport that is gone arrives as any of the others.
            _ => {
                self.saw(if never_connected(&status) { Signal::NotConnected } else { Signal::Failed });
                Refusal::Elsewhere(error(ErrorKind::Unavailable, status))
            }
        }
    }
}

impl fmt::Debug for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Node").field("id", &self.id).field("addr", &self.addr).finish_non_exhaustive()
    }
}

/// Counts an operation for as long as it lives.
struct Counted<'a>(&'a AtomicUsize);

impl<'a> Counted<'a> {
    fn new(count: &'a AtomicUsize) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Counted(count)
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Ends when the node is back, or nobody holds its handle any more.
async fn probe_until_back(node: std::sync::Weak<Node>) {
    let mut backoff = Backoff::new(PROBE_FIRST, PROBE_LONGEST);
    loop {
        sleep(backoff.next_delay(fastrand::f64())).await;
        let Some(node) = node.upgrade() else { return };
        if !node.is_down() || node.probe().await {
            return;
        }
    }
}

fn sources<'a>(status: &'a Status) -> impl Iterator<Item = &'a (dyn std::error::Error + 'static)> {
    std::iter::successors(std::error::Error::source(status), |error| error.source())
}

fn never_connected(status: &Status) -> bool {
    sources(status).any(|error| error.is::<tonic::ConnectError>())
}

/// The innermost message, which is the one that says something.
fn reason(status: &Status) -> String {
    sources(status).last().map_or_else(|| status.message().to_owned(), ToString::to_string)
}
