//! What a node is, whatever asks it: its groups, who may do what in them, and what all of that is held to.
//!
//! The services, the admin port and registration stand on it.

mod ring;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use peanut_proto::discovery::{Discovered, Reloader};
use peanut_proto::limits::CALL_TO_KEY;
use peanut_proto::numbers::{Generation, RingVersion};
use peanut_proto::v1::ErrorCode;
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Status};

use crate::budget::{Account, Budgets};
use crate::cache::{Cache, Within};
use crate::connections::{ConnectionLimiter, ConnectionLimits, Peer};
use crate::group::Group;
use crate::journal::Journal;
use crate::metrics::NodeMetrics;
use crate::near::NearLeases;
use crate::rights::{Caller, Rights, Tokens};
use crate::store::Suspended;
use crate::wake::Wake;
use peanut_edge::Failure;
pub(crate) use ring::KnownRing;

/// A node: its groups, its rights, its bounds, and the ring version that it knows. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Node {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    caches: BTreeMap<String, Arc<Cache>>,
    ring: KnownRing,
    budgets: Budgets,
    wake: Wake,
    near: Arc<NearLeases>,
    stopping: CancellationToken,
    tokens: Tokens,
    metrics: NodeMetrics,
    limiter: Arc<ConnectionLimiter>,
    began: Instant,
    is_leaving: AtomicBool,
    membership: Membership,
}

/// Who a node is, and what it knows of its fleet where it is in one.
#[derive(Debug)]
pub(crate) struct Membership {
    pub(crate) id: String,
    pub(crate) fleet: String,
    pub(crate) discovered: Option<watch::Receiver<Discovered>>,
    pub(crate) reloader: Option<Reloader>,
    pub(crate) joined: watch::Receiver<bool>,
}

/// What a node is made of.
#[derive(Debug)]
pub(crate) struct NodeParts {
    /// Each with its journal, where it has one.
    pub(crate) groups: Vec<(Group, Option<Arc<Journal>>)>,
    pub(crate) tokens: Tokens,
    pub(crate) connections: ConnectionLimits,
    pub(crate) budgets: Budgets,
    pub(crate) membership: Membership,
    /// Where loads run; `None`: where they are begun.
    pub(crate) runtime: Option<Handle>,
}

impl Node {
    pub(crate) fn new(parts: NodeParts) -> Self {
        let NodeParts { groups, tokens, connections, budgets, membership, runtime } = parts;
        let (near, suspended) = (Arc::new(NearLeases::new()), Suspended::default());
        let wake = Wake::new(suspended.clone());
        let within = Within { loading: budgets.loading.clone(), near, suspended, runtime };
        let caches = groups.into_iter().map(|(group, journal)| {
            let cache = Cache::new(group, &within, journal);
            (cache.name().to_owned(), Arc::new(cache))
        });
        let shared = Shared {
            caches: caches.collect(),
            ring: KnownRing::new(membership.reloader.clone()),
            budgets,
            wake,
            near: within.near.clone(),
            stopping: CancellationToken::new(),
            tokens,
            metrics: NodeMetrics::default(),
            limiter: ConnectionLimiter::new(connections),
            began: Instant::now(),
            is_leaving: AtomicBool::new(false),
            membership,
        };
        Node { shared: Arc::new(shared) }
    }

