//! Which nodes hold leases, as far as gets go by that.
//!
//! Writers do not wait for a node that holds no lease: it is to be asked by nobody until it has read the
//! hints that they leave for it. Where more than half of the nodes hold none, it is more likely that the
//! registry has lost their leases than that all of them stand still, so they are asked, and writers wait for
//! them. But not one for which a hint is there: its writer may have gone by the lease before the others lost
//! theirs. The only node there is is asked all the same.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use peanut_proto::discovery::Discovered;
use peanut_proto::intervals::REGISTRY_PATIENCE;
use peanut_proto::membership::{FleetView, Key, Keys};
use peanut_proto::registry::{Entry, KeyRange, PageOptions, Registry};
use tokio::sync::watch;
use tokio::time::{Instant, timeout};

use crate::node::Node;
use crate::routing::CurrentRouting;

/// A registry that does not say by then whether there are hints is one that cannot be read.
const ANSWERS_WITHIN: Duration = Duration::from_secs(1);
/// Hints of all nodes that are read at once, by their keys alone.
const MANY: PageOptions = PageOptions { revision: 0, limit: 4096, keys_only: true };

/// Gets are held back for so long from nodes for which hints may be there, while the registry does not say
/// so. After that they are asked, as in any outage of the registry, and it is still tried.
const PATIENCE: Duration = REGISTRY_PATIENCE;

/// Since when the registry has not said whether there are hints.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Undecided {
    since: Option<Instant>,
}

impl Undecided {
    /// Whether it has to be tried again.
    pub(crate) fn is_left(self) -> bool {
        self.since.is_some()
    }
}

/// Says of nodes that they hold no lease any more, as soon as the registry tells, also while a ring is built
/// or hints are looked for: writers wait for no longer.
pub(crate) async fn tell_of_lapses(mut discovered: watch::Receiver<Discovered>, current: &CurrentRouting) {
    while discovered.changed().await.is_ok() {
        let view = discovered.borrow_and_update().view.clone();
        let routing = current.get();
        let nodes = routing.nodes();
        let unleased = || nodes.iter().filter(|node| !view.live.contains_key(node.id()));
        if view.revision > 0 && unleased().count() * 2 <= nodes.len() {
            unleased().for_each(|node| {
                node.lost_lease();
                node.forget_near_copies();
            });
        }
    }
}

/// Says of each node whether it holds a lease. Those of which it is not believed that they hold none are left
/// as they are. Near copies of the others are read no more: writers wait for leases that were given while the
/// node held its own.
pub(crate) async fn tell(
    view: &FleetView,
    nodes: &[Arc<Node>],
    registry: Option<&dyn Registry>,
    before: Undecided,
) -> Undecided {
    let undecided = tell_each(view, nodes, registry, before).await;
    nodes.iter().filter(|node| node.is_unleased()).for_each(|node| node.forget_near_copies());
    undecided
}

async fn tell_each(
    view: &FleetView,
    nodes: &[Arc<Node>],
    registry: Option<&dyn Registry>,
    before: Undecided,
) -> Undecided {
    if view.revision == 0 {
        return before;
    }
    let (leased, unleased): (Vec<_>, Vec<_>) =
        nodes.iter().partition(|node| view.live.contains_key(node.id()));
    leased.into_iter().for_each(|node| node.set_leased(true));
    let are_most = unleased.len() * 2 > nodes.len();
    if !are_most {
        unleased.into_iter().for_each(|node| node.lost_lease());
        return Undecided::default();
    }
    if let [only] = nodes {
        only.set_leased(true);
        return Undecided::default();
    }
    // Each is looked at once: a hint that comes later is of a writer that does not believe it either.
    let due: Vec<_> = unleased.into_iter().filter(|node| node.is_to_be_looked_for()).collect();
    let Some(registry) = registry.filter(|_| !due.is_empty()) else {
        return Undecided::default();
    };
    let Some(hinted) = with_hints(registry, view.keys(), &due).await else {
        let since = before.since.unwrap_or_else(Instant::now);
        due.iter().for_each(|node| node.hold_back(since.elapsed() < PATIENCE));
        return Undecided { since: Some(since) };
    };
    due.iter().for_each(|node| node.looked_for_hints(hinted.contains(node.id())));
    Undecided::default()
}

