//! `cargo xtask history`: random scenarios under the history checker, some at the same time.

use std::panic::AssertUnwindSafe;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use futures_util::stream::iter;
use futures_util::{FutureExt as _, StreamExt as _};
use peanut_tests::history::{Application, Scenario};

/// Runs random scenarios and checks what clients saw.
#[derive(Debug, Parser)]
struct Args {
    /// The first seed; the others follow
    #[arg(long, default_value = "1")]
    seed: u64,
    /// How many scenarios
    #[arg(long, default_value = "300")]
    scenarios: u64,
    /// How many of them at the same time
    #[arg(long, default_value = "2")]
    at_once: usize,
    /// Every other application has a near cache
    #[arg(long)]
    near: bool,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// One application of a scenario, until its standard input ends
    #[command(hide = true)]
    Application(Application),
}

#[tokio::main]
async fn main() -> ExitCode {
    let Args { seed, scenarios, at_once, near, command } = Args::parse();
    if let Some(Command::Application(application)) = command {
        application.run().await;
        return ExitCode::SUCCESS;
    }
    let program = std::env::current_exe().expect("the path of this program");
    let server = program.with_file_name("peanut-server-under-test");
    let run = |seed| {
        let scenario = Scenario { is_near: near, ..Scenario::new(server.clone(), program.clone(), seed) };
        async move { (seed, AssertUnwindSafe(scenario.run()).catch_unwind().await) }
    };
    let mut outcomes = iter(seed..seed + scenarios).map(run).buffer_unordered(at_once.max(1));
    let (mut bad, mut reads, mut writes) = (Vec::new(), (0, 0), (0, 0));
    while let Some((seed, outcome)) = outcomes.next().await {
        let Ok(outcome) = outcome else {
            bad.push(seed);
            continue;
        };
        println!(
            "seed {seed}: {} faults, {} reads ({} failed), {} writes ({} failed), {} loads, {} violations",
            outcome.faults.len(),
            outcome.reads.0,
            outcome.reads.1,
            outcome.writes.0,
            outcome.writes.1,
            outcome.loads,
            outcome.violations.len()
        );
        if !outcome.violations.is_empty() {
            outcome
                .faults
                .iter()
                .for_each(|(fault, from, until)| println!("  {from:.3} to {until:.3} s: {fault:?}"));
            outcome.violations.iter().take(5).for_each(|violation| println!("  {violation}"));
            bad.push(seed);
        }
        reads = (reads.0 + outcome.reads.0, reads.1 + outcome.reads.1);
        writes = (writes.0 + outcome.writes.0, writes.1 + outcome.writes.1);
    }
    bad.sort_unstable();
    println!(
        "{scenarios} scenarios, {reads:?} reads and {writes:?} writes (all, failed); bad seeds: {bad:?}"
    );
    if bad.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
