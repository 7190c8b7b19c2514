//! Measures near copies beside the client-side caches of Redis clients and beside caches in one process: how
//! fast a hit is, how many reads are stale, what a hot key costs a fleet, and how much memory copies take.
//!
//! Run it by `cargo xtask bench near PART`, or `bench stale` for that part.

mod hot;
mod memory;
mod servers;
mod speed;
mod stale;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, Subcommand};

/// Measure near copies.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask bench near")]
struct Args {
    /// The peanut-server to measure
    #[arg(long, value_name = "FILE", hide = true)]
    peanut_server: PathBuf,
    #[command(subcommand)]
    part: Part,
}

#[derive(Debug, Subcommand)]
enum Part {
    /// How long a hit takes, beside moka, quick_cache, and the client-side caches of redis-rs and rustis
    Speed {
        /// Rounds; each measures every cache once, and the medians are reported
        #[arg(long, default_value = "7")]
        rounds: usize,
    },
    /// How many reads show less than the last acknowledged write
    Stale {
        /// Writes of one key
        #[arg(long, default_value = "1000000")]
        writes: u64,
        /// The systems
        #[arg(long, value_delimiter = ',', value_enum, default_values_t = stale::System::ALL)]
        systems: Vec<stale::System>,
    },
    /// What one key costs that is most of what sixteen clients of three nodes ask for
    Hot {
        /// Seconds of each measurement
        #[arg(long, default_value = "5")]
        seconds: u64,
    },
    /// How much memory copies take, at clients and at the node
    Memory,
    /// A reader of `stale`, in a process of its own
    #[command(hide = true)]
    Reader {
        #[arg(long, value_enum)]
        system: stale::System,
        #[arg(long)]
        addr: String,
        #[arg(long)]
        file: PathBuf,
    },
}

fn main() -> ExitCode {
    let args = Args::parse();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let runtime = runtime.expect("a runtime");
    match &args.part {
        Part::Speed { rounds } => speed::run(&runtime, &args.peanut_server, *rounds),
        Part::Stale { writes, systems } => {
            runtime.block_on(stale::run(&args.peanut_server, *writes, systems));
        }
        Part::Hot { seconds } => {
            runtime.block_on(hot::run(&args.peanut_server, Duration::from_secs(*seconds)));
        }
        Part::Memory => runtime.block_on(memory::run(&args.peanut_server)),
        Part::Reader { system, addr, file } => runtime.block_on(stale::read(*system, addr, file)),
    }
    ExitCode::SUCCESS
}

fn median(mut of: Vec<f64>) -> f64 {
    of.sort_by(f64::total_cmp);
    of[of.len() / 2]
}
