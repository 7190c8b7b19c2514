//! Writes: `set`, `delete`, `clear`, and the values that holders of fill tokens bring.
//!
//! Each is one step under the lock of the flights: the flights of the key are poisoned, the store has the new
//! state, and the journal knows. With a journal the answer waits until the write would outlive the process,
//! so that a delete that was answered is not undone by a restart.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use peanut_proto::limits::{MAX_VALUE_BYTES, check_key};
use peanut_proto::machine::drop_in_background;
use peanut_proto::numbers::{FillToken, Generation, RingVersion};
use peanut_proto::v1::{ErrorCode, Outcome};
use smallvec::SmallVec;
use tokio::time::{Instant, timeout};

use super::{Answer, Begun, Cache, Waiting};
use crate::budget::{Account, OPERATION_BYTES, Reservation};
use crate::flight::{Fill, Flown, Term, ThenSet, Written};
use crate::journal::{Journal, WriteNumber};
use crate::near::{LaneId, Unconfirmed};
use crate::segment::key_hash;
use crate::store::{Entry, Origin, Value};
use peanut_edge::Failure;

/// How long the registry may take to tell of a clear that a client has told of.
const TELL_WITHIN: Duration = Duration::from_millis(250);

/// How long others wait for the value of a writer that has deleted the key to set it.
const SET_WITHIN: Duration = Duration::from_millis(250);

/// The shortest lifetime that a message can name.
const NOT_KEPT: Duration = Duration::from_millis(1);

/// A delete, as any service hands it in.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Delete<'a> {
    pub(crate) key: &'a Bytes,
    /// The ring that the writer goes by.
    pub(crate) under: RingVersion,
    /// The ring version under which a value is stored that the writer sets next.
    pub(crate) stamp: RingVersion,
    /// Who sets the key next, if anybody does.
    pub(crate) then_set: Option<&'a Arc<Account>>,
    /// The next set may be done only where this is the key's sequence still; 0: whatever it is.
    pub(crate) sequence: u64,
    /// The lane that it came by, if that has near copies.
    pub(crate) by: Option<LaneId>,
}

/// A set, as any service hands it in.
#[derive(Clone, Debug)]
pub(crate) struct Set {
    pub(crate) key: Bytes,
    pub(crate) fetched: Fetched,
    /// `None`: the group's.
    pub(crate) ttl: Option<Duration>,
    /// Version of the ring that chose this node, as far as the node knows it.
    pub(crate) stamp: RingVersion,
    pub(crate) origin: Origin,
    /// The ring that the writer goes by.
    pub(crate) under: RingVersion,
    /// The token under which it was fetched; 0: none.
    pub(crate) token: FillToken,
    /// Without a token: what it is stored under.
    pub(crate) condition: Condition,
    /// The lane that it came by, if that has near copies.
    pub(crate) by: Option<LaneId>,
}

/// When the value of a set without a token is stored.
#[derive(Clone, Debug)]
pub(crate) enum Condition {
    Always,
    /// Where this is the key's sequence still. Where it is not the key is deleted, and the writer that has an
    /// account here is given a token.
    Sequence(u64, Option<Arc<Account>>),
}

/// What a client has fetched.
#[derive(Clone, Debug)]
pub(crate) enum Fetched {
    Value(Bytes),
    NotFound,
    Failed(String),
}

impl Fetched {
    /// As a message says it: an error where there is one, else that there is no such key, else the value.
    pub(crate) fn new(value: Bytes, not_found: bool, load_error: String) -> Self {
        if !load_error.is_empty() {
            Fetched::Failed(load_error)
        } else if not_found {
            Fetched::NotFound
        } else {
            Fetched::Value(value)
        }
    }
}

