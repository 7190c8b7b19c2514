//! Deletes that are owed for writes whose callers have stopped waiting, and that no runtime has done: the one
//! that was to has ended, or there was none. The client's background does them.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Notify;

/// Those of one client.
#[derive(Debug, Default)]
pub(crate) struct Owed {
    deletes: Mutex<Vec<OwedDelete>>,
    added: Notify,
}

/// Keys of a group that are to be deleted, once after each of these pauses.
#[derive(Debug)]
pub(crate) struct OwedDelete {
    pub(crate) group: Arc<str>,
    pub(crate) deadline: Duration,
    pub(crate) keys: Vec<Box<[u8]>>,
    pub(crate) pauses: VecDeque<Duration>,
}

impl Owed {
    /// What is owed, for somebody who does it: what is left when that is dropped is owed again.
    pub(crate) fn by(self: &Arc<Self>, delete: OwedDelete) -> Owing {
        Owing { owed: self.clone(), delete: Some(delete) }
    }

    /// Waits for deletes that are owed, and takes them.
    pub(crate) async fn next(&self) -> Vec<OwedDelete> {
        loop {
            // Before the look, so that what is added after it is heard.
            let added = self.added.notified();
            let deletes = std::mem::take(&mut *self.deletes.lock());
            if !deletes.is_empty() {
                return deletes;
            }
            added.await;
        }
    }
}

/// The duty to do a delete.
#[derive(Debug)]
pub(crate) struct Owing {
    owed: Arc<Owed>,
    delete: Option<OwedDelete>,
}

impl Owing {
    pub(crate) fn delete(&mut self) -> &mut OwedDelete {
        self.delete.as_mut().expect("it is there until this is dropped")
    }
}

impl Drop for Owing {
    fn drop(&mut self) {
        if let Some(delete) = self.delete.take().filter(|delete| !delete.pauses.is_empty()) {
            self.owed.deletes.lock().push(delete);
            // All of them: one may wait on a runtime that stands still.
            self.owed.added.notify_waiters();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn delete(pauses: &[u64]) -> OwedDelete {
        let pauses = pauses.iter().copied().map(Duration::from_secs).collect();
        OwedDelete {
            group: "g".into(),
            deadline: Duration::from_secs(1),
            keys: vec![Box::from(*b"k")],
            pauses,
        }
    }

    #[tokio::test]
    async fn what_is_dropped_undone_is_owed_again_and_what_is_done_is_not() {
        let owed = Arc::new(Owed::default());
        let mut owing = owed.by(delete(&[0, 1]));
        owing.delete().pauses.pop_front();
        drop(owing);
        let again = owed.next().await;
        assert_eq!(again[0].pauses, [Duration::from_secs(1)]);
        let mut owing = owed.by(again.into_iter().next().unwrap());
        owing.delete().pauses.pop_front();
        drop(owing);
        assert!(owed.deletes.lock().is_empty());
    }

    /// Where the background has begun anew, the runtime that it was on before may be there still.
    #[tokio::test]
    async fn one_who_waits_and_is_not_polled_keeps_nothing_from_another() {
        let owed = Arc::new(Owed::default());
        let (mut still, mut other) = (Box::pin(owed.next()), Box::pin(owed.next()));
        assert!(futures_util::poll!(&mut still).is_pending() && futures_util::poll!(&mut other).is_pending());
        drop(owed.by(delete(&[0])));
        assert!(futures_util::poll!(&mut other).is_ready());
    }
}
