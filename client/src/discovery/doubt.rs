//! What speaks against a ring that the registry offers, by the one that this client goes by.
//!
//! Nodes leave and join one with each change of the ring, as the ring says of each. Those of which it says
//! nothing have vanished, or have appeared: a registry was restored or misled.

use std::collections::HashSet;
use std::fmt;

use peanut_proto::membership::FleetView;

use crate::routing::{Handle, Routing};

/// So few newcomers are believed, alive or not.
const FEW: usize = 8;

/// A reason not to believe a ring.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Doubt<N> {
    /// More nodes have appeared than there were, and none of them has shown a sign of life. Nodes are alive
    /// before they join.
    Lifeless,
    /// More than half of the nodes have vanished: these. It is a reason only while most of them answer.
    Vanished(Vec<N>),
}

impl<N: Handle> Doubt<N> {
    /// What speaks against the ring of a view, if anything does.
    pub(super) fn of(routing: &Routing<N>, view: &FleetView) -> Option<Self> {
        let held = routing.ring.version();
        let known: HashSet<&str> = routing.nodes().iter().map(|node| node.id()).collect();
        let appeared = view.ring.appeared(&known, held);
        let lifeless = appeared.iter().filter(|id| !view.live.contains_key(**id)).count();
        // Who knows nobody has nothing to keep.
        if !known.is_empty() && lifeless > known.len().max(FEW) {
            return Some(Doubt::Lifeless);
        }
        let ids = routing.nodes().iter().map(|node| node.id());
        let vanished: HashSet<&str> = view.ring.vanished(ids, held).into_iter().collect();
        let of_those = || routing.nodes().iter().filter(|node| vanished.contains(node.id())).cloned();
        (vanished.len() * 2 > known.len()).then(|| Doubt::Vanished(of_those().collect()))
    }
}

impl<N> fmt::Display for Doubt<N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Doubt::Lifeless => "most nodes of a ring are new and not alive; keeping the old one",
            Doubt::Vanished(_) => "most nodes left the ring at once and still answer; keeping the old one",
        })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use peanut_proto::membership::{Keys, Liveness, RingDocument};
    use peanut_proto::numbers::RingVersion;
    use tokio::time::Instant;

    use super::*;
    use crate::routing::tests::{Name, document, node, routing};

    fn view(ring: RingDocument) -> FleetView {
        let mut view = FleetView::new(Keys::new("f"));
        view.ring = Arc::new(ring);
        view
    }

    fn names(letter: char, count: usize) -> Vec<String> {
        (0..count).map(|n| format!("{letter}{n}")).collect()
    }

    /// A ring with these members that does not say when they came, nor who has left.
    fn without_history(ids: &[String]) -> RingDocument {
        let ids: Vec<&str> = ids.iter().map(String::as_str).collect();
        let mut ring = RingDocument { departed: Vec::new(), ..document(&ids) };
        ring.members.iter_mut().for_each(|member| member.since = RingVersion::NONE);
        ring
    }

    #[tokio::test]
    async fn nodes_that_leave_or_join_with_a_change_each_are_believed_however_many() {
        let held = routing(&["a", "b", "c"], None, Instant::now());
        let mut ring = document(&["a", "b", "c"]);
        for gone in ["a", "b", "c"] {
            ring = ring.without(gone, 0).expect("a member");
        }
        assert_eq!(Doubt::of(&held, &view(ring.clone())), None, "all have left");
        for new in names('n', 20) {
            ring = ring.with(&node(&new), 0).expect("a new node");
        }
        assert_eq!(Doubt::of(&held, &view(ring)), None, "and twenty others have come");
    }

    #[tokio::test]
    async fn a_ring_without_most_nodes_that_does_not_say_when_they_left_is_in_doubt() {
        let names = |gone: &[&str]| gone.iter().map(|id| Name((*id).into())).collect::<Vec<_>>();
        let held = routing(&["a", "b", "c", "d"], None, Instant::now());
        let of = |ids: &[&str]| {
            let ids: Vec<String> = ids.iter().map(|id| (*id).to_owned()).collect();
            Doubt::of(&held, &view(without_history(&ids)))
        };
        assert_eq!(of(&["a", "b"]), None, "half of them");
        assert_eq!(of(&["a"]), Some(Doubt::Vanished(names(&["b", "c", "d"]))));
        assert_eq!(of(&[]), Some(Doubt::Vanished(names(&["a", "b", "c", "d"]))));
    }

    #[tokio::test]
    async fn more_newcomers_than_there_were_nodes_are_believed_where_they_live() {
        let held = routing(&["a"], None, Instant::now());
        let with = |count| without_history(&[names('n', count), vec!["a".to_owned()]].concat());
        assert_eq!(Doubt::of(&held, &view(with(FEW))), None, "few may be slow to be seen");
        assert_eq!(Doubt::of(&held, &view(with(FEW + 1))), Some(Doubt::Lifeless));
        let mut seen = view(with(FEW + 1));
        let live = Liveness {
            format: 1,
            addr: "n0".to_owned(),
            incarnation: "1".to_owned(),
            build: String::new(),
            started_ms: 0,
            groups: None,
        };
        seen.live.insert("n0".to_owned(), Arc::new(live));
        assert_eq!(Doubt::of(&held, &seen), None, "one of them lives");
        let nobody = routing(&[], None, Instant::now());
        assert_eq!(Doubt::of(&nobody, &view(with(40))), None, "who knows nobody has nothing to keep");
    }
}
