//! A group at work: its store, its flights and its loader.
//!
//! A get goes one way: look into the store; on a miss board the flight of the key; if nobody leads it,
//! start it. [`Cache::begin`] does all of that without waiting, so that a caller with many gets in hand
//! can answer the hits at once.

mod generations;
mod given_back;
mod lifetimes;
mod load;
mod near;
mod queue;
mod waiting;
mod write;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use load::Loads;
use parking_lot::Mutex;
use peanut_proto::clock::uptime;
use peanut_proto::limits::check_key;
use peanut_proto::numbers::{FillToken, RingVersion};
use peanut_proto::sabotage::{Mechanism, without};
use peanut_proto::v1::{ErrorCode, OnMiss, Outcome};
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::breaker::Position;
use crate::budget::{Account, Budget, Held, OPERATION_BYTES, Reservation};
use crate::flight::{Boarding, Flights, Leader, Term};
use crate::group::{Group, Policy};
use crate::hot::{HotKey, HotKeys};
use crate::journal::Journal;
use crate::loader::AnyLoader;
use crate::metrics::GroupMetrics;
use crate::near::{Copies, NearLeases};
use crate::store::{Entry, Origin, Store, Suspended, Value};
use crate::validity::Validity;
use generations::Generations;
use peanut_edge::Failure;
pub(crate) use waiting::Waiting;
pub(crate) use write::{Condition, Delete, Fetched, Set};

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
    /// Where those run; `None`: where they are begun.
    runtime: Option<Handle>,
    /// Where entries are kept for a warm restart, if anywhere.
    journal: Option<Arc<Journal>>,
    /// To which the group was cleared, as the registry says.
    generations: watch::Sender<Generations>,
    /// It has been said that a value was too large to be kept.
    is_told_of_large: AtomicBool,
    /// Who holds near copies of its keys, under leases that the node gives.
    copies: Copies,
    near: Arc<NearLeases>,
}

/// What a node's groups have together.
#[derive(Clone, Debug)]
pub(crate) struct Within {
    /// For values that are being loaded.
    pub(crate) loading: Arc<Budget>,
    pub(crate) near: Arc<NearLeases>,
    pub(crate) suspended: Suspended,
    /// Where loads run; `None`: where they are begun.
    pub(crate) runtime: Option<Handle>,
}

/// A get, as any service hands it in.
#[derive(Clone, Debug)]
pub(crate) struct Get {
    pub(crate) key: Bytes,
    pub(crate) on_miss: OnMiss,
    /// The ring version that the node knows: what is loaded from now on is written under it.
    pub(crate) stamp: RingVersion,
    /// What an entry has to be for this caller, and a load in progress.
    pub(crate) validity: Validity,
    /// Whether this node is asked as the owner or in its place.
    pub(crate) origin: Origin,
    /// A fill token that is given back; 0: none.
    pub(crate) token: FillToken,
    /// W3C trace context of the caller; empty: none.
    pub(crate) traceparent: Bytes,
    /// `Err`: why the caller may not hold a fill lease.
    pub(crate) may_fill: Result<(), Failure>,
    /// When an answer is of no use any more.
    pub(crate) deadline: Option<Instant>,
    /// Whether this process would know of any write of the key since the node came to own it.
    pub(crate) may_hand_over: bool,
}

/// An operation that is answered, or one that waits.
#[derive(Debug)]
pub(crate) enum Begun {
    Answered(Answer),
    Waiting(Waiting),
}

/// What a get is answered with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Answer {
    pub(crate) outcome: Outcome,
    pub(crate) value: Value,
    pub(crate) age: Duration,
    pub(crate) ttl: Duration,
    /// With the outcome that the caller is to fill, or with a delete before a set.
    pub(crate) token: FillToken,
    /// With a token: the key may have been written since the node came to own it.
    pub(crate) written: bool,
    /// Of a delete: the key's sequence.
    pub(crate) sequence: u64,
    /// Milliseconds for which a client may keep it in a near cache; 0: not at all.
    pub(crate) near_ms: u32,
}

