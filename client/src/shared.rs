//! What all handles of one client share, and what a ring that nodes know makes of an answer.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use peanut_proto::clock::suspended;
use peanut_proto::discovery::{Discovered, Discovery};
use peanut_proto::intervals::LOSS_NOTICED;
use peanut_proto::membership::{FleetView, Keys};
use peanut_proto::numbers::RingVersion;
use peanut_proto::registry::Registry;
use peanut_proto::sabotage::{Mechanism, without};
use peanut_proto::v1::Outcome;
use tokio::sync::{Semaphore, watch};
use tokio::time::{Instant, timeout_at};

use crate::background::Background;
use crate::budget::RetryBudget;
use crate::claims::{Heard, Told};
use crate::config::Config;
use crate::error::{Error, ErrorKind};
use crate::lane::Reply;
use crate::node::Node;
use crate::owed::Owed;
use crate::recent::RecentWrites;
use crate::request::Request;
use crate::routing::{CurrentRouting, Route, Routing};
use crate::sequences::Sequences;
use crate::stats::{Counters, Stats};
use crate::tally::Tallies;
#[cfg(feature = "json")]
use crate::undecodable::Undecodable;

/// Trouble with the registry that may be over in a moment.
const YOUNG_TROUBLE: Duration = Duration::from_secs(1);

/// An answer, and how it was come by.
#[derive(Debug)]
pub(crate) struct Answered {
    pub(crate) reply: Reply,
    /// Who gave it.
    pub(crate) node: Arc<Node>,
    pub(crate) failover: bool,
    /// Version of the ring by which the node was chosen.
    pub(crate) ring_version: RingVersion,
}

#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) config: Config,
    pub(crate) routing: Arc<CurrentRouting>,
    pub(crate) budget: RetryBudget,
    pub(crate) counters: Counters,
    pub(crate) tallies: Tallies,
    pub(crate) recent: RecentWrites,
    pub(crate) sequences: Sequences,
    #[cfg(feature = "json")]
    pub(crate) undecodable: Undecodable,
    pub(crate) owed: Arc<Owed>,
    /// Loads of the application's where no node can be asked.
    pub(crate) uncached: Semaphore,
    /// Where hints can be stored for nodes; `None` where the fleet is a fixed list.
    pub(crate) registry: Option<Arc<dyn Registry>>,
    pub(crate) keys: Keys,
    #[cfg(feature = "metrics")]
    pub(crate) fleet: String,
    groups: Mutex<HashMap<String, u32>>,
    discovery: Discovery,
    pub(crate) discovered: watch::Receiver<Discovered>,
    /// What goes on beside the calls, and what begins it on the caller's runtime.
    pub(crate) background: Background,
    begin_background: fn(&Arc<Shared>),
}

impl Shared {
    pub(crate) fn new(
        config: Config,
        routing: Arc<CurrentRouting>,
        fleet: &str,
        (registry, keys): (Option<Arc<dyn Registry>>, Keys),
        discovery: Discovery,
        begin_background: fn(&Arc<Shared>),
    ) -> Self {
        #[cfg(not(feature = "metrics"))]
        let _ = fleet;
        Shared {
            #[cfg(feature = "metrics")]
            fleet: fleet.to_owned(),
            routing,
            budget: RetryBudget::new(),
            counters: Counters::default(),
            tallies: Tallies::default(),
            recent: RecentWrites::new(config.windows.recent_writes),
            sequences: Sequences::default(),
            #[cfg(feature = "json")]
            undecodable: Undecodable::default(),
            owed: Arc::default(),
            uncached: Semaphore::new(config.uncached_loads),
            config,
            registry,
            keys,
            groups: Mutex::default(),
            discovered: discovery.subscribe(),
            discovery,
            background: Background::default(),
            begin_background,
        }
    }

