//! Flights: one load in progress per key, for all who wait for it.
//!
//! The table of flights and the store are kept in step under the table's lock. Whoever misses looks into
//! the store again with the lock held, and a landing flight stores its entry and leaves the table in one
//! step; so a caller finds the entry or the flight, never neither, and a key is not loaded twice because
//! a flight landed between the two looks.
//!
//! A flight that has been taken out of the table, or replaced in it, is *poisoned*: those who wait still
//! get its result, but it is not stored, and whoever comes later starts anew.

use std::collections::HashMap;
use std::collections::hash_map::Entry as Slot;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use parking_lot::Mutex;
use peanut_proto::v1::ErrorCode;
use tokio::sync::watch;

use crate::error::Failure;
use crate::store::{Entry, Origin};

/// What a flight brought: an entry, or the failure that all who waited share.
pub(crate) type Landed = Result<Entry, Failure>;

/// The flights of one group.
#[derive(Debug, Default)]
pub(crate) struct Flights {
    table: Mutex<HashMap<(Origin, Bytes), Flight>>,
    last_id: AtomicU64,
}

#[derive(Debug)]
struct Flight {
    id: u64,
    /// Ring version of the request that started it.
    stamp: u64,
    landed: watch::Receiver<Option<Landed>>,
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
    /// Too many flights are in progress.
    Full,
}

/// The right to a flight's result.
#[derive(Debug)]
pub(crate) struct Ticket {
    landed: watch::Receiver<Option<Landed>>,
}

impl Ticket {
    /// Waits for the flight. Dropping this future disturbs nobody.
    pub(crate) async fn landed(mut self) -> Landed {
        match self.landed.wait_for(Option::is_some).await {
            Ok(landed) => landed.clone().expect("waited for some"),
            Err(_) => Err(Failure::new(ErrorCode::ShuttingDown, "the load was abandoned")),
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
    landed: watch::Sender<Option<Landed>>,
}

impl Flights {
    /// Finds the flight of a key or makes the caller lead a new one, unless `limit` are in progress.
    /// `stored` looks into the store; a flight from before `owned_since` is as outdated as such an entry.
    pub(crate) fn board(
        self: &Arc<Self>,
        key: &Bytes,
        origin: Origin,
        (stamp, owned_since): (u64, u64),
        limit: usize,
        stored: impl FnOnce() -> Option<Entry>,
    ) -> Boarding {
        let mut table = self.table.lock();
        if let Some(entry) = stored() {
            return Boarding::Stored(entry);
        }
        let in_progress = table.len();
        let key = (origin, key.clone());
        let slot = table.entry(key.clone());
        if let Slot::Occupied(flight) = &slot
            && flight.get().stamp >= owned_since
        {
            return Boarding::Waiter(Ticket { landed: flight.get().landed.clone() });
        }
        if in_progress >= limit {
            return Boarding::Full;
        }
        let id = self.last_id.fetch_add(1, Ordering::Relaxed) + 1;
        let (sender, landed) = watch::channel(None);
        let ticket = Ticket { landed: landed.clone() };
        slot.insert_entry(Flight { id, stamp, landed });
        Boarding::Leader(Pilot { flights: self.clone(), key, id, landed: sender }, ticket)
    }

    /// Takes a flight out of the table and does `and_then` with the lock held, unless it was poisoned.
    fn remove(&self, key: &(Origin, Bytes), id: u64, and_then: impl FnOnce()) {
        let mut table = self.table.lock();
        if table.get(key).is_some_and(|flight| flight.id == id) {
            table.remove(key);
            and_then();
        }
    }

    #[cfg(test)]
    pub(crate) fn in_progress(&self) -> usize {
        self.table.lock().len()
    }

    /// Poisons the flights of a key.
    #[cfg(test)]
    pub(crate) fn poison(&self, key: &Bytes) {
        let mut table = self.table.lock();
        for origin in [Origin::Owner, Origin::Failover] {
            table.remove(&(origin, key.clone()));
        }
    }
}

impl Pilot {
    /// Ends the flight: `store` is called unless it was poisoned, then everyone who waits is told.
    pub(crate) fn land(self, landed: Landed, store: impl FnOnce(&Entry)) {
        self.flights.remove(&self.key, self.id, || {
            if let Ok(entry) = &landed {
                store(entry);
            }
        });
        self.landed.send_replace(Some(landed));
    }
}

impl Drop for Pilot {
    fn drop(&mut self) {
        self.flights.remove(&self.key, self.id, || {});
    }
}