impl Cache {
    /// Stores what a client says of a key.
    pub(crate) fn set(self: &Arc<Self>, set: Set, now: Instant) -> Result<Begun, Failure> {
        let refuse = |why: String| Err(Failure::new(ErrorCode::InvalidRequest, why));
        if let Err(why) = check_key(&set.key) {
            return refuse(why);
        }
        // Copies: what is kept keeps nothing of the frame that it came in.
        let key = Bytes::copy_from_slice(&set.key);
        let (value, ttl) = match set.fetched {
            Fetched::Value(value) if value.len() > MAX_VALUE_BYTES => {
                let why = format!("the value has {} bytes; the limit is {MAX_VALUE_BYTES}", value.len());
                return Err(Failure::new(ErrorCode::ValueTooLarge, why));
            }
            Fetched::Value(value) if !self.store.fits(&key, value.len()) && set.token.is_none() => {
                return self.forget_instead(&key, value.len(), (set.under, set.by));
            }
            Fetched::Value(value) => (Some(Bytes::copy_from_slice(&value).into()), self.policy.ttl),
            Fetched::NotFound => (None, self.policy.negative_ttl),
            Fetched::Failed(_) if set.token.is_none() => {
                return refuse("only the holder of a fill token can say that a load has failed".to_owned());
            }
            Fetched::Failed(message) => {
                let failed = Err(Failure::new(ErrorCode::LoaderFailed, message));
                let fill = self.flights.fill(&key, set.token, |_| failed, |_| false, |_| None);
                return Ok(Begun::Answered(self.filled(fill)));
            }
        };
        let length = value.as_ref().map_or(0, |value: &Value| value.len());
        // What was asked for, as far as it is granted.
        let granted = set.ttl.map_or(Duration::ZERO, |ttl| ttl.min(self.policy.max_ttl));
        let asked = set.ttl.map(|ttl| lifetime(ttl, set.token));
        let entry = |Flown { stamp, origin, begun }| {
            let ttl = self.bounded(asked.unwrap_or_else(|| self.jittered(ttl)), origin);
            let expires = begun + self.kept_for(ttl, origin, value.is_some());
            Entry { value, loaded: begun, expires, stamp, origin }
        };
        if set.token.is_some() {
            let (landed, is_fresh) = (|flown| Ok(entry(flown)), |entry: &Entry| self.is_fresh(entry, now));
            let keep = |entry: &Entry| self.keep_if_newer(&key, entry);
            let fill = self.flights.fill(&key, set.token, landed, is_fresh, keep);
            tracing::trace!(group = &*self.group, ?key, ?fill, token = set.token.0, "a value was brought");
            if !self.store.fits(&key, length) {
                return Err(self.too_large(length));
            }
            return Ok(Begun::Answered(Answer { ttl: granted, ..self.filled(fill) }));
        }
        let entry = entry(Flown { stamp: set.stamp, origin: set.origin, begun: now });
        self.metrics.sets.fetch_add(1, Ordering::Relaxed);
        if let Condition::Sequence(sequence, or_token) = set.condition {
            let or_lease = || or_token.and_then(|account| then_set(&account, &key, (set.stamp, 0), now));
            let written = self
                .flights
                .replace(&key, set.under, sequence, or_lease, |stands| self.replace(&key, &entry, stands));
            let Written { written: (outcome, number), token, sequence } = written;
            let copies = self.outdate_copies(&key, set.by);
            let answer = Answer { token, sequence, ttl: granted, ..Answer::only(outcome) };
            return Ok(self.when_done(number, copies, answer));
        }
        let written = self.flights.write(&key, set.under, None, || {
            self.outdate(&key);
            self.store_set(&key, &entry)
        });
        let copies = self.outdate_copies(&key, set.by);
        Ok(self.when_done(written.written, copies, Answer::only(Outcome::Done)))
    }

    /// Stores a value in place of the one before where the sequence stands, else forgets that.
    fn replace(&self, key: &Bytes, entry: &Entry, stands: bool) -> (Outcome, Option<WriteNumber>) {
        tracing::trace!(group = &*self.group, ?key, stands, "replacing");
        if !stands {
            return (Outcome::Done, self.remove(key));
        }
        self.outdate(key);
        (Outcome::Stored, self.store_set(key, entry))
    }

    /// Forgets a key whose new value is too large to be kept, and says so when that is as done as a delete.
    fn forget_instead(
        self: &Arc<Self>,
        key: &Bytes,
        length: usize,
        (under, by): (RingVersion, Option<LaneId>),
    ) -> Result<Begun, Failure> {
        let number = self.flights.write(key, under, None, || self.remove(key)).written;
        let copies = self.outdate_copies(key, by);
        self.is_too_large(key, length);
        let failure = self.too_large(length);
        if number.is_none() && copies.is_none() {
            return Err(failure);
        }
        let answer = Err(failure);
        Ok(Begun::Waiting(Waiting::Write { cache: self.clone(), number, copies, answer }))
    }

    fn too_large(&self, length: usize) -> Failure {
        let group = &self.group;
        let why =
            format!("the value has {length} bytes, more than group `{group}` keeps; the key is forgotten");
        Failure::new(ErrorCode::ValueTooLarge, why)
    }

