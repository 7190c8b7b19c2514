//! What clients have left word of in the registry: invalidations for this node that they could not deliver, and how often each
//! group has been cleared.
//!
//! The node reads it before its entries come back from the disk, whenever it wakes from sleep before it answers, and
//! follows it while it runs. A record goes when what it says would outlive the process.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::try_join;
use peanut_proto::backoff::Backoff;
use peanut_proto::membership::{self, Fence, Key, Keys, Undelivered};
use peanut_proto::registry::{Change, Registry, RegistryError};
use tokio::sync::watch;
use tokio::time::{Instant, sleep};

use crate::cache::Begun;
use crate::sabotage::{Mechanism, without};
use crate::service::Node;
use crate::service::fence::Opening;

/// Reads and follows what is left for one node.
#[derive(Debug)]
pub(crate) struct Invalidations {
    pub(crate) registry: Arc<dyn Registry>,
    pub(crate) keys: Keys,
    pub(crate) node_id: String,
    pub(crate) node: Node,
}

impl Invalidations {
    /// Follows for ever. `known` hears when what was left before the start has been done.
    pub(crate) async fn run(self, known: watch::Sender<bool>) {
        let mut backoff = Backoff::new(Duration::from_millis(50), Duration::from_secs(1));
        self.node.wake().will_ask();
        let mut is_told = false;
        loop {
            let begun = Instant::now();
            match self.follow(&known).await {
                Ok(()) => is_told = false,
                Err(error) => {
                    if !std::mem::replace(&mut is_told, true) {
                        tracing::warn!(%error, "invalidations that clients leave cannot be read; trying until they can");
                    }
                    if begun.elapsed() > Duration::from_secs(1) {
                        backoff.reset();
                    }
                    let pause = sleep(backoff.next_delay(fastrand::f64()));
                    // Whoever wakes needs to know now.
                    tokio::select! {
                        () = pause => {}
                        _ = self.node.wake().woken(), if begun.elapsed() > Duration::from_millis(50) => {}
                    }
                }
            }
        }
    }

    /// Reads all and follows it. `Ok` asks for the next reading at once.
    async fn follow(&self, known: &watch::Sender<bool>) -> Result<(), RegistryError> {
        let wakes = self.node.wake().wakes();
        let (mine, groups) = (self.keys.undelivered(&self.node_id), self.keys.group(""));
        let (left, generations) = try_join(self.registry.load(&mine), self.registry.load(&groups)).await?;
        let from = (left.revision + 1, generations.revision + 1);
        for entry in generations.entries.into_iter().chain(left.entries) {
            self.apply(Change { key: entry.key, value: Some(entry.value), revision: entry.revision }).await;
        }
        self.node.wake().settle(wakes);
        known.send_replace(true);
        let (mut left, mut generations) =
            try_join(self.registry.watch(&mine, from.0), self.registry.watch(&groups, from.1)).await?;
        loop {
            let changes = tokio::select! {
                changes = left.next() => changes?,
                changes = generations.next() => changes?,
                _ = self.node.wake().woken() => return Ok(()),
            };
            for change in changes {
                self.apply(change).await;
            }
        }
    }

    /// Does what a record says, and removes it where it is this node's alone.
    async fn apply(&self, change: Change) {
        let Some(value) = &change.value else { return };
        match self.keys.parse(&change.key) {
            Some(Key::Group(group)) => match membership::Group::decode(value) {
                Ok(record) => {
                    if let Ok(cache) = self.node.cache(group) {
                        done([cache.clear_to(record.generation)]).await;
                    }
                }
                Err(error) => {
                    tracing::warn!(key = change.key, %error, "skipped a record that cannot be read")
                }
            },
            Some(Key::Undelivered(..)) => {
                match Undelivered::decode(value) {
                    Ok(record) => self.invalidate(record).await,
                    // Nobody knows what it meant: nothing that is here can be trusted.
                    Err(error) => {
                        tracing::warn!(key = change.key, %error, "an invalidation that cannot be read; all groups are cleared");
                        done(self.node.caches().map(|cache| cache.clear(0))).await;
                    }
                }
                // If this fails it is done again with the next reading, which does no harm.
                if let Err(error) = self.registry.delete_if(&change.key, change.revision).await {
                    tracing::debug!(%error, key = change.key, "an invalidation that is done was not removed");
                }
            }
            _ => {}
        }
    }

    async fn invalidate(&self, record: Undelivered) {
        if without(Mechanism::Undelivered) {
            return;
        }
        // The fence first: what it shuts out must not come after the invalidation.
        if let Some(Fence { client, slot, epoch }) = record.fence {
            self.node.fences().raise(Opening { client, slot, epoch }, Instant::now());
        }
        // A hint to look, like any caller's word.
        self.node.ring().knows(record.ring_version);
        self.node.metrics().invalidations.fetch_add(1, Ordering::Relaxed);
        let Ok(cache) = self.node.cache(&record.group) else { return };
        tracing::debug!(
            group = record.group,
            keys = record.keys.as_ref().map(Vec::len),
            "invalidation left by a client"
        );
        match record.keys {
            None => done([cache.clear(0)]).await,
            Some(keys) => done(keys.into_iter().filter_map(|key| cache.delete(&Bytes::from(key)).ok())).await,
        }
    }
}

/// Waits until all of it would outlive the process.
async fn done(begun: impl IntoIterator<Item = Begun>) {
    for begun in begun.into_iter().collect::<Vec<_>>() {
        // Writes do not fail once they have begun.
        let _ = begun.answer().await;
    }
}
