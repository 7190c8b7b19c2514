//! The client: what an application holds.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use peanut_proto::discovery::{Discovered, Discovery};
use peanut_proto::membership::{FleetView, Keys, Notice};
use peanut_proto::registry::Registry;
use peanut_proto::v1::Outcome;
use tokio::sync::{Semaphore, watch};
use tokio::time::{Instant, sleep, timeout_at};
use tokio_util::task::AbortOnDropHandle;

use crate::builder::ClientBuilder;
use crate::claims::{Heard, Told};
use crate::config::Config;
use crate::discovery;
use crate::error::{Error, ErrorKind};
use crate::failover::{Answered, RetryBudget, Wanted};
use crate::group::Group;
use crate::lane::Reply;
use crate::membership;
use crate::node::Node;
use crate::recent::{self, RecentWrites};
use crate::ring::Ring;
use crate::routing::{CurrentRouting, Route, Routing};
use crate::stats::{Counters, Stats};

/// A client of one fleet. Cheap to clone; all clones share their connections.
///
/// ```no_run
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), peanut_client::Error> {
/// use peanut_client::Client;
///
/// let client = Client::builder().etcd(["http://127.0.0.1:2379"]).build().await?;
/// let scores = client.group("scores");
/// match scores.get("Tom").await? {
///     Some(score) => println!("{}", String::from_utf8_lossy(&score)),
///     None => println!("not found"),
/// }
/// # Ok(()) }
/// ```
#[derive(Clone, Debug)]
pub struct Client {
    shared: Arc<Shared>,
}

#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) config: Config,
    pub(crate) routing: Arc<CurrentRouting>,
    pub(crate) budget: RetryBudget,
    pub(crate) counters: Counters,
    pub(crate) recent: RecentWrites,
    /// Loads of the application's where no node can be asked.
    pub(crate) uncached: Semaphore,
    /// Where hints can be stored for nodes; `None` where the fleet is a fixed list.
    pub(crate) registry: Option<Arc<dyn Registry>>,
    pub(crate) keys: Keys,
    #[cfg(feature = "metrics")]
    fleet: String,
    groups: Mutex<HashMap<String, u32>>,
    discovery: Discovery,
    discovered: watch::Receiver<Discovered>,
    /// Makes each ring a routing table.
    follower: Mutex<Option<AbortOnDropHandle<()>>>,
    /// The runtime that the client's tasks were on has ended.
    is_stranded: Arc<AtomicBool>,
}

/// Says so when it is dropped.
struct Stranded(Arc<AtomicBool>);

impl Drop for Stranded {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Release);
    }
}

/// What a client knows of a node.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct NodeStatus {
    /// The node's id.
    pub id: String,
    /// Where it is reached, `host:port`.
    pub addr: String,
    /// Its failure domain; empty where it has none.
    pub zone: String,
    /// Its weight.
    pub weight: u32,
    /// The part of all keys that it owns, 0 to 1.
    pub share: f64,
    /// Whether it holds a lease in the registry.
    pub alive: bool,
    /// Whether this client can use it, as far as it has tried.
    pub up: bool,
}

impl Client {
    /// Describes a client.
    pub fn builder() -> ClientBuilder {
        ClientBuilder::default()
    }

    pub(crate) fn from_shared(shared: Shared) -> Self {
        let shared = Arc::new(shared);
        shared.begin_background();
        Client { shared }
    }

    /// The group of that name. Nothing is sent; whether nodes serve it shows with the first get.
    pub fn group(&self, name: &str) -> Group {
        Group::new(self.shared.clone(), name)
    }

    /// The ring as it is now.
    pub fn ring(&self) -> Arc<Ring> {
        self.shared.routing.get().ring.clone()
    }

    /// The nodes of the ring as they are now, in order of id.
    pub fn nodes(&self) -> Vec<NodeStatus> {
        let routing = self.shared.routing.get();
        let view = self.shared.discovered.borrow().view.clone();
        let shares = routing.ring.shares();
        let nodes = routing.ring.members().iter().zip(routing.nodes()).zip(shares);
        nodes
            .map(|((member, node), share)| NodeStatus {
                id: member.id.clone(),
                addr: member.addr.clone(),
                zone: member.zone.clone(),
                weight: member.weight,
                share,
                alive: view.live.contains_key(&member.id),
                up: !node.is_down(),
            })
            .collect()
    }

    /// What an operator should know of the fleet as it is now: groups that only some nodes have, members with one address.
    pub fn notices(&self) -> Vec<Notice> {
        self.shared.discovered.borrow().view.notices()
    }

