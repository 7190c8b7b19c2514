//! Gets of a group whose missing values the application loads itself: once for all who ask in the whole
//! fleet, under fill tokens.

use std::collections::{BTreeMap, HashMap};
use std::error::Error as StdError;
use std::pin::pin;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::join_all;
use peanut_proto::causes::causes;
use peanut_proto::frame::{Filled, Write};
use peanut_proto::limits::MAX_VALUE_BYTES;
use peanut_proto::loaded::Loaded;
use peanut_proto::numbers::FillToken;
use peanut_proto::v1::{OnMiss, Outcome};
use tokio::time::{Instant, sleep};
use tracing::Instrument as _;

use super::Group;
use super::boarding::{Boarded, Boarding, Came};
use crate::error::{Error, ErrorKind};
use crate::failover;
use crate::fill;
use crate::lane::Reply;
use crate::request::{Op, Request};
use crate::shared::Answered;

/// The longest message of the application's loader that is told to others, in bytes.
const MAX_MESSAGE_BYTES: usize = 1024;
/// How long a load of many keys waits for more keys to load, after the last answer for one.
const GATHER: Duration = Duration::from_millis(2);

/// What the application's loader may fail with.
type LoaderError = Box<dyn StdError + Send + Sync>;

/// What a load of many keys has brought, by key.
type Found = HashMap<Vec<u8>, Result<Loaded, Error>>;

impl Group {
    /// The value of a key; where it is missing `load` is run, once for all who ask in the whole fleet at the
    /// same time, and what it brings is stored at the key's owner.
    ///
    /// For values that only the application can load. The others wait for the one whose `load` runs, up to
    /// their deadline. Where that one dies, or takes longer than the group's `load_timeout`, the next one's
    /// `load` is run. It brings an `Option` of a value, where `None` says that there is no such key, which is
    /// remembered for the group's `negative_ttl`; or a [`Loaded`], which may say how long the value stays
    /// fresh. The group's own loader is not asked; the kind `none` is for groups that need none. A caller
    /// that is cancelled or panics while its `load` runs gives way to the next at once; what a late `load`
    /// brings is stored all the same where nobody has written the key meanwhile.
    ///
    /// Where no node can be asked, or a quarter of the deadline goes by before the fleet is found, `load` is
    /// run too, for this caller alone, and its value is not kept: at most
    /// [`uncached_loads`](crate::ClientBuilder::uncached_loads) at a time in this client, beyond which the
    /// call fails.
    ///
    /// ```no_run
    /// # use std::time::Duration;
    /// use peanut_client::Loaded;
    ///
    /// # async fn f(client: peanut_client::Client) -> Result<(), peanut_client::Error> {
    /// let pages = client.group("pages");
    /// let page = pages.get_or_load("/", || async { std::fs::read("index.html").map(Some) }).await?;
    /// let news = pages.get_or_load("/news", || async {
    ///     std::fs::read("news.html").map(|page| Loaded::found(page).ttl(Duration::from_secs(30)))
    /// });
    /// # drop((page, news.await?)); Ok(()) }
    /// ```
    ///
    /// # Errors
    /// [`ErrorKind::Loader`] where `load` fails, with its error as the source here, and with its message for
    /// all who wait for it; else as [`get`](Self::get).
    #[doc(alias = "get_with")]
    #[doc(alias = "try_get_with")]
    pub async fn get_or_load<T, E, L>(
        &self,
        key: impl AsRef<[u8]>,
        load: impl FnOnce() -> L,
    ) -> Result<Option<Bytes>, Error>
    where
        T: Into<Loaded>,
        E: Into<LoaderError>,
        L: Future<Output = Result<T, E>>,
    {
        let key = key.as_ref();
        let leads = match self.board(key, Instant::now() + self.deadline).await {
            Boarded::Answered(answer) => return answer,
            Boarded::Leads(answered) => answered,
            Boarded::Unreachable(error) => {
                let Ok(_turn) = self.client.uncached.try_acquire() else { return self.settle(Err(error)) };
                tracing::debug!(
                    error = format_args!("{error:#}"),
                    "no node can be asked; the value is loaded and not kept"
                );
                let loaded = load().await.map(|loaded| loaded.into().into_parts().0).map_err(failed);
                self.count_uncached(&loaded);
                return loaded;
            }
        };
        // Where this is cancelled or panics, the lease is given back with the answer.
        let loaded = load().await.map(Into::into).map_err(failed);
        self.finish(key, leads, loaded).await
    }

