//! Writes: `set`, `delete`, `clear`, and the values that holders of fill tokens bring.
//!
//! Each is one step under the lock of the flights: the flights of the key are poisoned, the store has the new state, and the
//! journal knows. With a journal the answer waits until the write would outlive the process, so that a delete that was
//! answered is not undone by a restart.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::Duration;

use bytes::Bytes;
use peanut_proto::limits::{MAX_VALUE_BYTES, check_key};
use peanut_proto::v1::{ErrorCode, Outcome};
use smallvec::SmallVec;
use tokio::time::Instant;

use super::{Answer, Begun, Cache, Waiting};
use crate::error::Failure;
use crate::flight::{Fill, Token};
use crate::persistence::WriteNumber;
use crate::segment::key_hash;
use crate::store::{Entry, Origin};

/// A set, as any service hands it in.
#[derive(Clone, Debug)]
pub(crate) struct Set {
    pub(crate) key: Bytes,
    pub(crate) fetched: Fetched,
    /// `None`: the group's.
    pub(crate) ttl: Option<Duration>,
    pub(crate) ring_version: u64,
    pub(crate) origin: Origin,
    /// The token under which it was fetched; 0: none.
    pub(crate) token: Token,
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
        let (value, ttl) = match set.fetched {
            Fetched::Value(value) if value.len() > MAX_VALUE_BYTES => {
                let why = format!("the value has {} bytes; the limit is {MAX_VALUE_BYTES}", value.len());
                return Err(Failure::new(ErrorCode::ValueTooLarge, why));
            }
            Fetched::Value(value) => (Some(value.into()), self.policy.ttl),
            Fetched::NotFound => (None, self.policy.negative_ttl),
            Fetched::Failed(_) if set.token == 0 => {
                return refuse("only the holder of a fill token can say that a load has failed".to_owned());
            }
            Fetched::Failed(message) => {
                let failed = Err(Failure::new(ErrorCode::LoaderFailed, message));
                let fill = self.flights.fill(&set.key, set.token, |_, _| failed, |_| {});
                return Ok(Begun::Answered(self.filled(fill)));
            }
        };
        let entry = |stamp, origin| {
            let ttl = self.bounded(set.ttl.unwrap_or_else(|| self.jittered(ttl)), origin);
            let expires = now + self.kept_for(ttl, origin, value.is_some());
            Entry { value, loaded: now, expires, stamp, origin }
        };
        if set.token != 0 {
            let landed = |stamp, origin| Ok(entry(stamp, origin));
            let fill = self.flights.fill(&set.key, set.token, landed, |entry| self.keep(&set.key, entry));
            return Ok(Begun::Answered(self.filled(fill)));
        }
        let entry = entry(set.ring_version, set.origin);
        self.metrics.sets.fetch_add(1, Ordering::Relaxed);
        let number = self.flights.write(&set.key, || {
            self.outdate(Some(&set.key));
            self.store_set(&set.key, &entry)
        });
        Ok(self.done(number))
    }

    /// Forgets a key.
    pub(crate) fn delete(self: &Arc<Self>, key: &Bytes) -> Result<Begun, Failure> {
        check_key(key).map_err(|why| Failure::new(ErrorCode::InvalidRequest, why))?;
        self.metrics.deletes.fetch_add(1, Ordering::Relaxed);
        let number = self.flights.write(key, || {
            self.outdate(Some(key));
            self.store.remove(key);
            self.journal().map(|journal| journal.removed(key))
        });
        Ok(self.done(number))
    }

    /// Forgets all keys, as a client asks for it. What it says of the `generation` that the registry has now is believed only where
    /// the node knows as much already: then there is nothing to do.
    pub(crate) fn clear(self: &Arc<Self>, generation: u64) -> Begun {
        if generation != 0 && generation <= self.generation() {
            return self.done(None);
        }
        self.clear_where(|cache| {
            cache.cleared_for.store(generation, Ordering::Relaxed);
            true
        })
    }

    /// Forgets all keys where the registry has a later generation of the group than is known here. What a client has had done for
    /// that very one is not done again: it would forget what was set since.
    pub(crate) fn clear_to(self: &Arc<Self>, generation: u64) -> Begun {
        self.clear_where(|cache| {
            cache.generation.fetch_max(generation, Ordering::Relaxed) < generation
                && cache.cleared_for.load(Ordering::Relaxed) != generation
        })
    }

    fn clear_where(self: &Arc<Self>, is_due: impl FnOnce(&Cache) -> bool) -> Begun {
        let cleared = self.flights.write_all(|| {
            if !is_due(self) {
                return None;
            }
            self.outdate(None);
            Some((self.store.clear(), self.journal().map(|journal| journal.cleared())))
        });
        let Some((entries, number)) = cleared else { return self.done(None) };
        self.metrics.clears.fetch_add(1, Ordering::Relaxed);
        // Freeing millions of entries takes a while; where there is no thread for it, it is done here.
        let _ = thread::Builder::new().name("peanut-clear".to_owned()).spawn(move || drop(entries));
        self.done(number)
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

    /// The latest generation of the group that is known.
    pub(crate) fn generation(&self) -> u64 {
        self.generation.load(Ordering::Relaxed)
    }

    /// Gives a lease up whose client has gone.
    pub(crate) fn void(&self, token: Token) {
        self.flights.void(token);
    }

    /// Stores what was loaded, with the lock of the flights held.
    pub(super) fn keep(&self, key: &Bytes, entry: &Entry) {
        if entry.expires > entry.loaded {
            return self.store_loaded(key, entry);
        }
        // It was refreshed, and is to be kept no longer.
        if self.store.remove(key)
            && let Some(journal) = self.journal()
        {
            journal.removed(key);
        }
    }

    pub(crate) fn store_loaded(&self, key: &Bytes, entry: &Entry) {
        match self.journal() {
            None => self.store.insert(key, entry),
            Some(journal) => {
                let evicted = self.insert(key, entry);
                journal.loaded(key, entry, &evicted);
            }
        }
    }

    fn store_set(&self, key: &Bytes, entry: &Entry) -> Option<WriteNumber> {
        let evicted = if entry.expires > entry.loaded {
            self.insert(key, entry)
        } else {
            self.store.remove(key);
            SmallVec::new()
        };
        self.journal().map(|journal| journal.set(key, entry, &evicted))
    }

    /// Inserts, and gives the hashes of the keys that have left.
    fn insert(&self, key: &Bytes, entry: &Entry) -> SmallVec<[u64; 4]> {
        let mut evicted = SmallVec::new();
        self.store.insert_telling(key, entry, |key| evicted.push(key_hash(key)));
        evicted
    }

    fn outdate(&self, key: Option<&[u8]>) {
        if let Some(journal) = self.journal() {
            journal.outdate(key);
        }
    }

    fn done(self: &Arc<Self>, number: Option<WriteNumber>) -> Begun {
        let answer = Answer::only(Outcome::Done);
        match number {
            None => Begun::Answered(answer),
            Some(number) => Begun::Waiting(Waiting::Disk { cache: self.clone(), number, answer }),
        }
    }
}
