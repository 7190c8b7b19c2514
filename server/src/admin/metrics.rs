//! `/metrics`: the same as the admin service tells, in the text format of OpenMetrics, which Prometheus
//! reads. METRICS.md has the table, and a test holds it against what comes from here. No key is ever a label.

use std::fmt;

use peanut_proto::v1::{Failures, GroupStatus, NearStatus, StatusResponse};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric as _, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::{Registry, Unit};

use crate::metrics::{BUCKETS, OUTCOMES};
use crate::node::Node;

/// All metrics of the node at this moment.
pub(super) fn text(node: &Node) -> String {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(Metrics(node.status_now(0))));
    let mut text = String::new();
    // Strings take whatever is written to them.
    let _ = prometheus_client::encoding::text::encode(&mut text, &registry);
    text
}

/// By what name failures are shown.
pub(super) fn code(failures: &Failures) -> String {
    failures.code().as_str_name().to_lowercase()
}

#[derive(Debug)]
struct Metrics(StatusResponse);

type Reading<T> = (&'static str, &'static str, fn(&T) -> f64);

const NODE_COUNTERS: [Reading<StatusResponse>; 8] = [
    ("peanut_near_copies_given", "Answers that clients were let keep", |node| near(node).given as f64),
    ("peanut_near_leases_renewed", "Renewals of the near leases of lanes", |node| near(node).renewed as f64),
    ("peanut_near_invalidations", "Near copies that writes have outdated", |node| {
        near(node).invalidated as f64
    }),
    ("peanut_near_waits", "Writes that waited for clients to confirm that they had dropped a copy", |node| {
        near(node).waits as f64
    }),
    ("peanut_near_unconfirmed", "Clients that did not confirm before their lease was over", |node| {
        near(node).unconfirmed as f64
    }),
    ("peanut_connections_refused", "Connections that were too many", |node| node.connections_refused as f64),
    ("peanut_wakes", "Times that the process has been asleep and noticed", |node| node.wakes as f64),
    ("peanut_hints_applied", "Hints of clients in the registry that were done", |node| {
        node.hints_applied as f64
    }),
];

fn near(node: &StatusResponse) -> NearStatus {
    node.near.unwrap_or_default()
}

const NODE_GAUGES: [Reading<StatusResponse>; 9] = [
    ("peanut_near_copies", "Near copies that clients may have", |node| near(node).copies as f64),
    ("peanut_ready", "1 while the node serves and is in the ring", |node| f64::from(u8::from(node.is_ready))),
    ("peanut_lanes", "Lanes that clients have open", |node| node.lanes as f64),
    ("peanut_connections", "Connections to the gRPC port", |node| node.connections as f64),
    ("peanut_in_flight", "Operations on lanes that wait for a load or the disk", |node| {
        node.in_flight as f64
    }),
    ("peanut_ring_version", "Newest ring version that the node has heard of", |node| {
        node.ring_version as f64
    }),
    ("peanut_ring_fingerprint", "Equal for equal rings", |node| f64::from(node.ring_fingerprint)),
    ("peanut_ring_members", "Nodes in the ring that the node knows", |node| node.ring_members as f64),
    ("peanut_warm", "1 where entries came back from the disk when the process started", |node| {
        f64::from(u8::from(node.groups.iter().any(|group| group.restored > 0)))
    }),
];

const NODE_SECONDS: [Reading<StatusResponse>; 2] = [
    ("peanut_uptime", "Since the process began", |node| node.uptime_ms as f64 / 1e3),
    (
        "peanut_registry_age",
        "Seconds for which the registry has been unreadable; 0 while it can be read",
        |node| node.registry_age_ms as f64 / 1e3,
    ),
];

const GROUP_COUNTERS: [Reading<GroupStatus>; 14] = [
    ("peanut_keys_loaded", "Keys that the loader was asked for", |group| group.keys_loaded as f64),
    ("peanut_load_failures", "Keys that could not be loaded", |group| group.load_failures as f64),
    ("peanut_refreshes", "Loads in the background of values that were fresh still", |group| {
        group.refreshes as f64
    }),
    ("peanut_evictions", "Entries that had to leave before they expired", |group| group.evicted as f64),
    ("peanut_sets", "Values that clients have set", |group| group.sets as f64),
    ("peanut_deletes", "Keys that clients have deleted", |group| group.deletes as f64),
    ("peanut_clears", "Times that the group was cleared", |group| group.clears as f64),
    ("peanut_failover_gets", "Gets in the place of a node that is down", |group| group.failover_gets as f64),
    ("peanut_hand_overs", "Values that new owners of keys were filled with", |group| group.hand_overs as f64),
    ("peanut_fills", "Values that clients brought under a fill token", |group| group.fills as f64),
    ("peanut_fills_refused", "Those of them that were not kept", |group| group.fills_refused as f64),
    ("peanut_too_large_values", "Values that were larger than the group keeps", |group| {
        group.too_large as f64
    }),
    ("peanut_restored", "Entries that came back from the disk when the process started", |group| {
        group.restored as f64
    }),
    ("peanut_disk_errors", "Times that the disk has failed", |group| group.disk_errors as f64),
];

