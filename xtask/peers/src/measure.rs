//! One measurement: tasks that each call again as soon as they are answered, for a while.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use clap::ValueEnum;
use nix::sys::resource::{UsageWho, getrusage};
use peanut_processes::{cpu_time, now};
use serde::{Deserialize, Serialize};
use tokio::task::JoinSet;
use tokio::time::sleep;

use crate::systems::Caller;

/// Keys of one `get_many` or `set_many`.
pub(crate) const BATCH: usize = 100;

/// What the tasks do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Work {
    /// One key a call
    Get,
    /// A hundred keys a call
    #[value(name = "get_many")]
    GetMany,
    /// One value a call, of the same keys
    Set,
    /// A hundred values a call
    #[value(name = "set_many")]
    SetMany,
    /// One key a call, of a value of 1 MiB
    Large,
}

impl Work {
    pub(crate) const ALL: [Work; 5] = [Work::Get, Work::GetMany, Work::Set, Work::SetMany, Work::Large];

    fn keys(self) -> usize {
        match self {
            Work::Get | Work::Set | Work::Large => 1,
            Work::GetMany | Work::SetMany => BATCH,
        }
    }
}

impl fmt::Display for Work {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Work::Get => "get",
            Work::GetMany => "get_many",
            Work::Set => "set",
            Work::SetMany => "set_many",
            Work::Large => "large",
        })
    }
}

/// What one measurement gave. Latency is that of a call, CPU time that of one key.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sample {
    pub(crate) keys_per_second: f64,
    pub(crate) p50_us: f64,
    pub(crate) p99_us: f64,
    pub(crate) client_cpu_us: f64,
    pub(crate) server_cpu_us: f64,
    /// Calls without the right answer; they count nowhere else.
    pub(crate) failed: u64,
}

const WARMING: u8 = 0;
const MEASURING: u8 = 1;
const OVER: u8 = 2;

/// Runs one task for each caller. `server` is the process that answers them.
pub(crate) async fn measure<C: Caller>(
    callers: Vec<C>,
    work: Work,
    (keys, value): &(Arc<[String]>, Arc<str>),
    time: Duration,
    server: &str,
) -> Sample {
    let phase = Arc::new(AtomicU8::new(WARMING));
    let mut tasks = JoinSet::new();
    for caller in callers {
        tasks.spawn(closed_loop(caller, work, (keys.clone(), value.clone()), phase.clone()));
    }
    sleep(time / 5).await;
    let (begun, client_before, server_before) = (now(), own_cpu(), cpu_time(server));
    phase.store(MEASURING, Ordering::Relaxed);
    sleep(time).await;
    phase.store(OVER, Ordering::Relaxed);
    let (took, client_after, server_after) = (begun.elapsed(), own_cpu(), cpu_time(server));
    let calls = tasks.join_all().await;
    let failed = calls.iter().map(|calls| calls.failed).sum();
    let mut nanos = calls.into_iter().map(|calls| calls.nanos).collect::<Vec<_>>().concat();
    // Where nothing was answered, the figures say so: no keys, and a time without end.
    if nanos.is_empty() {
        nanos.push(u32::MAX);
    }
    let keys = (nanos.len() * work.keys()) as f64;
    let us_per_key = |before: Duration, after: Duration| (after - before).as_secs_f64() * 1e6 / keys;
    Sample {
        keys_per_second: keys / took.as_secs_f64(),
        p50_us: quantile(&mut nanos, 0.5),
        p99_us: quantile(&mut nanos, 0.99),
        client_cpu_us: us_per_key(client_before, client_after),
        server_cpu_us: us_per_key(server_before, server_after),
        failed,
    }
}

/// What one task's calls came to while they were measured.
#[derive(Default)]
struct Calls {
    /// Nanoseconds of each call that was answered rightly.
    nanos: Vec<u32>,
    failed: u64,
}

/// Calls until it is over.
async fn closed_loop<C: Caller>(
    mut caller: C,
    work: Work,
    (keys, value): (Arc<[String]>, Arc<str>),
    phase: Arc<AtomicU8>,
) -> Calls {
    let mut random = fastrand::Rng::new();
    let mut calls = Calls::default();
    let mut batch = Vec::with_capacity(work.keys());
    loop {
        batch.clear();
        batch.extend((0..work.keys()).map(|_| keys[random.usize(..keys.len())].as_str()));
        let begun = now();
        let values = match work {
            Work::Get | Work::Large => usize::from(caller.get(batch[0]).await == Some(value.len())),
            Work::GetMany => caller.get_many(&batch, value.len()).await,
            Work::Set => usize::from(caller.set(batch[0], &value).await),
            Work::SetMany if caller.set_many(&batch, &value).await => work.keys(),
            Work::SetMany => 0,
        };
        match phase.load(Ordering::Relaxed) {
            MEASURING if values == work.keys() => {
                calls.nanos.push(u32::try_from(begun.elapsed().as_nanos()).unwrap_or(u32::MAX));
            }
            MEASURING => calls.failed += 1,
            OVER => return calls,
            _ => {}
        }
    }
}

/// In microseconds.
fn quantile(nanos: &mut [u32], quantile: f64) -> f64 {
    let at = ((nanos.len() as f64 * quantile) as usize).min(nanos.len() - 1);
    f64::from(*nanos.select_nth_unstable(at).1) / 1e3
}

/// CPU time of this process, finer than `cpu_time` has it.
fn own_cpu() -> Duration {
    let usage = getrusage(UsageWho::RUSAGE_SELF).expect("the usage of this process");
    [usage.user_time(), usage.system_time()]
        .into_iter()
        .map(|time| Duration::from_micros((time.tv_sec() * 1_000_000 + time.tv_usec()).unsigned_abs()))
        .sum()
}
