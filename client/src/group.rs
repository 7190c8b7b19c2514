//! A group as an application uses it.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt as _;
use futures_util::stream::iter;
use peanut_proto::frame::{Filled, Write};
use peanut_proto::limits::{MAX_VALUE_BYTES, check_key};
use peanut_proto::membership::check_name;
use peanut_proto::v1::{OnMiss, Outcome};
use tokio::time::Instant;
use tracing::Instrument as _;

use crate::client::Shared;
use crate::error::{Error, ErrorKind};
use crate::failover::{self, Answered, Wanted};
use crate::fill;
use crate::lane::Want;
use crate::ring::key_hash;
use crate::write;

/// A value, and where it came from.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Detailed {
    /// As of [`Group::get`].
    pub value: Option<Bytes>,
    /// How it was come by.
    pub source: Source,
    /// How long ago its load began, whole milliseconds; of a value that was set or handed over, since then.
    pub age: Duration,
    /// How long it stays fresh, whole milliseconds; zero where it is stale, or not kept.
    pub ttl: Duration,
    /// The id of the node that answered.
    pub node: String,
    /// Whether that one answered in the owner's place.
    pub failover: bool,
}

/// How a value was come by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Source {
    /// It was in the node's store.
    Hit,
    /// It was in the node's store, past its time to live, and the origin could not be asked.
    Stale,
    /// This get had it loaded.
    Loaded,
    /// Another get was having it loaded.
    Coalesced,
    /// The origin has no such key, as was loaded or known.
    NotFound,
}

/// A group of a fleet: a namespace of keys. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Group {
    client: Arc<Shared>,
    name: Arc<str>,
    /// By which lanes name it, once they have said its name.
    number: u32,
    /// Why no group can have that name.
    bad_name: Option<&'static str>,
}

impl Group {
    pub(crate) fn new(client: Arc<Shared>, name: &str) -> Self {
        let bad_name = check_name(name).err();
        let number = if bad_name.is_none() { client.group_number(name) } else { u32::MAX };
        Group { client, name: name.into(), number, bad_name }
    }

    fn check(&self, key: &[u8]) -> Result<(), Error> {
        let invalid = |why: String| Err(Error::new(ErrorKind::InvalidArgument, why));
        match self.bad_name {
            Some(why) => invalid(format!("the group's name {why}")),
            None => check_key(key).or_else(invalid),
        }
    }

    /// The group's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The value of a key, from the node that owns it, which loads it where it is missing. `None`: the
    /// origin has no such key.
    ///
    /// A key has 1 to 1024 bytes. The client's deadline bounds the call; a load that outlives it goes on
    /// at the node, for whoever asks next.
    ///
    /// # Errors
    /// As [`ErrorKind`] has them. Where the owner cannot be reached its successor is asked, so
    /// [`ErrorKind::Unavailable`] means that both could not.
    pub async fn get(&self, key: impl AsRef<[u8]>) -> Result<Option<Bytes>, Error> {
        self.get_from(key.as_ref(), Instant::now()).await
    }

    /// As [`get`](Self::get), and tells where the value came from.
    ///
    /// # Errors
    /// As [`get`](Self::get).
    pub async fn get_detailed(&self, key: impl AsRef<[u8]>) -> Result<Detailed, Error> {
        let (key, now) = (key.as_ref(), Instant::now());
        self.check(key)?;
        let trace = self.client.config.traceparent();
        let wanted = Wanted { traceparent: &trace, ..self.wanted(key, now) };
        let answer = failover::get(&self.client, wanted, now).instrument(self.span()).await;
        let about = answer.as_ref().ok().map(|answered| {
            let source = match answered.reply.outcome {
                Outcome::Loaded => Source::Loaded,
                Outcome::Coalesced => Source::Coalesced,
                Outcome::Stale => Source::Stale,
                Outcome::NotFound => Source::NotFound,
                _ => Source::Hit,
            };
            let Answered { reply, node, failover, .. } = answered;
            (source, reply.age, reply.ttl, node.id().to_owned(), *failover)
        });
        let value = self.settle(answer)?;
        let (source, age, ttl, node, failover) = about.expect("it was answered");
        Ok(Detailed { value, source, age, ttl, node, failover })
    }

