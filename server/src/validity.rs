//! What of the store, and of loads in progress, is valid for a caller.

use peanut_proto::numbers::RingVersion;
use peanut_proto::sabotage::{Mechanism, without};
use tokio::time::Instant;

/// What was loaded under that ring version, or a later one, and not before that time.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Validity {
    /// Since when this node owns the key; at most what the node knows.
    pub(crate) owned_since: RingVersion,
    pub(crate) loaded_since: Option<Instant>,
}

impl Validity {
    /// All since the node has come to own the key.
    pub(crate) fn since(owned_since: RingVersion) -> Self {
        Validity { owned_since, loaded_since: None }
    }

    /// The ring version, for what is stored.
    pub(crate) fn stamp(self) -> RingVersion {
        if without(Mechanism::Stamps) { RingVersion::NONE } else { self.owned_since }
    }

    /// Whether what was loaded at that time is valid.
    pub(crate) fn is_loaded(self, loaded: Instant) -> bool {
        self.loaded_since.is_none_or(|since| loaded >= since)
    }
}
