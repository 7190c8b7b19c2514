//! One lane's near lease: until when it stands, and what the lane is to be told.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::task::Waker;
use std::time::Duration;

use futures_util::task::AtomicWaker;
use parking_lot::Mutex;
use peanut_proto::clock::{nanoseconds, uptime};
use peanut_proto::frame::ResponseWriter;
use peanut_proto::intervals::near_lease_at_node;
use tokio::sync::watch;
use tokio::time::timeout;

use super::caller::NearCaller;
use super::{MOST_OF_CALLER, MOST_OF_LANE, TARDY};

/// A lane that is to be told of more than this is told to drop all.
const MOST_TOLD: usize = 4_096;
/// The longest time for which a client may say that its copies may be outdated.
const LONGEST_STALENESS: Duration = Duration::from_secs(60);

/// Names a lane of this process, from one lapse of its lease to the next.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct LaneId(pub(super) u32);

impl LaneId {
    /// Whether it was given after `other`, or is that. The numbers begin anew after the last.
    pub(super) fn is_not_before(self, other: LaneId) -> bool {
        self.0.wrapping_sub(other.0) <= u32::MAX / 2
    }
}

/// What a lane holds, and has to be told.
#[derive(Debug)]
pub(crate) struct NearLane {
    id: LaneId,
    /// For how long its copies may be outdated, so that writes do not wait for it; zero: they do.
    staleness: Duration,
    /// Copies that are put down for it.
    held: AtomicUsize,
    caller: Arc<NearCaller>,
    state: Mutex<State>,
    /// The number of the last invalidation that it has confirmed.
    confirmed: watch::Sender<u64>,
    /// Of the lane's stream.
    stream: Arc<AtomicWaker>,
    /// No lease before, as of [`uptime`] in nanoseconds; the same for all leases of the stream.
    tardy_until: Arc<AtomicU64>,
}

#[derive(Debug, Default)]
struct State {
    /// When its lease is over, as of [`uptime`].
    until: Duration,
    /// The number of the last invalidation.
    number: u64,
    /// Hashes of keys that it has not been told of.
    untold: Vec<u64>,
    /// It has not been told that all is outdated.
    untold_all: bool,
    /// The stream has ended.
    has_ended: bool,
}

impl NearLane {
    pub(super) fn new(id: LaneId, staleness: Duration, caller: Arc<NearCaller>) -> Self {
        NearLane {
            id,
            staleness: staleness.min(LONGEST_STALENESS),
            held: AtomicUsize::new(0),
            caller,
            state: Mutex::default(),
            confirmed: watch::Sender::new(0),
            stream: Arc::default(),
            tardy_until: Arc::default(),
        }
    }

    /// The lane's successor after its lease lapsed. Numbers are counted on, so that what is confirmed late
    /// is no later one's.
    pub(super) fn anew(&self, id: LaneId) -> Self {
        let anew = NearLane::new(id, self.staleness, self.caller.clone());
        let (stream, tardy_until) = (self.stream.clone(), self.tardy_until.clone());
        let anew = NearLane { stream, tardy_until, ..anew };
        let state = self.state.lock();
        *anew.state.lock() = State { number: state.number, ..State::default() };
        anew
    }

    pub(crate) fn id(&self) -> LaneId {
        self.id
    }

    pub(super) fn is_awaited(&self) -> bool {
        self.staleness.is_zero()
    }

    /// Whether one more copy may be put down for it.
    pub(super) fn has_room(&self) -> bool {
        self.held.load(Ordering::Relaxed) < MOST_OF_LANE && self.caller.held() < MOST_OF_CALLER
    }

    /// A copy is put down for it.
    pub(super) fn took(&self) {
        self.held.fetch_add(1, Ordering::Relaxed);
        self.caller.took();
    }