    /// One with these groups and without a registry.
    #[cfg(any(test, feature = "fuzzing"))]
    pub(crate) fn alone(groups: impl IntoIterator<Item = Group>) -> Self {
        let membership = Membership {
            id: String::new(),
            fleet: String::new(),
            discovered: None,
            reloader: None,
            joined: watch::Sender::new(false).subscribe(),
        };
        Node::new(NodeParts {
            groups: groups.into_iter().map(|group| (group, None)).collect(),
            tokens: Tokens::default(),
            connections: ConnectionLimits::default(),
            budgets: Budgets::new(),
            membership,
            runtime: None,
        })
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

    pub(crate) fn membership(&self) -> &Membership {
        &self.shared.membership
    }

    /// Whether clients should be sent here: it serves, and is in the ring of its fleet.
    pub(crate) fn is_ready(&self) -> bool {
        let Membership { discovered, joined, .. } = self.membership();
        !self.shared.is_leaving.load(Ordering::Relaxed) && (discovered.is_none() || *joined.borrow())
    }

    /// From now on nobody new is to be sent here.
    pub(crate) fn leave(&self) {
        self.shared.is_leaving.store(true, Ordering::Relaxed);
    }

    pub(crate) fn metrics(&self) -> &NodeMetrics {
        &self.shared.metrics
    }

    /// What bounds its connections.
    pub(crate) fn limiter(&self) -> &Arc<ConnectionLimiter> {
        &self.shared.limiter
    }

    pub(crate) fn tokens(&self) -> &Tokens {
        &self.shared.tokens
    }

    pub(crate) fn uptime(&self) -> Duration {
        self.shared.began.elapsed()
    }

    /// Lets a call in before anything of it is read but its headers, and says what it may do.
    pub(crate) fn admit(&self, mut request: Request<()>) -> Result<Request<()>, Status> {
        let peer = request.extensions().get::<Peer>().cloned();
        let caller = self.tokens().admit(request.metadata(), peer.clone()).map_err(|why| self.refuse(why))?;
        let token = caller.rights().token();
        let account = match &peer {
            Some(peer) => peer.accounts.of(token),
            None => self.shared.budgets.account(token),
        };
        peer.inspect(|peer| peer.presence().admitted());
        request.extensions_mut().insert(account);
        request.extensions_mut().insert(caller);
        self.check_address(request)
    }

    /// Refuses a call that was meant for another node: addresses are used again.
    pub(crate) fn check_address(&self, request: Request<()>) -> Result<Request<()>, Status> {
        let Some(to) = request.metadata().get_bin(CALL_TO_KEY) else { return Ok(request) };
        let to = to.to_bytes().unwrap_or_default();
        let Membership { id, fleet, .. } = self.membership();
        if *to == *format!("{fleet}/{id}").as_bytes() {
            return Ok(request);
        }
        let why = format!("this is node `{id}` of fleet `{fleet}`, not `{}`", String::from_utf8_lossy(&to));
        Err(self.refuse(Failure::new(ErrorCode::WrongNode, why)))
    }

    /// What a call that was let in counts for: its connection, and the token that it came with.
    pub(crate) fn account<T>(&self, request: &Request<T>) -> Result<Arc<Account>, Failure> {
        request.extensions().get::<Arc<Account>>().cloned().ok_or_else(not_let_in)
    }

    /// Counts what a call is answered, in the words of gRPC.
    pub(crate) fn refuse(&self, failure: Failure) -> Status {
        self.metrics().failed(failure.code);
        peanut_proto::failure::to_status(failure.code, &*failure.message)
    }

    /// Who makes a call that was let in.
    pub(crate) fn caller<'a, T>(&self, request: &'a Request<T>) -> Result<&'a Caller, Failure> {
        request.extensions().get::<Caller>().ok_or_else(not_let_in)
    }

    /// What a call that was let in may do.
    pub(crate) fn rights<T>(&self, request: &Request<T>) -> Result<Arc<Rights>, Failure> {
        self.caller(request).map(|caller| caller.rights().clone())
    }

    /// What notices that the process has slept.
    pub(crate) fn wake(&self) -> &Wake {
        &self.shared.wake
    }

    /// It holds no lease in the registry: it answers nothing, and gives no near leases, until it does.
    pub(crate) fn lease_lost(&self) {
        self.near().give_until(Duration::ZERO);
        self.wake().lease_lost();
    }

    /// As [`lease_lost`](Self::lease_lost), where the registry seems to have lost it.
    pub(crate) fn lease_doubted(&self) {
        self.near().give_until(Duration::ZERO);
        self.wake().lease_doubted();
    }

    /// Near leases of its lanes.
    pub(crate) fn near(&self) -> &NearLeases {
        &self.shared.near
    }

    pub(crate) fn caches(&self) -> impl Iterator<Item = &Arc<Cache>> {
        self.shared.caches.values()
    }

    /// The ring version that the node knows.
    pub(crate) fn ring(&self) -> &KnownRing {
        &self.shared.ring
    }

    /// Takes in the ring version that the registry has.
    pub(crate) fn learn_of_ring(&self, version: RingVersion) {
        if self.shared.ring.learn(version) {
            self.caches().for_each(|cache| drop(cache.clear(Generation::NONE, RingVersion::NONE, None)));
        }
    }
}

/// What only a bug can be.
fn not_let_in() -> Failure {
    Failure::new(ErrorCode::InternalError, "a call that nobody let in")
}

/// Why an operation by a ring that the registry does not have is not done.
pub(crate) fn ring_unknown(claimed: RingVersion) -> Failure {
    let why = format!("the registry of this node has no ring {claimed}");
    Failure::new(ErrorCode::RingUnknown, why)
}
