//! The store: lifetimes, ownership, what leaves, and bytes against naive models.

use std::collections::{HashMap, VecDeque};
use std::num::NonZeroUsize;
use std::time::Duration;

use ::lru::LruCache;
use proptest::prelude::*;

use super::*;

mod under_loom;

fn entry(value: &[u8], now: Instant, ttl_ms: u64, stamp: RingVersion) -> Entry {
    Entry {
        value: Some(value.to_vec().into()),
        loaded: now,
        expires: now + Duration::from_millis(ttl_ms),
        stamp,
        origin: Origin::Owner,
    }
}

fn value(store: &Store, key: &[u8], owned_since: RingVersion, now: Instant) -> Option<Value> {
    store.get(key, Origin::Owner, owned_since, now).map(|entry| entry.value.expect("a value was stored"))
}

fn both(capacity_bytes: usize) -> impl Iterator<Item = (Store, Instant)> {
    let now = Instant::now();
    Eviction::ALL.into_iter().map(move |eviction| (Store::new(capacity_bytes, eviction, now), now))
}

#[test]
fn entries_grow_older_while_the_machine_is_suspended() {
    let now = Instant::now();
    for eviction in Eviction::ALL {
        let suspended = Suspended::default();
        let store = Store::new(1 << 20, eviction, now).counting(suspended.clone());
        store.insert(b"before", &entry(b"v", now, 1000, RingVersion(1)));
        suspended.pretend(Duration::from_millis(600));
        store.insert(b"after", &entry(b"v", now, 1000, RingVersion(1)));
        let at = |ms| now + Duration::from_millis(ms);
        let age =
            |key, ms| store.get(key, Origin::Owner, RingVersion(0), at(ms)).map(|it| at(ms) - it.loaded);
        // When an entry was loaded is kept less exactly than when it expires.
        let about = |ms| Duration::from_millis(ms)..Duration::from_millis(ms + 50);
        assert!(age(b"before", 300).is_some_and(|age| about(900).contains(&age)));
        assert!(age(b"after", 300).is_some_and(|age| about(300).contains(&age)));
        assert_eq!((age(b"before", 401), age(b"after", 401).is_some()), (None, true));
        assert_eq!(age(b"after", 1001), None);
    }
}

#[tokio::test(start_paused = true)]
async fn an_entry_lives_until_it_expires() {
    for (store, now) in both(1 << 20) {
        store.insert(b"k", &entry(b"v", now, 100, RingVersion::NONE));
        assert_eq!(value(&store, b"k", RingVersion::NONE, now + Duration::from_millis(99)).unwrap(), "v");
        assert_eq!(value(&store, b"k", RingVersion::NONE, now + Duration::from_millis(100)), None::<Value>);
        assert_eq!(store.used_bytes(), 0, "what has expired is dropped when it is met");
    }
}

/// In a store of several shards, with keys that are there, that are not, and twice the same.
#[tokio::test(start_paused = true)]
async fn what_is_prefetched_stays_as_it_was() {
    for (store, now) in both(128 << 20) {
        let key = |n: u32| n.to_be_bytes();
        (0..1000).for_each(|n| store.insert(&key(n), &entry(b"v", now, 100, RingVersion::NONE)));
        let keys: Vec<_> = (0..2000).chain(0..10).map(key).collect();
        let hottest = |store: &Store| {
            let mut keys = Vec::new();
            store.visit_hottest_first(|key, _| {
                keys.push(key.to_vec());
                ControlFlow::Continue(())
            });
            keys
        };
        let before = (store.used_bytes(), hottest(&store));
        store.prefetch(keys.iter().map(|key| &key[..]));
        store.prefetch(std::iter::empty());
        assert_eq!((store.used_bytes(), hottest(&store)), before);
        assert!((0..2000).all(|n| value(&store, &key(n), RingVersion::NONE, now).is_some() == (n < 1000)));
    }
}

#[tokio::test(start_paused = true)]
async fn what_has_expired_leaves_without_being_asked_for() {
    for (store, now) in both(64 << 20) {
        for key in 0..10_000_u32 {
            store.insert(
                &key.to_be_bytes(),
                &entry(b"v", now, if key % 2 == 0 { 100 } else { 10_000 }, RingVersion::NONE),
            );
        }
        let later = now + Duration::from_millis(100);
        (0..10).for_each(|_| store.sweep(0.1, later));
        assert_eq!(store.len(), 5_000);
        assert!((0..10_000_u32).all(|key| {
            value(&store, &key.to_be_bytes(), RingVersion::NONE, later).is_some() == (key % 2 == 1)
        }));
        assert_eq!(store.used_bytes(), 5_000 * (4 + 1 + Store::OVERHEAD_BYTES));
    }
}

