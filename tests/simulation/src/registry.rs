//! The registry, as etcd is seen from a host: three members that reach one store, over links that may be slow
//! or cut.
//!
//! A member that has lost its peers answers nothing that has to agree with them. Watches on it stand still,
//! although it goes on to answer progress requests, unless they require a leader, as
//! [`EtcdRegistry`](peanut_proto::registry::EtcdRegistry)'s do. The store may be down, full, compacted, or
//! come back empty.

use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures_util::future::BoxFuture;
use parking_lot::Mutex;
use peanut_proto::change::change_ring;
use peanut_proto::clock::wall_clock_ms;
use peanut_proto::membership::{Keys, RingDocument};
use peanut_proto::registry::{
    Change, Changes, KeyRange, LeaseId, LocalRegistry, Page, PageOptions, Registry, RegistryError,
};
use peanut_proto::sabotage::{Mechanism, without};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, sleep_until, timeout};

use super::network::{HostId, Network};
use super::rings::Rings;
use super::world::time;

/// Members of the store.
pub(super) const MEMBERS: usize = 3;
/// As long as a call to etcd may take.
const CALL: Duration = Duration::from_millis(500);
/// How often a watch hears that there is nothing new, and without that for how long it is given up.
const PROGRESS: Duration = Duration::from_millis(500);
const SILENCE: Duration = Duration::from_millis(1500);

type Job = Box<dyn FnOnce(&mut LocalRegistry) -> BoxFuture<'static, ()> + Send>;

/// The store, which every member reaches.
#[derive(Clone)]
pub(super) struct Store(Arc<StoreState>);

struct StoreState {
    network: Network,
    members: [HostId; MEMBERS],
    jobs: mpsc::UnboundedSender<Job>,
    faults: Mutex<Faults>,
    rings: Mutex<Rings>,
    /// Rises when all watches end.
    compactions: watch::Sender<u64>,
}

#[derive(Clone, Debug, Default)]
struct Faults {
    down: u32,
    full: u32,
    alone: [u32; MEMBERS],
    watch_lag: (u64, Duration),
}

/// What can be wrong with the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StoreFault {
    /// No member answers.
    Down,
    /// It takes no writes.
    Full,
    /// A member has lost its peers.
    Alone(usize),
}

impl Store {
    /// The store, and what has to run where it is.
    pub(super) fn new(
        network: Network,
        members: [HostId; MEMBERS],
        mut registry: LocalRegistry,
    ) -> (Self, impl Future<Output = ()> + Send) {
        let (jobs, mut coming) = mpsc::unbounded_channel::<Job>();
        let compactions = watch::Sender::new(0);
        let (faults, rings) = (Mutex::default(), Mutex::default());
        let store = Store(Arc::new(StoreState { network, members, jobs, faults, rings, compactions }));
        let run = async move {
            while let Some(job) = coming.recv().await {
                tokio::spawn(job(&mut registry));
            }
        };
        (store, run)
    }

    /// Begins or ends a fault.
    pub(super) fn fault(&self, fault: StoreFault, is_on: bool) {
        let mut faults = self.0.faults.lock();
        let count = match fault {
            StoreFault::Down => &mut faults.down,
            StoreFault::Full => &mut faults.full,
            StoreFault::Alone(member) => &mut faults.alone[member],
        };
        *count = if is_on { *count + 1 } else { count.saturating_sub(1) };
        if fault == StoreFault::Down && is_on {
            self.end_watches();
        }
        drop(faults);
    }

    /// Has watches of these hosts, bit by bit, lag by so much.
    pub(super) fn set_watch_lag(&self, hosts: u64, lag: Duration) {
        self.0.faults.lock().watch_lag = (hosts, lag);
    }

    /// Ends all watches.
    pub(super) fn end_watches(&self) {
        self.0.compactions.send_modify(|compactions| *compactions += 1);
    }

    /// Puts an empty registry in the place of what was stored.
    pub(super) fn empty(&self) {
        let store = self.clone();
        let _ = self.0.jobs.send(Box::new(move |registry| {
            *registry = registry.emptied();
            store.0.rings.lock().lost(time());
            store.end_watches();
            Box::pin(std::future::ready(()))
        }));
    }

    /// Whether there was more than one ring then.
    pub(super) fn had_many_rings(&self, at: Duration) -> bool {
        self.0.rings.lock().were_many(at)
    }

    /// Until when there may be more than one ring, where there is at that time.
    pub(super) fn has_many_rings_until(&self, at: Duration) -> Option<Duration> {
        self.0.rings.lock().are_many_until(at)
    }

    /// The newest version of the ring that there was.
    pub(super) fn newest_ring(&self) -> u64 {
        self.0.rings.lock().newest()
    }