    /// Counts a value that is too large to be kept; the first time it is said.
    fn is_too_large(&self, key: &[u8], length: usize) {
        self.metrics.too_large.fetch_add(1, Ordering::Relaxed);
        if !self.is_told_of_large.swap(true, Ordering::Relaxed) {
            let (group, key) = (&*self.group, String::from_utf8_lossy(key));
            tracing::warn!(group, %key, length, "a value is larger than the group keeps, so that every get loads it; raise `capacity`");
        }
    }

    fn remove(&self, key: &Bytes) -> Option<WriteNumber> {
        self.outdate(key);
        self.store.remove(key);
        self.journal().map(|journal| journal.removed(key))
    }

    /// Forgets a key. The caller that is to set it next is given a token, if there is room.
    pub(crate) fn delete(self: &Arc<Self>, delete: Delete<'_>, now: Instant) -> Result<Begun, Failure> {
        let Delete { key, under, stamp, then_set, sequence, by } = delete;
        check_key(key).map_err(|why| Failure::new(ErrorCode::InvalidRequest, why))?;
        let count = if then_set.is_some() { &self.metrics.sets } else { &self.metrics.deletes };
        count.fetch_add(1, Ordering::Relaxed);
        let key = Bytes::copy_from_slice(key);
        let then_set = then_set.and_then(|account| self::then_set(account, &key, (stamp, sequence), now));
        let Written { written: number, token, sequence } =
            self.flights.write(&key, under, then_set, || self.remove(&key));
        tracing::trace!(group = &*self.group, ?key, under = under.0, token = token.0, "deleted");
        let copies = self.outdate_copies(&key, by);
        Ok(self.when_done(number, copies, Answer { token, sequence, ..Answer::only(Outcome::Done) }))
    }

    /// Forgets all keys, as a client asks for it. The client has raised the group's `generation` in the
    /// registry before: what it says of that is a hint, and the registry's own word is waited for, so that
    /// the clear is done once. Zero: there is no registry.
    pub(crate) fn clear(
        self: &Arc<Self>,
        generation: Generation,
        under: RingVersion,
        by: Option<LaneId>,
    ) -> Begun {
        if generation == Generation::NONE {
            self.clear_all(under, by, None)
        } else if self.generations.borrow().has(generation) {
            self.when_told(by)
        } else {
            Begun::Waiting(Waiting::Registry { cache: self.clone(), generation, under, by })
        }
    }

    /// Waits for the registry to tell of a generation, and clears without where it does not.
    pub(super) async fn clear_when_told(
        self: &Arc<Self>,
        generation: Generation,
        (under, by): (RingVersion, Option<LaneId>),
    ) -> Result<Answer, Failure> {
        let mut generations = self.generations.subscribe();
        let is_told = timeout(TELL_WITHIN, generations.wait_for(|told| told.has(generation))).await.is_ok();
        let begun = if is_told { self.when_told(by) } else { self.clear_all(under, by, None) };
        Box::pin(begun.answer()).await
    }

    /// The answer to a clear that was done when the registry told of its generation.
    fn when_told(self: &Arc<Self>, by: Option<LaneId>) -> Begun {
        let number = self.journal().map(Journal::latest);
        self.when_done(number, self.unconfirmed_copies(by), Answer::only(Outcome::Done))
    }

    /// Forgets all keys where the registry has another generation of the group than is known here: mostly a
    /// later one, and an earlier one where it had lost the last and the clocks of those who clear differ.
    pub(crate) fn clear_to(self: &Arc<Self>, generation: Generation, under: RingVersion) -> Begun {
        let begun = self.clear_all(under, None, Some(generation));
        // Callers that wait for it are told when it is done.
        self.generations.send_if_modified(|told| told.next(generation));
        begun
    }

    /// Forgets all keys, unless that was done for the sake of this generation.
    fn clear_all(self: &Arc<Self>, under: RingVersion, by: Option<LaneId>, to: Option<Generation>) -> Begun {
        let cleared = self.flights.write_all(under, || {
            if to == Some(self.generation()) {
                return None;
            }
            let kept = self.journal().and_then(|journal| journal.outdate_all(to));
            Some((self.store.clear(), self.journal().map(|journal| journal.cleared(kept, to))))
        });
        let Some((entries, number)) = cleared else {
            return self.when_done(None, self.unconfirmed_copies(by), Answer::only(Outcome::Done));
        };
        let copies = self.outdate_all_copies(by);
        self.metrics.clears.fetch_add(1, Ordering::Relaxed);
        tracing::trace!(group = &*self.group, under = under.0, "cleared");
        // Freeing millions of entries takes a while.
        drop_in_background(entries);
        self.when_done(number, copies, Answer::only(Outcome::Done))
    }

