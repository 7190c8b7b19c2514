//! The store beside moka, quick_cache and an `lru` behind a mutex: gets and inserts of one thread and of two,
//! keys by Zipf's law with exponent 0.99. `cargo xtask bench store`.

use std::hint::black_box;
use std::num::NonZeroUsize;
use std::sync::Mutex;
use std::time::Duration;

use bytes::Bytes;
use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use peanut_processes::now;
use peanut_server::HotKeys;
use peanut_server::store::{Entry, Eviction, Origin, RingVersion, Store};

const KEYS: usize = 200_000;
/// Room for about half of the keys.
const CAPACITY_BYTES: usize = KEYS / 2 * (KEY_BYTES + VALUE_BYTES + Store::OVERHEAD_BYTES);
const KEY_BYTES: usize = 16;
const VALUE_BYTES: usize = 100;
const ACCESSES: usize = 1 << 20;

/// A cache as the benchmark uses it.
trait Cache: Sync {
    fn get(&self, key: &[u8]) -> bool;
    fn insert(&self, key: &[u8], value: &Bytes);
}

struct Peanut(Store, tokio::time::Instant);

impl Cache for Peanut {
    fn get(&self, key: &[u8]) -> bool {
        black_box(self.0.get(key, Origin::Owner, RingVersion::NONE, self.1)).is_some()
    }

    fn insert(&self, key: &[u8], value: &Bytes) {
        let entry = Entry {
            value: Some(value.clone().into()),
            loaded: self.1,
            expires: self.1 + Duration::from_secs(3600),
            stamp: RingVersion::NONE,
            origin: Origin::Owner,
        };
        self.0.insert(key, &entry);
    }
}

struct Moka(moka::sync::Cache<Box<[u8]>, Bytes>);

impl Cache for Moka {
    fn get(&self, key: &[u8]) -> bool {
        black_box(self.0.get(key)).is_some()
    }

    fn insert(&self, key: &[u8], value: &Bytes) {
        self.0.insert(key.into(), value.clone());
    }
}

struct QuickCache(quick_cache::sync::Cache<Box<[u8]>, Bytes>);

impl Cache for QuickCache {
    fn get(&self, key: &[u8]) -> bool {
        black_box(self.0.get(key)).is_some()
    }

    fn insert(&self, key: &[u8], value: &Bytes) {
        self.0.insert(key.into(), value.clone());
    }
}

struct MutexedLru(Mutex<lru::LruCache<Box<[u8]>, Bytes>>);

impl Cache for MutexedLru {
    fn get(&self, key: &[u8]) -> bool {
        black_box(self.0.lock().expect("nobody panics").get(key).cloned()).is_some()
    }

    fn insert(&self, key: &[u8], value: &Bytes) {
        self.0.lock().expect("nobody panics").put(key.into(), value.clone());
    }
}

/// Positions of keys in the order of their accesses.
fn accesses() -> Vec<u32> {
    let mut sum = 0.0;
    let cumulative: Vec<f64> = (1..=KEYS)
        .map(|rank| {
            sum += (rank as f64).powf(-0.99);
            sum
        })
        .collect();
    let mut random = fastrand::Rng::with_seed(11);
    let key = |_| cumulative.partition_point(|upper| *upper < random.f64() * sum).min(KEYS - 1) as u32;
    (0..ACCESSES).map(key).collect()
}

/// The time in which `threads` threads do `times` accesses each.
fn timed(threads: usize, times: u64, accesses: &[u32], access: &(impl Fn(usize) + Sync)) -> Duration {
    let begun = now();
    std::thread::scope(|scope| {
        for thread in 0..threads {
            let mine = accesses.iter().cycle().skip(thread * ACCESSES / threads);
            scope.spawn(move || mine.take(times as usize).for_each(|key| access(*key as usize)));
        }
    });
    begun.elapsed()
}

fn stores(c: &mut Criterion) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime");
    let _guard = runtime.enter();
    let now = tokio::time::Instant::now();
    let peanut = |eviction| Peanut(Store::new(CAPACITY_BYTES, eviction, now), now);
    let moka = moka::sync::Cache::builder().max_capacity(KEYS as u64 / 2).build();
    let caches: [(&str, Box<dyn Cache>); 5] = [
        ("peanut s3-fifo", Box::new(peanut(Eviction::S3Fifo))),
        ("peanut lru", Box::new(peanut(Eviction::Lru))),
        ("moka", Box::new(Moka(moka))),
        ("quick_cache", Box::new(QuickCache(quick_cache::sync::Cache::new(KEYS / 2)))),
        ("mutexed lru", {
            let room = NonZeroUsize::new(KEYS / 2).expect("some");
            Box::new(MutexedLru(Mutex::new(lru::LruCache::new(room))))
        }),
    ];
    let accesses = accesses();
    let keys: Vec<[u8; KEY_BYTES]> =
        (0..KEYS).map(|n| format!("key:{n:0>12}").into_bytes().try_into().expect("sixteen bytes")).collect();
    let value = Bytes::from(vec![b'v'; VALUE_BYTES]);
    for (_, cache) in &caches {
        accesses.iter().for_each(|key| cache.insert(&keys[*key as usize], &value));
    }
    for threads in [1, 2] {
        let mut group = c.benchmark_group(format!("{threads} threads"));
        for (name, cache) in &caches {
            group.bench_function(BenchmarkId::new("get", name), |b| {
                b.iter_custom(|times| {
                    timed(threads, times, &accesses, &|key| {
                        cache.get(&keys[key]);
                    })
                });
            });
            group.bench_function(BenchmarkId::new("insert", name), |b| {
                b.iter_custom(|times| {
                    timed(threads, times, &accesses, &|key| cache.insert(&keys[key], &value))
                });
            });
        }
        group.finish();
        let hot = HotKeys::new(now);
        c.bench_function(&format!("{threads} threads/count/hot keys"), |b| {
            b.iter_custom(|times| timed(threads, times, &accesses, &|key| hot.count(&keys[key], now)))
        });
    }
}

criterion_group!(benches, stores);
criterion_main!(benches);
