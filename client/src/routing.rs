//! The routing table: the ring and a handle to each of its nodes, as one immutable value that is swapped
//! whole.

use std::cmp::Reverse;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use peanut_proto::membership::{Member, RingDocument};
use peanut_proto::sabotage::{Mechanism, without};

use tokio::sync::watch;
use tokio::time::Instant;

use crate::config::Config;
use crate::node::Node;
use crate::ring::Ring;
use peanut_proto::clock::wall_clock_ms;

/// One ring and its nodes.
#[derive(Debug)]
pub(crate) struct Routing {
    pub(crate) ring: Arc<Ring>,
    /// In the order of the ring's members.
    nodes: Vec<Arc<Node>>,
    /// Rings from before, the latest first.
    earlier: Vec<Arc<Earlier>>,
    /// For how long after a change of the ring writes are done at former owners too.
    written_to: Duration,
}

/// A ring that was replaced.
#[derive(Debug)]
struct Earlier {
    ring: Arc<Ring>,
    nodes: Vec<Arc<Node>>,
    replaced: Instant,
    /// It was held by this client; else it was made out from a later document, and may have lost some of its history.
    is_exact: bool,
}

/// A node that owned a key under an earlier ring.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Former<'a> {
    pub(crate) node: &'a Arc<Node>,
    /// Ring version since which it did, under that ring.
    pub(crate) owned_since: u64,
}

/// Earlier rings that are kept.
const MOST_EARLIER: usize = 16;

/// Whom to ask for a key.
#[derive(Debug)]
pub(crate) struct Route<'a> {
    pub(crate) owner: &'a Arc<Node>,
    pub(crate) successor: Option<&'a Arc<Node>>,
    pub(crate) owned_since: u64,
}

impl Routing {
    /// The routing table of a document. Nodes that `previous` knows at the same address keep their
    /// handles.
    pub(crate) fn new(
        document: &RingDocument,
        previous: Option<&Routing>,
        config: &Config,
        now: Instant,
    ) -> Self {
        // One handle to each node, in all rings: two would shut out each other's writes.
        let mut known = Handles::default();
        if let Some(routing) = previous {
            let earlier = routing.earlier.iter().flat_map(|earlier| &earlier.nodes);
            routing.nodes.iter().chain(earlier).for_each(|node| known.add(node));
        }
        let nodes: Vec<_> = document.members.iter().map(|member| known.of(member, config)).collect();
        nodes.iter().for_each(|node| node.among(nodes.len()));
        // Those that this client has held, and those between them that it has not heard of.
        let mut earlier = recent(document, &mut known, config, now);
        if let Some(routing) = previous {
            let (ring, nodes) = (routing.ring.clone(), routing.nodes.clone());
            let replaced = Arc::new(Earlier { ring, nodes, replaced: now, is_exact: true });
            let longest = config.windows.former_owners.max(config.hand_over);
            let held = routing.earlier.iter().filter(|earlier| now < earlier.replaced + longest).cloned();
            for held in std::iter::once(replaced).chain(held) {
                earlier.retain(|other| other.ring.version() != held.ring.version());
                earlier.push(held);
            }
        }
        earlier.sort_by_key(|earlier| Reverse((earlier.replaced, earlier.ring.version())));
        earlier.truncate(MOST_EARLIER);
        Routing {
            nodes,
            ring: Arc::new(Ring::new(document)),
            earlier,
            written_to: config.windows.former_owners,
        }
    }

    /// The nodes at which writes are done beside the owner, since clients that have not heard of a change of the ring may ask them still: who
    /// owned the key in the last minutes, and, with `successors`, who was asked in its place.
    pub(crate) fn former_nodes(&self, hash: u64, successors: bool, now: Instant) -> Vec<&Arc<Node>> {
        let mut nodes = Vec::new();
        let Some(route) = self.route(hash).filter(|_| !without(Mechanism::FormerOwners)) else {
            return nodes;
        };
        for earlier in self.earlier.iter().take_while(|earlier| now < earlier.replaced + self.written_to) {
            let Some(place) = earlier.ring.place_hash(hash) else { continue };
            nodes.push(&earlier.nodes[place.owner]);
            nodes.extend(place.successor.filter(|_| successors).map(|at| &earlier.nodes[at]));
        }
        let successor = route.successor.filter(|_| successors);
        nodes.retain(|node| {
            [Some(route.owner), successor].into_iter().flatten().all(|it| it.id() != node.id())
        });
        nodes.sort_by_key(|node| node.id());
        nodes.dedup_by_key(|node| node.id());
        nodes
    }