    /// As [`get_or_load`](Self::get_or_load), of many keys: the values in the order of the keys, each with an
    /// error of its own where there is one. `load` is called with the keys that are missing and that nobody
    /// else is loading, and brings pairs of a key and its value; a key for which it brings none is not found.
    /// It may be called several times, each time with other keys, one call after the other.
    ///
    /// ```no_run
    /// # use bytes::Bytes;
    /// # async fn select(keys: Vec<Bytes>) -> Result<Vec<(Bytes, String)>, std::io::Error> { Ok(vec![]) }
    /// # async fn f(client: peanut_client::Client) -> Result<(), peanut_client::Error> {
    /// let scores = client.group("scores");
    /// // One query for all that are missing.
    /// let found = scores.get_or_load_many(["Tom", "Jack", "Sam"], |missing| select(missing)).await;
    /// # drop(found); Ok(()) }
    /// ```
    pub async fn get_or_load_many<K, F, V, I, E, L>(
        &self,
        keys: impl IntoIterator<Item = K>,
        mut load: impl FnMut(Vec<Bytes>) -> L,
    ) -> Vec<Result<Option<Bytes>, Error>>
    where
        K: AsRef<[u8]>,
        F: AsRef<[u8]>,
        V: Into<Loaded>,
        I: IntoIterator<Item = (F, V)>,
        E: Into<LoaderError>,
        L: Future<Output = Result<I, E>>,
    {
        self.get_or_load_each(keys, |missing| {
            let loading = load(missing);
            async move { Ok::<_, E>(loading.await?.into_iter().map(|(key, value)| (key, Ok(value.into())))) }
        })
        .await
    }

    /// As [`get_or_load_many`](Self::get_or_load_many), where a value of the load may have an error of its
    /// own.
    pub(crate) async fn get_or_load_each<K, F, I, E, L>(
        &self,
        keys: impl IntoIterator<Item = K>,
        mut load: impl FnMut(Vec<Bytes>) -> L,
    ) -> Vec<Result<Option<Bytes>, Error>>
    where
        K: AsRef<[u8]>,
        F: AsRef<[u8]>,
        I: IntoIterator<Item = (F, Result<Loaded, Error>)>,
        E: Into<LoaderError>,
        L: Future<Output = Result<I, E>>,
    {
        let keys: Vec<Bytes> = keys.into_iter().map(|key| Bytes::copy_from_slice(key.as_ref())).collect();
        let mut found: HashMap<Bytes, Result<Option<Bytes>, Error>> = HashMap::new();
        let mut load = |missing| {
            let loading = load(missing);
            async move { loading.await.map(by_key).map_err(failed) }
        };
        let mut different: Vec<&Bytes> = keys.iter().collect();
        different.sort_unstable();
        different.dedup();
        for portion in different.chunks(self.client.config.keys_in_flight) {
            self.load_portion(portion, &mut load, &mut found).await;
        }
        keys.iter().map(|key| found.get(key).cloned().expect("every key has been asked for")).collect()
    }

    /// Gets keys, all at the same time, and loads those that this caller is to load.
    async fn load_portion<L: Future<Output = Result<Found, Error>>>(
        &self,
        keys: &[&Bytes],
        load: &mut impl FnMut(Vec<Bytes>) -> L,
        found: &mut HashMap<Bytes, Result<Option<Bytes>, Error>>,
    ) {
        let mut boarding = Box::new(Boarding::new(self, keys, Instant::now()));
        let (mut leads, mut unreachable, mut answers) = (Vec::new(), Vec::new(), Vec::new());
        let mut take = |(at, boarded): Came, leads: &mut Vec<(Bytes, Answered)>| match boarded {
            Boarded::Answered(answer) => answers.push((keys[at].clone(), answer)),
            Boarded::Leads(answered) => leads.push((keys[at].clone(), answered)),
            Boarded::Unreachable(error) => unreachable.push((keys[at].clone(), error)),
        };
        loop {
            // Those that others load are answered later: they are not waited for where there is something to
            // load.
            tokio::select! {
                biased;
                Some(came) = boarding.next() => {
                    take(came, &mut leads);
                    continue;
                }
                () = sleep(GATHER), if !leads.is_empty() && !boarding.is_over() => {}
                else => {}
            }
            if leads.is_empty() {
                break;
            }
            let led = std::mem::take(&mut leads);
            let mut loading = pin!(load(led.iter().map(|(key, _)| key.clone()).collect()));
            let loaded = loop {
                tokio::select! {
                    biased;
                    loaded = &mut loading => break loaded,
                    Some(came) = boarding.next() => take(came, &mut leads),
                }
            };
            found.extend(self.finish_many(led, loaded).await);
        }
        found.extend(answers);
        self.load_uncached(unreachable, load, found).await;
    }

