//! `cargo xtask simulate`: many simulated scenarios under the history checker.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use clap::Parser;
use parking_lot::Mutex;
use peanut_proto::sabotage::Mechanism;
use peanut_simulation::{Outcome, Scenario, current};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::FormatTime;

/// A scenario allocates for each message and each task of its nodes.
#[cfg(not(target_env = "msvc"))]
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// Simulates fleets through overlapping faults and checks what clients saw.
#[derive(Debug, Parser)]
struct Args {
    /// How many seeds
    #[arg(long, default_value = "1000")]
    seeds: u64,
    /// The first seed
    #[arg(long, default_value = "1")]
    from: u64,
    /// Only this seed
    #[arg(long)]
    seed: Option<u64>,
    /// Print everything that happens; with `--seed`
    #[arg(long, requires = "seed")]
    trace: bool,
    /// Print no more than a digest of the history; with `--seed`
    #[arg(long, requires = "seed")]
    digest: bool,
    /// Faults in each; from five to nine, as the seed has it, where this is not given
    #[arg(long)]
    faults: Option<usize>,
    /// Turn off one of the things that keep answers right, and go on until a scenario is bad; it is an error
    /// where none is
    #[arg(long)]
    without: Option<String>,
    /// Write the history of each bad seed to a file in this directory
    #[arg(long, value_name = "DIRECTORY")]
    histories: Option<PathBuf>,
    /// Run every seed twice more, in processes of their own, and compare what happened
    #[arg(long)]
    twice: bool,
    /// Threads; as many as the machine has, where this is not given
    #[arg(long)]
    threads: Option<usize>,
}

fn main() -> ExitCode {
    let args = Args::parse();
    let named = |name: &String| Mechanism::ALL.into_iter().find(|mechanism| mechanism.name() == *name);
    let without = match args.without.as_ref().map(|name| (name, named(name))) {
        Some((name, None)) => {
            let names = Mechanism::ALL.map(Mechanism::name).join(", ");
            eprintln!("simulate: there is no `{name}`; one of {names}");
            return ExitCode::from(2);
        }
        other => other.and_then(|(_, mechanism)| mechanism),
    };
    let scenario = |seed| Scenario { seed, faults: args.faults, without };
    if let Some(seed) = args.seed {
        return run_one(&args, seed, &scenario(seed));
    }
    let threads = args.threads.or_else(|| thread::available_parallelism().ok().map(Into::into)).unwrap_or(1);
    let (next, end) = (AtomicU64::new(args.from), args.from + args.seeds);
    let (bad, different) = (Mutex::new(Vec::new()), Mutex::new(Vec::new()));
    let totals = Mutex::new(Totals::default());
    let begun = now();
    thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= end || (without.is_some() && !bad.lock().is_empty()) {
                        return;
                    }
                    // A thread of its own for each: what is random in it is so from the beginning.
                    let outcome = thread::scope(|one| one.spawn(|| scenario(seed).run()).join());
                    // In processes of their own, as whoever looks into a seed runs it.
                    if args.twice && digest(seed) != digest(seed) {
                        println!("seed {seed} does not give the same history twice");
                        different.lock().push(seed);
                    }
                    totals.lock().add(outcome.as_ref().ok());
                    match outcome {
                        Ok(outcome) => {
                            if !outcome.is_good() {
                                bad.lock().push(seed);
                                report(seed, &outcome);
                                args.keep_history(seed, &outcome);
                            }
                        }
                        Err(_) => bad.lock().push(seed),
                    }
                }
            });
        }
    });
    let mut bad = bad.into_inner();
    bad.sort_unstable();
    println!("{}; bad seeds: {bad:?}", totals.into_inner().after(begun.elapsed()));
    let is_good = different.into_inner().is_empty() && bad.is_empty() == without.is_none();
    if is_good { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// What all scenarios came to.
#[derive(Default)]
struct Totals {
    scenarios: u64,
    operations: usize,
    simulated: Duration,
    of_many_rings: usize,
}

impl Totals {
    /// Adds what came of a scenario, unless it has failed.
    fn add(&mut self, outcome: Option<&Outcome>) {
        self.scenarios += 1;
        if let Some(outcome) = outcome {
            self.operations += outcome.operations.0;
            self.simulated += outcome.time;
            self.of_many_rings += outcome.of_many_rings;
        }
    }

    /// As a sentence, when they took so long.
    fn after(&self, took: Duration) -> String {
        let Totals { scenarios, operations, simulated, of_many_rings } = self;
        let speed = simulated.as_secs_f64() / took.as_secs_f64();
        format!(
            "{scenarios} scenarios with {operations} operations in {took:.1?}: {simulated:.0?} simulated, {speed:.0} times as fast \
             as real time; {of_many_rings} reads not counted, of two rings at once"
        )
    }
}

impl Args {
    fn keep_history(&self, seed: u64, outcome: &Outcome) {
        if let Some(directory) = &self.histories {
            std::fs::write(directory.join(seed.to_string()), &outcome.history)
                .expect("the history is written");
        }
    }
}

/// Runs one seed, and shows what is asked for of it.
fn run_one(args: &Args, seed: u64, scenario: &Scenario) -> ExitCode {
    if args.digest {
        let mut hasher = xxhash_rust::xxh3::Xxh3::new();
        hasher.update(scenario.run().history.as_bytes());
        println!("{:016x}", hasher.digest());
        return ExitCode::SUCCESS;
    }
    if args.trace {
        let filter = tracing_subscriber::EnvFilter::try_from_default_env();
        let filter = filter.unwrap_or_else(|_| {
            "peanut_server=trace,peanut_client=trace,peanut_proto=trace,peanut_simulation=trace".into()
        });
        tracing_subscriber::fmt()
            .with_env_filter(filter)
            .with_timer(VirtualTime)
            .with_ansi(false)
            .with_writer(std::io::stdout)
            .init();
    }
    let outcome = scenario.run();
    if args.trace {
        print!("{}", outcome.history);
    }
    report(seed, &outcome);
    println!("{:?}, {} loads", outcome.operations, outcome.loads);
    if outcome.is_good() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Of the history of a seed, from a process of its own.
fn digest(seed: u64) -> Vec<u8> {
    let program = std::env::current_exe().expect("the path of this program");
    let output = std::process::Command::new(program).args(["--digest", "--seed", &seed.to_string()]).output();
    output.expect("it can be run").stdout
}

/// The time of the simulation, and whose turn it is.
struct VirtualTime;

impl FormatTime for VirtualTime {
    fn format_time(&self, to: &mut Writer<'_>) -> std::fmt::Result {
        match current() {
            Some((host, time)) => write!(to, "{:9.3} h{host}", time.as_secs_f64()),
            None => write!(to, "{:9} --", ""),
        }
    }
}

#[expect(clippy::disallowed_methods, reason = "how long the simulation takes is a matter of real time")]
fn now() -> Instant {
    Instant::now()
}

fn report(seed: u64, outcome: &Outcome) {
    println!("seed {seed}{}:", if outcome.is_strict { ", strict" } else { "" });
    for planned in &outcome.faults {
        println!(
            "  {:7.3} to {:7.3} s: {:?}",
            planned.from.as_secs_f64() + 1.0,
            planned.until.as_secs_f64() + 1.0,
            planned.fault
        );
    }
    for (client, violation) in outcome.violations.iter().take(5) {
        println!("  client {client}: {violation}");
    }
    outcome.outdated.iter().take(5).for_each(|outdated| println!("  at the end, {outdated}"));
    println!("  {} violations, {} at the end", outcome.violations.len(), outcome.outdated.len());
}