    /// So many copies are not any more.
    pub(super) fn let_go(&self, copies: usize) {
        let less = |held: usize| Some(held.saturating_sub(copies));
        if let Ok(held) = self.held.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less) {
            self.caller.let_go(held.min(copies));
        }
    }

    /// Nothing is put down for it any more, wherever it stands in tables.
    pub(super) fn let_all_go(&self) {
        self.caller.let_go(self.held.swap(0, Ordering::Relaxed));
    }

    /// Whether its lease stands.
    pub(crate) fn stands(&self, now: Duration) -> bool {
        now < self.state.lock().until
    }

    pub(super) fn until(&self) -> Duration {
        self.state.lock().until
    }

    /// Whether it may have a lease: one that has let a write wait may not for a while.
    pub(crate) fn may_have(&self, now: Duration) -> bool {
        nanoseconds(now) >= self.tardy_until.load(Ordering::Relaxed) && !self.caller.is_tardy(now)
    }

    /// Has the lease stand from now on, behind everything that the lane is told before. `false`: it had
    /// lapsed; a write may have passed over what the lane holds.
    pub(crate) fn extend(&self, frame: &mut ResponseWriter) -> bool {
        let mut state = self.state.lock();
        // Read with the lock held: a write that has found the lease over has read the time before.
        let now = uptime();
        if now >= state.until {
            return false;
        }
        state.write(frame);
        state.until = now + self.length();
        true
    }

    /// Has the first lease stand.
    pub(crate) fn begin(&self) {
        self.state.lock().until = uptime() + self.length();
    }

    fn length(&self) -> Duration {
        if self.is_awaited() { near_lease_at_node() } else { self.staleness.mul_f64(1.1) }
    }

    /// Tells the lane of an outdated key, or of all. Gives the number to be confirmed.
    pub(super) fn tell(&self, hash: Option<u64>) -> u64 {
        let mut state = self.state.lock();
        state.number += 1;
        match hash {
            _ if state.has_ended => {}
            Some(hash) if state.untold.len() < MOST_TOLD => state.untold.push(hash),
            _ => (state.untold_all, state.untold) = (true, Vec::new()),
        }
        let number = state.number;
        drop(state);
        self.stream.wake();
        number
    }

    /// Writes what the lane has not been told.
    pub(crate) fn write(&self, frame: &mut ResponseWriter) {
        self.state.lock().write(frame);
    }

    /// Wakes the stream when there is something to tell.
    pub(crate) fn wake_by(&self, waker: &Waker) {
        self.stream.register(waker);
    }

    /// The stream has ended: what it holds it holds until its lease is over.
    pub(crate) fn end(&self) {
        let mut state = self.state.lock();
        (state.has_ended, state.untold) = (true, Vec::new());
    }

    /// Whether nothing has to be known of it any more.
    pub(super) fn is_gone(&self, now: Duration) -> bool {
        let state = self.state.lock();
        state.has_ended && now >= state.until
    }

    /// Its client has dropped what it was told of up to this number.
    pub(crate) fn confirm(&self, number: u64) {
        let known = self.state.lock().number;
        self.confirmed.send_if_modified(|confirmed| {
            let is_later = *confirmed < number.min(known);
            *confirmed = number.min(known).max(*confirmed);
            is_later
        });
    }

    pub(super) fn has_confirmed(&self, number: u64) -> bool {
        *self.confirmed.borrow() >= number
    }

    /// Waits until it has confirmed a number, or until then. Whether it has.
    pub(super) async fn confirms(self: &Arc<Self>, number: u64, until: Duration) -> bool {
        let mut confirmed = self.confirmed.subscribe();
        loop {
            let left = until.saturating_sub(uptime());
            if left.is_zero() {
                let is_confirmed = self.has_confirmed(number);
                if !is_confirmed {
                    let before = self.tardy_until.fetch_max(nanoseconds(until + TARDY), Ordering::Relaxed);
                    // Several writes may wait for one lease.
                    if before < nanoseconds(until) {
                        self.caller.was_tardy(until);
                    }
                }
                return is_confirmed;
            }
            if timeout(left, confirmed.wait_for(|confirmed| *confirmed >= number)).await.is_ok() {
                return true;
            }
        }
    }
}

impl State {
    fn write(&mut self, frame: &mut ResponseWriter) {
        if self.untold_all || !self.untold.is_empty() {
            frame.invalidation(self.number, if self.untold_all { &[] } else { &self.untold });
            (self.untold_all, self.untold) = (false, Vec::new());
        }
    }
}