#[tokio::test(start_paused = true)]
async fn an_entry_from_before_the_node_owned_the_key_is_a_miss() {
    for (store, now) in both(1 << 20) {
        store.insert(b"k", &entry(b"v", now, 100, RingVersion(7)));
        assert_eq!(value(&store, b"k", RingVersion(7), now).unwrap(), "v");
        assert!(value(&store, b"k", RingVersion(8), now).is_none());
    }
}

#[tokio::test(start_paused = true)]
async fn failover_entries_and_owned_entries_do_not_answer_for_each_other() {
    for (store, now) in both(1 << 20) {
        store.insert(b"k", &entry(b"v", now, 100, RingVersion(7)));
        assert!(store.get(b"k", Origin::Failover, RingVersion::NONE, now).is_none());
        store.insert(b"k", &Entry { origin: Origin::Failover, ..entry(b"w", now, 100, RingVersion(7)) });
        let value = |origin| store.get(b"k", origin, RingVersion::NONE, now).unwrap().value.unwrap();
        assert_eq!((value(Origin::Failover), value(Origin::Owner)), ("w".into(), "v".into()));
        assert!(store.remove_of(b"k", Origin::Failover) && !store.remove_of(b"k", Origin::Failover));
        assert!(store.remove(b"k") && store.is_empty(), "all there is of it");
    }
}

#[tokio::test(start_paused = true)]
async fn stamps_of_every_size_are_kept_and_an_impossible_one_is_less_than_it_says() {
    for (store, now) in both(1 << 20) {
        for stamp in [0, 1, u64::from(u32::MAX), 1 << 32, (1 << 56) - 1] {
            store.insert(b"k", &entry(b"v", now, 100, RingVersion(stamp)));
            assert!(store.get(b"k", Origin::Owner, RingVersion(stamp), now).is_some(), "{stamp}");
            assert!(store.get(b"k", Origin::Owner, RingVersion(stamp + 1), now).is_none(), "{stamp}");
        }
        store.insert(b"k", &entry(b"v", now, 100, RingVersion(u64::MAX)));
        assert!(store.get(b"k", Origin::Owner, RingVersion(1 << 40), now).is_some());
        assert!(store.get(b"k", Origin::Owner, RingVersion(u64::MAX), now).is_none());
    }
}

#[tokio::test(start_paused = true)]
async fn an_entry_comes_back_as_it_was_stored() {
    for (store, now) in both(1 << 20) {
        let later = now + Duration::from_secs(100);
        let negative =
            Entry { value: None, origin: Origin::Failover, ..entry(b"", later, 5_000, RingVersion(3)) };
        store.insert(b"none", &negative);
        store.insert(b"empty", &entry(b"", later, 5_000, RingVersion(9)));
        let found = store.get(b"none", Origin::Failover, RingVersion::NONE, later).unwrap();
        assert!(found.value.is_none());
        assert_eq!((found.stamp.0, found.expires), (3, negative.expires));
        let age = later - found.loaded;
        assert!(
            age < Duration::from_millis(64),
            "an entry may look older than it is by a step, not younger: {age:?}"
        );
        assert_eq!(value(&store, b"empty", RingVersion::NONE, later).unwrap(), "");
        assert!(store.remove(b"empty") && !store.remove(b"empty"));
        assert!(value(&store, b"empty", RingVersion::NONE, later).is_none());
    }
}

