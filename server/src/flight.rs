//! Flights: one load in progress per key, for all who wait for it.
//!
//! The table of flights and the store are kept in step under the table's lock. Whoever misses looks into
//! the store again with the lock held, and a landing flight stores its entry and leaves the table in one
//! step; so a caller finds the entry or the flight, never neither, and a key is not loaded twice because
//! a flight landed between the two looks. Writes are done under the same lock.
//!
//! A flight that has been taken out of the table, or replaced in it, is *poisoned*: those who wait still
//! get its result, but it is not stored, and whoever comes later starts anew.
//!
//! The leader of a flight is this server, with a [`Pilot`], or a client, which holds a *lease* with a fill token and
//! brings the value by itself. A lease that is late, or whose client has gone, is void: the others board anew, and the
//! first of them leads.

use std::collections::HashMap;
use std::collections::hash_map::Entry as Slot;
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;
use peanut_proto::v1::ErrorCode;
use tokio::sync::watch;

use crate::error::Failure;
use crate::sabotage::{Mechanism, without};
use crate::store::{Entry, Origin};

/// What a flight brought: an entry, or the failure that all who waited share.
pub(crate) type Landed = Result<Entry, Failure>;

/// A fill token; never zero.
pub(crate) type Token = u64;

/// The flights of one group.
#[derive(Debug)]
pub(crate) struct Flights {
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    table: HashMap<(Origin, Bytes), Flight>,
    /// Flights that a client leads, by token, poisoned ones included.
    leases: HashMap<Token, Lease>,
    last_id: u64,
}

#[derive(Debug)]
struct Flight {
    id: u64,
    /// Ring version of the request that started it.
    stamp: u64,
    progress: watch::Receiver<Progress>,
}

#[derive(Debug)]
struct Lease {
    key: (Origin, Bytes),
    stamp: u64,
    progress: watch::Sender<Progress>,
}

#[derive(Clone, Debug)]
enum Progress {
    UnderWay,
    /// The leader is gone: board anew.
    Void,
    Landed(Landed),
}

/// Who leads a flight that nobody leads yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Leader {
    /// This server, with its loader.
    Server,
    /// The caller, under a lease.
    Caller,
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
    /// Load by itself, and bring the value under this token.
    Lease(Token),
    /// Too many flights are in progress.
    Full,
}

/// The right to a flight's result.
#[derive(Debug)]
pub(crate) struct Ticket {
    progress: watch::Receiver<Progress>,
}

impl Ticket {
    /// Waits for the flight. `None`: its leader is gone, and the caller is to board anew. Dropping this future disturbs
    /// nobody.
    pub(crate) async fn landed(mut self) -> Option<Landed> {
        match self.progress.wait_for(|progress| !matches!(progress, Progress::UnderWay)).await.as_deref() {
            Ok(Progress::Landed(landed)) => Some(landed.clone()),
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
    id: u64,
    progress: watch::Sender<Progress>,
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
        // Tokens of an earlier life of the process are none of this one's.
        let last_id = fastrand::u64(..) >> 1;
        Flights { state: Mutex::new(State { table: HashMap::new(), leases: HashMap::new(), last_id }) }
    }
}

impl Flights {
    /// Finds the flight of a key or makes the caller lead a new one, unless `limit` are in progress.
    /// `stored` looks into the store; a flight from before `owned_since` is as outdated as such an entry.
    pub(crate) fn board(
        self: &Arc<Self>,
        key: &Bytes,
        origin: Origin,
        (stamp, owned_since): (u64, u64),
        leader: Leader,
        limit: usize,
        stored: impl FnOnce() -> Option<Entry>,
    ) -> Boarding {
        let mut state = self.state.lock();
        if let Some(entry) = stored() {
            return Boarding::Stored(entry);
        }
        let State { table, leases, last_id } = &mut *state;
        let in_progress = table.len();
        let key = (origin, key.clone());
        let slot = table.entry(key.clone());
        if let Slot::Occupied(flight) = &slot
            && flight.get().stamp >= owned_since
        {
            return Boarding::Waiter(Ticket { progress: flight.get().progress.clone() });
        }
        if in_progress >= limit {
            return Boarding::Full;
        }
        *last_id += 1;
        let id = *last_id;
        let (sender, progress) = watch::channel(Progress::UnderWay);
        let ticket = Ticket { progress: progress.clone() };
        slot.insert_entry(Flight { id, stamp, progress });
        match leader {
            Leader::Server => {
                Boarding::Leader(Pilot { flights: self.clone(), key, id, progress: sender }, ticket)
            }
            Leader::Caller => {
                leases.insert(id, Lease { key, stamp, progress: sender });
                Boarding::Lease(id)
            }
        }
    }

