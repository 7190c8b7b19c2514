//! Writes whose callers stop waiting: a caller has perhaps written its database by then, so that what is left
//! of them is done as deletes, in the background.

use std::sync::Weak;
use std::time::Duration;

use peanut_proto::backoff::Backoff;
use peanut_proto::frame::Write;
use tokio::runtime::Handle;
use tokio::time::{Instant, sleep};

use super::Group;
use crate::owed::{OwedDelete, Owing};
use crate::request::Request;
use crate::shared::Shared;
use crate::write;

/// How long one attempt may take to delete what a dropped write was of, also where the application's calls
/// have less time.
const UNGUARDED_ATTEMPT: Duration = Duration::from_secs(5);
/// It is tried again for so long, with pauses between, of which these are the first and the longest.
const UNGUARDED_TRIED_FOR: Duration = Duration::from_secs(30);
const UNGUARDED_PAUSES: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(5));

impl Group {
    /// Deletes keys for a caller that waits for nothing any more, once after each of these pauses: on its own
    /// runtime, and where that has ended or there is none on that of the client's background.
    pub(super) fn delete_in_background<const N: usize>(&self, keys: &[&[u8]], pauses: [Duration; N]) {
        let owing = self.client.owed.by(OwedDelete {
            group: self.name.clone(),
            deadline: self.deadline,
            keys: keys.iter().map(|key| Box::from(*key)).collect(),
            pauses: pauses.into(),
        });
        if let Ok(runtime) = Handle::try_current() {
            runtime.spawn(self.clone().do_what_is_owed(owing));
        }
    }

    async fn do_what_is_owed(self, mut owing: Owing) {
        while let Some(pause) = owing.delete().pauses.front().copied() {
            if !pause.is_zero() {
                sleep(pause).await;
            }
            self.delete_unguarded(&owing.delete().keys).await;
            owing.delete().pauses.pop_front();
        }
    }

    /// Deletes keys, also where the calls of this group have little time: nobody is told of an error.
    async fn delete_unguarded(&self, keys: &[Box<[u8]>]) {
        let (begun, mut pauses) = (Instant::now(), Backoff::new(UNGUARDED_PAUSES.0, UNGUARDED_PAUSES.1));
        let mut deletes = Vec::with_capacity(keys.len());
        for key in keys {
            deletes.push(self.write_of(Write::Delete { key, then_set: false, sequence: 0 }));
        }
        loop {
            let now = Instant::now();
            let deadline = now + self.deadline.max(UNGUARDED_ATTEMPT);
            let request = Request { deadline, ..self.request(&[], now) };
            deletes.iter().for_each(|one| self.wrote(one.key.hash));
            let deleted = write::many::write(&self.client, request, &deletes, &self.name, now).await;
            let failed =
                deletes.drain(..).zip(deleted).filter_map(|(one, deleted)| Some((one, deleted.err()?)));
            let is_over = begun.elapsed() > UNGUARDED_TRIED_FOR;
            let (again, given_up): (Vec<_>, Vec<_>) = failed
                .collect::<Vec<_>>()
                .into_iter()
                .partition(|(_, error)| !is_over && error.is_retryable());
            if let Some((_, error)) = given_up.first() {
                tracing::warn!(
                    group = self.name(),
                    error = format_args!("{error:#}"),
                    "the key of a write that was dropped was not deleted"
                );
            }
            if again.is_empty() {
                return;
            }
            deletes = again.into_iter().map(|(one, _)| one).collect();
            loop {
                sleep(pauses.next_delay(fastrand::f64())).await;
                // Many writes may have been dropped at once.
                if self.client.budget.withdraw() || begun.elapsed() > UNGUARDED_TRIED_FOR {
                    break;
                }
            }
        }
    }
}

/// Does deletes that are owed where no other runtime has done them, for as long as the client lives.
pub(crate) async fn follow(client: Weak<Shared>) {
    let Some(owed) = client.upgrade().map(|client| client.owed.clone()) else { return };
    loop {
        for delete in owed.next().await {
            let Some(client) = client.upgrade() else { return };
            let group = Group { deadline: delete.deadline, ..Group::new(client, &delete.group) };
            tokio::spawn(group.do_what_is_owed(owed.by(delete)));
        }
    }
}

/// Writes that are under way. A caller that stops waiting for them has perhaps written its database by then,
/// so what is left of them is done as deletes.
pub(super) struct Unfinished<'a, K: AsRef<[&'a [u8]]>> {
    /// `None` once they have ended.
    group: Option<&'a Group>,
    keys: K,
}

impl<'a, K: AsRef<[&'a [u8]]>> Unfinished<'a, K> {
    pub(super) fn new(group: &'a Group, keys: K) -> Self {
        Unfinished { group: Some(group), keys }
    }

    pub(super) fn end(mut self) {
        self.group = None;
    }
}

impl<'a, K: AsRef<[&'a [u8]]>> Drop for Unfinished<'a, K> {
    fn drop(&mut self) {
        if let Some(group) = self.group {
            group.delete_in_background(self.keys.as_ref(), [Duration::ZERO]);
        }
    }
}
