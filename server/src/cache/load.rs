//! Loads: the flights that this server leads, from their start to their landing.
//!
//! A flight that begins joins a queue. Whoever waits for one launches the queue, after everything that came in the same frame
//! has joined it: so keys that are missed in the same moment go to the origin together, where the loader can load
//! many at once, and nothing waits for company. Loads that run are bounded; what has queued up behind them goes
//! together when a turn comes.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use peanut_proto::limits::MAX_VALUE_BYTES;
use peanut_proto::v1::ErrorCode;
use tokio::sync::Semaphore;
use tokio::task::JoinError;
use tokio::time::{Instant, timeout_at};
use tokio_util::task::AbortOnDropHandle;
use tracing::Instrument as _;

use super::{Cache, Get};
use crate::breaker::{Breaker, Epoch, Position};
use crate::error::Failure;
use crate::flight::{Landed, Pilot};
use crate::group::Policy;
use crate::loader::{Loaded, LoaderError, in_trace};
use crate::store::Entry;

/// How long nothing is refreshed after a load has failed.
const REFRESH_PAUSE: Duration = Duration::from_secs(1);

/// The loads of one group.
#[derive(Debug)]
pub(super) struct Loads {
    queue: Mutex<Queue>,
    turns: Semaphore,
    breaker: Option<Mutex<Breaker>>,
    /// Until when nothing is refreshed, since the origin has failed.
    refresh_after: Mutex<Option<Instant>>,
}

#[derive(Debug, Default)]
struct Queue {
    loads: VecDeque<Load>,
    /// Turns that are waited for. Each takes as many loads as the loader takes keys; all together take all that
    /// were there at the last launch.
    turns: usize,
    /// How many loads at the front have been launched.
    launched: usize,
}

/// One flight before its landing.
#[derive(Debug)]
struct Load {
    pilot: Pilot,
    get: Get,
    /// From the launch on.
    deadline: Option<Instant>,
}

impl Loads {
    pub(super) fn new(policy: &Policy) -> Self {
        Loads {
            queue: Mutex::default(),
            turns: Semaphore::new(policy.max_loads),
            breaker: policy.breaker.then(|| Mutex::new(Breaker::new(policy.max_loads, Instant::now()))),
            refresh_after: Mutex::new(None),
        }
    }

    pub(super) fn position(&self) -> Position {
        self.breaker.as_ref().map_or(Position::Closed, |breaker| breaker.lock().position())
    }

    /// Whether an entry that is fresh still may be loaded again: not just after a failure.
    pub(super) fn may_refresh(&self, now: Instant) -> bool {
        self.position() == Position::Closed && self.refresh_after.lock().is_none_or(|after| now >= after)
    }

    fn admits(&self) -> Option<Epoch> {
        self.breaker.as_ref().map_or(Some(0), |breaker| breaker.lock().admits(Instant::now()))
    }

    fn record(&self, epoch: Epoch, succeeded: bool) {
        let now = Instant::now();
        if !succeeded {
            *self.refresh_after.lock() = Some(now + REFRESH_PAUSE);
        }
        if let Some(breaker) = &self.breaker {
            breaker.lock().record(epoch, succeeded, now, fastrand::f64());
        }
    }
}

impl Cache {
    /// Puts a flight into the queue.
    pub(super) fn queue(&self, pilot: Pilot, get: Get) {
        self.loads.queue.lock().loads.push_back(Load { pilot, get, deadline: None });
    }

