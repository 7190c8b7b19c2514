//! A group at work: its store, its flights and its loader.
//!
//! A get goes one way: look into the store; on a miss board the flight of the key; if nobody leads it,
//! start it. [`Cache::begin`] does all of that without waiting, so that a caller with many gets in hand
//! can answer the hits at once.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use peanut_proto::limits::{MAX_VALUE_BYTES, check_key};
use peanut_proto::v1::{ErrorCode, OnMiss, Outcome};
use smallvec::SmallVec;
use tokio::runtime::Handle;
use tokio::sync::Semaphore;
use tokio::task::{JoinError, JoinSet};
use tokio::time::{Instant, timeout_at};
use tokio_util::task::AbortOnDropHandle;
use xxhash_rust::xxh3::xxh3_64;

use crate::error::Failure;
use crate::flight::{Boarding, Flights, Landed, Pilot, Ticket};
use crate::group::{Group, Policy};
use crate::hot::{HotKey, HotKeys};
use crate::loader::{AnyLoader, Loaded};
use crate::persistence::Journal;
use crate::segment::key_hash;
use crate::store::{Entry, Origin, Store, Value};

/// Flights that may wait for their turn, for each load that may run.
const WAITING_PER_LOAD: usize = 16;

/// A group at work.
#[derive(Debug)]
pub(crate) struct Cache {
    group: Arc<str>,
    policy: Policy,
    loader: AnyLoader,
    store: Store,
    hot: HotKeys,
    flights: Arc<Flights>,
    loads: Semaphore,
    /// The flights' tasks: they belong to the server, not to the calls that caused them.
    tasks: Mutex<JoinSet<()>>,
    /// Where those run.
    runtime: OnceLock<Handle>,
    /// Where entries are kept for a warm restart, if anywhere.
    journal: OnceLock<Arc<Journal>>,
}

/// A get, as any service hands it in.
#[derive(Clone, Debug)]
pub(crate) struct Get {
    pub(crate) key: Bytes,
    pub(crate) on_miss: OnMiss,
    /// Version of the ring that chose this node; 0 where there was none.
    pub(crate) ring_version: u64,
    /// Ring version since which this node owns the key.
    pub(crate) owned_since: u64,
    /// Whether this node is asked as the owner or in its place.
    pub(crate) origin: Origin,
}

/// An answered get, or one that waits for a flight.
#[derive(Debug)]
pub(crate) enum Begun {
    Answered(Answer),
    Waiting(Waiting),
}

/// A get that waits for a flight.
#[derive(Debug)]
pub(crate) struct Waiting {
    ticket: Ticket,
    outcome: Outcome,
}

/// What a get is answered with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Answer {
    pub(crate) outcome: Outcome,
    pub(crate) value: Value,
    pub(crate) age: Duration,
    pub(crate) ttl: Duration,
}

impl Begun {
    pub(crate) async fn answer(self) -> Result<Answer, Failure> {
        match self {
            Begun::Answered(answer) => Ok(answer),
            Begun::Waiting(waiting) => waiting.answer().await,
        }
    }
}

impl Waiting {
    pub(crate) async fn answer(self) -> Result<Answer, Failure> {
        let entry = self.ticket.landed().await?;
        Ok(Answer::new(self.outcome, &entry, Instant::now()))
    }
}

impl Answer {
    fn new(found: Outcome, entry: &Entry, now: Instant) -> Self {
        Answer {
            outcome: if entry.value.is_some() { found } else { Outcome::NotFound },
            value: entry.value.clone().unwrap_or_default(),
            age: now.saturating_duration_since(entry.loaded),
            ttl: entry.expires.saturating_duration_since(now),
        }
    }

    fn miss() -> Self {
        Answer { outcome: Outcome::Miss, value: Value::default(), age: Duration::ZERO, ttl: Duration::ZERO }
    }
}