    /// The values of many keys, in their order, each with an error of its own where there is one.
    ///
    /// Every owner is asked for all its keys in one round, at the same time as the others, under one
    /// deadline.
    pub async fn get_many<K: AsRef<[u8]>>(
        &self,
        keys: impl IntoIterator<Item = K>,
    ) -> Vec<Result<Option<Bytes>, Error>> {
        let now = Instant::now();
        let keys: Vec<K> = keys.into_iter().collect();
        let checked: Vec<Result<(), Error>> = keys.iter().map(|key| self.check(key.as_ref())).collect();
        let asked = keys.iter().zip(&checked).filter(|(_, checked)| checked.is_ok());
        let trace = self.client.config.traceparent();
        let asked = asked.map(|(key, _)| Wanted { traceparent: &trace, ..self.wanted(key.as_ref(), now) });
        let wanted: Vec<_> = asked.collect();
        let answers = failover::get_many(&self.client, &wanted, now).instrument(self.span()).await;
        let mut answers = answers.into_iter().map(|answer| self.settle(answer));
        let next =
            |checked: Result<(), Error>| checked.and_then(|()| answers.next().expect("one for each key"));
        checked.into_iter().map(next).collect()
    }

    /// The value of a key; where it is missing `load` is run, once for all who ask in the whole fleet at the same time, and what
    /// it brings is stored at the key's owner as long as the group says.
    ///
    /// For values that only the application can load. The others wait for the one whose `load` runs, up to their deadline. Where
    /// that one dies, or takes longer than the group's `load_timeout`, the next one's `load` is run. `Ok(None)` says that there
    /// is no such key, which is remembered for the group's `negative_ttl`. The group's own loader is not asked; the kind
    /// `none` is for groups that need none. A caller that is cancelled or panics while its `load` runs gives way to the next at once;
    /// what a late `load` brings is stored all the same where nobody has written the key meanwhile.
    ///
    /// Where no node can be asked, `load` is run too, for this caller alone, and its value is not kept: at most
    /// [`uncached_loads`](crate::ClientBuilder::uncached_loads) at a time in this client, beyond which the call fails.
    ///
    /// ```no_run
    /// # async fn f(client: peanut_client::Client) -> Result<(), peanut_client::Error> {
    /// let pages = client.group("pages");
    /// let page = pages.get_or_load("/", || async { std::fs::read("index.html").map(Some) }).await?;
    /// # drop(page); Ok(()) }
    /// ```
    ///
    /// # Errors
    /// [`ErrorKind::Loader`] with its message where `load` fails, here and for all who wait for it; else as
    /// [`get`](Self::get).
    pub async fn get_or_load<V, E, L>(
        &self,
        key: impl AsRef<[u8]>,
        load: impl FnOnce() -> L,
    ) -> Result<Option<Bytes>, Error>
    where
        V: Into<Bytes>,
        E: std::fmt::Display,
        L: Future<Output = Result<Option<V>, E>>,
    {
        let key = key.as_ref();
        self.check(key)?;
        let (client, now) = (&*self.client, Instant::now());
        let trace = client.config.traceparent();
        let want = Want::Get { on_miss: OnMiss::Lease, token: 0 };
        let wanted = Wanted { want, traceparent: &trace, ..self.wanted(key, now) };
        let answered = match failover::get(client, wanted, now).instrument(self.span()).await {
            Ok(answered) if answered.reply.outcome == Outcome::Fill => answered,
            // The application's own origin may well be there.
            Err(error) if error.kind() == ErrorKind::Unavailable => {
                let Ok(_turn) = client.uncached.try_acquire() else { return self.settle(Err(error)) };
                tracing::debug!(%error, "no node can be asked; the value is loaded and not kept");
                let loaded = load().await.map_err(|error| failed(error.to_string()))?;
                client.counters.loaded_uncached();
                return Ok(loaded.map(Into::into));
            }
            other => return self.settle(other),
        };
        let Answered { reply, node, ring_version, failover } = answered;
        if !failover
            && reply.may_hand_over(ring_version)
            && let Some(found) = fill::former_value(client, &wanted, &node, ring_version, &reply).await
        {
            return self.settle(Ok(Answered { reply: found, node, ring_version, failover }));
        }
        // Where this is cancelled or panics, the lease is given back with `reply`.
        let loaded =
            load().await.map(|value| value.map(Into::into)).map_err(|error| failed(error.to_string()));
        let message = loaded.as_ref().err().map(ToString::to_string);
        let outcome = match (&loaded, &message) {
            (Ok(Some(value)), _) if value.len() > MAX_VALUE_BYTES => {
                Filled::Failed("the value is too long to be kept")
            }
            (Ok(Some(value)), _) => Filled::Value(value),
            (Ok(None), _) => Filled::NotFound,
            (Err(_), message) => Filled::Failed(message.as_deref().unwrap_or_default()),
        };
        // The load may have taken all the time that the get had.
        let wanted = Wanted { deadline: Instant::now() + client.config.deadline, ..wanted };
        let write = Write::Set { key, outcome, ttl_ms: 0, token: reply.token };
        fill::fill(&wanted, &node, ring_version, write, &reply).await;
        match loaded {
            Ok(value) => {
                let outcome = if value.is_some() { Outcome::Loaded } else { Outcome::NotFound };
                client.counters.answered(outcome, failover);
                Ok(value)
            }
            Err(error) => {
                client.counters.failed();
                Err(error)
            }
        }
    }

