//! What a fleet does, between two looks at it.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use peanut_client::{Client, Error, GroupReport, NodeReport, NodeStatus};
use serde::Serialize;
use tokio::time::Instant;

/// One look at all nodes.
pub(crate) struct Look {
    at: Instant,
    pub(crate) ring_version: u64,
    pub(crate) nodes: Vec<(NodeStatus, Result<NodeReport, Error>)>,
}

/// Counts of some groups, or of what was added to them in a second.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub(crate) struct Rates {
    pub(crate) gets: f64,
    pub(crate) from_memory: f64,
    pub(crate) loads: f64,
    pub(crate) load_seconds: f64,
    pub(crate) errors: f64,
}

impl Rates {
    /// The part of gets that was answered from memory, 0 to 1.
    pub(crate) fn hit_ratio(&self) -> Option<f64> {
        (self.gets > 0.0).then(|| self.from_memory / self.gets)
    }

    /// The mean time of loads.
    pub(crate) fn load_time(&self) -> Option<Duration> {
        (self.loads > 0.0).then(|| Duration::from_secs_f64((self.load_seconds / self.loads).max(0.0)))
    }

    fn of(group: &GroupReport) -> Self {
        Rates {
            gets: group.gets() as f64,
            from_memory: group.answered_from_memory() as f64,
            loads: group.loads as f64,
            load_seconds: group.load_time.as_secs_f64(),
            errors: group.errors as f64,
        }
    }

    fn plus(self, other: Rates) -> Rates {
        Rates {
            gets: self.gets + other.gets,
            from_memory: self.from_memory + other.from_memory,
            loads: self.loads + other.loads,
            load_seconds: self.load_seconds + other.load_seconds,
            errors: self.errors + other.errors,
        }
    }

    fn minus(self, other: Rates, seconds: f64) -> Rates {
        Rates {
            gets: (self.gets - other.gets) / seconds,
            from_memory: (self.from_memory - other.from_memory) / seconds,
            loads: (self.loads - other.loads) / seconds,
            load_seconds: (self.load_seconds - other.load_seconds) / seconds,
            errors: (self.errors - other.errors) / seconds,
        }
    }
}

/// The sum of the rates of several.
pub(crate) fn sum(rates: impl IntoIterator<Item = Rates>) -> Rates {
    rates.into_iter().fold(Rates::default(), Rates::plus)
}

impl Look {
    pub(crate) async fn take(client: &Client, hot_keys: u32) -> Self {
        let nodes = client.reports(hot_keys).await;
        Look { at: Instant::now(), ring_version: client.ring().version().0, nodes }
    }

    /// The groups of all nodes that have answered, with their nodes.
    pub(crate) fn groups(&self) -> impl Iterator<Item = (&NodeStatus, &GroupReport)> {
        let answered = self.nodes.iter().filter_map(|(node, report)| Some((node, report.as_ref().ok()?)));
        answered.flat_map(|(node, report)| report.groups.iter().map(move |group| (node, group)))
    }

    /// Names of groups, each once, in order.
    pub(crate) fn group_names(&self) -> Vec<String> {
        let mut names: Vec<_> = self.groups().map(|(_, group)| group.name.clone()).collect();
        names.sort_unstable();
        names.dedup();
        names
    }

    /// What was done a second since `before`, by node and group. A node that was started again since, or did
    /// not answer then, counts from the next look on.
    pub(crate) fn since(&self, before: &Look) -> Vec<(String, String, Rates)> {
        let seconds = self.at.duration_since(before.at).as_secs_f64().max(1e-3);
        let earlier: HashMap<(&str, &str), &GroupReport> =
            before.groups().map(|(node, group)| ((&*node.id, &*group.name), group)).collect();
        let uptimes: HashMap<&str, Duration> = before.uptimes().collect();
        let has_run_on: HashSet<&str> = self
            .uptimes()
            .filter(|(id, now)| uptimes.get(id).is_some_and(|then| now > then))
            .map(|(id, _)| id)
            .collect();
        let rates = self.groups().filter(|(node, _)| has_run_on.contains(&*node.id));
        let rates = rates.filter_map(|(node, group)| {
            let then = earlier.get(&(&*node.id, &*group.name))?;
            let rates = Rates::of(group).minus(Rates::of(then), seconds);
            Some((node.id.clone(), group.name.clone(), rates))
        });
        rates.collect()
    }

