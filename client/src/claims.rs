//! What a node says of the ring: a hint to read the registry again, which the node is then held to.
//!
//! A node tells which ring it knows with every answer. Where that is a later one than the client's, the
//! registry is read again and the client waits for the ring for a short time. A node that names a ring which
//! the registry turns out not to have is not believed for a while: it is broken, or hostile, and the others
//! are not to suffer from that.

use std::time::Duration;

use peanut_proto::numbers::RingVersion;
use tokio::time::Instant;

/// How long a ring is waited for that a node has named, once for all who hear of it there: a client that is
/// cut off from the registry goes on with what it has.
const PATIENCE: Duration = Duration::from_millis(200);
/// Where a node has named no such ring for so long, the ring is waited for anew: the client may have slept
/// since, and what it asked the registry then has not come.
const NAMED_ANEW: Duration = Duration::from_secs(1);
/// How long a node is not believed that has named a ring which there is not.
const DOUBT: Duration = Duration::from_secs(60);
/// So many ever later rings are believed before the registry has told of any of them.
const MOST_RAISES: u32 = 16;

/// What the registry says.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Told {
    /// The version of its ring.
    pub(crate) version: RingVersion,
    /// When the last full read of it began that has succeeded.
    pub(crate) read: Option<Instant>,
    /// How long this machine has been suspended until now: time that the monotonic clock does not count.
    pub(crate) suspended: Duration,
}

/// What one node has said of rings that the client does not know.
#[derive(Debug, Default)]
pub(crate) struct Claims {
    last: Option<Claim>,
    doubted_until: Option<Instant>,
}

#[derive(Clone, Copy, Debug)]
struct Claim {
    version: RingVersion,
    heard: Instant,
    /// From when on the ring is waited for.
    waited_from: Instant,
    /// When such a ring was last named.
    named: Instant,
    suspended: Duration,
    raises: u32,
}

impl Claim {
    fn new(version: RingVersion, told: Told, now: Instant) -> Self {
        let suspended = told.suspended;
        Claim { version, heard: now, waited_from: now, named: now, suspended, raises: 0 }
    }
}

/// What to do about a version that a node has named.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Heard {
    /// Read the registry again.
    Attempt,
    /// It is being read.
    Asked,
    /// Nothing: the ring that it named before does not exist, as has just turned out.
    Refuted,
    /// Nothing: it is not believed.
    Doubted,
}

impl Claims {
    /// Takes in a version that is later than the client's ring.
    pub(crate) fn hear(&mut self, version: RingVersion, told: Told, now: Instant) -> Heard {
        if self.doubted_until.is_some_and(|until| now < until) {
            return Heard::Doubted;
        }
        let known = self.last.filter(|claim| claim.version >= version);
        if told.version >= version {
            // The registry has told of it, and the client is about to go by it, or holds it to be wrong.
            match known {
                Some(claim) => drop(self.named_again(claim, told.suspended, now)),
                None => self.last = Some(Claim::new(version, told, now)),
            }
            return Heard::Asked;
        }
        let raises = match self.last {
            Some(claim) if told.version >= claim.version => 0,
            Some(claim) if told.read.is_some_and(|read| read > claim.heard) => return self.refute(now),
            Some(claim) if version <= claim.version => return self.named_again(claim, told.suspended, now),
            Some(claim) if claim.raises >= MOST_RAISES => return self.refute(now),
            Some(claim) => claim.raises + 1,
            None => 0,
        };
        self.last = Some(Claim { raises, ..Claim::new(version, told, now) });
        Heard::Attempt
    }

    fn named_again(&mut self, claim: Claim, suspended: Duration, now: Instant) -> Heard {
        let since = now.saturating_duration_since(claim.named);
        let is_anew = since + suspended.saturating_sub(claim.suspended) > NAMED_ANEW;
        let waited_from = if is_anew { now } else { claim.waited_from };
        self.last = Some(Claim { waited_from, named: now, suspended, ..claim });
        if is_anew { Heard::Attempt } else { Heard::Asked }
    }

    fn refute(&mut self, now: Instant) -> Heard {
        *self = Claims { last: None, doubted_until: Some(now + DOUBT) };
        Heard::Refuted
    }

