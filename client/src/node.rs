//! A handle to one node: its lanes beside its monitor.
//!
//! Handles outlive ring swaps: the same node keeps its handle, with its connections, from ring to ring.

use std::fmt;
use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use peanut_proto::discovery::Discovered;
use peanut_proto::frame::{FRAME_BYTES, Write};
use peanut_proto::intervals::LOSS_NOTICED;
use peanut_proto::numbers::RingVersion;
use smallvec::SmallVec;
use tokio::time::Instant;

use crate::claims::Claims;
use crate::config::Config;
use crate::error::{Error, ErrorKind};
use crate::lane::{Answer, Choice, EachSender, Failure, Lane, Limits, Owner, Reply};
use crate::monitor::Monitor;
use crate::near::LaneCopies;
use crate::portions::portions;
use crate::refusal::Refusal;
use crate::request::{Attempt, Each, Key, ManyAttempt, Placement, Request};
use crate::unary;

/// Lanes to the only node of a fleet.
const LANES_OF_ONE_NODE: usize = 2;

/// A part of an operation of many keys: as many as are no longer than a frame, as far as one is not.
const ONE_FRAME: (usize, usize) = (usize::MAX, FRAME_BYTES);

/// A node of the fleet: its [`Monitor`], to which it dereferences, and its lanes.
pub(crate) struct Node {
    monitor: Arc<Monitor>,
    lanes: Box<[Lane]>,
    /// How many of them are used.
    lanes_in_use: AtomicUsize,
    choice: Choice,
    /// What it says of rings that the client does not know.
    claims: Mutex<Claims>,
    /// Hints stored for it in the registry since it was last reached, and not seen to be read.
    hints: AtomicU32,
    /// When it was first and last seen that the registry has no mark of its.
    unmarked: Mutex<Option<(Instant, Instant)>>,
    gone: Mutex<Gone>,
    /// `gone` for those who only look.
    is_gone: AtomicBool,
}

/// What writers have seen of a node since it was last reached.
#[derive(Debug, Default)]
struct Gone {
    hint: Option<LeftHint>,
    /// When it was first passed over, since it holds no lease, and which lapse that was.
    passed_over: Option<(Instant, Lapse)>,
}

/// A hint that a node had not read when it was gone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct LeftHint {
    /// Its key in the registry.
    pub(crate) at: String,
    /// When the node was gone.
    pub(crate) left: Instant,
    /// The lapse in which that was. A node that has been back may have failed to remove what it has read.
    pub(crate) lapse: Lapse,
}

/// Identifies one period without a lease, as one reading of the fleet and what was watched since then tell it
/// from others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Lapse {
    read: Instant,
    began_at: Option<i64>,
}

impl Lapse {
    /// That of a node which holds none now; `None` while the registry cannot be watched.
    pub(crate) fn of(id: &str, discovered: &Discovered) -> Option<Self> {
        let read = discovered.read.filter(|_| discovered.trouble.is_none())?;
        Some(Lapse { read, began_at: discovered.view.lapsed.get(id).copied() })
    }
}

impl Deref for Node {
    type Target = Arc<Monitor>;

    fn deref(&self) -> &Arc<Monitor> {
        &self.monitor
    }
}

impl Owner for Node {
    fn monitor(&self) -> &Arc<Monitor> {
        &self.monitor
    }

    fn leave_idle_lanes(&self, died: u32) {
        self.lanes.iter().filter(|lane| lane.slot() != died).for_each(Lane::leave_if_idle);
    }
}

