//! Keeps the node registered: in the ring document, alive under a lease, and in grpc's naming scheme.
//!
//! All of it is repaired for as long as the node runs. A lease that is lost is granted again and its keys
//! put again; a ring document that was lost or that no longer has the node is written again from the last
//! good one. While the registry cannot be reached the node serves on and keeps trying. Where a later process
//! has been started under its id, it is *replaced*, and ends: it is told of nothing more.

use std::pin::pin;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::OptionFuture;
use peanut_proto::audit::TARGET as AUDIT;
use peanut_proto::backoff::Backoff;
use peanut_proto::change::{change_ring, swap_ring};
use peanut_proto::discovery::{Discovered, Discovery};
use peanut_proto::intervals::LONGEST_RENEWAL;
use peanut_proto::membership::{
    DEFAULT_POINTS, FORMAT, FleetView, Keys, LiveGroup, Liveness, NamingRecord, NodeInfo, RingDocument,
};
use peanut_proto::numbers::RingVersion;
use peanut_proto::registry::{LeaseId, Registry, RegistryError};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tokio_util::sync::CancellationToken;

use crate::node::Node;
use crate::notices;
use crate::reconcile::Reconcile;
use crate::seen_ring::SeenRing;
use peanut_proto::clock::{uptime, wall_clock_ms};

/// A compare-and-swap of the ring that loses so often in a row has met something other than neighbours.
const SWAP_ATTEMPTS: usize = 100;
/// Changes of a ring that was lost of which a node may not have heard.
const UNHEARD: u64 = 1000;
/// Trouble is told of at most so often, and again so often where it stays the same.
const SAY: Duration = Duration::from_secs(10);
const SAY_AGAIN: Duration = Duration::from_secs(600);
/// Why a node registers again whose record is not there any more.
const VANISHED: &str = "the liveness record vanished";
const LOST: &str = "the registry has lost what it knew of this node";
/// Why one ends.
const REPLACED: &str = "another process has been started as this node";
/// How long a node that stops may take to say so.
const GOODBYE: Duration = Duration::from_secs(2);

/// What a node registers, and where.
#[derive(Clone, Debug)]
pub(crate) struct Registration {
    pub(crate) registry: Arc<dyn Registry>,
    pub(crate) keys: Keys,
    pub(crate) node: NodeInfo,
    /// What it says of its groups.
    pub(crate) groups: Option<Vec<LiveGroup>>,
    pub(crate) lease_ttl: Duration,
    pub(crate) naming_service: String,
    /// The longest that an entry can live; a departed record outlives it.
    pub(crate) max_ttl: Duration,
    pub(crate) on_shutdown: OnShutdown,
    /// How long a member may have no lease before it is taken out of the ring.
    pub(crate) forget_after: Duration,
    /// What this process has met in the registry, of which its watch may not have told it before it was lost.
    pub(crate) seen: SeenRing,
}

/// What becomes of a node's place in the ring when it is told to stop.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnShutdown {
    /// It stays a member: its keys fail over, and come home when it is started again. For restarts.
    #[default]
    Keep,
    /// It leaves, and others own its keys for good. For a fleet that is made smaller.
    Leave,
}

impl FromStr for OnShutdown {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        match name {
            "keep" => Ok(OnShutdown::Keep),
            "leave" => Ok(OnShutdown::Leave),
            _ => Err(format!("`{name}` is neither keep nor leave")),
        }
    }
}

/// The process that has put its liveness under a node's id.
pub(crate) async fn holder_of(
    registry: &dyn Registry,
    keys: &Keys,
    id: &str,
) -> Result<Option<Liveness>, RegistryError> {
    let holder = registry.get(&keys.live(id)).await?;
    Ok(holder.and_then(|entry| Liveness::decode(&entry.value).ok()))
}