    pub(crate) fn routing(&self) -> Arc<Routing> {
        self.shared.routing.get()
    }

    pub(crate) fn config(&self) -> &Config {
        &self.shared.config
    }

    /// Asks every node whether it serves, and waits until each has answered or had its time. Afterwards
    /// [`nodes`](Self::nodes) tells what was seen.
    pub async fn probe(&self) {
        let routing = self.shared.routing.get();
        futures_util::future::join_all(routing.nodes().iter().map(|node| node.check())).await;
    }

    /// Waits until the ring has at least this version.
    ///
    /// # Errors
    /// Never while the client lives; bound the time yourself.
    pub async fn wait_for_ring(&self, version: u64) -> Result<(), Error> {
        self.shared.wait_for_ring(version).await
    }

    /// Takes a node out of the ring while it runs. Its keys have other owners from then on, which fill themselves from it for the
    /// time of [`hand_over`](crate::ClientBuilder::hand_over); after that it can be stopped. When it is started again it
    /// joins again.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidArgument`] where the ring has no such node, or it is not alive;
    /// [`ErrorKind::Unavailable`] where there is no registry, or it cannot be reached.
    pub async fn drain(&self, node: &str) -> Result<(), Error> {
        if !self.shared.is_alive(node) {
            let why = format!("node `{node}` is not alive; remove it");
            return Err(Error::new(ErrorKind::InvalidArgument, why));
        }
        membership::take_out(&self.shared, node).await
    }

    /// Takes a node that is gone for good out of the ring, at once rather than when the others forget it.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidArgument`] where the ring has no such node, or it is alive; else as
    /// [`drain`](Self::drain).
    pub async fn remove(&self, node: &str) -> Result<(), Error> {
        if self.shared.is_alive(node) {
            let why = format!("node `{node}` is alive; drain it");
            return Err(Error::new(ErrorKind::InvalidArgument, why));
        }
        membership::take_out(&self.shared, node).await
    }

    /// What this client's gets came to so far.
    pub fn stats(&self) -> Stats {
        self.shared.counters.read()
    }
}

impl Shared {
    pub(crate) fn new(
        config: Config,
        routing: Arc<CurrentRouting>,
        fleet: &str,
        (registry, keys): (Option<Arc<dyn Registry>>, Keys),
        discovery: Discovery,
    ) -> Self {
        #[cfg(not(feature = "metrics"))]
        let _ = fleet;
        Shared {
            #[cfg(feature = "metrics")]
            fleet: fleet.to_owned(),
            routing,
            budget: RetryBudget::new(),
            counters: Counters::default(),
            recent: RecentWrites::new(config.windows.recent_writes),
            uncached: Semaphore::new(config.uncached_loads),
            config,
            registry,
            keys,
            groups: Mutex::default(),
            discovered: discovery.subscribe(),
            discovery,
            follower: Mutex::new(None),
            is_stranded: Arc::default(),
        }
    }

    /// Begins what goes on beside the calls, on the caller's runtime: the ring is followed, and recent writes are repeated. It ends
    /// with the client.
    fn begin_background(self: &Arc<Self>) {
        let stranded = Stranded(self.is_stranded.clone());
        let follow = discovery::follow(self.discovered.clone(), self.routing.clone(), self.config.clone());
        let follower = tokio::spawn(async move {
            let _stranded = stranded;
            follow.await;
        });
        *self.follower.lock() = Some(AbortOnDropHandle::new(follower));
        let follow = recent::follow(Arc::downgrade(self), self.discovered.clone(), self.routing.subscribe());
        tokio::spawn(follow);
        #[cfg(feature = "metrics")]
        tokio::spawn(crate::metrics::publish(Arc::downgrade(self), self.fleet.clone()));
    }

    /// Begins it anew where the runtime that it was on has ended: a client may outlive runtimes.
    pub(crate) fn keep_background(self: &Arc<Self>) {
        if self.is_stranded.load(Ordering::Relaxed) && self.is_stranded.swap(false, Ordering::AcqRel) {
            self.discovery.go_on();
            self.begin_background();
        }
    }

    /// The number of a group in this client, the same each time.
    pub(crate) fn group_number(&self, name: &str) -> u32 {
        let mut groups = self.groups.lock();
        let next = u32::try_from(groups.len()).unwrap_or(u32::MAX);
        *groups.entry(name.to_owned()).or_insert(next)
    }

