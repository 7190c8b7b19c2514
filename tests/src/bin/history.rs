//! `cargo xtask history`: random scenarios under the history checker, one after the other.

use std::process::ExitCode;

use clap::Parser;
use peanut_tests::history::Scenario;

/// Runs random scenarios and checks what clients saw.
#[derive(Debug, Parser)]
struct Args {
    /// The first seed; the others follow
    #[arg(long, default_value = "1")]
    seed: u64,
    /// How many scenarios
    #[arg(long, default_value = "200")]
    scenarios: u64,
}

#[tokio::main]
async fn main() -> ExitCode {
    let Args { seed, scenarios } = Args::parse();
    let server = std::env::current_exe().expect("the path of this program");
    let server = server.with_file_name("peanut-server-under-test");
    let mut bad = Vec::new();
    let (mut reads, mut writes) = ((0, 0), (0, 0));
    for seed in seed..seed + scenarios {
        let outcome = Scenario::new(server.clone(), seed).run().await;
        println!(
            "seed {seed}: {:?}: {} reads ({} failed), {} writes ({} failed), {} loads, {} violations",
            outcome.faults,
            outcome.reads.0,
            outcome.reads.1,
            outcome.writes.0,
            outcome.writes.1,
            outcome.loads,
            outcome.violations.len()
        );
        outcome.violations.iter().take(3).for_each(|violation| println!("  {violation}"));
        if !outcome.violations.is_empty() {
            bad.push(seed);
        }
        reads = (reads.0 + outcome.reads.0, reads.1 + outcome.reads.1);
        writes = (writes.0 + outcome.writes.0, writes.1 + outcome.writes.1);
    }
    println!(
        "{scenarios} scenarios, {reads:?} reads and {writes:?} writes (all, failed); bad seeds: {bad:?}"
    );
    if bad.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