impl Get {
    /// The same get, for what waits: it keeps nothing of the frame that it came in. A token was good once.
    fn kept(&self) -> Self {
        let copy = |bytes: &Bytes| Bytes::copy_from_slice(bytes);
        Get {
            key: copy(&self.key),
            traceparent: copy(&self.traceparent),
            token: FillToken::NONE,
            ..self.clone()
        }
    }
}

impl Begun {
    /// What is to be waited for, if anything.
    pub(crate) fn waiting(self) -> Option<Waiting> {
        match self {
            Begun::Answered(_) => None,
            Begun::Waiting(waiting) => Some(waiting),
        }
    }

    pub(crate) async fn answer(self) -> Result<Answer, Failure> {
        match self {
            Begun::Answered(answer) => Ok(answer),
            Begun::Waiting(waiting) => waiting.answer().await,
        }
    }
}

impl Answer {
    /// An answer without a value.
    fn only(outcome: Outcome) -> Self {
        Answer {
            outcome,
            value: Value::default(),
            age: Duration::ZERO,
            ttl: Duration::ZERO,
            token: FillToken::NONE,
            written: false,
            sequence: 0,
            near_ms: 0,
        }
    }
}

impl Cache {
    pub(crate) fn new(group: Group, within: &Within, journal: Option<Arc<Journal>>) -> Self {
        Cache {
            group: group.name.into(),
            loader: group.loader,
            store: Store::new(group.policy.capacity_bytes, group.policy.eviction, Instant::now())
                .counting(within.suspended.clone()),
            hot: HotKeys::new(Instant::now()),
            flights: Arc::default(),
            loads: Loads::new(&group.policy, within.loading.child(usize::MAX)),
            metrics: GroupMetrics::default(),
            tasks: Mutex::default(),
            runtime: within.runtime.clone(),
            journal,
            generations: watch::Sender::default(),
            is_told_of_large: AtomicBool::new(false),
            copies: Copies::default(),
            near: within.near.clone(),
            policy: group.policy,
        }
    }

    /// A group by itself.
    #[cfg(test)]
    pub(crate) fn alone(group: Group) -> Self {
        Cache::alone_with(group, None)
    }

    /// A group by itself, with a journal.
    #[cfg(test)]
    pub(crate) fn alone_with(group: Group, journal: Option<Arc<Journal>>) -> Self {
        let near = Arc::new(NearLeases::new());
        near.first_start();
        let loading = crate::budget::Budgets::new().loading;
        let within = Within { loading, near, suspended: Suspended::default(), runtime: None };
        Cache::new(group, &within, journal)
    }

    /// Begins a get for a connection that has nothing else.
    #[cfg(test)]
    pub(crate) fn begin_alone(self: &Arc<Self>, get: &Get, now: Instant) -> Result<Begun, Failure> {
        self.begin(get, &crate::budget::Budgets::new().account(&"".into()), now)
    }

    pub(crate) fn name(&self) -> &str {
        &self.group
    }

    pub(crate) fn entries(&self) -> &Store {
        &self.store
    }

    /// How its origin is doing.
    pub(crate) fn breaker(&self) -> Position {
        self.loads.position(Instant::now())
    }

    pub(crate) fn policy(&self) -> &Policy {
        &self.policy
    }

    pub(crate) fn journal(&self) -> Option<&Journal> {
        self.journal.as_deref()
    }

    /// Answers a get from the store, or finds or starts the flight that will. What waits counts for
    /// `account`.
    pub(crate) fn begin(
        self: &Arc<Self>,
        get: &Get,
        account: &Arc<Account>,
        now: Instant,
    ) -> Result<Begun, Failure> {
        let begun = self.look_or_wait(get, account, now);
        // Rare, both of them.
        if get.origin == Origin::Failover && get.on_miss != OnMiss::Peek {
            self.metrics.failover_gets.fetch_add(1, Ordering::Relaxed);
        }
        match &begun {
            Ok(Begun::Answered(answer)) if get.on_miss == OnMiss::Peek => {
                if answer.outcome == Outcome::Hit {
                    self.metrics.hand_overs.fetch_add(1, Ordering::Relaxed);
                }
                self.metrics.peeked();
            }
            // There is no entry that says so.
            Ok(Begun::Answered(Answer { outcome: Outcome::NotFound, ttl: Duration::ZERO, .. })) => {
                self.metrics.answered(Outcome::Miss);
            }
            Ok(Begun::Answered(answer)) => self.metrics.answered(answer.outcome),
            Ok(Begun::Waiting(_)) => {}
            Err(_) => self.metrics.failed(),
        }
        begun
    }

