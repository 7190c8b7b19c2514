//! The routing table: the ring and a handle to each of its nodes, as one immutable value that is swapped
//! whole. What a handle is does not matter here: it is told apart by id and address.

use std::cmp::Reverse;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use peanut_proto::clock::{milliseconds, wall_clock_ms};
use peanut_proto::membership::{Member, RingDocument};
use peanut_proto::numbers::RingVersion;
use peanut_proto::sabotage::{Mechanism, without};
use tokio::sync::watch;
use tokio::time::Instant;
use xxhash_rust::xxh3::xxh3_64;

use crate::config::Config;
use crate::lane::Owner as _;
use crate::node::Node;
use crate::ring::Ring;

/// What is routed to.
pub(crate) trait Handle: Clone {
    fn id(&self) -> &str;
    fn addr(&self) -> &str;
    /// Whether others are asked in its place.
    fn is_left(&self) -> bool;
}

impl Handle for Arc<Node> {
    fn id(&self) -> &str {
        self.monitor().id()
    }

    fn addr(&self) -> &str {
        self.monitor().addr()
    }

    fn is_left(&self) -> bool {
        self.monitor().is_left()
    }
}

/// One ring and its nodes.
#[derive(Debug)]
pub(crate) struct Routing<N = Arc<Node>> {
    pub(crate) ring: Arc<Ring>,
    /// In the order of the ring's members.
    nodes: Vec<N>,
    /// Rings from before, the latest first.
    earlier: Vec<Arc<Earlier<N>>>,
    /// For how long after a change of the ring writes are done at previous owners too.
    written_to: Duration,
}

/// A ring that was replaced.
#[derive(Debug)]
struct Earlier<N> {
    ring: Arc<Ring>,
    nodes: Vec<N>,
    replaced: Instant,
    /// It was held by this client; else it was made out from a later document, and may have lost some of its
    /// history.
    is_exact: bool,
}

/// A node that owned a key under an earlier ring.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PreviousOwner<'a, N = Arc<Node>> {
    pub(crate) node: &'a N,
    /// Ring version since which it did, under that ring.
    pub(crate) owned_since: RingVersion,
}

/// Where a write was done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Written {
    /// Version of the ring.
    pub(crate) under: RingVersion,
    /// Fingerprint of the owner's successor, where that was to be told too; else 0. Plain numbers, as a write
    /// holds them while it waits.
    pub(crate) successor: u64,
}

/// Tells nodes apart by their ids; never 0.
pub(crate) fn fingerprint<N: Handle>(node: &N) -> u64 {
    xxh3_64(node.id().as_bytes()).max(1)
}

/// By how much the wall clocks of this machine and of nodes may differ.
const CLOCKS_AGREE: Duration = Duration::from_secs(8 * 60);
/// Earlier rings that are kept.
const MOST_EARLIER: usize = 16;

/// Whom to ask for a key.
#[derive(Debug)]
pub(crate) struct Route<'a, N = Arc<Node>> {
    pub(crate) owner: &'a N,
    pub(crate) successor: Option<&'a N>,
    pub(crate) owned_since: RingVersion,
}