    /// The node that owned a key up to `owned_since`, if that is less than `window` ago and known for certain.
    pub(crate) fn former(
        &self,
        hash: u64,
        owned_since: u64,
        window: Duration,
        now: Instant,
    ) -> Option<Former<'_>> {
        // With one ring between, another may have owned the key and been written to.
        let mut earlier = self.earlier.iter().take_while(|earlier| now < earlier.replaced + window);
        let earlier = earlier.find(|it| it.is_exact && it.ring.version() + 1 == owned_since)?;
        let place = earlier.ring.place_hash(hash)?;
        let node = &earlier.nodes[place.owner];
        let is_another = self.route(hash).is_none_or(|route| route.owner.id() != node.id());
        is_another.then_some(Former { node, owned_since: place.owned_since })
    }

    /// All nodes, and those of the rings of the last minutes.
    pub(crate) fn all_nodes(&self, now: Instant) -> Vec<Arc<Node>> {
        let earlier = self.earlier.iter().take_while(|earlier| now < earlier.replaced + self.written_to);
        let mut nodes: Vec<_> = self.nodes.iter().chain(earlier.flat_map(|e| &e.nodes)).cloned().collect();
        nodes.sort_by(|a, b| (a.id(), a.addr()).cmp(&(b.id(), b.addr())));
        nodes.dedup_by(|a, b| Arc::ptr_eq(a, b));
        nodes
    }

    /// Whether a key has had another owner since that version of the ring.
    pub(crate) fn has_moved_since(&self, hash: u64, version: u64) -> bool {
        self.route(hash).is_some_and(|route| route.owned_since > version)
    }

    /// Whom to ask for a key of that hash; `None` where the fleet has no nodes.
    pub(crate) fn route(&self, hash: u64) -> Option<Route<'_>> {
        let place = self.ring.place_hash(hash)?;
        Some(Route {
            owner: &self.nodes[place.owner],
            successor: place.successor.map(|at| &self.nodes[at]),
            owned_since: place.owned_since,
        })
    }

    pub(crate) fn nodes(&self) -> &[Arc<Node>] {
        &self.nodes
    }

    /// Whether more than half of the fleet looks down. Then the fault is probably on this side, and nodes
    /// are asked all the same.
    pub(crate) fn mostly_down(&self) -> bool {
        self.nodes.iter().filter(|node| node.is_left()).count() * 2 > self.nodes.len()
    }
}

/// Handles by id and address.
#[derive(Default)]
struct Handles(HashMap<(String, String), Arc<Node>>);

impl Handles {
    fn add(&mut self, node: &Arc<Node>) {
        self.0.entry((node.id().to_owned(), node.addr().to_owned())).or_insert_with(|| node.clone());
    }

    fn of(&mut self, member: &Member, config: &Config) -> Arc<Node> {
        let key = (member.id.clone(), member.addr.clone());
        self.0.entry(key).or_insert_with(|| Arc::new(Node::new(&member.id, &member.addr, config))).clone()
    }
}

/// The rings that were replaced lately, as far as a document tells, for a client that has not held them.
fn recent(document: &RingDocument, known: &mut Handles, config: &Config, now: Instant) -> Vec<Arc<Earlier>> {
    let window_ms = u64::try_from(config.windows.former_owners.as_millis()).unwrap_or(u64::MAX);
    let earlier = document.recent(wall_clock_ms().saturating_sub(window_ms)).take(MOST_EARLIER);
    let earlier = earlier.map(|document| {
        let nodes = document.members.iter().map(|member| known.of(member, config)).collect();
        let ring = Arc::new(Ring::new(&document));
        Arc::new(Earlier { nodes, ring, replaced: now, is_exact: false })
    });
    earlier.collect()
}

/// The current routing table. Readers take no lock, and keep what they took as long as they like.
#[derive(Debug)]
pub(crate) struct CurrentRouting {
    routing: ArcSwap<Routing>,
    /// Tells of each new ring, by version.
    version: watch::Sender<u64>,
}

impl CurrentRouting {
    pub(crate) fn new(routing: Routing) -> Self {
        let version = watch::Sender::new(routing.ring.version());
        CurrentRouting { routing: ArcSwap::from_pointee(routing), version }
    }

    pub(crate) fn get(&self) -> Arc<Routing> {
        self.routing.load_full()
    }

    pub(crate) fn set(&self, routing: Routing) {
        let version = routing.ring.version();
        self.routing.store(Arc::new(routing));
        self.version.send_replace(version);
    }

    /// Every later ring's version.
    pub(crate) fn subscribe(&self) -> watch::Receiver<u64> {
        self.version.subscribe()
    }
}