    /// Takes a node out of the ring, as an operator does; it runs on.
    pub(super) fn drain(&self, id: String) {
        let state = self.0.clone();
        let _ = self.0.jobs.send(Box::new(move |registry| {
            let (registry, keys) = (registry.clone(), Keys::new("default"));
            Box::pin(async move {
                // Where there is no such member, there is nothing to do.
                let drained = |ring: &RingDocument| ring.drained(&id, wall_clock_ms());
                if change_ring(&registry, &keys, drained).await.is_ok_and(|is_changed| is_changed)
                    && let Ok(Some(entry)) = registry.get(&keys.ring()).await
                {
                    state.ring_stored(&entry.value);
                }
            })
        }));
    }

    /// The store as one host sees it.
    pub(super) fn seen_from(&self, host: HostId, first_member: usize) -> SimulatedRegistry {
        SimulatedRegistry {
            store: self.clone(),
            host,
            member: Arc::new(AtomicUsize::new(first_member % MEMBERS)),
        }
    }
}

impl StoreState {
    fn answers(&self, member: usize) -> bool {
        let faults = self.faults.lock();
        faults.down == 0 && faults.alone[member] == 0
    }

    fn ring_stored(&self, document: &[u8]) {
        let ring = RingDocument::decode(document).expect("nodes write good rings");
        self.rings.lock().stored(ring.version.0, time());
    }
}

/// A registry, as one host sees it.
#[derive(Clone)]
pub(super) struct SimulatedRegistry {
    store: Store,
    host: HostId,
    /// The one that it asks.
    member: Arc<AtomicUsize>,
}

impl fmt::Debug for SimulatedRegistry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SimulatedRegistry({})", self.host)
    }
}

impl SimulatedRegistry {
    async fn call<R: Send + 'static>(
        &self,
        is_write: bool,
        job: impl FnOnce(LocalRegistry) -> BoxFuture<'static, Result<R, RegistryError>> + Send + 'static,
    ) -> Result<R, RegistryError> {
        let (reply, replied) = oneshot::channel();
        let number = self.member.load(Ordering::Relaxed);
        let (state, host, member) = (self.store.0.clone(), self.host, self.store.0.members[number]);
        self.store.0.network.message(host, member, move || {
            if !state.answers(number) {
                return;
            }
            let back = state.clone();
            let answer = move |result: Result<R, RegistryError>| {
                back.network.clone().message(member, host, move || drop(reply.send(result)));
            };
            if is_write && state.faults.lock().full > 0 {
                return answer(Err(RegistryError::new("mvcc: database space exceeded")));
            }
            let _ = state.jobs.send(Box::new(move |registry| {
                let done = job(registry.clone());
                Box::pin(async move { answer(done.await) })
            }));
        });
        match timeout(CALL, replied).await {
            Ok(Ok(result)) => result,
            _ => {
                self.next_member(number);
                Err(RegistryError::new("the registry does not answer"))
            }
        }
    }

    fn next_member(&self, after: usize) {
        self.member.store((after + 1) % MEMBERS, Ordering::Relaxed);
    }
}

#[async_trait::async_trait]
impl Registry for SimulatedRegistry {
    async fn page(&self, range: &KeyRange, options: PageOptions) -> Result<Page, RegistryError> {
        let range = range.clone();
        // Everything that is there is one answer: the pages of the store are not of one revision.
        let options = PageOptions { limit: 0, ..options };
        self.call(false, move |it| Box::pin(async move { it.page(&range, options).await })).await
    }

    async fn watch(&self, ranges: &[KeyRange]) -> Result<Box<dyn Changes>, RegistryError> {
        let number = self.member.load(Ordering::Relaxed);
        let (told, heard) = mpsc::unbounded_channel();
        let (state, host, ranges) = (self.store.0.clone(), self.host, ranges.to_vec());
        self.call(false, move |it| {
            // As of this store, which may be another when the rest runs.
            let ended = state.compactions.subscribe();
            Box::pin(async move {
                let changes = it.watch(&ranges).await?;
                tokio::spawn(tell(state, (changes, ended), (host, number), told));
                Ok(())
            })
        })
        .await?;
        Ok(Box::new(SimulatedChanges { registry: self.clone(), number, heard }))
    }

    async fn put(&self, key: &str, value: Vec<u8>, lease: Option<LeaseId>) -> Result<(), RegistryError> {
        let key = key.to_owned();
        self.call(true, move |it| Box::pin(async move { it.put(&key, value, lease).await })).await
    }

