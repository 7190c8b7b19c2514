//! The runtime on which a client's background is: what goes on beside its calls, as that the fleet is
//! followed.
//!
//! A client is used from several runtimes, and outlives them. Where the one that the background is on has
//! ended, or stands still, as one does that a thread runs only while it waits for a call, it begins anew on a
//! caller's. Whether it stands still is asked while there are calls: a task on it answers.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::runtime::{Handle, Id};
use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_util::task::AbortOnDropHandle;

/// How often the runtime is asked whether it runs.
const ASK_EVERY: Duration = Duration::from_millis(100);
/// One that has not answered for so long stands still.
const STILL: Duration = Duration::from_secs(1);

/// The runtime of a client's background, as far as it is known.
#[derive(Debug)]
pub(crate) struct Background {
    began: Instant,
    asking: Arc<Asking>,
    /// It has ended.
    is_stranded: Arc<AtomicBool>,
    running: Mutex<Option<Running>>,
}

/// Whether the runtime runs.
#[derive(Debug, Default)]
struct Asking {
    /// When it was asked last, in milliseconds from the beginning.
    asked_ms: AtomicU64,
    /// Which of these it has answered last.
    answered_ms: AtomicU64,
    ask: Notify,
}

impl Asking {
    async fn answer(&self) {
        loop {
            self.ask.notified().await;
            self.answered_ms.store(self.asked_ms.load(Ordering::Acquire), Ordering::Release);
        }
    }
}

/// The tasks on it that are ended when others take their place.
#[derive(Debug)]
struct Running {
    runtime: Id,
    /// What becomes of them is of interest.
    is_current: Arc<AtomicBool>,
    _tasks: [AbortOnDropHandle<()>; 2],
}

impl Default for Background {
    fn default() -> Self {
        Background {
            began: Instant::now(),
            asking: Arc::default(),
            is_stranded: Arc::default(),
            running: Mutex::default(),
        }
    }
}

impl Background {
    /// Runs this on the caller's runtime, in the place of what ran before. The runtime has ended where it is
    /// dropped.
    pub(crate) fn run(&self, background: impl Future<Output = ()> + Send + 'static) {
        let is_current = Arc::new(AtomicBool::new(true));
        let stranded = Stranded { is_current: is_current.clone(), is_stranded: self.is_stranded.clone() };
        let asking = self.asking.clone();
        let tasks = [
            tokio::spawn(async move {
                let _stranded = stranded;
                background.await;
            }),
            tokio::spawn(async move { asking.answer().await }),
        ];
        let tasks = tasks.map(AbortOnDropHandle::new);
        let running = Running { runtime: Handle::current().id(), is_current, _tasks: tasks };
        if let Some(before) = self.running.lock().replace(running) {
            before.is_current.store(false, Ordering::Release);
        }
    }

    /// Whether it has to begin anew, which is said to one caller.
    pub(crate) fn is_to_begin_anew(&self, now: Instant) -> bool {
        if self.is_stranded.load(Ordering::Relaxed) && self.is_stranded.swap(false, Ordering::AcqRel) {
            return true;
        }
        let now_ms = millis(now.saturating_duration_since(self.began));
        let asked_ms = self.asking.asked_ms.load(Ordering::Relaxed);
        now_ms >= asked_ms + millis(ASK_EVERY) && self.stands_still(now_ms, asked_ms)
    }

    /// Asks again, or finds that nobody has answered.
    fn stands_still(&self, now_ms: u64, asked_ms: u64) -> bool {
        let Asking { asked_ms: asked, answered_ms, ask } = &*self.asking;
        let is_answered = answered_ms.load(Ordering::Acquire) >= asked_ms;
        if !is_answered && now_ms < asked_ms + millis(STILL) {
            return false;
        }
        // Of the callers who find that out, one.
        if asked.compare_exchange(asked_ms, now_ms, Ordering::AcqRel, Ordering::Relaxed).is_err() {
            return false;
        }
        // A caller on the very runtime cannot have an answer before it waits for something.
        let is_elsewhere = || {
            let own = Handle::try_current().map(|runtime| runtime.id());
            own.is_ok_and(|own| self.running.lock().as_ref().is_some_and(|running| running.runtime != own))
        };
        if !is_answered && is_elsewhere() {
            return true;
        }
        ask.notify_one();
        false
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// Says that the runtime has ended when it is dropped, unless others have taken its place.
struct Stranded {
    is_current: Arc<AtomicBool>,
    is_stranded: Arc<AtomicBool>,
}

impl Drop for Stranded {
    fn drop(&mut self) {
        if self.is_current.load(Ordering::Acquire) {
            self.is_stranded.store(true, Ordering::Release);
        }
    }
}
