//! A group as an application uses it: gets here, [`loads`] by the application's own loader, and [`writes`].

mod boarding;
mod inspect;
mod loads;
mod near;
mod unfinished;
mod writes;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use peanut_proto::key::KeyHasher;
use peanut_proto::limits::check_key;
use peanut_proto::membership::check_name;
use peanut_proto::v1::{Near, Outcome};
use tokio::time::Instant;
use tracing::Instrument as _;

use crate::config::DEADLINE;
use crate::error::{Error, ErrorKind};
use crate::failover;
use crate::many;
use crate::near::NearCopies;
use crate::request::{Key, Op, Request};
use crate::shared::Answered;
use crate::shared::Shared;
use crate::tally::Tally;
#[cfg(feature = "json")]
use crate::undecodable::Undecodable;

pub(crate) use unfinished::follow as follow_owed;

pub use inspect::{HeldEntry, Holding, KeyRole};
pub use writes::BegunWrite;

/// A value, and where it came from.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Detailed {
    /// As of [`Group::get`].
    pub value: Option<Bytes>,
    /// How it was come by.
    pub source: Source,
    /// Age in whole milliseconds: since the load began or, for a value that was set or handed over, since
    /// that happened.
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
    /// It was in this client's near cache; also that there is no such key.
    Near,
}

/// A group of a fleet: a namespace of keys. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Group {
    client: Arc<Shared>,
    name: Arc<str>,
    hasher: Arc<KeyHasher>,
    /// Numeric alias of the group on the wire.
    number: u32,
    /// How long a call may take.
    deadline: Duration,
    /// Where copies of its keys are, if it has any.
    near: Option<Arc<NearCopies>>,
    tally: Tally,
    /// What every call fails with: a name that no group can have, or a deadline out of bounds.
    invalid: Option<Error>,
}

impl Group {
    pub(crate) fn new(client: Arc<Shared>, name: &str) -> Self {
        let invalid = invalid_name(name);
        let number = if invalid.is_none() { client.group_number(name) } else { u32::MAX };
        let deadline = client.config.deadline;
        let near = client.config.near.clone().filter(|near| near.of_group(name) != Near::Off);
        let tally = if invalid.is_none() { client.tallies.of(name) } else { Tally::default() };
        let name: Arc<str> = name.into();
        let hasher = Arc::new(KeyHasher::new(name.clone()));
        Group { client, name, hasher, number, deadline, near, tally, invalid }
    }

    fn check(&self, key: &[u8]) -> Result<(), Error> {
        match &self.invalid {
            Some(error) => Err(error.clone()),
            None => check_key(key).map_err(invalid),
        }
    }

    /// The same group, whose calls may take this long, in place of the client's
    /// [`deadline`](crate::ClientBuilder::deadline); 1 ms to a day. The group itself keeps its own.
    ///
    /// ```no_run
    /// # use std::time::Duration;
    /// # async fn f(scores: peanut_client::Group) -> Result<(), peanut_client::Error> {
    /// let score = scores.with_deadline(Duration::from_millis(20)).get("Tom").await?;
    /// # drop(score); Ok(()) }
    /// ```
    ///
    /// A silent node is probed after a quarter of the client's deadline, and its successor is asked after up
    /// to half of it: a call with less time than that fails with [`ErrorKind::DeadlineExceeded`] before. A
    /// deadline out of bounds makes every call fail with [`ErrorKind::InvalidArgument`].
    #[must_use]
    pub fn with_deadline(&self, deadline: Duration) -> Self {
        let refused = DEADLINE.check(deadline).err().map(|why| invalid(format!("deadline: {why}")));
        // One that is refused is reckoned with nowhere.
        let deadline = if refused.is_some() { self.deadline } else { deadline };
        Group { deadline, invalid: invalid_name(&self.name).or(refused), ..self.clone() }
    }

    /// The group's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The value of a key, from the node that owns it, which loads it where it is missing. `None`: the
    /// origin has no such key.
    ///
    /// A key has 1 to 1024 bytes. The client's deadline, or that of [`with_deadline`](Self::with_deadline),
    /// bounds the call; a load that outlives it goes on at the node, for the next get.
    ///
    /// # Errors
    /// As [`ErrorKind`] has them. Where the owner cannot be reached its successor is asked, so
    /// [`ErrorKind::Unavailable`] means that both could not.
    pub async fn get(&self, key: impl AsRef<[u8]>) -> Result<Option<Bytes>, Error> {
        let key = key.as_ref();
        self.check(key)?;
        let hash = self.hasher.hash(key);
        let op = match self.near_copy(key, hash) {
            Ok(value) => return Ok(value),
            Err(is_lapsed) => Op::load(is_lapsed),
        };
        let ((span, trace), now) = (self.span(), Instant::now());
        let request = Request { op, traceparent: &trace, ..self.request_of(key, hash, now) };
        let answer = if span.is_disabled() {
            failover::get(&self.client, &request, now).await
        } else {
            Box::pin(failover::get(&self.client, &request, now)).instrument(span).await
        };
        self.tally.took(now);
        self.settle(answer)
    }