    /// Stores a value at the node that owns the key. `ttl`: how long it stays fresh, at most the group's `max_ttl`; `None`: as
    /// long as the group says.
    ///
    /// When this returns `Ok`, no get of any client that begins later shows what was before, as far as ARCHITECTURE.md's
    /// promise goes. The key is deleted first and the value follows, which takes two round trips. Where the owner cannot be reached, or another
    /// write comes between, no value is kept.
    ///
    /// # Errors
    /// As [`ErrorKind`] has them; [`ErrorKind::Unavailable`] where the owner could not be reached, and a hint could not
    /// be stored for it in the registry, or the owner holds a lease there and has not read it by the deadline. After an error the write
    /// may have been done or not.
    pub async fn set(
        &self,
        key: impl AsRef<[u8]>,
        value: impl AsRef<[u8]>,
        ttl: Option<Duration>,
    ) -> Result<(), Error> {
        let (key, value) = (key.as_ref(), value.as_ref());
        self.check(key)?;
        self.set_since(key, value, ttl, 0).await
    }

    /// Begins a write of a key, before the database is written: of two applications that write a key at the same time, neither then leaves
    /// the other's older value. [`set`](Self::set) alone is enough where one writer at a time writes a key, or where the
    /// database and the cache are written in the same order.
    ///
    /// ```no_run
    /// # async fn example(client: peanut_client::Client) -> Result<(), peanut_client::Error> {
    /// let scores = client.group("scores");
    /// let write = scores.begin_write("Tom").await?;
    /// // … the database is written …
    /// write.set("631", None).await?;
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// As [`delete`](Self::delete), which it also is.
    pub async fn begin_write(&self, key: impl AsRef<[u8]>) -> Result<BegunWrite, Error> {
        let key = key.as_ref();
        self.check(key)?;
        let sequence = self.write(key, Write::Delete { key, then_set: false, sequence: 0 }, 0).await?;
        Ok(BegunWrite { group: self.clone(), key: key.into(), sequence })
    }

    async fn set_since(
        &self,
        key: &[u8],
        value: &[u8],
        ttl: Option<Duration>,
        sequence: u64,
    ) -> Result<(), Error> {
        if value.len() > MAX_VALUE_BYTES {
            let why = format!("the value has {} bytes; the limit is {MAX_VALUE_BYTES}", value.len());
            return Err(Error::new(ErrorKind::TooLarge, why));
        }
        // Zero would be the group's.
        let ttl_ms = ttl.map_or(0, |ttl| u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX).max(1));
        let set = Write::Set { key, outcome: Filled::Value(value), ttl_ms, token: 0 };
        self.write(key, set, sequence).await.map(drop)
    }

    /// Has the fleet forget a key: the next get loads it. A load in progress is not kept.
    ///
    /// When this returns `Ok`, it has happened or will have happened before the owner answers again, also where the owner
    /// is down.
    ///
    /// # Errors
    /// As [`set`](Self::set).
    pub async fn delete(&self, key: impl AsRef<[u8]>) -> Result<(), Error> {
        let key = key.as_ref();
        self.check(key)?;
        self.write(key, Write::Delete { key, then_set: false, sequence: 0 }, 0).await.map(drop)
    }

    /// Has the fleet forget many keys, all at the same time; the results are in the order of the keys.
    pub async fn delete_many<K: AsRef<[u8]>>(
        &self,
        keys: impl IntoIterator<Item = K>,
    ) -> Vec<Result<(), Error>> {
        let keys: Vec<K> = keys.into_iter().collect();
        // Without a closure: a future that has one cannot be spawned.
        let mut deletes = Vec::with_capacity(keys.len());
        for key in &keys {
            deletes.push(self.delete(key));
        }
        iter(deletes).buffered(self.client.config.keys_in_flight).collect().await
    }

    /// Has the fleet forget all keys of the group.
    ///
    /// # Errors
    /// [`ErrorKind::Unavailable`] or [`ErrorKind::DeadlineExceeded`] where the registry did not take it, or, in a fleet that is
    /// a fixed list, one of the nodes. Some nodes may have forgotten all then.
    pub async fn clear(&self) -> Result<(), Error> {
        self.check(b"any key")?;
        let now = Instant::now();
        let wanted = self.wanted(b"", now);
        write::clear(&self.client, wanted, now).await.inspect_err(|_| self.client.counters.failed())
    }

    async fn write(&self, key: &[u8], write: Write<'_>, sequence: u64) -> Result<u64, Error> {
        let now = Instant::now();
        let wanted = Wanted { want: Want::Write(write), ..self.wanted(key, now) };
        let written = write::write(&self.client, wanted, sequence, &self.name, now).await;
        self.client.counters.written(written.is_ok());
        written
    }

    async fn get_from(&self, key: &[u8], now: Instant) -> Result<Option<Bytes>, Error> {
        self.check(key)?;
        let trace = self.client.config.traceparent();
        let wanted = Wanted { traceparent: &trace, ..self.wanted(key, now) };
        self.settle(failover::get(&self.client, wanted, now).instrument(self.span()).await)
    }

    fn span(&self) -> tracing::Span {
        tracing::debug_span!("get", group = &*self.name)
    }

    fn wanted<'a>(&'a self, key: &'a [u8], now: Instant) -> Wanted<'a> {
        self.client.keep_background();
        let hash = key_hash(&self.name, key);
        Wanted {
            hash,
            want: Want::LOAD,
            traceparent: "",
            group: self.number,
            group_name: &self.name,
            key,
            deadline: now + self.client.config.deadline,
        }
    }

    /// Takes in what an answer says besides the value, and gives the value.
    fn settle(&self, answer: Result<Answered, Error>) -> Result<Option<Bytes>, Error> {
        let client = &self.client;
        match answer {
            Ok(Answered { reply, failover, .. }) => {
                client.counters.answered(reply.outcome, failover);
                match reply.outcome {
                    Outcome::Hit | Outcome::Loaded | Outcome::Coalesced | Outcome::Stale => {
                        Ok(Some(reply.value))
                    }
                    Outcome::NotFound => Ok(None),
                    other => {
                        let why = format!("the node answered a get with {}", other.as_str_name());
                        Err(Error::new(ErrorKind::Protocol, why))
                    }
                }
            }
            Err(error) => {
                client.counters.failed();
                Err(error)
            }
        }
    }
}