    /// Loads what no node could be asked for.
    async fn load_uncached<L: Future<Output = Result<Found, Error>>>(
        &self,
        unreachable: Vec<(Bytes, Error)>,
        load: &mut impl FnMut(Vec<Bytes>) -> L,
        found: &mut HashMap<Bytes, Result<Option<Bytes>, Error>>,
    ) {
        if unreachable.is_empty() {
            return;
        }
        let Ok(_turn) = self.client.uncached.try_acquire() else {
            found.extend(unreachable.into_iter().map(|(key, error)| (key, self.settle(Err(error)))));
            return;
        };
        let keys: Vec<Bytes> = unreachable.into_iter().map(|(key, _)| key).collect();
        tracing::debug!(keys = keys.len(), "no node can be asked; the values are loaded and not kept");
        let loaded = load(keys.clone()).await;
        for key in keys {
            let value = match &loaded {
                Ok(loaded) => of_key(loaded, &key).map(|loaded| loaded.into_parts().0),
                Err(error) => Err(error.clone()),
            };
            self.count_uncached(&value);
            found.insert(key, value);
        }
    }

    /// Counts what was loaded without a node, or could not be.
    fn count_uncached(&self, loaded: &Result<Option<Bytes>, Error>) {
        match loaded {
            Ok(_) => self.client.counters.loaded_uncached(),
            Err(_) => self.count_failed(),
        }
    }

    /// Asks for a key until a deadline, and is answered, or told to load it.
    pub(super) async fn board(&self, key: &[u8], deadline: Instant) -> Boarded {
        if let Err(error) = self.check(key) {
            return Boarded::Answered(Err(error));
        }
        let near = match self.near_copy(key, self.hasher.hash(key)) {
            Ok(value) => return Boarded::Answered(Ok(value)),
            Err(is_lapsed) => is_lapsed,
        };
        let (client, now) = (&*self.client, Instant::now());
        if client.routing.get().nodes().is_empty()
            && let Err(error) = Box::pin(client.wait_for_nodes(self.patience(now))).await
        {
            return Boarded::Unreachable(error);
        }
        let (span, trace) = self.span();
        let op = Op::Get { on_miss: OnMiss::Lease, token: FillToken::NONE, near };
        let request = Request { op, traceparent: &trace, deadline, ..self.request(key, now) };
        let answered = match Box::pin(failover::get(client, &request, now)).instrument(span).await {
            Ok(answered) if answered.reply.outcome == Outcome::Fill => answered,
            // The application's own origin may well be there.
            Err(error) if error.kind() == ErrorKind::Unavailable => return Boarded::Unreachable(error),
            other => return Boarded::Answered(self.settle(other)),
        };
        let Answered { reply, node, ring_version, failover } = &answered;
        if !failover
            && reply.may_hand_over(*ring_version)
            && let Some(found) =
                fill::value_of_previous_owner(client, &request, node, *ring_version, reply).await
        {
            return Boarded::Answered(self.settle(Ok(Answered { reply: found, ..answered })));
        }
        Boarded::Leads(answered)
    }

    /// Until when a caller that can load by itself waits for the fleet to be found.
    fn patience(&self, now: Instant) -> Instant {
        let is_in_trouble = self.client.discovered.borrow().trouble.is_some();
        if is_in_trouble { now } else { now + self.deadline / 4 }
    }

    /// Brings what was loaded to the node that has given the token.
    async fn finish(
        &self,
        key: &[u8],
        leads: Answered,
        loaded: Result<Loaded, Error>,
    ) -> Result<Option<Bytes>, Error> {
        let Answered { reply, node, ring_version, failover } = leads;
        let brought = Brought::new(loaded);
        let request = self.request_to_fill(key);
        let write = brought.write(key, reply.token);
        fill::fill(&request, &node, ring_version, write, &reply).await;
        self.value_of(brought, failover)
    }

