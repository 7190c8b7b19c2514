//! `peanut.v1.Admin`: what the node knows of itself, in one piece. The admin page and the metrics are made of
//! the same.

use std::sync::atomic::{AtomicU64, Ordering};

use peanut_proto::clock::milliseconds;
use peanut_proto::v1::admin_server::Admin;
use peanut_proto::v1::{Failures, GroupStatus, HotKey, NearStatus, StatusRequest, StatusResponse};
use tokio::time::Instant;
use tonic::{Request, Response, Status};

use crate::breaker::Position;
use crate::cache::Cache;
use crate::near::NearLeases;
use crate::node::{Membership, Node};

/// Hot keys of a group that are kept.
const MOST_HOT_KEYS: u32 = 128;

#[tonic::async_trait]
impl Admin for Node {
    async fn status(&self, request: Request<StatusRequest>) -> Result<Response<StatusResponse>, Status> {
        self.rights(&request).and_then(|rights| rights.check_admin()).map_err(|why| self.refuse(why))?;
        Ok(Response::new(self.status_now(request.into_inner().hot_keys)))
    }
}

impl Node {
    /// Everything about the node at this moment, groups in order of name.
    pub(crate) fn status_now(&self, hot_keys: u32) -> StatusResponse {
        let read = |count: &AtomicU64| count.load(Ordering::Relaxed);
        let hot_keys = hot_keys.min(MOST_HOT_KEYS) as usize;
        let mut groups: Vec<_> = self.caches().map(|cache| group(cache, hot_keys)).collect();
        groups.sort_unstable_by(|a, b| a.name.cmp(&b.name));
        let Membership { id, fleet: fleet_name, discovered, .. } = self.membership();
        let fleet = discovered.as_ref().map(|discovered| discovered.borrow().clone());
        let age = fleet.as_ref().map(|fleet| fleet.age(Instant::now())).unwrap_or_default();
        let ring = fleet.as_ref().map(|fleet| &fleet.view.ring);
        let (metrics, limiter) = (self.metrics(), self.limiter());
        let failures = metrics.failures().map(|(code, count)| Failures { code: code.into(), count });
        StatusResponse {
            node_id: id.clone(),
            fleet: fleet_name.clone(),
            build: env!("CARGO_PKG_VERSION").to_owned(),
            uptime_ms: milliseconds(self.uptime()),
            ring_version: self.ring().version().0,
            lanes: read(&metrics.lanes),
            connections: limiter.connections() as u64,
            in_flight: read(&metrics.in_flight),
            groups,
            connections_refused: limiter.refused() as u64,
            wakes: self.wake().sleeps(),
            hints_applied: read(&metrics.hints_applied),
            ring_fingerprint: ring.map_or(0, |ring| ring.fingerprint()),
            ring_members: ring.map_or(0, |ring| ring.members.len() as u64),
            registry_age_ms: milliseconds(age),
            is_ready: self.is_ready(),
            failures: failures.collect(),
            near: Some(near(self.near())),
        }
    }
}

fn near(near: &NearLeases) -> NearStatus {
    let (metrics, read) = (&near.metrics, |count: &AtomicU64| count.load(Ordering::Relaxed));
    NearStatus {
        copies: near.copies() as u64,
        given: read(&metrics.given),
        renewed: read(&metrics.renewed),
        invalidated: read(&metrics.invalidated),
        waits: read(&metrics.waited),
        waited_us: read(&metrics.waited_us),
        unconfirmed: read(&metrics.unconfirmed),
    }
}

fn group(cache: &Cache, hot_keys: usize) -> GroupStatus {
    let (metrics, store) = (&cache.metrics, cache.entries());
    let read = |count: &AtomicU64| count.load(Ordering::Relaxed);
    let (loads, gets) = (metrics.load_times(), metrics.get_times());
    let disk = cache.journal().map(|journal| journal.stats());
    let hot = cache.hottest(hot_keys).into_iter();
    GroupStatus {
        name: cache.name().to_owned(),
        eviction: cache.policy().eviction.to_string(),
        entries: store.len() as u64,
        used_bytes: store.used_bytes() as u64,
        capacity_bytes: cache.policy().capacity_bytes as u64,
        gets: Some(metrics.gets()),
        loads: loads.count(),
        keys_loaded: metrics.keys_loaded(),
        load_failures: read(&metrics.load_failures),
        load_seconds: loads.seconds,
        refreshes: read(&metrics.refreshes),
        flights: cache.in_progress() as u64,
        evicted: store.evicted(),
        sets: read(&metrics.sets),
        deletes: read(&metrics.deletes),
        clears: read(&metrics.clears),
        breaker: match cache.breaker() {
            Position::Closed => "closed",
            Position::Open => "open",
            Position::HalfOpen => "half-open",
        }
        .to_owned(),
        hot_keys: hot
            .map(|hot| HotKey {
                near_copies: u32::try_from(cache.near_holders(&hot.key)).unwrap_or(u32::MAX),
                key: hot.key,
                gets_per_second: hot.gets_per_second,
            })
            .collect(),
        restored: disk.as_ref().map_or(0, |disk| disk.restored),
        disk_bytes: disk.as_ref().map_or(0, |disk| disk.disk_bytes),
        disk_errors: disk.as_ref().map_or(0, |disk| disk.disk_errors),
        failover_gets: read(&metrics.failover_gets),
        fills: read(&metrics.fills),
        fills_refused: read(&metrics.fills_refused),
        too_large: read(&metrics.too_large),
        hand_overs: read(&metrics.hand_overs),
        load_buckets: loads.buckets.to_vec(),
        get_buckets: gets.buckets.to_vec(),
        get_seconds: gets.seconds,
    }
}
