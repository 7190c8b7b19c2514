//! Writes of the last few seconds, in case the ring has changed without this client's knowing.
//!
//! A client that has not heard of a change yet, and a node that has not either, may agree on a write at an owner that is one
//! no more, while others already ask the new one. As soon as the client hears of the change it has the new owner forget
//! what was written in the meantime.

use std::collections::VecDeque;
use std::sync::{Arc, Weak};
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream::iter;
use parking_lot::Mutex;
use peanut_proto::frame::Write;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::client::Shared;
use crate::failover::Wanted;
use crate::lane::Want;
use crate::write;

/// Longer than a change of the ring takes to reach anyone who is not cut off from the registry.
const RECENT: Duration = Duration::from_secs(5);
/// Beyond so many the oldest are given up.
const MOST: usize = 65_536;
const AT_ONCE: usize = 256;

#[derive(Debug, Default)]
pub(crate) struct RecentWrites {
    list: Mutex<VecDeque<Recent>>,
}

#[derive(Clone, Debug)]
struct Recent {
    ended: Instant,
    group: u32,
    group_name: Arc<str>,
    key: Box<[u8]>,
    hash: u64,
    /// Version of the ring under which it was done.
    ring_version: u64,
}

impl RecentWrites {
    /// Takes down a write that is done.
    pub(crate) fn add(&self, wanted: &Wanted<'_>, group_name: &Arc<str>, ring_version: u64, now: Instant) {
        let recent = Recent {
            ended: now,
            group: wanted.group,
            group_name: group_name.clone(),
            key: wanted.key.into(),
            hash: wanted.hash,
            ring_version,
        };
        let mut list = self.list.lock();
        while list.len() >= MOST || list.front().is_some_and(|oldest| now > oldest.ended + RECENT) {
            list.pop_front();
        }
        list.push_back(recent);
    }

    /// Those whose keys have had other owners since.
    fn misplaced(&self, client: &Shared, now: Instant) -> Vec<Recent> {
        let routing = client.routing.get();
        let mut misplaced = Vec::new();
        self.list.lock().retain(|recent| {
            let is_there = !routing.has_moved_since(recent.hash, recent.ring_version);
            if !is_there && now <= recent.ended + RECENT {
                misplaced.push(recent.clone());
            }
            is_there
        });
        misplaced
    }
}

/// Repeats misplaced writes after each change of the ring, for as long as the client lives.
pub(crate) async fn follow(client: Weak<Shared>, mut ring: watch::Receiver<u64>) {
    while ring.changed().await.is_ok() {
        let Some(client) = client.upgrade() else { return };
        let misplaced = client.recent.misplaced(&client, Instant::now());
        if misplaced.is_empty() {
            continue;
        }
        tracing::debug!(
            writes = misplaced.len(),
            "the ring has changed; what was just written is forgotten by its new owners"
        );
        let repeats = misplaced.into_iter().map(|recent| repeat(client.clone(), recent));
        iter(repeats).buffer_unordered(AT_ONCE).collect::<()>().await;
    }
}

async fn repeat(client: Arc<Shared>, recent: Recent) {
    let wanted = Wanted {
        group: recent.group,
        group_name: &recent.group_name,
        key: &recent.key,
        hash: recent.hash,
        deadline: Instant::now() + client.config.deadline,
        want: Want::Write(Write::Delete { key: &recent.key, then_set: false, sequence: 0 }),
        traceparent: "",
    };
    // Its writer was told that it is done: this is the best that can be done still.
    if let Err(error) = write::write(&client, wanted, 0, &recent.group_name, Instant::now()).await {
        tracing::warn!(%error, "a new owner could not be told of a write");
    }
}