impl<N: Handle> Routing<N> {
    /// The routing table of a document, with handles that `make` makes. Nodes that `previous` knows at the
    /// same address keep theirs. Writes are done at previous owners for `written_to`, and those are asked for
    /// what they had for up to `hand_over`.
    pub(crate) fn new(
        document: &RingDocument,
        previous: Option<&Routing<N>>,
        (written_to, hand_over): (Duration, Duration),
        (now, now_ms): (Instant, u64),
        make: impl FnMut(&Member) -> N,
    ) -> Self {
        // One handle to each node, in all rings: two would each have their own idea of its health.
        let mut known = Handles { known: HashMap::new(), make };
        if let Some(routing) = previous {
            let earlier = routing.earlier.iter().flat_map(|earlier| &earlier.nodes);
            routing.nodes.iter().chain(earlier).for_each(|node| known.add(node));
        }
        let nodes: Vec<_> = document.members.iter().map(|member| known.of(member)).collect();
        // Those that this client has held, and those between them that it has not heard of. When these were
        // replaced the document says by another machine's clock, so all of them count from now on.
        let held = previous.map_or(RingVersion::NONE, |routing| routing.ring.version());
        let window_ms = milliseconds(written_to + CLOCKS_AGREE);
        let recent = document.recent(now_ms.saturating_sub(window_ms));
        let unheard = recent.take_while(|earlier| earlier.version > held).take(MOST_EARLIER);
        let unheard = unheard.map(|document| {
            let nodes = document.members.iter().map(|member| known.of(member)).collect();
            Arc::new(Earlier { nodes, ring: Arc::new(Ring::new(&document)), replaced: now, is_exact: false })
        });
        let mut earlier: Vec<_> = unheard.collect();
        if let Some(routing) = previous {
            let (ring, nodes) = (routing.ring.clone(), routing.nodes.clone());
            let replaced = Arc::new(Earlier { ring, nodes, replaced: now, is_exact: true });
            let longest = written_to.max(hand_over);
            let held = routing.earlier.iter().filter(|earlier| now < earlier.replaced + longest).cloned();
            for held in std::iter::once(replaced).chain(held) {
                earlier.retain(|other| other.ring.version() != held.ring.version());
                earlier.push(held);
            }
        }
        earlier.sort_by_key(|earlier| Reverse((earlier.replaced, earlier.ring.version())));
        earlier.truncate(MOST_EARLIER);
        Routing { nodes, ring: Arc::new(Ring::new(document)), earlier, written_to }
    }

    /// The nodes at which writes are done beside the owner, since clients that have not heard of a change of
    /// the ring may ask them still: who owned the key in the last minutes, and, with `successors`, who was
    /// asked in its place.
    pub(crate) fn previous_owners(&self, hash: u64, successors: bool, now: Instant) -> Vec<&N> {
        let mut nodes = Vec::new();
        let Some(route) = self.route(hash).filter(|_| !without(Mechanism::PreviousOwners)) else {
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

    /// The node that owned a key up to `owned_since`, if that is less than `window` ago and known for
    /// certain.
    pub(crate) fn previous_owner(
        &self,
        hash: u64,
        owned_since: RingVersion,
        window: Duration,
        now: Instant,
    ) -> Option<PreviousOwner<'_, N>> {
        // With one ring between, another may have owned the key and been written to.
        let mut earlier = self.earlier.iter().take_while(|earlier| now < earlier.replaced + window);
        let earlier = earlier.find(|it| it.is_exact && it.ring.version().plus(1) == owned_since)?;
        let place = earlier.ring.place_hash(hash)?;
        let node = &earlier.nodes[place.owner];
        let is_another = self.route(hash).is_none_or(|route| route.owner.id() != node.id());
        is_another.then_some(PreviousOwner { node, owned_since: place.owned_since })
    }

    /// All nodes, and those of the rings of the last minutes.
    pub(crate) fn all_nodes(&self, now: Instant) -> Vec<N> {
        let earlier = self.earlier.iter().take_while(|earlier| now < earlier.replaced + self.written_to);
        let mut nodes: Vec<_> = self.nodes.iter().chain(earlier.flat_map(|e| &e.nodes)).cloned().collect();
        nodes.sort_by(|a, b| (a.id(), a.addr()).cmp(&(b.id(), b.addr())));
        nodes.dedup_by(|a, b| (a.id(), a.addr()) == (b.id(), b.addr()));
        nodes
    }

    /// Whether a write has to be done again, since the key has had another owner since, or has another
    /// successor than the one that was told, where one was to be.
    pub(crate) fn has_misplaced(&self, hash: u64, written: Written) -> bool {
        let successor = || self.route(hash).and_then(|route| route.successor).map_or(0, fingerprint);
        let is_another = written.successor != 0 && written.successor != successor();
        is_another || self.has_moved_since(hash, written.under)
    }

    /// Whether a key has had another owner since that version of the ring.
    pub(crate) fn has_moved_since(&self, hash: u64, version: RingVersion) -> bool {
        self.route(hash).is_some_and(|route| route.owned_since > version)
    }

    /// Whom to ask for a key of that hash; `None` where the fleet has no nodes.
    pub(crate) fn route(&self, hash: u64) -> Option<Route<'_, N>> {
        let place = self.ring.place_hash(hash)?;
        Some(Route {
            owner: &self.nodes[place.owner],
            successor: place.successor.map(|at| &self.nodes[at]),
            owned_since: place.owned_since,
        })
    }

