//! `peanut bench GROUP`: how fast a fleet answers this process.

use std::io::{IsTerminal as _, Write as _};
use std::ops::Range;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use hdrhistogram::Histogram;
use peanut_client::{Client, Error, Group};
use serde::Serialize;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::task::coop::consume_budget;
use tokio::time::{Instant, sleep, sleep_until};

use crate::args::BenchArgs;
use crate::failure::Failure;
use crate::output::{print_json, print_line};

/// A little more than a node takes.
const MOST_VALUE_BYTES: usize = 9 << 20;
const WARM_UP: Duration = Duration::from_secs(1);
/// Callers that share a histogram: few enough not to wait for each other.
const SHARDS: usize = 16;

#[derive(Serialize)]
struct Report {
    gets_per_second: f64,
    gets: u64,
    sets: u64,
    errors: u64,
    not_found: u64,
    near_hits: u64,
    p50_us: f64,
    p99_us: f64,
    p999_us: f64,
    max_us: f64,
    client_cpu_us: f64,
}

struct Bench {
    group: Group,
    keys: Vec<String>,
    /// For each key, how likely it or one before it is read; empty where all are alike.
    cumulative: Vec<f64>,
    batch: usize,
    /// The part of calls that are sets, and what is set.
    sets: f64,
    value: Vec<u8>,
    /// Nanoseconds of each call.
    latencies: Vec<Mutex<Histogram<u64>>>,
    gets: AtomicU64,
    /// Those of values, which count for errors and latency as gets do.
    writes: AtomicU64,
    errors: AtomicU64,
    last_error: Mutex<Option<Error>>,
    measuring: AtomicBool,
    stop: AtomicBool,
}

pub(crate) async fn run(client: &Client, args: &BenchArgs, json: bool) -> Result<ExitCode, Failure> {
    let bench = Arc::new(Bench::new(client, args));
    let mut callers = JoinSet::new();
    match args.rate {
        None => (0..args.concurrency as usize).for_each(|caller| {
            callers.spawn(closed_loop(bench.clone(), caller));
        }),
        Some(rate) => {
            let begun = Instant::now() + WARM_UP;
            let measured = begun..begun + args.duration;
            callers.spawn(open_loop(bench.clone(), rate, args.concurrency as usize, measured));
        }
    }
    sleep(WARM_UP).await;
    bench.measuring.store(true, Ordering::Relaxed);
    let (begun, cpu_before) = (Instant::now(), cpu_time());
    let before = client.stats();
    let mut last = (begun, 0);
    while begun.elapsed() < args.duration {
        sleep(Duration::from_millis(500).min(args.duration.saturating_sub(begun.elapsed()))).await;
        let now = (Instant::now(), bench.gets.load(Ordering::Relaxed));
        live_line(begun.elapsed(), (now.1 - last.1) as f64 / (now.0 - last.0).as_secs_f64(), &bench);
        last = now;
    }
    bench.measuring.store(false, Ordering::Relaxed);
    let (took, cpu) = (begun.elapsed(), cpu_time().saturating_sub(cpu_before));
    bench.stop.store(true, Ordering::Relaxed);
    // Of a fixed rate also what was due by now and is not answered yet.
    callers.join_all().await;
    if std::io::stderr().is_terminal() {
        eprint!("\r{:70}\r", "");
    }
    let after = client.stats();
    let (not_found, near_hits) = (after.not_found - before.not_found, after.near_hits - before.near_hits);
    let report = Report { not_found, near_hits, ..bench.report(took, cpu) };
    print(&report, json);
    if not_found * 2 > report.gets {
        let last = args.keys - 1;
        eprintln!(
            "peanut: {not_found} gets found nothing, which is not what a get of a value costs: the keys are key-0 to key-{last}; \
             set them, or have a loader that knows them"
        );
    }
    let last_error = bench.last_error.lock().unwrap_or_else(|e| e.into_inner()).take();
    let all = report.gets + report.sets;
    match last_error {
        Some(error) if all == report.errors => Err(Failure::from(error)),
        None if all == 0 => Err(Failure::new("no get was answered in that time")),
        _ => Ok(ExitCode::SUCCESS),
    }
}