impl Node {
    /// A handle to the node of that id at that address. Connects when it is first used. An invalid address,
    /// or one that a token must not go to, yields a node whose calls always fail, and leaves the others
    /// usable.
    pub(crate) fn new(id: &str, addr: &str, config: &Config) -> Self {
        let monitor = Arc::new(Monitor::new(id, addr, config));
        let most = config.lanes_per_node.unwrap_or(LANES_OF_ONE_NODE);
        let limits = limits(config, most);
        let connector = monitor.connector();
        let lanes =
            connector.into_iter().flat_map(|connector| (0..).take(most).map(move |slot| (connector, slot)));
        Node {
            lanes: lanes
                .map(|(connector, slot)| {
                    let near = config.near.as_ref().map(|near| LaneCopies::new(near.clone(), id));
                    Lane::new(connector.clone(), slot, limits, near)
                })
                .collect(),
            monitor: monitor.clone(),
            lanes_in_use: AtomicUsize::new(most),
            choice: Choice::new(),
            claims: Mutex::default(),
            hints: AtomicU32::new(0),
            unmarked: Mutex::default(),
            gone: Mutex::default(),
            is_gone: AtomicBool::new(false),
        }
    }

    /// Hears how many nodes the fleet has, which decides how many lanes are worth it.
    pub(crate) fn among(&self, nodes: usize) {
        let lanes = self.config().lanes_per_node.unwrap_or(if nodes > 1 { 1 } else { LANES_OF_ONE_NODE });
        if self.lanes_in_use.swap(lanes, Ordering::Relaxed) != lanes {
            self.lanes.iter().for_each(|lane| lane.limit(limits(self.config(), lanes)));
        }
    }

    fn lanes(&self) -> &[Lane] {
        &self.lanes[..self.lanes_in_use.load(Ordering::Relaxed).min(self.lanes.len())]
    }

    /// Operations in flight to it.
    #[cfg(feature = "metrics")]
    pub(crate) fn in_flight(&self) -> usize {
        self.lanes().iter().map(Lane::in_flight).sum()
    }

    /// Asks the node for one key.
    pub(crate) async fn get(self: &Arc<Self>, ask: &Attempt<'_>, now: Instant) -> Result<Reply, Refusal> {
        if !self.is_unary_only() {
            match self.ask_a_lane(ask, now).await {
                Err(Failure::Unimplemented) => self.set_unary_only(),
                answer => return answer.map_err(|failure| self.failed(failure, ask.request.deadline)),
            }
        }
        Box::pin(unary::get(&self.monitor, ask)).await
    }

    /// Has the node write. Writes of one key take one lane, in order, while that is open.
    pub(crate) async fn write(self: &Arc<Self>, ask: &Attempt<'_>, now: Instant) -> Result<Reply, Refusal> {
        let Some(lane) = self.write_lane(ask.request.hash) else {
            return Err(Refusal::Elsewhere(Error::at(
                ErrorKind::Unavailable,
                self.id(),
                &*self.out_of_reach(),
            )));
        };
        if !self.is_unary_only() {
            match lane.ask(self, ask, now).answer().await {
                Err(Failure::Unimplemented) => self.set_unary_only(),
                answer => return answer.map_err(|failure| self.failed(failure, ask.request.deadline)),
            }
        }
        Box::pin(unary::write(&self.monitor, ask)).await
    }

    /// The lane of a key, or another while that is not open.
    fn write_lane(&self, hash: u64) -> Option<&Lane> {
        // The higher bits: the lower ones choose slots.
        let lanes = self.lanes();
        let lane = lanes.get((hash >> 32) as usize % lanes.len().max(1))?;
        if lane.is_open() { Some(lane) } else { self.less_busy().or(Some(lane)) }
    }

    /// What it has said of rings that the client does not know.
    pub(crate) fn claims(&self) -> &Mutex<Claims> {
        &self.claims
    }

    /// How many hints were stored for it in the registry since it was last reached, and not seen to be read.
    pub(crate) fn hints(&self) -> &AtomicU32 {
        &self.hints
    }

    /// Takes in whether the registry has a mark of its, and says for how long it has had none. It may have
    /// had one in between where nobody has looked for longer than that matters, or the registry has lost its
    /// data once more.
    pub(crate) fn unmarked_for(
        &self,
        is_marked: bool,
        lost: Option<Instant>,
        now: Instant,
    ) -> Option<Duration> {
        let mut unmarked = self.unmarked.lock();
        let before = unmarked
            .take()
            .filter(|(since, last)| now < *last + LOSS_NOTICED && lost.is_none_or(|lost| lost <= *since));
        *unmarked = (!is_marked).then(|| (before.map_or(now, |(since, _)| since), now));
        unmarked.map(|(since, _)| now.saturating_duration_since(since))
    }