/// Whether `other` is of a process that was started later. An earlier one's record may come back with a
/// registry that is restored from a backup.
fn is_later(other: &Liveness, than: &Liveness) -> bool {
    other.incarnation != than.incarnation && other.started_ms > than.started_ms
}

/// Why a node is not registered.
enum Trouble {
    /// A later process is in its place.
    Replaced,
    Registry(RegistryError),
}

impl From<RegistryError> for Trouble {
    fn from(error: RegistryError) -> Self {
        Trouble::Registry(error)
    }
}

/// Two processes have one id.
pub(crate) fn in_use(id: &str, addr: &str) -> RegistryError {
    RegistryError::new(format!("node id `{id}` is in use at {addr}; give one of the two another node_id"))
}

impl Registration {
    /// Registers the node and keeps it registered until `stop`, then ends its lease. The node hears of
    /// every new ring version, and the holder of `joined` of the first success. Where the node is replaced
    /// the holder of `replaced` hears it.
    pub(crate) async fn run(
        self,
        discovery: Discovery,
        node: Node,
        joined: watch::Sender<bool>,
        (stop, replaced): (CancellationToken, CancellationToken),
    ) {
        let mut discovered = discovery.subscribe();
        let live = Liveness {
            format: FORMAT,
            addr: self.node.addr.clone(),
            incarnation: format!("{:016x}", fastrand::u64(..)),
            build: env!("CARGO_PKG_VERSION").to_owned(),
            started_ms: wall_clock_ms(),
            groups: self.groups.clone(),
        };
        let mut lease = None;
        let reconcile = Reconcile {
            registry: self.registry.clone(),
            keys: self.keys.clone(),
            forget_after: self.forget_after,
            seen: self.seen.clone(),
        };
        tokio::select! {
            biased;
            () = self.keep(&live, &mut lease, &mut discovered, &node, &joined) => {
                node.lease_lost();
                replaced.cancel();
            }
            () = reconcile.run(discovery.subscribe()) => {}
            () = notices::tell(discovery.subscribe()) => {}
            () = stop.cancelled() => {}
        }
        // A writer that finds no lease of this node waits for near leases that were given before then.
        node.near().give_until(Duration::ZERO);
        if self.on_shutdown == OnShutdown::Leave && !replaced.is_cancelled() {
            match timeout(GOODBYE, self.leave()).await {
                Ok(Ok(())) => tracing::info!("left the ring"),
                Ok(Err(error)) => tracing::warn!(
                    error = format_args!("{error:#}"),
                    "did not leave the ring; it is forgotten in time"
                ),
                Err(_) => tracing::warn!("did not leave the ring in time; it is forgotten later"),
            }
        }
        if let Some(lease) = lease {
            match timeout(GOODBYE, self.registry.revoke(lease)).await {
                Ok(Ok(())) => tracing::info!("lease revoked"),
                Ok(Err(error)) => tracing::warn!(
                    error = format_args!("{error:#}"),
                    "the lease could not be revoked; it will run out"
                ),
                Err(_) => tracing::warn!("the lease could not be revoked in time; it will run out"),
            }
        }
    }

