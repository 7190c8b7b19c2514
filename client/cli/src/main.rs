//! `peanut`: look into a fleet from the command line.
//!
//! Exit codes: 0 done, 1 not found, 2 failed, with one line on stderr.

mod args;
mod bench;
mod certify;
mod connect;
#[cfg(test)]
mod document;
mod failure;
mod fleet;
mod get;
mod output;
mod proxy;
mod ring;
mod stat;
mod top;

use std::process::ExitCode;

use args::{Args, Command};
use clap::CommandFactory as _;
use failure::Failure;
use peanut_client::Client;

/// A proxy allocates for each request: a tenth of its time went into the system's allocator.
#[cfg(not(target_env = "msvc"))]
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

const NOT_FOUND: u8 = 1;
const FAILED: u8 = 2;

fn main() -> ExitCode {
    let args = match Args::read() {
        Ok(args) => args,
        Err(args::Stop::Say(text)) => {
            output::print_text(&text.to_string());
            return ExitCode::SUCCESS;
        }
        Err(args::Stop::Refuse(why)) => return fail(&why),
    };
    let runtime = match tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return fail(&error.to_string()),
    };
    let done = runtime.block_on(run(&args));
    // Background connections have nothing left to do.
    runtime.shutdown_background();
    match done {
        Ok(code) => code,
        Err(error) => fail(&error.to_string()),
    }
}

async fn run(args: &Args) -> Result<ExitCode, Failure> {
    if let Command::Completions { shell } = &args.command {
        let mut script = Vec::new();
        clap_complete::generate(*shell, &mut Args::command(), "peanut", &mut script);
        output::print_text(&String::from_utf8_lossy(&script));
        return Ok(ExitCode::SUCCESS);
    }
    if let Command::Man { dir } = &args.command {
        let written =
            std::fs::create_dir_all(dir).and_then(|()| clap_mangen::generate_to(Args::command(), dir));
        written.map_err(|error| Failure::new(format!("{}: {error}", dir.display())))?;
        return Ok(ExitCode::SUCCESS);
    }
    if let Command::Certify { name, hosts, dir, days } = &args.command {
        return Ok(
            certify::run(name, hosts, dir, *days).map_or_else(|why| fail(&why), |()| ExitCode::SUCCESS)
        );
    }
    let client = connect::connect(args).await?;
    match &args.command {
        Command::Get { group, key } => get::run(&client, group, key, args.json).await,
        Command::Set { group, key, value, ttl } => {
            let group = client.group(group);
            let set = match ttl {
                Some(ttl) => group.set_with_ttl(key, value, *ttl).await,
                None => group.set(key, value).await,
            };
            Ok(set.map(|()| ExitCode::SUCCESS)?)
        }
        Command::Delete { group, keys } => {
            let deleted = client.group(group).delete_many(keys).await;
            deleted.into_iter().collect::<Result<(), _>>()?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Clear { group } => Ok(client.group(group).clear().await.map(|()| ExitCode::SUCCESS)?),
        Command::Drain { node, wait } => {
            client.drain(node).await?;
            tokio::time::sleep(wait.unwrap_or_default()).await;
            Ok(ExitCode::SUCCESS)
        }
        Command::Health => health(&client).await,
        Command::Remove { node } => Ok(client.remove(node).await.map(|()| ExitCode::SUCCESS)?),
        Command::Stat { interval, count } => stat::stat(&client, *interval, *count, args.json).await,
        Command::Top => top::run(&client, &args.fleet).await,
        Command::Nodes => stat::nodes(&client, args.json).await,
        Command::Hotkeys { group, top } => stat::hot_keys(&client, group.as_deref(), *top, args.json).await,
        Command::Completions { .. } | Command::Man { .. } | Command::Certify { .. } => Ok(ExitCode::SUCCESS),
        Command::Proxy(proxy) => proxy::run(client, proxy).await,
        Command::Bench(bench) => bench::run(&client, bench, args.json).await,
        Command::Ring { group, key } => {
            let key = group.as_deref().zip(key.as_deref());
            Ok(ring::run(&client, &args.fleet, key, args.json).await)
        }
    }
}

/// Whether all nodes serve.
async fn health(client: &Client) -> Result<ExitCode, Failure> {
    client.probe().await;
    let nodes = client.nodes();
    let silent: Vec<_> = nodes.iter().filter(|node| !node.up).map(|node| &*node.id).collect();
    if silent.is_empty() {
        return Ok(ExitCode::SUCCESS);
    }
    Err(Failure::new(format!(
        "{} of {} nodes do not serve: {}",
        silent.len(),
        nodes.len(),
        silent.join(", ")
    )))
}

fn fail(why: &str) -> ExitCode {
    let line = why.split_whitespace().collect::<Vec<_>>().join(" ");
    eprintln!("peanut: {}", output::escaped(&line));
    ExitCode::from(FAILED)
}
