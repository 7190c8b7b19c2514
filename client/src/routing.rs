//! The routing table: the ring and a handle to each of its nodes, as one immutable value that is swapped
//! whole.

use std::collections::HashMap;
use std::sync::Arc;

use arc_swap::ArcSwap;
use peanut_proto::membership::RingDocument;

use crate::config::Config;
use crate::node::Node;
use crate::ring::Ring;

/// One ring and its nodes.
#[derive(Debug)]
pub(crate) struct Routing {
    pub(crate) ring: Arc<Ring>,
    /// In the order of the ring's members.
    nodes: Vec<Arc<Node>>,
}

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
    pub(crate) fn new(document: &RingDocument, previous: Option<&Routing>, config: &Config) -> Self {
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
        Routing { nodes, ring: Arc::new(Ring::new(document)) }
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
