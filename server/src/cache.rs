//! A group at work: its store, its flights and its loader.
//!
//! A get goes one way: look into the store; on a miss board the flight of the key; if nobody leads it,
//! start it. [`Cache::begin`] does all of that without waiting, so that a caller with many gets in hand
//! can answer the hits at once.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use load::Loads;
use parking_lot::Mutex;
use peanut_proto::limits::check_key;
use peanut_proto::v1::{ErrorCode, OnMiss, Outcome};
use tokio::runtime::Handle;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout_at};
use xxhash_rust::xxh3::xxh3_64;

use crate::breaker::Position;
use crate::error::Failure;
use crate::flight::{Boarding, Flights, Leader, Ticket, Token};
use crate::group::{Group, Policy};
use crate::hot::{HotKey, HotKeys};
use crate::loader::AnyLoader;
use crate::metrics::GroupMetrics;
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
    loads: Loads,
    pub(crate) metrics: GroupMetrics,
    /// The flights' tasks: they belong to the server, not to the calls that caused them.
    tasks: Mutex<JoinSet<()>>,
    /// Where those run.
    runtime: OnceLock<Handle>,
    /// Where entries are kept for a warm restart, if anywhere.
    journal: OnceLock<Arc<Journal>>,
    /// The latest generation of the group that is known.
    generation: AtomicU64,
    /// The generation for which a client had the group cleared last.
    cleared_for: AtomicU64,
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
    /// W3C trace context of the caller; empty: none.
    pub(crate) traceparent: Bytes,
    /// Whether the caller may be given a lease: why not, else.
    pub(crate) may_fill: Result<(), Failure>,
    /// When an answer is of no use any more.
    pub(crate) deadline: Option<Instant>,
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
    pub(crate) async fn answer(self) -> Result<Answer, Failure> {
        match self {
            Waiting::Disk { cache, number, answer } => {
                if let Some(journal) = cache.journal() {
                    journal.settled(number).await;
                }
                Ok(answer)
            }
            Waiting::Flight { ticket, outcome, cache, get } => {
                let answer = cache.landed(ticket, outcome, &get).await;
                match &answer {
                    Ok(answer) => cache.metrics.answered(answer.outcome),
                    Err(_) => cache.metrics.failed(),
                }
                answer
            }
        }
    }
}