/// A write that has begun, before the database is written; see [`Group::begin_write`]. Where nothing comes of it, it can be dropped.
#[derive(Debug)]
pub struct BegunWrite {
    group: Group,
    key: Box<[u8]>,
    /// Of the key, at its owner.
    sequence: u64,
}

impl BegunWrite {
    /// Ends the write with its value, after the database was written: as [`Group::set`], but where another write of the key has begun or
    /// ended since this one began, or the key has another owner, it is as [`delete`](Self::delete). A write of another key of the node may have the
    /// same effect, one in a thousand.
    ///
    /// # Errors
    /// As [`Group::set`].
    pub async fn set(self, value: impl AsRef<[u8]>, ttl: Option<Duration>) -> Result<(), Error> {
        match self.sequence {
            // The owner could not be reached: nobody knows what it is told meanwhile.
            0 => self.delete().await,
            sequence => self.group.set_since(&self.key, value.as_ref(), ttl, sequence).await,
        }
    }

    /// Ends the write without a value, after the database was written.
    ///
    /// # Errors
    /// As [`Group::delete`].
    pub async fn delete(self) -> Result<(), Error> {
        self.group.delete(&self.key).await
    }
}

/// The longest message of the application's loader that is told to others, in bytes.
const MAX_MESSAGE_BYTES: usize = 1024;

/// That the application's loader has failed.
fn failed(mut message: String) -> Error {
    if message.is_empty() {
        "the application's loader failed".clone_into(&mut message);
    }
    if message.len() > MAX_MESSAGE_BYTES {
        message.truncate(message.floor_char_boundary(MAX_MESSAGE_BYTES));
        message.push('…');
    }
    Error::new(ErrorKind::Loader, message)
}

#[cfg(test)]
mod tests {
    /// Thousands of them wait at a time, each in memory of its own; what they seldom need is in boxes.
    #[tokio::test]
    async fn what_waits_for_an_answer_is_small() {
        let client = crate::Client::builder().nodes(["127.0.0.1:1"]).build().await.unwrap();
        let group = client.group("g");
        let sizes = [size_of_val(&group.get("k")), size_of_val(&group.get_many(["k"]))];
        assert!(sizes.iter().all(|size| *size <= 1056), "{sizes:?} bytes");
        let set = size_of_val(&group.set("k", "v", None));
        assert!(set <= 1792, "{set} bytes");
    }

    #[tokio::test]
    async fn calls_can_be_spawned() {
        let client = crate::Client::builder().nodes(["127.0.0.1:1"]).build().await.unwrap();
        let group = client.group("g");
        let keys = || (0..2).map(|key| key.to_string());
        let spawned = tokio::spawn(async move {
            let deleted = group.delete_many(keys()).await;
            (deleted.len(), group.get_many(keys()).await.len(), group.begin_write("k").await.is_ok())
        });
        assert_eq!(spawned.await.unwrap(), (2, 2, false));
    }
}