impl Cache {
    pub(crate) fn new(group: Group) -> Self {
        Cache {
            group: group.name.into(),
            loader: group.loader,
            store: Store::new(group.policy.capacity_bytes, group.policy.eviction, Instant::now()),
            hot: HotKeys::new(Instant::now()),
            flights: Arc::default(),
            loads: Semaphore::new(group.policy.max_loads),
            tasks: Mutex::default(),
            runtime: OnceLock::new(),
            journal: OnceLock::new(),
            policy: group.policy,
        }
    }

    pub(crate) fn name(&self) -> &str {
        &self.group
    }

    pub(crate) fn entries(&self) -> &Store {
        &self.store
    }

    pub(crate) fn policy(&self) -> &Policy {
        &self.policy
    }

    /// Names what the entries follow from: under another fingerprint they would be others.
    pub(crate) fn fingerprint(&self) -> u64 {
        let Policy { ttl, negative_ttl, max_ttl, .. } = self.policy;
        let loader = self.loader.fingerprint();
        xxh3_64(format!("{}\0{ttl:?}\0{negative_ttl:?}\0{max_ttl:?}\0{loader}", self.group).as_bytes())
    }

    /// Keeps a journal of what is stored from now on.
    pub(crate) fn keep_journal(&self, journal: Arc<Journal>) {
        let _ = self.journal.set(journal);
    }

    pub(crate) fn journal(&self) -> Option<&Journal> {
        self.journal.get().map(|journal| &**journal)
    }

    /// Answers a get from the store, or finds or starts the flight that will.
    pub(crate) fn begin(self: &Arc<Self>, get: &Get, now: Instant) -> Result<Begun, Failure> {
        check_key(&get.key).map_err(|why| Failure::new(ErrorCode::InvalidRequest, why))?;
        self.hot.count(&get.key, now);
        let stored = || self.store.get(&get.key, get.origin, get.owned_since, now);
        if let Some(entry) = stored() {
            return Ok(Begun::Answered(Answer::new(Outcome::Hit, &entry, now)));
        }
        match get.on_miss {
            OnMiss::Load => {}
            OnMiss::Peek => return Ok(Begun::Answered(Answer::miss())),
            OnMiss::Lease => {
                return Err(Failure::new(ErrorCode::InvalidRequest, "this server grants no fill tokens"));
            }
        }
        let limit = self.policy.max_loads.saturating_mul(1 + WAITING_PER_LOAD);
        let versions = (get.ring_version, get.owned_since);
        match self.flights.board(&get.key, get.origin, versions, limit, stored) {
            Boarding::Stored(entry) => Ok(Begun::Answered(Answer::new(Outcome::Hit, &entry, now))),
            Boarding::Waiter(ticket) => Ok(Begun::Waiting(Waiting { ticket, outcome: Outcome::Coalesced })),
            Boarding::Leader(pilot, ticket) => {
                self.start(pilot, get.clone());
                Ok(Begun::Waiting(Waiting { ticket, outcome: Outcome::Loaded }))
            }
            Boarding::Full => {
                let why = format!("group `{}` has {limit} loads in progress or waiting", self.group);
                Err(Failure::new(ErrorCode::Overloaded, why))
            }
        }
    }

    /// Says where loads run. The first to say so, or the first load, decides.
    pub(crate) fn run_loads_on(&self, runtime: &Handle) {
        let _ = self.runtime.set(runtime.clone());
    }

    /// The keys that are asked for most, at most `most`, the hottest first.
    pub(crate) fn hottest(&self, most: usize) -> Vec<HotKey> {
        self.hot.hottest(most, Instant::now())
    }

    /// Drops what has expired among the next `part` of all entries.
    pub(crate) fn sweep(&self, part: f64) {
        self.store.sweep(part, Instant::now());
    }

    /// Ends every load. Those who wait have an error.
    pub(crate) fn abort_loads(&self) {
        self.tasks.lock().abort_all();
    }