    /// As [`get`](Self::get), and tells where the value came from.
    ///
    /// # Errors
    /// As [`get`](Self::get).
    pub async fn get_detailed(&self, key: impl AsRef<[u8]>) -> Result<Detailed, Error> {
        let (key, now) = (key.as_ref(), Instant::now());
        self.check(key)?;
        let request = self.request(key, now);
        let op = match self.near_copy_detailed(key, request.hash) {
            Ok(copy) => return Ok(copy),
            Err(is_lapsed) => Op::load(is_lapsed),
        };
        let (span, trace) = self.span();
        let request = Request { op, traceparent: &trace, ..request };
        let answer = Box::pin(failover::get(&self.client, &request, now)).instrument(span).await;
        self.tally.took(now);
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
    #[doc(alias = "mget")]
    pub async fn get_many<K: AsRef<[u8]>>(
        &self,
        keys: impl IntoIterator<Item = K>,
    ) -> Vec<Result<Option<Bytes>, Error>> {
        let now = Instant::now();
        let keys: Vec<K> = keys.into_iter().collect();
        // Those that need not be asked for: they are in the near cache, or no keys.
        let (mut asked, mut known) = (Vec::with_capacity(keys.len()), Vec::new());
        for (at, key) in keys.iter().enumerate() {
            let bytes = key.as_ref();
            match self.check(bytes).map(|()| self.hasher.hash(bytes)) {
                Ok(hash) => match self.near_copy(bytes, hash) {
                    Ok(value) => known.push((at, Ok(value))),
                    Err(_) => asked.push(Key { bytes, hash }),
                },
                Err(error) => known.push((at, Err(error))),
            }
        }
        let got = if asked.is_empty() {
            Vec::new()
        } else {
            let (span, trace) = self.span();
            let request = Request { traceparent: &trace, ..self.request(&[], now) };
            let got = Box::pin(many::get(&self.client, request, &asked, now)).instrument(span).await;
            self.tally.took(now);
            got
        };
        let mut values: Vec<_> = got.into_iter().map(|got| self.value(got)).collect();
        // In the order of their places, so that each is right when it is its turn.
        known.into_iter().for_each(|(at, value)| values.insert(at, value));
        values
    }

    /// The span of a get, and the trace context that nodes are told: where somebody listens that of the span.
    fn span(&self) -> (tracing::Span, String) {
        let span = tracing::debug_span!("get", group = &*self.name);
        let trace = span.in_scope(|| self.client.config.traceparent());
        (span, trace)
    }

    fn request<'a>(&'a self, key: &'a [u8], now: Instant) -> Request<'a> {
        self.request_of(key, self.hasher.hash(key), now)
    }

    fn request_of<'a>(&'a self, key: &'a [u8], hash: u64, now: Instant) -> Request<'a> {
        self.client.keep_background(now);
        Request {
            hash,
            op: Op::LOAD,
            traceparent: "",
            group: self.number,
            group_name: &self.name,
            key,
            deadline: now + self.deadline,
        }
    }

    /// Takes in what an answer says besides the value, and gives the value.
    fn settle(&self, answer: Result<Answered, Error>) -> Result<Option<Bytes>, Error> {
        self.value(answer.map(|answered| (answered.reply, answered.failover)))
    }

    /// Counts a get that was answered, for the client and for the group.
    fn count_answered(&self, outcome: Outcome, failover: bool) {
        self.client.counters.answered(outcome, failover);
        self.tally.answered(outcome);
    }

    fn count_failed(&self) {
        self.client.counters.failed();
        self.tally.failed();
    }

    fn count_written(&self, is_done: bool) {
        self.client.counters.written(is_done);
        self.tally.written(is_done);
    }

    fn value(&self, answer: many::Got) -> Result<Option<Bytes>, Error> {
        match answer {
            Ok((reply, failover)) => {
                self.count_answered(reply.outcome, failover);
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
                self.count_failed();
                Err(error)
            }
        }
    }
}

/// What groups of typed values ask of one of bytes.
#[cfg(feature = "json")]
impl Group {
    /// How long a call may take.
    pub(crate) fn deadline(&self) -> Duration {
        self.deadline
    }

