//! Leases of clients that lead flights: which tokens are out, when each is late, and for how long those that
//! are late are remembered.

use std::collections::{BTreeSet, HashMap, VecDeque};

use bytes::Bytes;
use peanut_proto::numbers::{FillToken, RingVersion};
use tokio::sync::watch;
use tokio::time::{Duration, Instant};

use super::Progress;
use crate::budget::{Held, Reservation};
use crate::store::Origin;

/// How long what a late lease brings is waited for.
const LONGEST_LATE: Duration = Duration::from_secs(600);
/// Late leases that are remembered; beyond that the oldest are void.
const MOST_LATE: usize = 4096;

/// The time of a lease.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Term {
    /// When it was given: what its client brings is at least as new as that.
    pub(crate) given: Instant,
    /// When it is late.
    pub(crate) until: Instant,
}

#[derive(Debug)]
pub(super) struct Lease {
    pub(super) key: (Origin, Bytes),
    pub(super) stamp: RingVersion,
    pub(super) term: Term,
    /// The key's writes up to the time when it was given.
    pub(super) writes: (u64, u64),
    pub(super) progress: watch::Sender<Progress>,
    pub(super) reserved: Reservation,
    /// It counts for its holder.
    pub(super) _held: Option<Held>,
}

/// Those of one group, poisoned and late ones included.
#[derive(Debug, Default)]
pub(super) struct Leases {
    by_token: HashMap<FillToken, Lease>,
    /// Those that are not late yet, by when they will be.
    due: BTreeSet<(Instant, FillToken)>,
    /// Late ones, the oldest first, and until when they are remembered. Some of them may have ended.
    late: VecDeque<(Instant, FillToken)>,
}

impl Leases {
    pub(super) fn insert(&mut self, token: FillToken, lease: Lease) {
        self.due.insert((lease.term.until, token));
        self.by_token.insert(token, lease);
    }

    pub(super) fn get(&self, token: FillToken) -> Option<&Lease> {
        self.by_token.get(&token)
    }

    /// Ends a lease, if it stands.
    pub(super) fn end(&mut self, token: FillToken) -> Option<Lease> {
        let lease = self.by_token.remove(&token)?;
        self.due.remove(&(lease.term.until, token));
        Some(lease)
    }

    /// The next lease that has become late by now. It is either remembered as that, or ended.
    pub(super) fn next_late(&mut self, now: Instant) -> Option<FillToken> {
        let (until, token) = self.due.first().copied().filter(|(until, _)| *until <= now)?;
        self.due.remove(&(until, token));
        Some(token)
    }

    /// Remembers a late lease for a while.
    pub(super) fn remember(&mut self, token: FillToken, now: Instant) {
        self.late.push_back((now + LONGEST_LATE, token));
    }

    /// Ends those that have been late for long, and the oldest of too many, and gives their flights.
    pub(super) fn end_old(&mut self, now: Instant) -> Vec<(FillToken, (Origin, Bytes))> {
        let most = self.late.len().saturating_sub(MOST_LATE);
        let mut ended: Vec<_> = self.late.drain(..most).map(|(_, token)| token).collect();
        while let Some((_, token)) = self.late.pop_front_if(|(until, _)| *until <= now) {
            ended.push(token);
        }
        ended.into_iter().filter_map(|token| self.by_token.remove(&token).map(|it| (token, it.key))).collect()
    }

    #[cfg(test)]
    pub(super) fn are_none(&self) -> bool {
        self.by_token.is_empty() && self.due.is_empty()
    }
}