    fn start(self: &Arc<Self>, pilot: Pilot, get: Get) {
        let cache = self.clone();
        let flight = async move {
            if let Some(entry) = cache.restored(&get).await {
                return pilot.land(Ok(entry), |_| {});
            }
            let landed = cache.load(&get).await;
            pilot.land(landed, |entry| {
                if entry.expires > entry.loaded {
                    cache.store(&get.key, entry);
                }
            });
        };
        let mut tasks = self.tasks.lock();
        while tasks.try_join_next().is_some() {}
        tasks.spawn_on(flight, self.runtime.get_or_init(Handle::current));
    }

    pub(crate) fn store(&self, key: &Bytes, entry: &Entry) {
        match self.journal() {
            None => self.store.insert(key, entry),
            Some(journal) => {
                let mut evicted = SmallVec::<[u64; 4]>::new();
                self.store.insert_telling(key, entry, |key| evicted.push(key_hash(key)));
                journal.stored(key, entry, &evicted);
            }
        }
    }

    /// The entry, where it comes back from the disk just after the start.
    async fn restored(&self, get: &Get) -> Option<Entry> {
        let journal = self.journal().filter(|journal| journal.is_restoring())?;
        journal.restored().await;
        self.store.get(&get.key, get.origin, get.owned_since, Instant::now())
    }

    /// Runs the loader in a task of its own: a panic ends only that task, and a loader that blocks its
    /// thread does not keep the time-out from passing.
    async fn load(&self, get: &Get) -> Landed {
        let begun = Instant::now();
        let limit = self.policy.load_timeout;
        let deadline = begun + limit;
        let Ok(_turn) = timeout_at(deadline, self.loads.acquire()).await else {
            let why =
                format!("{} loads are in progress, and no turn came within {limit:?}", self.policy.max_loads);
            return Err(Failure::new(ErrorCode::Overloaded, why));
        };
        let loaded = Instant::now();
        let load = self.loader.clone().load(self.group.clone(), get.key.clone());
        let load = AbortOnDropHandle::new(tokio::spawn(load));
        match timeout_at(deadline, load).await {
            Err(_) => {
                let why = format!("the loader did not answer within {limit:?}");
                Err(Failure::new(ErrorCode::LoadTimedOut, why))
            }
            Ok(Err(ended)) => Err(ended_badly(ended)),
            Ok(Ok(Err(error))) => Err(Failure::new(ErrorCode::LoaderFailed, error.to_string())),
            Ok(Ok(Ok(found))) => self.entry(found, loaded, get),
        }
    }

    fn entry(&self, found: Loaded, loaded: Instant, get: &Get) -> Landed {
        let (value, ttl) = match found {
            Loaded::Found { value, .. } if value.len() > MAX_VALUE_BYTES => {
                let why = format!("the value has {} bytes; the limit is {MAX_VALUE_BYTES}", value.len());
                return Err(Failure::new(ErrorCode::ValueTooLarge, why));
            }
            Loaded::Found { value, ttl } => (Some(value.into()), ttl.unwrap_or(self.policy.ttl)),
            Loaded::NotFound => (None, self.policy.negative_ttl),
        };
        let mut ttl = ttl.min(self.policy.max_ttl);
        if get.origin == Origin::Failover {
            ttl = ttl.min(self.policy.failover_ttl);
        }
        let ttl = ttl.mul_f64(1.0 - self.policy.ttl_jitter * fastrand::f64());
        Ok(Entry { value, loaded, expires: loaded + ttl, stamp: get.ring_version, origin: get.origin })
    }
}

fn ended_badly(ended: JoinError) -> Failure {
    let Ok(panic) = ended.try_into_panic() else {
        return Failure::new(ErrorCode::ShuttingDown, "the load was stopped");
    };
    let said = panic.downcast_ref::<&str>().copied();
    let said = said.or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    Failure::new(ErrorCode::LoaderFailed, format!("the loader panicked: {}", said.unwrap_or("no message")))
}

#[cfg(test)]
mod tests;
