//! What the page shows, as it is sent to it: sums over nodes, and what each has told.

use std::collections::BTreeMap;

use peanut_proto::v1::{GroupStatus, NearStatus, StatusResponse};
use serde::Serialize;

use crate::history::{Counts, Histories, Rates};

/// Hot keys on the page.
const HOT_KEYS: usize = 20;

/// Whose figures they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Scope {
    /// Of the node that serves the page.
    Node,
    /// Of all nodes that could be asked, or of the one that was asked for.
    Fleet,
}

/// The ring, as whoever serves the page knows it.
#[derive(Debug, Default, Serialize)]
pub struct Ring {
    /// Its version.
    pub version: u64,
    /// Equal for equal rings; in hexadecimal, as metrics and logs show it too.
    pub fingerprint: String,
    /// Since when the registry could not be read; 0 while it can.
    pub registry_age_ms: u64,
    /// Groups that only some nodes have, members with one address.
    pub notices: Vec<String>,
}

/// A member of the ring, and what it has told.
#[derive(Debug, Default)]
pub struct Member {
    /// Its id.
    pub id: String,
    /// Where clients reach it.
    pub addr: String,
    /// Its failure domain.
    pub zone: String,
    /// Its weight.
    pub weight: u32,
    /// The part of all keys that it owns, where that is known.
    pub share: Option<f64>,
    /// Whether it holds a lease.
    pub alive: bool,
    /// Whether it could be reached lately; nothing where nobody has tried.
    pub reached: Option<bool>,
    /// What it has told, or why it has not; nothing where it was not asked.
    pub told: Option<Result<StatusResponse, String>>,
    /// Hints that the registry keeps for it; nothing where nobody has looked.
    pub hints_pending: Option<u64>,
}

/// All that the page shows.
#[derive(Debug, Serialize)]
pub struct Figures {
    scope: Scope,
    /// The node that was asked for, where it is one of several.
    node: Option<String>,
    fleet: String,
    /// Whether keys can be looked up and groups cleared from the page.
    operates: bool,
    ring: Ring,
    nodes: Vec<Node>,
    lately: Option<Rates>,
    used_bytes: u64,
    capacity_bytes: u64,
    /// Operations and calls that were refused or failed, by what was answered; only what has been.
    failures: BTreeMap<String, u64>,
    near: Near,
    groups: Vec<Group>,
    hot_keys: Vec<HotKey>,
    history: Vec<Rates>,
}

