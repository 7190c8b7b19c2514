//! Who holds near copies of which keys of one group.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use peanut_proto::clock::uptime;
use peanut_proto::intervals::{near_copy_at_node, near_lease_at_node};
use smallvec::SmallVec;

use super::{LaneId, MOST, NearLane, NearLeases, Unconfirmed};

/// Tables of one group: a sweep stops what goes on in one of them at a time.
const TABLES: usize = 16;

/// Who holds near copies of which keys of one group.
#[derive(Debug, Default)]
pub(crate) struct Copies {
    tables: [Mutex<Table>; TABLES],
    clears: Mutex<Clears>,
    /// As many as tables and clears have entries: nearly always none.
    entries: AtomicUsize,
}

#[derive(Debug, Default)]
struct Table {
    /// By hash of group and key.
    holders: HashMap<u64, SmallVec<[Holder; 1]>>,
    /// When it was looked through last.
    swept: Duration,
}

/// Lanes that have been told that all is outdated, each with the number that it has to confirm.
#[derive(Debug, Default)]
struct Clears(Vec<(LaneId, u64)>);

/// What a copy of a key takes in a table.
#[cfg(test)]
pub(super) const ENTRY_BYTES: usize = size_of::<(u64, SmallVec<[Holder; 1]>)>();

/// Whether a copy was put down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Put {
    /// It is.
    New,
    /// It was already.
    Known,
    /// There is no room.
    Full,
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
    fn table(&self, hash: u64) -> &Mutex<Table> {
        // By the highest bits: the lower ones choose slots within.
        &self.tables[(hash >> 60) as usize % TABLES]
    }

    /// Puts down that a lane has a copy; before the store is read for it.
    pub(crate) fn put(&self, near: &NearLeases, lane: &NearLane, hash: u64, now: Duration) -> Put {
        let given_s = seconds(now);
        let mut table = self.table(hash).lock();
        let known = table.holders.get_mut(&hash).and_then(|it| it.iter_mut().find(|it| it.lane == lane.id()));
        if let Some(holder) = known {
            *holder = Holder { given_s, told: 0, ..*holder };
            return Put::Known;
        }
        if near.copies() >= MOST || !lane.has_room() {
            return Put::Full;
        }
        let holders = table.holders.entry(hash).or_default();
        self.entries.fetch_add(usize::from(holders.is_empty()), Ordering::AcqRel);
        holders.push(Holder { lane: lane.id(), given_s, told: 0 });
        near.copies.fetch_add(1, Ordering::Relaxed);
        lane.took();
        Put::New
    }

    /// What was put down is not given after all: its client has been told nothing of it.
    pub(crate) fn take_back(&self, near: &NearLeases, lane: &NearLane, hash: u64) {
        let mut table = self.table(hash).lock();
        let Some(holders) = table.holders.get_mut(&hash) else { return };
        // A write that has found it waits for the lane; that is one confirmation too many.
        let Some(at) = holders.iter().position(|it| it.lane == lane.id() && it.told == 0) else { return };
        holders.remove(at);
        near.copies.fetch_sub(1, Ordering::Relaxed);
        lane.let_go(1);
        if holders.is_empty() {
            table.holders.remove(&hash);
            self.entries.fetch_sub(1, Ordering::AcqRel);
        }
    }

    /// The copies of a key are outdated: lanes that hold them are told. `by` is the lane that the write came
    /// by, whose answer stands in its stream after what it is told, so that it need not confirm.
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
        self.outdate_key(near, hash, by, now, &mut unconfirmed);
        // After the table was looked at: a clear that has emptied it holds these until it has told the lanes.
        self.unconfirmed_clears(near, by, now, &mut unconfirmed);
        unconfirmed
    }

    fn outdate_key(
        &self,
        near: &NearLeases,
        hash: u64,
        by: Option<LaneId>,
        now: Duration,
        unconfirmed: &mut Unconfirmed,
    ) {
        let mut table = self.table(hash).lock();
        let Some(holders) = table.holders.get_mut(&hash) else { return };
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
            self.entries.fetch_sub(1, Ordering::AcqRel);
        }
    }

    /// As [`outdate`](Self::outdate), of all keys of the group.
    pub(crate) fn outdate_all(&self, near: &NearLeases, by: Option<LaneId>) -> Unconfirmed {
        let mut unconfirmed = Unconfirmed::after(near);
        let now = uptime();
        let mut clears = self.clears.lock();
        // A write that comes meanwhile is not to take the group for one of which nobody holds anything.
        self.entries.fetch_add(1, Ordering::AcqRel);
        // In order, so that a simulated run is the same each time.
        let mut lanes = BTreeMap::<LaneId, usize>::new();
        for table in &self.tables {
            let mut table = table.lock();
            self.entries.fetch_sub(table.holders.len(), Ordering::AcqRel);
            for holder in table.holders.drain().flat_map(|(_, holders)| holders) {
                *lanes.entry(holder.lane).or_default() += 1;
            }
        }
        for (id, copies) in lanes {
            near.copies.fetch_sub(copies, Ordering::Relaxed);
            let Some(lane) = near.lane(id) else { continue };
            lane.let_go(copies);
            if lane.stands(now) {
                near.metrics.invalidated.fetch_add(copies as u64, Ordering::Relaxed);
                clears.0.push((id, lane.tell(None)));
                self.entries.fetch_add(1, Ordering::AcqRel);
            }
        }
        self.entries.fetch_sub(1, Ordering::AcqRel);
        drop(clears);
        self.unconfirmed_clears(near, by, now, &mut unconfirmed);
        unconfirmed
    }

    /// What has to be confirmed still of earlier clears.
    pub(crate) fn unconfirmed(&self, near: &NearLeases, by: Option<LaneId>) -> Unconfirmed {
        let mut unconfirmed = Unconfirmed::after(near);
        self.unconfirmed_clears(near, by, uptime(), &mut unconfirmed);
        unconfirmed
    }

    fn unconfirmed_clears(&self, near: &NearLeases, by: Option<LaneId>, now: Duration, to: &mut Unconfirmed) {
        let mut clears = self.clears.lock();
        let before = clears.0.len();
        clears.0.retain(|(id, number)| {
            let lane = near.lane(*id).filter(|lane| lane.stands(now) && !lane.has_confirmed(*number));
            lane.inspect(|lane| to.add(lane, *number, by)).is_some()
        });
        self.entries.fetch_sub(before - clears.0.len(), Ordering::AcqRel);
    }

    /// How many lanes hold copies of a key.
    pub(crate) fn holders(&self, hash: u64) -> usize {
        let table = self.table(hash).lock();
        table.holders.get(&hash).map_or(0, |holders| holders.iter().filter(|it| it.told == 0).count())
    }

    /// Forgets copies that are over, once in a while.
    pub(crate) fn sweep(&self, near: &NearLeases, now: Duration) {
        if self.entries.load(Ordering::Acquire) == 0 {
            return;
        }
        self.unconfirmed_clears(near, None, now, &mut Unconfirmed::default());
        self.sweep_by(near, &near.seen(now));
    }

    pub(super) fn sweep_by(&self, near: &NearLeases, lanes: &SeenLanes) {
        for table in &self.tables {
            let mut table = table.lock();
            if lanes.now >= table.swept + SWEEP_EVERY && !table.holders.is_empty() {
                table.swept = lanes.now;
                let forgotten = table.sweep(near, lanes);
                self.entries.fetch_sub(forgotten, Ordering::AcqRel);
            }
        }
    }
}

