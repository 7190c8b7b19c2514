//! Which ring version the node knows. The registry tells it; what callers say is a hint to look there.
//!
//! An entry is stamped with the version that the node knows, and a get of a key that the node has come to own
//! under a later one waits until the registry has told of that, or is refused. So nobody can make the node
//! forget, or keep an entry for longer than it is good, by saying a version that is none.
//!
//! A node that has not been able to read its registry since it started goes by what callers say, since the
//! fleet goes on without the registry; what it has stored by then is forgotten as soon as it knows.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use peanut_proto::discovery::Reloader;
use peanut_proto::numbers::RingVersion;
use peanut_proto::sabotage::{Mechanism, without};
use tokio::sync::Notify;
use tokio::time::{Instant, timeout_at};

use crate::validity::Validity;

/// How long the registry may take to tell of a version that a caller has named.
const LOOK: Duration = Duration::from_millis(250);
/// No writer is believed to be so many versions ahead.
const FAR_AHEAD: u64 = 16;
/// So many rings may have come meanwhile.
const FEW: u64 = 2;
/// The version where there is no registry.
const FIXED: RingVersion = RingVersion(1);

/// What the node knows.
#[derive(Debug)]
pub(crate) struct KnownRing {
    /// The newest version that the registry has told; 0 before. Every answer looks at it.
    version: AtomicU64,
    /// Wakes who waits for a version.
    raised: Notify,
    /// Asks the registry again; there is none where the node has no registry.
    registry: Option<Reloader>,
    /// Something was stored by what a caller said.
    was_blind: AtomicBool,
    /// The first version that the registry has told; 0 before.
    first: AtomicU64,
    /// The version that was known when the node came to hold its lease; 0 before.
    leased: AtomicU64,
    /// When it did.
    leased_at: Mutex<Option<Instant>>,
}

impl KnownRing {
    /// What is learned from that registry.
    pub(crate) fn new(registry: Option<Reloader>) -> Self {
        KnownRing {
            version: AtomicU64::new(0),
            raised: Notify::new(),
            registry,
            was_blind: AtomicBool::new(false),
            first: AtomicU64::new(0),
            leased: AtomicU64::new(0),
            leased_at: Mutex::new(None),
        }
    }

    /// The version, as the registry tells it; 0 where it has not told yet.
    pub(crate) fn version(&self) -> RingVersion {
        let version = RingVersion(self.version.load(Ordering::Acquire));
        if version == RingVersion::NONE && self.registry.is_none() { FIXED } else { version }
    }

    /// The version that a caller is told with an answer, looked at once the answer is found: a node that does
    /// not own the key any more is not told of all writes.
    pub(crate) fn told(&self) -> RingVersion {
        if without(Mechanism::RingTold) { RingVersion::NONE } else { self.version() }
    }

    /// Takes in what the registry says. Whether what was stored before is to be forgotten.
    pub(crate) fn learn(&self, version: RingVersion) -> bool {
        let was_unknown = self.version.load(Ordering::Relaxed) == 0;
        if was_unknown {
            self.first.store(version.0, Ordering::Relaxed);
        }
        if self.version.fetch_max(version.0, Ordering::AcqRel) < version.0 {
            self.raised.notify_waiters();
        }
        was_unknown && version > RingVersion::NONE && self.was_blind.swap(false, Ordering::Relaxed)
    }

    /// The version that goes for a caller's claim: the node's own, or the claim where the node cannot know.
    pub(crate) fn stamp(&self, claimed: RingVersion) -> RingVersion {
        match self.version() {
            RingVersion::NONE => {
                self.was_blind.store(true, Ordering::Relaxed);
                claimed
            }
            known => known,
        }
    }

    /// The node comes to hold a lease.
    pub(crate) fn leased(&self) {
        // The time comes first: who sees the version is to see it.
        *self.leased_at.lock() = Some(Instant::now());
        self.leased.store(self.version().0, Ordering::Release);
    }

    /// What of the store is valid for a get by that ring of a key that the node owns since then. While a node
    /// holds no lease, writes by a ring under which it owns the key no more are not told to it, at once or
    /// later: a caller that still goes by an older ring than it came back under is shown nothing that it had
    /// before, whichever ring that was loaded under.
    pub(crate) fn validity(&self, asked_by: RingVersion, owned_since: RingVersion) -> Validity {
        let leased = RingVersion(self.leased.load(Ordering::Acquire));
        if asked_by < leased && asked_by != RingVersion::NONE {
            Validity { owned_since: owned_since.max(leased), loaded_since: *self.leased_at.lock() }
        } else {
            Validity::since(owned_since)
        }
    }