    fn look_or_wait(
        self: &Arc<Self>,
        get: &Get,
        account: &Arc<Account>,
        now: Instant,
    ) -> Result<Begun, Failure> {
        if get.token.is_some() {
            return self.give_back(get, account, now);
        }
        check_key(&get.key).map_err(|why| Failure::new(ErrorCode::InvalidRequest, why))?;
        self.hot.count(&get.key, now);
        if let Some(hit) = self.look(get, account, now) {
            return Ok(Begun::Answered(hit));
        }
        if get.on_miss == OnMiss::Peek {
            return Ok(Begun::Answered(Answer::only(Outcome::Miss)));
        }
        let Some(operation) = account.operations.try_take(OPERATION_BYTES + get.key.len()) else {
            let why = "too many operations of this connection, or of the node, are waiting";
            return self
                .stale(get)
                .map(Begun::Answered)
                .ok_or_else(|| Failure::new(ErrorCode::Overloaded, why));
        };
        match account.values.try_take(self.expected_bytes()) {
            Some(value) => self.board(get, account, [operation, value], now),
            None => {
                let (get, account) = (Box::new(get.kept()), account.clone());
                Ok(Begun::Waiting(Waiting::Room { cache: self.clone(), get, account, operation }))
            }
        }
    }

    /// The hit, where there is one; it is loaded again in the background where it has the age for it.
    fn look(self: &Arc<Self>, get: &Get, account: &Arc<Account>, now: Instant) -> Option<Answer> {
        let entry = self.fresh(get, now)?;
        if let Some(after) = self.policy.refresh_after
            && now >= entry.loaded + after
        {
            self.refresh(get, account, after, now);
        }
        Some(self.answer(Outcome::Hit, &entry, now))
    }

    /// Boards the flight of a key that was missed, or starts it.
    fn board(
        self: &Arc<Self>,
        get: &Get,
        account: &Arc<Account>,
        [operation, value]: [Held; 2],
        now: Instant,
    ) -> Result<Begun, Failure> {
        let by_server = if self.loader.is_none() {
            Leader::Nobody
        } else {
            Leader::Server { reserved: Reservation::new(account, value.bytes()) }
        };
        let mut operation = Some(operation);
        let leader = match get.on_miss {
            OnMiss::Load | OnMiss::Peek => by_server,
            OnMiss::Lease => match &get.may_fill {
                // A caller that is given a lease waits for nothing by then.
                Ok(()) => Leader::Caller {
                    term: Term { given: now, until: now + self.policy.load_timeout },
                    held: operation.take(),
                    reserved: Reservation::new(account, 0),
                },
                Err(denied) if self.loader.is_none() => return Err(denied.clone()),
                Err(_) => by_server,
            },
        };
        match self.find_flight(get, leader, || self.fresh(get, now)) {
            Boarding::Stored(entry) => Ok(Begun::Answered(self.answer(Outcome::Hit, &entry, now))),
            Boarding::Waiter(ticket) => {
                // A lease that was not needed has let go of what counts for it.
                let held = operation.or_else(|| account.operations.try_take(OPERATION_BYTES + get.key.len()));
                let Some(operation) = held else {
                    return Err(self.overloaded("too many operations are waiting"));
                };
                Ok(self.wait(ticket, Outcome::Coalesced, get, account, [operation, value]))
            }
            Boarding::Leader(pilot, ticket) => {
                if let Some(failure) = self.would_be_late(get, account.id(), now) {
                    self.land(pilot, get, Err(failure.clone()));
                    return self.stale(get).map(Begun::Answered).ok_or(failure);
                }
                let Some(held) = operation else {
                    let failure = self.overloaded("too many operations are waiting");
                    self.land(pilot, get, Err(failure.clone()));
                    return Err(failure);
                };
                // The load counts, and not its leader as well.
                self.queue(pilot, get.kept(), account.id(), held);
                let operation = account.operations.take_nothing();
                Ok(self.wait(ticket, Outcome::Loaded, get, account, [operation, value]))
            }
            Boarding::Lease { token, written_under } => {
                // A write after this makes the token void.
                let written = !get.may_hand_over || written_under >= get.validity.owned_since;
                let written = written && !without(Mechanism::HandOverBound);
                Ok(Begun::Answered(Answer { token, written, ..Answer::only(Outcome::Fill) }))
            }
            Boarding::Nothing => self.nothing(get).map(Begun::Answered),
        }
    }