const GROUP_GAUGES: [Reading<GroupStatus>; 3] = [
    ("peanut_entries", "Entries in memory", |group| group.entries as f64),
    ("peanut_flights", "Loads in progress or waiting, and keys that clients load", |group| {
        group.flights as f64
    }),
    ("peanut_breaker", "Of the origin: 0 closed, 1 half-open, 2 open", |group| match &*group.breaker {
        "open" => 2.0,
        "half-open" => 1.0,
        _ => 0.0,
    }),
];

const GROUP_BYTES: [Reading<GroupStatus>; 3] = [
    ("peanut_used", "Bytes in memory, overhead included", |group| group.used_bytes as f64),
    ("peanut_capacity", "Bytes that there may be in memory", |group| group.capacity_bytes as f64),
    ("peanut_disk", "Bytes of segments on the disk", |group| group.disk_bytes as f64),
];

/// A histogram of a group: times in each bucket, and all of them together in seconds.
type Times = (&'static str, &'static str, fn(&GroupStatus) -> (&[u64], f64));

const HISTOGRAMS: [Times; 2] = [
    ("peanut_get", "How long gets took at the node", |group| (&group.get_buckets, group.get_seconds)),
    ("peanut_load", "How long calls of the loader took", |group| (&group.load_buckets, group.load_seconds)),
];

impl Metrics {
    fn groups(&self) -> impl Iterator<Item = (&GroupStatus, [(&'static str, &str); 1])> {
        self.0.groups.iter().map(|group| (group, [("group", group.name.as_str())]))
    }
}

impl Collector for Metrics {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let node = &self.0;
        for (name, help, read) in NODE_COUNTERS {
            let counter = ConstCounter::new(read(node));
            counter.encode(encoder.encode_descriptor(name, help, None, MetricType::Counter)?)?;
        }
        let (name, help) = ("peanut_near_wait", "How long writes waited for clients to confirm");
        let waited = ConstCounter::new(near(node).waited_us as f64 / 1e6);
        waited.encode(encoder.encode_descriptor(name, help, Some(&Unit::Seconds), MetricType::Counter)?)?;
        let gauges = NODE_GAUGES.map(|reading| (reading, None));
        let seconds = NODE_SECONDS.map(|reading| (reading, Some(Unit::Seconds)));
        for ((name, help, read), unit) in gauges.into_iter().chain(seconds) {
            let gauge = ConstGauge::new(read(node));
            gauge.encode(encoder.encode_descriptor(name, help, unit.as_ref(), MetricType::Gauge)?)?;
        }
        let mut info = encoder.encode_descriptor("peanut_build", "The build", None, MetricType::Info)?;
        info.encode_info(&[("version", node.build.as_str())])?;

        let help = "Operations and calls that were refused or failed, by what was answered";
        let mut family = encoder.encode_descriptor("peanut_failures", help, None, MetricType::Counter)?;
        for failures in &node.failures {
            ConstCounter::new(failures.count).encode(family.encode_family(&[("code", code(failures))])?)?;
        }
        let help = "Gets by how they ended";
        let mut family = encoder.encode_descriptor("peanut_gets", help, None, MetricType::Counter)?;
        for group in &node.groups {
            let gets = group.gets.unwrap_or_default();
            for (outcome, count) in OUTCOMES {
                let labels = [("group", group.name.as_str()), ("outcome", outcome)];
                ConstCounter::new(count(&gets)).encode(family.encode_family(&labels)?)?;
            }
        }
        for (name, help, read) in GROUP_COUNTERS {
            let mut family = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
            for (group, labels) in self.groups() {
                ConstCounter::new(read(group)).encode(family.encode_family(&labels)?)?;
            }
        }
        let gauges = GROUP_GAUGES.map(|reading| (reading, None));
        let bytes = GROUP_BYTES.map(|reading| (reading, Some(Unit::Bytes)));
        for ((name, help, read), unit) in gauges.into_iter().chain(bytes) {
            let mut family = encoder.encode_descriptor(name, help, unit.as_ref(), MetricType::Gauge)?;
            for (group, labels) in self.groups() {
                ConstGauge::new(read(group)).encode(family.encode_family(&labels)?)?;
            }
        }
        for (name, help, read) in HISTOGRAMS {
            let unit = Some(&Unit::Seconds);
            let mut family = encoder.encode_descriptor(name, help, unit, MetricType::Histogram)?;
            for (group, labels) in self.groups() {
                let (buckets, seconds) = read(group);
                let bounds = BUCKETS.into_iter().chain([f64::MAX]);
                let buckets: Vec<_> = bounds.zip(buckets.iter().copied()).collect();
                let count = buckets.iter().map(|(_, count)| count).sum();
                let mut histogram = family.encode_family(&labels)?;
                histogram.encode_histogram::<NoLabelSet>(seconds, count, &buckets, None)?;
            }
        }
        Ok(())
    }
}