    /// Has all that is queued loaded, each in its turn.
    pub(crate) fn launch(self: &Arc<Self>) {
        let mut queue = self.loads.queue.lock();
        let (launched, most) = (queue.launched, self.loader.most_keys());
        let turns = queue.loads.len().div_ceil(most);
        if launched == queue.loads.len() && queue.turns >= turns {
            return;
        }
        let deadline = Instant::now() + self.policy.load_timeout;
        queue.loads.range_mut(launched..).for_each(|load| load.deadline = Some(deadline));
        queue.launched = queue.loads.len();
        for turn in queue.turns..turns {
            let deadline = queue.loads[turn * most].deadline.unwrap_or(deadline);
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
        let turn = timeout_at(deadline, self.loads.turns.acquire()).await;
        let now = Instant::now();
        let loads: Vec<Load> = {
            let mut queue = self.loads.queue.lock();
            queue.turns = queue.turns.saturating_sub(1);
            let most = queue.launched.min(self.loader.most_keys());
            let is_due = |load: &Load| load.deadline.is_some_and(|deadline| deadline <= now);
            let taken = match turn {
                Ok(_) => most,
                Err(_) => queue.loads.iter().take(queue.launched).take_while(|load| is_due(load)).count(),
            };
            queue.launched -= taken;
            queue.loads.drain(..taken).collect()
        };
        if turn.is_err() {
            let (most, limit) = (self.policy.max_loads, self.policy.load_timeout);
            let why = format!("{most} loads are in progress, and no turn came within {limit:?}");
            let failure = Failure::new(ErrorCode::Overloaded, why);
            loads.into_iter().for_each(|load| self.land(load.pilot, &load.get, Err(failure.clone())));
            return self.launch();
        }
        self.load_all(loads).await;
    }

    async fn load_all(&self, mut loads: Vec<Load>) {
        if let Some(journal) = self.journal().filter(|journal| journal.is_restoring()) {
            journal.restored().await;
            loads = loads.into_iter().filter_map(|load| self.land_restored(load)).collect();
        }
        // Whoever was to lead it may have found it taken.
        let Some(deadline) = loads.iter().filter_map(|load| load.deadline).max() else { return };
        let Some(epoch) = self.loads.admits() else {
            let why = format!("the origin of group `{}` is failing, and left alone for a while", self.group);
            let failure = Failure::new(ErrorCode::LoaderFailed, why);
            return loads.into_iter().for_each(|load| self.land(load.pilot, &load.get, Err(failure.clone())));
        };
        let begun = Instant::now();
        // Of several callers the first: a load is in one trace.
        let traced = loads.iter().map(|load| &load.get.traceparent).find(|trace| !trace.is_empty());
        let traceparent = traced.and_then(|trace| std::str::from_utf8(trace).ok()).map(str::to_owned);
        let keys: Vec<Bytes> = loads.iter().map(|load| load.get.key.clone()).collect();
        let Origin { found, has_failed } = self.load(keys, traceparent, deadline).await;
        self.metrics.loaded(found.len(), begun.elapsed());
        let failures = found.iter().filter(|found| found.is_err()).count();
        self.metrics.load_failures.fetch_add(failures as u64, Ordering::Relaxed);
        self.loads.record(epoch, !has_failed);
        for (load, found) in loads.into_iter().zip(found) {
            let landed = found.and_then(|found| self.entry(found, begun, &load.get));
            self.land(load.pilot, &load.get, landed);
        }
    }

    /// Lands a flight whose entry has come back from the disk meanwhile.
    fn land_restored(&self, load: Load) -> Option<Load> {
        match self.fresh(&load.get, Instant::now()) {
            Some(entry) => {
                load.pilot.land(Ok(entry), |_| {});
                None
            }
            None => Some(load),
        }
    }

    fn land(&self, pilot: Pilot, get: &Get, landed: Landed) {
        pilot.land(landed, |entry| self.keep(&get.key, entry));
    }

    /// Runs the loader in a task of its own: a panic ends only that task, and a loader that blocks its
    /// thread does not keep the time-out from passing. One result for each key.
    async fn load(&self, keys: Vec<Bytes>, traceparent: Option<String>, deadline: Instant) -> Origin {
        let many = keys.len();
        let span = tracing::debug_span!("load", group = &*self.group, keys = many, traceparent);
        let load = self.loader.clone().load(self.group.clone(), keys);
        let load = in_trace(traceparent, load).instrument(span);
        let begun = Instant::now();
        let load = AbortOnDropHandle::new(tokio::spawn(load));
        let (failure, has_failed) = match timeout_at(deadline, load).await {
            Ok(Ok(found)) if found.len() == many => {
                let has_failed =
                    found.iter().all(|found| found.as_ref().is_err_and(|error| !error.is_of_key()));
                let failed = |error: LoaderError| Failure::new(ErrorCode::LoaderFailed, error.to_string());
                let found = found.into_iter().map(|found| found.map_err(failed)).collect();
                return Origin { found, has_failed };
            }
            Ok(Ok(found)) => {
                let why = format!("the loader was asked for {many} keys and answered {}", found.len());
                (Failure::new(ErrorCode::LoaderFailed, why), true)
            }
            Ok(Err(ended)) => {
                let failure = ended_badly(ended);
                let has_failed = failure.code == ErrorCode::LoaderFailed;
                (failure, has_failed)
            }
            Err(_) => {
                let (had, limit) = (deadline.saturating_duration_since(begun), self.policy.load_timeout);
                let late = format!("within {had:.1?} of the {limit:?} that a load has");
                let time = if had.mul_f64(1.1) >= limit { format!("within {limit:?}") } else { late };
                let why = format!("the loader did not answer {time}");
                // One that got its turn late is not the origin's fault.
                (Failure::new(ErrorCode::LoadTimedOut, why), had * 2 >= limit)
            }
        };
        Origin { found: vec![Err(failure); many], has_failed }
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
        let expires = loaded + self.kept_for(ttl, get.origin, value.is_some());
        Ok(Entry { value, loaded, expires, stamp: get.ring_version, origin: get.origin })
    }
}

/// What the origin has said.
struct Origin {
    found: Vec<Result<Loaded, Failure>>,
    /// Whether it is the origin that something is the matter with, rather than keys.
    has_failed: bool,
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
