//! The main job, seen: an application reads 10,000 rows of a database through three nodes; a fourth joins;
//! one is killed. Everything is on this machine, and gone at the end.
//!
//! With etcd on the path the nodes are processes joined by etcd; without it they live in this process, on
//! ports of their own, joined by the embedded registry. `--processes` and `--in-process` insist on one.

mod application;
mod database;
mod fleet;
mod report;

use std::process::ExitCode;
use std::time::Duration;

use application::Application;
use database::Database;
use fleet::Fleet;
use peanut_client::Client;
use report::{Phase, heading, print_ring, say};
use tokio::time::timeout;

type Result<T> = std::result::Result<T, Box<dyn std::error::Error + Send + Sync>>;

const ROWS: usize = 10_000;
const NODES: usize = 3;
/// How long something that was begun may take to be done.
const PATIENCE: Duration = Duration::from_secs(20);

#[tokio::main]
async fn main() -> ExitCode {
    let done = tokio::select! {
        done = run() => done,
        _ = tokio::signal::ctrl_c() => Err("stopped".into()),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("demo: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn run() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let database = Database::fill(directory.path(), ROWS).await?;
    say(&format!("a SQLite database with {ROWS} rows"));
    let wanted = std::env::args().nth(1);
    let mut fleet = Fleet::start(directory.path(), &database, wanted.as_deref()).await?;
    say(&fleet.describe());
    for _ in 0..NODES {
        fleet.add_node().await?;
    }
    let client = fleet.client().await?;
    timeout(PATIENCE, client.wait_for_ring(NODES as u64)).await??;
    print_ring(&client);
    let application = Application::new(client.clone(), ROWS);

    heading("An application reads, 64 callers at once, some keys far more often than others");
    let cold = application.run(Duration::from_secs(8)).await;
    cold.print();
    let distinct = application.distinct_keys_read();
    let loads = client.stats().loaded;
    say(&format!("{loads} loads for {distinct} distinct keys, which were read {} times", cold.reads));

    heading("A fourth node joins while it goes on");
    let before = owners(&client);
    let (seen_after, joining) =
        tokio::join!(join(&mut fleet, &client), application.run(Duration::from_secs(6)));
    let seen_after = seen_after?;
    joining.print();
    let after = owners(&client);
    let moved = before.iter().zip(&after).filter(|(was, is)| was != is).count();
    let share = 100.0 * moved as f64 / before.len() as f64;
    say(&format!("{seen_after:.0?} after its start the client used it; {share:.1} % of the keys have moved"));
    print_ring(&client);

    heading("One node is killed, as by kill -9, while it goes on");
    let (killed, losing) = tokio::join!(kill(&mut fleet), application.run(Duration::from_secs(8)));
    losing.print();
    let failovers = client.stats().failovers;
    say(&format!("{killed} is gone; its successors answered {failovers} reads in its place"));
    say(&format!("errors seen by the application: {}", none_or(client.stats().errors)));
    print_ring(&client);

    drop(client);
    fleet.stop().await;
    directory.close()?;
    say("all nodes stopped, all files removed");
    verdict(distinct, loads, share, failovers, &[cold, joining, losing])
}

async fn join(fleet: &mut Fleet, client: &Client) -> Result<Duration> {
    tokio::time::sleep(Duration::from_secs(1)).await;
    let started = tokio::time::Instant::now();
    fleet.add_node().await?;
    timeout(PATIENCE, client.wait_for_ring(NODES as u64 + 1)).await??;
    Ok(started.elapsed())
}

async fn kill(fleet: &mut Fleet) -> String {
    tokio::time::sleep(Duration::from_secs(1)).await;
    fleet.kill_node(0)
}

fn owners(client: &Client) -> Vec<String> {
    let ring = client.ring();
    let places = (0..ROWS).filter_map(|n| ring.place(database::GROUP, database::key(n).as_bytes()));
    places.map(|place| ring.members()[place.owner].id.clone()).collect()
}

fn none_or(count: u64) -> String {
    if count == 0 { "none".to_owned() } else { count.to_string() }
}

/// A demo that showed something else than it promises has failed.
fn verdict(distinct: usize, loads: u64, moved_percent: f64, failovers: u64, phases: &[Phase]) -> Result<()> {
    let most = 100.0 / (NODES as f64 + 1.0) + 3.0;
    if moved_percent > most {
        return Err(format!("{moved_percent:.1} % of the keys moved, more than {most:.1} %").into());
    }
    if failovers == 0 {
        return Err("no successor answered for the node that was killed".into());
    }
    if loads != distinct as u64 {
        return Err(format!("{loads} loads for {distinct} distinct keys").into());
    }
    match phases.iter().map(|phase| phase.errors).sum() {
        0_u64 => Ok(()),
        errors => Err(format!("the application saw {errors} errors").into()),
    }
}
