//! Segments: written and read again, and read after anything has happened to the bytes.

use proptest::prelude::*;

use super::*;

const HEADER: Header =
    Header { generation: Generation(5), fingerprint: 0xf00d, boot: 0xb007, written_ms: 1_700_000_000_000 };

/// Key, value, expires, loaded, stamp, removed.
type Entry = (Vec<u8>, Option<Vec<u8>>, u64, u64, u64, bool);

fn record((key, value, expires_ms, loaded_ms, stamp, removed): &Entry) -> Record<'_> {
    let content = match value {
        Some(hashes) if *removed => Content::Evicted(Hashes::new(hashes)),
        None if *removed => Content::Removed,
        Some(value) => Content::Value(value),
        None => Content::Negative,
    };
    Record { expires_ms: *expires_ms, loaded_ms: *loaded_ms, stamp: RingVersion(*stamp), key, content }
}

fn segment(entries: &[Entry]) -> Vec<u8> {
    let mut bytes = Vec::new();
    HEADER.write(&mut bytes);
    entries.iter().for_each(|entry| record(entry).write(&mut bytes));
    bytes
}

fn entries() -> impl Strategy<Value = Vec<Entry>> {
    let key = prop::collection::vec(any::<u8>(), 1..40);
    let value = prop::option::of(prop::collection::vec(any::<u8>(), 0..100));
    prop::collection::vec((key, value, any::<u64>(), any::<u64>(), any::<u64>(), any::<bool>()), 0..20)
}

fn small() -> Vec<Entry> {
    vec![
        (b"Tom".to_vec(), Some(b"630".to_vec()), 2, 1, 7, false),
        (b"Jack".to_vec(), None, 4, 3, 8, true),
        (b"Sam".to_vec(), Some(Vec::new()), 6, 5, 9, false),
        (b"Ann".to_vec(), None, 8, 7, 10, false),
        (Vec::new(), Some(key_hash(b"Tom").to_le_bytes().to_vec()), 0, 0, 0, true),
    ]
}

/// The format is a promise to files that are there: these bytes do not change while it is 2.
#[test]
fn the_format_is_what_it_was() {
    let bytes = segment(&small());
    assert_eq!(bytes.len(), HEADER_BYTES + 5 * RECORD_OVERHEAD_BYTES + 3 + 3 + 4 + 3 + 3 + 8);
    assert_eq!(xxh3_64(&bytes), 876_412_331_503_831_709, "recipe: segment(&small()) with HEADER");
}

#[test]
fn hashes_of_evicted_keys_are_read_as_they_were_written() {
    let hashes = [key_hash(b"Tom"), key_hash(b"Jack")];
    let mut bytes = Vec::new();
    hashes.iter().for_each(|hash| Hashes::append(&mut bytes, *hash));
    assert!(Hashes::new(&bytes).iter().eq(hashes));
    assert_eq!(Hashes::new(&bytes[..15]).iter().count(), 1, "half a hash is none");
}

#[test]
fn what_is_no_segment_of_this_format_is_told_apart() {
    let good = segment(&small());
    assert_eq!(Header::read(b"").unwrap_err(), NoSegment::Foreign);
    assert_eq!(Header::read(b"PEANUTSG").unwrap_err(), NoSegment::Foreign);
    assert_eq!(Header::read(&[b'x'; 4096]).unwrap_err(), NoSegment::Foreign);
    assert_eq!(Header::read(&good[..HEADER_BYTES - 1]).unwrap_err(), NoSegment::Foreign);
    let mut future = good.clone();
    future[8] = 3;
    assert_eq!(Header::read(&future).unwrap_err(), NoSegment::Format(3));
    let mut damaged = good.clone();
    damaged[17] ^= 1;
    assert_eq!(Header::read(&damaged).unwrap_err(), NoSegment::Damaged);
    assert_eq!(Header::read(&good[..HEADER_BYTES]).unwrap().1.count(), 0, "no records are no fault");
}

#[test]
fn a_torn_tail_costs_the_record_it_tears() {
    let (entries, bytes) = (small(), segment(&small()));
    let ends: Vec<usize> = (0..=entries.len()).map(|n| segment(&entries[..n]).len()).collect();
    for length in HEADER_BYTES..bytes.len() {
        let whole = ends.iter().filter(|end| **end <= length).count() - 1;
        let read: Vec<_> = Header::read(&bytes[..length]).unwrap().1.collect();
        let tail = (!ends.contains(&length)).then_some(Err(Bad::Tail));
        let expected: Vec<_> = entries[..whole].iter().map(|entry| Ok(record(entry))).chain(tail).collect();
        assert_eq!(read, expected, "cut at {length}");
    }
}

proptest! {
    #[test]
    fn what_was_written_is_read(entries in entries()) {
        let bytes = segment(&entries);
        let (header, records) = Header::read(&bytes).unwrap();
        prop_assert_eq!(header, HEADER);
        let read: Vec<_> = records.map(Result::unwrap).collect();
        prop_assert_eq!(read, entries.iter().map(record).collect::<Vec<_>>());
    }

    /// One flipped bit costs at most the record it is in and, where it is in a length, what comes after; and
    /// no record is ever read that was not written.
    #[test]
    fn a_flipped_bit_makes_no_wrong_record(entries in entries(), at in any::<prop::sample::Index>(), bit in 0..8u32) {
        let mut bytes = segment(&entries);
        let at = at.index(bytes.len());
        bytes[at] ^= 1 << bit;
        if let Ok((_, records)) = Header::read(&bytes) {
            prop_assert!(at >= HEADER_BYTES, "a damaged header is noticed");
            let written: Vec<_> = entries.iter().map(record).collect();
            let read: Vec<_> = records.collect();
            let good: Vec<_> = read.iter().filter_map(|read| read.ok()).collect();
            prop_assert!(good.iter().all(|good| written.contains(good)));
            prop_assert!(good.len() < written.len());
            prop_assert!(read.iter().any(Result::is_err));
        }
    }

    /// Nonsense is read to its end, without a record and without a panic.
    #[test]
    fn nonsense_has_no_records(nonsense in prop::collection::vec(any::<u8>(), 0..500)) {
        let mut bytes = segment(&[]);
        bytes.extend(&nonsense);
        let (_, records) = Header::read(&bytes).unwrap();
        prop_assert!(records.take(1000).all(|record| record.is_err()));
        let _ = Header::read(&nonsense);
    }
}

/// The fuzz target begins with these; `PEANUT_REGENERATE=1` writes them anew.
#[test]
fn the_fuzz_seeds_are_those_of_this_format() {
    let good = segment(&small());
    let seeds = [
        ("good", good.clone()),
        ("empty", segment(&[])),
        ("torn", good[..good.len() - 2].to_vec()),
        ("foreign", b"something else".to_vec()),
        (
            "flipped",
            good.iter().enumerate().map(|(at, byte)| byte ^ u8::from(at == HEADER_BYTES + 20)).collect(),
        ),
    ];
    let fuzz = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fuzz");
    if !fuzz.is_dir() {
        return; // This is the package, which has no corpus.
    }
    for (name, fresh) in seeds {
        let path = fuzz.join("corpus/segment").join(name);
        if std::env::var_os("PEANUT_REGENERATE").is_some() {
            std::fs::write(path, fresh).unwrap();
        } else {
            assert!(std::fs::read(path).unwrap_or_default() == fresh, "{name} is out of date");
        }
    }
}
