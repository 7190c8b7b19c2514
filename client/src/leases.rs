//! Which nodes hold leases, as far as gets go by that.
//!
//! Writers do not wait for a node that holds no lease: it is to be asked by nobody until it has read the hints that they
//! leave for it. Where more than half of the nodes hold none, it is more likely that the registry has lost their leases
//! than that all of them stand still, so they are asked, and writers wait for them. But not one for which a hint is there:
//! its writer may have gone by the lease before the others lost theirs. The only node there is is asked all the same.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use peanut_proto::membership::{FleetView, Key, Keys};
use peanut_proto::registry::{Entry, KeyRange, PageOptions, Registry};
use tokio::time::timeout;

use crate::node::Node;

/// A registry that does not say by then whether there are hints is one that cannot be read.
const ANSWERS_WITHIN: Duration = Duration::from_secs(1);
/// Hints of all nodes that are read at once, by their keys alone.
const MANY: PageOptions = PageOptions { revision: 0, limit: 4096, keys_only: true };

/// Says of each node whether it holds a lease. Those of which it is not believed that they hold none are left as they are.
pub(crate) async fn tell(view: &FleetView, nodes: &[Arc<Node>], registry: Option<&dyn Registry>) {
    if view.revision == 0 {
        return;
    }
    let (leased, unleased): (Vec<_>, Vec<_>) =
        nodes.iter().partition(|node| view.live.contains_key(node.id()));
    leased.into_iter().for_each(|node| node.set_leased(true));
    let are_most = unleased.len() * 2 > nodes.len();
    if !are_most {
        return unleased.into_iter().for_each(|node| node.set_leased(false));
    }
    // Each is looked at once: a hint that comes later is of a writer that does not believe it either.
    let is_due = |node: &&&Arc<Node>| !node.is_unleased() && !node.has_looked_for_hints();
    let due: Vec<_> = unleased.iter().filter(is_due).copied().collect();
    let Some(registry) = registry.filter(|_| nodes.len() > 1 && !due.is_empty()) else { return };
    let Some(hinted) = with_hints(registry, view.keys(), &due).await else { return };
    for node in due {
        node.looked_for_hints();
        if hinted.contains(node.id()) {
            node.set_leased(false);
        }
    }
}

/// The nodes for which writers have left hints that they have not read; `None` where the registry does not say so.
async fn with_hints(registry: &dyn Registry, keys: &Keys, nodes: &[&Arc<Node>]) -> Option<HashSet<String>> {
    let read = async {
        let all = registry.page(&KeyRange::prefix(&keys.all_hints()), MANY).await.ok()?;
        let id = |entry: &Entry| match keys.parse(&entry.key) {
            Some(Key::Hint { node, .. }) => Some(node.to_owned()),
            _ => None,
        };
        let mut hinted: HashSet<String> = all.entries.iter().filter_map(id).collect();
        if all.next.is_some() {
            // There are too many for one page; the others are asked for by node.
            for node in nodes.iter().filter(|node| !hinted.contains(node.id())).collect::<Vec<_>>() {
                let range = KeyRange::prefix(&keys.hints_for(node.id()));
                let first = registry.page(&range, PageOptions { limit: 1, ..MANY }).await.ok()?;
                hinted.extend(first.entries.first().map(|_| node.id().to_owned()));
            }
        }
        Some(hinted)
    };
    timeout(ANSWERS_WITHIN, read).await.ok().flatten()
}

#[cfg(test)]
mod tests {
    use peanut_proto::registry::{Change, LocalRegistry};

    use super::*;
    use crate::config::Config;

    /// A view in which these nodes hold leases.
    fn view(live: &[&str]) -> FleetView {
        let mut view = FleetView::new(Keys::new("f"));
        view.revision = 1;
        for id in live {
            let value =
                format!(r#"{{"format":1,"addr":"{id}:1","incarnation":"1","build":"","started_ms":0}}"#);
            view.apply(Change { key: view.keys().live(id), value: Some(value.into()), revision: 1 });
            assert!(view.live.contains_key(*id));
        }
        view
    }

    fn nodes() -> Vec<Arc<Node>> {
        ["a", "b", "c"].map(|id| Arc::new(Node::new(id, &format!("{id}:1"), &Config::default()))).into()
    }

    fn unleased(nodes: &[Arc<Node>]) -> Vec<&str> {
        nodes.iter().filter(|node| node.is_unleased()).map(|node| node.id()).collect()
    }

    #[tokio::test]
    async fn of_most_nodes_it_is_not_believed_but_of_one_that_a_hint_waits_for() {
        let (registry, nodes) = (LocalRegistry::new(), nodes());
        tell(&view(&["a"]), &nodes, Some(&registry)).await;
        assert!(unleased(&nodes).is_empty(), "the registry may have lost their leases");
        let hint = format!("{}g/x", Keys::new("f").hints_for("b"));
        registry.put(&hint, vec![], None).await.unwrap();
        tell(&view(&["a"]), &nodes, Some(&registry)).await;
        assert!(unleased(&nodes).is_empty(), "its writer does not go by the lease either");
        let nodes = self::nodes();
        tell(&view(&["a"]), &nodes, Some(&registry)).await;
        assert_eq!(unleased(&nodes), ["b"], "a write was acknowledged that it may not know of");
        tell(&view(&[]), &nodes, Some(&registry)).await;
        assert_eq!(unleased(&nodes), ["b"]);
        tell(&view(&["a", "b"]), &nodes, Some(&registry)).await;
        assert_eq!(unleased(&nodes), ["c"], "of one among three it is believed");
    }

    #[tokio::test]
    async fn the_only_node_is_asked_without_a_lease() {
        let (registry, nodes) = (LocalRegistry::new(), nodes());
        let hint = format!("{}g/x", Keys::new("f").hints_for("a"));
        registry.put(&hint, vec![], None).await.unwrap();
        tell(&view(&[]), &nodes[..1], Some(&registry)).await;
        assert!(unleased(&nodes).is_empty());
    }

    #[tokio::test]
    async fn a_registry_that_cannot_be_read_says_nothing_of_hints() {
        let nodes = nodes();
        tell(&view(&["a"]), &nodes, None).await;
        assert!(unleased(&nodes).is_empty());
    }
}
