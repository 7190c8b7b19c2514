//! Flights: one load in progress per key, for all who wait for it.
//!
//! The table of flights and the store are kept in step under the table's lock. A caller that misses looks
//! into the store again with the lock held, and a landing flight stores its entry and leaves the table in one
//! step; so a caller finds the entry or the flight, never neither, and a key is not loaded twice because a
//! flight landed between the two looks. Writes are done under the same lock.
//!
//! A flight that has been taken out of the table, or replaced in it, is *poisoned*: those who wait still
//! get its result, but it is not stored, and later callers start anew.
//!
//! The leader of a flight is this server, with a [`Pilot`], or a client, which holds a *lease* with a fill
//! token and brings the value by itself. A lease that its client gives back, or whose client has gone, is
//! void: the others board anew, and the first of them leads. One whose client takes too long is *late*: the
//! others board anew as well, but what it brings is stored all the same where the key has not been written
//! since, and lands the callers that wait for the key by then.
//!
//! What a flight brought is held until all who wait have taken it, and counts for the connection that has
//! caused it. Where it is larger than was reserved for it, and there is no room for the rest, it is not held:
//! those who wait board anew, and find it in the store where it was stored.
//!
//! Whether a key has been written since is told by counters, one for many keys ([`Writes`]).

mod leases;
mod writes;

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;
use peanut_proto::numbers::{FillToken, RingVersion};
use peanut_proto::sabotage::{Mechanism, without};
use peanut_proto::v1::ErrorCode;
use tokio::sync::watch;
use tokio::time::Instant;

pub(crate) use leases::Term;
use leases::{Lease, Leases};
use writes::Writes;

use crate::budget::{Held, Reservation};
use crate::store::{Entry, Origin, Value};
use crate::validity::Validity;
use peanut_edge::Failure;

/// What a flight brought: an entry, or the failure that all who waited share.
pub(crate) type Landed = Result<Entry, Failure>;

/// The flights of one group.
#[derive(Debug)]
pub(crate) struct Flights {
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    table: HashMap<(Origin, Bytes), Flight>,
    /// Of flights that a client leads.
    leases: Leases,
    writes: Writes,
}

#[derive(Debug)]
struct Flight {
    id: FillToken,
    /// The ring version that the node knew when it started.
    stamp: RingVersion,
    /// When it started.
    begun: Instant,
    /// The earliest time at which what its callers may be shown was loaded; `None`: it does not matter.
    loaded_since: Option<Instant>,
    /// Its leader takes too long: the next caller begins anew, and takes its place.
    is_late: bool,
    progress: watch::Receiver<Progress>,
}

#[derive(Clone, Debug)]
enum Progress {
    UnderWay,
    /// The leader is gone, or there was no room for what it brought: board anew.
    Void,
    /// What those who wait hold of it counts for the account that caused it.
    Landed {
        landed: Landed,
        _held: Arc<Held>,
    },
}

impl Progress {
    /// A landing, unless there is no room for the value.
    fn landed(landed: &Landed, reserved: &Reservation) -> Self {
        let length =
            landed.as_ref().ok().and_then(|entry| entry.value.as_ref()).map_or(0, |value| value.len());
        match reserved.extend_to(length) {
            Some(held) => Progress::Landed { landed: landed.clone(), _held: Arc::new(held) },
            None => Progress::Void,
        }
    }
}

/// A lease for a writer that sets the key next.
#[derive(Debug)]
pub(crate) struct ThenSet {
    /// The ring version under which the value is written.
    pub(crate) stamp: RingVersion,
    pub(crate) term: Term,
    /// It is given only where this is the key's sequence still; 0: whatever it is.
    pub(crate) sequence: u64,
    pub(crate) held: Held,
    pub(crate) reserved: Reservation,
}

/// What has become of a write.
#[derive(Debug)]
pub(crate) struct Written<R> {
    pub(crate) written: R,
    /// The lease of the next set of the key; 0: none.
    pub(crate) token: FillToken,
    /// The key's sequence now.
    pub(crate) sequence: u64,
}

/// Who leads a flight that nobody leads yet.
#[derive(Debug)]
pub(crate) enum Leader {
    /// This server, with its loader.
    Server { reserved: Reservation },
    /// The caller, under a lease.
    Caller { term: Term, held: Option<Held>, reserved: Reservation },
    /// Nobody: there is nothing to load from.
    Nobody,
}

