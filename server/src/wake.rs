//! Whether the process has been asleep: stopped, swapped out, or on a machine that stood still.
//!
//! Such a process wakes with its memory, and with requests waiting in its sockets, while clients have long
//! given it up and stored hints in the registry. So it has to notice before it answers. A thread ticks; a
//! thread that is about to answer compares the clock with the last tick, and the first to see a gap *wakes*
//! the node: lanes from before end, unread requests with them, and nothing is answered until the registry has
//! been asked again, or does not answer.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use peanut_proto::clock::uptime;
use peanut_proto::intervals::{REGISTRY_PATIENCE, SLEEP, SLEEP_TICK};
use peanut_proto::machine::{Pause, work_on_thread};
use peanut_proto::sabotage::{Mechanism, without};
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, timeout};

use crate::store::Suspended;

/// Notices sleep. Clones are of the same process.
#[derive(Clone, Debug)]
pub(crate) struct Wake {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    /// Of the machine, when this was made.
    began: Duration,
    /// Milliseconds from `began` to the last tick; zero before the first.
    ticked_ms: AtomicU64,
    /// The same, by the clock that stands still while the machine is suspended.
    monotonic: Mutex<Monotonic>,
    /// Entries grow older by what that clock has missed.
    suspended: Suspended,
    /// How often the registry has had to be read anew.
    wakes: AtomicU64,
    /// When it last had to, in milliseconds from `began`.
    roused_ms: AtomicU64,
    /// How often the process has slept.
    sleeps: AtomicU64,
    /// Of that many wakes the registry has been asked, or has not answered.
    settled: watch::Sender<u64>,
    /// Somebody asks the registry.
    asks: AtomicBool,
    /// The node holds no lease in the registry: what it reads there is not all that it is to know when it has
    /// one.
    is_unleased: AtomicBool,
    woken: Notify,
    doubted: Notify,
}

/// The last tick, by both clocks.
#[derive(Debug)]
struct Monotonic {
    ticked: Instant,
    ticked_ms: u64,
}

/// Ends the ticking when it is dropped.
#[derive(Debug)]
pub(crate) struct Ticking(Arc<AtomicBool>);

impl Wake {
    /// Tells of the time in which the machine is suspended.
    pub(crate) fn new(suspended: Suspended) -> Self {
        let shared = Shared {
            began: uptime(),
            ticked_ms: AtomicU64::new(0),
            monotonic: Mutex::new(Monotonic { ticked: Instant::now(), ticked_ms: 0 }),
            suspended,
            wakes: AtomicU64::new(0),
            roused_ms: AtomicU64::new(0),
            sleeps: AtomicU64::new(0),
            settled: watch::Sender::new(0),
            asks: AtomicBool::new(false),
            is_unleased: AtomicBool::new(false),
            woken: Notify::new(),
            doubted: Notify::new(),
        };
        Wake { shared: Arc::new(shared) }
    }

    /// Begins to tick.
    pub(crate) fn tick(&self) -> Ticking {
        let (wake, ended) = (self.clone(), Arc::new(AtomicBool::new(false)));
        let ending = ended.clone();
        wake.shared.ticked_ms.store(wake.now_ms(), Ordering::Relaxed);
        // Without the thread sleep goes unnoticed, as it does where no server runs.
        let ticking = work_on_thread("peanut-tick", async move {
            let pause = Pause::default();
            while !ending.load(Ordering::Relaxed) {
                wake.look();
                pause.pause(SLEEP_TICK).await;
            }
            wake.shared.ticked_ms.store(0, Ordering::Relaxed);
        });
        if let Err(error) = ticking {
            tracing::warn!("sleep of this process is not noticed, no thread for it: {error}");
            self.shared.ticked_ms.store(0, Ordering::Relaxed);
        }
        Ticking(ended)
    }

    /// How often the process has slept.
    pub(crate) fn sleeps(&self) -> u64 {
        self.wakes();
        self.shared.sleeps.load(Ordering::Relaxed)
    }

    /// How often the node has had to read the registry anew. Every answer from the store asks this first.
    pub(crate) fn wakes(&self) -> u64 {
        let ticked_ms = self.shared.ticked_ms.load(Ordering::Relaxed);
        if ticked_ms != 0 && self.now_ms().saturating_sub(ticked_ms) > SLEEP.as_millis() as u64 {
            self.look();
        }
        self.shared.wakes.load(Ordering::Acquire)
    }

