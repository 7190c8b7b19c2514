//! How many connections there may be, and how long one may stay that nobody needs.
//!
//! A connection is a stranger's until its first call is admitted. Strangers have little time, and give way to
//! newcomers where there are too many. After that a connection stays while it has streams, and for a while
//! after the last. What stands is looked at every half a second: no timer and no task for each.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use futures_util::task::AtomicWaker;
use parking_lot::Mutex;
use peanut_proto::clock::milliseconds;
use tokio::time::{Instant, MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

use super::Handshake;
use super::certificates::{PeerCertificate, Verified};

/// Connections are looked at this often.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// What is left of a connection that was asked to end is cut off after that.
const LAST_WORDS: Duration = Duration::from_secs(10);
/// Where nobody had to give way, nobody is looked for again so soon.
const NEXT_SEARCH: Duration = Duration::from_millis(100);

/// Bounds on connections.
#[derive(Clone, Copy, Debug)]
pub struct ConnectionLimits {
    /// Connections in all.
    pub total: usize,
    /// Those from one address.
    pub per_peer: usize,
    /// From the accepted socket to the first words of HTTP.
    pub handshake: Duration,
    /// From the accepted socket to the first call that is admitted.
    pub first_call: Duration,
    /// Without streams, after the first call.
    pub idle: Duration,
    /// A stranger gives way to a newcomer after that.
    pub patience: Duration,
}

impl Default for ConnectionLimits {
    fn default() -> Self {
        ConnectionLimits {
            total: 1,
            per_peer: 1,
            handshake: Duration::from_secs(5),
            first_call: Duration::from_secs(30),
            idle: Duration::from_secs(300),
            patience: Duration::from_secs(5),
        }
    }
}

/// Counts connections, lets in no more than there may be, and ends those that are of no use.
#[derive(Debug)]
pub struct ConnectionLimiter {
    limits: ConnectionLimits,
    base: Instant,
    table: Mutex<Table>,
    refused: AtomicUsize,
}

#[derive(Debug, Default)]
struct Table {
    next: u64,
    all: BTreeMap<u64, Arc<Presence>>,
    by_peer: HashMap<IpAddr, usize>,
    /// No search before then for a connection that gives way: of any address, or of one that has as many as
    /// it may, which does not keep others from being looked among.
    next_searches: HashMap<Option<IpAddr>, Instant>,
}

impl Table {
    fn remove(&mut self, id: u64) {
        let Some(presence) = self.all.remove(&id) else { return };
        if let Some(count) = self.by_peer.get_mut(&presence.peer) {
            *count -= 1;
            if *count == 0 {
                self.by_peer.remove(&presence.peer);
            }
        }
    }
}

/// A connection, as the limiter knows it.
#[derive(Debug)]
pub struct Presence {
    peer: IpAddr,
    base: Instant,
    opened: Instant,
    is_admitted: AtomicBool,
    streams: AtomicUsize,
    /// When the last stream began or ended, in milliseconds since `base`.
    active_ms: AtomicU64,
    /// When it was asked to end, likewise; zero: it was not.
    retired_ms: AtomicU64,
    /// Asked to end: what runs is finished, nothing new is begun.
    retiring: CancellationToken,
    is_cut: AtomicBool,
    cut: CancellationToken,
    io: AtomicWaker,
    pub(super) certificate: OnceLock<PeerCertificate>,
}

impl Presence {
    pub(super) fn new(peer: IpAddr, base: Instant, now: Instant) -> Arc<Self> {
        Arc::new(Presence {
            peer,
            base,
            opened: now,
            is_admitted: AtomicBool::new(false),
            streams: AtomicUsize::new(0),
            active_ms: AtomicU64::new(ms_between(base, now)),
            retired_ms: AtomicU64::new(0),
            retiring: CancellationToken::new(),
            is_cut: AtomicBool::new(false),
            cut: CancellationToken::new(),
            io: AtomicWaker::new(),
            certificate: OnceLock::new(),
        })
    }

    /// A call on it was let in.
    pub fn admitted(&self) {
        if !self.is_admitted.load(Ordering::Relaxed) {
            self.is_admitted.store(true, Ordering::Relaxed);
        }
    }

    /// Counts a stream until what is given back is dropped.
    pub fn enter(self: &Arc<Self>) -> OpenStream {
        self.streams.fetch_add(1, Ordering::Relaxed);
        self.is_active();
        OpenStream(self.clone())
    }

    fn is_active(&self) {
        self.active_ms.store(ms_between(self.base, Instant::now()), Ordering::Relaxed);
    }

    /// Completes when the connection is to end as soon as what runs on it has ended.
    pub fn retiring(&self) -> &CancellationToken {
        &self.retiring
    }

    /// Completes when the connection is to end at once.
    pub fn cut(&self) -> &CancellationToken {
        &self.cut
    }

    /// Whether it is to end at once; else `waker` is woken when it is.
    pub(super) fn poll_cut(&self, waker: &std::task::Waker) -> bool {
        self.io.register(waker);
        self.is_cut()
    }

    pub(super) fn is_cut(&self) -> bool {
        self.is_cut.load(Ordering::Acquire)
    }

    /// Ends the connection at once.
    pub fn cut_off(&self) {
        self.is_cut.store(true, Ordering::Release);
        self.cut.cancel();
        self.io.wake();
    }

    fn retire(&self, now: Instant) {
        self.retired_ms.store(ms_between(self.base, now).max(1), Ordering::Relaxed);
        self.retiring.cancel();
    }

    fn idle_for(&self, now: Instant) -> Duration {
        let active = Duration::from_millis(self.active_ms.load(Ordering::Relaxed));
        now.saturating_duration_since(self.base).saturating_sub(active)
    }

    /// What has to be done about it by now.
    fn verdict(&self, limits: &ConnectionLimits, now: Instant) -> Verdict {
        let retired = Duration::from_millis(self.retired_ms.load(Ordering::Relaxed));
        if !retired.is_zero() {
            let since = now.saturating_duration_since(self.base).saturating_sub(retired);
            return if since > LAST_WORDS { Verdict::Cut } else { Verdict::Keep };
        }
        let is_admitted = self.is_admitted.load(Ordering::Relaxed);
        let is_late = !is_admitted && now.saturating_duration_since(self.opened) > limits.first_call;
        let is_idle =
            is_admitted && self.streams.load(Ordering::Relaxed) == 0 && self.idle_for(now) > limits.idle;
        if is_late || is_idle { Verdict::Retire } else { Verdict::Keep }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    Keep,
    Retire,
    Cut,
}

/// A stream of a connection.
#[derive(Debug)]
pub struct OpenStream(Arc<Presence>);

impl Drop for OpenStream {
    fn drop(&mut self) {
        self.0.is_active();
        self.0.streams.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Leave to have a connection, for as long as it is held.
#[derive(Debug)]
pub struct Permit {
    limiter: Arc<ConnectionLimiter>,
    id: u64,
    presence: Arc<Presence>,
}

impl Permit {
    pub(super) fn limits(&self) -> &ConnectionLimits {
        &self.limiter.limits
    }

    /// The connection that it is for.
    pub fn presence(&self) -> &Arc<Presence> {
        &self.presence
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.limiter.table.lock().remove(self.id);
        // Those who wait for it to end need not wait any longer.
        self.presence.retiring.cancel();
    }
}

impl ConnectionLimiter {
    /// One that has let nobody in yet.
    pub fn new(limits: ConnectionLimits) -> Arc<Self> {
        let (base, refused) = (Instant::now(), AtomicUsize::new(0));
        Arc::new(ConnectionLimiter { limits, base, table: Mutex::default(), refused })
    }

    /// Lets a peer in, unless there are too many of which none gives way.
    pub fn let_in(self: &Arc<Self>, peer: IpAddr, now: Instant) -> Option<Permit> {
        let mut table = self.table.lock();
        let of_peer = table.by_peer.get(&peer).copied().unwrap_or(0);
        let is_full = table.all.len() >= self.limits.total;
        if of_peer >= self.limits.per_peer || is_full {
            let among = (of_peer >= self.limits.per_peer).then_some(peer);
            if !self.make_room(&mut table, among, now) {
                self.refused.fetch_add(1, Ordering::Relaxed);
                return None;
            }
        }
        let id = table.next;
        table.next += 1;
        let presence = Presence::new(peer, self.base, now);
        table.all.insert(id, presence.clone());
        *table.by_peer.entry(peer).or_insert(0) += 1;
        Some(Permit { limiter: self.clone(), id, presence })
    }

    /// Cuts off a stranger's connection, of this peer or else of the peer that has most of them: the one that
    /// has been silent for longest.
    fn make_room(&self, table: &mut Table, among: Option<IpAddr>, now: Instant) -> bool {
        if table.next_searches.get(&among).is_some_and(|next| now < *next) {
            return false;
        }
        let gives_way = |presence: &Presence| {
            !presence.is_admitted.load(Ordering::Relaxed)
                && now.saturating_duration_since(presence.opened) >= self.limits.patience
        };
        let mut strangers: HashMap<IpAddr, usize> = HashMap::new();
        for presence in table.all.values().filter(|presence| gives_way(presence)) {
            *strangers.entry(presence.peer).or_insert(0) += 1;
        }
        let from = among.or_else(|| Some(*strangers.iter().max_by_key(|(_, count)| **count)?.0));
        let victim = table
            .all
            .iter()
            .filter(|(_, presence)| Some(presence.peer) == from && gives_way(presence))
            .max_by_key(|(_, presence)| {
                (presence.streams.load(Ordering::Relaxed) == 0, presence.idle_for(now))
            })
            .map(|(id, presence)| (*id, presence.clone()));
        let Some((id, presence)) = victim else {
            table.next_searches.retain(|_, next| now < *next);
            table.next_searches.insert(among, now + NEXT_SEARCH);
            return false;
        };
        table.remove(id);
        self.refused.fetch_add(1, Ordering::Relaxed);
        presence.cut_off();
        true
    }

    /// Ends connections that are of no use any more, and those whose certificate has expired or was revoked,
    /// for as long as it is polled.
    pub async fn watch(self: Arc<Self>, handshake: Handshake) {
        let mut tick = interval(LOOK_EVERY);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut verified = Verified::default();
        loop {
            tick.tick().await;
            let now = Instant::now();
            // Not under the lock: connections come and go meanwhile.
            let all: Vec<_> = self.table.lock().all.values().cloned().collect();
            for presence in &all {
                match presence.verdict(&self.limits, now) {
                    Verdict::Keep => {}
                    Verdict::Retire => presence.retire(now),
                    Verdict::Cut => presence.cut_off(),
                }
            }
            let tls = handshake.tls.as_deref();
            for refused in verified.look(tls, &all, |presence| presence.certificate.get(), now) {
                refused.cut_off();
            }
        }
    }

    /// Connections that there are.
    pub fn connections(&self) -> usize {
        self.table.lock().all.len()
    }

    /// Connections that were too many, since the start: refused, or cut off for others.
    pub fn refused(&self) -> usize {
        self.refused.load(Ordering::Relaxed)
    }
}

fn ms_between(base: Instant, now: Instant) -> u64 {
    milliseconds(now.saturating_duration_since(base))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits() -> ConnectionLimits {
        ConnectionLimits { total: 3, per_peer: 2, ..ConnectionLimits::default() }
    }

    fn peers() -> [IpAddr; 3] {
        [1, 2, 3].map(|n| IpAddr::from([127, 0, 0, n]))
    }

    #[tokio::test(start_paused = true)]
    async fn as_many_are_let_in_as_may_be_of_each_and_of_all_and_those_who_leave_are_counted() {
        let (limiter, now) = (ConnectionLimiter::new(limits()), Instant::now());
        let [a, b, c] = peers();
        let first = limiter.let_in(a, now).unwrap();
        let _second = limiter.let_in(a, now).unwrap();
        assert!(limiter.let_in(a, now).is_none(), "two of one peer");
        let _third = limiter.let_in(b, now).unwrap();
        assert!(limiter.let_in(c, now).is_none(), "three of all");
        drop(first);
        assert!(limiter.let_in(c, now).is_some());
        assert_eq!((limiter.connections(), limiter.refused(), limiter.table.lock().by_peer.len()), (2, 2, 2));
    }

    #[tokio::test(start_paused = true)]
    async fn strangers_give_way_and_nobody_else_does() {
        let (limiter, begun) = (ConnectionLimiter::new(limits()), Instant::now());
        let [a, b, c] = peers();
        let known = limiter.let_in(a, begun).unwrap();
        known.presence().admitted();
        let stranger = limiter.let_in(a, begun).unwrap();
        let other = limiter.let_in(b, begun).unwrap();
        assert!(limiter.let_in(a, begun).is_none(), "everyone has a moment");
        let later = begun + limits().patience + NEXT_SEARCH;
        let newcomer = limiter.let_in(a, later).unwrap();
        assert!(stranger.presence().is_cut() && !known.presence().is_cut() && !other.presence().is_cut());
        assert_eq!(limiter.connections(), 3);
        drop(stranger);
        assert_eq!(limiter.connections(), 3, "it was not counted any more");
        let _c = limiter.let_in(c, later).unwrap();
        assert!(other.presence().is_cut() && !newcomer.presence().is_cut());
        newcomer.presence().admitted();
        assert!(limiter.let_in(a, later + limits().patience).is_none(), "there are no strangers");
    }

    #[tokio::test(start_paused = true)]
    async fn who_makes_no_call_in_time_or_no_more_for_long_has_to_go() {
        let (limits, now) = (limits(), Instant::now());
        let presence = Presence::new(peers()[0], now, now);
        let verdict = |after: Duration| presence.verdict(&limits, now + after);
        let second = Duration::from_secs(1);
        assert_eq!(verdict(limits.first_call), Verdict::Keep);
        assert_eq!(verdict(limits.first_call + second), Verdict::Retire);
        let stream = presence.enter();
        assert_eq!(
            verdict(limits.first_call + second),
            Verdict::Retire,
            "a stream is no call that was let in"
        );
        presence.admitted();
        assert_eq!(verdict(limits.idle * 10), Verdict::Keep, "a stream is not idle");
        drop(stream);
        assert_eq!(verdict(limits.idle), Verdict::Keep);
        assert_eq!(verdict(limits.idle + second), Verdict::Retire);
        presence.retire(now + limits.idle + second);
        assert_eq!(verdict(limits.idle + second * 2), Verdict::Keep, "it may finish");
        assert_eq!(verdict(limits.idle + second * 2 + LAST_WORDS), Verdict::Cut);
    }
}
