//! How long a hit takes: threads that do nothing but read one of a thousand keys, each cache by turns.

use std::hint::black_box;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use peanut_client::{Group, NearCache, NearKeys};
use peanut_processes::now;
use redis::AsyncCommands as _;
use redis::aio::MultiplexedConnection;
use tokio::runtime::Runtime;

use super::{median, servers};

const KEYS: usize = 1_000;
const BATCH: usize = 256;
const ROUND: Duration = Duration::from_millis(500);

/// One of the caches.
#[derive(Clone)]
enum Cache {
    Near(Group),
    /// Without a near cache.
    Far(Group),
    Moka(moka::sync::Cache<String, Bytes>),
    Quick(Arc<quick_cache::sync::Cache<String, Bytes>>),
    RedisRs(MultiplexedConnection),
    Rustis(Arc<rustis::cache::Cache>),
}

impl Cache {
    fn name(&self) -> &'static str {
        match self {
            Cache::Near(_) => "Peanut, near copies",
            Cache::Far(_) => "Peanut, without",
            Cache::Moka(_) => "moka",
            Cache::Quick(_) => "quick_cache",
            Cache::RedisRs(_) => "redis-rs, cached",
            Cache::Rustis(_) => "rustis, cached",
        }
    }

    async fn get(&mut self, key: &str) -> Option<Bytes> {
        match self {
            Cache::Near(group) | Cache::Far(group) => group.get(key).await.ok().flatten(),
            Cache::Moka(cache) => cache.get(key),
            Cache::Quick(cache) => cache.get(key),
            Cache::RedisRs(connection) => connection.get(key).await.ok(),
            Cache::Rustis(cache) => cache.get::<String>(key).await.ok().map(Bytes::from),
        }
    }
}

/// Nanoseconds of a get, for each batch, and gets a second of all threads.
fn measure(runtime: &Runtime, cache: &Cache, keys: &[String], threads: usize) -> (f64, f64) {
    let stop = AtomicBool::new(false);
    let begun = now();
    let counts: Vec<(Vec<f64>, usize)> = std::thread::scope(|scope| {
        let readers: Vec<_> = (0..threads)
            .map(|_| {
                let (mut cache, stop, handle) = (cache.clone(), &stop, runtime.handle());
                scope.spawn(move || {
                    handle.block_on(async move {
                        let (mut batches, mut gets) = (Vec::new(), 0);
                        while !stop.load(Ordering::Relaxed) {
                            let begun = now();
                            for _ in 0..BATCH {
                                let key = &keys[fastrand::usize(..KEYS)];
                                black_box(cache.get(black_box(key)).await).expect("it is there");
                            }
                            batches.push(begun.elapsed().as_nanos() as f64 / BATCH as f64);
                            gets += BATCH;
                        }
                        (batches, gets)
                    })
                })
            })
            .collect();
        std::thread::sleep(ROUND);
        stop.store(true, Ordering::Relaxed);
        readers.into_iter().map(|reader| reader.join().expect("a reader")).collect()
    });
    let gets: usize = counts.iter().map(|(_, gets)| gets).sum();
    let batches = counts.into_iter().flat_map(|(batches, _)| batches).collect();
    (median(batches), gets as f64 / begun.elapsed().as_secs_f64())
}

pub(crate) fn run(runtime: &Runtime, binary: &Path, rounds: usize) {
    let keys: Vec<String> = (0..KEYS).map(|n| format!("key-{n}")).collect();
    let value = "v".repeat(100);
    let (servers, caches) = runtime.block_on(async {
        let ((nodes, addrs), (redis, redis_addr)) =
            (servers::peanut(binary, 1).await, servers::redis().await);
        let near = NearCache::bytes(64 << 20).keys(NearKeys::All);
        let near = servers::client(&addrs).near_cache(near).build().await.expect("a client").group("bench");
        let far = servers::client(&addrs).build().await.expect("a client").group("bench");
        let (moka, quick) = (moka::sync::Cache::new(10_000), quick_cache::sync::Cache::new(10_000));
        let mut plain = servers::redis_rs(&redis_addr, false).await;
        for key in &keys {
            far.set(key, &value).await.expect("it is set");
            moka.insert(key.clone(), value.clone().into());
            quick.insert(key.clone(), value.clone().into());
            let _: () = plain.set(key, &value).await.expect("it is set");
        }
        let redis_rs = servers::redis_rs(&redis_addr, true).await;
        let rustis = servers::rustis(&redis_addr).await;
        let mut caches = vec![
            Cache::Near(near),
            Cache::Far(far),
            Cache::Moka(moka),
            Cache::Quick(Arc::new(quick)),
            Cache::RedisRs(redis_rs),
            Cache::Rustis(rustis),
        ];
        for cache in &mut caches {
            for _ in 0..3 {
                for key in &keys {
                    assert_eq!(cache.get(key).await.expect("it is there").len(), value.len());
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
        ((nodes, redis), caches)
    });
    println!("| cache | threads | ns of a get | gets a second |\n|---|--:|--:|--:|");
    for threads in [1, 2] {
        let mut measured = vec![Vec::new(); caches.len()];
        for _ in 0..rounds {
            for (cache, measured) in caches.iter().zip(&mut measured) {
                // It may have lapsed meanwhile.
                measure(runtime, cache, &keys, 1);
                measured.push(measure(runtime, cache, &keys, threads));
            }
        }
        for (cache, measured) in caches.iter().zip(measured) {
            let (nanos, rates): (Vec<f64>, Vec<f64>) = measured.into_iter().unzip();
            println!("| {} | {threads} | {:.0} | {:.0} |", cache.name(), median(nanos), median(rates));
        }
    }
    drop(servers);
}
