//! Repeats, after each change of the ring, what was written at owners that are owners no more; see
//! [`recent`](crate::recent).

use std::sync::{Arc, Weak};

use futures_util::StreamExt as _;
use futures_util::stream::iter;
use peanut_proto::discovery::Discovered;
use peanut_proto::frame::Write;
use peanut_proto::numbers::RingVersion;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::recent::Recent;
use crate::request::{Op, Request};
use crate::shared::Shared;
use crate::write;

const AT_ONCE: usize = 256;

/// Repeats misplaced writes after each change of the ring, for as long as the client lives.
pub(crate) async fn follow(
    client: Weak<Shared>,
    mut discovered: watch::Receiver<Discovered>,
    mut ring: watch::Receiver<RingVersion>,
) {
    loop {
        let is_ring = tokio::select! {
            biased;
            changed = discovered.changed() => changed.map(|()| false),
            changed = ring.changed() => changed.map(|()| true),
        };
        let (Ok(is_ring), Some(client)) = (is_ring, client.upgrade()) else { return };
        if !is_ring {
            let is_in_trouble = discovered.borrow_and_update().trouble.is_some();
            client.recent.tell(is_in_trouble, Instant::now());
            continue;
        }
        let misplaced = client.recent.misplaced(&client.routing.get(), Instant::now());
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
    let request = Request {
        group: recent.group,
        group_name: &recent.group_name,
        key: &recent.key,
        hash: recent.hash,
        deadline: Instant::now() + client.config.deadline,
        op: Op::Write(Write::Delete { key: &recent.key, then_set: false, sequence: 0 }),
        traceparent: "",
    };
    // Its writer was told that it is done: this is the best that can be done still.
    if let Err(error) = write::write(&client, &request, 0, &recent.group_name, Instant::now()).await {
        tracing::warn!(error = format_args!("{error:#}"), "a new owner could not be told of a write");
    }
}
