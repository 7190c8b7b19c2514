//! Documents: what each change makes of them, what is refused, and folding against re-reading.

use proptest::prelude::*;

use super::*;
use crate::numbers::Generation;
use crate::registry::{Change, Entry, Snapshot};

fn node(id: &str, weight: u32) -> NodeInfo {
    NodeInfo { id: id.into(), addr: format!("{id}:1"), zone: String::new(), weight }
}

fn ring(nodes: &[(&str, u32)]) -> RingDocument {
    nodes.iter().fold(RingDocument::empty(8), |ring, (id, weight)| ring.with(&node(id, *weight), 5).unwrap())
}

#[test]
fn joining_twice_changes_nothing() {
    let once = ring(&[("b", 1), ("a", 1)]);
    assert_eq!(once.version, RingVersion(2));
    assert_eq!(once.members.iter().map(|m| m.id.as_str()).collect::<Vec<_>>(), ["a", "b"]);
    assert_eq!(once.with(&node("a", 1), 9), None);
}

#[test]
fn a_new_address_keeps_ownership() {
    let before = ring(&[("a", 1), ("b", 1)]);
    let moved = NodeInfo { addr: "elsewhere:2".into(), ..node("a", 1) };
    let after = before.with(&moved, 9).unwrap();
    assert_eq!(after.version, RingVersion(3));
    assert_eq!((after.member("a").unwrap().since.0, after.member("a").unwrap().since_ms), (1, 5));
    assert!(after.departed.is_empty());
}

#[test]
fn leaving_leaves_a_record_until_the_node_is_back_with_as_much_weight() {
    let gone = ring(&[("a", 4), ("b", 1)]).without("a", 7).unwrap();
    assert_eq!(gone.without("a", 8), None);
    let record = Departed {
        id: "a".into(),
        weight: 4,
        since: RingVersion(1),
        left: RingVersion(3),
        left_ms: 7,
        drained: false,
    };
    assert_eq!(gone.departed, [record]);

    let smaller = gone.with(&node("a", 2), 8).unwrap();
    assert_eq!(smaller.departed.len(), 1, "what a's other points covered still belongs to others since 3");
    let whole = gone.with(&node("a", 4), 8).unwrap();
    assert!(whole.departed.is_empty());
    assert_eq!(whole.member("a").unwrap().since, RingVersion(4));
}

#[test]
fn weight_lost_is_departed_and_weight_gained_is_new() {
    let before = ring(&[("a", 4), ("b", 1)]);
    let less = before.with(&node("a", 1), 7).unwrap();
    assert_eq!(less.member("a").unwrap().since, RingVersion(1), "what it kept, it has owned all along");
    assert_eq!((less.departed[0].weight, less.departed[0].left.0), (4, 3));
    let more = before.with(&node("a", 5), 7).unwrap();
    assert_eq!(more.member("a").unwrap().since, RingVersion(3));
    assert!(more.departed.is_empty());
}

#[test]
fn departed_records_end_with_the_longest_lifetime() {
    let mut gone = ring(&[("a", 1), ("b", 1)]).without("a", 1_000).unwrap();
    gone.forget_departed(1_499, 500);
    assert_eq!(gone.departed.len(), 1);
    gone.forget_departed(1_500, 500);
    assert!(gone.departed.is_empty());
    assert_eq!(gone.version, RingVersion(3));
}

#[test]
fn who_forgets_too_early_makes_no_member_own_what_another_had_meanwhile() {
    let ring = ring(&[("a", 1), ("b", 1), ("d", 1)]).without("d", 1_000).unwrap();
    let left = ring.version;
    let mut joined = ring.with(&node("c", 1), 2_000).unwrap();
    // By a node whose entries live for a short time, or whose clock is ahead.
    joined.forget_departed(2_000, 500);
    assert!(joined.departed.is_empty());
    assert!(joined.members.iter().all(|member| member.since >= left), "{:?}", joined.members);
}

#[test]
fn who_was_taken_out_stays_out_for_an_hour_however_short_entries_live() {
    let mut ring = ring(&[("a", 1), ("b", 1)]).drained("a", 1_000).unwrap();
    ring.forget_departed(1_000 + DRAINED_MS - 1, 500);
    assert!(ring.is_drained("a"));
    ring.forget_departed(1_000 + DRAINED_MS, 500);
    assert!(!ring.is_drained("a"));
}

