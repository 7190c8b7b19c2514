//! One task for all of a connection.
//!
//! An HTTP/2 connection is several futures: one that reads and writes the socket, one for each request body
//! that is sent, one that reads the answers. As tasks of their own they wake one another at each step of a
//! round trip; a runtime of several threads then wakes further threads to help with what looks like much
//! work, and the futures meet at the connection's locks: seven futex calls for each get of a caller that is
//! alone, as measured. Here they take turns in one task, and what they wake in one another does not leave it.
//!
//! Callers outside the task that have something to send wake it. When an answer has woken several callers,
//! the first wake is coalesced: the task yields a few times, so that the other callers, and those whom other
//! connections' answers wake meanwhile, run before it and one frame takes what all of them have to send.

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU32, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use futures_util::task::AtomicWaker;
use parking_lot::Mutex;
use tokio::task::{coop, yield_now};
use tokio::time::Instant;

/// Rounds of polling after which other tasks have a turn.
const MAX_ROUNDS: usize = 32;

/// The most times that a wake is put off.
const MAX_YIELDS: u32 = 5;
/// On a runtime that is busy with other work a turn may take long: after so much time it is not put off
/// again.
const LONGEST_DELAY: Duration = Duration::from_micros(300);

/// Runs futures in one task, which is there while there are any.
#[derive(Clone, Debug, Default)]
pub(crate) struct ConnectionTask {
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    inbox: Mutex<Inbox>,
    /// How often a wake is put off, for other callers that have been woken too and are likely to wake the
    /// task.
    yields: AtomicU32,
    wakes: Arc<WakeState>,
}

/// What has come from outside since the task last looked.
#[derive(Default)]
struct Inbox {
    futures: Vec<BoxFuture<'static, ()>>,
    wakers: Vec<Waker>,
    /// Whether there is a task to look.
    running: bool,
}

impl ConnectionTask {
    /// Runs a future with the others.
    pub(crate) fn spawn(&self, future: impl Future<Output = ()> + Send + 'static) {
        let mut inbox = self.shared.inbox.lock();
        inbox.futures.push(Box::pin(future));
        let was_running = std::mem::replace(&mut inbox.running, true);
        drop(inbox);
        if was_running {
            self.shared.wakes.notify();
        } else {
            let (shared, futures) = (self.shared.clone(), FuturesUnordered::new());
            tokio::spawn(Running { shared, futures, coalescing: None, ended: false });
        }
    }

    /// Wakes one of the futures from outside, on the next poll after any coalescing delay.
    pub(crate) fn wake(&self, future: Waker) {
        self.shared.inbox.lock().wakers.push(future);
        self.shared.wakes.task.wake();
    }

    /// Says how many callers have been woken together, which are likely to wake the task: the more there are,
    /// the more turns coalescing is worth.
    pub(crate) fn expect(&self, callers: usize) {
        let yields = if callers > 1 { (callers.ilog2() + 1).min(MAX_YIELDS) } else { 0 };
        self.shared.yields.store(yields, Ordering::Relaxed);
    }
}

impl<F: Future<Output = ()> + Send + 'static> hyper::rt::Executor<F> for ConnectionTask {
    fn execute(&self, future: F) {
        self.spawn(future);
    }
}

/// The task.
struct Running {
    shared: Arc<Shared>,
    futures: FuturesUnordered<BoxFuture<'static, ()>>,
    /// Completes when those who were ready to run before have run.
    coalescing: Option<BoxFuture<'static, ()>>,
    /// Another task may be there already.
    ended: bool,
}

impl Running {
    /// Wakes the futures that were to be woken from outside, at once or after the coalescing delay.
    fn wake_futures(&mut self, context: &mut Context<'_>) {
        let mut inbox = self.shared.inbox.lock();
        if inbox.wakers.is_empty() {
            return;
        }
        let yields = self.shared.yields.load(Ordering::Relaxed);
        if self.coalescing.is_none() && yields > 0 {
            self.coalescing = Some(Box::pin(coalesce(yields)));
        }
        if self.coalescing.as_mut().is_some_and(|coalescing| coalescing.as_mut().poll(context).is_pending()) {
            return;
        }
        self.coalescing = None;
        let wakers = std::mem::take(&mut inbox.wakers);
        drop(inbox);
        wakers.into_iter().for_each(Waker::wake);
    }

