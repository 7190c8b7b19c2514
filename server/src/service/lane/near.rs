//! The near copies of one lane, in its stream: what its client may keep, what it is told, and its lease.

use std::sync::Arc;
use std::task::Context;
use std::time::Duration;

use bytes::Bytes;
use peanut_proto::clock::uptime;
use peanut_proto::frame::{Operation, ResponseWriter};
use peanut_proto::numbers::RingVersion;
use peanut_proto::v1::Outcome;

use crate::cache::{Answer, Cache};
use crate::near::{LaneId, NearLane, NearLeases};
use crate::node::KnownRing;
use crate::rights::Caller;
use crate::validity::Validity;

/// What has to be known of a get whose answer may be kept.
#[derive(Clone, Debug)]
pub(super) struct Keep {
    key: Bytes,
    validity: Validity,
}

impl Keep {
    pub(super) fn new(get: &Operation, ring: &KnownRing, asked_by: RingVersion) -> Self {
        Keep { key: get.key.clone(), validity: ring.validity(asked_by, get.owned_since) }
    }

    /// The same, without the frame that it came in.
    pub(super) fn kept(self) -> Self {
        Keep { key: Bytes::copy_from_slice(&self.key), ..self }
    }
}

/// The near copies of a lane.
#[derive(Debug, Default)]
pub(super) struct NearStream {
    /// For how long they may be outdated.
    staleness: Duration,
    /// `None` until a group is named of which there are some.
    lane: Option<Arc<NearLane>>,
}

impl NearStream {
    /// Takes in for how long the client's copies may be outdated.
    pub(super) fn open(&mut self, staleness: Duration) {
        self.staleness = staleness;
    }

    /// The client keeps copies of keys of some group.
    pub(super) fn begin(&mut self, leases: &NearLeases, caller: &Caller) {
        let who = || (caller.rights().token().clone(), caller.ip());
        self.lane.get_or_insert_with(|| leases.open(self.staleness, who()));
    }

    pub(super) fn is_begun(&self) -> bool {
        self.lane.is_some()
    }

    pub(super) fn id(&self) -> Option<LaneId> {
        self.lane.as_ref().map(|lane| lane.id())
    }

    /// Writes what the client is to be told, and has the stream polled when there is more.
    pub(super) fn poll(&self, context: &Context<'_>, frame: &mut ResponseWriter) {
        if let Some(lane) = &self.lane {
            lane.wake_by(context.waker());
            lane.write(frame);
        }
    }

    /// Writes what the client is to be told.
    pub(super) fn write(&self, frame: &mut ResponseWriter) {
        if let Some(lane) = &self.lane {
            lane.write(frame);
        }
    }

    pub(super) fn confirm(&self, number: u64) {
        if let Some(lane) = &self.lane {
            lane.confirm(number);
        }
    }

    /// Answers a renewal, unless there is to be no lease: then the client's runs out.
    pub(super) fn renew(&mut self, leases: &NearLeases, number: u64, frame: &mut ResponseWriter) {
        if let Some(is_new) = self.lease(leases, frame) {
            frame.near_renewed(number, is_new);
            leases.renewed();
        }
    }

    /// The answer that the client may keep, where there is one; to be written at once.
    pub(super) fn answer_to_keep(
        &mut self,
        leases: &NearLeases,
        cache: &Cache,
        keep: &Keep,
        outcome: Outcome,
        frame: &mut ResponseWriter,
    ) -> Option<Answer> {
        let is_new = self.lease(leases, frame)?;
        if is_new {
            frame.invalidation(0, &[]);
        }
        cache.answer_to_keep(&keep.key, keep.validity, outcome, self.lane.as_ref()?)
    }

    /// Has the lease stand. Whether it had lapsed, so that what the lane holds is outdated; `None`: it is to
    /// have none.
    fn lease(&mut self, leases: &NearLeases, frame: &mut ResponseWriter) -> Option<bool> {
        let lane = self.lane.as_mut()?;
        let now = uptime();
        if !leases.may_give(now) || !lane.may_have(now) {
            return None;
        }
        if lane.extend(frame) {
            return Some(false);
        }
        *lane = leases.reopen(lane);
        lane.begin();
        Some(true)
    }
}

impl Drop for NearStream {
    fn drop(&mut self) {
        if let Some(lane) = &self.lane {
            lane.end();
        }
    }
}
