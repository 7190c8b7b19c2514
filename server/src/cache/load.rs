//! Loads: the flights that this server leads, from their start to their landing.
//!
//! A flight that begins joins a queue. The first caller that waits for one launches the queue, after
//! everything that came in the same frame has joined it: so keys that are missed in the same moment go to the
//! origin together, where the loader can load many at once, and nothing waits for company. Loads that run are
//! bounded; what has queued up behind them goes together when a turn comes.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use peanut_proto::clock::suspended;
use peanut_proto::limits::MAX_VALUE_BYTES;
use peanut_proto::v1::ErrorCode;
use tokio::sync::Semaphore;
use tokio::task::JoinError;
use tokio::time::{Instant, timeout, timeout_at};
use tokio_util::task::AbortOnDropHandle;
use tracing::Instrument as _;

use super::queue::FairQueue;
use super::{Cache, Get};
use crate::breaker::{Breaker, Ended, Epoch, Position};
use crate::budget::{Budget, Held};
use crate::flight::{Landed, Pilot};
use crate::group::Policy;
use crate::loader::{LoadRequest, Loaded, LoaderError};
use crate::store::Entry;
use peanut_edge::{Failure, traces};

/// How long nothing is refreshed after a load has failed.
const REFRESH_PAUSE: Duration = Duration::from_secs(1);

/// How long a load that is late may take to be given up: longer only where its loader blocks a thread.
const GIVEN_UP_WITHIN: Duration = Duration::from_millis(100);

/// A machine that has been suspended for longer while a value was loaded has an outdated one.
const SUSPENDED: Duration = Duration::from_millis(100);

/// The loads of one group.
#[derive(Debug)]
pub(super) struct Loads {
    queue: Mutex<Queue>,
    turns: Semaphore,
    breaker: Option<Mutex<Breaker>>,
    /// For the values that are being loaded.
    budget: Arc<Budget>,
    largest: Largest,
    /// How long a load takes, its turn not included: an average in microseconds; zero before the first.
    took_us: AtomicU64,
    refreshes: Mutex<Refreshes>,
}

/// Until when nothing is refreshed, since it could not be.
#[derive(Debug, Default)]
struct Refreshes {
    /// The origin has failed.
    after: Option<Instant>,
    /// The loads of these keys have; no more than so many.
    of_keys: HashMap<Bytes, Instant>,
}

impl Refreshes {
    const MOST: usize = 1024;

    fn may(&self, key: &Bytes, now: Instant) -> bool {
        let is_over = |after: Option<&Instant>| after.is_none_or(|after| now >= *after);
        is_over(self.after.as_ref()) && is_over(self.of_keys.get(key))
    }

    /// The load of a key has failed.
    fn pause(&mut self, key: &Bytes, now: Instant) {
        if self.of_keys.len() >= Refreshes::MOST {
            self.of_keys.retain(|_, after| now < *after);
        }
        if self.of_keys.len() < Refreshes::MOST {
            self.of_keys.insert(Bytes::copy_from_slice(key), now + REFRESH_PAUSE);
        } else {
            // Of so many keys at once that it is as if the origin had.
            self.after = Some(now + REFRESH_PAUSE);
        }
    }
}

#[derive(Debug, Default)]
struct Queue {
    /// Those that nobody has launched yet, with who has caused them.
    begun: Vec<(usize, Load)>,
    launched: FairQueue<Load>,
    /// Turns that are waited for. Each takes as many loads as the loader takes keys; all together take all
    /// that have been launched.
    turns: usize,
}

/// The largest value of the last loads, in two windows of so many.
#[derive(Debug, Default)]
struct Largest {
    loads: AtomicUsize,
    windows: [AtomicUsize; 2],
}

impl Largest {
    const WINDOW: usize = 64;

    fn add(&self, bytes: usize) {
        let at = self.loads.fetch_add(1, Ordering::Relaxed) / Largest::WINDOW;
        if self.loads.load(Ordering::Relaxed) % Largest::WINDOW == 1 {
            self.windows[at % 2].store(0, Ordering::Relaxed);
        }
        self.windows[at % 2].fetch_max(bytes, Ordering::Relaxed);
    }

    /// `None` before the first load.
    fn get(&self) -> Option<usize> {
        let [a, b] = &self.windows;
        let largest = a.load(Ordering::Relaxed).max(b.load(Ordering::Relaxed));
        (self.loads.load(Ordering::Relaxed) > 0).then_some(largest)
    }
}

/// What a value is taken for before one has been loaded: by itself, and among many keys.
const UNKNOWN_BYTES: usize = MAX_VALUE_BYTES;
const UNKNOWN_AMONG_MANY_BYTES: usize = 64 << 10;