impl Bench {
    fn new(client: &Client, args: &BenchArgs) -> Self {
        let mut sum = 0.0;
        let cumulative = (1..=args.keys).map(|rank| {
            sum += f64::from(rank).powf(-args.zipf);
            sum
        });
        let histogram = || Mutex::new(Histogram::new(3).expect("three digits are allowed"));
        Bench {
            group: client.group(&args.group),
            keys: (0..args.keys).map(|n| format!("key-{n}")).collect(),
            cumulative: if args.zipf == 0.0 { Vec::new() } else { cumulative.collect() },
            batch: args.batch as usize,
            sets: args.ratio,
            value: vec![b'x'; usize::try_from(args.value_size).unwrap_or(usize::MAX).min(MOST_VALUE_BYTES)],
            latencies: std::iter::repeat_with(histogram).take(SHARDS).collect(),
            gets: AtomicU64::new(0),
            writes: AtomicU64::new(0),
            errors: AtomicU64::new(0),
            last_error: Mutex::default(),
            measuring: AtomicBool::new(false),
            stop: AtomicBool::new(false),
        }
    }

    fn key(&self) -> &str {
        let Some(total) = self.cumulative.last() else {
            return &self.keys[fastrand::usize(..self.keys.len())];
        };
        let chosen = fastrand::f64() * total;
        let at = self.cumulative.partition_point(|sum| *sum < chosen);
        &self.keys[at.min(self.keys.len() - 1)]
    }

    /// One call, whose time counts from `since` on. `counts` says, when it has ended, whether it does.
    async fn call(&self, since: Instant, shard: usize, counts: impl FnOnce(&Self) -> bool) {
        let is_set = self.sets > 0.0 && fastrand::f64() < self.sets;
        let errors = if is_set {
            let sets = (0..self.batch).map(|_| self.group.set(self.key(), &self.value));
            self.failed(futures_util::future::join_all(sets).await)
        } else if self.batch == 1 {
            self.failed([self.group.get(self.key()).await])
        } else {
            self.failed(self.group.get_many((0..self.batch).map(|_| self.key())).await)
        };
        if counts(self) {
            let nanos = u64::try_from(since.elapsed().as_nanos()).unwrap_or(u64::MAX);
            self.latencies[shard % SHARDS]
                .lock()
                .unwrap_or_else(|e| e.into_inner())
                .record(nanos)
                .unwrap_or_default();
            let count = if is_set { &self.writes } else { &self.gets };
            count.fetch_add(self.batch as u64, Ordering::Relaxed);
            self.errors.fetch_add(errors, Ordering::Relaxed);
        }
    }

    /// Calls that were due and could not even be begun.
    fn never_begun(&self, calls: u64) {
        let keys = calls * self.batch as u64;
        self.gets.fetch_add(keys, Ordering::Relaxed);
        self.errors.fetch_add(keys, Ordering::Relaxed);
    }

    /// How many of these have failed; the last error is kept.
    fn failed<T>(&self, results: impl IntoIterator<Item = Result<T, Error>>) -> u64 {
        let errors = results.into_iter().filter_map(Result::err);
        let keep = |error| *self.last_error.lock().unwrap_or_else(|e| e.into_inner()) = Some(error);
        errors.map(keep).count() as u64
    }

    fn report(&self, took: Duration, cpu: Duration) -> Report {
        let mut all = Histogram::<u64>::new(3).expect("three digits are allowed");
        for shard in &self.latencies {
            let shard = shard.lock().unwrap_or_else(|e| e.into_inner());
            all.add(&*shard).expect("both are of the same shape");
        }
        let (gets, sets) = (self.gets.load(Ordering::Relaxed), self.writes.load(Ordering::Relaxed));
        let us = |nanos: u64| nanos as f64 / 1e3;
        Report {
            gets_per_second: gets as f64 / took.as_secs_f64(),
            gets,
            sets,
            errors: self.errors.load(Ordering::Relaxed),
            not_found: 0,
            near_hits: 0,
            p50_us: us(all.value_at_quantile(0.5)),
            p99_us: us(all.value_at_quantile(0.99)),
            p999_us: us(all.value_at_quantile(0.999)),
            max_us: us(all.max()),
            client_cpu_us: cpu.as_secs_f64() * 1e6 / (gets + sets).max(1) as f64,
        }
    }
}