    /// Ends where the node is replaced.
    async fn keep(
        &self,
        live: &Liveness,
        lease: &mut Option<LeaseId>,
        discovered: &mut watch::Receiver<Discovered>,
        node: &Node,
        joined: &watch::Sender<bool>,
    ) {
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(2));
        let mut said: Option<(Instant, String)> = None;
        // What others can see.
        let mut held = None;
        loop {
            let begun = Instant::now();
            let has_joined = *joined.borrow();
            let sent = uptime();
            match self.register(live, lease, discovered, node, has_joined).await {
                Ok(version) => {
                    if held != *lease {
                        node.near().granted();
                    }
                    node.near().give_until(sent + self.lease_ttl);
                    node.learn_of_ring(version);
                    joined.send_replace(true);
                    if held != *lease {
                        held = *lease;
                        node.ring().leased();
                        node.wake().lease_held();
                    }
                    let why = self.hold((live, lease), discovered, node, None).await;
                    if why == REPLACED {
                        return;
                    }
                    if lease.is_none() || why == VANISHED || why == LOST {
                        held = None;
                        node.near().give_until(Duration::ZERO);
                        node.lease_lost();
                    }
                    if is_due(&said, why, Duration::ZERO) {
                        tracing::warn!(why, "registering again");
                        said = Some((Instant::now(), why.to_owned()));
                    }
                }
                Err(Trouble::Replaced) => return,
                Err(Trouble::Registry(error)) => {
                    let why = format!("{error:#}");
                    if is_due(&said, &why, SAY_AGAIN) {
                        tracing::warn!(
                            error = format_args!("{error:#}"),
                            "not registered; serving, and trying again until it is"
                        );
                        said = Some((Instant::now(), why));
                    }
                    // What has been granted is kept meanwhile.
                    if lease.is_some() {
                        let until = Instant::now() + backoff.next_delay(fastrand::f64());
                        if self.hold((live, lease), discovered, node, Some(until)).await == REPLACED {
                            return;
                        }
                        continue;
                    }
                }
            }
            // What stood for a while may be repaired at once; what breaks at once again may not.
            if begun.elapsed() > self.lease_ttl {
                backoff.reset();
            }
            sleep(backoff.next_delay(fastrand::f64())).await;
        }
    }

    /// Lease and liveness first: a node that serves is alive, whatever is the matter with the ring.
    async fn register(
        &self,
        live: &Liveness,
        lease: &mut Option<LeaseId>,
        discovered: &mut watch::Receiver<Discovered>,
        node: &Node,
        has_joined: bool,
    ) -> Result<RingVersion, Trouble> {
        let known = discovered.borrow_and_update().view.ring.clone();
        self.check_that_the_id_is_free(live, has_joined).await?;
        // A lease that still stands is used again, so that none is left behind to delete what a later
        // one has put.
        let standing = match *lease {
            Some(id) if self.registry.renew(id).await? => id,
            _ => {
                *lease = None;
                let granted = self.registry.grant(self.lease_ttl).await?;
                // Others see a node of this id from the next call on, and may ask it: it answers when it has
                // read what it was not told of without a lease.
                node.lease_lost();
                granted
            }
        };
        *lease = Some(standing);
        let naming = NamingRecord::new(&self.node.addr);
        let naming_key = NamingRecord::key(&self.naming_service, &self.node.addr);
        self.registry.put(&self.keys.live(&self.node.id), live.encode(), *lease).await?;
        self.registry.put(&naming_key, naming.encode(), *lease).await?;
        let version = self.join(&known, has_joined).await?;
        tracing::info!(node = self.node.id, addr = self.node.addr, ring_version = version.0, "registered");
        Ok(version)
    }

    /// Two nodes of one id would take turns in writing their addresses into the ring, for ever. At the same
    /// address one that starts takes the place of another, which has ended or will.
    async fn check_that_the_id_is_free(&self, live: &Liveness, has_joined: bool) -> Result<(), Trouble> {
        let Some(other) = holder_of(&*self.registry, &self.keys, &self.node.id).await? else { return Ok(()) };
        if has_joined && is_later(&other, live) {
            return Err(Trouble::Replaced);
        }
        if other.incarnation != live.incarnation && other.addr != live.addr {
            return Err(in_use(&self.node.id, &other.addr).into());
        }
        Ok(())
    }

    /// Makes the node a member as it describes itself, by compare-and-swap, and tells the ring's version.
    /// One that was a member in this life of the process, and was taken out by an operator, stays out.
    async fn join(&self, known: &RingDocument, has_joined: bool) -> Result<RingVersion, RegistryError> {
        let key = self.keys.ring();
        let known = &self.seen.or_later(known);
        for _ in 0..SWAP_ATTEMPTS {
            let entry = self.registry.get(&key).await?;
            let expected = entry.as_ref().map_or(0, |entry| entry.revision);
            let stored = match entry.map(|entry| RingDocument::decode(&entry.value)) {
                None => None,
                Some(Ok(ring)) => Some(ring),
                // A newer build keeps it.
                Some(Err(error)) if error.is_newer_format() && has_joined => {
                    tracing::debug!(error = format_args!("{error:#}"), "the ring is a newer build's");
                    return Ok(known.version);
                }
                Some(Err(error)) if error.is_newer_format() => {
                    return Err(RegistryError::new(format!("will not overwrite {key}: {error}")));
                }
                Some(Err(error)) if known.version == RingVersion::NONE => {
                    let mend = "a node that knows the ring writes it again; where none does, delete the key";
                    return Err(RegistryError::new(format!("will not overwrite {key}: {error}; {mend}")));
                }
                Some(Err(error)) => {
                    tracing::warn!(
                        error = format_args!("{error:#}"),
                        "writing the last good ring in place of one that cannot be used"
                    );
                    None
                }
            };
            let stored = stored.filter(|ring| ring.follows(known));
            stored.iter().for_each(|ring| self.seen.note(ring));
            let now_ms = wall_clock_ms();
            if let Some(ring) = stored.as_ref().filter(|ring| has_joined && ring.is_drained(&self.node.id)) {
                return Ok(ring.version);
            }
            let Some(mut ring) = next_ring(stored.as_ref(), known, &self.node, now_ms) else {
                return Ok(stored.map_or(RingVersion::NONE, |ring| ring.version));
            };
            ring.forget_departed(now_ms, u64::try_from(self.max_ttl.as_millis()).unwrap_or(u64::MAX));
            let version = ring.version;
            let swapped = swap_ring(&*self.registry, &self.keys, expected, ring.clone()).await;
            if swapped.map_err(|e| RegistryError::new("cannot join").with_source(e))? {
                self.seen.note(&ring);
                return Ok(version);
            }
        }
        Err(RegistryError::new(format!("{key} changed {SWAP_ATTEMPTS} times while this node tried to join")))
    }

    /// Takes the node out of the ring.
    async fn leave(&self) -> Result<(), RegistryError> {
        let without = |ring: &RingDocument| ring.without(&self.node.id, wall_clock_ms());
        change_ring(&*self.registry, &self.keys, without).await.map(drop)
    }

    /// Renews the lease until something has to be registered again, or until `until`, and says why.
    async fn hold(
        &self,
        (live, lease): (&Liveness, &mut Option<LeaseId>),
        discovered: &mut watch::Receiver<Discovered>,
        node: &Node,
        until: Option<Instant>,
    ) -> &'static str {
        let Some(id) = *lease else { return "there is no lease" };
        let mut renewed = Instant::now();
        let interval = (self.lease_ttl / 3).min(LONGEST_RENEWAL);
        let mut next_renewal = renewed + interval;
        let mut seen_alive = false;
        let mut was_drained = discovered.borrow().view.ring.is_drained(&self.node.id);
        let mut over = pin!(OptionFuture::from(until.map(sleep_until)));
        loop {
            tokio::select! {
                biased;
                Some(()) = &mut over => return "it is time to try again",
                () = node.wake().doubt() => return LOST,
                () = sleep_until(next_renewal) => {
                    let sent = uptime();
                    match self.registry.renew(id).await {
                        Ok(true) => {
                            // Without its liveness record nobody sees the lease.
                            if until.is_none() {
                                node.near().give_until(sent + self.lease_ttl);
                            }
                            renewed = Instant::now();
                            next_renewal = renewed + interval;
                        }
                        Ok(false) => {
                            *lease = None;
                            return "the lease was lost";
                        }
                        Err(error) => {
                            // Told once: the first failure after a success comes at its time.
                            if next_renewal <= renewed + interval {
                                tracing::warn!(error = format_args!("{error:#}"), "the lease was not renewed; trying again until it is");
                            }
                            next_renewal = Instant::now() + (self.lease_ttl / 10).max(Duration::from_millis(100));
                        }
                    }
                }
                changed = discovered.changed() => {
                    if changed.is_err() {
                        return "discovery ended";
                    }
                    let view = discovered.borrow_and_update().view.clone();
                    node.learn_of_ring(view.ring.version);
                    self.note_drained(&view, &mut was_drained);
                    let record = view.live.get(&self.node.id);
                    let alive = record.is_some_and(|record| record.incarnation == live.incarnation);
                    // Before its own was seen the record may be the last process's.
                    if seen_alive && record.is_some_and(|other| is_later(other, live)) {
                        return REPLACED;
                    }
                    // Where trouble is known, the time for the next attempt is set.
                    if until.is_none()
                        && let Some(why) = self.why_anew(&view, seen_alive && !alive)
                    {
                        return why;
                    }
                    seen_alive = alive;
                }
            }
        }
    }

    /// Has the audit log say when somebody takes the node out of the ring.
    fn note_drained(&self, view: &FleetView, was_drained: &mut bool) {
        let is_drained = view.ring.is_drained(&self.node.id);
        let was_drained = std::mem::replace(was_drained, is_drained);
        if is_drained && !was_drained {
            tracing::info!(target: AUDIT, node = self.node.id, "an operator has drained this node");
        }
    }

    /// Why the node has to register again, by what the registry has; `has_vanished`: its record was there.
    fn why_anew(&self, view: &FleetView, has_vanished: bool) -> Option<&'static str> {
        let is_read = view.revision > 0 && view.ring.version > RingVersion::NONE;
        if view.ring_was_lost() {
            Some("the registry has lost the ring")
        } else if view.unreadable.contains(&self.node.id) {
            Some("the liveness record cannot be read")
        } else if has_vanished {
            Some(VANISHED)
        } else if is_read && !is_member(&view.ring, &self.node) && !view.ring.is_drained(&self.node.id) {
            Some("the ring does not have this node as it is")
        } else {
            None
        }
    }
}