    /// As [`finish`](Self::finish), of all keys that one load was for: each node is brought all of its values
    /// together.
    async fn finish_many(
        &self,
        led: Vec<(Bytes, Answered)>,
        loaded: Result<Found, Error>,
    ) -> Vec<(Bytes, Result<Option<Bytes>, Error>)> {
        let brought = led.iter().map(|(key, _)| match &loaded {
            Ok(loaded) => Brought::new(of_key(loaded, key)),
            Err(error) => Brought::new(Err(error.clone())),
        });
        let brought: Vec<_> = brought.collect();
        let mut by_node = BTreeMap::<_, Vec<(Write<'_>, &Reply)>>::new();
        for ((key, answered), brought) in led.iter().zip(&brought) {
            let Answered { reply, node, ring_version, .. } = answered;
            let fills = by_node.entry((node.id(), node.addr(), *ring_version)).or_default();
            fills.push((brought.write(key, reply.token), reply));
        }
        let request = self.request_to_fill(&[]);
        let mut filling = Vec::with_capacity(by_node.len());
        for ((id, addr, ring_version), fills) in &by_node {
            let mut nodes = led.iter().map(|(_, answered)| &answered.node);
            let node = nodes.find(|node| (node.id(), node.addr()) == (*id, *addr));
            filling.extend(node.map(|node| fill::fill_all(&request, node, *ring_version, fills)));
        }
        join_all(filling).await;
        drop(by_node);
        let values = led.into_iter().zip(brought);
        values.map(|((key, answered), brought)| (key, self.value_of(brought, answered.failover))).collect()
    }

    /// The load may have taken all the time that the get had.
    fn request_to_fill<'a>(&'a self, key: &'a [u8]) -> Request<'a> {
        self.request(key, Instant::now())
    }

    fn value_of(&self, brought: Brought, failover: bool) -> Result<Option<Bytes>, Error> {
        match brought.loaded {
            Ok((value, _)) => {
                let outcome = if value.is_some() { Outcome::Loaded } else { Outcome::NotFound };
                self.count_answered(outcome, failover);
                Ok(value)
            }
            Err(error) => {
                self.count_failed();
                Err(error)
            }
        }
    }
}

/// What the application's loader has brought for a key.
struct Brought {
    loaded: Result<(Option<Bytes>, Option<Duration>), Error>,
    /// What others are told where it has failed.
    message: String,
}

impl Brought {
    fn new(loaded: Result<Loaded, Error>) -> Self {
        let message = loaded.as_ref().err().map(message_of).unwrap_or_default();
        Brought { loaded: loaded.map(Loaded::into_parts), message }
    }

    /// As the node that has given the token is told.
    fn write<'a>(&'a self, key: &'a [u8], token: FillToken) -> Write<'a> {
        let (outcome, ttl) = match &self.loaded {
            Ok((Some(value), _)) if value.len() > MAX_VALUE_BYTES => {
                (Filled::Failed("the value is too long to be kept"), None)
            }
            Ok((Some(value), ttl)) => (Filled::Value(value), *ttl),
            Ok((None, _)) => (Filled::NotFound, None),
            Err(_) => (Filled::Failed(&self.message), None),
        };
        Write::Set { key, outcome, ttl_ms: super::writes::ttl_ms(ttl), token }
    }
}

fn by_key<F: AsRef<[u8]>>(loaded: impl IntoIterator<Item = (F, Result<Loaded, Error>)>) -> Found {
    loaded.into_iter().map(|(key, value)| (key.as_ref().to_vec(), value)).collect()
}

fn of_key(loaded: &Found, key: &[u8]) -> Result<Loaded, Error> {
    loaded.get(key).cloned().unwrap_or_else(|| Ok(Loaded::not_found()))
}

/// That the application's loader has failed.
fn failed(error: impl Into<LoaderError>) -> Error {
    Error::caused_by(ErrorKind::Loader, None, "the application's loader failed", error)
}

/// What others who wait are told: the loader's own message and those of its causes.
fn message_of(error: &Error) -> String {
    let messages = causes(error).map(ToString::to_string).filter(|message| !message.is_empty());
    let messages: Vec<String> = messages.collect();
    let mut message = if messages.is_empty() { error.to_string() } else { messages.join(": ") };
    if message.len() > MAX_MESSAGE_BYTES {
        message.truncate(message.floor_char_boundary(MAX_MESSAGE_BYTES));
        message.push('…');
    }
    message
}