    /// Until when the ring is waited for that the node has named last.
    pub(crate) fn wait_until(&self, now: Instant) -> Instant {
        self.last.map_or(now, |claim| claim.waited_from + PATIENCE)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(version: RingVersion, read: Option<Instant>) -> Told {
        Told { version, read, suspended: Duration::ZERO }
    }

    #[test]
    fn the_registry_is_read_once_for_a_ring_and_waited_for_a_short_time() {
        let (now, mut claims) = (Instant::now(), Claims::default());
        assert_eq!(claims.hear(RingVersion(5), told(RingVersion(4), Some(now)), now), Heard::Attempt);
        let later = now + Duration::from_millis(100);
        assert_eq!(
            claims.hear(RingVersion(5), told(RingVersion(4), Some(now)), later),
            Heard::Asked,
            "that read began before"
        );
        assert_eq!(claims.wait_until(later), now + PATIENCE);
        assert_eq!(
            claims.hear(RingVersion(6), told(RingVersion(5), Some(later)), later),
            Heard::Attempt,
            "it was right"
        );
        assert_eq!(claims.wait_until(later), later + PATIENCE);
    }

    #[test]
    fn a_ring_that_the_registry_has_told_of_is_not_read_again_and_waited_for_once() {
        let (now, mut claims) = (Instant::now(), Claims::default());
        let told = told(RingVersion(5), Some(now));
        for millis in [0, 20, 150, 500, 1400] {
            let later = now + Duration::from_millis(millis);
            assert_eq!(claims.hear(RingVersion(5), told, later), Heard::Asked);
            assert_eq!(claims.wait_until(later), now + PATIENCE, "while the client builds it, or doubts it");
        }
        let woken = now + Duration::from_secs(5);
        assert_eq!(claims.hear(RingVersion(5), told, woken), Heard::Asked);
        assert_eq!(claims.wait_until(woken), woken + PATIENCE);
        assert_eq!(claims.hear(RingVersion(6), told, woken), Heard::Attempt);
    }

    #[test]
    fn after_a_sleep_the_ring_is_read_and_waited_for_anew() {
        let (now, mut claims) = (Instant::now(), Claims::default());
        let old = told(RingVersion(4), None);
        assert_eq!(claims.hear(RingVersion(5), old, now), Heard::Attempt);
        // One that is cut off from the registry goes on: it does not wait with each answer.
        let mut later = now;
        for _ in 0..50 {
            later += NAMED_ANEW / 2;
            assert_eq!(claims.hear(RingVersion(5), old, later), Heard::Asked);
            assert_eq!(claims.wait_until(later), now + PATIENCE);
        }
        let woken = later + NAMED_ANEW * 2;
        assert_eq!(claims.hear(RingVersion(5), old, woken), Heard::Attempt);
        assert_eq!(claims.wait_until(woken), woken + PATIENCE);
        let read = woken + Duration::from_millis(1);
        // As long as it was suspended: the monotonic clock tells of a moment.
        let suspended = Told { suspended: NAMED_ANEW * 2, ..old };
        assert_eq!(claims.hear(RingVersion(5), suspended, woken), Heard::Attempt);
        assert_eq!(claims.hear(RingVersion(5), suspended, woken), Heard::Asked);
        assert_eq!(claims.hear(RingVersion(5), told(RingVersion(4), Some(read)), read), Heard::Refuted);
    }

    #[test]
    fn who_names_a_ring_that_there_is_not_is_not_believed_for_a_while() {
        let (now, mut claims) = (Instant::now(), Claims::default());
        assert_eq!(claims.hear(RingVersion(u64::MAX), told(RingVersion(4), None), now), Heard::Attempt);
        let read = now + Duration::from_millis(1);
        assert_eq!(
            claims.hear(RingVersion(u64::MAX), told(RingVersion(4), Some(read)), read),
            Heard::Refuted
        );
        assert_eq!(
            claims.hear(RingVersion(5), told(RingVersion(4), Some(read)), read),
            Heard::Doubted,
            "whatever it says"
        );
        assert_eq!(claims.wait_until(read), read, "nobody waits");
        assert_eq!(
            claims.hear(RingVersion(5), told(RingVersion(4), Some(read)), read + DOUBT),
            Heard::Attempt
        );
    }

    #[test]
    fn ever_later_rings_are_not_believed_for_long_without_the_registry() {
        let (now, mut claims) = (Instant::now(), Claims::default());
        let heard =
            (5..100).map(|version| claims.hear(RingVersion(version), told(RingVersion(4), None), now));
        assert_eq!(heard.filter(|heard| *heard == Heard::Attempt).count(), 1 + MOST_RAISES as usize);
    }
}
