//! Reads anything as a record of a fleet: no panic, what was read is written and read again as the same, and
//! a view that takes it keeps a ring that can be built.
//!
//! The first byte says which record it is: `r` the ring, `l` liveness, `g` a group, `u` an invalidation, `k`
//! a key with a value behind a line's end.

#![no_main]

use libfuzzer_sys::fuzz_target;
use peanut_proto::membership::{FleetView, Group, Hint, Keys, Liveness, MAX_DOCUMENT_BYTES, RingDocument};
use peanut_proto::registry::{Change, Entry, Snapshot};

const NOW_MS: u64 = 1_764_000_000_000;

fuzz_target!(|bytes: &[u8]| {
    let Some((kind, record)) = bytes.split_first() else { return };
    match kind {
        b'r' => ring(record),
        b'l' => liveness(record),
        b'g' => group(record),
        b'u' => hint(record),
        b'k' => key(record),
        _ => {}
    }
});

fn change(key: String, value: &[u8], revision: i64) -> Change {
    Change { key, value: Some(value.to_vec()), revision }
}

fn ring(bytes: &[u8]) {
    let keys = Keys::new("f");
    let mut held = RingDocument::fixed(["h:1", "h:2"]);
    held.points = 8;
    let mut view = FleetView::new(keys.clone());
    view.apply(change(keys.ring(), &held.encode(), 1));
    view.apply(change(keys.ring(), bytes, 2));
    view.ring.check().expect("whatever comes, the ring that is held is a good one");
    let _ = (view.ring_was_lost(), view.notices());

    let Ok(read) = RingDocument::decode(bytes) else {
        assert_eq!(view.ring.members, held.members);
        return;
    };
    read.check().expect("what was read has been checked");
    assert_eq!(RingDocument::decode(&read.encode()).expect("it was written just now"), read);
    assert!(read.recent(0).count() <= 16);
    let node = peanut_proto::membership::NodeInfo {
        id: "n".to_owned(),
        addr: "n:1".to_owned(),
        zone: String::new(),
        weight: 1,
    };
    for mut next in read.with(&node, NOW_MS).into_iter().chain(read.without("h:1", NOW_MS)) {
        assert!(next.version > read.version);
        next.fit(MAX_DOCUMENT_BYTES);
        next.forget_departed(NOW_MS, 1);
        if next.check().is_ok() {
            assert_eq!(RingDocument::decode(&next.encode()).expect("it was checked"), next);
        }
    }
}

fn liveness(bytes: &[u8]) {
    let keys = Keys::new("f");
    let mut view = FleetView::new(keys.clone());
    view.apply(change(keys.ring(), &RingDocument::fixed(["h:1", "h:2"]).encode(), 1));
    view.apply(change(keys.live("h:1"), bytes, 2));
    assert_eq!(view.live.len() + view.unreadable.len(), 1);
    assert_eq!(view.ring.version.0, 1);
    let _ = (view.partial_groups(), view.has_group("h:1", "g"));
    if let Ok(read) = Liveness::decode(bytes) {
        assert_eq!(Liveness::decode(&read.encode()).expect("it was written just now"), read);
    }
}

fn group(bytes: &[u8]) {
    let next = Group::next(Some(bytes), NOW_MS);
    assert!(Group::is_believable(next.generation, NOW_MS + 1), "there is room for one more");
    let after = Group::next(Some(&next.encode()), NOW_MS + 1);
    assert!(after.generation > next.generation);
    if let Ok(read) = Group::decode(bytes) {
        assert_ne!(read.generation, next.generation);
        assert_eq!(Group::decode(&read.encode()).expect("it was written just now"), read);
    }
}

fn hint(bytes: &[u8]) {
    if let Ok(read) = Hint::decode(bytes) {
        assert_eq!(Hint::decode(&read.encode()).expect("it was written just now"), read);
    }
}

fn key(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    let (key, value) = text.split_once('\n').unwrap_or((&text, ""));
    let keys = Keys::new("f");
    let _ = keys.parse(key);
    let key = format!("{}{key}", keys.prefix());
    let entry = Entry { key, value: value.as_bytes().to_vec(), revision: 3 };
    let mut view = FleetView::new(keys);
    view.replace(Snapshot { revision: 3, entries: vec![entry.clone()] });
    let mut watched = FleetView::new(view.keys().clone());
    watched.apply(change(entry.key, &entry.value, 3));
    assert_eq!((&view.live, &view.ring, view.revision), (&watched.live, &watched.ring, watched.revision));
}
