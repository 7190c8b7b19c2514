//! Measures Peanut side by side with what a Rust team would use in its place: the same keys and values, the
//! same number of tasks, one server process and this client process on one machine, all systems by turns in
//! every round, medians of the rounds.
//!
//! Run it by `cargo xtask bench peers`, which builds the server and installs what is missing.

mod measure;
mod report;
mod systems;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;

use measure::{Sample, Work};
use report::Row;
use systems::{Data, Name, System};

/// Measure Peanut side by side with its peers.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask bench peers")]
struct Args {
    /// Numbers of concurrent tasks
    #[arg(long, value_delimiter = ',', default_value = "1,16,64,256,1024", value_name = "N,...")]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=10_000))]
    tasks: Vec<u32>,
    /// The systems to measure
    #[arg(long, value_delimiter = ',', value_enum, value_name = "NAME,...")]
    #[arg(default_values_t = Name::ALL)]
    systems: Vec<Name>,
    /// The kinds of work
    #[arg(long, value_delimiter = ',', value_enum, value_name = "WORK,...")]
    #[arg(default_values_t = Work::ALL)]
    work: Vec<Work>,
    /// Rounds; each measures every system once, and the medians are reported
    #[arg(long, default_value = "5", value_parser = clap::value_parser!(u32).range(1..=1000))]
    rounds: u32,
    /// Seconds of each measurement, after a fifth of that to warm up
    #[arg(long, default_value = "1.5", value_parser = seconds)]
    seconds: Duration,
    /// Bytes of each value
    #[arg(long, default_value = "100", value_parser = clap::value_parser!(u32).range(1..=1 << 20))]
    value_bytes: u32,
    /// All over TLS
    #[arg(long)]
    tls: bool,
    /// In place of rates, measure the memory that each of so many entries takes, of 16 + 100 bytes
    #[arg(long, value_name = "ENTRIES")]
    memory: Option<u64>,
    /// Write the medians to a file as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Print the ratios beside those of such a file
    #[arg(long, value_name = "FILE")]
    compare: Option<PathBuf>,
    /// The peanut-server to measure
    #[arg(long, value_name = "FILE", hide = true)]
    peanut_server: PathBuf,
}

#[tokio::main]
async fn main() -> ExitCode {
    let mut words = std::env::args().skip(1);
    if words.next().as_deref() == Some(systems::NODE) {
        return systems::groupcache_node(words).await;
    }
    let args = Args::parse();
    let json = match args.json.as_ref().map(std::fs::File::create).transpose() {
        Ok(json) => json,
        Err(error) => {
            eprintln!("cannot write {}: {error}", args.json.unwrap_or_default().display());
            return ExitCode::FAILURE;
        }
    };
    if let Some(entries) = args.memory {
        return memory(&args, entries).await;
    }
    let data = Data::new(args.value_bytes as usize, args.work.contains(&Work::Large));
    let mut systems = Vec::new();
    for name in &args.systems {
        match System::start(*name, &args.peanut_server, args.tls, &data).await {
            Ok(system) => systems.push(system),
            Err(why) => eprintln!("{name} is skipped: {why}"),
        }
    }
    if systems.is_empty() {
        eprintln!("there is nothing to measure");
        return ExitCode::FAILURE;
    }
    let rows = rounds(&args, &systems, &data).await;
    report::print(&rows);
    if let Some(recorded) = &args.compare {
        let recorded = std::fs::read(recorded).map_err(|error| error.to_string());
        match recorded.and_then(|text| serde_json::from_slice::<Vec<Row>>(&text).map_err(|e| e.to_string())) {
            Ok(recorded) => report::compare(&rows, &recorded),
            Err(error) => {
                eprintln!("the record could not be read: {error}");
                return ExitCode::FAILURE;
            }
        }
    }
    if let Some(json) = json
        && let Err(error) = serde_json::to_writer_pretty(json, &rows)
    {
        eprintln!("the JSON could not be written: {error}");
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}

/// Fills one system after the other.
async fn memory(args: &Args, entries: u64) -> ExitCode {
    println!("| system | bytes an entry of 16 + 100 |\n|---|--:|");
    for name in args.systems.iter().filter(|name| name.stores()) {
        match System::start(*name, &args.peanut_server, args.tls, &Data::none()).await {
            Ok(system) => match system.bytes_per_entry(entries).await {
                Some(bytes) => println!("| {name} | {bytes:.1} |"),
                None => println!("| {name} | not all were kept |"),
            },
            Err(why) => eprintln!("{name} is skipped: {why}"),
        }
    }
    ExitCode::SUCCESS
}

/// Measures everything once a round, each round beginning with another system.
async fn rounds(args: &Args, systems: &[System], data: &Data) -> Vec<Row> {
    let mut samples: Vec<(Work, u32, Vec<Vec<Sample>>)> = Vec::new();
    for work in &args.work {
        samples.extend(args.tasks.iter().map(|tasks| (*work, *tasks, vec![Vec::new(); systems.len()])));
    }
    for round in 0..args.rounds as usize {
        for (work, tasks, samples) in &mut samples {
            for turn in 0..systems.len() {
                let at = (round + turn) % systems.len();
                let can_do = systems[at].name().stores() || matches!(work, Work::Get | Work::GetMany);
                if !can_do {
                    continue;
                }
                let sample = systems[at].measure(*work, *tasks, args.seconds, data).await;
                eprintln!(
                    "round {} of {}: {work} at {tasks} tasks, {}: {:.0} keys/s, p50 {:.0} us, p99 {:.0} us",
                    round + 1,
                    args.rounds,
                    systems[at].name(),
                    sample.keys_per_second,
                    sample.p50_us,
                    sample.p99_us,
                );
                if sample.failed > 0 {
                    eprintln!("  of {} calls the answer was wrong or none", sample.failed);
                }
                samples[at].push(sample);
            }
        }
    }
    let rows = samples.into_iter().flat_map(|(work, tasks, of_systems)| {
        let of_systems = of_systems.into_iter().zip(systems);
        let of_systems = of_systems.filter(|(samples, _)| !samples.is_empty());
        of_systems.map(move |(samples, system)| Row::of(system.name(), work, tasks, &samples))
    });
    rows.collect()
}

fn seconds(text: &str) -> Result<Duration, String> {
    let seconds = text.parse().ok().and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
    seconds
        .filter(|duration| !duration.is_zero())
        .ok_or_else(|| "give a number of seconds above 0".to_owned())
}