    async fn swap(&self, key: &str, expected: i64, value: Vec<u8>) -> Result<bool, RegistryError> {
        let (key, state) = (key.to_owned(), self.store.0.clone());
        let swap = move |it: LocalRegistry| async move {
            let is_swapped = it.swap(&key, expected, value.clone()).await?;
            if is_swapped && key == Keys::new("default").ring() {
                state.ring_stored(&value);
            }
            Ok(is_swapped)
        };
        self.call(true, move |it| Box::pin(swap(it))).await
    }

    async fn delete_if(&self, key: &str, expected: i64) -> Result<bool, RegistryError> {
        let key = key.to_owned();
        self.call(false, move |it| Box::pin(async move { it.delete_if(&key, expected).await })).await
    }

    async fn delete_all_if(&self, stale: &[(String, i64)]) -> Result<(), RegistryError> {
        let stale = stale.to_vec();
        self.call(false, move |it| Box::pin(async move { it.delete_all_if(&stale).await })).await
    }

    async fn delete(&self, key: &str) -> Result<(), RegistryError> {
        let key = key.to_owned();
        self.call(false, move |it| Box::pin(async move { it.delete(&key).await })).await
    }

    async fn grant(&self, ttl: Duration) -> Result<LeaseId, RegistryError> {
        self.call(true, move |it| Box::pin(async move { it.grant(ttl).await })).await
    }

    async fn renew(&self, lease: LeaseId) -> Result<bool, RegistryError> {
        self.call(false, move |it| Box::pin(async move { it.renew(lease).await })).await
    }

    async fn revoke(&self, lease: LeaseId) -> Result<(), RegistryError> {
        self.call(false, move |it| Box::pin(async move { it.revoke(lease).await })).await
    }
}

/// `None`: the watch has ended. No changes: there is nothing new.
type Told = Option<Vec<Change>>;

/// Tells a host of changes, from the member that it watches, each after the lag of when it came.
async fn tell(
    state: Arc<StoreState>,
    (mut changes, mut ended): (Box<dyn Changes>, watch::Receiver<u64>),
    (host, number): (HostId, usize),
    told: mpsc::UnboundedSender<Told>,
) {
    let member = state.members[number];
    let say = |what: Told| {
        let told = told.clone();
        state.network.message(member, host, move || drop(told.send(what)));
    };
    let mut lagging: VecDeque<(Instant, Vec<Change>)> = VecDeque::new();
    while !told.is_closed() {
        let due = lagging.front().map(|(at, _)| *at);
        let next = tokio::select! {
            biased;
            _ = ended.changed() => return say(None),
            () = until(due) => None,
            next = timeout(PROGRESS, changes.next()) => Some(next),
        };
        let is_alone = state.faults.lock().alone[number] > 0;
        if is_alone && !without(Mechanism::Leader) {
            return say(None);
        }
        match next {
            // The member has lost its peers: it tells of nothing but progress.
            None if is_alone => {
                lagging.iter_mut().for_each(|(at, _)| *at = (*at).max(Instant::now() + PROGRESS));
                say(Some(Vec::new()));
            }
            None => say(lagging.pop_front().map(|(_, changes)| changes)),
            Some(Err(_)) => say(Some(Vec::new())),
            Some(Ok(Ok(changes))) => {
                let (hosts, lag) = state.faults.lock().watch_lag;
                let lag = if hosts >> host & 1 == 1 { lag } else { Duration::ZERO };
                let last = lagging.back().map(|(at, _)| *at);
                lagging.push_back((last.max(Some(Instant::now() + lag)).expect("a time"), changes));
            }
            Some(Ok(Err(_))) => return say(None),
        }
    }
}

/// Waits for a time, or for ever.
async fn until(at: Option<Instant>) {
    match at {
        // A timer that is set for now ends with the next millisecond.
        Some(at) if at <= Instant::now() => {}
        Some(at) => sleep_until(at).await,
        None => std::future::pending().await,
    }
}

struct SimulatedChanges {
    registry: SimulatedRegistry,
    number: usize,
    heard: mpsc::UnboundedReceiver<Told>,
}

#[async_trait::async_trait]
impl Changes for SimulatedChanges {
    async fn next(&mut self) -> Result<Vec<Change>, RegistryError> {
        loop {
            match timeout(SILENCE, self.heard.recv()).await {
                Ok(Some(Some(changes))) if changes.is_empty() => {}
                Ok(Some(Some(changes))) => return Ok(changes),
                Ok(_) => {
                    self.registry.next_member(self.number);
                    return Err(RegistryError::new("the watch has ended"));
                }
                Err(_) => {
                    self.registry.next_member(self.number);
                    return Err(RegistryError::new("the watch is silent"));
                }
            }
        }
    }
}