    pub(crate) fn nodes(&self) -> &[N] {
        &self.nodes
    }

    /// Whether more than half of the fleet looks down. Then the fault is probably on this side, and nodes
    /// are asked all the same.
    pub(crate) fn mostly_down(&self) -> bool {
        self.nodes.iter().filter(|node| node.is_left()).count() * 2 > self.nodes.len()
    }
}

/// Handles by id and address, and what makes those that are not there.
struct Handles<N, M> {
    known: HashMap<(String, String), N>,
    make: M,
}

impl<N: Handle, M: FnMut(&Member) -> N> Handles<N, M> {
    fn add(&mut self, node: &N) {
        self.known.entry((node.id().to_owned(), node.addr().to_owned())).or_insert_with(|| node.clone());
    }

    fn of(&mut self, member: &Member) -> N {
        let key = (member.id.clone(), member.addr.clone());
        self.known.entry(key).or_insert_with(|| (self.make)(member)).clone()
    }
}

impl Routing {
    /// The routing table of a document, as a client with these settings has it.
    pub(crate) fn of(document: &RingDocument, previous: Option<&Routing>, config: &Config) -> Self {
        let windows = (config.windows.previous_owners, config.hand_over);
        let make = |member: &Member| Arc::new(Node::new(&member.id, &member.addr, config));
        let now = (Instant::now(), wall_clock_ms());
        let routing = Routing::new(document, previous, windows, now, make);
        routing.nodes.iter().for_each(|node| node.among(routing.nodes.len()));
        routing
    }
}

/// The current routing table. Readers take no lock, and keep what they took as long as they like.
#[derive(Debug)]
pub(crate) struct CurrentRouting {
    routing: ArcSwap<Routing>,
    /// Tells of each new ring, by version.
    version: watch::Sender<RingVersion>,
    /// The last ring that was looked at, by version: the client goes by it, or doubts it.
    considered: watch::Sender<RingVersion>,
}

impl CurrentRouting {
    pub(crate) fn new(routing: Routing) -> Self {
        let version = watch::Sender::new(routing.ring.version());
        let considered = watch::Sender::new(routing.ring.version());
        CurrentRouting { routing: ArcSwap::from_pointee(routing), version, considered }
    }

    pub(crate) fn get(&self) -> Arc<Routing> {
        self.routing.load_full()
    }

    /// Looks at it, without a count of those who hold it.
    pub(crate) fn with<R>(&self, look: impl FnOnce(&Routing) -> R) -> R {
        look(&self.routing.load())
    }

    pub(crate) fn set(&self, routing: Routing) {
        let version = routing.ring.version();
        self.routing.store(Arc::new(routing));
        self.version.send_replace(version);
    }

    /// A ring was looked at, and the client goes by it or doubts it.
    pub(crate) fn consider(&self, version: RingVersion) {
        self.considered.send_replace(version);
    }

    /// Waits until a ring has been looked at.
    pub(crate) async fn considered(&self, version: RingVersion) {
        let _ = self.considered.subscribe().wait_for(|last| *last >= version).await;
    }

    /// Every later ring's version.
    pub(crate) fn subscribe(&self) -> watch::Receiver<RingVersion> {
        self.version.subscribe()
    }
}

#[cfg(test)]
pub(crate) mod tests;