    pub(crate) fn hash(&self, key: &[u8]) -> u64 {
        self.hasher.hash(key)
    }

    pub(crate) fn undecodable(&self) -> &Undecodable {
        &self.client.undecodable
    }
}

fn invalid(why: String) -> Error {
    Error::new(ErrorKind::InvalidArgument, why)
}

/// Why no group can have that name.
fn invalid_name(name: &str) -> Option<Error> {
    check_name(name).err().map(|why| invalid(format!("the group's name {why}")))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use crate::ErrorKind;

    /// Thousands of them wait at a time, each in memory of its own; what they seldom need is in boxes.
    #[tokio::test]
    async fn what_waits_for_an_answer_is_small() {
        let client = crate::Client::builder().nodes(["127.0.0.1:1"]).build().await.unwrap();
        let group = client.group("g");
        let sizes = [size_of_val(&group.get("k")), size_of_val(&group.get_many(["k"]))];
        assert!(sizes.iter().all(|size| *size <= 768), "{sizes:?} bytes");
        let set = size_of_val(&group.set("k", "v"));
        assert!(set <= 1440, "{set} bytes");
    }

    /// By every call, also those that reckon with the deadline before they look at anything else; and it is
    /// forgotten with the next one.
    #[tokio::test]
    async fn a_deadline_out_of_bounds_is_refused_by_every_call() {
        let client = crate::Client::builder().nodes(["127.0.0.1:1"]).build().await.unwrap();
        let load = || async { Ok::<_, crate::Error>(Some("v")) };
        let load_many =
            |keys: Vec<bytes::Bytes>| async { Ok::<_, crate::Error>(keys.into_iter().map(|key| (key, "v"))) };
        for deadline in [Duration::ZERO, Duration::MAX] {
            let group = client.group("g").with_deadline(deadline);
            let mut errors = vec![
                group.get("k").await.unwrap_err(),
                group.get_detailed("k").await.unwrap_err(),
                group.get_or_load("k", load).await.unwrap_err(),
                group.set("k", "v").await.unwrap_err(),
                group.delete("k").await.unwrap_err(),
                group.clear().await.unwrap_err(),
                group.begin_write("k").await.unwrap_err(),
            ];
            errors.extend(group.get_many(["k"]).await.into_iter().map(Result::unwrap_err));
            errors.extend(group.get_or_load_many(["k"], load_many).await.into_iter().map(Result::unwrap_err));
            errors.extend(group.set_many([("k", "v")]).await.into_iter().map(Result::unwrap_err));
            errors.extend(group.delete_many(["k"]).await.into_iter().map(Result::unwrap_err));
            #[cfg(feature = "json")]
            {
                let group = group.json::<u32>();
                errors.push(group.get("k").await.unwrap_err());
                errors.push(
                    group
                        .get_or_load("k", || async { Ok::<_, crate::Error>(Some(1_u32)) })
                        .await
                        .unwrap_err(),
                );
                errors.extend(group.get_many(["k"]).await.into_iter().map(Result::unwrap_err));
                errors.push(group.set("k", &1).await.unwrap_err());
            }
            for error in errors {
                assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{error}");
            }
            let mended = group.with_deadline(Duration::from_millis(10));
            assert_ne!(mended.get("k").await.unwrap_err().kind(), ErrorKind::InvalidArgument);
        }
    }

    #[tokio::test]
    async fn calls_can_be_spawned() {
        let client = crate::Client::builder().nodes(["127.0.0.1:1"]).build().await.unwrap();
        let group = client.group("g");
        let keys = || (0..2).map(|key| key.to_string());
        let spawned = tokio::spawn(async move {
            let deleted = group.delete_many(keys()).await;
            let set = group.set_many(keys().map(|key| (key, "v"))).await;
            let loaded = group
                .get_or_load_many(keys(), |missing| async move {
                    Ok::<_, crate::Error>(missing.into_iter().map(|key| (key, "v")))
                })
                .await;
            assert!(loaded.iter().all(|value| matches!(value, Ok(Some(value)) if value == "v")));
            let counts = [deleted.len(), set.len(), loaded.len(), group.get_many(keys()).await.len()];
            (counts, group.begin_write("k").await.is_ok())
        });
        assert_eq!(spawned.await.unwrap(), ([2; 4], false));
    }
}
