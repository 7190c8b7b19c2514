//! Random scenarios: a fleet of real processes with a real etcd goes through faults that overlap, while
//! applications, which are processes too, read and write, and what they saw is checked. A seed makes the same
//! plan again; when what happens, machines decide.

mod application;
mod fleet;
mod origin;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use peanut_proto::clock::uptime;
use peanut_simulation::history::{Kind, Op, Violation, check};
use tokio::time::sleep;

pub use application::Application;
use fleet::{Begun, Fleet};

use crate::eventually;

/// Keys of the one group; a multiple of the number of applications.
const KEYS: u32 = 120;
const APPLICATIONS: u32 = 4;
/// Faults begin within this time.
const TROUBLE: Duration = Duration::from_millis(6000);
/// What was mended last has its effects for so long.
const SETTLE: Duration = Duration::from_millis(2500);
const FAILOVER_TTL: Duration = Duration::from_secs(1);
/// A scenario goes on until so many have been answered.
const READS: usize = 500;
const WRITES: usize = 100;
/// Beyond `failover_ttl` an outdated copy may be on its way for a moment.
const SLACK: Duration = Duration::from_millis(300);

/// What is done to the fleet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Nothing.
    Nothing,
    /// A node joins.
    Join,
    /// A node is drained.
    Drain,
    /// SIGTERM, and a start.
    Restart,
    /// SIGKILL, and a start.
    Kill,
    /// SIGSTOP, and SIGCONT.
    Sleep,
    /// etcd is killed, and started again.
    EtcdRestart,
    /// No client reaches the node, or what they and it send each other arrives later.
    CutNode,
    /// One application does not reach one node, or what they send each other arrives later.
    CutLink,
    /// An application is cut off from etcd.
    CutClientFromEtcd,
    /// A node is cut off from etcd.
    CutNodeFromEtcd,
    /// SIGKILL to an application, and a start.
    KillClient,
    /// SIGSTOP to an application, and SIGCONT.
    SleepClient,
}

const ALL: [Fault; 13] = [
    Fault::Join,
    Fault::Drain,
    Fault::Restart,
    Fault::Kill,
    Fault::Sleep,
    Fault::EtcdRestart,
    Fault::CutNode,
    Fault::CutLink,
    Fault::CutLink,
    Fault::CutClientFromEtcd,
    Fault::CutNodeFromEtcd,
    Fault::KillClient,
    Fault::SleepClient,
];

/// How a scenario went.
#[derive(Debug)]
pub struct Outcome {
    /// What was done, from when to when, in seconds.
    pub faults: Vec<(Fault, f32, f32)>,
    /// Reads that saw what they must not have seen.
    pub violations: Vec<Violation>,
    /// Reads and writes, and how many of each failed.
    pub reads: (usize, usize),
    /// As `reads`.
    pub writes: (usize, usize),
    /// Loads at the origin.
    pub loads: u64,
    /// Keys that were loaded more often than once, and once more for each write and each ring that there was.
    pub loaded_too_often: Vec<u32>,
}

/// A scenario's parameters.
#[derive(Clone, Debug)]
pub struct Scenario {
    /// The `peanut-server` to run.
    pub server: PathBuf,
    /// The program whose subcommand `application` runs an [`Application`].
    pub program: PathBuf,
    /// What is random follows from it.
    pub seed: u64,
    /// The faults to choose from; all where it is empty.
    pub faults: Vec<Fault>,
    /// How many of them come to pass; from five to eight at random where it is not said.
    pub count: Option<usize>,
    /// Whether writes are done at successors too; at random where it is not said.
    pub is_strict: Option<bool>,
    /// Whether every other application has a near cache.
    pub is_near: bool,
    /// What the servers lack of what keeps answers right.
    pub sabotage: Option<&'static str>,
}

impl Scenario {
    /// A scenario of all faults.
    pub fn new(server: impl Into<PathBuf>, program: impl Into<PathBuf>, seed: u64) -> Self {
        Scenario {
            server: server.into(),
            program: program.into(),
            seed,
            faults: Vec::new(),
            count: None,
            is_strict: None,
            is_near: false,
            sabotage: None,
        }
    }

