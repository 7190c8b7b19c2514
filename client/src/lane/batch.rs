//! Operations that one caller has sent together and waits for together.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};

use futures_util::task::AtomicWaker;
use parking_lot::Mutex;

use super::{Answer, Failure};

/// The answers of a batch, by position; it is a future of them all.
#[derive(Debug)]
pub(crate) struct Batch {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    answers: Mutex<Vec<Option<Answer>>>,
    left: AtomicUsize,
    waker: AtomicWaker,
}

/// The right to give one answer of a batch. If it is dropped instead, the answer is that the lane is lost.
#[derive(Debug)]
pub(crate) struct Part {
    shared: Option<Arc<Shared>>,
    at: usize,
}

impl Batch {
    /// A batch of `length` answers, and the right to give each.
    pub(crate) fn new(length: usize) -> (Self, impl Iterator<Item = Part>) {
        let answers = Mutex::new((0..length).map(|_| None).collect());
        let shared = Arc::new(Shared { answers, left: AtomicUsize::new(length), waker: AtomicWaker::new() });
        let parts = shared.clone();
        (Batch { shared }, (0..length).map(move |at| Part { shared: Some(parts.clone()), at }))
    }
}

impl Batch {
    /// The answers that there are; those that are missing are late.
    pub(crate) fn so_far(&self) -> Vec<Answer> {
        let mut answers = self.shared.answers.lock();
        answers.iter_mut().map(|answer| answer.take().unwrap_or(Err(Failure::Late))).collect()
    }
}

impl Future for Batch {
    type Output = Vec<Answer>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Vec<Answer>> {
        self.shared.waker.register(context.waker());
        if self.shared.left.load(Ordering::Acquire) > 0 {
            return Poll::Pending;
        }
        let answers = std::mem::take(&mut *self.shared.answers.lock());
        Poll::Ready(answers.into_iter().map(|answer| answer.expect("every part has been given")).collect())
    }
}

impl Part {
    pub(crate) fn give(mut self, answer: Answer) {
        self.put(answer);
    }

    fn put(&mut self, answer: Answer) {
        let Some(shared) = self.shared.take() else { return };
        // Nobody waits any more where the answers have been taken.
        if let Some(place) = shared.answers.lock().get_mut(self.at) {
            *place = Some(answer);
        }
        if shared.left.fetch_sub(1, Ordering::AcqRel) == 1 {
            shared.waker.wake();
        }
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        if self.shared.is_some() {
            self.put(Err(Failure::Broken("the lane was dropped".into())));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_batch_is_ready_when_every_part_is_given_or_dropped() {
        let (mut batch, parts) = Batch::new(3);
        let mut parts: Vec<Part> = parts.collect();
        assert!(futures_util::poll!(&mut batch).is_pending());
        drop(parts.pop());
        parts.remove(0).give(Err(Failure::Late));
        assert!(futures_util::poll!(&mut batch).is_pending());
        let waiting = tokio::spawn(batch);
        tokio::task::yield_now().await;
        parts.remove(0).give(Err(Failure::Unimplemented));
        let lost = Failure::Broken("the lane was dropped".into());
        assert_eq!(waiting.await.unwrap(), [Err(Failure::Late), Err(Failure::Unimplemented), Err(lost)]);
    }
}