    /// Near copies that it has given are read no more.
    pub(crate) fn forget_near_copies(&self) {
        self.lanes.iter().for_each(Lane::forget_near_copies);
    }

    /// It was gone, and a hint is stored for it that it has not read.
    pub(crate) fn left_hint(&self, hint: LeftHint) {
        self.is_gone.store(true, Ordering::Relaxed);
        self.gone.lock().hint = Some(hint);
    }

    /// The hint that it had not read when it was gone.
    pub(crate) fn standing_hint(&self) -> Option<LeftHint> {
        self.gone.lock().hint.clone()
    }

    /// The hint is not there any more.
    pub(crate) fn forget_hint(&self) {
        self.gone.lock().hint = None;
    }

    /// It is passed over, as one that holds no lease. Since when it has been, as far as is known: in another
    /// lapse it may have held one in between.
    pub(crate) fn passed_over(&self, lapse: Option<Lapse>, now: Instant) -> Instant {
        self.is_gone.store(true, Ordering::Relaxed);
        let mut gone = self.gone.lock();
        let same = gone.passed_over.filter(|(_, known)| lapse == Some(*known));
        let since = same.map_or(now, |(since, _)| since);
        gone.passed_over = lapse.map(|lapse| (since, lapse));
        since
    }

    /// It has answered a write.
    pub(crate) fn was_reached(&self) {
        if self.is_gone.load(Ordering::Relaxed) {
            self.is_gone.store(false, Ordering::Relaxed);
            *self.gone.lock() = Gone::default();
        }
    }

    async fn ask_a_lane(self: &Arc<Self>, ask: &Attempt<'_>, now: Instant) -> Answer {
        if self.lanes.is_empty() {
            return Err(Failure::Lost(self.out_of_reach()));
        }
        // The one lane of a node in a fleet: identical operations meet there.
        if let [only] = self.lanes() {
            return only.ask(self, ask, now).answer().await;
        }
        let chosen = self.choice.choose(ask.request.hash, self.lanes(), |lanes| fastrand::usize(..lanes));
        self.lanes[chosen.lane].ask(self, ask, now).answer().await
    }

