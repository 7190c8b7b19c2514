//! What the registry does not have of a node, and whether writers may go by that.

use std::collections::HashSet;

use peanut_proto::intervals::LOSS_NOTICED;
use peanut_proto::registry::{KeyRange, PageOptions, Registry, RegistryError};
use peanut_proto::sabotage::{Mechanism, without};
use tokio::time::Instant;

use crate::node::Node;
use crate::shared::Shared;

/// Whether a node holds no lease, and readers believe that: as of now, not as of when this client last heard.
pub(super) async fn holds_no_lease(client: &Shared, registry: &dyn Registry, node: &Node) -> bool {
    if client.may_lack_leases() || !matches!(registry.get(&client.keys.live(node.id())).await, Ok(None)) {
        return false;
    }
    let all = KeyRange::prefix(&client.keys.live(""));
    let live = read_all(registry, &all).await;
    live.is_ok_and(|live| !client.most_lack_leases(|id| live.contains(&client.keys.live(id))))
}

/// The keys of a range.
async fn read_all(registry: &dyn Registry, range: &KeyRange) -> Result<HashSet<String>, RegistryError> {
    let (mut keys, mut rest) = (HashSet::new(), Some(range.clone()));
    while let Some(range) = rest {
        let page = registry.page(&range, PageOptions { keys_only: true, ..PageOptions::default() }).await?;
        keys.extend(page.entries.into_iter().map(|entry| entry.key));
        rest = page.next;
    }
    Ok(keys)
}

/// Whether what the registry does not have of a node was taken out of it. A registry that has lost its data
/// has no mark of the node's start either; a node that notices that answers nothing more, and forgets all,
/// before it makes its mark again. One without a mark, which may be gone for good, has noticed after a while.
pub(super) async fn is_whole(client: &Shared, registry: &dyn Registry, node: &Node) -> bool {
    if without(Mechanism::Marks) {
        return true;
    }
    // Who may not read it goes by the time alone.
    let is_marked = matches!(registry.get(&client.keys.lineage(node.id())).await, Ok(Some(_)));
    let lost = client.discovered.borrow().lost;
    node.unmarked_for(is_marked, lost, Instant::now()).is_none_or(|unmarked| unmarked > LOSS_NOTICED)
}