    /// Runs it.
    ///
    /// # Panics
    /// Where the fleet does not come up.
    pub async fn run(self) -> Outcome {
        let mut random = fastrand::Rng::with_seed(self.seed);
        let choice = if self.faults.is_empty() { ALL.to_vec() } else { self.faults.clone() };
        let is_strict = random.bool();
        let is_strict = self.is_strict.unwrap_or(is_strict);
        let count = self.count.unwrap_or_else(|| random.usize(5..9));
        let mut fleet = Fleet::start(self, is_strict, &mut random).await;
        let faults = go_through(&mut fleet, &choice, count, &mut random).await;
        sleep(SETTLE).await;
        // On a busy machine that takes longer than all that was planned.
        eventually("the applications to read and write", async || {
            let told = fleet.told();
            let (reads, writes) = (
                of(&told, |kind| matches!(kind, Kind::Read(_))),
                of(&told, |kind| matches!(kind, Kind::Written(_))),
            );
            (reads >= READS && writes >= WRITES).then_some(())
        })
        .await;
        fleet.stop_applications();
        let told = fleet.told();
        let versions = &fleet.origin.versions;
        let rings = fleet.client.ring().version().0;
        // Every write raises the version by one.
        let allowed = |key: u32| versions.version(key) + rings;
        let bound = if is_strict { Duration::ZERO } else { FAILOVER_TTL + SLACK };
        let all: Vec<_> = versions.made.ops().into_iter().chain(told.iter().copied()).collect();
        Outcome {
            faults,
            violations: check(&all, bound),
            reads: (
                of(&told, |kind| matches!(kind, Kind::Read(_) | Kind::ReadFailed)),
                of(&told, |kind| matches!(kind, Kind::ReadFailed)),
            ),
            writes: (
                of(&told, |kind| matches!(kind, Kind::Written(_) | Kind::WriteFailed(_))),
                of(&told, |kind| matches!(kind, Kind::WriteFailed(_))),
            ),
            loads: (0..KEYS).map(|key| versions.loads(key)).sum(),
            loaded_too_often: (0..KEYS).filter(|key| versions.loads(*key) > allowed(*key)).collect(),
        }
    }
}

/// How many of the operations are wanted ones.
fn of(told: &[Op], wanted: fn(&Kind) -> bool) -> usize {
    told.iter().filter(|op| wanted(&op.kind)).count()
}

/// Begins faults at random times, and ends each when it is time. Gives what was done.
async fn go_through(
    fleet: &mut Fleet,
    choice: &[Fault],
    count: usize,
    random: &mut fastrand::Rng,
) -> Vec<(Fault, f32, f32)> {
    enum Step {
        Begin(Fault, Duration),
        End(Begun, f32),
    }
    let (mut steps, mut done) = (BTreeMap::new(), Vec::new());
    let millis = Duration::from_millis;
    for number in 0..count {
        let from = millis(300 + random.u64(..TROUBLE.as_millis() as u64));
        let longest = if random.u8(..3) == 0 { 3500 } else { 2000 };
        let long = millis(random.u64(50..longest));
        steps.insert((from, number), Step::Begin(choice[random.usize(..choice.len())], long));
    }
    let began = uptime();
    let seconds = || (uptime() - began).as_secs_f32();
    while let Some(((at, number), step)) = steps.pop_first() {
        sleep((began + at).saturating_sub(uptime())).await;
        match step {
            Step::Begin(fault, long) => {
                let from = seconds();
                if let Some(begun) = fleet.begin(fault, random).await {
                    steps.insert((at + long, number), Step::End(begun, from));
                    done.push((fault, from, from));
                }
            }
            Step::End(begun, from) => {
                fleet.end(begun).await;
                let until = seconds();
                done.iter_mut().filter(|(_, began, _)| *began == from).for_each(|(.., end)| *end = until);
            }
        }
    }
    done
}
