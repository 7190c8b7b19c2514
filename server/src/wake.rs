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

use peanut_proto::clock::uptime;
use peanut_proto::intervals::{REGISTRY_PATIENCE, SLEEP, SLEEP_TICK};
use peanut_proto::machine::{Pause, work_on_thread};
use peanut_proto::sabotage::{Mechanism, without};
use tokio::sync::{Notify, watch};
use tokio::time::timeout;

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
    /// How often the registry has had to be read anew. Raised with the lock of `state` held.
    wakes: AtomicU64,
    state: watch::Sender<State>,
    /// How often the process has slept.
    sleeps: AtomicU64,
    /// Entries grow older by what the monotonic clock misses.
    suspended: Suspended,
    /// Somebody asks the registry.
    asks: AtomicBool,
    woken: Notify,
    doubted: Notify,
}

/// What is known of wakes.
#[derive(Debug, Default)]
struct State {
    /// Of that many the registry has been asked, or has not answered.
    settled: u64,
    /// When the last one was, in milliseconds from `began`.
    roused_ms: u64,
    /// When the registry last answered a call that is to settle them.
    answered_ms: u64,
    /// The node holds no lease in the registry: what it reads there is not all that it is to know when it has
    /// one.
    is_unleased: bool,
}

impl State {
    /// How much longer the registry has to answer. A reading is several calls: while it answers them it is
    /// there, unless it goes on like that without an end.
    fn patience(&self, now_ms: u64) -> Duration {
        let left = |from_ms: u64, patience: Duration| {
            patience.saturating_sub(Duration::from_millis(now_ms.saturating_sub(from_ms)))
        };
        let silent = left(self.answered_ms.max(self.roused_ms), REGISTRY_PATIENCE);
        silent.min(left(self.roused_ms, LONGEST_READING))
    }
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
            wakes: AtomicU64::new(0),
            state: watch::Sender::new(State::default()),
            sleeps: AtomicU64::new(0),
            suspended,
            asks: AtomicBool::new(false),
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
        let ticked_ms = self.shared.ticked_ms.load(Ordering::Acquire);
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
            self.shared.suspended.count();
            // The count comes first: a reader of the new time sees it.
            self.shared.sleeps.fetch_add(1, Ordering::Relaxed);
            self.rouse(|_| {});
            // A busy machine alone takes some hundred milliseconds.
            if slept < WORTH_A_WARNING {
                tracing::info!("this process slept for {slept:.1?}; the registry is asked again");
            } else {
                tracing::warn!("this process slept for {slept:.1?}; the registry is asked again");
            }
        }
        self.shared.ticked_ms.store(now_ms, Ordering::Release);
    }

    /// Waits until what was missed in sleep is known, or the registry does not tell. Gives the number of
    /// wakes of which that is so.
    pub(crate) async fn awake(&self) -> u64 {
        loop {
            // Notices sleep.
            self.wakes();
            // From when it had to, however long any caller waits.
            let patience = {
                let state = self.shared.state.borrow();
                match self.known(&state) {
                    Some(wakes) => return wakes,
                    None => state.patience(self.now_ms()),
                }
            };
            if !patience.is_zero() {
                let mut state = self.shared.state.subscribe();
                let _ = timeout(patience, state.wait_for(|state| self.known(state).is_some())).await;
                continue;
            }
            self.shared.state.send_modify(|state| {
                // Another may have woken it again meanwhile.
                if state.patience(self.now_ms()).is_zero() {
                    state.is_unleased = false;
                    state.settled = self.shared.wakes.load(Ordering::Acquire);
                }
            });
        }
    }

    /// The number of wakes, where what was missed is known of all of them. The state stays as it is
    /// meanwhile, wakes included.
    fn known(&self, state: &State) -> Option<u64> {
        let wakes = self.shared.wakes.load(Ordering::Acquire);
        let is_known = state.settled >= wakes && !state.is_unleased;
        (is_known || !self.shared.asks.load(Ordering::Relaxed)).then_some(wakes)
    }

    /// The registry has answered one call of those that are to settle wakes.
    pub(crate) fn answered(&self) {
        let now_ms = self.now_ms();
        self.shared.state.send_if_modified(|state| {
            state.answered_ms = now_ms;
            false
        });
    }

    /// The node holds no lease. Writers that could not reach it do not wait for it to read their hints: it
    /// answers nothing until it has a lease and has read them, or the registry does not answer.
    pub(crate) fn lease_lost(&self) {
        self.rouse(|state| state.is_unleased = true);
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
        self.rouse(|state| state.is_unleased = false);
    }

    /// Has lanes end, and the registry read before anything more is answered.
    fn rouse(&self, with: impl FnOnce(&mut State)) {
        self.shared.state.send_modify(|state| {
            with(state);
            state.roused_ms = self.now_ms();
            self.shared.wakes.fetch_add(1, Ordering::AcqRel);
        });
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
            if self.shared.state.borrow().settled < wakes {
                return wakes;
            }
            self.shared.woken.notified().await;
        }
    }

    /// What was missed up to this wake is known.
    pub(crate) fn settle(&self, wakes: u64) {
        self.shared.state.send_modify(|state| state.settled = wakes.max(state.settled));
    }

    fn now_ms(&self) -> u64 {
        u64::try_from(uptime().saturating_sub(self.shared.began).as_millis()).unwrap_or(u64::MAX)
    }
}

