//! The store: lifetimes, ownership, order of eviction, and bytes against a model.

use std::collections::HashMap;
use std::time::Duration;

use bytes::Bytes;
use proptest::prelude::*;

use super::shard::OVERHEAD_BYTES;
use super::*;

fn entry(value: &[u8], now: Instant, ttl_ms: u64, stamp: u64) -> Entry {
    Entry {
        value: Some(Bytes::copy_from_slice(value)),
        loaded: now,
        expires: now + Duration::from_millis(ttl_ms),
        stamp,
        origin: Origin::Owner,
    }
}

fn value(store: &Store, key: &[u8], owned_since: u64, now: Instant) -> Option<Bytes> {
    store.get(key, Origin::Owner, owned_since, now).map(|entry| entry.value.expect("a value was stored"))
}

#[tokio::test(start_paused = true)]
async fn an_entry_lives_until_it_expires() {
    let (store, now) = (Store::new(1 << 20), Instant::now());
    store.insert(b"k", entry(b"v", now, 100, 0));
    assert_eq!(value(&store, b"k", 0, now + Duration::from_millis(99)).unwrap(), "v");
    assert_eq!(value(&store, b"k", 0, now + Duration::from_millis(100)), None);
    assert_eq!(store.used_bytes(), 0, "what has expired is dropped when it is met");
}

#[tokio::test(start_paused = true)]
async fn an_entry_from_before_the_node_owned_the_key_is_a_miss() {
    let (store, now) = (Store::new(1 << 20), Instant::now());
    store.insert(b"k", entry(b"v", now, 100, 7));
    assert_eq!(value(&store, b"k", 7, now).unwrap(), "v");
    assert_eq!(value(&store, b"k", 8, now), None);
}

#[tokio::test(start_paused = true)]
async fn failover_entries_and_owned_entries_do_not_answer_for_each_other() {
    let (store, now) = (Store::new(1 << 20), Instant::now());
    store.insert(b"k", entry(b"v", now, 100, 7));
    assert!(store.get(b"k", Origin::Failover, 0, now).is_none());
    store.insert(b"k", Entry { origin: Origin::Failover, ..entry(b"w", now, 100, 7) });
    assert!(store.get(b"k", Origin::Failover, 0, now).is_some());
    assert!(store.get(b"k", Origin::Owner, 0, now).is_none());
}

#[tokio::test(start_paused = true)]
async fn the_least_recently_used_leaves_first() {
    let now = Instant::now();
    let store = Store::new(3 * (OVERHEAD_BYTES + 2));
    for key in [b"a", b"b", b"c"] {
        store.insert(key, entry(b"1", now, 100, 0));
    }
    value(&store, b"a", 0, now);
    store.insert(b"d", entry(b"1", now, 100, 0));
    let left = [b"a", b"b", b"c", b"d"].map(|key| value(&store, key, 0, now).is_some());
    assert_eq!(left, [true, false, true, true]);
}

#[tokio::test(start_paused = true)]
async fn a_value_larger_than_the_store_evicts_nothing() {
    let (store, now) = (Store::new(1000), Instant::now());
    store.insert(b"small", entry(b"1", now, 100, 0));
    store.insert(b"big", entry(&[0; 900], now, 100, 0));
    assert!(value(&store, b"big", 0, now).is_none());
    assert!(value(&store, b"small", 0, now).is_some());
}

proptest! {
    /// Against a map that forgets nothing: no value is wrong, none outlives its time, and the bytes in
    /// use are those of what is there and never above capacity.
    #[test]
    fn bytes_are_counted(steps in prop::collection::vec((0..20u8, 0..300usize, 0..50u64, any::<bool>()), 1..200)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        runtime.block_on(async {
            let begin = Instant::now();
            let store = Store::new(2_000);
            let mut model: HashMap<u8, (usize, Instant)> = HashMap::new();
            for (at, (key, size, ttl_ms, write)) in steps.into_iter().enumerate() {
                let now = begin + Duration::from_millis(at as u64);
                if write {
                    store.insert(&[key], entry(&vec![key; size], now, ttl_ms, 0));
                    model.insert(key, (size, now + Duration::from_millis(ttl_ms)));
                } else if let Some(found) = value(&store, &[key], 0, now) {
                    let (size, expires) = model[&key];
                    assert!(found.len() == size && found.iter().all(|byte| *byte == key) && now < expires);
                }
                assert!(store.used_bytes() <= 2_000);
            }
            let after = begin + Duration::from_secs(1);
            for key in 0..20u8 {
                assert!(value(&store, &[key], 0, after).is_none());
            }
            assert_eq!(store.used_bytes(), 0);
        });
    }
}