async fn closed_loop(bench: Arc<Bench>, caller: usize) {
    while !bench.stop.load(Ordering::Relaxed) {
        bench.call(Instant::now(), caller, |bench| bench.measuring.load(Ordering::Relaxed)).await;
        // A get from a near copy is ready at once: others are to have their turn.
        consume_budget().await;
    }
}

/// A timer may be late by so much; what begins later than that was held up.
const TIMER_GRAIN: Duration = Duration::from_millis(2);
/// How long after the end what was due before may still be begun.
const OVERTIME: Duration = Duration::from_secs(5);

/// Begins calls when they are due, however long earlier ones take; beyond `most` at once they wait, and the
/// wait counts. All that are due in the measured time count, whenever they end.
async fn open_loop(bench: Arc<Bench>, rate: u32, most: usize, measured: Range<Instant>) {
    let free = Arc::new(Semaphore::new(most));
    let begun = Instant::now();
    let mut calls = JoinSet::new();
    // The rate is of keys.
    let every = bench.batch as f64 / f64::from(rate);
    for number in 0_u64.. {
        let due = begun + Duration::from_secs_f64(number as f64 * every);
        if due >= measured.end {
            break;
        }
        sleep_until(due).await;
        let now = Instant::now();
        if now >= measured.end + OVERTIME {
            bench.never_begun(((measured.end - due).as_secs_f64() / every).ceil() as u64);
            break;
        }
        let since = if now.saturating_duration_since(due) < TIMER_GRAIN { now } else { due };
        let Ok(permit) = free.clone().acquire_owned().await else { break };
        let bench = bench.clone();
        while calls.try_join_next().is_some() {}
        let counts = measured.contains(&due);
        calls.spawn(async move {
            bench.call(since, usize::try_from(number).unwrap_or_default(), |_| counts).await;
            drop(permit);
        });
    }
    calls.join_all().await;
}

fn live_line(elapsed: Duration, rate: f64, bench: &Bench) {
    let mut stderr = std::io::stderr().lock();
    if stderr.is_terminal() {
        let errors = bench.errors.load(Ordering::Relaxed);
        let _ = write!(stderr, "\r{:5.1} s  {rate:10.0} gets/s  {errors} errors", elapsed.as_secs_f64());
    }
}

fn print(report: &Report, json: bool) {
    if json {
        return print_json(report);
    }
    let Report { gets_per_second, gets, sets, errors, not_found, near_hits, .. } = report;
    let Report { p50_us, p99_us, p999_us, max_us, client_cpu_us, .. } = report;
    print_line(&format!("{gets_per_second:.0} gets/s ({gets} gets, {errors} errors, {not_found} not found)"));
    if *sets > 0 {
        print_line(&format!("beside them {sets} sets, which count for errors, latency and CPU"));
    }
    if *near_hits > 0 {
        print_line(&format!("from near copies: {near_hits} gets"));
    }
    print_line(&format!(
        "latency: p50 {p50_us:.0} us, p99 {p99_us:.0} us, p99.9 {p999_us:.0} us, max {max_us:.0} us"
    ));
    print_line(&format!("CPU of this process: {client_cpu_us:.2} us per key"));
}

/// CPU time of this process so far; zero where the system does not tell.
fn cpu_time() -> Duration {
    // utime and stime are fields 14 and 15, counted in hundredths of a second on every Linux.
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let after_name = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
    let ticks: u64 =
        after_name.split_whitespace().skip(11).take(2).filter_map(|field| field.parse::<u64>().ok()).sum();
    Duration::from_millis(ticks * 10)
}
