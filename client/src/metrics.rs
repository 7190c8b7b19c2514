//! Counts through the crate `metrics`, for whichever recorder the application has installed.
//!
//! They are told once a second by a task of the client, so that a get costs no more than without. METRICS.md
//! has the table.

use std::collections::BTreeMap;
use std::sync::{Arc, Weak};
use std::time::Duration;

use ::metrics::{
    Counter, Gauge, Histogram, Unit, counter, describe_counter, describe_gauge, describe_histogram, gauge,
    histogram,
};
use tokio::time::{Instant, MissedTickBehavior, interval};

use crate::shared::Shared;
use crate::stats::Stats;
use crate::tally::{BOUNDS, Came, Tally, ToldOfGroup};

const EVERY: Duration = Duration::from_secs(1);

/// What is counted for the client: its name, and where it is found.
type Count = (&'static str, fn(&Stats) -> u64);

const COUNTS: [Count; 6] = [
    ("peanut_client_near_invalidations_total", |stats| stats.near_invalidations),
    ("peanut_client_near_renewals_total", |stats| stats.near_renewals),
    ("peanut_client_failovers_total", |stats| stats.failovers),
    ("peanut_client_hints_total", |stats| stats.hints),
    ("peanut_client_hand_overs_total", |stats| stats.hand_overs),
    ("peanut_client_uncached_loads_total", |stats| stats.uncached),
];

const GETS: &str = "peanut_client_gets_total";
const TIMES: &str = "peanut_client_get_seconds";
/// What is counted for each group: its name, an outcome where it has one, and what that is.
const OF_GROUPS: [(&str, Option<&str>, Came); 8] = [
    (GETS, Some("hit"), Came::Hit),
    (GETS, Some("stale"), Came::Stale),
    (GETS, Some("loaded"), Came::Loaded),
    (GETS, Some("coalesced"), Came::Coalesced),
    (GETS, Some("negative"), Came::NotFound),
    (GETS, Some("near"), Came::Near),
    ("peanut_client_errors_total", None, Came::Failed),
    ("peanut_client_writes_total", None, Came::Written),
];

/// The metrics of one group.
struct OfGroup {
    counters: Vec<Counter>,
    times: Histogram,
}

impl OfGroup {
    fn new(fleet: &str, group: &str) -> Self {
        let (fleet, group) = (fleet.to_owned(), group.to_owned());
        let counter = |(name, outcome, _): &(&'static str, Option<&'static str>, Came)| match *outcome {
            Some(outcome) => {
                counter!(*name, "fleet" => fleet.clone(), "group" => group.clone(), "outcome" => outcome)
            }
            None => counter!(*name, "fleet" => fleet.clone(), "group" => group.clone()),
        };
        OfGroup {
            counters: OF_GROUPS.iter().map(counter).collect(),
            times: histogram!(TIMES, "fleet" => fleet.clone(), "group" => group.clone()),
        }
    }

    /// Tells what has been counted since the last time.
    fn tell(&self, tally: &Tally, told: &mut ToldOfGroup) {
        let now = OF_GROUPS.map(|(_, _, came)| tally.came(came));
        for ((counter, now), told) in self.counters.iter().zip(now).zip(&mut told.came) {
            counter.increment(now - std::mem::replace(told, now));
        }
        for ((bound, now), told) in BOUNDS.iter().zip(tally.times()).zip(&mut told.times) {
            let count = usize::try_from(now - std::mem::replace(told, now)).unwrap_or(usize::MAX);
            if count > 0 {
                self.times.record_many(bound.as_secs_f64(), count);
            }
        }
    }
}

fn describe() {
    describe_counter!(GETS, "Gets by how they ended");
    describe_histogram!(TIMES, Unit::Seconds, "How long gets took that no near copy answered");
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
    let counters: Vec<Counter> =
        COUNTS.iter().map(|(name, _)| counter!(*name, "fleet" => fleet.clone())).collect();
    let mut groups: BTreeMap<Arc<str>, OfGroup> = BTreeMap::new();
    let gauge = |name: &'static str| gauge!(name, "fleet" => fleet.clone());
    let nodes =
        |state: &'static str| gauge!("peanut_client_nodes", "fleet" => fleet.clone(), "state" => state);
    let (version, fingerprint) =
        (gauge("peanut_client_ring_version"), gauge("peanut_client_ring_fingerprint"));
    let (in_flight, age) = (gauge("peanut_client_in_flight"), gauge("peanut_client_registry_age_seconds"));
    let (copies, bytes) = (gauge("peanut_client_near_copies"), gauge("peanut_client_near_bytes"));
    let (up, down): (Gauge, Gauge) = (nodes("up"), nodes("down"));
    let mut tick = interval(EVERY);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tick.tick().await;
        let Some(client) = client.upgrade() else { return };
        let stats = {
            let told = &mut *client.tallies.told();
            let stats = client.stats();
            for (counter, (_, read)) in counters.iter().zip(COUNTS) {
                counter.increment(read(&stats) - read(&told.stats));
            }
            for (group, tally) in client.tallies.all() {
                let metrics = groups.entry(group.clone()).or_insert_with(|| OfGroup::new(&fleet, &group));
                metrics.tell(&tally, told.groups.entry(group).or_default());
            }
            told.stats = stats;
            stats
        };
        copies.set(stats.near_copies as f64);
        bytes.set(stats.near_bytes as f64);
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