/// One flight before its landing.
#[derive(Debug)]
struct Load {
    pilot: Pilot,
    get: Get,
    /// From the launch on.
    deadline: Option<Instant>,
    /// It counts for who has caused it, also where nobody waits for it any more.
    _held: Held,
}

impl Loads {
    pub(super) fn new(policy: &Policy, budget: Arc<Budget>) -> Self {
        Loads {
            queue: Mutex::default(),
            turns: Semaphore::new(policy.max_loads),
            breaker: policy.breaker.then(|| Mutex::new(Breaker::new(policy.max_loads, Instant::now()))),
            budget,
            largest: Largest::default(),
            took_us: AtomicU64::new(0),
            refreshes: Mutex::default(),
        }
    }

    pub(super) fn position(&self, now: Instant) -> Position {
        self.breaker.as_ref().map_or(Position::Closed, |breaker| breaker.lock().position(now))
    }

    /// Takes down how long a load took.
    fn took(&self, took: Duration) {
        let took = u64::try_from(took.as_micros()).unwrap_or(u64::MAX).max(1);
        let average = self.took_us.load(Ordering::Relaxed);
        let next = if average == 0 { took } else { average - average / 8 + took / 8 };
        self.took_us.store(next, Ordering::Relaxed);
    }

    /// Whether an entry that is fresh still may be loaded again: not just after a failure.
    pub(super) fn may_refresh(&self, key: &Bytes, now: Instant) -> bool {
        self.position(now) == Position::Closed && self.refreshes.lock().may(key, now)
    }

    fn admits(&self) -> Option<Epoch> {
        self.breaker.as_ref().map_or(Some(0), |breaker| breaker.lock().admits(Instant::now()))
    }

    /// Takes in how a load of these keys has ended.
    fn record<'a>(&self, epoch: Epoch, ended: Ended, failed: impl Iterator<Item = &'a Bytes>) {
        let now = Instant::now();
        {
            let mut refreshes = self.refreshes.lock();
            if ended == Ended::Well {
                failed.for_each(|key| refreshes.pause(key, now));
            } else {
                refreshes.after = Some(now + REFRESH_PAUSE);
            }
        }
        if let Some(breaker) = &self.breaker {
            breaker.lock().record(epoch, ended, now, fastrand::f64());
        }
    }
}

impl Cache {
    /// Puts a flight into the queue, for the connection that has caused it.
    pub(super) fn queue(&self, pilot: Pilot, get: Get, caller: usize, held: Held) {
        self.loads.queue.lock().begun.push((caller, Load { pilot, get, deadline: None, _held: held }));
    }

    /// Whether a load that nobody waits for would begin at once: others are not to wait for it.
    pub(super) fn has_turns_left(&self) -> bool {
        let queue = self.loads.queue.lock();
        let free = self.loads.turns.available_permits().saturating_mul(self.loader.max_batch_size());
        queue.launched.len() + queue.begun.len() < free
    }

    fn loads_at_once(&self) -> usize {
        self.policy.max_loads.saturating_mul(self.loader.max_batch_size())
    }

    /// Why a load of this caller's that begins now would not be done in time, where that is so: by what is
    /// ahead of it, and how long loads have been taking.
    pub(super) fn would_be_late(&self, get: &Get, caller: usize, now: Instant) -> Option<Failure> {
        let ahead = {
            let queue = self.loads.queue.lock();
            queue.launched.ahead_of(caller) + queue.begun.len()
        };
        let at_once = self.loads_at_once();
        if ahead < at_once {
            return None;
        }
        let took = Duration::from_micros(self.loads.took_us.load(Ordering::Relaxed));
        let wait = took.saturating_mul(u32::try_from(ahead / at_once).unwrap_or(u32::MAX));
        let most = get.deadline.map_or(self.policy.load_timeout, |deadline| {
            self.policy.load_timeout.min(deadline.saturating_duration_since(now))
        });
        (wait > most).then(|| self.overloaded(&format!("{ahead} loads are ahead, about {wait:.0?} of them")))
    }

    /// Has all that is queued loaded, each in its turn.
    pub(crate) fn launch(self: &Arc<Self>) {
        let mut queue = self.loads.queue.lock();
        let most = self.loader.max_batch_size();
        let deadline = Instant::now() + self.policy.load_timeout;
        for (caller, mut load) in std::mem::take(&mut queue.begun) {
            load.deadline = Some(deadline);
            queue.launched.push(caller, load);
        }
        let turns = queue.launched.len().div_ceil(most);
        for _ in queue.turns..turns {
            self.spawn(self.clone().take_turn(deadline));
        }
        queue.turns = queue.turns.max(turns);
    }

