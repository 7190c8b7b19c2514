//! Near copies: what clients answer from their own memory, and what writes wait for because of that.
//!
//! Leases (Gray and Cheriton, "Leases: An Efficient Fault-Tolerant Mechanism for Distributed File Cache
//! Consistency", SOSP 1989), one for all copies of a lane, as volume leases have them (Yin, Alvisi, Dahlin and Lin,
//! 1999). An answer may be kept by its client, which reads it only while the lane's lease stands: for [`near_lease`]
//! from when the client has sent its last renewal. The node reckons from when the renewal came, which is later, and for
//! longer. A write of a key tells the lanes that hold it, and is not acknowledged before each has confirmed, or its lease
//! is over.
//!
//! What keeps the order: a copy is put down here before the store is read for the answer, and a write looks here
//! after it has changed the store, so one of the two sees the other. What a lane is told stands in its stream before
//! every answer and renewal that comes after it, so a client that reads a renewal has dropped what was outdated by then.

mod lane;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use peanut_proto::clock::{nanoseconds, uptime};
use peanut_proto::intervals::{near_copy, near_lease_at_node};
use peanut_proto::sabotage::{Mechanism, without};
use smallvec::SmallVec;
use tokio::time::sleep;

pub(crate) use lane::{LaneId, NearLane};

/// Copies of all lanes; beyond that no more are given.
const MOST: usize = 1 << 20;
/// Copies of one lane.
const MOST_OF_LANE: usize = 1 << 16;

/// The near leases of a node.
#[derive(Debug)]
pub(crate) struct NearLeases {
    /// Those whose leases may stand, and those that are open.
    lanes: Mutex<HashMap<LaneId, Arc<NearLane>>>,
    next: AtomicU32,
    /// Copies that are put down.
    copies: AtomicUsize,
    /// Leases are given and renewed until then, as of [`uptime`]: while the registry has the node's own lease.
    given_until: Moment,
    /// Hints that have been applied, and may be in the registry still: a writer that finds one there takes it that the node
    /// has given nothing since it was stored.
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
            next: AtomicU32::new(1),
            copies: AtomicUsize::new(0),
            given_until: Moment::new(Duration::MAX),
            unremoved: AtomicUsize::new(0),
            quiet_until: Moment::new(uptime() + near_lease_at_node()),
            metrics: NearMetrics::default(),
        }
    }

    /// No process was this node before, as far as is known.
    pub(crate) fn first_start(&self) {
        self.quiet_until.set(Duration::ZERO);
    }

    /// Leases may be given until then: as long as the registry is known to have the node's own. Else a writer that finds
    /// none there would have to wait for leases of which nobody knows.
    pub(crate) fn give_until(&self, until: Duration) {
        self.given_until.set(until);
    }

    pub(crate) fn may_give(&self, now: Duration) -> bool {
        self.unremoved.load(Ordering::Acquire) == 0 && now < self.given_until.get()
    }

    /// Hints were applied, and are to be removed from the registry.
    pub(crate) fn will_remove(&self, hints: usize) {
        self.unremoved.fetch_add(hints, Ordering::AcqRel);
    }

    /// They are removed.
    pub(crate) fn removed(&self, hints: usize) {
        self.unremoved.fetch_sub(hints, Ordering::AcqRel);
    }

    /// A lane that holds nothing yet.
    pub(crate) fn open(&self, staleness: Duration) -> Arc<NearLane> {
        let lane = Arc::new(NearLane::new(self.next_id(), staleness));
        self.lanes.lock().insert(lane.id(), lane.clone());
        lane
    }

    fn next_id(&self) -> LaneId {
        LaneId(self.next.fetch_add(1, Ordering::Relaxed))
    }

    /// What this lane held is forgotten; its client is told in the stream. Gives the lane as which it goes on.
    pub(crate) fn reopen(&self, lane: &NearLane) -> Arc<NearLane> {
        let anew = Arc::new(lane.anew(self.next_id()));
        let mut lanes = self.lanes.lock();
        lanes.remove(&lane.id());
        lanes.insert(anew.id(), anew.clone());
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
        self.lanes.lock().retain(|_, lane| !lane.is_gone(now));
    }
}

/// Who holds near copies of which keys of one group.
#[derive(Debug, Default)]
pub(crate) struct Copies {
    table: Mutex<Table>,
    /// As the table has entries: nearly always none.
    entries: AtomicUsize,
}

#[derive(Debug, Default)]
struct Table {
    /// By hash of group and key.
    holders: HashMap<u64, SmallVec<[Holder; 1]>>,
    /// Lanes that have been told that all is outdated.
    cleared: Vec<(LaneId, u64)>,
    /// Where the last sweep has ended: copies are looked at in turn.
    swept: Duration,
}

/// A lane that holds a copy, or has been told to drop it.
#[derive(Clone, Copy, Debug)]
struct Holder {
    lane: LaneId,
    /// Seconds of [`uptime`] when it was given.
    given_s: u32,
    /// The number of the invalidation that it has to confirm; 0: none.
    told: u64,
}

impl Copies {
    /// Puts down that a lane has a copy; before the store is read for it. Whether there is room.
    pub(crate) fn put(&self, near: &NearLeases, lane: &NearLane, hash: u64, now: Duration) -> bool {
        let given_s = seconds(now);
        let mut table = self.table.lock();
        let holders = table.holders.entry(hash).or_default();
        let known = holders.iter_mut().find(|holder| holder.lane == lane.id());
        match known {
            Some(holder) => *holder = Holder { given_s, told: 0, ..*holder },
            None => {
                if near.copies() >= MOST || lane.held().load(Ordering::Relaxed) >= MOST_OF_LANE {
                    if holders.is_empty() {
                        table.holders.remove(&hash);
                    }
                    return false;
                }
                holders.push(Holder { lane: lane.id(), given_s, told: 0 });
                near.copies.fetch_add(1, Ordering::Relaxed);
                lane.held().fetch_add(1, Ordering::Relaxed);
            }
        }
        self.counted(&table);
        near.metrics.given.fetch_add(1, Ordering::Relaxed);
        true
    }