#[derive(Debug, Serialize)]
struct Node {
    id: String,
    addr: String,
    zone: String,
    weight: u32,
    share: Option<f64>,
    hints_pending: Option<u64>,
    health: Health,
    /// Why it has told nothing.
    error: Option<String>,
    told: Option<Told>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
enum Health {
    Up,
    NotReady,
    NoReport,
    NoLease,
    Down,
}

/// What a node tells of itself; counts are since its start.
#[derive(Debug, Serialize)]
struct Told {
    build: String,
    uptime_ms: u64,
    ring_version: u64,
    registry_age_ms: u64,
    lanes: u64,
    connections: u64,
    connections_refused: u64,
    in_flight: u64,
    wakes: u64,
    hints_applied: u64,
    used_bytes: u64,
    capacity_bytes: u64,
    /// Entries that came back from the disk when it started.
    restored: u64,
    disk_bytes: u64,
    lately: Option<Rates>,
}

/// Near copies of clients.
#[derive(Debug, Default, Serialize)]
struct Near {
    copies: u64,
    given: u64,
    invalidated: u64,
    waits: u64,
    waited_ms: u64,
    unconfirmed: u64,
}

/// A group, summed over nodes.
#[derive(Debug, Default, Serialize)]
struct Group {
    name: String,
    /// How many nodes have it, of those that told.
    nodes: usize,
    eviction: String,
    entries: u64,
    used_bytes: u64,
    capacity_bytes: u64,
    lately: Option<Rates>,
    /// Since the nodes started.
    since_start: Option<Rates>,
    loads: u64,
    load_failures: u64,
    flights: u64,
    evicted: u64,
    restored: u64,
    disk_bytes: u64,
    disk_errors: u64,
    /// The worst of any node's: closed, half-open, open.
    breaker: String,
    #[serde(skip)]
    counts: Counts,
    #[serde(skip)]
    uptime_ms: u64,
}

#[derive(Debug, Serialize)]
struct HotKey {
    /// What is no UTF-8 in it is shown as U+FFFD.
    key: String,
    group: String,
    gets_per_second: f64,
    /// Lanes of clients that hold a near copy of it.
    near_copies: u32,
}

impl Figures {
    /// The figures of `members`; of one alone, where a `node` is asked for.
    pub fn new(
        scope: Scope,
        fleet: String,
        ring: Ring,
        members: &[Member],
        histories: &Histories,
        node: Option<&str>,
    ) -> Self {
        let asked = |id: &str| node.is_none_or(|node| node == id);
        let told = members.iter().filter(|member| asked(&member.id)).filter_map(told_by);
        let (mut failures, mut near) = (BTreeMap::new(), Near::default());
        let (mut groups, mut hot_keys) = (BTreeMap::new(), Vec::new());
        for status in told {
            for told in status.failures.iter().filter(|told| told.count > 0) {
                *failures.entry(told.code().as_str_name().to_lowercase()).or_default() += told.count;
            }
            near.add(status.near.unwrap_or_default());
            for told in &status.groups {
                groups.entry(told.name.clone()).or_insert_with(Group::default).add(told, status.uptime_ms);
                hot_keys.extend(hot(told));
            }
        }
        hot_keys.sort_by(|a: &HotKey, b| b.gets_per_second.total_cmp(&a.gets_per_second));
        hot_keys.truncate(HOT_KEYS);
        let groups: Vec<_> = groups.into_values().map(|group| group.with_rates(histories, node)).collect();
        Figures {
            scope,
            node: node.map(str::to_owned),
            fleet,
            operates: scope == Scope::Fleet,
            ring,
            nodes: members.iter().map(|member| Node::of(member, histories)).collect(),
            lately: histories.lately(node),
            used_bytes: groups.iter().map(|group| group.used_bytes).sum(),
            capacity_bytes: groups.iter().map(|group| group.capacity_bytes).sum(),
            failures,
            near,
            groups,
            hot_keys,
            history: histories.rates(node),
        }
    }
}

fn told_by(member: &Member) -> Option<&StatusResponse> {
    member.told.as_ref()?.as_ref().ok()
}

fn hot(group: &GroupStatus) -> impl Iterator<Item = HotKey> {
    group.hot_keys.iter().map(|hot| HotKey {
        key: String::from_utf8_lossy(&hot.key).into_owned(),
        group: group.name.clone(),
        gets_per_second: hot.gets_per_second,
        near_copies: hot.near_copies,
    })
}

impl Node {
    fn of(member: &Member, histories: &Histories) -> Self {
        Node {
            id: member.id.clone(),
            addr: member.addr.clone(),
            zone: member.zone.clone(),
            weight: member.weight,
            share: member.share,
            hints_pending: member.hints_pending,
            health: Health::of(member),
            error: member.told.as_ref().and_then(|told| told.as_ref().err().cloned()),
            told: told_by(member).map(|status| Told::of(status, histories.lately(Some(&member.id)))),
        }
    }
}

impl Health {
    fn of(member: &Member) -> Self {
        match (&member.told, member.reached) {
            (_, Some(false)) => Health::Down,
            _ if !member.alive => Health::NoLease,
            (Some(Err(_)), _) => Health::NoReport,
            (Some(Ok(status)), _) if !status.is_ready => Health::NotReady,
            _ => Health::Up,
        }
    }
}

impl Told {
    fn of(status: &StatusResponse, lately: Option<Rates>) -> Self {
        let sum = |read: fn(&GroupStatus) -> u64| status.groups.iter().map(read).sum();
        Told {
            build: status.build.clone(),
            uptime_ms: status.uptime_ms,
            ring_version: status.ring_version,
            registry_age_ms: status.registry_age_ms,
            lanes: status.lanes,
            connections: status.connections,
            connections_refused: status.connections_refused,
            in_flight: status.in_flight,
            wakes: status.wakes,
            hints_applied: status.hints_applied,
            used_bytes: sum(|group| group.used_bytes),
            capacity_bytes: sum(|group| group.capacity_bytes),
            restored: sum(|group| group.restored),
            disk_bytes: sum(|group| group.disk_bytes),
            lately,
        }
    }
}

impl Near {
    fn add(&mut self, told: NearStatus) {
        self.copies = self.copies.saturating_add(told.copies);
        self.given = self.given.saturating_add(told.given);
        self.invalidated = self.invalidated.saturating_add(told.invalidated);
        self.waits = self.waits.saturating_add(told.waits);
        self.waited_ms = self.waited_ms.saturating_add(told.waited_us / 1000);
        self.unconfirmed = self.unconfirmed.saturating_add(told.unconfirmed);
    }
}

impl Group {
    fn add(&mut self, told: &GroupStatus, uptime_ms: u64) {
        self.name.clone_from(&told.name);
        self.nodes += 1;
        self.eviction.clone_from(&told.eviction);
        self.entries = self.entries.saturating_add(told.entries);
        self.used_bytes = self.used_bytes.saturating_add(told.used_bytes);
        self.capacity_bytes = self.capacity_bytes.saturating_add(told.capacity_bytes);
        self.loads = self.loads.saturating_add(told.loads);
        self.load_failures = self.load_failures.saturating_add(told.load_failures);
        self.flights = self.flights.saturating_add(told.flights);
        self.evicted = self.evicted.saturating_add(told.evicted);
        self.restored = self.restored.saturating_add(told.restored);
        self.disk_bytes = self.disk_bytes.saturating_add(told.disk_bytes);
        self.disk_errors = self.disk_errors.saturating_add(told.disk_errors);
        if badness(&told.breaker) >= badness(&self.breaker) {
            self.breaker.clone_from(&told.breaker);
        }
        self.counts = self.counts.plus(Counts::of(told));
        self.uptime_ms = self.uptime_ms.max(uptime_ms);
    }