    /// Takes down the time, and wakes the node where too much has passed.
    fn look(&self) {
        let now_ms = self.now_ms().max(1);
        let ticked_ms = self.shared.ticked_ms.load(Ordering::Relaxed);
        let slept = Duration::from_millis(now_ms.saturating_sub(ticked_ms));
        if ticked_ms != 0 && slept > SLEEP && !without(Mechanism::Sleep) {
            self.count_suspension(now_ms);
            // The count comes first: a reader of the new time sees it.
            self.shared.sleeps.fetch_add(1, Ordering::Relaxed);
            self.rouse();
            // A busy machine alone takes some hundred milliseconds.
            if slept < WORTH_A_WARNING {
                tracing::info!("this process slept for {slept:.1?}; the registry is asked again");
            } else {
                tracing::warn!("this process slept for {slept:.1?}; the registry is asked again");
            }
        }
        self.shared.ticked_ms.store(now_ms, Ordering::Release);
        *self.shared.monotonic.lock() = Monotonic { ticked: Instant::now(), ticked_ms: now_ms };
    }

    /// Has entries grow older by what the monotonic clock has missed since the last tick.
    fn count_suspension(&self, now_ms: u64) {
        let mut last = self.shared.monotonic.lock();
        let now = Instant::now();
        let passed = Duration::from_millis(now_ms.saturating_sub(last.ticked_ms));
        self.shared.suspended.add(passed.saturating_sub(now.saturating_duration_since(last.ticked)));
        // Of those that notice at the same time one counts.
        *last = Monotonic { ticked: now, ticked_ms: now_ms };
    }

    /// Waits until what was missed in sleep is known, or the registry does not tell. Gives the number of
    /// wakes.
    pub(crate) async fn awake(&self) -> u64 {
        if self.is_awake() {
            return self.wakes();
        }
        let mut settled = self.shared.settled.subscribe();
        // From when it had to, however long any caller waits.
        let waited = self.now_ms().saturating_sub(self.shared.roused_ms.load(Ordering::Relaxed));
        let patience = REGISTRY_PATIENCE.saturating_sub(Duration::from_millis(waited));
        if timeout(patience, settled.wait_for(|_| self.is_awake())).await.is_err() {
            self.shared.is_unleased.store(false, Ordering::Release);
            self.settle(self.wakes());
        }
        self.wakes()
    }

    fn is_awake(&self) -> bool {
        let knows = || {
            let is_settled = *self.shared.settled.borrow() >= self.wakes();
            is_settled && !self.shared.is_unleased.load(Ordering::Acquire)
        };
        !self.shared.asks.load(Ordering::Relaxed) || knows()
    }

    /// The node holds no lease. Writers that could not reach it do not wait for it to read their hints: it
    /// answers nothing until it has a lease and has read them, or the registry does not answer.
    pub(crate) fn lease_lost(&self) {
        self.shared.is_unleased.store(true, Ordering::Release);
        self.rouse();
    }

    /// The registry has lost its data, and the lease with it, it seems: as [`lease_lost`](Self::lease_lost),
    /// until the node has registered again.
    pub(crate) fn lease_doubted(&self) {
        self.lease_lost();
        self.shared.doubted.notify_one();
    }

    /// Waits until the lease is doubted.
    pub(crate) async fn doubt(&self) {
        self.shared.doubted.notified().await;
    }

    /// The node holds a lease: the registry is to be read once more.
    pub(crate) fn lease_held(&self) {
        self.rouse();
        self.shared.is_unleased.store(false, Ordering::Release);
    }

    /// Has lanes end, and the registry read before anything more is answered.
    fn rouse(&self) {
        self.shared.roused_ms.store(self.now_ms(), Ordering::Relaxed);
        self.shared.wakes.fetch_add(1, Ordering::AcqRel);
        self.shared.woken.notify_one();
    }

    /// Says that somebody settles wakes.
    pub(crate) fn will_ask(&self) {
        self.shared.asks.store(true, Ordering::Relaxed);
    }

    /// Waits for a wake that has not been settled, and gives its number.
    pub(crate) async fn woken(&self) -> u64 {
        loop {
            let wakes = self.wakes();
            if *self.shared.settled.borrow() < wakes {
                return wakes;
            }
            self.shared.woken.notified().await;
        }
    }