/// How long the calls by which a node reads what it missed may take together.
const LONGEST_READING: Duration = Duration::from_secs(12);
const _: () = assert!(LONGEST_READING.as_millis() > 2 * REGISTRY_PATIENCE.as_millis());

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
        assert_eq!(wake.shared.state.borrow().settled, 1);
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

    /// A caller whose patience is over says nothing of a wake that came after the one that it waited for.
    #[tokio::test]
    async fn patience_with_one_wake_does_not_end_with_that_of_another() {
        let wake = Wake::new(Suspended::default());
        wake.will_ask();
        wake.lease_lost();
        let waiting = tokio::spawn({
            let wake = wake.clone();
            async move { wake.awake().await }
        });
        tokio::time::sleep(REGISTRY_PATIENCE / 2).await;
        let lost_again = wake.now_ms();
        wake.lease_lost();
        assert_eq!(waiting.await.unwrap(), 2);
        assert!(wake.now_ms() - lost_again >= REGISTRY_PATIENCE.as_millis() as u64);
    }

    #[test]
    fn a_registry_that_answers_one_call_after_the_other_is_waited_for_with_a_bound() {
        let (patience, longest) = (REGISTRY_PATIENCE.as_millis() as u64, LONGEST_READING.as_millis() as u64);
        let mut state = State { roused_ms: 1000, ..State::default() };
        assert!(state.patience(1000 + patience).is_zero());
        state.answered_ms = 1000 + patience - 1;
        assert_eq!(state.patience(1000 + patience), REGISTRY_PATIENCE - Duration::from_millis(1));
        state.answered_ms = 1000 + longest;
        assert!(state.patience(1000 + longest).is_zero());
        // An answer to what was asked before counts for nothing.
        let woken = State { roused_ms: 50_000, ..state };
        assert_eq!(woken.patience(50_000), REGISTRY_PATIENCE);
    }

    /// Those who wait look at the state while others change it, from several threads: nobody is held up.
    #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
    async fn waiting_and_settling_hold_nobody_up() {
        let wake = Wake::new(Suspended::default());
        wake.will_ask();
        let settling = tokio::spawn({
            let wake = wake.clone();
            async move {
                for _ in 0..2_000 {
                    wake.lease_lost();
                    tokio::task::yield_now().await;
                    wake.lease_held();
                    wake.settle(wake.wakes());
                    tokio::task::yield_now().await;
                }
            }
        });
        let waiting: Vec<_> = (0..3)
            .map(|_| {
                let wake = wake.clone();
                tokio::spawn(async move {
                    for _ in 0..20_000 {
                        wake.awake().await;
                        tokio::task::yield_now().await;
                    }
                })
            })
            .collect();
        timeout(Duration::from_secs(60), async {
            settling.await.unwrap();
            for waiting in waiting {
                waiting.await.unwrap();
            }
        })
        .await
        .expect("a deadlock");
    }

    #[tokio::test]
    async fn ticking_is_no_sleep() {
        let wake = Wake::new(Suspended::default());
        let _ticking = wake.tick();
        tokio::time::sleep(SLEEP * 2).await;
        assert_eq!(wake.wakes(), 0);
    }
}
