//! What an operator should know of a fleet: groups that only some nodes have, and members with one address.
//!
//! Both are pure functions of the records; who tells them to whom is elsewhere.

use std::collections::BTreeMap;
use std::fmt;

use super::{FleetView, RingDocument};

/// Notices that are made of one view at most, so that records without end cannot fill a log.
const MAX_NOTICES: usize = 64;

/// Members that say they are reached at one address: only one of them is.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct SharedAddress {
    /// The address.
    pub addr: String,
    /// Their ids, in order.
    pub nodes: Vec<String>,
}

/// A group that not all live members have.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct PartialGroup {
    /// Its name.
    pub name: String,
    /// Ids of the live members that have it, in order.
    pub nodes: Vec<String>,
    /// Ids of those that have not, in order.
    pub others: Vec<String>,
}

/// Something that an operator should know.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Notice {
    /// Members with one address.
    SharedAddress(SharedAddress),
    /// A group that only some nodes have.
    PartialGroup(PartialGroup),
}

impl Notice {
    /// Whether it concerns that node.
    pub fn is_about(&self, node: &str) -> bool {
        let (nodes, others) = match self {
            Notice::SharedAddress(shared) => (&shared.nodes, None),
            Notice::PartialGroup(partial) => (&partial.nodes, Some(&partial.others)),
        };
        nodes.iter().chain(others.into_iter().flatten()).any(|id| id == node)
    }
}

impl RingDocument {
    /// Addresses that more than one member has, in order.
    pub fn shared_addresses(&self) -> Vec<SharedAddress> {
        let mut by_addr = BTreeMap::<&str, Vec<String>>::new();
        for member in &self.members {
            by_addr.entry(&member.addr).or_default().push(member.id.clone());
        }
        let shared = by_addr.into_iter().filter(|(_, nodes)| nodes.len() > 1);
        shared.map(|(addr, nodes)| SharedAddress { addr: addr.to_owned(), nodes }).collect()
    }
}

impl FleetView {
    /// Whether a live node has a group; `None` where it is not live, or does not say.
    pub fn has_group(&self, node: &str, group: &str) -> Option<bool> {
        let groups = self.live.get(node)?.groups.as_ref()?;
        Some(groups.binary_search_by(|known| known.name.as_str().cmp(group)).is_ok())
    }

    /// Ids of the live members that say they have a group, in order of id. Nodes that do not say what they
    /// have are not among them.
    pub fn nodes_with_group(&self, group: &str) -> Vec<&str> {
        let ids = self.ring.members.iter().map(|member| member.id.as_str());
        ids.filter(|id| self.has_group(id, group) == Some(true)).collect()
    }

    /// Groups that some live members have and others have not, in order of name, as in every rolling
    /// deployment. Nodes that do not say what they have count as neither.
    pub fn partial_groups(&self) -> Vec<PartialGroup> {
        let mut telling = Vec::new();
        let mut by_name = BTreeMap::<&str, Vec<&str>>::new();
        for id in self.ring.members.iter().map(|member| member.id.as_str()) {
            let Some(groups) = self.live.get(id).and_then(|live| live.groups.as_ref()) else { continue };
            telling.push(id);
            groups.iter().for_each(|group| by_name.entry(&group.name).or_default().push(id));
        }
        let partial = by_name.into_iter().filter(|(_, nodes)| nodes.len() < telling.len());
        let partial = partial.take(MAX_NOTICES).map(|(name, nodes)| PartialGroup {
            name: name.to_owned(),
            others: telling.iter().filter(|id| !nodes.contains(id)).map(|id| (*id).to_owned()).collect(),
            nodes: nodes.into_iter().map(str::to_owned).collect(),
        });
        partial.collect()
    }

    /// All that an operator should know.
    pub fn notices(&self) -> Vec<Notice> {
        let shared = self.ring.shared_addresses().into_iter().take(MAX_NOTICES).map(Notice::SharedAddress);
        shared.chain(self.partial_groups().into_iter().map(Notice::PartialGroup)).collect()
    }
}

