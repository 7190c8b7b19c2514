//! What goes to an owner as one operation, by what is known of the key.

use peanut_proto::sequence::{class, sequence};

use super::*;

const TTL_MS: u64 = 60_000;

fn request<'a>(key: &'a [u8], write: Write<'a>) -> Request<'a> {
    Request {
        group: 3,
        group_name: "scores",
        key,
        hash: 7,
        deadline: Instant::now() + Duration::from_secs(1),
        op: Op::Write(write),
        traceparent: "",
    }
}

fn set<'a>(key: &'a [u8], value: &'a [u8]) -> Request<'a> {
    let outcome = Filled::Value(value);
    request(key, Write::Set { key, outcome, ttl_ms: TTL_MS, token: FillToken::NONE })
}

#[tokio::test]
async fn the_value_goes_with_its_delete_where_the_sequence_is_known() {
    let (sequences, set) = (Sequences::default(), set(b"Tom", b"630"));
    let first = at_once(&sequences, &set, 0, "a");
    assert_eq!(first, Write::Delete { key: b"Tom", then_set: true, sequence: 0 }, "nothing is known yet");
    let heard = sequence(class(b"Tom"), 9, 1);
    sequences.learn("a", 3, b"Tom", heard);
    let known = at_once(&sequences, &set, 0, "a");
    assert_eq!(known, Write::Replace { key: b"Tom", value: b"630", ttl_ms: TTL_MS, sequence: heard });
    let other = at_once(&sequences, &set, 0, "b");
    assert_eq!(other, first, "another node has sequences of its own");
}

#[tokio::test]
async fn a_write_that_was_begun_goes_by_its_own_sequence_whatever_was_heard_since() {
    let (sequences, begun) = (Sequences::default(), sequence(class(b"Tom"), 9, 1));
    sequences.learn("a", 3, b"Tom", sequence(class(b"Tom"), 9, 2));
    let write = at_once(&sequences, &set(b"Tom", b"630"), begun, "a");
    let replaced = Write::ReplaceOrForget { key: b"Tom", value: b"630", ttl_ms: TTL_MS, sequence: begun };
    assert_eq!(write, replaced);
}

#[tokio::test]
async fn a_long_value_follows_its_delete() {
    let (sequences, heard) = (Sequences::default(), sequence(class(b"Tom"), 9, 1));
    sequences.learn("a", 3, b"Tom", heard);
    let (longest, longer) = (vec![0; MAX_AT_ONCE], vec![0; MAX_AT_ONCE + 1]);
    for sequence in [0, heard] {
        let with_value = at_once(&sequences, &set(b"Tom", &longest), sequence, "a");
        assert_eq!(with_value.value_bytes(), MAX_AT_ONCE);
        let alone = at_once(&sequences, &set(b"Tom", &longer), sequence, "a");
        assert_eq!(alone, Write::Delete { key: b"Tom", then_set: true, sequence });
    }
}

#[tokio::test]
async fn deletes_and_what_is_not_found_are_deletes_first() {
    let (sequences, heard) = (Sequences::default(), sequence(class(b"Tom"), 9, 1));
    sequences.learn("a", 3, b"Tom", heard);
    let delete = request(b"Tom", Write::Delete { key: b"Tom", then_set: false, sequence: 0 });
    let is_delete = |then_set| Write::Delete { key: b"Tom", then_set, sequence: 0 };
    assert_eq!(at_once(&sequences, &delete, 0, "a"), is_delete(false));
    let (outcome, token) = (Filled::NotFound, FillToken::NONE);
    let not_found = request(b"Tom", Write::Set { key: b"Tom", outcome, ttl_ms: TTL_MS, token });
    assert_eq!(at_once(&sequences, &not_found, 0, "a"), is_delete(true));
}

#[test]
fn the_latest_ring_that_any_node_has_named_counts() {
    let heard = HeardOf::default();
    [3, 7, 5].into_iter().for_each(|version| heard.note(RingVersion(version)));
    assert_eq!(heard.version(), RingVersion(7));
}