    /// Whether this process knows of every write of a key that it has come to own under this version: what
    /// was written under the first version that the registry has told, and before, it may not have been told.
    pub(crate) fn knows_writes_since(&self, owned_since: RingVersion) -> bool {
        let first = RingVersion(self.first.load(Ordering::Relaxed));
        first != RingVersion::NONE && owned_since > first
    }

    /// The version that a writer goes by, as far as it is to be believed: one that the node does not know
    /// yet, but not any.
    pub(crate) fn heard_of(&self, claimed: RingVersion) -> RingVersion {
        match self.version() {
            RingVersion::NONE => claimed,
            known => claimed.min(known.plus(FAR_AHEAD)),
        }
    }

    /// The newest version that a writer to the registry may have gone by: what the registry tells here is not
    /// late by many.
    pub(crate) fn heard_of_any(&self) -> RingVersion {
        self.version().plus(FEW)
    }

    /// Whether a version is known here; where it is not, the registry is asked.
    pub(crate) fn knows(&self, claimed: RingVersion) -> bool {
        let known = self.version();
        if claimed <= known || known == RingVersion::NONE {
            return true;
        }
        if let Some(registry) = &self.registry {
            registry.reload();
        }
        false
    }

    /// Waits until the registry has told of a version, for a short time. Whether it has.
    pub(crate) async fn look_for(&self, claimed: RingVersion) -> bool {
        if self.knows(claimed) {
            return true;
        }
        if self.registry.is_none() {
            return false;
        }
        let is_raised = async {
            loop {
                // Waits from before the look, so that no raise between the two is missed.
                let raised = self.raised.notified();
                if self.version() >= claimed {
                    return;
                }
                raised.await;
            }
        };
        timeout_at(Instant::now() + LOOK, is_raised).await.is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn who_goes_by_an_older_ring_than_the_node_came_back_under_is_shown_nothing_from_before() {
        let (ring, old, new) = (KnownRing::new(Some(Reloader::default())), RingVersion(4), RingVersion(5));
        ring.learn(old);
        ring.leased();
        ring.learn(new);
        let good = |asked_by, loaded| {
            let validity = ring.validity(asked_by, RingVersion(2));
            (validity.owned_since, validity.is_loaded(loaded))
        };
        let before = Instant::now();
        assert_eq!(good(old, before), (RingVersion(2), true), "it has been there all the time");
        tokio::time::advance(Duration::from_millis(1)).await;
        ring.leased();
        assert_eq!(good(old, before), (new, false), "under whichever ring it was loaded");
        assert_eq!(good(old, Instant::now()), (new, true));
        assert_eq!(good(new, before), (RingVersion(2), true));
        assert_eq!(good(RingVersion::NONE, before), (RingVersion(2), true));
    }

    #[tokio::test(start_paused = true)]
    async fn a_version_that_the_registry_does_not_tell_is_not_known_and_changes_nothing() {
        let fixed = KnownRing::new(None);
        assert!(
            fixed.knows(RingVersion(1)) && !fixed.knows(RingVersion(2)),
            "without a registry there is one ring"
        );
        let registry = Reloader::default();
        let ring = KnownRing::new(Some(registry.clone()));
        assert!(ring.knows(RingVersion(u64::MAX)), "nothing has been read yet");
        assert!(!ring.knows_writes_since(RingVersion(7)), "those before the start, to begin with");
        assert_eq!(ring.stamp(RingVersion(7)), RingVersion(7));
        const FIVE: RingVersion = RingVersion(5);
        assert!(ring.learn(FIVE), "what was stored by then is forgotten");
        assert_eq!(
            (ring.stamp(RingVersion(u64::MAX)), ring.stamp(RingVersion::NONE), ring.version()),
            (FIVE, FIVE, FIVE)
        );
        assert!(ring.knows_writes_since(RingVersion(6)) && !ring.knows_writes_since(FIVE));
        assert!(!ring.look_for(RingVersion(6)).await && registry.is_asked().await);
        assert!(!ring.learn(RingVersion(6)));
        assert!(ring.look_for(RingVersion(6)).await);
        ring.learn(RingVersion(4));
        assert_eq!(ring.version(), RingVersion(6));
    }
}