    fn with_rates(self, histories: &Histories, node: Option<&str>) -> Self {
        let lately = histories.group_lately(node, &self.name);
        let since_start = Some(self.counts.over(0, self.uptime_ms.max(1)));
        Group { lately, since_start, ..self }
    }
}

fn badness(breaker: &str) -> u8 {
    match breaker {
        "open" => 2,
        "half-open" => 1,
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use peanut_proto::v1::{ErrorCode, Failures, Gets, HotKey as ToldHotKey};

    use super::*;

    fn told(uptime_ms: u64, hits: u64, breaker: &str) -> StatusResponse {
        let group = |name: &str| GroupStatus {
            name: name.to_owned(),
            entries: 10,
            used_bytes: 100,
            capacity_bytes: 1000,
            gets: Some(Gets { hit: hits, ..Gets::default() }),
            breaker: breaker.to_owned(),
            hot_keys: vec![ToldHotKey {
                key: format!("{name}-{hits}").into(),
                gets_per_second: hits as f64,
                near_copies: 2,
            }],
            ..GroupStatus::default()
        };
        let failures = Failures { code: ErrorCode::Overloaded.into(), count: 3 };
        StatusResponse {
            uptime_ms,
            is_ready: true,
            groups: vec![group("pages"), group("scores")],
            failures: vec![failures, Failures { code: ErrorCode::LoaderFailed.into(), count: 0 }],
            near: Some(NearStatus { copies: 5, ..NearStatus::default() }),
            ..StatusResponse::default()
        }
    }

    fn member(id: &str, told: Option<Result<StatusResponse, String>>) -> Member {
        Member { id: id.to_owned(), alive: true, reached: Some(true), told, ..Member::default() }
    }

    fn shown(members: &[Member], node: Option<&str>) -> serde_json::Value {
        let mut histories = Histories::default();
        for at in 1..3 {
            for member in members {
                let Some(Ok(status)) = &member.told else { continue };
                let mut status = status.clone();
                status.uptime_ms += at * 1000;
                for group in &mut status.groups {
                    group.gets.as_mut().unwrap().hit *= at;
                }
                histories.add(&member.id, &status, at * 1000);
            }
        }
        let figures = Figures::new(Scope::Fleet, "f".to_owned(), Ring::default(), members, &histories, node);
        serde_json::to_value(figures).unwrap()
    }

    #[test]
    fn figures_are_sums_over_nodes_or_of_the_one_that_is_asked_for() {
        let members = [
            member("a", Some(Ok(told(1000, 40, "closed")))),
            member("b", Some(Ok(told(2000, 60, "open")))),
            member("c", Some(Err("no answer".to_owned()))),
        ];
        let all = shown(&members, None);
        assert_eq!(
            (&all["used_bytes"], &all["capacity_bytes"], &all["near"]["copies"]),
            (&400.into(), &4000.into(), &10.into())
        );
        assert_eq!((&all["groups"][0]["nodes"], &all["groups"][0]["breaker"]), (&2.into(), &"open".into()));
        assert_eq!(
            (&all["lately"]["gets"], &all["groups"][1]["lately"]["gets"]),
            (&200.0.into(), &100.0.into())
        );
        assert_eq!(all["failures"], serde_json::json!({ "overloaded": 6 }));
        let hot: Vec<_> =
            all["hot_keys"].as_array().unwrap().iter().map(|hot| hot["key"].as_str().unwrap()).collect();
        assert_eq!(hot, ["pages-60", "scores-60", "pages-40", "scores-40"]);
        assert_eq!(
            (&all["nodes"][2]["health"], &all["nodes"][2]["error"]),
            (&"no-report".into(), &"no answer".into())
        );
        let one = shown(&members, Some("a"));
        assert_eq!(
            (&one["used_bytes"], &one["lately"]["gets"], &one["node"]),
            (&200.into(), &80.0.into(), &"a".into())
        );
        assert_eq!(
            (one["nodes"].as_array().unwrap().len(), one["history"].as_array().unwrap().len()),
            (3, 1)
        );
    }

    #[test]
    fn health_is_the_worst_that_is_known() {
        let health = |change: fn(&mut Member)| {
            let mut member = member("a", Some(Ok(told(1, 1, "closed"))));
            change(&mut member);
            Health::of(&member)
        };
        assert_eq!(health(|_| {}), Health::Up);
        assert_eq!(health(|member| member.told = None), Health::Up);
        assert_eq!(health(|member| member.reached = Some(false)), Health::Down);
        assert_eq!(health(|member| member.alive = false), Health::NoLease);
        assert_eq!(health(|member| member.told = Some(Err(String::new()))), Health::NoReport);
        assert_eq!(health(|member| member.told = Some(Ok(StatusResponse::default()))), Health::NotReady);
    }
}
