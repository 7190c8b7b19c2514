//! Repeats, after each change of the ring, what was written at owners that are owners no more; see
//! [`recent`](crate::recent).

use std::sync::{Arc, Weak};
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream::{FuturesUnordered, iter};
use peanut_proto::discovery::Discovered;
use peanut_proto::frame::Write;
use peanut_proto::numbers::RingVersion;
use tokio::sync::watch;
use tokio::time::{Instant, sleep};

use crate::error::Error;
use crate::recent::Recent;
use crate::request::{Op, Request};
use crate::shared::Shared;
use crate::write;

const AT_ONCE: usize = 256;
/// How long one attempt may take, also where the application's calls have less: it may have to connect.
const ATTEMPT: Duration = Duration::from_secs(5);
/// A write that cannot be repeated is tried again for so long, with a pause between.
const TRIED_FOR: Duration = Duration::from_secs(30);
const PAUSE: Duration = Duration::from_millis(200);

/// Repeats misplaced writes after each change of the ring, for as long as the client lives.
pub(crate) async fn follow(
    client: Weak<Shared>,
    mut discovered: watch::Receiver<Discovered>,
    mut ring: watch::Receiver<RingVersion>,
) {
    // Rings may change faster than all that they have misplaced is repeated.
    let mut repeats = FuturesUnordered::new();
    loop {
        let is_ring = tokio::select! {
            biased;
            changed = discovered.changed() => changed.map(|()| false),
            changed = ring.changed() => changed.map(|()| true),
            Some(()) = repeats.next() => continue,
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
        let of_ring = misplaced.into_iter().map(move |recent| repeat(client.clone(), recent));
        repeats.push(iter(of_ring).buffer_unordered(AT_ONCE).collect::<()>());
    }
}

async fn repeat(client: Arc<Shared>, recent: Recent) {
    let begun = Instant::now();
    // Its writer was told that it is done: this is the best that can be done still.
    while let Err(error) = attempt(&client, &recent).await {
        if !error.is_retryable() || begun.elapsed() > TRIED_FOR {
            tracing::warn!(error = format_args!("{error:#}"), "a new owner could not be told of a write");
            return;
        }
        sleep(PAUSE).await;
    }
}

async fn attempt(client: &Arc<Shared>, recent: &Recent) -> Result<(), Error> {
    let now = Instant::now();
    let request = Request {
        group: recent.group,
        group_name: &recent.group_name,
        key: &recent.key,
        hash: recent.hash,
        deadline: now + client.config.deadline.max(ATTEMPT),
        op: Op::Write(Write::Delete { key: &recent.key, then_set: false, sequence: 0 }),
        traceparent: "",
    };
    write::write(client, &request, 0, &recent.group_name, now).await.map(drop)
}