    /// The routing table, when the fleet has been found.
    pub(crate) async fn wait_for_nodes(&self, deadline: Instant) -> Result<Arc<Routing>, Error> {
        let mut ring = self.routing.subscribe();
        loop {
            let routing = self.routing.get();
            if !routing.nodes().is_empty() {
                return Ok(routing);
            }
            if !matches!(timeout_at(deadline, ring.changed()).await, Ok(Ok(()))) {
                let discovered = self.discovered.borrow();
                return Err(match &discovered.trouble {
                    Some(trouble) => {
                        let why = "the fleet has not been found yet";
                        Error::caused_by(ErrorKind::Unavailable, None, why, trouble.clone())
                    }
                    None => Error::new(ErrorKind::Unavailable, "the fleet has no nodes yet"),
                });
            }
        }
    }

    /// The routing table, once it has nodes.
    pub(crate) async fn routing_with_nodes(&self, deadline: Instant) -> Result<Arc<Routing>, Error> {
        let routing = self.routing.get();
        if routing.nodes().is_empty() { Box::pin(self.wait_for_nodes(deadline)).await } else { Ok(routing) }
    }

    /// Waits until the ring has at least this version.
    pub(crate) async fn wait_for_ring(&self, version: u64) -> Result<(), Error> {
        let mut discovered = self.discovered.clone();
        loop {
            if self.routing.get().ring.version() >= version {
                return Ok(());
            }
            // The routing table follows discovery within a moment.
            tokio::select! {
                biased;
                changed = discovered.changed() => changed.map_err(|e| Error::caused_by(
                    ErrorKind::Unavailable, None, "the client has stopped watching", e,
                ))?,
                () = sleep(Duration::from_millis(5)) => {}
            }
        }
    }

    /// Whether a key has had another owner since the ring under which it was answered, as far as the node that answered knows, and
    /// the registry tells in time. An answer from an owner of old may be outdated.
    pub(crate) async fn has_moved(&self, wanted: &Wanted<'_>, answered: &Answered) -> bool {
        let Answered { reply, node, ring_version, failover } = answered;
        // With a token in hand the value is about to be loaded.
        if reply.ring_version <= *ring_version || reply.outcome == Outcome::Fill {
            return false;
        }
        let until = node.claims().lock().wait_until(Instant::now());
        // In a box, as all that gets seldom need, so that those that wait for an answer are small.
        let waiting = timeout_at(until.min(wanted.deadline), self.wait_for_ring(reply.ring_version));
        let _ = Box::pin(waiting).await;
        let routing = self.routing.get();
        // Who was asked in the owner's place has to be the one that writes are done at, too.
        let is_another = |route: &Route<'_>| route.successor.is_none_or(|it| it.id() != node.id());
        routing.has_moved_since(wanted.hash, *ring_version)
            || (*failover && routing.route(wanted.hash).is_some_and(|route| is_another(&route)))
    }

    /// The fleet as the registry tells it.
    pub(crate) fn view(&self) -> Arc<FleetView> {
        self.discovered.borrow().view.clone()
    }

    #[cfg(feature = "metrics")]
    pub(crate) fn discovered(&self) -> Discovered {
        self.discovered.borrow().clone()
    }

    /// Whether a node holds a lease in the registry, as far as is known.
    pub(crate) fn is_alive(&self, id: &str) -> bool {
        self.discovered.borrow().view.live.contains_key(id)
    }

    /// Takes in what a node that was chosen by a ring says of the ring with its answer: where it knows a later one, the registry is read
    /// again. The answer names the client's own ring where the node is not believed.
    pub(crate) fn heed(&self, node: &Node, reply: Reply, chosen_by: u64) -> Reply {
        // Nearly always, so it costs nothing.
        if reply.ring_version <= chosen_by {
            return reply;
        }
        let known = self.routing.get().ring.version();
        if reply.ring_version <= known {
            return reply;
        }
        let told = {
            let discovered = self.discovered.borrow();
            Told { version: discovered.view.ring.version, read: discovered.read }
        };
        match node.claims().lock().hear(reply.ring_version, told, Instant::now()) {
            Heard::Ask => self.discovery.reload(),
            Heard::Asked => {}
            Heard::Refuted => {
                let (node, registry) = (node.id(), told.version);
                tracing::warn!(
                    node,
                    registry,
                    "a node has named a ring that the registry does not have; it is not believed for a while"
                );
                return Reply { ring_version: known, ..reply };
            }
            Heard::Doubted => return Reply { ring_version: known, ..reply },
        }
        reply
    }
}