    /// Whether all futures have ended; then the task does too.
    fn poll_futures(&mut self, context: &mut Context<'_>) -> bool {
        let arrived = std::mem::take(&mut self.shared.inbox.lock().futures);
        self.futures.extend(arrived);
        while let Poll::Ready(Some(())) = self.futures.poll_next_unpin(context) {}
        if !self.futures.is_empty() {
            return false;
        }
        let mut inbox = self.shared.inbox.lock();
        inbox.running = !inbox.futures.is_empty();
        self.ended = !inbox.running;
        self.ended
    }
}

impl Future for Running {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let wakes = self.shared.wakes.clone();
        wakes.task.register(context.waker());
        let waker = Waker::from(wakes.clone());
        wakes.begin_poll();
        self.wake_futures(context);
        for _ in 0..MAX_ROUNDS {
            if self.poll_futures(&mut Context::from_waker(&waker)) {
                return Poll::Ready(());
            }
            if wakes.park() {
                return Poll::Pending;
            }
            if !coop::has_budget_remaining() {
                break;
            }
        }
        context.waker().wake_by_ref();
        Poll::Pending
    }
}

/// Completes when others have had so many turns, or enough time has passed.
async fn coalesce(yields: u32) {
    let begun = Instant::now();
    for _ in 0..yields {
        yield_now().await;
        if begun.elapsed() > LONGEST_DELAY {
            break;
        }
    }
}

/// However the task ends, by a panic of one of its futures or with its runtime, the next future has a new
/// one.
impl Drop for Running {
    fn drop(&mut self) {
        if self.ended {
            return;
        }
        let mut inbox = self.shared.inbox.lock();
        inbox.running = false;
        let (futures, wakers) = (std::mem::take(&mut inbox.futures), std::mem::take(&mut inbox.wakers));
        drop(inbox);
        drop((futures, wakers));
    }
}

/// The task waits to be woken.
const PARKED: u8 = 0;
/// The task is polling its futures.
const POLLING: u8 = 1;
/// One of the futures is to be polled: the task has been woken, or goes another round.
const NOTIFIED: u8 = 2;

/// What the futures are woken by: it wakes the task, unless that is polling them and will see for itself.
#[derive(Debug, Default)]
struct WakeState {
    state: AtomicU8,
    task: AtomicWaker,
}

impl WakeState {
    fn notify(&self) {
        if self.state.swap(NOTIFIED, Ordering::SeqCst) == PARKED {
            self.task.wake();
        }
    }

    fn begin_poll(&self) {
        self.state.store(POLLING, Ordering::SeqCst);
    }

    /// Whether no future has been woken since the task began to poll; if one has, the task polls again.
    fn park(&self) -> bool {
        let parked = self.state.compare_exchange(POLLING, PARKED, Ordering::SeqCst, Ordering::SeqCst);
        if parked.is_err() {
            self.begin_poll();
        }
        parked.is_ok()
    }
}

impl Wake for WakeState {
    fn wake(self: Arc<Self>) {
        self.notify();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.notify();
    }
}

impl fmt::Debug for Inbox {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Inbox").field("running", &self.running).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::sync::atomic::AtomicUsize;

    use tokio::sync::{mpsc, oneshot};

    use super::*;

    #[tokio::test]
    async fn a_future_runs_to_its_end_and_so_does_one_that_it_spawns() {
        let task = ConnectionTask::default();
        let (first, first_ended) = oneshot::channel();
        let (second, second_ended) = oneshot::channel();
        let inner = task.clone();
        task.spawn(async move {
            inner.spawn(async move {
                yield_now().await;
                let _ = second.send(());
            });
            yield_now().await;
            let _ = first.send(());
        });
        first_ended.await.unwrap();
        second_ended.await.unwrap();
    }