/// The nodes for which writers have left hints that they have not read; `None` where the registry does not
/// say so.
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
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};

    use peanut_proto::membership::{NodeInfo, RingDocument};
    use peanut_proto::registry::{Change, LocalRegistry, Refusing, RegistryError};

    use super::*;
    use crate::config::Config;
    use crate::routing::Routing;

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
        tell(&view(&["a"]), &nodes, Some(&registry), Undecided::default()).await;
        assert!(unleased(&nodes).is_empty(), "the registry may have lost their leases");
        let hint = format!("{}g/x", Keys::new("f").hints_for("b"));
        registry.put(&hint, vec![], None).await.unwrap();
        tell(&view(&["a"]), &nodes, Some(&registry), Undecided::default()).await;
        assert!(unleased(&nodes).is_empty(), "its writer does not go by the lease either");
        let nodes = self::nodes();
        tell(&view(&["a"]), &nodes, Some(&registry), Undecided::default()).await;
        assert_eq!(unleased(&nodes), ["b"], "a write was acknowledged that it may not know of");
        tell(&view(&[]), &nodes, Some(&registry), Undecided::default()).await;
        assert_eq!(unleased(&nodes), ["b"]);
        tell(&view(&["a", "b"]), &nodes, Some(&registry), Undecided::default()).await;
        assert_eq!(unleased(&nodes), ["c"], "of one among three it is believed");
    }

    /// While a ring is built, or hints are looked for, nobody else tells of it.
    #[tokio::test]
    async fn a_lapse_is_told_at_once_of_one_node_and_not_of_most() {
        let node = |id: &str| NodeInfo { id: id.into(), addr: format!("{id}:1"), zone: "".into(), weight: 1 };
        let ring = ["a", "b", "c"]
            .iter()
            .fold(RingDocument::empty(8), |ring, id| ring.with(&node(id), 0).expect("a new node"));
        let routing = CurrentRouting::new(Routing::of(&ring, None, &Config::default()));
        let nodes = routing.get().nodes().to_vec();
        let discovered = |live: &[&str]| Discovered {
            view: Arc::new(view(live)),
            read: None,
            trouble: None,
            trouble_since: None,
            lost: None,
            recovered: None,
        };
        let (tell, told) = watch::channel(discovered(&["a", "b", "c"]));
        let telling = tokio::spawn(async move { tell_of_lapses(told, &routing).await });
        for (live, expected) in [(&["a"][..], &[][..]), (&["a", "c"], &["b"])] {
            tell.send_replace(discovered(live));
            for _ in 0..10 {
                tokio::task::yield_now().await;
            }
            assert_eq!(unleased(&nodes), expected);
        }
        drop(tell);
        telling.await.unwrap();
    }

    #[tokio::test]
    async fn the_only_node_is_asked_without_a_lease() {
        let (registry, nodes) = (LocalRegistry::new(), nodes());
        let hint = format!("{}g/x", Keys::new("f").hints_for("a"));
        registry.put(&hint, vec![], None).await.unwrap();
        tell(&view(&[]), &nodes[..1], Some(&registry), Undecided::default()).await;
        assert!(unleased(&nodes).is_empty());
    }

    #[tokio::test]
    async fn without_a_registry_nothing_is_known_of_hints() {
        let nodes = nodes();
        tell(&view(&["a"]), &nodes, None, Undecided::default()).await;
        assert!(unleased(&nodes).is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn while_the_registry_does_not_say_whether_there_are_hints_nobody_is_asked_for_a_while() {
        let (is_down, nodes) = (Arc::new(AtomicBool::new(true)), nodes());
        let registry = Refusing::new({
            let is_down = is_down.clone();
            move |_| is_down.load(Ordering::Relaxed).then(|| RegistryError::new("down"))
        });
        let mut undecided = tell(&view(&["a"]), &nodes, Some(&registry), Undecided::default()).await;
        assert!(undecided.is_left());
        assert_eq!(unleased(&nodes), ["b", "c"], "a hint may wait for either");
        tokio::time::advance(PATIENCE).await;
        undecided = tell(&view(&["a"]), &nodes, Some(&registry), undecided).await;
        assert!(undecided.is_left() && unleased(&nodes).is_empty(), "as in any outage of the registry");
        is_down.store(false, Ordering::Relaxed);
        let hint = format!("{}g/x", Keys::new("f").hints_for("b"));
        registry.put(&hint, vec![], None).await.unwrap();
        undecided = tell(&view(&["a"]), &nodes, Some(&registry), undecided).await;
        assert!(!undecided.is_left());
        assert_eq!(unleased(&nodes), ["b"]);
    }
}