    /// Drops what waits: those who wait for it have an error.
    pub(super) fn empty_queue(&self) {
        let dropped = std::mem::take(&mut *self.loads.queue.lock());
        drop(dropped);
    }

    /// Waits for a turn and uses it.
    async fn take_turn(self: Arc<Self>, deadline: Instant) {
        let turn = async {
            let turn = self.loads.turns.acquire().await;
            // So that what is loaded at the same time has room: as far as is known how large it is.
            let queued = self.loads.queue.lock().launched.len().max(1);
            let most = self.keys_at_once().min(queued);
            let held = self.loads.budget.take(most.saturating_mul(self.expected_bytes())).await;
            (turn, most, held)
        };
        let turn = timeout_at(deadline, turn).await;
        let now = Instant::now();
        let loads: Vec<Load> = {
            let mut queue = self.loads.queue.lock();
            queue.turns = queue.turns.saturating_sub(1);
            let is_due = |load: &Load| load.deadline.is_some_and(|deadline| deadline <= now);
            match &turn {
                Ok((_, most, _)) => std::iter::from_fn(|| queue.launched.pop()).take(*most).collect(),
                Err(_) => queue.launched.take_due(is_due),
            }
        };
        if turn.is_err() {
            let (most, limit) = (self.policy.max_loads, self.policy.load_timeout);
            let why = format!("{most} loads are in progress, and no turn came within {limit:?}");
            let failure = Failure::new(ErrorCode::Overloaded, why);
            loads.into_iter().for_each(|load| self.land(load.pilot, &load.get, Err(failure.clone())));
            return self.launch();
        }
        // Some may have been left for want of room.
        self.launch();
        self.load_all(loads).await;
    }

    /// How many keys one turn loads.
    fn keys_at_once(&self) -> usize {
        let most = self.loader.max_batch_size();
        if most == 1 {
            return 1;
        }
        // A quarter of what there is room for.
        (self.loads.budget.most() / 4 / self.expected_bytes().max(1)).clamp(1, most)
    }

    /// How large the next value is taken for: as the largest of those that were loaded lately.
    pub(super) fn expected_bytes(&self) -> usize {
        let unknown = match self.loader.max_batch_size() {
            _ if self.loader.is_none() => 0,
            1 => UNKNOWN_BYTES,
            _ => UNKNOWN_AMONG_MANY_BYTES,
        };
        self.loads.largest.get().unwrap_or(unknown)
    }

    async fn load_all(&self, mut loads: Vec<Load>) {
        if let Some(journal) = self.journal().filter(|journal| journal.is_restoring()) {
            journal.restored().await;
            loads = loads.into_iter().filter_map(|load| self.land_restored(load)).collect();
        }
        // Its leader may have found it taken.
        let Some(deadline) = loads.iter().filter_map(|load| load.deadline).max() else { return };
        let Some(epoch) = self.loads.admits() else {
            let why = format!("the origin of group `{}` is failing, and left alone for a while", self.group);
            let failure = Failure::new(ErrorCode::LoaderFailed, why);
            return loads.into_iter().for_each(|load| self.land(load.pilot, &load.get, Err(failure.clone())));
        };
        // Of several callers the first: a load is in one trace.
        let traced = loads.iter().map(|load| &load.get.traceparent).find(|trace| !trace.is_empty());
        let traceparent: Option<Arc<str>> =
            traced.and_then(|trace| std::str::from_utf8(trace).ok()).map(Arc::from);
        let request = |load: &Load| LoadRequest {
            group: self.group.clone(),
            key: load.get.key.clone(),
            deadline,
            traceparent: traceparent.clone(),
        };
        // What was read before the machine was suspended is of then, and nobody has told of it.
        let (begun, Origin { found, ended }) = loop {
            let (begun, suspended_before) = (Instant::now(), suspended());
            let loaded = self.load(loads.iter().map(request).collect(), deadline).await;
            if suspended() <= suspended_before + SUSPENDED {
                break (begun, loaded);
            }
        };
        let took = begun.elapsed();
        self.metrics.loaded(found.len(), took);
        self.loads.took(took);
        let length = |found: &Result<Loaded, Failure>| match found {
            Ok(loaded) => loaded.value().map_or(0, Bytes::len),
            Err(_) => 0,
        };
        self.loads.largest.add(found.iter().map(length).max().unwrap_or_default());
        let failures = found.iter().filter(|found| found.is_err()).count();
        self.metrics.load_failures.fetch_add(failures as u64, Ordering::Relaxed);
        let keys = loads.iter().zip(&found).filter(|(_, found)| found.is_err());
        self.loads.record(epoch, ended, keys.map(|(load, _)| &load.get.key));
        for (load, found) in loads.into_iter().zip(found) {
            let landed = found.and_then(|found| self.entry(found, begun, &load.get));
            self.land(load.pilot, &load.get, landed);
        }
    }