    /// What was missed up to this wake is known.
    pub(crate) fn settle(&self, wakes: u64) {
        // Those who wait look at more than the number.
        self.shared.settled.send_modify(|settled| *settled = wakes.max(*settled));
    }

    fn now_ms(&self) -> u64 {
        u64::try_from(uptime().saturating_sub(self.shared.began).as_millis()).unwrap_or(u64::MAX)
    }
}

/// Sleep that somebody should look into: a machine or container that stands still.
const WORTH_A_WARNING: Duration = Duration::from_secs(2);

impl Drop for Ticking {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{Entry, Eviction, Origin, RingVersion, Store};

    #[tokio::test]
    async fn a_gap_between_ticks_wakes_once_and_holds_answers_until_it_is_settled() {
        let wake = Wake::new(Suspended::default());
        assert_eq!(wake.wakes(), 0, "nothing ticks yet");
        wake.shared.ticked_ms.store(1, Ordering::Relaxed);
        tokio::time::sleep(SLEEP + SLEEP_TICK).await;
        assert_eq!((wake.wakes(), wake.wakes()), (1, 1));
        assert_eq!(wake.awake().await, 1, "nobody asks the registry");
        wake.will_ask();
        assert_eq!(wake.woken().await, 1);
        let waiting = tokio::spawn({
            let wake = wake.clone();
            async move { wake.awake().await }
        });
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished());
        wake.settle(1);
        assert_eq!(waiting.await.unwrap(), 1);
    }

    #[tokio::test]
    async fn a_registry_that_does_not_answer_does_not_hold_answers_for_ever() {
        let wake = Wake::new(Suspended::default());
        wake.shared.wakes.store(1, Ordering::Relaxed);
        wake.will_ask();
        assert_eq!(wake.woken().await, 1);
        assert_eq!(wake.awake().await, 1);
        assert_eq!(*wake.shared.settled.borrow(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn without_a_lease_nothing_is_answered_until_it_is_held_and_the_registry_was_read_after_that() {
        let wake = Wake::new(Suspended::default());
        wake.will_ask();
        wake.lease_lost();
        let before = wake.woken().await;
        wake.settle(before);
        let waiting = tokio::spawn({
            let wake = wake.clone();
            async move { wake.awake().await }
        });
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished(), "what was read without a lease is not all");
        wake.lease_held();
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished(), "nor has anything been read since");
        let held = wake.woken().await;
        assert!(held > before);
        wake.settle(held);
        assert_eq!(waiting.await.unwrap(), held, "lanes from before are over");
        assert_eq!(wake.sleeps(), 0);
    }

    #[tokio::test]
    async fn what_the_monotonic_clock_has_missed_is_told() {
        let suspended = Suspended::default();
        let (wake, now) = (Wake::new(suspended.clone()), Instant::now());
        let store = Store::new(1 << 20, Eviction::Lru, now).counting(suspended);
        let entry = |ttl| Entry {
            value: None,
            loaded: now,
            expires: now + ttl,
            stamp: RingVersion(1),
            origin: Origin::Owner,
        };
        store.insert(b"short", &entry(Duration::from_secs(3600)));
        store.insert(b"long", &entry(Duration::from_secs(3 * 3600)));
        // Two hours have passed, and for the monotonic clock a moment.
        let two_hours = 2 * 3_600_000;
        *wake.shared.monotonic.lock() = Monotonic { ticked: Instant::now(), ticked_ms: 0 };
        wake.count_suspension(two_hours);
        wake.count_suspension(two_hours);
        let get = |key: &[u8]| store.get(key, Origin::Owner, RingVersion(1), Instant::now());
        assert!(get(b"short").is_none(), "it has expired meanwhile");
        let left = get(b"long").unwrap().expires - Instant::now();
        assert!(left < Duration::from_secs(3601) && left > Duration::from_secs(3500), "{left:?}");
    }

    #[tokio::test]
    async fn ticking_is_no_sleep() {
        let wake = Wake::new(Suspended::default());
        let _ticking = wake.tick();
        tokio::time::sleep(SLEEP * 2).await;
        assert_eq!(wake.wakes(), 0);
    }
}