    /// For how long each node has run that has answered.
    fn uptimes(&self) -> impl Iterator<Item = (&str, Duration)> {
        self.nodes.iter().filter_map(|(node, report)| Some((&*node.id, report.as_ref().ok()?.uptime)))
    }

    /// Nodes that have answered.
    pub(crate) fn up(&self) -> usize {
        self.nodes.iter().filter(|(_, report)| report.is_ok()).count()
    }

    /// The keys that are asked for most in the fleet, the hottest first.
    pub(crate) fn hot_keys(&self) -> Vec<HotKey> {
        let mut hot: Vec<_> = self
            .groups()
            .flat_map(|(node, group)| {
                group.hot_keys.iter().map(|hot| HotKey {
                    group: group.name.clone(),
                    key: String::from_utf8_lossy(&hot.key).into_owned(),
                    gets_per_second: hot.gets_per_second,
                    near_copies: hot.near_copies,
                    node: node.id.clone(),
                })
            })
            .collect();
        hot.sort_by(|a, b| b.gets_per_second.total_cmp(&a.gets_per_second).then_with(|| a.key.cmp(&b.key)));
        hot
    }
}

/// A key that is asked for often.
#[derive(Serialize)]
pub(crate) struct HotKey {
    pub(crate) group: String,
    /// What is no UTF-8 in it is shown as U+FFFD.
    pub(crate) key: String,
    pub(crate) gets_per_second: f64,
    /// Lanes of clients that hold a near copy of it.
    pub(crate) near_copies: u32,
    pub(crate) node: String,
}

/// How a node is, in a word.
pub(crate) fn health(node: &NodeStatus, report: &Result<NodeReport, Error>) -> &'static str {
    match (report, node.up, node.alive) {
        (Ok(report), ..) if !report.is_ready => "not ready",
        (Ok(_), _, true) => "up",
        (Ok(_), _, false) => "up, no lease",
        (Err(_), true, _) => "no report",
        (Err(_), false, true) => "unreachable",
        (Err(_), false, false) => "down",
    }
}

/// A number as people read it: `950`, `12.3k`, `4.5M`.
pub(crate) fn short(number: f64) -> String {
    match number {
        n if n >= 1e9 => format!("{:.1}G", n / 1e9),
        n if n >= 1e6 => format!("{:.1}M", n / 1e6),
        n if n >= 1e4 => format!("{:.1}k", n / 1e3),
        n => format!("{n:.0}"),
    }
}

/// A number of bytes as people read it: `512B`, `1.5MiB`.
pub(crate) fn short_bytes(bytes: u64) -> String {
    let mut size = bytes as f64;
    for unit in ["B", "KiB", "MiB", "GiB"] {
        if size < 1024.0 {
            return if unit == "B" { format!("{size:.0}B") } else { format!("{size:.1}{unit}") };
        }
        size /= 1024.0;
    }
    format!("{size:.1}TiB")
}

/// A ratio as people read it; only what is whole is 100 %.
pub(crate) fn percent(ratio: Option<f64>) -> String {
    ratio.map_or_else(|| "-".to_owned(), |ratio| format!("{:.1}%", (ratio * 1000.0 + 1e-9).floor() / 10.0))
}

/// A time as people read it: `0.42ms`, `1.5s`.
pub(crate) fn short_time(time: Option<Duration>) -> String {
    match time.map(|time| time.as_secs_f64()) {
        None => "-".to_owned(),
        Some(seconds) if seconds >= 1.0 => format!("{seconds:.1}s"),
        Some(seconds) if seconds >= 0.01 => format!("{:.0}ms", seconds * 1e3),
        Some(seconds) => format!("{:.2}ms", seconds * 1e3),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_short_and_not_rounded_up_to_what_they_are_not() {
        assert_eq!([950.0, 12_345.0, 4_500_000.0].map(short), ["950", "12.3k", "4.5M"]);
        assert_eq!([512, 1536, 3 << 30].map(short_bytes), ["512B", "1.5KiB", "3.0GiB"]);
        assert_eq!(
            [None, Some(1.0), Some(0.99999), Some(0.0)].map(percent),
            ["-", "100.0%", "99.9%", "0.0%"]
        );
        let times = [Some(0.000_42), Some(0.2), Some(1.52), None].map(|s| s.map(Duration::from_secs_f64));
        assert_eq!(times.map(short_time), ["0.42ms", "200ms", "1.5s", "-"]);
    }
}