#[test]
fn the_document_reads_as_the_design_has_it() {
    let json = br#"{"format":1,"version":42,"hash":"xxh3-64","points":1024,
        "members":[{"id":"n2","addr":"h:2"},{"id":"n1","addr":"h:1","zone":"z","weight":3,"since":37,"since_ms":9}],
        "departed":[{"id":"n0","weight":1,"since":12,"left":40,"left_ms":8}],"later":"ignored"}"#;
    let json = std::str::from_utf8(json).unwrap().replace(r#""addr":"h:2""#, r#""addr":"h:2","since":3"#);
    let ring = RingDocument::decode(json.as_bytes()).unwrap();
    assert_eq!((ring.version.0, ring.points, ring.members[0].id.as_str()), (42, 1024, "n1"));
    assert_eq!((ring.members[1].weight, ring.members[1].zone.as_str()), (1, ""));
    assert_eq!(RingDocument::decode(&ring.encode()).unwrap(), ring);
}

#[test]
fn what_no_ring_can_be_built_from_is_refused_by_name() {
    let refused = |edit: fn(&mut RingDocument), names: &str| {
        let mut ring = ring(&[("a", 1), ("b", 1)]);
        edit(&mut ring);
        let error = RingDocument::decode(&ring.encode()).unwrap_err().to_string();
        assert!(error.contains(names), "{error}");
    };
    refused(|r| r.format = 2, "format 2");
    refused(|r| r.hash = "md5".into(), "md5");
    refused(|r| r.points = 0, "0 points");
    refused(|r| r.members[0].weight = 0, "weight 0");
    refused(|r| r.members[1].id = "a".into(), "listed twice");
    refused(|r| r.members[1].id = "a/b".into(), "slash");
    refused(|r| (r.points, r.members[0].weight) = (65_536, 1_024), "more than 8388608");
    assert!(RingDocument::decode(b"nonsense").is_err());
}

