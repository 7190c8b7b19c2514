//! The routing table: the ring and a handle to each of its nodes, as one immutable value that is swapped
//! whole.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use peanut_proto::membership::RingDocument;

use smallvec::SmallVec;
use tokio::time::Instant;

use crate::config::Config;
use crate::node::Node;
use crate::ring::Ring;

/// One ring and its nodes.
#[derive(Debug)]
pub(crate) struct Routing {
    pub(crate) ring: Arc<Ring>,
    /// In the order of the ring's members.
    nodes: Vec<Arc<Node>>,
    /// Rings from before, the latest first.
    earlier: Vec<Arc<Earlier>>,
}

/// A ring that was replaced.
#[derive(Debug)]
struct Earlier {
    ring: Arc<Ring>,
    nodes: Vec<Arc<Node>>,
    replaced: Instant,
}

/// A node that owned a key under an earlier ring.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Former<'a> {
    pub(crate) node: &'a Arc<Node>,
    /// The ring under which it did.
    pub(crate) ring_version: u64,
    /// Ring version since which it did, under that ring.
    pub(crate) owned_since: u64,
}

/// Earlier rings that are kept.
const MOST_EARLIER: usize = 8;

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
        let known: HashMap<(&str, &str), &Arc<Node>> = previous
            .iter()
            .flat_map(|routing| &routing.nodes)
            .map(|node| ((node.id(), node.addr()), node))
            .collect();
        let nodes = document.members.iter().map(|member| match known.get(&(&*member.id, &*member.addr)) {
            Some(node) => Arc::clone(node),
            None => Arc::new(Node::new(&member.id, &member.addr, config)),
        });
        let nodes: Vec<_> = nodes.collect();
        nodes.iter().for_each(|node| node.among(nodes.len()));
        let earlier = previous.map_or_else(Vec::new, |routing| {
            let replaced =
                Earlier { ring: routing.ring.clone(), nodes: routing.nodes.clone(), replaced: now };
            let others = routing.earlier.iter().filter(|e| now < e.replaced + config.hand_over * 2).cloned();
            std::iter::once(Arc::new(replaced)).chain(others).take(MOST_EARLIER).collect()
        });
        Routing { nodes, ring: Arc::new(Ring::new(document)), earlier }
    }

    /// The nodes that owned a key under rings that were replaced less than `window` ago, and do no more.
    pub(crate) fn formers(
        &self,
        hash: u64,
        window: Duration,
        now: Instant,
    ) -> impl Iterator<Item = Former<'_>> {
        let owner = self.route(hash).map(|route| route.owner.id());
        let earlier = self.earlier.iter().take_while(move |earlier| now < earlier.replaced + window);
        let formers = earlier.filter_map(move |earlier| {
            let place = earlier.ring.place_hash(hash)?;
            let node = &earlier.nodes[place.owner];
            let former =
                Former { node, ring_version: earlier.ring.version(), owned_since: place.owned_since };
            (Some(node.id()) != owner).then_some(former)
        });
        let mut seen: SmallVec<[*const Node; 4]> = SmallVec::new();
        formers.filter(move |former| {
            let is_new = !seen.contains(&Arc::as_ptr(former.node));
            seen.push(Arc::as_ptr(former.node));
            is_new
        })
    }

    /// All nodes, and those of rings that were replaced less than `window` ago.
    pub(crate) fn all_nodes(&self, window: Duration, now: Instant) -> Vec<Arc<Node>> {
        let earlier = self.earlier.iter().take_while(|earlier| now < earlier.replaced + window);
        let mut nodes: Vec<_> = self.nodes.iter().chain(earlier.flat_map(|e| &e.nodes)).cloned().collect();
        nodes.sort_by_key(|node| Arc::as_ptr(node).addr());
        nodes.dedup_by_key(|node| Arc::as_ptr(node).addr());
        nodes
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
        self.nodes.iter().filter(|node| node.is_down()).count() * 2 > self.nodes.len()
    }
}

/// The current routing table. Readers take no lock, and keep what they took as long as they like.
#[derive(Debug)]
pub(crate) struct CurrentRouting(ArcSwap<Routing>);

impl CurrentRouting {
    pub(crate) fn new(routing: Routing) -> Self {
        CurrentRouting(ArcSwap::from_pointee(routing))
    }

    pub(crate) fn get(&self) -> Arc<Routing> {
        self.0.load_full()
    }

    pub(crate) fn set(&self, routing: Routing) {
        self.0.store(Arc::new(routing));
    }
}
