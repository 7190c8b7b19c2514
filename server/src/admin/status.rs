//! `/status`: everything that the page shows, as JSON.

use std::collections::BTreeMap;

use peanut_proto::v1::{Gets, GroupStatus, StatusResponse};
use serde::Serialize;

use super::history::{History, Sample};
use super::metrics::code;
use super::neighbours::Neighbours;
use crate::node::Node;

const HOT_KEYS: u32 = 10;

#[derive(Serialize)]
pub(super) struct Status {
    node_id: String,
    fleet: String,
    build: String,
    uptime_ms: u64,
    is_ready: bool,
    lanes: u64,
    connections: u64,
    connections_refused: u64,
    in_flight: u64,
    wakes: u64,
    invalidations: u64,
    /// Operations and calls that were refused or failed, by what was answered; only what has been.
    failures: BTreeMap<String, u64>,
    ring: Ring,
    groups: Vec<Group>,
    history: Vec<Sample>,
}

#[derive(Serialize)]
struct Ring {
    version: u64,
    /// In hexadecimal, as metrics and logs show it too.
    fingerprint: String,
    registry_age_ms: u64,
    members: Vec<Member>,
    /// Groups that only some nodes have, members with one address.
    notices: Vec<String>,
}

#[derive(Serialize)]
struct Member {
    id: String,
    addr: String,
    zone: String,
    weight: u32,
    /// About the part of all keys that it owns.
    share: f64,
    /// Whether it holds a lease.
    alive: bool,
    /// Whether its port was reached within the last second; null where nobody has looked yet.
    reached: Option<bool>,
}

#[derive(Serialize)]
struct Group {
    name: String,
    eviction: String,
    entries: u64,
    used_bytes: u64,
    capacity_bytes: u64,
    hit: u64,
    stale: u64,
    loaded: u64,
    coalesced: u64,
    negative: u64,
    error: u64,
    loads: u64,
    keys_loaded: u64,
    load_failures: u64,
    load_seconds: f64,
    refreshes: u64,
    flights: u64,
    evicted: u64,
    breaker: String,
    hot_keys: Vec<HotKey>,
}

#[derive(Serialize)]
struct HotKey {
    /// What is no UTF-8 in it is shown as U+FFFD.
    key: String,
    gets_per_second: f64,
    /// Lanes of clients that hold a near copy of it.
    near_copies: u32,
}

pub(super) fn status(node: &Node, history: &History, neighbours: &Neighbours) -> Status {
    let StatusResponse {
        node_id,
        fleet,
        build,
        uptime_ms,
        ring_version,
        lanes,
        connections,
        in_flight,
        groups,
        connections_refused,
        wakes,
        invalidations,
        ring_fingerprint,
        registry_age_ms,
        is_ready,
        failures,
        ..
    } = node.status_now(HOT_KEYS);
    Status {
        node_id,
        fleet,
        build,
        uptime_ms,
        is_ready,
        lanes,
        connections,
        connections_refused,
        in_flight,
        wakes,
        invalidations,
        failures: failures
            .into_iter()
            .filter(|failures| failures.count > 0)
            .map(|failures| (code(&failures), failures.count))
            .collect(),
        ring: Ring {
            version: ring_version,
            fingerprint: format!("{ring_fingerprint:08x}"),
            registry_age_ms,
            members: members(node, neighbours),
            notices: notices(node),
        },
        groups: groups.into_iter().map(group).collect(),
        history: history.samples(),
    }
}

fn notices(node: &Node) -> Vec<String> {
    let discovered = node.membership().discovered.as_ref();
    let view = discovered.map(|discovered| discovered.borrow().view.clone());
    view.iter().flat_map(|view| view.notices()).map(|notice| notice.to_string()).collect()
}

fn members(node: &Node, neighbours: &Neighbours) -> Vec<Member> {
    let discovered = node.membership().discovered.as_ref();
    let Some(view) = discovered.map(|discovered| discovered.borrow().view.clone()) else { return Vec::new() };
    let whole: f64 = view.ring.members.iter().map(|member| f64::from(member.weight)).sum();
    let members = view.ring.members.iter().map(|member| Member {
        id: member.id.clone(),
        addr: member.addr.clone(),
        zone: member.zone.clone(),
        weight: member.weight,
        share: f64::from(member.weight) / whole,
        alive: view.live.contains_key(&member.id),
        reached: neighbours.reached(&member.addr),
    });
    members.collect()
}

fn group(status: GroupStatus) -> Group {
    let Gets { hit, stale, loaded, coalesced, negative, error, .. } = status.gets.unwrap_or_default();
    let hot_keys = status.hot_keys.into_iter().map(|hot| HotKey {
        key: String::from_utf8_lossy(&hot.key).into_owned(),
        gets_per_second: hot.gets_per_second,
        near_copies: hot.near_copies,
    });
    Group {
        name: status.name,
        eviction: status.eviction,
        entries: status.entries,
        used_bytes: status.used_bytes,
        capacity_bytes: status.capacity_bytes,
        hit,
        stale,
        loaded,
        coalesced,
        negative,
        error,
        loads: status.loads,
        keys_loaded: status.keys_loaded,
        load_failures: status.load_failures,
        load_seconds: status.load_seconds,
        refreshes: status.refreshes,
        flights: status.flights,
        evicted: status.evicted,
        breaker: status.breaker,
        hot_keys: hot_keys.collect(),
    }
}