    /// Lands a flight whose entry has come back from the disk meanwhile.
    fn land_restored(&self, load: Load) -> Option<Load> {
        match self.fresh(&load.get, Instant::now()) {
            Some(entry) => {
                load.pilot.land(Ok(entry), |_| None);
                None
            }
            None => Some(load),
        }
    }

    pub(super) fn land(&self, pilot: Pilot, get: &Get, landed: Landed) {
        pilot.land(landed, |entry| self.keep(&get.key, entry));
    }

    /// Runs the loader in a task of its own: a panic ends only that task, and a loader that blocks its
    /// thread does not keep the time-out from passing. One result for each key.
    async fn load(&self, mut requests: Vec<LoadRequest>, deadline: Instant) -> Origin {
        let many = requests.len();
        let traceparent = requests.first().and_then(|request| request.traceparent.as_deref());
        let span = tracing::debug_span!("load", group = &*self.group, keys = many, traceparent);
        traceparent.into_iter().for_each(|caller| traces::belongs_to(&span, caller));
        if let Some(own) = traces::traceparent(&span).map(Arc::<str>::from) {
            // What the origin does for it is a part of the load.
            requests.iter_mut().for_each(|request| request.traceparent = Some(own.clone()));
        }
        let load = self.loader.clone().load(requests).instrument(span);
        let begun = Instant::now();
        let mut load = AbortOnDropHandle::new(tokio::spawn(load));
        let (failure, ended) = match timeout_at(deadline, &mut load).await {
            Ok(Ok(found)) if found.len() == many => {
                let has_failed =
                    found.iter().all(|found| found.as_ref().is_err_and(|error| !error.is_of_key()));
                let failed = |error: LoaderError| Failure::new(ErrorCode::LoaderFailed, error.to_string());
                let found = found.into_iter().map(|found| found.map_err(failed)).collect();
                return Origin { found, ended: if has_failed { Ended::Badly } else { Ended::Well } };
            }
            Ok(Ok(found)) => {
                let why = format!("the loader was asked for {many} keys and answered {}", found.len());
                (Failure::new(ErrorCode::LoaderFailed, why), Ended::Badly)
            }
            Ok(Err(ended)) => {
                let failure = ended_badly(ended);
                let has_failed = failure.code == ErrorCode::LoaderFailed;
                (failure, if has_failed { Ended::Badly } else { Ended::Unknown })
            }
            Err(_) => {
                // Its connection is given up with it, so that later loads have another one.
                load.abort();
                let _ = timeout(GIVEN_UP_WITHIN, load).await;
                let (had, limit) = (deadline.saturating_duration_since(begun), self.policy.load_timeout);
                let late = format!("within {had:.1?} of the {limit:?} that a load has");
                let time = if had.mul_f64(1.1) >= limit { format!("within {limit:?}") } else { late };
                let why = format!("the loader did not answer {time}");
                // One that got its turn late is not the origin's fault.
                let ended = if had * 2 >= limit { Ended::Badly } else { Ended::Unknown };
                (Failure::new(ErrorCode::LoadTimedOut, why), ended)
            }
        };
        Origin { found: vec![Err(failure); many], ended }
    }

    fn entry(&self, found: Loaded, loaded: Instant, get: &Get) -> Landed {
        let (value, ttl) = match found.into_parts() {
            (Some(value), _) if value.len() > MAX_VALUE_BYTES => {
                let why = format!("the value has {} bytes; the limit is {MAX_VALUE_BYTES}", value.len());
                return Err(Failure::new(ErrorCode::ValueTooLarge, why));
            }
            (Some(value), ttl) => (Some(value.into()), ttl.unwrap_or(self.policy.ttl)),
            // Some client may bring it at any time.
            (None, _) if self.loader.is_none() => (None, Duration::ZERO),
            (None, ttl) => (None, ttl.unwrap_or(Duration::MAX).min(self.policy.negative_ttl)),
        };
        let ttl = self.jittered(self.bounded(ttl, get.origin));
        let expires = loaded + self.kept_for(ttl, get.origin, value.is_some());
        Ok(Entry { value, loaded, expires, stamp: get.stamp, origin: get.origin })
    }
}

/// What the origin has said.
struct Origin {
    found: Vec<Result<Loaded, Failure>>,
    /// Badly where something is the matter with the origin, rather than with keys.
    ended: Ended,
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
