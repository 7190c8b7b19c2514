//! A group at work: its store, its flights and its loader.
//!
//! A get goes one way: look into the store; on a miss board the flight of the key; if nobody leads it,
//! start it. [`Cache::begin`] does all of that without waiting, so that a caller with many gets in hand
//! can answer the hits at once.

use std::sync::atomic::AtomicU32;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use peanut_proto::limits::{MAX_VALUE_BYTES, check_key};
use peanut_proto::v1::{ErrorCode, OnMiss, Outcome};
use tokio::runtime::Handle;
use tokio::sync::Semaphore;
use tokio::task::{JoinError, JoinSet};
use tokio::time::{Instant, sleep, timeout_at};
use tokio_util::task::AbortOnDropHandle;
use xxhash_rust::xxh3::xxh3_64;

use crate::error::Failure;
use crate::flight::{Boarding, Flights, Landed, Leader, Pilot, Ticket, Token};
use crate::group::{Group, Policy};
use crate::hot::{HotKey, HotKeys};
use crate::loader::{AnyLoader, Loaded};
use crate::persistence::{Journal, WriteNumber};
use crate::sabotage::{Mechanism, without};
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
    /// How many times the group has been cleared, as far as is known; its lowest 32 bits.
    generation: AtomicU32,
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
    /// A fill token that is given back; 0: none.
    pub(crate) token: Token,
}

/// An operation that is answered, or one that waits.
#[derive(Debug)]
pub(crate) enum Begun {
    Answered(Answer),
    Waiting(Waiting),
}

/// An operation that waits.
#[derive(Debug)]
pub(crate) enum Waiting {
    /// A get, for a flight.
    Flight { ticket: Ticket, outcome: Outcome, cache: Arc<Cache>, get: Box<Get> },
    /// A write, until it would outlive the process.
    Disk { cache: Arc<Cache>, number: WriteNumber, answer: Answer },
}

/// What a get is answered with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Answer {
    pub(crate) outcome: Outcome,
    pub(crate) value: Value,
    pub(crate) age: Duration,
    pub(crate) ttl: Duration,
    /// With the outcome that the caller is to fill.
    pub(crate) token: Token,
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
    pub(crate) async fn answer(mut self) -> Result<Answer, Failure> {
        loop {
            match self {
                Waiting::Disk { cache, number, answer } => {
                    if let Some(journal) = cache.journal() {
                        journal.settled(number).await;
                    }
                    return Ok(answer);
                }
                Waiting::Flight { ticket, outcome, cache, get } => match ticket.landed().await {
                    Some(landed) => return Ok(Answer::new(outcome, &landed?, Instant::now())),
                    // Its leader is gone.
                    None => match cache.begin(&get, Instant::now())? {
                        Begun::Answered(answer) => return Ok(answer),
                        Begun::Waiting(waiting) => self = waiting,
                    },
                },
            }
        }
    }
}

impl Answer {
    fn new(found: Outcome, entry: &Entry, now: Instant) -> Self {
        Answer {
            outcome: if entry.value.is_some() { found } else { Outcome::NotFound },
            value: entry.value.clone().unwrap_or_default(),
            age: now.saturating_duration_since(entry.loaded),
            ttl: entry.expires.saturating_duration_since(now),
            token: 0,
        }
    }

    /// An answer without a value.
    fn only(outcome: Outcome) -> Self {
        Answer { outcome, value: Value::default(), age: Duration::ZERO, ttl: Duration::ZERO, token: 0 }
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
            generation: AtomicU32::new(0),
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
        let owned_since = if without(Mechanism::Stamps) { 0 } else { get.owned_since };
        let stored = || self.store.get(&get.key, get.origin, owned_since, now);
        if let Some(entry) = stored() {
            return Ok(Begun::Answered(Answer::new(Outcome::Hit, &entry, now)));
        }
        if let Some((pilot, ticket)) = self.flights.take_over(&get.key, get.token) {
            self.start(pilot, get.clone());
            return Ok(self.wait(ticket, Outcome::Loaded, get));
        }
        let leader = match get.on_miss {
            OnMiss::Load => Leader::Server,
            OnMiss::Peek => return Ok(Begun::Answered(Answer::only(Outcome::Miss))),
            OnMiss::Lease => Leader::Caller,
        };
        let limit = self.policy.max_loads.saturating_mul(1 + WAITING_PER_LOAD);
        let versions = (get.ring_version, owned_since);
        match self.flights.board(&get.key, get.origin, versions, leader, limit, stored) {
            Boarding::Stored(entry) => Ok(Begun::Answered(Answer::new(Outcome::Hit, &entry, now))),
            Boarding::Waiter(ticket) => Ok(self.wait(ticket, Outcome::Coalesced, get)),
            Boarding::Leader(pilot, ticket) => {
                self.start(pilot, get.clone());
                Ok(self.wait(ticket, Outcome::Loaded, get))
            }
            Boarding::Lease(token) => {
                self.void_in_time(token);
                Ok(Begun::Answered(Answer { token, ..Answer::only(Outcome::Fill) }))
            }
            Boarding::Full => {
                let why = format!("group `{}` has {limit} loads in progress or waiting", self.group);
                Err(Failure::new(ErrorCode::Overloaded, why))
            }
        }
    }

    fn wait(self: &Arc<Self>, ticket: Ticket, outcome: Outcome, get: &Get) -> Begun {
        // The token was good once.
        let get = Box::new(Get { token: 0, ..get.clone() });
        Begun::Waiting(Waiting::Flight { ticket, outcome, cache: self.clone(), get })
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

    /// A lease whose client does not bring the value in time is another's.
    fn void_in_time(self: &Arc<Self>, token: Token) {
        let (flights, limit) = (self.flights.clone(), self.policy.load_timeout);
        self.spawn(async move {
            sleep(limit).await;
            flights.void(token);
        });
    }

    fn start(self: &Arc<Self>, pilot: Pilot, get: Get) {
        let cache = self.clone();
        let flight = async move {
            if let Some(entry) = cache.restored(&get).await {
                return pilot.land(Ok(entry), |_| {});
            }
            let landed = cache.load(&get).await;
            pilot.land(landed, |entry| {
                cache.keep(&get.key, entry);
            });
        };
        self.spawn(flight);
    }

    fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let mut tasks = self.tasks.lock();
        while tasks.try_join_next().is_some() {}
        tasks.spawn_on(task, self.runtime.get_or_init(Handle::current));
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
            // Some client may bring it at any time.
            Loaded::NotFound if self.loader.is_none() => (None, Duration::ZERO),
            Loaded::NotFound => (None, self.policy.negative_ttl),
        };
        let ttl = self.jittered(self.bounded(ttl, get.origin));
        Ok(Entry { value, loaded, expires: loaded + ttl, stamp: get.ring_version, origin: get.origin })
    }

    fn bounded(&self, ttl: Duration, origin: Origin) -> Duration {
        let most = match origin {
            Origin::Owner => self.policy.max_ttl,
            Origin::Failover => self.policy.max_ttl.min(self.policy.failover_ttl),
        };
        ttl.min(most)
    }

    fn jittered(&self, ttl: Duration) -> Duration {
        ttl.mul_f64(1.0 - self.policy.ttl_jitter * fastrand::f64())
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

mod write;

pub(crate) use write::{Fetched, Set};

#[cfg(test)]
mod tests;