    /// The copies of a key are outdated: lanes that hold them are told. `by` is the lane that the write came by, whose
    /// answer stands in its stream after what it is told, so that it need not confirm.
    pub(crate) fn outdate(
        &self,
        near: &NearLeases,
        hash: impl FnOnce() -> u64,
        by: Option<LaneId>,
    ) -> Unconfirmed {
        let mut unconfirmed = Unconfirmed::after(near);
        if self.entries.load(Ordering::Acquire) == 0 {
            return unconfirmed;
        }
        let (hash, now) = (hash(), uptime());
        let mut table = self.table.lock();
        let table = &mut *table;
        table.unconfirmed_clears(near, by, now, &mut unconfirmed);
        if let Some(holders) = table.holders.get_mut(&hash) {
            holders.retain(|holder| {
                let Some(lane) = near.lane(holder.lane).filter(|lane| lane.stands(now)) else {
                    near.copies.fetch_sub(1, Ordering::Relaxed);
                    return false;
                };
                if holder.told == 0 {
                    holder.told = lane.tell(Some(hash));
                    near.metrics.invalidated.fetch_add(1, Ordering::Relaxed);
                }
                unconfirmed.add(&lane, holder.told, by);
                true
            });
            if holders.is_empty() {
                table.holders.remove(&hash);
            }
        }
        self.counted(table);
        unconfirmed
    }

    /// As [`outdate`](Self::outdate), of all keys of the group.
    pub(crate) fn outdate_all(&self, near: &NearLeases, by: Option<LaneId>) -> Unconfirmed {
        let mut unconfirmed = Unconfirmed::after(near);
        let now = uptime();
        let mut table = self.table.lock();
        let table = &mut *table;
        // In order, so that a simulated run is the same each time.
        let mut lanes = BTreeMap::<LaneId, usize>::new();
        for holder in table.holders.drain().flat_map(|(_, holders)| holders) {
            *lanes.entry(holder.lane).or_default() += 1;
        }
        for (id, copies) in lanes {
            near.copies.fetch_sub(copies, Ordering::Relaxed);
            let Some(lane) = near.lane(id) else { continue };
            lane.held().fetch_sub(copies, Ordering::Relaxed);
            if lane.stands(now) {
                near.metrics.invalidated.fetch_add(copies as u64, Ordering::Relaxed);
                table.cleared.push((id, lane.tell(None)));
            }
        }
        table.unconfirmed_clears(near, by, now, &mut unconfirmed);
        self.counted(table);
        unconfirmed
    }

    /// What has to be confirmed still of earlier clears.
    pub(crate) fn unconfirmed(&self, near: &NearLeases, by: Option<LaneId>) -> Unconfirmed {
        let mut unconfirmed = Unconfirmed::after(near);
        self.table.lock().unconfirmed_clears(near, by, uptime(), &mut unconfirmed);
        unconfirmed
    }

    /// How many lanes hold copies of a key.
    pub(crate) fn holders(&self, hash: u64) -> usize {
        self.table
            .lock()
            .holders
            .get(&hash)
            .map_or(0, |holders| holders.iter().filter(|it| it.told == 0).count())
    }

    /// Forgets copies that are over, once in a while.
    pub(crate) fn sweep(&self, near: &NearLeases, now: Duration) {
        let mut table = self.table.lock();
        if now < table.swept + SWEEP_EVERY || table.holders.is_empty() && table.cleared.is_empty() {
            return;
        }
        table.swept = now;
        let table = &mut *table;
        table.unconfirmed_clears(near, None, now, &mut Unconfirmed::default());
        let oldest = seconds(now.saturating_sub(near_copy() + near_lease_at_node()));
        table.holders.retain(|_, holders| {
            holders.retain(|holder| {
                let lane = near.lane(holder.lane).filter(|lane| lane.stands(now));
                let is_due = |lane: &Arc<NearLane>| match holder.told {
                    0 => holder.given_s >= oldest,
                    told => !lane.has_confirmed(told),
                };
                if lane.as_ref().is_some_and(is_due) {
                    return true;
                }
                near.copies.fetch_sub(1, Ordering::Relaxed);
                if let Some(lane) = lane {
                    lane.held().fetch_sub(1, Ordering::Relaxed);
                }
                false
            });
            !holders.is_empty()
        });
        table.holders.shrink_to(table.holders.len() * 2);
        self.counted(table);
    }

    fn counted(&self, table: &Table) {
        self.entries.store(table.holders.len() + table.cleared.len(), Ordering::Release);
    }
}

/// Copies are looked for that are over so often.
const SWEEP_EVERY: Duration = Duration::from_secs(1);

impl Table {
    fn unconfirmed_clears(
        &mut self,
        near: &NearLeases,
        by: Option<LaneId>,
        now: Duration,
        to: &mut Unconfirmed,
    ) {
        self.cleared.retain(|(id, number)| {
            let lane = near.lane(*id).filter(|lane| lane.stands(now) && !lane.has_confirmed(*number));
            lane.inspect(|lane| to.add(lane, *number, by)).is_some()
        });
    }
}

fn seconds(now: Duration) -> u32 {
    u32::try_from(now.as_secs()).unwrap_or(u32::MAX)
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