#[tokio::test(start_paused = true)]
async fn a_value_larger_than_a_shard_evicts_nothing() {
    for (store, now) in both(1000) {
        store.insert(b"small", &entry(b"1", now, 100, RingVersion::NONE));
        store.insert(b"big", &entry(&[0; 910], now, 100, RingVersion::NONE));
        assert!(value(&store, b"big", RingVersion::NONE, now).is_none());
        assert!(value(&store, b"small", RingVersion::NONE, now).is_some());
        store.insert(b"small", &entry(&[0; 910], now, 100, RingVersion::NONE));
        assert!(
            value(&store, b"small", RingVersion::NONE, now).is_none(),
            "nor does the old value stand for it"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn with_s3_fifo_a_scan_does_not_drive_out_what_is_read_again_and_again() {
    let now = Instant::now();
    let survivors = Eviction::ALL.map(|eviction| {
        let store = Store::of_entries(100, 1, eviction, now);
        let used = |key: u32| value(&store, &key.to_be_bytes(), RingVersion::NONE, now).is_some();
        for key in 0..50_u32 {
            store.insert(&key.to_be_bytes(), &entry(b"v", now, 1000, RingVersion::NONE));
            assert!(used(key) && used(key));
        }
        for key in 1000..2000_u32 {
            store.insert(&key.to_be_bytes(), &entry(b"v", now, 1000, RingVersion::NONE));
        }
        (0..50).filter(|key| used(*key)).count()
    });
    assert_eq!(survivors, [50, 0]);
}

/// A value that was taken out of the store stays whole when its entry leaves.
#[tokio::test(start_paused = true)]
async fn a_value_outlives_its_entry() {
    for (store, now) in both(1 << 20) {
        store.insert(b"k", &entry(b"value", now, 100, RingVersion::NONE));
        let bytes = value(&store, b"k", RingVersion::NONE, now).unwrap().into_bytes();
        store.remove(b"k");
        drop(store);
        assert_eq!(bytes, "value");
    }
}

/// S3-FIFO as one would write it down: three queues of keys, unit weights.
#[derive(Default)]
struct NaiveS3Fifo {
    small: VecDeque<(u32, u8)>,
    main: VecDeque<(u32, u8)>,
    ghost: VecDeque<u32>,
}

impl NaiveS3Fifo {
    fn hit(&mut self, key: u32) -> bool {
        let found = self.small.iter_mut().chain(&mut self.main).find(|(other, _)| *other == key);
        found.map(|(_, hits)| *hits = (*hits + 1).min(3)).is_some()
    }

    fn insert(&mut self, key: u32, capacity: usize) {
        while self.small.len() + self.main.len() >= capacity {
            self.evict(capacity);
        }
        match self.ghost.iter().position(|other| *other == key) {
            Some(at) => {
                // It keeps its place in the order, as in the ghost itself.
                self.ghost[at] = u32::MAX;
                self.main.push_front((key, 0));
            }
            None => self.small.push_front((key, 0)),
        }
    }

    fn evict(&mut self, capacity: usize) {
        if self.small.len() > capacity / 10 || self.main.is_empty() {
            let entries = self.small.len() + self.main.len();
            let Some((key, hits)) = self.small.pop_back() else { return };
            if hits >= 2 {
                return self.main.push_front((key, 0));
            }
            while self.ghost.len() >= (entries - entries / 10).max(1) {
                self.ghost.pop_front();
            }
            self.ghost.push_back(key);
        } else if let Some((key, hits)) = self.main.pop_back()
            && hits > 0
        {
            self.main.push_front((key, hits - 1));
        }
    }
}

proptest! {
    /// Against a map that forgets nothing: no value is wrong, none outlives its time, and the bytes in
    /// use are those of what is there and never above capacity.
    #[test]
    fn bytes_are_counted(steps in prop::collection::vec((0..20u8, 0..300usize, 0..50u64, 0..4u8), 1..300)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        runtime.block_on(async {
            for (store, begin) in both(2_000) {
                let mut model: HashMap<u8, (usize, Instant)> = HashMap::new();
                for (at, (key, size, ttl_ms, what)) in steps.iter().copied().enumerate() {
                    let now = begin + Duration::from_millis(at as u64);
                    match what {
                        0 => {
                            store.insert(&[key], &entry(&vec![key; size], now, ttl_ms, RingVersion::NONE));
                            model.insert(key, (size, now + Duration::from_millis(ttl_ms)));
                        }
                        1 => {
                            store.remove(&[key]);
                            model.remove(&key);
                        }
                        2 => store.sweep(0.3, now),
                        _ => if let Some(found) = value(&store, &[key], RingVersion::NONE, now) {
                            let (size, expires) = model[&key];
                            assert!(found.len() == size && found.iter().all(|byte| *byte == key) && now < expires);
                        }
                    }
                    assert!(store.used_bytes() <= 2_000);
                    assert!(store.used_bytes() >= store.len() * (1 + Store::OVERHEAD_BYTES));
                }
                store.sweep(1.0, begin + Duration::from_secs(1));
                assert_eq!((store.len(), store.used_bytes()), (0, 0));
            }
        });
    }

    /// Hit for hit, one shard with unit weights is the `lru` crate, and the naive S3-FIFO.
    #[test]
    fn policies_keep_their_order(capacity in 1..40usize, keys in prop::collection::vec(0..80u32, 1..600)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        runtime.block_on(async {
            let now = Instant::now();
            let (mut lru, mut s3_fifo) = (LruCache::new(NonZeroUsize::new(capacity).unwrap()), NaiveS3Fifo::default());
            let stores = Eviction::ALL.map(|eviction| (eviction, Store::of_entries(capacity, 1, eviction, now)));
            for key in keys {
                for (eviction, store) in &stores {
                    let expected = match eviction {
                        Eviction::Lru => lru.put(key, ()).is_some(),
                        Eviction::S3Fifo => {
                            let hit = s3_fifo.hit(key);
                            if !hit {
                                s3_fifo.insert(key, capacity);
                            }
                            hit
                        }
                    };
                    let hit = value(store, &key.to_be_bytes(), RingVersion::NONE, now).is_some();
                    assert_eq!(hit, expected, "{eviction}, key {key}");
                    if !hit {
                        store.insert(&key.to_be_bytes(), &entry(b"", now, 1000, RingVersion::NONE));
                    }
                }
            }
        });
    }
}
