//! Nodes that answer nothing any more, and since when: clients may read near copies from them for the time of
//! a lease.

use std::sync::Arc;

use peanut_proto::intervals::near_lease_at_node;
use peanut_proto::registry::Registry;
use peanut_proto::sabotage::{Mechanism, without};
use tokio::time::{Instant, sleep_until, timeout_at};

use super::leased::holds_no_lease;
use crate::error::{Error, ErrorKind};
use crate::monitor::Probed;
use crate::node::{Lapse, Node};
use crate::shared::Shared;

/// A node that answers nothing, as far as the registry tells.
pub(super) struct Gone {
    since: Instant,
    told_by: ToldBy,
}

enum ToldBy {
    /// A hint that this client has stored is there still, at this revision, and the node has not come to hold
    /// a lease meanwhile: it has not been back since.
    Hint { at: String, revision: i64, lapse: Lapse },
    /// It holds no lease, or nothing listens at its address; this is the revision of its mark, which it
    /// writes anew at each start and with each lease.
    Mark { revision: i64 },
}

impl Gone {
    /// Looks whether a node answers nothing as of now.
    pub(super) async fn seen(client: &Shared, registry: &dyn Registry, node: &Arc<Node>) -> Option<Gone> {
        if let Some(hint) = node.standing_hint().filter(|hint| lapse(client, node) == Some(hint.lapse)) {
            match registry.get(&hint.at).await {
                // Another write may have stored it anew meanwhile.
                Ok(Some(entry)) if node.standing_hint().is_some_and(|it| it == hint) => {
                    let told_by = ToldBy::Hint { at: hint.at, revision: entry.revision, lapse: hint.lapse };
                    return Some(Gone { since: hint.left, told_by });
                }
                Ok(None) => node.forget_hint(),
                _ => {}
            }
        }
        // Before the lease is looked at: what the node does after that changes it.
        let mark = registry.get(&client.keys.lineage(node.id())).await.ok()??;
        let since = Instant::now();
        if !holds_no_lease(client, registry, node).await {
            let is_there = !node.is_refusing() || node.probe().await != Probed::Silent;
            if is_there {
                return None;
            }
        }
        Some(Gone { since, told_by: ToldBy::Mark { revision: mark.revision } })
    }

    pub(super) fn is_told_by_hint(&self) -> bool {
        matches!(self.told_by, ToldBy::Hint { .. })
    }
}

/// The lapse of a node's lease, as this client has heard of it.
pub(super) fn lapse(client: &Shared, node: &Node) -> Option<Lapse> {
    Lapse::of(node.id(), &client.discovered.borrow())
}

/// When the node was last known to answer; now, if its mark or the hint has changed, or it has held a lease:
/// it may have been back for a moment.
pub(super) async fn since(
    client: &Shared,
    registry: &dyn Registry,
    node: &Node,
    (gone, deadline): (Option<Gone>, Instant),
) -> Instant {
    let Some(Gone { since, told_by }) = gone else { return Instant::now() };
    let (key, revision) = match told_by {
        ToldBy::Hint { lapse: told_in, .. } if lapse(client, node) != Some(told_in) => {
            return Instant::now();
        }
        ToldBy::Hint { at, revision, .. } => (at, revision),
        ToldBy::Mark { revision } => (client.keys.lineage(node.id()), revision),
    };
    let now = timeout_at(deadline, registry.get(&key)).await;
    let is_same = matches!(now, Ok(Ok(Some(now))) if now.revision == revision);
    if is_same { since } else { Instant::now() }
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
