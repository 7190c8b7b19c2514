//! The ring against its vectors, its promises of balance, and a naive ring.

use peanut_proto::membership::NodeInfo;
use proptest::prelude::*;

use super::*;

pub(super) fn node(id: impl Into<String>, weight: u32) -> NodeInfo {
    let id = id.into();
    NodeInfo { addr: id.clone(), id, zone: String::new(), weight }
}

fn document(points: u32, nodes: impl IntoIterator<Item = NodeInfo>) -> RingDocument {
    nodes.into_iter().fold(RingDocument::empty(points), |ring, node| ring.with(&node, 0).expect("a new node"))
}

fn equal_nodes(count: usize, points: u32) -> RingDocument {
    document(points, (0..count).map(|n| node(format!("10.0.{}.{}:9999", n / 250, n % 250), 1)))
}

fn hash_of(n: u64) -> u64 {
    key_hash("bulk", format!("key-{n}").as_bytes())
}

#[test]
fn placement_is_as_the_vectors_have_it() {
    let vectors: serde_json::Value =
        serde_json::from_str(include_str!("../../testdata/ring_vectors.json")).unwrap();
    let mut checked = 0;
    for ring in vectors.as_array().unwrap() {
        let members = ring["members"].as_array().unwrap().iter().map(|member| {
            node(member[0].as_str().unwrap(), u32::try_from(member[1].as_u64().unwrap()).unwrap())
        });
        let points = u32::try_from(ring["points"].as_u64().unwrap()).unwrap();
        let built = Ring::new(&document(points, members));
        for vector in ring["keys"].as_array().unwrap() {
            let hex = vector["key_hex"].as_str().unwrap();
            let key: Vec<u8> = (0..hex.len())
                .step_by(2)
                .map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap())
                .collect();
            let group = vector["group"].as_str().unwrap();
            assert_eq!(format!("{:016x}", key_hash(group, &key)), vector["hash"].as_str().unwrap());
            let place = built.place(group, &key).unwrap();
            let name = |at: usize| built.members()[at].id.as_str();
            assert_eq!(name(place.owner), vector["owner"].as_str().unwrap());
            assert_eq!(place.successor.map(name), vector["successor"].as_str());
            checked += 1;
        }
    }
    assert_eq!(checked, 144);
}

#[test]
fn of_a_hundred_equal_nodes_none_is_seven_percent_over_the_mean() {
    let names: [fn(usize) -> String; 4] = [
        |n| format!("10.0.0.{n}:9999"),
        |n| format!("peanut-{n}"),
        |n| format!("127.0.0.1:{}", 9000 + n),
        |n| format!("peanut-{n}.peanut.default.svc:9999"),
    ];
    for name in names {
        let nodes = (0..100).map(|n| node(name(n), 1));
        let shares = Ring::new(&document(peanut_proto::membership::DEFAULT_POINTS, nodes)).shares();
        assert!((shares.iter().sum::<f64>() - 1.0).abs() < 1e-9);
        let largest = shares.iter().copied().fold(0.0, f64::max) * 100.0;
        assert!(largest <= 1.07, "{}: {largest}", name(0));
    }
}

#[test]
fn weight_is_share() {
    let ring = Ring::new(&document(1024, [node("a", 1), node("b", 3)]));
    assert!((ring.shares()[1] - 0.75).abs() < 0.03, "{:?}", ring.shares());
}

#[test]
fn a_joining_node_takes_only_its_own_share() {
    let before = equal_nodes(9, 1024);
    let after = before.with(&node("newcomer", 1), 0).unwrap();
    let (old, new) = (Ring::new(&before), Ring::new(&after));
    let owner = |ring: &Ring, n| ring.members()[ring.place_hash(hash_of(n)).unwrap().owner].id.clone();
    let mut moved = 0;
    for n in 0..20_000 {
        let (was, is) = (owner(&old, n), owner(&new, n));
        if was != is {
            assert_eq!(is, "newcomer");
            moved += 1;
        }
    }
    assert!(moved <= 20_000 / 10 + 600, "{moved}");
}

#[test]
fn an_empty_ring_has_no_owners_and_a_ring_of_one_no_successors() {
    let empty = Ring::new(&RingDocument::empty(1024));
    assert_eq!(empty.place("g", b"k"), None);
    let one = Ring::new(&equal_nodes(1, 1024));
    assert_eq!(one.place("g", b"k"), Some(Place { owner: 0, successor: None, owned_since: RingVersion(1) }));
    assert_eq!(one.shares(), [1.0]);
    let all_left = equal_nodes(1, 8).without("10.0.0.0:9999", 0).unwrap();
    assert_eq!(Ring::new(&all_left).place("g", b"k"), None);
}

/// Ownership by the words of the definition: every point of everyone who is or was there, sorted; walk
/// clockwise to the first member's.
fn place_naively(document: &RingDocument, hash: u64) -> Option<(String, RingVersion, Option<String>)> {
    let mut circle = Vec::new();
    for member in &document.members {
        for n in 0..member.weight * document.points {
            circle.push((xxh3_64(format!("{}#{n}", member.id).as_bytes()), member.id.clone(), None));
        }
    }
    for gone in &document.departed {
        for n in 0..gone.weight * document.points {
            let point = (xxh3_64(format!("{}#{n}", gone.id).as_bytes()), gone.id.clone());
            if !circle.iter().any(|(hash, id, _)| (*hash, id) == (point.0, &point.1)) {
                circle.push((point.0, point.1, Some(gone.left)));
            }
        }
    }
    circle.sort();
    let first = circle.iter().position(|(at, ..)| *at >= hash).unwrap_or(0);
    circle.rotate_left(first);
    let owner = circle.iter().position(|(.., left)| left.is_none())?;
    let since = document.member(&circle[owner].1).unwrap().since;
    let passed = circle[..owner].iter().filter_map(|(.., left)| *left).max().unwrap_or(RingVersion::NONE);
    let successor = circle.iter().find(|(_, id, left)| left.is_none() && *id != circle[owner].1);
    Some((circle[owner].1.clone(), since.max(passed), successor.map(|(_, id, _)| id.clone())))
}

proptest! {
    #[test]
    fn places_are_those_of_the_definition(
        steps in prop::collection::vec((0..6u8, 0..4u32), 1..20),
        hashes in prop::collection::vec(any::<u64>(), 50),
    ) {
        let mut document = RingDocument::empty(3);
        for (id, weight) in steps {
            let id = format!("n{id}");
            let next = if weight == 0 { document.without(&id, 0) } else { document.with(&node(id, weight), 0) };
            document = next.unwrap_or(document);
        }
        let ring = Ring::new(&document);
        let name = |at: usize| ring.members()[at].id.clone();
        let edges = ring.points.iter().flat_map(|p| [p.hash.wrapping_sub(1), p.hash, p.hash.wrapping_add(1)]);
        for hash in hashes.into_iter().chain(edges).chain([0, u64::MAX]) {
            let place = ring.place_hash(hash);
            let place = place.map(|p| (name(p.owner), p.owned_since, p.successor.map(name)));
            prop_assert_eq!(place, place_naively(&document, hash));
        }
    }
}