/// What a caller who missed is to do.
#[derive(Debug)]
pub(crate) enum Boarding {
    /// The entry has arrived in the meantime.
    Stored(Entry),
    /// Wait for the flight.
    Waiter(Ticket),
    /// Start the flight, then wait for it like everyone else.
    Leader(Pilot, Ticket),
    /// Load by itself, and bring the value under this token. The newest ring version that a writer of the key
    /// went by, or of another key that is counted with it.
    Lease { token: FillToken, written_under: RingVersion },
    /// There is neither an entry nor a flight, and nobody to lead one.
    Nothing,
}

/// The right to a flight's result.
#[derive(Debug)]
pub(crate) struct Ticket {
    progress: watch::Receiver<Progress>,
}

impl Ticket {
    /// Waits for the flight. `None`: its leader is gone, and the caller is to board anew. Dropping this
    /// future disturbs nobody.
    pub(crate) async fn landed(mut self) -> Option<Landed> {
        match self.progress.wait_for(|progress| !matches!(progress, Progress::UnderWay)).await.as_deref() {
            Ok(Progress::Landed { landed, .. }) => Some(landed.clone()),
            Ok(_) => None,
            Err(_) => Some(Err(Failure::new(ErrorCode::ShuttingDown, "the load was abandoned"))),
        }
    }
}

/// The duty to land a flight. If it is dropped instead, the key is free again and the waiters have an
/// error.
#[derive(Debug)]
pub(crate) struct Pilot {
    flights: Arc<Flights>,
    key: (Origin, Bytes),
    id: FillToken,
    progress: watch::Sender<Progress>,
    reserved: Reservation,
}

/// The flight of a value that a client brings.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Flown {
    /// The ring version that the node knew when it began.
    pub(crate) stamp: RingVersion,
    pub(crate) origin: Origin,
    pub(crate) begun: Instant,
}

/// What has become of a lease when its value arrives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fill {
    Stored,
    /// It was void, or poisoned by a write: the value was not stored.
    Refused,
}

impl Default for Flights {
    fn default() -> Self {
        let state = State { table: HashMap::new(), leases: Leases::default(), writes: Writes::new() };
        Flights { state: Mutex::new(state) }
    }
}

impl Flights {
    /// Finds the flight of a key, or makes the caller lead a new one.
    /// `stored` looks into the store; a flight that is not valid for the caller is as outdated as an entry.
    pub(crate) fn board(
        self: &Arc<Self>,
        key: &Bytes,
        origin: Origin,
        (stamp, validity): (RingVersion, Validity),
        leader: Leader,
        stored: impl FnOnce() -> Option<Entry>,
    ) -> Boarding {
        let mut state = self.state.lock();
        if let Some(entry) = stored() {
            return Boarding::Stored(entry);
        }
        if let Some(flight) = state.table.get_mut(&(origin, key.clone()))
            && flight.stamp >= validity.stamp()
            && validity.is_loaded(flight.begun)
            && !flight.is_late
        {
            flight.loaded_since = flight.loaded_since.max(validity.loaded_since);
            return Boarding::Waiter(Ticket { progress: flight.progress.clone() });
        }
        let (lease, reserved) = match leader {
            Leader::Nobody => return Boarding::Nothing,
            Leader::Server { reserved } => (None, reserved),
            Leader::Caller { term, held, reserved } => (Some((term, held)), reserved),
        };
        // A copy: what waits must not keep the whole frame that the key came in.
        let key = (origin, Bytes::copy_from_slice(key));
        if let Some((term, held)) = lease {
            let written_under = state.writes.written_under(&key.1);
            let token = state.lease(key, (stamp, validity.loaded_since), term, held, reserved);
            return Boarding::Lease { token, written_under };
        }
        let (id, progress) = state.start(&key, (stamp, validity.loaded_since));
        let ticket = Ticket { progress: progress.subscribe() };
        Boarding::Leader(Pilot { flights: self.clone(), key, id, progress, reserved }, ticket)
    }

