//! What nodes tell of themselves, for operators.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::join_all;
use peanut_proto::membership::Key;
use peanut_proto::registry::{KeyRange, PageOptions};
use peanut_proto::v1::admin_client::AdminClient;
use peanut_proto::v1::{GroupStatus, HotKey, StatusRequest, StatusResponse};
use tokio::time::{Instant, timeout_at};

use crate::client::{Client, NodeStatus};
use crate::error::{Error, ErrorKind};
use crate::node::Node;
use crate::unary::refused;

/// What a node tells of itself; counts are since its start.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct NodeReport {
    /// Version of the build.
    pub build: String,
    /// Since the process began.
    pub uptime: Duration,
    /// Whether it serves, and is in the ring.
    pub is_ready: bool,
    /// Newest ring version that it has heard of.
    pub ring_version: u64,
    /// Lanes that clients have open.
    pub lanes: u64,
    /// Connections that clients have open.
    pub connections: u64,
    /// Operations on lanes that wait for a load or the disk.
    pub in_flight: u64,
    /// For how long it has been unable to read the registry; zero while it can.
    pub registry_age: Duration,
    /// Its groups, in order of name.
    pub groups: Vec<GroupReport>,
}

/// What a node tells of a group.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct GroupReport {
    /// Its name.
    pub name: String,
    /// Entries in memory.
    pub entries: u64,
    /// Bytes in memory.
    pub used_bytes: u64,
    /// Bytes that there may be.
    pub capacity_bytes: u64,
    /// Gets that were answered with a value from memory.
    pub hits: u64,
    /// Gets that were answered with a value past its time, since it could not be loaded.
    pub stale: u64,
    /// Gets that caused a load.
    pub loaded: u64,
    /// Gets that waited for a load of another.
    pub coalesced: u64,
    /// Gets of keys that were known not to exist.
    pub negative: u64,
    /// Gets of keys of which there is nothing, in a group without a loader.
    pub misses: u64,
    /// Gets whose callers were to load the value.
    pub fills: u64,
    /// Gets that failed.
    pub errors: u64,
    /// Calls of the loader.
    pub loads: u64,
    /// The time that they took together.
    pub load_time: Duration,
    /// Keys that could not be loaded.
    pub load_failures: u64,
    /// Entries that had to leave before they expired.
    pub evicted: u64,
    /// Loads in progress or waiting.
    pub flights: u64,
    /// Of the origin: `closed`, `open` or `half-open`.
    pub breaker: String,
    /// What is asked for most, the hottest first.
    pub hot_keys: Vec<HotKeyReport>,
}

/// A key that is asked for often.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct HotKeyReport {
    /// The key.
    pub key: Bytes,
    /// Gets a second, lately; an estimate. Those of near copies are not among them.
    pub gets_per_second: f64,
    /// Lanes of clients that hold a near copy of it.
    pub near_copies: u32,
}

impl GroupReport {
    /// All gets of applications.
    pub fn gets(&self) -> u64 {
        let others = [self.loaded, self.coalesced, self.misses, self.fills, self.errors];
        others.iter().fold(self.answered_from_memory(), |sum, count| sum.saturating_add(*count))
    }

    /// Gets that an entry in memory has answered. Of all gets that is the hit ratio.
    pub fn answered_from_memory(&self) -> u64 {
        self.hits.saturating_add(self.stale).saturating_add(self.negative)
    }
}

/// A node with hundreds of groups tells of 128 hot keys of each, of up to a kilobyte.
const MOST_REPORT_BYTES: usize = 64 << 20;
/// Hints that are counted at most.
const MOST_HINTS: usize = 10_000;

impl Client {
    /// Asks every node of the ring what it tells of itself, with at most so many hot keys of each group; in
    /// order of id. Where the nodes have tokens this client's needs the right `admin`.
    pub async fn reports(&self, hot_keys: u32) -> Vec<(NodeStatus, Result<NodeReport, Error>)> {
        let statuses = self.statuses(hot_keys, self.config().deadline).await.into_iter();
        statuses.map(|(node, status)| (node, status.map(read))).collect()
    }