    /// Begins what goes on beside the calls anew on the caller's runtime, where the one that it was on has
    /// ended or stands still.
    pub(crate) fn keep_background(self: &Arc<Self>, now: Instant) {
        if self.background.is_to_begin_anew(now) {
            self.discovery.begin_anew();
            (self.begin_background)(self);
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
    pub(crate) async fn wait_for_ring(&self, version: RingVersion) -> Result<(), Error> {
        let mut ring = self.routing.subscribe();
        loop {
            if self.routing.get().ring.version() >= version {
                return Ok(());
            }
            ring.changed().await.map_err(|e| {
                Error::caused_by(ErrorKind::Unavailable, None, "the client has stopped watching", e)
            })?;
        }
    }

    /// Where the registry has just become unreadable, as when a watch ends, the ring may have changed
    /// meanwhile: waits until it has been read again, for at most a second from then on and a quarter of the
    /// time that is left.
    pub(crate) async fn wait_for_view(&self, deadline: Instant) {
        let Some(since) = self.discovered.borrow().trouble_since else { return };
        let now = Instant::now();
        let until = (since + YOUNG_TROUBLE).min(now + deadline.saturating_duration_since(now) / 4);
        if now >= until {
            return;
        }
        let _ = Box::pin(timeout_at(until, async {
            let mut discovered = self.discovered.clone();
            let read = discovered.wait_for(|discovered| discovered.trouble.is_none()).await;
            let version = read.map_or(RingVersion::NONE, |discovered| discovered.view.ring.version);
            let _ = self.wait_for_ring(version).await;
        }))
        .await;
    }

    /// Whether it has to be asked if the key [has moved](Self::has_moved). With a token in hand the value is
    /// about to be loaded.
    pub(crate) fn may_have_moved(answered: &Answered) -> bool {
        answered.reply.ring_version > answered.ring_version && answered.reply.outcome != Outcome::Fill
    }

    /// Whether a key has had another owner since the ring under which it was answered, as far as the node
    /// that answered knows, and the registry tells in time. An answer from an owner of old may be outdated.
    pub(crate) async fn has_moved(&self, request: &Request<'_>, answered: &Answered) -> bool {
        let Answered { reply, node, ring_version, failover } = answered;
        if !Shared::may_have_moved(answered) {
            return false;
        }
        let until = node.claims().lock().wait_until(Instant::now());
        // In a box, as all that gets seldom need, so that those that wait for an answer are small.
        let waiting = timeout_at(until.min(request.deadline), self.wait_for_ring(reply.ring_version));
        let _ = Box::pin(waiting).await;
        if self.view().ring.version >= reply.ring_version {
            // The registry has told of it: it is no question of patience any more.
            let considered = self.routing.considered(reply.ring_version);
            let _ = Box::pin(timeout_at(request.deadline, considered)).await;
        }
        let routing = self.routing.get();
        // Who was asked in the owner's place has to be the one that writes are done at, too.
        let is_another = |route: &Route<'_>| route.successor.is_none_or(|it| it.id() != node.id());
        let is_later = routing.ring.version() > *ring_version;
        routing.has_moved_since(request.hash, *ring_version)
            || (*failover && is_later && routing.route(request.hash).is_some_and(|route| is_another(&route)))
    }

    /// What gets and writes came to.
    pub(crate) fn stats(&self) -> Stats {
        let mut stats = self.counters.read();
        if let Some(near) = &self.config.near {
            near.count(&mut stats);
        }
        stats
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

    /// Whether a node may go by a lease. Where the registry has just lost its data, or was cut off from this
    /// client, and perhaps from the node, until lately, any may: each goes on answering until it has noticed
    /// that its lease is gone.
    pub(crate) fn may_be_alive(&self, id: &str) -> bool {
        let discovered = self.discovered.borrow();
        let lost = discovered.lost.filter(|_| !without(Mechanism::Marks));
        let is_recent = |at: Option<Instant>| at.is_some_and(|at| at.elapsed() < LOSS_NOTICED);
        is_recent(lost)
            || is_recent(discovered.recovered)
            || discovered.view.live.contains_key(id)
            || self.most_lack_leases(|id| discovered.view.live.contains_key(id))
    }

    /// Whether more than half of the nodes, and more than one, hold no lease: readers do not believe that,
    /// and go on to ask them. Of a node that is the only one readers do not either, but no write could be
    /// done while that is dead.
    pub(crate) fn most_lack_leases(&self, is_live: impl Fn(&str) -> bool) -> bool {
        self.routing.with(|routing| {
            let lacks = |node: &&Arc<Node>| !is_live(node.id());
            let lacking = routing.nodes().iter().filter(lacks).count();
            lacking > 1 && lacking * 2 > routing.nodes().len()
        })
    }

    /// Whether nodes may go on that hold no lease: the registry cannot be watched, or could not until lately,
    /// and what cut this client off from it may have cut off nodes; or readers do not believe that most hold
    /// none.
    pub(crate) fn may_lack_leases(&self) -> bool {
        let discovered = self.discovered.borrow();
        let is_recent = discovered.recovered.is_some_and(|at| at.elapsed() < LOSS_NOTICED);
        discovered.trouble.is_some()
            || is_recent
            || self.most_lack_leases(|id| discovered.view.live.contains_key(id))
    }

    /// Takes in what a node that was chosen by a ring says of the ring with its answer: where it knows a
    /// later one, the registry is read again. The answer names the client's own ring where the node is not
    /// believed.
    pub(crate) fn heed(&self, node: &Node, reply: Reply, chosen_by: RingVersion) -> Reply {
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
            let (version, read) = (discovered.view.ring.version, discovered.read);
            Told { version, read, suspended: suspended() }
        };
        match node.claims().lock().hear(reply.ring_version, told, Instant::now()) {
            Heard::Attempt => self.discovery.reload(),
            Heard::Asked => {}
            Heard::Refuted => {
                let (node, registry) = (node.id(), told.version.0);
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
