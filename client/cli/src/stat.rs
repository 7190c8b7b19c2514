//! `peanut stat`, `peanut nodes` and `peanut hotkeys`: a fleet in lines and tables.

use std::io::Write as _;
use std::process::ExitCode;
use std::time::Duration;

use peanut_client::{Client, NodeReport};
use serde::Serialize;
use serde_json::json;
use tokio::time::sleep;

use crate::failure::Failure;
use crate::fleet::{Look, Rates, health, percent, short, short_bytes, short_time, sum};
use crate::output::{end_unless_written, print_json, print_line, print_table};

/// Lines between two headings.
const HEADING_EVERY: u64 = 20;

#[derive(Serialize)]
struct Line {
    nodes: usize,
    nodes_up: usize,
    ring_version: u64,
    entries: u64,
    used_bytes: u64,
    lanes: u64,
    #[serde(flatten)]
    rates: Rates,
    hit_ratio: Option<f64>,
}

/// A line for every interval, `count` of them or without end.
pub(crate) async fn stat(
    client: &Client,
    interval: Duration,
    count: Option<u64>,
    json: bool,
) -> Result<ExitCode, Failure> {
    let mut before = Look::take(client, 0).await;
    let mut told = None;
    for number in 0.. {
        if count.is_some_and(|count| number >= count) {
            break;
        }
        sleep(interval).await;
        let look = Look::take(client, 0).await;
        // Why there is nothing to see, when that is another reason than before.
        let why = somebody_answered(&look).err().map(|why| why.to_string());
        why.iter().filter(|_| why != told).for_each(|why| eprintln!("peanut: {why}"));
        told = why;
        let line = line(&look, &before);
        let written = if json {
            writeln!(std::io::stdout(), "{}", serde_json::to_string(&line).unwrap_or_default())
        } else {
            let heading =
                "  nodes   ring  entries     memory   gets/s    hits  loads/s     load  errors/s  lanes\n";
            let heading = if number % HEADING_EVERY == 0 { heading } else { "" };
            let Line { nodes, nodes_up, ring_version, rates, .. } = &line;
            writeln!(
                std::io::stdout(),
                "{heading}{:>7} {:>6} {:>8} {:>10} {:>8} {:>7} {:>8} {:>8} {:>9} {:>6}",
                format!("{nodes_up}/{nodes}"),
                ring_version,
                short(line.entries as f64),
                short_bytes(line.used_bytes),
                short(rates.gets),
                percent(rates.hit_ratio()),
                short(rates.loads),
                short_time(rates.load_time()),
                short(rates.errors),
                line.lanes,
            )
        };
        let written = written.and_then(|()| std::io::stdout().flush());
        // Where its reader has gone there is nothing left to do.
        let has_ended = written.is_err();
        end_unless_written(written);
        if has_ended {
            break;
        }
        before = look;
    }
    somebody_answered(&before)?;
    Ok(ExitCode::SUCCESS)
}

fn line(look: &Look, before: &Look) -> Line {
    let rates = sum(look.since(before).into_iter().map(|(_, _, rates)| rates));
    let answered = || look.nodes.iter().filter_map(|(_, report)| report.as_ref().ok());
    Line {
        nodes: look.nodes.len(),
        nodes_up: look.up(),
        ring_version: look.ring_version,
        entries: look.groups().map(|(_, group)| group.entries).sum(),
        used_bytes: look.groups().map(|(_, group)| group.used_bytes).sum(),
        lanes: answered().map(|report| report.lanes).sum(),
        hit_ratio: rates.hit_ratio(),
        rates,
    }
}

#[derive(Serialize)]
struct NodeOutput<'a> {
    id: &'a str,
    addr: &'a str,
    zone: &'a str,
    weight: u32,
    share: f64,
    health: &'static str,
    /// What an operator should know of it.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    notices: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    report: Option<serde_json::Value>,
    /// Why there is no report.
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
}

/// A node's report as JSON, durations as serde has them.
fn report_json(report: &NodeReport) -> serde_json::Value {
    let duration = |time: Duration| json!({ "secs": time.as_secs(), "nanos": time.subsec_nanos() });
    let groups = report.groups.iter().map(|group| {
        json!({
            "name": group.name,
            "entries": group.entries,
            "used_bytes": group.used_bytes,
            "capacity_bytes": group.capacity_bytes,
            "hits": group.hits,
            "stale": group.stale,
            "loaded": group.loaded,
            "coalesced": group.coalesced,
            "negative": group.negative,
            "misses": group.misses,
            "fills": group.fills,
            "errors": group.errors,
            "loads": group.loads,
            "load_time": duration(group.load_time),
            "load_failures": group.load_failures,
            "evicted": group.evicted,
            "flights": group.flights,
            "breaker": group.breaker,
        })
    });
    json!({
        "build": report.build,
        "uptime": duration(report.uptime),
        "is_ready": report.is_ready,
        "ring_version": report.ring_version,
        "lanes": report.lanes,
        "connections": report.connections,
        "in_flight": report.in_flight,
        "registry_age": duration(report.registry_age),
        "groups": groups.collect::<Vec<_>>(),
    })
}

