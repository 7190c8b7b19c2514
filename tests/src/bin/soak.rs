//! `cargo xtask soak`: mixed work and faults for an hour, and whether anything has grown.

use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use peanut_tests::soak;

/// Keeps a fleet busy and in trouble, and tells what has grown.
#[derive(Debug, Parser)]
struct Args {
    /// How many minutes
    #[arg(long, default_value = "60")]
    minutes: u64,
}

#[tokio::main]
async fn main() -> ExitCode {
    let Args { minutes } = Args::parse();
    let server = std::env::current_exe().expect("the path of this program");
    let server = server.with_file_name("peanut-server-under-test");
    let outcome = soak::run(&server, Duration::from_secs(minutes * 60)).await;
    println!("second, MiB resident, descriptors, threads, tasks");
    let step = (outcome.samples.len() / 60).max(1);
    for (second, sample) in outcome.samples.iter().enumerate().step_by(step) {
        let soak::Sample { resident_bytes, descriptors, threads, tasks } = sample;
        println!("{second}, {}, {descriptors}, {threads}, {tasks}", resident_bytes >> 20);
    }
    println!("at rest: {:?}", outcome.at_rest);
    println!("{} calls, {} of them failed, {} wrong values", outcome.calls.0, outcome.calls.1, outcome.wrong);
    let complaints = outcome.complaints();
    complaints.iter().for_each(|complaint| println!("{complaint}"));
    if complaints.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