/// Copies are looked for that are over so often.
const SWEEP_EVERY: Duration = Duration::from_secs(1);

impl Table {
    /// Forgets copies that are over, and says of how many keys there are none any more.
    fn sweep(&mut self, near: &NearLeases, lanes: &SeenLanes) -> usize {
        let oldest = seconds(lanes.now.saturating_sub(near_copy_at_node() + near_lease_at_node()));
        let before = self.holders.len();
        self.holders.retain(|_, holders| {
            holders.retain(|holder| {
                let is_due = lanes.is_due(holder, oldest);
                near.copies.fetch_sub(usize::from(!is_due), Ordering::Relaxed);
                is_due
            });
            !holders.is_empty()
        });
        self.holders.shrink_to(self.holders.len() * 2);
        before - self.holders.len()
    }
}

fn seconds(now: Duration) -> u32 {
    u32::try_from(now.as_secs()).unwrap_or(u32::MAX)
}

/// Lanes as of a time, so that each is looked at once and not for each of a million copies.
pub(super) struct SeenLanes {
    /// With whether their leases stood.
    pub(super) lanes: HashMap<LaneId, (Arc<NearLane>, bool)>,
    /// Those that have come since have this number or a higher one.
    pub(super) before: LaneId,
    pub(super) now: Duration,
}

impl SeenLanes {
    /// Whether a copy is to be known of still. It is not counted for its lane any more where not.
    fn is_due(&self, holder: &Holder, oldest: u32) -> bool {
        let Some((lane, stood)) = self.lanes.get(&holder.lane) else {
            return holder.lane.is_not_before(self.before);
        };
        // A lease that did not stand may have begun meanwhile.
        let is_due = (*stood || lane.stands(self.now))
            && match holder.told {
                0 => holder.given_s >= oldest,
                told => !lane.has_confirmed(told),
            };
        if !is_due {
            lane.let_go(1);
        }
        is_due
    }
}
