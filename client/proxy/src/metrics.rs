//! What a proxy has done, in the text format of OpenMetrics, which Prometheus reads. METRICS.md has the
//! table.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use peanut_client::Stats;
use peanut_edge::connections::ConnectionLimiter;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric as _};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Registry;

use crate::core::Core;
use crate::counters::Protocol;

/// A count of the client.
type Read = fn(&Stats) -> u64;
/// One with its name and what it is.
type Reading = (&'static str, &'static str, Read);

const OUTCOMES: [(&str, Read); 6] = [
    ("hit", |stats| stats.hits),
    ("stale", |stats| stats.stale),
    ("loaded", |stats| stats.loaded),
    ("coalesced", |stats| stats.coalesced),
    ("negative", |stats| stats.not_found),
    ("near", |stats| stats.near_hits),
];

const COUNTERS: [Reading; 5] = [
    ("peanut_proxy_writes", "Sets and deletes that were done", |stats| stats.writes),
    ("peanut_proxy_failovers", "Gets answered by a successor", |stats| stats.failovers),
    ("peanut_proxy_hints", "Writes for which a hint was stored in the registry", |stats| stats.hints),
    ("peanut_proxy_near_invalidations", "Near copies dropped for a write", |stats| stats.near_invalidations),
    ("peanut_proxy_client_errors", "Operations at nodes that failed", |stats| stats.errors),
];

const GAUGES: [Reading; 2] = [
    ("peanut_proxy_near_copies", "Near copies", |stats| stats.near_copies),
    ("peanut_proxy_near_bytes", "Bytes that near copies take", |stats| stats.near_bytes),
];

/// A count of each protocol, with its name and what it is.
type ReadingByProtocol = (&'static str, &'static str, fn(&Core, Protocol) -> u64);

const COUNTERS_BY_PROTOCOL: [ReadingByProtocol; 3] = [
    ("peanut_proxy_requests", "Requests that were answered", |core, of| {
        core.counters.of(of).requests.load(Ordering::Relaxed)
    }),
    ("peanut_proxy_errors", "Those of them that were answered with an error", |core, of| {
        core.counters.of(of).errors.load(Ordering::Relaxed)
    }),
    ("peanut_proxy_connections_refused", "Connections that were too many", |core, of| {
        count_of(core, of, ConnectionLimiter::refused) as u64
    }),
];

/// All metrics of a proxy at this moment.
pub(crate) fn text(core: &Arc<Core>) -> String {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(Metrics(core.clone())));
    let mut text = String::new();
    // Strings take whatever is written to them.
    let _ = prometheus_client::encoding::text::encode(&mut text, &registry);
    text
}

#[derive(Debug)]
struct Metrics(Arc<Core>);

impl Collector for Metrics {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let (core, stats) = (&self.0, self.0.groups.stats());
        let (name, help) = ("peanut_proxy_gets", "Keys that were got, by how that ended");
        let mut gets = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
        for (outcome, read) in OUTCOMES {
            ConstCounter::new(read(&stats)).encode(gets.encode_family(&[("outcome", outcome)])?)?;
        }
        for (name, help, read) in COUNTERS {
            let counter = ConstCounter::new(read(&stats));
            counter.encode(encoder.encode_descriptor(name, help, None, MetricType::Counter)?)?;
        }
        for (name, help, read) in GAUGES {
            let gauge = ConstGauge::new(read(&stats) as f64);
            gauge.encode(encoder.encode_descriptor(name, help, None, MetricType::Gauge)?)?;
        }
        for (name, help, read) in COUNTERS_BY_PROTOCOL {
            let mut family = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
            for protocol in Protocol::ALL {
                ConstCounter::new(read(core, protocol)).encode(family.encode_family(&protocol.label())?)?;
            }
        }
        let (name, help) = ("peanut_proxy_connections", "Connections");
        let mut family = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
        for protocol in Protocol::ALL {
            let count = count_of(core, protocol, ConnectionLimiter::connections);
            ConstGauge::new(count as f64).encode(family.encode_family(&protocol.label())?)?;
        }
        Ok(())
    }
}

/// Of all ports of a protocol.
fn count_of(core: &Core, protocol: Protocol, count: fn(&ConnectionLimiter) -> usize) -> usize {
    core.limiters.iter().filter(|(of, _)| *of == protocol).map(|(_, limiter)| count(limiter)).sum()
}