    /// Asks the node for many keys at once, which it owns since the version beside each: `keys` are in the
    /// order of those. `None` where it has no lanes: then each has to be asked for alone.
    pub(crate) async fn get_many(
        self: &Arc<Self>,
        request: &Request<'_>,
        ring_version: RingVersion,
        keys: &[(RingVersion, Key<'_>)],
        now: Instant,
    ) -> Option<Vec<Result<Reply, Refusal>>> {
        let lane = self.less_busy()?;
        let asks = Node::gets(request, ring_version, keys);
        self.ask_for_many(lane, &asks, request.deadline, now).await
    }

    /// As [`get_many`](Self::get_many), where each answer goes to the sender as it comes, by the position of
    /// the key, counted on from `first`. `None` where it has no lanes; else whether
    /// [`leave_if_still`](Self::leave_if_still) is to be called now and then while answers are waited for.
    pub(crate) fn get_each(
        self: &Arc<Self>,
        request: &Request<'_>,
        ring_version: RingVersion,
        keys: &[(RingVersion, Key<'_>)],
        (sender, first): (&EachSender, usize),
        now: Instant,
    ) -> Option<bool> {
        let lane = self.less_busy()?;
        let asks = Node::gets(request, ring_version, keys);
        Some(lane.ask_each(self, &asks, (sender, first), now))
    }

    /// What a lane's answer to one of many keys comes to.
    pub(crate) fn answered(&self, answer: Answer, deadline: Instant) -> Result<Reply, Refusal> {
        if matches!(answer, Err(Failure::Unimplemented)) {
            self.set_unary_only();
            let why = "the node knows no lanes";
            return Err(Refusal::Again(Error::at(ErrorKind::Unavailable, self.id(), why)));
        }
        answer.map_err(|failure| self.failed(failure, deadline))
    }

    /// Leaves lanes whose driver is on a runtime that stands still.
    pub(crate) fn leave_if_still(&self) {
        self.lanes.iter().for_each(Lane::leave_if_still);
    }

    /// Has the node do many writes at once, of keys that it owns. `None` where it has no lanes.
    pub(crate) async fn write_many(
        self: &Arc<Self>,
        request: &Request<'_>,
        ring_version: RingVersion,
        writes: &[Write<'_>],
        now: Instant,
    ) -> Option<Vec<Result<Reply, Refusal>>> {
        let lane = self.less_busy()?;
        let placement = Placement::owner(ring_version, RingVersion::NONE);
        let parts = portions(writes, ONE_FRAME, Write::bytes);
        let asks: SmallVec<[_; 1]> = parts
            .map(|writes| ManyAttempt { request: *request, placement, each: Each::Write(writes) })
            .collect();
        self.ask_for_many(lane, &asks, request.deadline, now).await
    }

    fn gets<'a>(
        request: &Request<'a>,
        ring_version: RingVersion,
        keys: &'a [(RingVersion, Key<'a>)],
    ) -> SmallVec<[ManyAttempt<'a>; 1]> {
        let mut asks = SmallVec::new();
        for keys in keys.chunk_by(|(a, _), (b, _)| a == b) {
            let placement = Placement::owner(ring_version, keys[0].0);
            let parts = portions(keys, ONE_FRAME, |(_, key)| key.bytes.len());
            asks.extend(parts.map(|keys| ManyAttempt {
                request: *request,
                placement,
                each: Each::Get(keys),
            }));
        }
        asks
    }

    async fn ask_for_many(
        self: &Arc<Self>,
        lane: &Lane,
        asks: &[ManyAttempt<'_>],
        deadline: Instant,
        now: Instant,
    ) -> Option<Vec<Result<Reply, Refusal>>> {
        let answers = lane.ask_many(self, asks, now).answers().await;
        if answers.iter().any(|answer| matches!(answer, Err(Failure::Unimplemented))) {
            self.set_unary_only();
            return None;
        }
        Some(answers.into_iter().map(|answer| self.answered(answer, deadline)).collect())
    }

    /// The lane for operations of many keys; `None` where it has none.
    fn less_busy(&self) -> Option<&Lane> {
        let has_lanes = !self.lanes.is_empty() && !self.is_unary_only();
        has_lanes.then(|| &self.lanes[Choice::less_busy(self.lanes(), |lanes| fastrand::usize(..lanes))])
    }

    fn failed(&self, failure: Failure, deadline: Instant) -> Refusal {
        match failure {
            Failure::Said(code, message) => self.said(code, &message, deadline),
            Failure::Late => Refusal::Final(self.too_late()),
            Failure::Full(why) => Refusal::Final(Error::at(ErrorKind::Overloaded, self.id(), why)),
            Failure::Lost(why) => Refusal::Elsewhere(Error::at(ErrorKind::Unavailable, self.id(), &*why)),
            Failure::Broken(why) => Refusal::Again(Error::at(ErrorKind::Unavailable, self.id(), &*why)),
            Failure::Unimplemented => {
                Refusal::Final(Error::at(ErrorKind::Protocol, self.id(), "the node knows no lanes"))
            }
        }
    }
}

impl fmt::Debug for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Node").field("id", &self.id()).field("addr", &self.addr()).finish_non_exhaustive()
    }
}

/// What one of so many lanes may have in flight.
fn limits(config: &Config, lanes: usize) -> Limits {
    Limits {
        operations: config.operations_per_node / lanes,
        queued_bytes: config.queued_bytes_per_node / lanes,
    }
}
