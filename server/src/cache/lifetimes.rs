//! How long entries are fresh, and how long they are kept.

use std::time::Duration;

use tokio::time::Instant;

use super::Cache;
use crate::store::{Entry, Origin};

impl Cache {
    /// How long an entry is kept that is fresh for `ttl`.
    pub(super) fn kept_for(&self, ttl: Duration, origin: Origin, has_value: bool) -> Duration {
        if ttl.is_zero() { ttl } else { ttl + self.stale_window(origin, has_value) }
    }

    pub(super) fn is_fresh(&self, entry: &Entry, now: Instant) -> bool {
        now + self.stale_window(entry.origin, entry.value.is_some()) < entry.expires
    }

    /// How long an entry is kept beyond its time to live.
    pub(super) fn stale_window(&self, origin: Origin, has_value: bool) -> Duration {
        if origin == Origin::Owner && has_value { self.policy.stale_if_error } else { Duration::ZERO }
    }

    pub(super) fn bounded(&self, ttl: Duration, origin: Origin) -> Duration {
        let most = match origin {
            Origin::Owner => self.policy.max_ttl,
            Origin::Failover => self.policy.max_ttl.min(self.policy.failover_ttl),
        };
        ttl.min(most)
    }

    pub(super) fn jittered(&self, ttl: Duration) -> Duration {
        ttl.mul_f64(1.0 - self.policy.ttl_jitter * fastrand::f64())
    }
}