    fn filled(&self, fill: Fill) -> Answer {
        self.metrics.fills.fetch_add(1, Ordering::Relaxed);
        Answer::only(match fill {
            Fill::Stored => Outcome::Done,
            Fill::Refused => {
                self.metrics.fills_refused.fetch_add(1, Ordering::Relaxed);
                Outcome::Refused
            }
        })
    }

    /// The generation to which the group was cleared last, as the registry has told it.
    pub(crate) fn generation(&self) -> Generation {
        self.generations.borrow().last
    }

    /// Gives up a lease whose client has gone, or brings nothing.
    pub(crate) fn void(&self, token: FillToken) {
        self.flights.void(token);
    }

    /// Whether a lease stands.
    pub(crate) fn is_leased(&self, token: FillToken) -> bool {
        self.flights.is_leased(token)
    }

    /// What a client that gives up its lease is answered.
    pub(crate) fn release(self: &Arc<Self>, token: FillToken) -> Begun {
        self.void(token);
        Begun::Answered(Answer::only(Outcome::Done))
    }

    /// Stores what was loaded, with the lock of the flights held, and gives the value as it is stored.
    pub(super) fn keep(&self, key: &Bytes, entry: &Entry) -> Option<Value> {
        let length = entry.value.as_ref().map_or(0, |value| value.len());
        if !self.store.fits(key, length) {
            self.is_too_large(key, length);
        }
        if entry.expires > entry.loaded {
            return self.store_loaded(key, entry);
        }
        // It was refreshed, and is to be kept no longer.
        if self.store.remove_of(key, entry.origin)
            && let Some(journal) = self.journal().filter(|_| entry.origin == Origin::Owner)
        {
            journal.removed(key);
        }
        None
    }

    /// As [`keep`](Self::keep), unless there is an entry whose load began later: another client was given a
    /// lease when this one was late.
    fn keep_if_newer(&self, key: &Bytes, entry: &Entry) -> Option<Value> {
        let there = self.store.peek(key, entry.origin, entry.loaded);
        if there.is_some_and(|there| there.loaded > entry.loaded) { None } else { self.keep(key, entry) }
    }

    pub(crate) fn store_loaded(&self, key: &Bytes, entry: &Entry) -> Option<Value> {
        let (stored, evicted) = self.insert(key, entry);
        if let Some(journal) = self.journal() {
            journal.loaded(key, entry, &evicted);
        }
        stored
    }

    fn store_set(&self, key: &Bytes, entry: &Entry) -> Option<WriteNumber> {
        // Whatever the node holds the key for, it is outdated.
        self.store.remove(key);
        let evicted = if entry.expires > entry.loaded { self.insert(key, entry).1 } else { SmallVec::new() };
        self.journal().map(|journal| journal.set(key, entry, &evicted))
    }

    /// Inserts, and gives the value as it is stored, and the hashes of the keys that have left.
    fn insert(&self, key: &Bytes, entry: &Entry) -> (Option<Value>, SmallVec<[u64; 4]>) {
        let mut evicted = SmallVec::new();
        let has_journal = self.journal().is_some();
        let stored = self.store.insert_telling(key, entry, |key| {
            if has_journal {
                evicted.push(key_hash(key));
            }
        });
        (stored, evicted)
    }

    fn outdate(&self, key: &[u8]) {
        if let Some(journal) = self.journal() {
            journal.outdate(key);
        }
    }

    /// The answer to a write, when that would outlive the process, and nobody holds what was before.
    fn when_done(
        self: &Arc<Self>,
        number: Option<WriteNumber>,
        copies: Unconfirmed,
        answer: Answer,
    ) -> Begun {
        if number.is_none() && copies.is_none() {
            return Begun::Answered(answer);
        }
        Begun::Waiting(Waiting::Write { cache: self.clone(), number, copies, answer: Ok(answer) })
    }
}

/// The lifetime that a client asks for. A value that is not to be kept at all is brought for the shortest
/// that there is, since zero stands for the group's own.
fn lifetime(asked: Duration, token: FillToken) -> Duration {
    if token.is_some() && asked <= NOT_KEPT { Duration::ZERO } else { asked }
}

/// A lease for a writer that sets a key next, if there is room for one.
fn then_set(
    account: &Arc<Account>,
    key: &Bytes,
    (stamp, sequence): (RingVersion, u64),
    now: Instant,
) -> Option<ThenSet> {
    let held = account.operations.try_take(OPERATION_BYTES + key.len())?;
    let reserved = Reservation::new(account, 0);
    Some(ThenSet { stamp, term: Term { given: now, until: now + SET_WITHIN }, sequence, held, reserved })
}