    /// Takes in what the holder of a token brings. `landed` makes the entry; `store` is called with the lock
    /// held, unless the key was written meanwhile, and gives the value where it is stored. `is_fresh` says
    /// whether an entry may be shown to others than its caller.
    pub(crate) fn fill(
        &self,
        key: &Bytes,
        token: FillToken,
        landed: impl FnOnce(Flown) -> Landed,
        is_fresh: impl FnOnce(&Entry) -> bool,
        store: impl FnOnce(&Entry) -> Option<Value>,
    ) -> Fill {
        let mut state = self.state.lock();
        // A token is good for its own key only.
        if state.leases.get(token).is_none_or(|lease| lease.key.1 != key) {
            return Fill::Refused;
        }
        let Some(lease) = state.leases.end(token) else { return Fill::Refused };
        let begun = lease.term.given;
        let mut landed = landed(Flown { stamp: lease.stamp, origin: lease.key.0, begun });
        let was_there = state.leave(&lease.key, token);
        // A write of the key takes the flight away; one that is late has to go by the counters, which count
        // other keys too.
        let is_good = without(Mechanism::Poison) || was_there || state.writes.so_far(key) == lease.writes;
        if is_good && let Ok(entry) = &mut landed {
            entry.value = store(entry).or_else(|| entry.value.take());
        }
        // Late: another leads the flight by now. Those who wait need not wait for it any longer, unless they
        // could not have waited for this one: it is from before the node came to own the key, or so late that
        // its time is over.
        let is_late = is_good && !was_there && landed.as_ref().is_ok_and(is_fresh);
        let next = if is_late { state.take_leased(&lease.key, lease.stamp, begun) } else { None };
        drop(state);
        let progress = Progress::landed(&landed, &lease.reserved);
        next.inspect(|next| drop(next.send_replace(progress.clone())));
        lease.progress.send_replace(progress);
        if is_good { Fill::Stored } else { Fill::Refused }
    }

    /// Makes a lease void: callers that wait board anew.
    pub(crate) fn void(&self, token: FillToken) {
        let mut state = self.state.lock();
        let Some(lease) = state.leases.end(token) else { return };
        state.leave(&lease.key, token);
        drop(state);
        lease.progress.send_replace(Progress::Void);
    }

    /// Whether a lease stands, be it late.
    pub(crate) fn is_leased(&self, token: FillToken) -> bool {
        self.state.lock().leases.get(token).is_some()
    }

    /// Makes leases late whose time is over by now, and forgets those that have been late for long.
    pub(crate) fn look_for_late(&self, now: Instant) {
        let mut told = Vec::new();
        let mut state = self.state.lock();
        while let Some(token) = state.leases.next_late(now) {
            let Some(lease) = state.leases.get(token) else { continue };
            let (key, progress, writes) = (lease.key.clone(), lease.progress.clone(), lease.writes);
            told.push(progress);
            let flight = state.table.get_mut(&key).filter(|flight| flight.id == token);
            let is_there = flight.map(|flight| flight.is_late = true).is_some();
            if is_there || state.writes.so_far(&key.1) == writes {
                state.leases.remember(token, now);
            } else {
                // What it brings would not be stored.
                state.leases.end(token);
            }
        }
        for (token, key) in state.leases.end_old(now) {
            state.leave(&key, token);
        }
        drop(state);
        told.into_iter().for_each(|progress| drop(progress.send_replace(Progress::Void)));
    }

    /// Takes over the flight of a lease that its client gives back. `None` where it is void, late or
    /// poisoned; callers that wait for it boards anew then.
    pub(crate) fn take_over(
        self: &Arc<Self>,
        key: &Bytes,
        token: FillToken,
        reserved: Reservation,
    ) -> Option<(Pilot, Ticket)> {
        let mut state = self.state.lock();
        state.leases.get(token).filter(|lease| lease.key.1 == key)?;
        let Lease { key, progress, .. } = state.leases.end(token)?;
        if state.table.get(&key).is_none_or(|flight| flight.id != token || flight.is_late) {
            state.leave(&key, token);
            drop(state);
            progress.send_replace(Progress::Void);
            return None;
        }
        let ticket = Ticket { progress: progress.subscribe() };
        Some((Pilot { flights: self.clone(), key, id: token, progress, reserved }, ticket))
    }

    /// Poisons the flights of a key, and writes in the same step; `under` is the ring that the writer goes
    /// by. Where the writer is to set the key next, it is given a lease, which others wait for as for a load.
    pub(crate) fn write<R>(
        &self,
        key: &Bytes,
        under: RingVersion,
        then_set: Option<ThenSet>,
        write: impl FnOnce() -> R,
    ) -> Written<R> {
        let mut state = self.state.lock();
        let (before, sequence) = state.poison(key, under);
        let written = write();
        let stands =
            |then: &ThenSet| then.sequence == 0 || then.sequence == before || without(Mechanism::Sequences);
        Written { written, token: state.lease_to_set(key, then_set.filter(stands)), sequence }
    }

    /// As [`write`](Self::write), which is told whether `sequence` was the key's still. Where it was not the
    /// writer is given the lease.
    pub(crate) fn replace<R>(
        &self,
        key: &Bytes,
        under: RingVersion,
        sequence: u64,
        or_lease: impl FnOnce() -> Option<ThenSet>,
        write: impl FnOnce(bool) -> R,
    ) -> Written<R> {
        let mut state = self.state.lock();
        let (before, after) = state.poison(key, under);
        let stands = before == sequence || without(Mechanism::Sequences);
        let written = write(stands);
        let lease = if stands { None } else { or_lease() };
        Written { written, token: state.lease_to_set(key, lease), sequence: after }
    }