/// Whether trouble is to be told of: not too often, and where it is what was told last only after `again`.
fn is_due(said: &Option<(Instant, String)>, why: &str, again: Duration) -> bool {
    said.as_ref().is_none_or(|(at, last)| at.elapsed() > if last == why { SAY.max(again) } else { SAY })
}

fn is_member(ring: &RingDocument, node: &NodeInfo) -> bool {
    ring.member(&node.id)
        .is_some_and(|m| (&m.addr, &m.zone, m.weight) == (&node.addr, &node.zone, node.weight))
}

/// The ring to write so that `node` is a member; `None` where the stored one is as it should be.
///
/// Where the registry holds less than this node knows (it was restored from a backup, or begun anew), the
/// last good ring is written again under a version above both, with the nodes that have joined meanwhile.
/// Others may have heard of later rings, before they were lost, than this node: the version is above those
/// too.
fn next_ring(
    stored: Option<&RingDocument>,
    known: &RingDocument,
    node: &NodeInfo,
    now_ms: u64,
) -> Option<RingDocument> {
    if let Some(stored) = stored
        && stored.version >= known.version
    {
        return stored.with(node, now_ms);
    }
    let mut ring = RingDocument::empty(DEFAULT_POINTS);
    if known.version > RingVersion::NONE {
        ring = RingDocument { version: known.version.plus(UNHEARD), ..known.clone() };
    }
    let newcomers = stored.iter().flat_map(|ring| &ring.members).map(|m| NodeInfo {
        id: m.id.clone(),
        addr: m.addr.clone(),
        zone: m.zone.clone(),
        weight: m.weight,
    });
    for newcomer in newcomers.chain([node.clone()]) {
        ring = ring.with(&newcomer, now_ms).unwrap_or(ring);
    }
    Some(ring)
}

#[cfg(test)]
mod tests;
