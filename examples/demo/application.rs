//! The application: callers that read all the time, some keys far more often than others.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use peanut_client::{Client, Group};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

use crate::database::{GROUP, key};
use crate::report::{Phase, Progress};

const CALLERS: usize = 64;

pub(crate) struct Application {
    client: Client,
    shared: Arc<Shared>,
}

struct Shared {
    group: Group,
    keys: Vec<String>,
    /// For each key, how likely it or one before it is read: Zipf's law with exponent 0.99.
    cumulative: Vec<f64>,
    read: Vec<AtomicBool>,
    reads: AtomicU64,
    errors: AtomicU64,
    stop: AtomicBool,
}

impl Application {
    pub(crate) fn new(client: Client, rows: usize) -> Self {
        let mut sum = 0.0;
        let cumulative = (1..=rows).map(|rank| {
            sum += (rank as f64).powf(-0.99);
            sum
        });
        let shared = Shared {
            group: client.group(GROUP),
            cumulative: cumulative.collect(),
            keys: (0..rows).map(key).collect(),
            read: (0..rows).map(|_| AtomicBool::new(false)).collect(),
            reads: AtomicU64::new(0),
            errors: AtomicU64::new(0),
            stop: AtomicBool::new(false),
        };
        Application { client, shared: Arc::new(shared) }
    }

    /// Reads for that long and tells what it came to.
    pub(crate) async fn run(&self, time: Duration) -> Phase {
        let (before, begun) = (self.client.stats(), Instant::now());
        let (reads_before, errors_before) = (self.reads(), self.errors());
        self.shared.stop.store(false, Ordering::Relaxed);
        let mut callers = JoinSet::new();
        for _ in 0..CALLERS {
            callers.spawn(call(self.shared.clone()));
        }
        let mut progress = Progress::default();
        let mut last = (begun, reads_before);
        while begun.elapsed() < time {
            sleep(Duration::from_millis(250)).await;
            let now = (Instant::now(), self.reads());
            let rate = (now.1 - last.1) as f64 / (now.0 - last.0).as_secs_f64();
            progress.show(begun.elapsed(), time, rate, self.errors() - errors_before);
            last = now;
        }
        self.shared.stop.store(true, Ordering::Relaxed);
        callers.join_all().await;
        progress.clear();
        let after = self.client.stats();
        Phase {
            time: begun.elapsed(),
            reads: self.reads() - reads_before,
            loads: after.loaded - before.loaded,
            hits: after.hits - before.hits,
            errors: self.errors() - errors_before,
        }
    }

    /// How many different keys have been read so far.
    pub(crate) fn distinct_keys_read(&self) -> usize {
        self.shared.read.iter().filter(|read| read.load(Ordering::Relaxed)).count()
    }

    fn reads(&self) -> u64 {
        self.shared.reads.load(Ordering::Relaxed)
    }

    fn errors(&self) -> u64 {
        self.shared.errors.load(Ordering::Relaxed)
    }
}

async fn call(shared: Arc<Shared>) {
    while !shared.stop.load(Ordering::Relaxed) {
        let total = shared.cumulative.last().copied().unwrap_or_default();
        let chosen = fastrand::f64() * total;
        let at = shared.cumulative.partition_point(|sum| *sum < chosen).min(shared.keys.len() - 1);
        match shared.group.get(&shared.keys[at]).await {
            Ok(Some(_)) => shared.read[at].store(true, Ordering::Relaxed),
            Ok(None) => panic!("{} is in the database", shared.keys[at]),
            Err(_) => {
                shared.errors.fetch_add(1, Ordering::Relaxed);
            }
        }
        shared.reads.fetch_add(1, Ordering::Relaxed);
    }
}