    fn overloaded(&self, why: &str) -> Failure {
        Failure::new(ErrorCode::Overloaded, format!("group `{}`: {why}", self.group))
    }

    fn find_flight(&self, get: &Get, leader: Leader, stored: impl FnOnce() -> Option<Entry>) -> Boarding {
        self.flights.board(&get.key, get.origin, (get.stamp, get.validity), leader, stored)
    }

    /// Loads an entry of that age, which is fresh still, in the background: unless that is being done, it
    /// would have to wait for others, or the origin has just failed. (Groups without a loader have no such
    /// age.)
    fn refresh(self: &Arc<Self>, get: &Get, account: &Arc<Account>, after: Duration, now: Instant) {
        if get.on_miss == OnMiss::Peek || !self.loads.may_refresh(&get.key, now) || !self.has_turns_left() {
            return;
        }
        let Some(held) = account.operations.try_take(OPERATION_BYTES + get.key.len()) else { return };
        let refreshed = || self.fresh(get, now).filter(|entry| now < entry.loaded + after);
        let leader = Leader::Server { reserved: Reservation::new(account, 0) };
        if let Boarding::Leader(pilot, _) = self.find_flight(get, leader, refreshed) {
            self.metrics.refreshes.fetch_add(1, Ordering::Relaxed);
            self.queue(pilot, get.kept(), account.id(), held);
            self.launch();
        }
    }

    /// The entry that a get is answered with.
    fn fresh(&self, get: &Get, now: Instant) -> Option<Entry> {
        self.stored(get, now).filter(|entry| self.is_fresh(entry, now))
    }

    /// The entry of a key, which may be past its time to live.
    fn stored(&self, get: &Get, now: Instant) -> Option<Entry> {
        self.valid(&get.key, get.origin, get.validity, now)
    }

    fn valid(&self, key: &Bytes, origin: Origin, validity: Validity, now: Instant) -> Option<Entry> {
        let entry = self.store.get(key, origin, validity.stamp(), now);
        entry.filter(|entry| validity.is_loaded(entry.loaded))
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

    fn answer(&self, found: Outcome, entry: &Entry, now: Instant) -> Answer {
        let window = self.stale_window(entry.origin, entry.value.is_some());
        Answer {
            outcome: if entry.value.is_some() { found } else { Outcome::NotFound },
            value: entry.value.clone().unwrap_or_default(),
            age: now.saturating_duration_since(entry.loaded),
            ttl: entry.expires.saturating_duration_since(now + window),
            token: FillToken::NONE,
            written: false,
            sequence: 0,
            near_ms: 0,
        }
    }

    /// Flights in progress.
    pub(crate) fn in_progress(&self) -> usize {
        self.flights.in_progress()
    }

    /// The keys that are asked for most, at most `most`, the hottest first.
    pub(crate) fn hottest(&self, most: usize) -> Vec<HotKey> {
        self.hot.hottest(most, Instant::now())
    }

    /// Drops what has expired among the next `part` of all entries, and looks for leases that have run out.
    pub(crate) fn sweep(&self, part: f64) {
        let now = Instant::now();
        self.store.sweep(part, now);
        self.flights.look_for_late(now);
        self.copies.sweep(&self.near, uptime());
    }

    /// Ends every load. Those who wait have an error.
    pub(crate) fn abort_loads(&self) {
        self.tasks.lock().abort_all();
        self.empty_queue();
    }

    fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let mut tasks = self.tasks.lock();
        while tasks.try_join_next().is_some() {}
        match &self.runtime {
            Some(runtime) => tasks.spawn_on(task, runtime),
            None => tasks.spawn(task),
        };
    }
}

#[cfg(test)]
mod tests;
