//! The near copies of one lane: its lease, what its stream says of them, and what is said back.
//!
//! Without socket or clock, as the lane's state is.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use peanut_proto::clock::nanoseconds;
use peanut_proto::frame::{OutdatedKeys, RequestWriter};
use peanut_proto::numbers::RingVersion;
use peanut_proto::sabotage::{Mechanism, without};
use peanut_proto::v1::Near;

use super::{NearCopies, ToKeep};

/// The lease is renewed so often in its time.
const RENEWALS: u32 = 3;
/// It is let go where no copy has been read for so many times its length.
const IDLE_LENGTHS: u32 = 4;
/// Renewals that may be without an answer.
const MOST_SENT: usize = 64;

/// Until when the copies of a lane may be read.
#[derive(Debug)]
pub(crate) struct NearLease {
    /// The node whose lane it is.
    node: Arc<str>,
    /// Nanoseconds of uptime.
    until: AtomicU64,
    /// Copies of another number are outdated.
    epoch: AtomicU64,
    /// One was read since this was last looked at.
    was_read: AtomicBool,
}

impl NearLease {
    fn new(node: Arc<str>) -> Self {
        let (until, epoch, was_read) = (AtomicU64::new(0), AtomicU64::new(0), AtomicBool::new(false));
        NearLease { node, until, epoch, was_read }
    }

    pub(super) fn node(&self) -> &Arc<str> {
        &self.node
    }

    /// Whether a copy from that epoch may be read.
    pub(super) fn stands(&self, now: u64, epoch: u64) -> bool {
        // In this order: a new epoch is told before the lease that begins it.
        now < self.until.load(Ordering::Acquire) && self.epoch.load(Ordering::Acquire) == epoch
    }

    pub(super) fn read(&self) {
        // A line of memory that many read is written to seldom.
        if !self.was_read.load(Ordering::Relaxed) {
            self.was_read.store(true, Ordering::Relaxed);
        }
    }
}

/// What a lane knows of its near copies.
#[derive(Debug)]
pub(crate) struct LaneCopies {
    copies: Arc<NearCopies>,
    lease: Arc<NearLease>,
    /// Renewals that have not been answered, and when each was sent.
    sent: VecDeque<(u64, Duration)>,
    last_sent: Option<Duration>,
    number: u64,
    /// A copy was last read or kept.
    last_read: Option<Duration>,
    /// The last invalidation that was done and has to be confirmed; 0: none.
    to_confirm: u64,
}

impl LaneCopies {
    pub(crate) fn new(copies: Arc<NearCopies>, node: &str) -> Self {
        LaneCopies {
            copies,
            lease: Arc::new(NearLease::new(node.into())),
            sent: VecDeque::new(),
            last_sent: None,
            number: 0,
            last_read: None,
            to_confirm: 0,
        }
    }

    /// Of which keys of a group copies are kept.
    pub(crate) fn of_group(&self, name: &str) -> Near {
        self.copies.of_group(name)
    }

    /// As the lane is opened with.
    pub(crate) fn staleness_ms(&self) -> u32 {
        self.copies.staleness_ms()
    }

    /// Keeps an answer, if the node knows no later ring than the one it was asked by.
    pub(crate) fn keep(&mut self, answer: &ToKeep<'_>, heard: RingVersion, now: Duration) {
        if heard > answer.ring_version || answer.ring_version != self.copies.ring_version() {
            return;
        }
        if self.copies.keep(answer, &self.lease, self.lease.epoch.load(Ordering::Relaxed)) {
            self.last_read = Some(now);
        }
    }

    /// Drops what is outdated.
    pub(crate) fn outdated(&mut self, number: u64, keys: OutdatedKeys<'_>) {
        if keys.is_all() {
            self.lease.epoch.fetch_add(1, Ordering::Release);
        }
        keys.hashes().for_each(|hash| self.copies.drop_copy(hash));
        self.to_confirm = number.max(self.to_confirm);
    }

    /// The node has renewed the lease.
    pub(crate) fn renewed(&mut self, number: u64, is_new: bool, heard: RingVersion, now: Duration) {
        // Whichever renewal it was: the node has forgotten what the lane holds.
        if is_new {
            self.lease.epoch.fetch_add(1, Ordering::Release);
        }
        while self.sent.front().is_some_and(|(sent, _)| *sent < number) {
            self.sent.pop_front();
        }
        let Some((_, sent)) = self.sent.pop_front_if(|(sent, _)| *sent == number) else { return };
        // A node that knows a later ring may not be the owner any more.
        if heard <= self.copies.ring_version() {
            let since = if without(Mechanism::NearSent) { now } else { sent };
            self.lease.until.store(nanoseconds(since + self.copies.lease_length()), Ordering::Release);
            self.copies.counters.renewed.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Writes what is to be said by now. Gives when to look again; `None`: when something comes.
    pub(crate) fn write(&mut self, frame: &mut RequestWriter, now: Duration) -> Option<Duration> {
        if self.to_confirm > 0 {
            frame.near_confirmed(std::mem::take(&mut self.to_confirm));
        }
        let length = self.copies.lease_length();
        if self.lease.was_read.swap(false, Ordering::Relaxed) {
            self.last_read = Some(now);
        }
        let last_read = self.last_read?;
        if now > last_read + length * IDLE_LENGTHS {
            self.last_read = None;
            return None;
        }
        let due = self.last_sent.map_or(now, |last| last + length / RENEWALS);
        if now < due {
            return Some(due);
        }
        self.number += 1;
        if self.sent.len() == MOST_SENT {
            self.sent.pop_front();
        }
        self.sent.push_back((self.number, now));
        self.last_sent = Some(now);
        frame.near_renewal(self.number);
        Some(now + length / RENEWALS)
    }

    /// The lane is gone, and what it brought with it.
    pub(crate) fn lost(&mut self) {
        self.lease.epoch.fetch_add(1, Ordering::Release);
        self.lease.until.store(0, Ordering::Release);
        self.sent.clear();
        (self.last_sent, self.last_read, self.to_confirm) = (None, None, 0);
    }
}

impl Drop for LaneCopies {
    fn drop(&mut self) {
        self.lost();
    }
}
