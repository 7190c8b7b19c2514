//! Nodes that answer nothing any more, and since when: clients may read near copies from them for the time of a lease.

use std::sync::Arc;

use peanut_proto::intervals::near_lease_at_node;
use peanut_proto::registry::Registry;
use peanut_proto::sabotage::{Mechanism, without};
use tokio::time::{Instant, sleep_until, timeout_at};

use crate::error::{Error, ErrorKind};
use crate::monitor::Probed;
use crate::node::Node;
use crate::shared::Shared;

/// A node that answers nothing, as far as the registry tells.
pub(super) struct Gone {
    since: Instant,
    told_by: ToldBy,
}

enum ToldBy {
    /// A hint that this client has stored is there still: the node has not been back since.
    Hint,
    /// It holds no lease, or nothing listens at its address; this is the mark of its last start.
    Mark(Vec<u8>),
}

impl Gone {
    /// Looks whether a node answers nothing as of now.
    pub(super) async fn seen(client: &Shared, registry: &dyn Registry, node: &Arc<Node>) -> Option<Gone> {
        if let Some((hint, left)) = node.standing_hint() {
            // A node gives no near lease before it has removed what it has read.
            match registry.get(&hint).await {
                // Another write may have stored it anew meanwhile.
                Ok(Some(_)) if node.standing_hint().is_some_and(|standing| standing == (hint, left)) => {
                    return Some(Gone { since: left, told_by: ToldBy::Hint });
                }
                Ok(None) => node.forget_hint(),
                _ => {}
            }
        }
        let since = Instant::now();
        let live = client.keys.live(node.id());
        let is_unleased = !client.may_lack_leases() && matches!(registry.get(&live).await, Ok(None));
        if !is_unleased {
            let is_there = !node.is_refusing() || node.probe().await != Probed::Silent;
            if is_there {
                return None;
            }
        }
        let mark = registry.get(&client.keys.lineage(node.id())).await.ok()??.value;
        Some(Gone { since, told_by: ToldBy::Mark(mark) })
    }

    pub(super) fn is_told_by_hint(&self) -> bool {
        matches!(self.told_by, ToldBy::Hint)
    }
}

/// Since when a node has answered nothing that answers nothing now: since it was seen to, if it has not been started again
/// meanwhile.
pub(super) async fn since(
    client: &Shared,
    registry: &dyn Registry,
    node: &Node,
    gone: Option<Gone>,
) -> Instant {
    match gone {
        Some(Gone { since, told_by: ToldBy::Hint }) => since,
        Some(Gone { since, told_by: ToldBy::Mark(mark) }) => {
            let now = registry.get(&client.keys.lineage(node.id())).await;
            let is_same = now.is_ok_and(|now| now.is_some_and(|now| now.value == mark));
            if is_same { since } else { Instant::now() }
        }
        None => Instant::now(),
    }
}

/// Waits until the near leases are over that such a node may have given.
pub(super) async fn near_leases_over(node: &Node, since: Instant, deadline: Instant) -> Result<(), Error> {
    if without(Mechanism::NearGone) {
        return Ok(());
    }
    if timeout_at(deadline, sleep_until(since + near_lease_at_node())).await.is_ok() {
        return Ok(());
    }
    let why =
        "it cannot be reached, and clients may read near copies from it until after the call's deadline";
    Err(Error::at(ErrorKind::Unavailable, node.id(), why))
}
