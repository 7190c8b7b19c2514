//! The gRPC services, as thin translations between messages and [`Cache`](crate::cache::Cache).

mod admin;
pub(crate) mod fence;
mod lane;
mod original;
mod unary;

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use fence::Fences;
use lane::ByteCount;
use peanut_proto::discovery::Discovered;
use peanut_proto::v1::ErrorCode;
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Status};

use crate::cache::Cache;
use crate::connections::{ConnectionLimits, Door, Peer};
use crate::error::Failure;
use crate::metrics::NodeMetrics;
use crate::rights::{Rights, Tokens};
use crate::wake::Wake;

/// What all services share: the groups of the node, and the newest ring version it has heard of.
#[derive(Clone, Debug)]
pub(crate) struct Node {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    caches: HashMap<String, Arc<Cache>>,
    ring_version: AtomicU64,
    /// Bytes of values that wait to be sent, over all lanes.
    long_bytes: ByteCount,
    fences: Fences,
    wake: Wake,
    stopping: CancellationToken,
    tokens: Tokens,
    metrics: NodeMetrics,
    door: Arc<Door>,
    began: Instant,
    is_leaving: AtomicBool,
    /// What is told of it once it runs.
    running: OnceLock<Running>,
}

/// What a node that runs knows of itself, and of its fleet where it is in one. For those who look into it only: what it
/// answers does not depend on it.
#[derive(Debug)]
pub(crate) struct Running {
    pub(crate) id: String,
    pub(crate) fleet: String,
    pub(crate) discovered: Option<watch::Receiver<Discovered>>,
    pub(crate) joined: watch::Receiver<bool>,
}

impl Node {
    pub(crate) fn new(
        caches: impl IntoIterator<Item = Cache>,
        tokens: Tokens,
        connections: ConnectionLimits,
    ) -> Self {
        let caches = caches.into_iter().map(|cache| (cache.name().to_owned(), Arc::new(cache))).collect();
        let shared = Shared {
            caches,
            ring_version: AtomicU64::new(0),
            long_bytes: ByteCount::default(),
            fences: Fences::default(),
            wake: Wake::new(),
            stopping: CancellationToken::new(),
            tokens,
            metrics: NodeMetrics::default(),
            door: Door::new(connections),
            began: Instant::now(),
            is_leaving: AtomicBool::new(false),
            running: OnceLock::new(),
        };
        Node { shared: Arc::new(shared) }
    }

    /// One without groups.
    #[cfg(test)]
    pub(crate) fn empty() -> Self {
        let limits = ConnectionLimits { total: 1, per_peer: 1, handshake: Duration::from_secs(1) };
        Node::new([], Tokens::default(), limits)
    }

    /// The group of that name.
    pub(crate) fn cache(&self, group: &str) -> Result<&Arc<Cache>, Failure> {
        let unknown = || Failure::new(ErrorCode::UnknownGroup, format!("this node has no group `{group}`"));
        self.shared.caches.get(group).ok_or_else(unknown)
    }

    /// Cancelled when the node stops serving: lanes say goodbye.
    pub(crate) fn stopping(&self) -> &CancellationToken {
        &self.shared.stopping
    }

    /// Says where loads run; else they do where they are asked for.
    pub(crate) fn run_loads_on(&self, runtime: &Handle) {
        self.caches().for_each(|cache| cache.run_loads_on(runtime));
    }

    /// Says what is to be told of it from now on.
    pub(crate) fn begin_to_run(&self, running: Running) {
        let _ = self.shared.running.set(running);
    }

    pub(crate) fn running(&self) -> Option<&Running> {
        self.shared.running.get()
    }

    /// Whether clients should be sent here: it serves, and is in the ring of its fleet.
    pub(crate) fn is_ready(&self) -> bool {
        !self.shared.is_leaving.load(Ordering::Relaxed)
            && self.running().is_some_and(|running| running.discovered.is_none() || *running.joined.borrow())
    }

    /// From now on nobody new is to be sent here.
    pub(crate) fn leave(&self) {
        self.shared.is_leaving.store(true, Ordering::Relaxed);
    }

    pub(crate) fn metrics(&self) -> &NodeMetrics {
        &self.shared.metrics
    }

    /// What bounds its connections.
    pub(crate) fn door(&self) -> &Arc<Door> {
        &self.shared.door
    }

    #[cfg(feature = "admin")]
    pub(crate) fn tokens(&self) -> &Tokens {
        &self.shared.tokens
    }

    pub(crate) fn uptime(&self) -> Duration {
        self.shared.began.elapsed()
    }

    /// Lets a call in before anything of it is read but its headers, and says what it may do.
    pub(crate) fn admit(&self, mut request: Request<()>) -> Result<Request<()>, Status> {
        let peer = request.extensions().get::<Peer>().copied();
        let rights = self.shared.tokens.rights(request.metadata(), peer).map_err(|why| self.refuse(why))?;
        request.extensions_mut().insert(rights);
        Ok(request)
    }

    /// Counts what a call is answered, in the words of gRPC.
    fn refuse(&self, failure: Failure) -> Status {
        self.metrics().failed(failure.code);
        peanut_proto::failure::to_status(failure.code, &*failure.message)
    }

    /// What a call that was let in may do.
    fn rights<T>(&self, request: &Request<T>) -> Result<Arc<Rights>, Failure> {
        let bug = || Failure::new(ErrorCode::InternalError, "a call that nobody let in");
        request.extensions().get::<Arc<Rights>>().cloned().ok_or_else(bug)
    }

    /// What shuts out late writes.
    pub(crate) fn fences(&self) -> &Fences {
        &self.shared.fences
    }

    /// What notices that the process has slept.
    pub(crate) fn wake(&self) -> &Wake {
        &self.shared.wake
    }

    fn long_bytes(&self) -> &ByteCount {
        &self.shared.long_bytes
    }

    pub(crate) fn caches(&self) -> impl Iterator<Item = &Arc<Cache>> {
        self.shared.caches.values()
    }

    /// A ring version of a caller's, no newer than what the node knows where the caller is not one to tell it news.
    pub(crate) fn believed(&self, version: u64, rights: &Rights) -> u64 {
        if rights.writes() { version } else { version.min(self.hear_of_ring(0)) }
    }

    /// Hears of a ring version and tells the newest one heard of. The node knows no more of the ring.
    pub(crate) fn hear_of_ring(&self, version: u64) -> u64 {
        self.shared.ring_version.fetch_max(version, Ordering::Relaxed).max(version)
    }
}

fn whole_ms(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
