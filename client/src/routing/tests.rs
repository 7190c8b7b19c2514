use std::sync::Arc;

use peanut_proto::membership::NodeInfo;

use super::*;

/// A node that is only a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Name(pub(crate) Arc<str>);

impl Handle for Name {
    fn id(&self) -> &str {
        &self.0
    }

    fn addr(&self) -> &str {
        &self.0
    }

    fn is_left(&self) -> bool {
        self.0.starts_with('-')
    }
}

const WRITTEN_TO: Duration = Duration::from_secs(120);
const HAND_OVER: Duration = Duration::from_secs(60);
/// What a node's wall clock says.
const WALL_MS: u64 = 1_000_000;

fn made(document: &RingDocument, previous: Option<&Routing<Name>>, now: Instant) -> Routing<Name> {
    Routing::new(document, previous, (WRITTEN_TO, HAND_OVER), (now, WALL_MS), |member| {
        Name(member.id.as_str().into())
    })
}

pub(crate) fn node(id: &str) -> NodeInfo {
    NodeInfo { id: id.to_owned(), addr: id.to_owned(), zone: String::new(), weight: 1 }
}

/// A ring before which there was none.
pub(crate) fn document(ids: &[&str]) -> RingDocument {
    let empty = RingDocument::empty(64);
    let ring = ids.iter().fold(empty, |ring, id| ring.with(&node(id), 0).expect("a new node"));
    RingDocument { earlier: Vec::new(), ..ring }
}

/// The routing table of nodes with these names, which come one after the other.
pub(crate) fn routing(ids: &[&str], previous: Option<&Routing<Name>>, now: Instant) -> Routing<Name> {
    made(&document(ids), previous, now)
}

pub(crate) fn hashes() -> impl Iterator<Item = u64> {
    (0..u64::MAX).step_by(usize::MAX / 199)
}

#[test]
fn previous_owners_are_told_for_a_while_and_then_no_more() {
    let now = Instant::now();
    let before = routing(&["a", "b"], None, now);
    let after = routing(&["a", "b", "c"], Some(&before), now);
    let moved: Vec<_> = hashes().filter(|hash| &*after.route(*hash).unwrap().owner.0 == "c").collect();
    assert!(moved.len() > 30);
    for hash in hashes() {
        let told = after.previous_owners(hash, false, now + WRITTEN_TO - Duration::from_millis(1));
        let was = before.route(hash).unwrap().owner;
        assert_eq!(told, if moved.contains(&hash) { vec![was] } else { vec![] });
        assert!(after.previous_owners(hash, true, now + WRITTEN_TO).is_empty());
    }
}

#[test]
fn a_client_that_skipped_rings_tells_the_owners_of_those_between_too() {
    let now = Instant::now();
    let first = document(&["a", "b"]);
    let second = first.with(&node("c"), WALL_MS).unwrap();
    let third = second.without("c", WALL_MS).unwrap();
    let skipped = made(&third, Some(&made(&first, None, now)), now);
    let between = made(&second, None, now);
    for hash in hashes() {
        let owner = between.route(hash).unwrap().owner;
        let is_told = skipped.previous_owners(hash, false, now).contains(&owner);
        assert!(is_told || skipped.route(hash).unwrap().owner == owner);
    }
}

/// When rings were replaced is told by the clocks of other machines, which may be wrong by some minutes.
#[test]
fn a_client_that_starts_tells_the_owners_of_rings_that_were_replaced_lately() {
    let now = Instant::now();
    let first = document(&["a", "b"]);
    for replaced_ms in [WALL_MS - 9 * 60_000, WALL_MS, WALL_MS + 9 * 60_000] {
        let second = first.with(&node("c"), replaced_ms).unwrap();
        let fresh = made(&second, None, now);
        let before = made(&first, None, now);
        for hash in hashes() {
            let (was, is) = (before.route(hash).unwrap().owner, fresh.route(hash).unwrap().owner);
            let told = fresh.previous_owners(hash, false, now + WRITTEN_TO - Duration::from_millis(1));
            assert_eq!(told, if was == is { vec![] } else { vec![was] });
        }
        let long_ago = made(&first.with(&node("c"), WALL_MS - 11 * 60_000).unwrap(), None, now);
        assert!(hashes().all(|hash| long_ago.previous_owners(hash, false, now).is_empty()));
        // Those that it has held are told for as long as they were, whatever later documents still name.
        let third = second.with(&node("d"), replaced_ms).unwrap();
        let later = now + WRITTEN_TO;
        let held = made(&third, Some(&fresh), later);
        let told = hashes().map(|hash| held.previous_owners(hash, false, later + WRITTEN_TO / 2));
        let of_first = |told: Vec<&Name>, hash| told.contains(&before.route(hash).unwrap().owner);
        let of_second = |hash: u64| before.route(hash).unwrap().owner == fresh.route(hash).unwrap().owner;
        assert!(told.zip(hashes()).all(|(told, hash)| !of_first(told, hash) || of_second(hash)));
    }
}

#[test]
fn a_new_owner_is_filled_from_the_one_just_before_that_was_held_and_from_no_other() {
    let now = Instant::now();
    let first = document(&["a", "b"]);
    let second = first.with(&node("c"), WALL_MS).unwrap();
    let held = made(&first, None, now);
    let after = made(&second, Some(&held), now);
    let fresh = made(&second, None, now);
    let skipped = made(&second.with(&node("d"), WALL_MS).unwrap(), Some(&held), now);
    for hash in hashes() {
        let route = after.route(hash).unwrap();
        let previous = after.previous_owner(hash, route.owned_since, HAND_OVER, now);
        let was = held.route(hash).unwrap().owner;
        assert_eq!(previous.map(|previous| previous.node), (was != route.owner).then_some(was));
        assert!(after.previous_owner(hash, route.owned_since, HAND_OVER, now + HAND_OVER).is_none());
        assert!(
            fresh.previous_owner(hash, route.owned_since, HAND_OVER, now).is_none(),
            "it has held no other"
        );
        let route = skipped.route(hash).unwrap();
        if &*route.owner.0 == "d" {
            let previous = skipped.previous_owner(hash, route.owned_since, HAND_OVER, now);
            assert!(previous.is_none(), "another may have owned it, and been written to, in between");
        }
    }
}

#[test]
fn handles_outlive_rings_and_there_is_one_of_each_node() {
    let now = Instant::now();
    let mut made = Vec::new();
    let mut make = |member: &Member| {
        made.push(member.id.clone());
        Name(member.id.as_str().into())
    };
    let windows = (WRITTEN_TO, HAND_OVER);
    let first = document(&["a", "b"]);
    let second = first.without("b", WALL_MS).unwrap();
    let third = second.with(&node("b"), WALL_MS).unwrap();
    let held = Routing::new(&first, None, windows, (now, WALL_MS), &mut make);
    let held = Routing::new(&second, Some(&held), windows, (now, WALL_MS), &mut make);
    let held = Routing::new(&third, Some(&held), windows, (now, WALL_MS), &mut make);
    assert_eq!(held.nodes().len(), 2);
    assert_eq!(held.all_nodes(now).len(), 2);
    assert_eq!(made, ["a", "b"]);
}

#[test]
fn a_fleet_is_mostly_down_when_more_than_half_is() {
    let now = Instant::now();
    assert!(!routing(&["a", "-b"], None, now).mostly_down());
    assert!(routing(&["a", "-b", "-c"], None, now).mostly_down());
}