    /// As [`reports`](Self::reports), as nodes send it, of those that answer in time. For the project's own
    /// page; no part of the API.
    #[doc(hidden)]
    pub async fn statuses(
        &self,
        hot_keys: u32,
        within: Duration,
    ) -> Vec<(NodeStatus, Result<StatusResponse, Error>)> {
        let routing = self.routing();
        let asked = routing.nodes().iter().map(|node| status(node, within, hot_keys));
        let told = join_all(asked).await;
        let ids = routing.nodes().iter().map(|node| node.id());
        let mut told: HashMap<&str, _> = ids.zip(told).collect();
        // After they were asked: what was seen of them then counts. The ring may have changed meanwhile.
        let nodes = self.nodes().into_iter();
        nodes.filter_map(|node| told.remove(node.id.as_str()).map(|status| (node, status))).collect()
    }

    /// How many hints the registry keeps for each node, by its id; of the first ten thousand of them. `None`:
    /// it cannot be read, or there is none. For the project's own page; no part of the API.
    #[doc(hidden)]
    pub async fn pending_hints(&self) -> Option<HashMap<String, u64>> {
        let (registry, keys) = self.registry();
        let range = KeyRange::prefix(&keys.all_hints());
        let first = PageOptions { keys_only: true, limit: MOST_HINTS, ..PageOptions::default() };
        let page = registry.as_ref()?.page(&range, first).await.ok()?;
        let mut pending = HashMap::new();
        for entry in &page.entries {
            if let Some(Key::Hint { node, .. }) = keys.parse(&entry.key) {
                *pending.entry(node.to_owned()).or_default() += 1;
            }
        }
        Some(pending)
    }
}

async fn status(node: &Arc<Node>, within: Duration, hot_keys: u32) -> Result<StatusResponse, Error> {
    let deadline = Instant::now() + within;
    let Some(channel) = node.channel() else {
        return Err(Error::at(ErrorKind::Unavailable, node.id(), &*node.out_of_reach()));
    };
    let request = node.request(StatusRequest { hot_keys });
    let mut admin = AdminClient::new(channel).max_decoding_message_size(MOST_REPORT_BYTES);
    match timeout_at(deadline, admin.status(request)).await {
        Ok(Ok(response)) => Ok(response.into_inner()),
        Ok(Err(status)) => Err(refused(node, status, deadline).into_error()),
        Err(_) => Err(node.too_late()),
    }
}

fn read(status: StatusResponse) -> NodeReport {
    NodeReport {
        build: status.build,
        uptime: Duration::from_millis(status.uptime_ms),
        is_ready: status.is_ready,
        ring_version: status.ring_version,
        lanes: status.lanes,
        connections: status.connections,
        in_flight: status.in_flight,
        registry_age: Duration::from_millis(status.registry_age_ms),
        groups: status.groups.into_iter().map(group).collect(),
    }
}

fn group(group: GroupStatus) -> GroupReport {
    let gets = group.gets.unwrap_or_default();
    GroupReport {
        name: group.name,
        entries: group.entries,
        used_bytes: group.used_bytes,
        capacity_bytes: group.capacity_bytes,
        hits: gets.hit,
        stale: gets.stale,
        loaded: gets.loaded,
        coalesced: gets.coalesced,
        negative: gets.negative,
        misses: gets.miss,
        fills: gets.fill,
        errors: gets.error,
        loads: group.loads,
        load_time: Duration::try_from_secs_f64(group.load_seconds).unwrap_or_default(),
        load_failures: group.load_failures,
        evicted: group.evicted,
        flights: group.flights,
        breaker: group.breaker,
        hot_keys: group.hot_keys.into_iter().map(hot_key).collect(),
    }
}

fn hot_key(hot: HotKey) -> HotKeyReport {
    let rate = if hot.gets_per_second.is_finite() { hot.gets_per_second } else { 0.0 };
    HotKeyReport { key: hot.key, gets_per_second: rate, near_copies: hot.near_copies }
}
