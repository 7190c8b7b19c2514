//! One operation of a lane, from its fields to what the cache is asked.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use peanut_proto::frame::Operation;
use peanut_proto::limits::is_traceparent;
use peanut_proto::numbers::{Generation, RingVersion};
use peanut_proto::v1::OnMiss;
use peanut_proto::v1::operation::Kind;
use tokio::time::Instant;

use crate::budget::Account;
use crate::cache::{Begun, Cache, Condition, Delete, Fetched, Get, Set};
use crate::near::LaneId;
use crate::node::Node;
use crate::store::Origin;
use peanut_edge::Failure;

/// An operation, with what it goes by.
pub(super) struct LaneRequest {
    pub(super) operation: Operation,
    /// The ring that the client goes by.
    pub(super) ring_version: RingVersion,
    pub(super) may_fill: Result<(), Failure>,
    pub(super) deadline: Option<Instant>,
    /// The lane, if it has near copies.
    pub(super) by: Option<LaneId>,
}

impl LaneRequest {
    /// Bytes that it holds while it waits.
    pub(super) fn bytes(&self) -> usize {
        self.operation.key.len() + self.operation.rare.as_ref().map_or(0, |rare| rare.value.len())
    }

    /// The same, without the frame that it came in.
    pub(super) fn kept(mut self) -> Self {
        let copy = |bytes: &mut Bytes| *bytes = Bytes::copy_from_slice(bytes);
        copy(&mut self.operation.key);
        if let Some(rare) = &mut self.operation.rare {
            copy(&mut rare.value);
            copy(&mut rare.traceparent);
        }
        self
    }

    pub(super) fn begin(
        self,
        node: &Node,
        cache: &Arc<Cache>,
        account: &Arc<Account>,
        now: Instant,
    ) -> Result<Begun, Failure> {
        let LaneRequest { operation, ring_version, may_fill, deadline, by } = self;
        let (origin, rare) =
            (Origin::of(operation.failover), operation.rare.map(|rare| *rare).unwrap_or_default());
        match operation.kind {
            Kind::Get => {
                let get = Get {
                    key: operation.key,
                    on_miss: operation.on_miss,
                    stamp: node.ring().stamp(ring_version),
                    validity: node.ring().validity(ring_version, operation.owned_since),
                    origin,
                    token: operation.token,
                    traceparent: Some(rare.traceparent).filter(|it| is_traceparent(it)).unwrap_or_default(),
                    may_fill,
                    deadline,
                    may_hand_over: node.ring().knows_writes_since(operation.owned_since),
                };
                cache.begin(&get, account, now)
            }
            Kind::Set => {
                let or_token = (operation.on_miss == OnMiss::Lease).then(|| account.clone());
                let condition = match rare.raised {
                    0 => Condition::Always,
                    sequence => Condition::Sequence(sequence, or_token),
                };
                let set = Set {
                    key: operation.key,
                    fetched: Fetched::new(rare.value, rare.not_found, rare.load_error),
                    ttl: (rare.ttl_ms > 0).then(|| Duration::from_millis(rare.ttl_ms)),
                    stamp: ring_version.min(node.ring().stamp(ring_version)),
                    origin,
                    under: node.ring().heard_of(ring_version),
                    token: operation.token,
                    condition,
                    by,
                };
                cache.set(set, now)
            }
            Kind::Delete => {
                let then_set = (operation.on_miss == OnMiss::Lease).then_some(account);
                let stamp = ring_version.min(node.ring().stamp(ring_version));
                let delete = Delete {
                    key: &operation.key,
                    under: node.ring().heard_of(ring_version),
                    stamp,
                    then_set,
                    sequence: rare.raised,
                    by,
                };
                cache.delete(delete, now)
            }
            Kind::Clear => Ok(cache.clear(Generation(rare.raised), node.ring().heard_of(ring_version), by)),
            Kind::Release => Ok(cache.release(operation.token)),
        }
    }
}
