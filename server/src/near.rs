//! Near copies: what clients answer from their own memory, and what writes wait for because of that.
//!
//! Leases (Gray and Cheriton, "Leases: An Efficient Fault-Tolerant Mechanism for Distributed File Cache
//! Consistency", SOSP 1989), one for all copies of a lane, as volume leases have them (Yin, Alvisi, Dahlin
//! and Lin, 1999). An answer may be kept by its client, which reads it only while the lane's lease stands:
//! for [`near_lease`] from when the client has sent its last renewal. The node reckons from when the renewal
//! came, which is later, and for longer. A write of a key tells the lanes that hold it, and is not
//! acknowledged before each has confirmed, or its lease is over.
//!
//! What keeps the order: a copy is put down here before the store is read for the answer, and a write looks
//! here after it has changed the store, so one of the two sees the other. What a lane is told stands in its
//! stream before every answer and renewal that comes after it, so a client that reads a renewal has dropped
//! what was outdated by then.

mod caller;
mod copies;
mod lane;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use peanut_proto::clock::{nanoseconds, uptime};
use peanut_proto::intervals::near_lease_at_node;
use peanut_proto::sabotage::{Mechanism, without};
use tokio::time::sleep;

use caller::NearCaller;
use copies::SeenLanes;

pub(crate) use caller::Who;
pub(crate) use copies::{Copies, Put};
pub(crate) use lane::{LaneId, NearLane};

/// Copies of all lanes; beyond that no more are given.
const MOST: usize = 1 << 20;
/// Copies of all lanes of one caller, so that none takes all there may be.
const MOST_OF_CALLER: usize = MOST / 4;
/// Copies of one lane.
const MOST_OF_LANE: usize = 1 << 16;
/// For so long a lane that has not confirmed in time is given no lease: each write might wait for it else.
const TARDY: Duration = Duration::from_secs(10);

/// The near leases of a node.
#[derive(Debug)]
pub(crate) struct NearLeases {
    /// Those whose leases may stand, and those that are open.
    lanes: Mutex<HashMap<LaneId, Arc<NearLane>>>,
    callers: Mutex<HashMap<Who, Arc<NearCaller>>>,
    next: AtomicU32,
    /// Copies that are put down.
    copies: AtomicUsize,
    /// Leases are given and renewed until then, as of [`uptime`]: while the registry has the node's own
    /// lease.
    given_until: Moment,
    /// How many leases the registry has granted to this process.
    granted: AtomicU64,
    /// The last of them with which the process has written its mark, by which writers tell that it has been
    /// back, and has read its hints.
    marked: AtomicU64,
    /// Hints that have been applied, and may be in the registry still: a writer that finds one there takes it
    /// that the node has given nothing since it was stored.
    unremoved: AtomicUsize,
    /// No write is acknowledged before: clients may have leases of the process before this one.
    quiet_until: Moment,
    pub(crate) metrics: NearMetrics,
}

/// A time as of [`uptime`] that may change.
#[derive(Debug)]
struct Moment(AtomicU64);

impl Moment {
    fn new(at: Duration) -> Self {
        Moment(AtomicU64::new(nanoseconds(at)))
    }

    fn get(&self) -> Duration {
        Duration::from_nanos(self.0.load(Ordering::Acquire))
    }

    fn set(&self, at: Duration) {
        self.0.store(nanoseconds(at), Ordering::Release);
    }
}

/// What near copies have come to.
#[derive(Debug, Default)]
pub(crate) struct NearMetrics {
    /// Answers that were given with leave to keep them.
    pub(crate) given: AtomicU64,
    /// Leases of lanes that were renewed.
    pub(crate) renewed: AtomicU64,
    /// Copies that were outdated, and lanes told so.
    pub(crate) invalidated: AtomicU64,
    /// Writes that waited for lanes to confirm, and for how many microseconds.
    pub(crate) waited: AtomicU64,
    pub(crate) waited_us: AtomicU64,
    /// Leases that were waited for until they were over.
    pub(crate) unconfirmed: AtomicU64,
}

impl NearLeases {
    /// None. Until [`first_start`](Self::first_start) it is taken that there was a process before this one.
    pub(crate) fn new() -> Self {
        NearLeases {
            lanes: Mutex::default(),
            callers: Mutex::default(),
            next: AtomicU32::new(1),
            copies: AtomicUsize::new(0),
            given_until: Moment::new(Duration::MAX),
            granted: AtomicU64::new(0),
            marked: AtomicU64::new(0),
            unremoved: AtomicUsize::new(0),
            quiet_until: Moment::new(uptime() + near_lease_at_node()),
            metrics: NearMetrics::default(),
        }
    }

    /// No process was this node before, as far as is known.
    pub(crate) fn first_start(&self) {
        self.quiet_until.set(Duration::ZERO);
    }

    /// Leases may be given until then: as long as the registry is known to have the node's own. Else a writer
    /// that finds none there would have to wait for leases of which nobody knows.
    pub(crate) fn give_until(&self, until: Duration) {
        self.given_until.set(until);
    }

    /// The registry has granted another lease: near leases wait for its mark.
    pub(crate) fn granted(&self) {
        self.granted.fetch_add(1, Ordering::AcqRel);
    }

    /// The number of the last lease that was granted.
    pub(crate) fn last_granted(&self) -> u64 {
        self.granted.load(Ordering::Acquire)
    }