impl Answer {
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
            loads: Loads::new(&group.policy),
            metrics: GroupMetrics::default(),
            tasks: Mutex::default(),
            runtime: OnceLock::new(),
            journal: OnceLock::new(),
            generation: AtomicU64::new(0),
            cleared_for: AtomicU64::new(0),
            policy: group.policy,
        }
    }

    pub(crate) fn name(&self) -> &str {
        &self.group
    }

    pub(crate) fn entries(&self) -> &Store {
        &self.store
    }

    /// How its origin is doing.
    pub(crate) fn breaker(&self) -> Position {
        self.loads.position()
    }

    pub(crate) fn policy(&self) -> &Policy {
        &self.policy
    }

    /// Names what the entries follow from: under another fingerprint they would be others.
    pub(crate) fn fingerprint(&self) -> u64 {
        let Policy { ttl, negative_ttl, max_ttl, stale_if_error, .. } = self.policy;
        let loader = self.loader.fingerprint();
        let times = format!("{ttl:?}\0{negative_ttl:?}\0{max_ttl:?}\0{stale_if_error:?}");
        xxh3_64(format!("{}\0{times}\0{loader}", self.group).as_bytes())
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
        let begun = self.look_or_board(get, now);
        // Rare, both of them.
        if get.origin == Origin::Failover {
            self.metrics.failover_gets.fetch_add(1, Ordering::Relaxed);
        }
        match &begun {
            Ok(Begun::Answered(answer)) => {
                if get.on_miss == OnMiss::Peek && answer.outcome == Outcome::Hit {
                    self.metrics.hand_overs.fetch_add(1, Ordering::Relaxed);
                }
                self.metrics.answered(answer.outcome);
            }
            Ok(Begun::Waiting(_)) => {}
            Err(_) => self.metrics.failed(),
        }
        begun
    }

    fn look_or_board(self: &Arc<Self>, get: &Get, now: Instant) -> Result<Begun, Failure> {
        check_key(&get.key).map_err(|why| Failure::new(ErrorCode::InvalidRequest, why))?;
        self.hot.count(&get.key, now);
        if let Some(entry) = self.fresh(get, now) {
            if let Some(after) = self.policy.refresh_after
                && now >= entry.loaded + after
            {
                self.refresh(get, after, now);
            }
            return Ok(Begun::Answered(self.answer(Outcome::Hit, &entry, now)));
        }
        if let Some((pilot, ticket)) = self.flights.take_over(&get.key, get.token) {
            self.queue(pilot, get.clone());
            return Ok(self.wait(ticket, Outcome::Loaded, get));
        }
        let leader = match get.on_miss {
            OnMiss::Load => Leader::Server,
            OnMiss::Peek => return Ok(Begun::Answered(Answer::only(Outcome::Miss))),
            OnMiss::Lease => match &get.may_fill {
                Ok(()) => Leader::Caller,
                Err(denied) if self.loader.is_none() => return Err(denied.clone()),
                Err(_) => Leader::Server,
            },
        };
        match self.board(get, leader, || self.fresh(get, now)) {
            Boarding::Stored(entry) => Ok(Begun::Answered(self.answer(Outcome::Hit, &entry, now))),
            Boarding::Waiter(ticket) => Ok(self.wait(ticket, Outcome::Coalesced, get)),
            Boarding::Leader(pilot, ticket) => {
                self.queue(pilot, get.clone());
                Ok(self.wait(ticket, Outcome::Loaded, get))
            }
            Boarding::Lease(token) => {
                self.void_in_time(token);
                Ok(Begun::Answered(Answer { token, ..Answer::only(Outcome::Fill) }))
            }
            Boarding::Full => match self.stale(get) {
                Some(answer) => Ok(Begun::Answered(answer)),
                None => {
                    let limit = self.most_flights();
                    let why = format!("group `{}` has {limit} loads in progress or waiting", self.group);
                    Err(Failure::new(ErrorCode::Overloaded, why))
                }
            },
        }
    }

    fn board(&self, get: &Get, leader: Leader, stored: impl FnOnce() -> Option<Entry>) -> Boarding {
        let versions = (get.ring_version, owned_since(get));
        self.flights.board(&get.key, get.origin, versions, leader, self.most_flights(), stored)
    }

    fn most_flights(&self) -> usize {
        self.policy.max_loads.saturating_mul(1 + WAITING_PER_LOAD)
    }

    /// Loads an entry of that age, which is fresh still, in the background: unless that is being done, or the origin has just
    /// failed. (Groups without a loader have no such age.)
    fn refresh(self: &Arc<Self>, get: &Get, after: Duration, now: Instant) {
        if get.on_miss == OnMiss::Peek || !self.loads.may_refresh(now) {
            return;
        }
        let refreshed = || self.fresh(get, now).filter(|entry| now < entry.loaded + after);
        if let Boarding::Leader(pilot, _) = self.board(get, Leader::Server, refreshed) {
            self.metrics.refreshes.fetch_add(1, Ordering::Relaxed);
            self.queue(pilot, Get { token: 0, ..get.clone() });
            self.launch();
        }
    }

    /// The entry that a get is answered with.
    fn fresh(&self, get: &Get, now: Instant) -> Option<Entry> {
        self.stored(get, now).filter(|entry| self.is_fresh(entry, now))
    }

    /// The entry of a key, which may be past its time to live.
    fn stored(&self, get: &Get, now: Instant) -> Option<Entry> {
        self.store.get(&get.key, get.origin, owned_since(get), now)
    }

    /// What there is where loading has failed.
    fn stale(&self, get: &Get) -> Option<Answer> {
        if self.policy.stale_if_error.is_zero() {
            return None;
        }
        let now = Instant::now();
        let entry = self.stored(get, now)?;
        let outcome = if self.is_fresh(&entry, now) { Outcome::Hit } else { Outcome::Stale };
        Some(self.answer(outcome, &entry, now))
    }

    /// Until when a caller waits for a load who could be answered with what is stale.
    fn patience(&self, get: &Get) -> Option<Instant> {
        let deadline = get.deadline.filter(|_| !self.policy.stale_if_error.is_zero())?;
        let now = Instant::now();
        // The answer has to travel still.
        Some(now + deadline.saturating_duration_since(now).mul_f64(0.8))
    }

    /// How long an entry is kept that is fresh for `ttl`.
    fn kept_for(&self, ttl: Duration, origin: Origin, has_value: bool) -> Duration {
        if ttl.is_zero() { ttl } else { ttl + self.stale_window(origin, has_value) }
    }

    fn is_fresh(&self, entry: &Entry, now: Instant) -> bool {
        now + self.stale_window(entry.origin, entry.value.is_some()) < entry.expires
    }

    /// How long an entry is kept beyond its time to live.
    fn stale_window(&self, origin: Origin, has_value: bool) -> Duration {
        if origin == Origin::Owner && has_value { self.policy.stale_if_error } else { Duration::ZERO }
    }

    fn answer(&self, found: Outcome, entry: &Entry, now: Instant) -> Answer {
        let window = self.stale_window(entry.origin, entry.value.is_some());
        Answer {
            outcome: if entry.value.is_some() { found } else { Outcome::NotFound },
            value: entry.value.clone().unwrap_or_default(),
            age: now.saturating_duration_since(entry.loaded),
            ttl: entry.expires.saturating_duration_since(now + window),
            token: 0,
        }
    }

    fn wait(self: &Arc<Self>, ticket: Ticket, outcome: Outcome, get: &Get) -> Begun {
        // The token was good once.
        let get = Box::new(Get { token: 0, ..get.clone() });
        Begun::Waiting(Waiting::Flight { ticket, outcome, cache: self.clone(), get })
    }

    /// Waits for a flight, and for those after it where its leader is gone.
    async fn landed(
        self: &Arc<Self>,
        mut ticket: Ticket,
        mut outcome: Outcome,
        get: &Get,
    ) -> Result<Answer, Failure> {
        loop {
            self.launch();
            let landed = match self.patience(get) {
                None => ticket.landed().await,
                Some(until) => {
                    let landed = ticket.landed();
                    tokio::pin!(landed);
                    match timeout_at(until, &mut landed).await {
                        Ok(landed) => landed,
                        // Another's load goes on; this caller has something to go by.
                        Err(_) => match self.stale(get) {
                            Some(answer) => return Ok(answer),
                            None => landed.await,
                        },
                    }
                }
            };
            match landed {
                Some(Ok(entry)) => return Ok(self.answer(outcome, &entry, Instant::now())),
                Some(Err(failure)) => {
                    let may_be_stale = matches!(
                        failure.code,
                        ErrorCode::LoaderFailed | ErrorCode::LoadTimedOut | ErrorCode::Overloaded
                    );
                    return self.stale(get).filter(|_| may_be_stale).ok_or(failure);
                }
                None => match self.look_or_board(get, Instant::now())? {
                    Begun::Waiting(Waiting::Flight { ticket: next, outcome: now, .. }) => {
                        (ticket, outcome) = (next, now);
                    }
                    Begun::Waiting(other) => return Box::pin(other.answer()).await,
                    Begun::Answered(answer) => return Ok(answer),
                },
            }
        }
    }

    /// Says where loads run. The first to say so, or the first load, decides.
    pub(crate) fn run_loads_on(&self, runtime: &Handle) {
        let _ = self.runtime.set(runtime.clone());
    }

    /// Flights in progress.
    pub(crate) fn in_progress(&self) -> usize {
        self.flights.in_progress()
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
        self.empty_queue();
    }

    /// A lease whose client does not bring the value in time is another's.
    fn void_in_time(self: &Arc<Self>, token: Token) {
        let (flights, limit) = (self.flights.clone(), self.policy.load_timeout);
        self.spawn(async move {
            sleep(limit).await;
            flights.void(token);
        });
    }

    fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let mut tasks = self.tasks.lock();
        while tasks.try_join_next().is_some() {}
        tasks.spawn_on(task, self.runtime.get_or_init(Handle::current));
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

/// Ring version since which the node owns the key, for what is stored.
fn owned_since(get: &Get) -> u64 {
    if without(Mechanism::Stamps) { 0 } else { get.owned_since }
}

mod load;
mod write;

pub(crate) use write::{Fetched, Set};

#[cfg(test)]
mod tests;
