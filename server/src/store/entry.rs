//! One entry: a value or the knowledge that there is none, its age, and the ring version it was written
//! under.

use std::time::Duration;

use tokio::time::Instant;

use super::Value;
use peanut_proto::numbers::RingVersion;

/// Why a node holds an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Origin {
    /// It owned the key.
    Owner,
    /// A client asked it in the owner's place. Such an entry answers only such clients, and vice versa:
    /// what this node wrote as an owner of old may be long outdated.
    Failover,
}

impl Origin {
    /// As whom a node is asked.
    pub fn of(failover: bool) -> Self {
        if failover { Origin::Failover } else { Origin::Owner }
    }
}

/// What is remembered of a key.
#[derive(Clone, Debug)]
pub struct Entry {
    /// The value; `None` where the origin has no such key.
    pub value: Option<Value>,
    /// When the load began: the value is at least as new as that.
    pub loaded: Instant,
    /// From when on it is not shown any more.
    pub expires: Instant,
    /// Ring version of the request that caused the load.
    pub stamp: RingVersion,
    /// Why the node holds it.
    pub origin: Origin,
}

/// An entry as a shard gives it, its times in milliseconds since the store began.
#[derive(Debug)]
pub(super) struct StoredEntry {
    pub(super) value: Option<Value>,
    pub(super) loaded_ms: u64,
    pub(super) expires_ms: u64,
    pub(super) stamp: RingVersion,
    pub(super) origin: Origin,
}

impl StoredEntry {
    /// By the monotonic clock, which has not counted so many of them.
    pub(super) fn since(self, began: Instant, suspended_ms: u64) -> Entry {
        let at = |ms: u64| began + Duration::from_millis(ms.saturating_sub(suspended_ms));
        Entry {
            value: self.value,
            loaded: at(self.loaded_ms),
            expires: at(self.expires_ms),
            stamp: self.stamp,
            origin: self.origin,
        }
    }
}