    /// The registry has the mark of the lease of that number, and the process has read its hints since.
    pub(crate) fn marked(&self, lease: u64) {
        self.marked.fetch_max(lease, Ordering::AcqRel);
    }

    pub(crate) fn may_give(&self, now: Duration) -> bool {
        self.unremoved.load(Ordering::Acquire) == 0
            && self.marked.load(Ordering::Acquire) == self.last_granted()
            && now < self.given_until.get()
    }

    /// Hints were applied, and are to be removed from the registry.
    pub(crate) fn will_remove(&self, hints: usize) {
        self.unremoved.fetch_add(hints, Ordering::AcqRel);
    }

    /// They are removed.
    pub(crate) fn removed(&self, hints: usize) {
        self.unremoved.fetch_sub(hints, Ordering::AcqRel);
    }

    /// A lane of a caller that holds nothing yet.
    pub(crate) fn open(&self, staleness: Duration, who: Who) -> Arc<NearLane> {
        let caller = self.callers.lock().entry(who).or_default().clone();
        let mut lanes = self.lanes.lock();
        let lane = Arc::new(NearLane::new(self.next_id(&lanes), staleness, caller));
        lanes.insert(lane.id(), lane.clone());
        lane
    }

    /// With `lanes` locked: every number before this is in the map or gone. The numbers begin anew after the
    /// last, so one that a lane has still is passed over.
    fn next_id(&self, lanes: &HashMap<LaneId, Arc<NearLane>>) -> LaneId {
        loop {
            let id = LaneId(self.next.fetch_add(1, Ordering::Relaxed));
            if !lanes.contains_key(&id) {
                return id;
            }
        }
    }

    /// What this lane held is forgotten; its client is told in the stream. Gives the lane as which it goes
    /// on.
    pub(crate) fn reopen(&self, lane: &NearLane) -> Arc<NearLane> {
        let mut lanes = self.lanes.lock();
        let anew = Arc::new(lane.anew(self.next_id(&lanes)));
        lanes.remove(&lane.id());
        lanes.insert(anew.id(), anew.clone());
        drop(lanes);
        lane.let_all_go();
        anew
    }

    /// A lease was renewed.
    pub(crate) fn renewed(&self) {
        self.metrics.renewed.fetch_add(1, Ordering::Relaxed);
    }

    fn lane(&self, id: LaneId) -> Option<Arc<NearLane>> {
        self.lanes.lock().get(&id).cloned()
    }

    /// How many copies are put down.
    pub(crate) fn copies(&self) -> usize {
        self.copies.load(Ordering::Relaxed)
    }

    /// Forgets lanes that have ended and whose leases are over.
    pub(crate) fn sweep(&self, now: Duration) {
        self.lanes.lock().retain(|_, lane| {
            let is_gone = lane.is_gone(now);
            if is_gone {
                lane.let_all_go();
            }
            !is_gone
        });
        self.callers.lock().retain(|_, caller| Arc::strong_count(caller) > 1 || caller.was_tardy_lately(now));
    }

    /// The lanes as of now.
    fn seen(&self, now: Duration) -> SeenLanes {
        let lanes = self.lanes.lock();
        let before = LaneId(self.next.load(Ordering::Relaxed));
        let lanes = lanes.iter().map(|(id, lane)| (*id, (lane.clone(), lane.stands(now)))).collect();
        SeenLanes { lanes, before, now }
    }
}

/// What a write waits for.
#[derive(Debug, Default)]
pub(crate) struct Unconfirmed {
    /// Each with the number that it has to confirm, and when its lease is over.
    lanes: Vec<(Arc<NearLane>, u64, Duration)>,
    quiet_until: Duration,
}

impl Unconfirmed {
    fn after(near: &NearLeases) -> Self {
        let mut quiet_until = near.quiet_until.get();
        if !quiet_until.is_zero() && (uptime() >= quiet_until || without(Mechanism::NearStart)) {
            near.quiet_until.set(Duration::ZERO);
            quiet_until = Duration::ZERO;
        }
        Unconfirmed { lanes: Vec::new(), quiet_until }
    }

    fn add(&mut self, lane: &Arc<NearLane>, number: u64, by: Option<LaneId>) {
        if lane.is_awaited()
            && by != Some(lane.id())
            && !lane.has_confirmed(number)
            && !without(Mechanism::NearWait)
        {
            self.lanes.push((lane.clone(), number, lane.until()));
        }
    }

    /// Whether there is nothing to wait for.
    pub(crate) fn is_none(&self) -> bool {
        self.lanes.is_empty() && self.quiet_until.is_zero()
    }

    /// Waits until each lane has confirmed, or its lease is over.
    pub(crate) async fn confirmed(self, near: &NearLeases) {
        if self.is_none() {
            return;
        }
        let begun = uptime();
        for (lane, number, until) in self.lanes {
            if !lane.confirms(number, until).await {
                near.metrics.unconfirmed.fetch_add(1, Ordering::Relaxed);
            }
        }
        loop {
            let left = self.quiet_until.saturating_sub(uptime());
            if left.is_zero() {
                break;
            }
            sleep(left).await;
        }
        near.metrics.waited.fetch_add(1, Ordering::Relaxed);
        let waited = uptime().saturating_sub(begun).as_micros();
        near.metrics.waited_us.fetch_add(u64::try_from(waited).unwrap_or(u64::MAX), Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests;