    /// Poisons all flights, and writes in the same step.
    pub(crate) fn write_all<R>(&self, under: RingVersion, write: impl FnOnce() -> R) -> R {
        let mut state = self.state.lock();
        state.table.clear();
        state.writes.clears += 1;
        state.writes.cleared_under = under.max(state.writes.cleared_under);
        write()
    }

    #[cfg(test)]
    pub(crate) fn holds_no_leases(&self) -> bool {
        self.state.lock().leases.are_none()
    }

    /// Flights that have not landed, and are not late.
    pub(crate) fn in_progress(&self) -> usize {
        self.state.lock().table.values().filter(|flight| !flight.is_late).count()
    }
}

impl State {
    /// Takes the flights of a key out of the table, and counts the write that does it. Gives the key's
    /// sequence before and after.
    fn poison(&mut self, key: &Bytes, under: RingVersion) -> (u64, u64) {
        if !self.table.is_empty() && !without(Mechanism::Poison) {
            for origin in [Origin::Owner, Origin::Failover] {
                self.table.remove(&(origin, key.clone()));
            }
        }
        self.writes.add(key, under)
    }

    /// Puts a flight into the table, in the place of any other.
    fn start(
        &mut self,
        key: &(Origin, Bytes),
        (stamp, loaded_since): (RingVersion, Option<Instant>),
    ) -> (FillToken, watch::Sender<Progress>) {
        // Tokens cannot be guessed from others, nor are those of an earlier life of the process any of this
        // one's.
        let id = FillToken(fastrand::u64(1..));
        let (sender, progress) = watch::channel(Progress::UnderWay);
        let begun = Instant::now();
        let flight = Flight { id, stamp, begun, loaded_since, is_late: false, progress };
        self.table.insert(key.clone(), flight);
        (id, sender)
    }

    /// Starts a flight that a client leads.
    fn lease(
        &mut self,
        key: (Origin, Bytes),
        (stamp, loaded_since): (RingVersion, Option<Instant>),
        term: Term,
        held: Option<Held>,
        reserved: Reservation,
    ) -> FillToken {
        let (id, progress) = self.start(&key, (stamp, loaded_since));
        let writes = self.writes.so_far(&key.1);
        self.leases.insert(id, Lease { key, stamp, term, writes, progress, reserved, _held: held });
        id
    }

    /// Gives a writer the lease under which it sets a key next, if it is to have one.
    fn lease_to_set(&mut self, key: &Bytes, then_set: Option<ThenSet>) -> FillToken {
        let Some(ThenSet { stamp, term, held, reserved, .. }) = then_set else { return FillToken::NONE };
        let key = (Origin::Owner, Bytes::copy_from_slice(key));
        self.lease(key, (stamp, None), term, Some(held), reserved)
    }

    /// Takes the flight of a key out of the table where a client leads it, and those who wait may be shown
    /// what was loaded under this ring and at this time; gives what tells them.
    fn take_leased(
        &mut self,
        key: &(Origin, Bytes),
        stamp: RingVersion,
        loaded: Instant,
    ) -> Option<watch::Sender<Progress>> {
        let is_valid = |flight: &&Flight| {
            flight.stamp <= stamp && flight.loaded_since.is_none_or(|since| loaded >= since)
        };
        let flight = self.table.get(key).filter(is_valid)?;
        let progress = self.leases.get(flight.id)?.progress.clone();
        self.table.remove(key);
        Some(progress)
    }

    /// Takes a flight out of the table. Whether it was there, and not poisoned.
    fn leave(&mut self, key: &(Origin, Bytes), id: FillToken) -> bool {
        let is_there = self.table.get(key).is_some_and(|flight| flight.id == id);
        if is_there {
            self.table.remove(key);
        }
        is_there
    }
}

impl Pilot {
    /// Ends the flight: `store` is called unless it was poisoned, then everyone who waits is told.
    /// `store` gives the value where it is stored: those who wait share that copy.
    pub(crate) fn land(self, mut landed: Landed, store: impl FnOnce(&Entry) -> Option<Value>) {
        let mut state = self.flights.state.lock();
        if state.leave(&self.key, self.id)
            && let Ok(entry) = &mut landed
        {
            entry.value = store(entry).or_else(|| entry.value.take());
        }
        drop(state);
        self.progress.send_replace(Progress::landed(&landed, &self.reserved));
    }
}

impl Drop for Pilot {
    fn drop(&mut self) {
        self.flights.state.lock().leave(&self.key, self.id);
    }
}
