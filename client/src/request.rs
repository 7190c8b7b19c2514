//! What is asked for, and of whom: a request, its placement by a ring, and the two together as one attempt.

use peanut_proto::frame::Write;
use peanut_proto::numbers::{FillToken, RingVersion};
use peanut_proto::v1::OnMiss;
use tokio::time::Instant;

/// What is asked for, whomever it is asked of.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Request<'a> {
    /// The group's number in this client, and its name.
    pub(crate) group: u32,
    pub(crate) group_name: &'a str,
    pub(crate) key: &'a [u8],
    /// Of group and key.
    pub(crate) hash: u64,
    pub(crate) deadline: Instant,
    pub(crate) op: Op<'a>,
    /// W3C trace context of the caller; empty: none.
    pub(crate) traceparent: &'a str,
}

/// How a ring has chosen the node that is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Placement {
    pub(crate) ring_version: RingVersion,
    /// The ring version since which the node has owned the key; 0: it does not matter.
    pub(crate) owned_since: RingVersion,
    /// The node is asked in the owner's place.
    pub(crate) failover: bool,
}

impl Placement {
    /// Of a key's owner, present or previous.
    pub(crate) fn owner(ring_version: RingVersion, owned_since: RingVersion) -> Self {
        Placement { ring_version, owned_since, failover: false }
    }

    /// Of another node in the owner's place.
    pub(crate) fn in_its_place(ring_version: RingVersion) -> Self {
        Placement { ring_version, owned_since: RingVersion::NONE, failover: true }
    }
}

/// A request as one node is asked for it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Attempt<'a> {
    pub(crate) request: &'a Request<'a>,
    pub(crate) placement: Placement,
}

impl<'a> Request<'a> {
    /// As a node is asked that was chosen so.
    pub(crate) fn at(&'a self, placement: Placement) -> Attempt<'a> {
        Attempt { request: self, placement }
    }
}

/// A key, and the hash of group and key.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Key<'a> {
    pub(crate) bytes: &'a [u8],
    pub(crate) hash: u64,
}

impl<'a> Request<'a> {
    /// The same for another key.
    pub(crate) fn of(&self, key: Key<'a>) -> Self {
        Request { key: key.bytes, hash: key.hash, ..*self }
    }
}

/// Keys of one group that one node, their owner, is asked for together.
#[derive(Debug)]
pub(crate) struct ManyAttempt<'a> {
    /// The request of each, but for its key.
    pub(crate) request: Request<'a>,
    pub(crate) placement: Placement,
    pub(crate) each: Each<'a>,
}

/// What is asked for each of many keys.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Each<'a> {
    /// What the request says. Each with the version since which the node owns it, which is the placement's.
    Get(&'a [(RingVersion, Key<'a>)]),
    Write(&'a [Write<'a>]),
}

impl Each<'_> {
    pub(crate) fn len(&self) -> usize {
        match self {
            Each::Get(keys) => keys.len(),
            Each::Write(writes) => writes.len(),
        }
    }
}

/// What is to be done with a key.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Op<'a> {
    /// Its value. `token` is a fill token that is given back, or 0; `near` that the caller reads a near copy
    /// which is about to end.
    Get {
        on_miss: OnMiss,
        token: FillToken,
        near: bool,
    },
    Write(Write<'a>),
}

impl Op<'_> {
    /// The value, loaded where it is missing.
    pub(crate) const LOAD: Self = Op::Get { on_miss: OnMiss::Load, token: FillToken::NONE, near: false };

    /// As [`LOAD`](Self::LOAD), where a near copy is about to end.
    pub(crate) const RENEW: Self = Op::Get { on_miss: OnMiss::Load, token: FillToken::NONE, near: true };

    /// [`LOAD`](Self::LOAD), or [`RENEW`](Self::RENEW) where a near copy has lapsed.
    pub(crate) fn load(is_lapsed: bool) -> Self {
        if is_lapsed { Self::RENEW } else { Self::LOAD }
    }

    /// Whether one answer does for several who want this.
    pub(crate) fn can_be_shared(&self) -> bool {
        matches!(self, Op::Get { on_miss: OnMiss::Load, token: FillToken::NONE, .. })
    }

    /// Whether it says that the caller reads a near copy.
    pub(crate) fn is_near(&self) -> bool {
        matches!(self, Op::Get { near: true, .. })
    }
}