#[test]
fn the_other_records_read_back() {
    let hint = Hint {
        format: FORMAT,
        keys: Some(vec![b"Tom".to_vec(), vec![0, 255]]),
        ring_version: RingVersion(3),
        at_ms: 4,
    };
    assert_eq!(Hint::decode(&hint.encode()).unwrap(), hint);
    let whole = Hint { keys: None, ..hint };
    assert!(!String::from_utf8(whole.encode()).unwrap().contains("keys"));
    assert_eq!(Hint::decode(&whole.encode()).unwrap(), whole);
    let naming = String::from_utf8(NamingRecord::new("h:1").encode()).unwrap();
    assert_eq!(naming, r#"{"Op":0,"Addr":"h:1","Metadata":null}"#);
    assert_eq!(NamingRecord::key("peanutcache", "h:1"), "peanutcache/h:1");
}

#[test]
fn keys_read_back() {
    let keys = Keys::new("default");
    assert_eq!(keys.ring(), "/peanut/default/ring");
    assert_eq!(keys.parse(&keys.ring()), Some(Key::Ring));
    assert_eq!(keys.parse(&keys.live("h:1")), Some(Key::Live("h:1")));
    assert_eq!(keys.parse(&keys.group("scores")), Some(Key::Group("scores")));
    for group in ["scores", "späte Gäste", "a.b", "..", "%2F", "\"'", "\u{feff}"] {
        let key = format!("{}7", keys.hints_of("h:1", group));
        assert_eq!(keys.parse(&key), Some(Key::Hint { node: "h:1", group, name: "7" }));
        assert_eq!(keys.parse(&keys.group(group)), Some(Key::Group(group)));
    }
    assert_eq!(keys.parse("/peanut/default/undelivered/h:1/7"), None, "no group");
    let [ring, live] = keys.placement();
    assert!(ring.contains(&keys.ring()) && live.contains(&keys.live("x")));
    assert!(
        [keys.group("g"), keys.hints_of("n", "g")].iter().all(|k| !ring.contains(k) && !live.contains(k))
    );
    assert_eq!(keys.parse("/peanut/default/something"), None);
    assert_eq!(keys.parse("/peanut/other/ring"), None);
}

fn put(key: String, value: Vec<u8>, revision: i64) -> Change {
    Change { key, value: Some(value), revision }
}

#[test]
fn the_last_good_ring_stays() {
    let keys = Keys::new("f");
    let mut view = FleetView::new(keys.clone());
    let good = ring(&[("a", 1), ("b", 1)]);
    view.apply(put(keys.ring(), good.encode(), 10));
    assert_eq!((view.ring.version.0, view.ring_revision, view.ring_was_lost()), (2, 10, false));

    view.apply(put(keys.ring(), b"broken".to_vec(), 11));
    assert_eq!((view.ring.version.0, view.ring_revision, view.ring_was_lost()), (2, 11, true));
    view.apply(Change { key: keys.ring(), value: None, revision: 12 });
    assert_eq!((view.ring.version.0, view.ring_revision, view.ring_was_lost()), (2, 0, true));
    view.replace(Snapshot { revision: 2, entries: vec![] });
    assert_eq!((view.ring.version.0, view.revision, view.ring_was_lost()), (2, 2, true));

    let older = ring(&[("z", 1)]);
    view.apply(put(keys.ring(), older.encode(), 3));
    assert_eq!((view.ring.version.0, view.ring_was_lost()), (2, true));
    view.accept_stored();
    assert_eq!((view.ring.version.0, view.ring_was_lost()), (1, false));
}

#[test]
fn a_ring_that_was_not_counted_or_cannot_be_read_is_lost_and_one_of_a_newer_build_is_not() {
    let keys = Keys::new("f");
    let mut view = FleetView::new(keys.clone());
    let good = ring(&[("a", 1), ("b", 1)]);
    view.apply(put(keys.ring(), good.encode(), 10));
    let ahead = RingDocument { version: RingVersion(1 << 50), ..good.clone() };
    view.apply(put(keys.ring(), ahead.encode(), 11));
    assert_eq!((view.ring.version.0, view.ring_was_lost()), (2, true));
    view.apply(put(keys.ring(), br#"{"format":2,"version":3}"#.to_vec(), 12));
    assert_eq!((view.ring.version.0, view.ring_revision, view.ring_was_lost()), (2, 12, false));
    let bogus = (0..10_000).map(|n| Member { id: format!("bogus{n}"), ..good.members[0].clone() });
    let bogus = RingDocument { version: RingVersion(3), members: bogus.collect(), ..good.clone() };
    view.apply(put(keys.ring(), bogus.encode(), 13));
    assert_eq!((view.ring.version.0, view.ring_was_lost()), (2, true));
    view.apply(put(keys.ring(), RingDocument { version: RingVersion(3), ..good }.encode(), 14));
    assert_eq!((view.ring.version.0, view.ring_was_lost()), (3, false));
}

#[test]
fn liveness_that_cannot_be_read_changes_nothing_else_and_strangers_are_few() {
    let keys = Keys::new("f");
    let mut view = FleetView::new(keys.clone());
    let good = ring(&[("a", 1), ("z", 1)]);
    view.apply(put(keys.ring(), good.encode(), 1));
    let live = |groups: Option<Vec<LiveGroup>>| Liveness {
        format: FORMAT,
        addr: "h:1".into(),
        incarnation: "0".into(),
        build: "t".into(),
        started_ms: 0,
        groups,
    };
    view.apply(put(keys.live("a"), live(None).encode(), 2));
    view.apply(put(keys.live("a"), b"\xff".to_vec(), 3));
    assert!(view.live.contains_key("a") && view.unreadable.contains("a"));
    for n in 0..5_000 {
        view.apply(put(keys.live(&format!("stranger{n}")), live(None).encode(), 4));
        view.apply(put(keys.live(&format!("unreadable{n}")), vec![b'x'; 10], 4));
    }
    assert!(view.live.len() + view.unreadable.len() <= 1100, "{}", view.live.len());
    let unsorted = ["b", "a", "b"].map(|name| LiveGroup { name: name.into(), loads: true });
    view.apply(put(keys.live("z"), live(Some(unsorted.to_vec())).encode(), 5));
    assert_eq!(view.nodes_with_group("a"), ["z"], "members are always known, and their groups found");
    view.apply(put(keys.live("a"), live(None).encode(), 6));
    assert!(!view.unreadable.contains("a"));
}

#[test]
fn every_generation_leaves_room_for_the_next() {
    let now = 1_764_000_000_000;
    let stored = |generation: u64| Group { format: FORMAT, generation: Generation(generation) }.encode();
    let next = |stored: &[u8]| Group::next(Some(stored), now).generation;
    assert_eq!(Group::next(None, now).generation, Generation(now));
    assert_eq!(
        [next(&stored(5)), next(&stored(now)), next(&stored(now + 9))],
        [now, now + 1, now + 10].map(Generation)
    );
    for bogus in [u64::MAX, u64::MAX - 1, 1 << 63, now + 100_000_000_000] {
        assert!(!Group::is_believable(Generation(bogus), now));
        assert_eq!(next(&stored(bogus)), Generation(now), "{bogus}");
    }
    assert_eq!(next(&stored(u64::from(u32::MAX))), Generation(now));
    for garbage in [&b""[..], b"{", b"\xff\xfe", br#"{"format":2}"#, br#"{"format":1,"generation":-1}"#] {
        assert_eq!(next(garbage), Generation(now));
    }
    assert_eq!(Group::next(Some(&stored(0)), 0).generation, Generation(1), "without a clock it still counts");
}

#[test]
fn a_node_has_appeared_unless_the_ring_says_that_it_has_joined_since() {
    let node = |id: &str| NodeInfo { id: id.into(), addr: id.into(), zone: String::new(), weight: 1 };
    let first = RingDocument::empty(160).with(&node("a"), 0).unwrap();
    let grown = ["b", "c", "d"].into_iter().fold(first.clone(), |ring, id| ring.with(&node(id), 0).unwrap());
    let known = HashSet::from(["a"]);
    assert_eq!(grown.appeared(&known, first.version), [""; 0]);
    assert_eq!(grown.appeared(&known, first.version.plus(2)), ["b", "c"], "they were there then");
    let mut together = grown.clone();
    together.members.iter_mut().for_each(|member| member.since = grown.version);
    assert_eq!(together.appeared(&known, first.version), ["c", "d"]);
}

#[test]
fn a_node_has_vanished_unless_the_ring_says_that_it_has_left_since() {
    let whole = RingDocument::fixed(["a:1", "b:1", "c:1"]);
    let all = ["a:1", "b:1", "c:1"];
    let gone = whole.without("a:1", 0).unwrap().drained("b:1", 0).unwrap();
    assert_eq!(gone.vanished(all, whole.version), [""; 0]);
    // One that came back meanwhile and is missing again, for all that this ring says.
    assert_eq!(gone.vanished(all, whole.version.plus(1)), ["a:1"]);
    // Nobody has written down that any has left, or all are said to have left together.
    let cut = |departed| RingDocument { departed, ..gone.clone() };
    assert_eq!(cut(Vec::new()).vanished(all, whole.version), ["a:1", "b:1"]);
    let together = gone.departed.iter().map(|it| Departed { left: gone.version, ..it.clone() }).collect();
    assert_eq!(cut(together).vanished(all, whole.version), ["b:1"]);
}

proptest! {
    /// Folding changes one by one and reading the whole prefix at the end give the same view.
    #[test]
    fn watching_equals_reading(steps in prop::collection::vec((0..4usize, any::<bool>()), 0..40)) {
        let keys = Keys::new("f");
        let mut watched = FleetView::new(keys.clone());
        let mut stored = std::collections::BTreeMap::new();
        for (at, (which, present)) in steps.iter().enumerate() {
            let revision = at as i64 + 1;
            let live = Liveness {
                format: FORMAT, addr: format!("h:{at}"), incarnation: "0".into(), build: "t".into(), started_ms: 0,
                groups: None,
            };
            let (key, value) = match which {
                3 => (keys.live("n3"), b"garbage".to_vec()),
                n => (keys.live(&format!("n{n}")), live.encode()),
            };
            let value = present.then_some(value);
            match &value {
                Some(value) => { stored.insert(key.clone(), Entry { key: key.clone(), value: value.clone(), revision }); }
                None => { stored.remove(&key); }
            }
            watched.apply(Change { key, value, revision });
        }
        let mut read = FleetView::new(keys);
        read.replace(Snapshot { revision: steps.len() as i64, entries: stored.into_values().collect() });
        prop_assert_eq!(watched.live, read.live);
        prop_assert_eq!(watched.unreadable, read.unreadable);
        prop_assert_eq!(read.revision, watched.revision);
    }
}
