//! Hit ratios of the store's policies over a trace of accesses, beside moka and quick_cache.
//!
//! Run it by `cargo xtask bench hits --trace FILE --capacity N...`.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use peanut_server::store::{Entry, Eviction, Origin, RingVersion, Store};
use serde::Serialize;
use tokio::time::Instant;

/// Hit ratios of the store's policies over a trace, beside moka and quick_cache.
///
/// Every access that misses stores the key; every entry weighs one.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask bench hits")]
struct Args {
    /// Keys in order of access, one decimal number in each line; compressed where the name ends in .zst
    #[arg(long, value_name = "FILE", required = true)]
    trace: PathBuf,
    /// Entries that the caches keep
    #[arg(long, value_name = "N", required = true, num_args = 1.., value_delimiter = ',')]
    #[arg(value_parser = clap::value_parser!(u64).range(1..=1_000_000_000))]
    capacity: Vec<u64>,
    /// Write the ratios to a file as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

#[derive(Debug, Serialize)]
struct Row {
    policy: String,
    capacity: u64,
    hit_ratio: f64,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let args = Args::parse();
    match run(&args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("{}: {why}", args.trace.display());
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> Result<(), String> {
    let trace = read(&args.trace)?;
    if trace.is_empty() {
        return Err("the trace has no keys".to_owned());
    }
    let mut rows = Vec::new();
    for capacity in &args.capacity {
        let entries = usize::try_from(*capacity).map_err(|error| error.to_string())?;
        // As many shards as a store has for so many entries of 1 KiB.
        let shards = Store::default_shards(entries.saturating_mul(1 << 10));
        for eviction in Eviction::ALL {
            rows.push(row(eviction.to_string(), *capacity, store(&trace, entries, 1, eviction)));
            let sharded = format!("{eviction}-sharded");
            rows.push(row(sharded, *capacity, store(&trace, entries, shards, eviction)));
        }
        rows.push(row("moka".to_owned(), *capacity, moka(&trace, *capacity)));
        rows.push(row("quick_cache".to_owned(), *capacity, quick_cache(&trace, entries)));
    }
    println!("{} accesses\n\n| capacity | policy | hit ratio |\n|--:|---|--:|", trace.len());
    for Row { policy, capacity, hit_ratio } in &rows {
        println!("| {capacity} | {policy} | {hit_ratio:.4} |");
    }
    if let Some(path) = &args.json {
        let file = File::create(path).map_err(|error| format!("cannot write {}: {error}", path.display()))?;
        serde_json::to_writer_pretty(file, &rows).map_err(|error| error.to_string())?;
    }
    Ok(())
}

fn row(policy: String, capacity: u64, hit_ratio: f64) -> Row {
    Row { policy, capacity, hit_ratio }
}

fn read(path: &Path) -> Result<Vec<u64>, String> {
    let file = File::open(path).map_err(|error| error.to_string())?;
    let text: Box<dyn Read> = if path.extension().is_some_and(|extension| extension == "zst") {
        let decoder = ruzstd::decoding::StreamingDecoder::new(file);
        Box::new(decoder.map_err(|error| format!("it is not compressed by zstd: {error}"))?)
    } else {
        Box::new(file)
    };
    let mut keys = Vec::new();
    for (number, line) in (1..).zip(BufReader::new(text).lines()) {
        let line = line.map_err(|error| format!("line {number}: {error}"))?;
        let key = line.trim();
        if !key.is_empty() {
            keys.push(key.parse().map_err(|_| format!("line {number}: `{key}` is not a key"))?);
        }
    }
    Ok(keys)
}

/// The part of the accesses that hit, where every miss stores the key.
fn ratio(trace: &[u64], get: impl Fn(&u64) -> bool, insert: impl Fn(u64)) -> f64 {
    let hit = |key: &&u64| {
        let hit = get(key);
        if !hit {
            insert(**key);
        }
        hit
    };
    trace.iter().filter(hit).count() as f64 / trace.len() as f64
}

fn store(trace: &[u64], entries: usize, shards: usize, eviction: Eviction) -> f64 {
    let now = Instant::now();
    let store = Store::of_entries(entries, shards, eviction, now);
    let expires = now + Duration::from_secs(1 << 20);
    let entry = Entry { value: None, loaded: now, expires, stamp: RingVersion::NONE, origin: Origin::Owner };
    ratio(
        trace,
        |key| store.get(&key.to_be_bytes(), Origin::Owner, RingVersion::NONE, now).is_some(),
        |key| store.insert(&key.to_be_bytes(), &entry),
    )
}

fn moka(trace: &[u64], entries: u64) -> f64 {
    let cache = moka::sync::Cache::new(entries);
    ratio(trace, |key| cache.get(key).is_some(), |key| cache.insert(key, ()))
}

fn quick_cache(trace: &[u64], entries: usize) -> f64 {
    let cache = quick_cache::sync::Cache::new(entries);
    ratio(trace, |key| cache.get(key).is_some(), |key| cache.insert(key, ()))
}