    /// Lands a leased flight. `entry` makes the entry from the flight's stamp; `store` is called with the lock held,
    /// unless the flight was poisoned.
    pub(crate) fn fill(
        &self,
        key: &Bytes,
        token: Token,
        landed: impl FnOnce(u64, Origin) -> Landed,
        store: impl FnOnce(&Entry),
    ) -> Fill {
        let mut state = self.state.lock();
        // A token is good for its own key only.
        if state.leases.get(&token).is_none_or(|lease| lease.key.1 != key) {
            return Fill::Refused;
        }
        let Some(lease) = state.leases.remove(&token) else { return Fill::Refused };
        let landed = landed(lease.stamp, lease.key.0);
        let is_good = state.leave(&lease.key, token);
        if is_good && let Ok(entry) = &landed {
            store(entry);
        }
        drop(state);
        lease.progress.send_replace(Progress::Landed(landed));
        if is_good { Fill::Stored } else { Fill::Refused }
    }

    /// Makes a lease void: whoever waits boards anew.
    pub(crate) fn void(&self, token: Token) {
        let mut state = self.state.lock();
        let Some(lease) = state.leases.remove(&token) else { return };
        state.leave(&lease.key, token);
        drop(state);
        lease.progress.send_replace(Progress::Void);
    }

    /// Takes over the flight of a lease that its client gives back. `None` where it is void or poisoned.
    pub(crate) fn take_over(self: &Arc<Self>, key: &Bytes, token: Token) -> Option<(Pilot, Ticket)> {
        let mut state = self.state.lock();
        state.leases.get(&token).filter(|lease| lease.key.1 == key)?;
        let lease = state.leases.remove(&token)?;
        let ticket = Ticket { progress: lease.progress.subscribe() };
        Some((Pilot { flights: self.clone(), key: lease.key, id: token, progress: lease.progress }, ticket))
    }

    /// Poisons the flights of a key, and writes in the same step.
    pub(crate) fn write<R>(&self, key: &Bytes, write: impl FnOnce() -> R) -> R {
        let mut state = self.state.lock();
        for origin in [Origin::Owner, Origin::Failover].into_iter().filter(|_| !without(Mechanism::Poison)) {
            state.table.remove(&(origin, key.clone()));
        }
        write()
    }

    /// Poisons all flights, and writes in the same step.
    pub(crate) fn write_all<R>(&self, write: impl FnOnce() -> R) -> R {
        let mut state = self.state.lock();
        state.table.clear();
        write()
    }

    /// Flights that have not landed.
    pub(crate) fn in_progress(&self) -> usize {
        self.state.lock().table.len()
    }
}

impl State {
    /// Takes a flight out of the table. Whether it was there, and not poisoned.
    fn leave(&mut self, key: &(Origin, Bytes), id: u64) -> bool {
        let is_there = self.table.get(key).is_some_and(|flight| flight.id == id);
        if is_there {
            self.table.remove(key);
        }
        is_there
    }
}

impl Pilot {
    /// Ends the flight: `store` is called unless it was poisoned, then everyone who waits is told.
    pub(crate) fn land(self, landed: Landed, store: impl FnOnce(&Entry)) {
        let mut state = self.flights.state.lock();
        if state.leave(&self.key, self.id)
            && let Ok(entry) = &landed
        {
            store(entry);
        }
        drop(state);
        self.progress.send_replace(Progress::Landed(landed));
    }
}

impl Drop for Pilot {
    fn drop(&mut self) {
        self.flights.state.lock().leave(&self.key, self.id);
    }
}