    #[tokio::test]
    async fn the_task_ends_with_its_futures_and_begins_again_with_the_next() {
        let task = ConnectionTask::default();
        for _ in 0..3 {
            let (end, ended) = oneshot::channel();
            task.spawn(async move {
                let _ = end.send(());
            });
            ended.await.unwrap();
            while task.shared.inbox.lock().running {
                yield_now().await;
            }
        }
        assert_eq!(Arc::strong_count(&task.shared), 1, "nothing is left that holds it");
    }

    #[tokio::test]
    async fn a_future_that_panics_takes_its_task_along_and_not_the_next() {
        let task = ConnectionTask::default();
        let (kept, beside) = oneshot::channel::<()>();
        task.spawn(async move {
            let _kept = kept;
            std::future::pending::<()>().await;
        });
        task.spawn(async { panic!("a panic that the test makes") });
        assert!(beside.await.is_err(), "what ran beside it is dropped");
        let (end, ended) = oneshot::channel();
        task.spawn(async move {
            let _ = end.send(());
        });
        ended.await.unwrap();
    }

    #[tokio::test]
    async fn futures_that_wake_one_another_do_so_within_one_poll_of_the_task() {
        let task = ConnectionTask::default();
        let ((to_a, mut at_a), (to_b, mut at_b)) = (mpsc::unbounded_channel(), mpsc::unbounded_channel());
        let (end, ended) = oneshot::channel();
        let polls = Arc::new(AtomicUsize::new(0));
        let (counted, start) = (polls.clone(), to_a.clone());
        task.spawn(async move {
            while let Some(n) = at_a.recv().await {
                to_b.send(n).unwrap();
            }
        });
        task.spawn(async move {
            for n in 1..=5 {
                at_b.recv().await.unwrap();
                to_a.send(n).unwrap();
            }
            let _ = end.send(counted.load(Ordering::SeqCst));
        });
        yield_now().await;
        // Everyone else who is ready runs between two polls of the task.
        let beside = polls.clone();
        let counter = tokio::spawn(async move {
            loop {
                beside.fetch_add(1, Ordering::SeqCst);
                yield_now().await;
            }
        });
        start.send(0).unwrap();
        let between = ended.await.unwrap();
        counter.abort();
        assert!(between <= 1, "{between} turns of others while two futures woke each other five times");
    }

    /// How many of three callers, woken together, have woken the task when it wakes its futures.
    async fn wakes_in_one_poll(expected: usize) -> usize {
        let task = ConnectionTask::default();
        let sent = Arc::new(AtomicUsize::new(0));
        let (waker_in, waker) = oneshot::channel();
        let (end, ended) = oneshot::channel();
        let seen = sent.clone();
        task.spawn(async move {
            let mut waker_in = Some(waker_in);
            poll_fn(|context| match waker_in.take() {
                Some(waker_in) => {
                    waker_in.send(context.waker().clone()).unwrap();
                    Poll::Pending
                }
                None => Poll::Ready(()),
            })
            .await;
            let _ = end.send(seen.load(Ordering::SeqCst));
        });
        let waker: Waker = waker.await.unwrap();
        task.expect(expected);
        tokio::spawn(async move {
            sent.fetch_add(1, Ordering::SeqCst);
            task.wake(waker);
            // The others are ready only behind the task.
            for _ in 0..2 {
                let sent = sent.clone();
                tokio::spawn(async move { sent.fetch_add(1, Ordering::SeqCst) });
            }
        });
        ended.await.unwrap()
    }

    #[tokio::test]
    async fn wakes_of_several_callers_are_coalesced() {
        assert_eq!(wakes_in_one_poll(2).await, 3);
        assert_eq!(wakes_in_one_poll(1_000).await, 3);
    }

    #[tokio::test]
    async fn the_wake_of_one_caller_is_not_delayed() {
        assert_eq!(wakes_in_one_poll(1).await, 1);
    }
}