/// So many names, and how many more there are.
fn some(names: &[String]) -> String {
    const SHOWN: usize = 8;
    let shown = names.iter().take(SHOWN).map(String::as_str).collect::<Vec<_>>().join(", ");
    if names.len() > SHOWN { format!("{shown} and {} more", names.len() - SHOWN) } else { shown }
}

impl fmt::Display for SharedAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let nodes = some(&self.nodes);
        write!(f, "{nodes} have one address, {}; give each an `advertise` of its own", self.addr)
    }
}

impl fmt::Display for PartialGroup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "group `{}` is on {} and not on {}", self.name, some(&self.nodes), some(&self.others))
    }
}

impl fmt::Display for Notice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Notice::SharedAddress(shared) => shared.fmt(f),
            Notice::PartialGroup(partial) => partial.fmt(f),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::super::{FORMAT, Keys, LiveGroup, Liveness, NodeInfo};
    use super::*;

    fn view(nodes: &[(&str, &str, Option<&[&str]>)]) -> FleetView {
        let mut view = FleetView::new(Keys::new("f"));
        let mut ring = RingDocument::empty(8);
        for (id, addr, groups) in nodes {
            let info = NodeInfo { id: (*id).into(), addr: (*addr).into(), zone: String::new(), weight: 1 };
            ring = ring.with(&info, 0).unwrap();
            let named = |names: &&[&str]| {
                let groups = names.iter().map(|name| LiveGroup { name: (*name).to_owned(), loads: true });
                LiveGroup::told(groups).unwrap()
            };
            let live = Liveness {
                format: FORMAT,
                addr: (*addr).into(),
                incarnation: "0".into(),
                build: "t".into(),
                started_ms: 0,
                groups: groups.as_ref().map(named),
            };
            view.live.insert((*id).into(), Arc::new(live));
        }
        view.ring = Arc::new(ring);
        view
    }

    #[test]
    fn groups_that_only_some_live_members_have_are_told() {
        let mut view = view(&[
            ("a", "h:1", Some(&["scores", "pages"])),
            ("b", "h:2", Some(&["pages"])),
            ("old", "h:3", None),
            ("d", "h:4", Some(&["scores", "pages", "new"])),
        ]);
        assert_eq!(view.nodes_with_group("scores"), ["a", "d"]);
        assert_eq!((view.has_group("b", "scores"), view.has_group("old", "scores")), (Some(false), None));
        assert_eq!(view.has_group("nobody", "scores"), None);
        let told: Vec<_> = view.partial_groups().iter().map(ToString::to_string).collect();
        assert_eq!(told, ["group `new` is on d and not on a, b", "group `scores` is on a, d and not on b"]);
        // Who is not a member, or not alive, is asked for nothing.
        view.live.remove("b");
        view.ring = Arc::new(view.ring.without("d", 0).unwrap());
        assert_eq!(view.notices(), []);
    }

    #[test]
    fn members_with_one_address_are_told() {
        let view = view(&[("a", "h:1", None), ("b", "h:2", None), ("c", "h:1", None)]);
        let told: Vec<_> = view.notices().iter().map(ToString::to_string).collect();
        assert_eq!(told, ["a, c have one address, h:1; give each an `advertise` of its own"]);
    }

    #[test]
    fn notices_are_few_and_short_however_many_records_there_are() {
        let many: Vec<String> = (0..500).map(|n| format!("group-{n}")).collect();
        let names: Vec<&str> = many.iter().map(String::as_str).collect();
        let ids: Vec<String> = (0..200).map(|n| format!("n{n:03}")).collect();
        let nodes: Vec<(&str, &str, Option<&[&str]>)> = ids
            .iter()
            .enumerate()
            .map(|(n, id)| (id.as_str(), "h:1", Some(if n == 0 { &names[..] } else { &[] })))
            .collect();
        let notices = view(&nodes).notices();
        assert_eq!(notices.len(), 1 + MAX_NOTICES);
        assert!(notices.iter().all(|notice| notice.to_string().len() < 200));
    }

    #[test]
    fn groups_without_end_are_not_named() {
        let groups = (0..10_000).map(|n| LiveGroup { name: format!("group-{n}"), loads: false });
        assert_eq!(LiveGroup::told(groups), None);
    }
}