/// A table of the nodes; fails where none answers.
pub(crate) async fn nodes(client: &Client, json: bool) -> Result<ExitCode, Failure> {
    let look = Look::take(client, 0).await;
    let notices = client.notices();
    let about = |id: &str| {
        let about = notices.iter().filter(|notice| notice.is_about(id));
        about.map(ToString::to_string).collect::<Vec<_>>()
    };
    if json {
        let nodes: Vec<_> = look
            .nodes
            .iter()
            .map(|(node, report)| NodeOutput {
                id: &node.id,
                addr: &node.addr,
                zone: &node.zone,
                weight: node.weight,
                share: node.share,
                health: health(node, report),
                notices: about(&node.id),
                report: report.as_ref().ok().map(report_json),
                error: report.as_ref().err().map(|error| Failure::from(error.clone()).to_string()),
            })
            .collect();
        print_json(&nodes);
    } else {
        let heading = ["NODE", "ADDRESS", "ZONE", "SHARE", "HEALTH", "UP FOR", "BUILD", "RING", "LANES"];
        let heading = heading.map(str::to_owned);
        let rows = look.nodes.iter().map(|(node, report)| {
            let told = |tell: fn(&NodeReport) -> String| report.as_ref().map_or("-".to_owned(), tell);
            [
                node.id.clone(),
                node.addr.clone(),
                node.zone.clone(),
                format!("{:5.1} %", node.share * 100.0),
                health(node, report).to_owned(),
                told(|report| uptime(report.uptime)),
                told(|report| report.build.clone()),
                told(|report| report.ring_version.to_string()),
                told(|report| report.lanes.to_string()),
            ]
        });
        print_table(&[heading].into_iter().chain(rows).collect::<Vec<_>>());
        for (node, report) in &look.nodes {
            if let Err(error) = report {
                print_line(&format!("{}: {error}", node.id));
            }
        }
        notices.iter().for_each(|notice| print_line(&notice.to_string()));
    }
    somebody_answered(&look)?;
    Ok(ExitCode::SUCCESS)
}

/// Fails with the first node's reason where none has answered.
fn somebody_answered(look: &Look) -> Result<(), Failure> {
    match look.nodes.iter().find_map(|(_, report)| report.as_ref().err()) {
        Some(error) if look.up() == 0 => Err(Failure::from(error.clone())),
        None if look.nodes.is_empty() => Err(Failure::new("the fleet has no nodes")),
        _ => Ok(()),
    }
}

pub(crate) fn uptime(time: Duration) -> String {
    let seconds = time.as_secs();
    match (seconds / 86400, seconds / 3600 % 24, seconds / 60 % 60, seconds % 60) {
        (0, 0, 0, s) => format!("{s}s"),
        (0, 0, m, s) => format!("{m}m {s}s"),
        (0, h, m, _) => format!("{h}h {m}m"),
        (d, h, ..) => format!("{d}d {h}h"),
    }
}

/// The keys that are asked for most, of one group or of all.
pub(crate) async fn hot_keys(
    client: &Client,
    group: Option<&str>,
    top: usize,
    json: bool,
) -> Result<ExitCode, Failure> {
    let look = Look::take(client, u32::try_from(top).unwrap_or(u32::MAX)).await;
    let mut hot = look.hot_keys();
    hot.retain(|hot| group.is_none_or(|group| group == hot.group));
    hot.truncate(top);
    somebody_answered(&look)?;
    if json {
        print_json(&hot);
    } else {
        let heading = ["GETS/S", "NEAR", "GROUP", "KEY", "NODE"].map(str::to_owned);
        let rows = hot.into_iter().map(|hot| {
            let (rate, near) = (format!("{:6.0}", hot.gets_per_second), format!("{:4}", hot.near_copies));
            [rate, near, hot.group, hot.key, hot.node]
        });
        print_table(&[heading].into_iter().chain(rows).collect::<Vec<_>>());
    }
    Ok(ExitCode::SUCCESS)
}
