//! The client: what an application holds.

use std::sync::Arc;

use peanut_proto::discovery::Discovery;
use peanut_proto::membership::{Keys, Notice};
use peanut_proto::numbers::RingVersion;
use peanut_proto::registry::Registry;

use crate::builder::ClientBuilder;
use crate::config::Config;
use crate::discovery;
use crate::error::{Error, ErrorKind};
use crate::group::{self, Group};
use crate::membership;
use crate::repeat;
use crate::ring::Ring;
use crate::routing::{CurrentRouting, Routing};
use crate::shared::Shared;
use crate::stats::Stats;

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

    pub(crate) fn new(
        config: Config,
        routing: Arc<CurrentRouting>,
        fleet: &str,
        registry: (Option<Arc<dyn Registry>>, Keys),
        discovery: Discovery,
    ) -> Self {
        if let Some(near) = &config.near {
            near.go_by(routing.get().ring.version());
        }
        let shared = Arc::new(Shared::new(config, routing, fleet, registry, discovery, begin_background));
        begin_background(&shared);
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

    /// What an operator should know of the fleet as it is now: groups that only some nodes have, members with
    /// one address.
    pub fn notices(&self) -> Vec<Notice> {
        self.shared.discovered.borrow().view.notices()
    }

    pub(crate) fn routing(&self) -> Arc<Routing> {
        self.shared.routing.get()
    }

    /// Where the fleet is kept, and under which keys.
    pub(crate) fn registry(&self) -> (&Option<Arc<dyn Registry>>, &Keys) {
        (&self.shared.registry, &self.shared.keys)
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
        self.shared.wait_for_ring(RingVersion(version)).await
    }

    /// Takes a node out of the ring while it runs. Its keys have other owners from then on, which fill
    /// themselves from it for the time of [`hand_over`](crate::ClientBuilder::hand_over); after that it can
    /// be stopped. When it is started again it joins again.
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
        self.shared.stats()
    }
}

/// Begins what goes on beside the calls, on the caller's runtime: the ring is followed, and recent writes are
/// repeated. It ends with the client.
fn begin_background(shared: &Arc<Shared>) {
    let (discovered, routing) = (shared.discovered.clone(), shared.routing.clone());
    shared.background.run(discovery::follow(
        discovered,
        routing,
        shared.config.clone(),
        shared.registry.clone(),
    ));
    // What repeated writes on the last runtime goes on when that does. What it has not taken up yet is
    // repeated here.
    let mut rings = shared.routing.subscribe();
    rings.mark_changed();
    tokio::spawn(repeat::follow(Arc::downgrade(shared), shared.discovered.clone(), rings));
    tokio::spawn(group::follow_owed(Arc::downgrade(shared)));
    #[cfg(feature = "metrics")]
    tokio::spawn(crate::metrics::publish(Arc::downgrade(shared), shared.fleet.clone()));
}
