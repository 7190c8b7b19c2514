//! Counts through the crate `metrics`, for whichever recorder the application has installed.
//!
//! They are told once a second by a task of the client, so that a get costs no more than without. METRICS.md
//! has the table.

use std::sync::Weak;
use std::time::Duration;

use ::metrics::{Counter, Gauge, counter, describe_counter, describe_gauge, gauge};
use tokio::time::{Instant, MissedTickBehavior, interval};

use crate::shared::Shared;
use crate::stats::Stats;

const EVERY: Duration = Duration::from_secs(1);

/// What is counted: its name, an outcome where it has one, and where it is found.
type Count = (&'static str, Option<&'static str>, fn(&Stats) -> u64);

const GETS: &str = "peanut_client_gets_total";
const COUNTS: [Count; 14] = [
    (GETS, Some("hit"), |stats| stats.hits),
    (GETS, Some("stale"), |stats| stats.stale),
    (GETS, Some("loaded"), |stats| stats.loaded),
    (GETS, Some("coalesced"), |stats| stats.coalesced),
    (GETS, Some("negative"), |stats| stats.not_found),
    (GETS, Some("near"), |stats| stats.near_hits),
    ("peanut_client_near_invalidations_total", None, |stats| stats.near_invalidations),
    ("peanut_client_near_renewals_total", None, |stats| stats.near_renewals),
    ("peanut_client_errors_total", None, |stats| stats.errors),
    ("peanut_client_writes_total", None, |stats| stats.writes),
    ("peanut_client_failovers_total", None, |stats| stats.failovers),
    ("peanut_client_hints_total", None, |stats| stats.hints),
    ("peanut_client_hand_overs_total", None, |stats| stats.hand_overs),
    ("peanut_client_uncached_loads_total", None, |stats| stats.uncached),
];

fn describe() {
    describe_counter!(GETS, "Gets by how they ended");
    describe_counter!("peanut_client_errors_total", "Operations that failed");
    describe_counter!("peanut_client_writes_total", "Sets and deletes that were done");
    describe_counter!("peanut_client_failovers_total", "Gets answered by the successor");
    describe_counter!("peanut_client_hints_total", "Writes for which a hint was stored in the registry");
    describe_counter!("peanut_client_hand_overs_total", "Values that previous owners had");
    describe_counter!("peanut_client_uncached_loads_total", "Values loaded where no node could be asked");
    describe_counter!("peanut_client_near_invalidations_total", "Near copies dropped for a write");
    describe_counter!("peanut_client_near_renewals_total", "Near leases that were renewed");
    describe_gauge!("peanut_client_near_copies", "Near copies");
    describe_gauge!("peanut_client_near_bytes", "Bytes that near copies take");
    describe_gauge!("peanut_client_ring_version", "Version of the ring");
    describe_gauge!("peanut_client_ring_fingerprint", "Equal for equal rings");
    describe_gauge!("peanut_client_nodes", "Nodes of the ring, by whether they can be used");
    describe_gauge!("peanut_client_in_flight", "Operations sent and not answered");
    describe_gauge!("peanut_client_registry_age_seconds", "Since the registry could not be read");
}

/// Tells the counts of a client for as long as it lives.
pub(crate) async fn publish(client: Weak<Shared>, fleet: String) {
    describe();
    let counters: Vec<Counter> = COUNTS
        .iter()
        .map(|(name, outcome, _)| match outcome {
            Some(outcome) => counter!(*name, "fleet" => fleet.clone(), "outcome" => *outcome),
            None => counter!(*name, "fleet" => fleet.clone()),
        })
        .collect();
    let gauge = |name: &'static str| gauge!(name, "fleet" => fleet.clone());
    let nodes =
        |state: &'static str| gauge!("peanut_client_nodes", "fleet" => fleet.clone(), "state" => state);
    let (version, fingerprint) =
        (gauge("peanut_client_ring_version"), gauge("peanut_client_ring_fingerprint"));
    let (in_flight, age) = (gauge("peanut_client_in_flight"), gauge("peanut_client_registry_age_seconds"));
    let (copies, bytes) = (gauge("peanut_client_near_copies"), gauge("peanut_client_near_bytes"));
    let (up, down): (Gauge, Gauge) = (nodes("up"), nodes("down"));
    let mut told = Stats::default();
    let mut tick = interval(EVERY);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tick.tick().await;
        let Some(client) = client.upgrade() else { return };
        let stats = client.stats();
        for (counter, (_, _, read)) in counters.iter().zip(COUNTS) {
            counter.increment(read(&stats) - read(&told));
        }
        copies.set(stats.near_copies as f64);
        bytes.set(stats.near_bytes as f64);
        told = stats;
        let (routing, discovered) = (client.routing.get(), client.discovered());
        version.set(routing.ring.version().0 as f64);
        fingerprint.set(f64::from(discovered.view.ring.fingerprint()));
        age.set(discovered.age(Instant::now()).as_secs_f64());
        let is_down = routing.nodes().iter().filter(|node| node.is_down()).count();
        up.set((routing.nodes().len() - is_down) as f64);
        down.set(is_down as f64);
        in_flight.set(routing.nodes().iter().map(|node| node.in_flight()).sum::<usize>() as f64);
    }
}
