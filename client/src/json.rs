//! Groups whose values are JSON documents of one type, through serde.

use std::collections::{BTreeSet, HashMap};
use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::MutexGuard;
use tokio::time::{Instant, timeout_at};
use xxhash_rust::xxh3::xxh3_64;

use crate::error::{Error, ErrorKind};
use crate::group::{BegunWrite, Detailed, Group};
use peanut_proto::loaded::Loaded;

/// A group of values of type `T`, which the nodes keep as JSON. Cheap to clone.
///
/// ```no_run
/// # async fn f(client: peanut_client::Client) -> Result<(), peanut_client::Error> {
/// #[derive(serde::Serialize, serde::Deserialize)]
/// struct Player {
///     name: String,
///     score: u32,
/// }
///
/// let players = client.group("players").json::<Player>();
/// let tom = players.get_or_load("Tom", || async {
///     Ok::<_, std::io::Error>(Some(Player { name: "Tom".to_owned(), score: 630 }))
/// });
/// # tom.await.map(drop) }
/// ```
pub struct JsonGroup<T> {
    group: Group,
    undecodable: Arc<Undecodable>,
    /// Values come and go; none is here.
    values: PhantomData<fn(T) -> T>,
}

/// What is known of values that are no documents.
#[derive(Debug, Default)]
struct Undecodable {
    /// Keys whose values were none after they had been asked for anew, and when that was.
    given_up: parking_lot::Mutex<HashMap<Box<[u8]>, Instant>>,
    /// One of the callers that want to delete a value does, as a delete makes the loads of others void; by
    /// key.
    turns: [tokio::sync::Mutex<()>; 16],
}

impl Undecodable {
    /// How long such a value is left alone.
    const LEFT_ALONE: Duration = Duration::from_secs(10);
    /// Keys that are remembered at most.
    const MOST: usize = 1024;

    fn is_given_up(&self, key: &[u8]) -> bool {
        self.given_up.lock().get(key).is_some_and(|at| at.elapsed() < Undecodable::LEFT_ALONE)
    }

    fn give_up(&self, key: &[u8]) {
        let mut given_up = self.given_up.lock();
        if given_up.len() >= Undecodable::MOST {
            given_up.clear();
        }
        given_up.insert(key.into(), Instant::now());
    }

    /// The turns of keys, taken in one order by everybody; `None` where they could not be had in time.
    async fn turns<K: AsRef<[u8]>>(&self, keys: &[K], until: Instant) -> Option<Vec<MutexGuard<'_, ()>>> {
        let of = |key: &K| xxh3_64(key.as_ref()) as usize % self.turns.len();
        let places: BTreeSet<usize> = keys.iter().map(of).collect();
        let mut turns = Vec::with_capacity(places.len());
        for place in places {
            turns.push(timeout_at(until, self.turns[place].lock()).await.ok()?);
        }
        Some(turns)
    }
}

impl Group {
    /// The same group, for values of type `T` as JSON.
    pub fn json<T: Serialize + DeserializeOwned>(&self) -> JsonGroup<T> {
        JsonGroup { group: self.clone(), undecodable: Arc::default(), values: PhantomData }
    }
}

impl<T: Serialize + DeserializeOwned> JsonGroup<T> {
    /// As [`Group::get`]. A value that is no such document, as of an earlier version of the application, is
    /// deleted, where this client may do that, and asked for once more. Where what comes then is none either,
    /// that is left alone for ten seconds.
    ///
    /// # Errors
    /// As [`Group::get`], and [`ErrorKind::Codec`] where the value is no such document still.
    pub async fn get(&self, key: impl AsRef<[u8]>) -> Result<Option<T>, Error> {
        let until = self.until();
        let Some(bytes) = self.group.get(&key).await? else { return Ok(None) };
        match decode(&bytes) {
            Ok(value) => Ok(Some(value)),
            Err(error) => self.get_again(key.as_ref(), error, until).await.map(|(value, _)| value),
        }
    }

    /// As [`Group::get_detailed`], of a value that is decoded.
    ///
    /// # Errors
    /// As [`Group::get_detailed`], and [`ErrorKind::Codec`] as [`get`](Self::get).
    pub async fn get_detailed(&self, key: impl AsRef<[u8]>) -> Result<(Option<T>, Detailed), Error> {
        let until = self.until();
        let detailed = self.group.get_detailed(&key).await?;
        match read(&detailed) {
            Ok(value) => Ok((value, detailed)),
            Err(error) => self.get_again(key.as_ref(), error, until).await,
        }
    }

    /// By when a call that begins now is over, however often it asks.
    fn until(&self) -> Instant {
        Instant::now() + self.group.deadline()
    }

    /// The group, for what is left of a call.
    fn within(&self, until: Instant) -> Group {
        let left = until.saturating_duration_since(Instant::now());
        self.group.with_deadline(left.max(Duration::from_millis(1)))
    }

    /// Deletes what is no document, and asks for it once more, unless that has come to nothing of late.
    async fn get_again(
        &self,
        key: &[u8],
        error: Error,
        until: Instant,
    ) -> Result<(Option<T>, Detailed), Error> {
        if self.undecodable.is_given_up(key) {
            return Err(error);
        }
        let Some(_turn) = self.undecodable.turns(&[key], until).await else { return Err(error) };
        // Another may have done it meanwhile.
        let detailed = self.within(until).get_detailed(key).await?;
        if let Ok(value) = read(&detailed) {
            return Ok((value, detailed));
        }
        if self.undecodable.is_given_up(key) || self.within(until).delete(key).await.is_err() {
            return Err(error);
        }
        let detailed = self.within(until).get_detailed(key).await?;
        match read(&detailed) {
            Ok(value) => Ok((value, detailed)),
            Err(error) => {
                self.undecodable.give_up(key);
                Err(error)
            }
        }
    }

    /// As [`Group::get_many`]. A value that is no such document is deleted and asked for once more, as by
    /// [`get`](Self::get).
    pub async fn get_many<K: AsRef<[u8]>>(
        &self,
        keys: impl IntoIterator<Item = K>,
    ) -> Vec<Result<Option<T>, Error>> {
        let until = self.until();
        let keys: Vec<K> = keys.into_iter().collect();
        let mut values = decoded(self.group.get_many(&keys).await);
        let is_tried =
            |at: &usize| is_other(&values[*at]) && !self.undecodable.is_given_up(keys[*at].as_ref());
        let others: Vec<usize> = (0..values.len()).filter(is_tried).collect();
        let of_others: Vec<&K> = others.iter().map(|at| &keys[*at]).collect();
        let Some((_turns, seen)) = self.look_again(&of_others, until).await else { return values };
        let mut left = Vec::new();
        for (at, seen) in others.into_iter().zip(seen) {
            if is_other(&seen) {
                left.push(at);
            } else {
                values[at] = seen;
            }
        }
        left.retain(|at| !self.undecodable.is_given_up(keys[*at].as_ref()));
        let deleted = self.within(until).delete_many(left.iter().map(|at| &keys[*at])).await;
        // Where this client may not delete it stays what it is.
        let mut deleted = deleted.into_iter();
        left.retain(|_| deleted.next().is_some_and(|deleted| deleted.is_ok()));
        let again = self.within(until).get_many(left.iter().map(|at| &keys[*at])).await;
        for (at, again) in left.into_iter().zip(decoded(again)) {
            if is_other(&again) {
                self.undecodable.give_up(keys[at].as_ref());
            }
            values[at] = again;
        }
        values
    }

    /// Takes the turns of keys whose values were no documents, and asks for them once more, since another may
    /// have replaced them meanwhile. `None` where there are none, or it was not their turn in time.
    async fn look_again<K: AsRef<[u8]>>(
        &self,
        keys: &[K],
        until: Instant,
    ) -> Option<(Vec<MutexGuard<'_, ()>>, Vec<Result<Option<T>, Error>>)> {
        if keys.is_empty() {
            return None;
        }
        let turns = self.undecodable.turns(keys, until).await?;
        Some((turns, decoded(self.within(until).get_many(keys).await)))
    }

    /// As [`Group::set`].
    ///
    /// # Errors
    /// As [`Group::set`], and [`ErrorKind::Codec`] where the value cannot be written as JSON.
    pub async fn set(&self, key: impl AsRef<[u8]>, value: &T) -> Result<(), Error> {
        self.group.set(key, encode(value)?).await
    }

    /// As [`Group::set_with_ttl`].
    ///
    /// # Errors
    /// As [`set`](Self::set).
    pub async fn set_with_ttl(&self, key: impl AsRef<[u8]>, value: &T, ttl: Duration) -> Result<(), Error> {
        self.group.set_with_ttl(key, encode(value)?, ttl).await
    }

    /// As [`Group::with_deadline`].
    #[must_use]
    pub fn with_deadline(&self, deadline: Duration) -> Self {
        let group = self.group.with_deadline(deadline);
        JsonGroup { group, undecodable: self.undecodable.clone(), values: PhantomData }
    }

    /// As [`Group::begin_write`].
    ///
    /// # Errors
    /// As [`Group::begin_write`].
    pub async fn begin_write(&self, key: impl AsRef<[u8]>) -> Result<BegunJsonWrite<T>, Error> {
        Ok(BegunJsonWrite { write: self.group.begin_write(key).await?, values: PhantomData })
    }

    /// As [`Group::set_many`]; a value that cannot be written as JSON is an error of its own, with
    /// [`ErrorKind::Codec`].
    pub async fn set_many<'a, K: AsRef<[u8]>>(
        &self,
        entries: impl IntoIterator<Item = (K, &'a T)>,
    ) -> Vec<Result<(), Error>>
    where
        T: 'a,
    {
        let entries = entries.into_iter().map(|(key, value)| encode(value).map(|value| (key, value)));
        let (mut good, mut results) = (Vec::new(), Vec::new());
        for entry in entries {
            results.push(entry.map(|entry| good.push(entry)));
        }
        let mut written = self.group.set_many(good).await.into_iter();
        results.into_iter().map(|encoded| encoded.and_then(|()| written.next().unwrap_or(Ok(())))).collect()
    }

    /// As [`Group::delete`].
    ///
    /// # Errors
    /// As [`Group::delete`].
    pub async fn delete(&self, key: impl AsRef<[u8]>) -> Result<(), Error> {
        self.group.delete(key).await
    }

    /// As [`Group::delete_many`].
    pub async fn delete_many<K: AsRef<[u8]>>(
        &self,
        keys: impl IntoIterator<Item = K>,
    ) -> Vec<Result<(), Error>> {
        self.group.delete_many(keys).await
    }

    /// As [`Group::clear`].
    ///
    /// # Errors
    /// As [`Group::clear`].
    pub async fn clear(&self) -> Result<(), Error> {
        self.group.clear().await
    }

    /// As [`Group::get_or_load`]. A value that is no such document, as of an earlier version of the
    /// application, is deleted and loaded again.
    ///
    /// # Errors
    /// As [`Group::get_or_load`], and [`ErrorKind::Codec`] where the value is no such document still.
    pub async fn get_or_load<V, E, L>(
        &self,
        key: impl AsRef<[u8]>,
        load: impl FnOnce() -> L,
    ) -> Result<Option<T>, Error>
    where
        V: Into<Loaded<T>>,
        E: Into<Box<dyn std::error::Error + Send + Sync>>,
        L: Future<Output = Result<V, E>>,
    {
        let until = self.until();
        let mut load = Some(async || {
            let (value, ttl) = load().await.map_err(Into::into)?.into().into_parts();
            let encoded = value.map(|value| encode(&value)).transpose()?;
            Ok::<Loaded, Box<dyn std::error::Error + Send + Sync>>(Loaded::from(encoded).ttl(ttl))
        });
        let stored = self.group.get_or_load(&key, || load.take().expect("it is asked for once")()).await?;
        let Some(bytes) = stored else { return Ok(None) };
        match (decode(&bytes), load) {
            (Err(error), Some(load)) => {
                let Some((turn, mut seen)) = self.look_again(&[&key], until).await else { return Err(error) };
                match seen.pop() {
                    Some(Ok(Some(value))) => return Ok(Some(value)),
                    Some(seen) if is_other(&seen) => self.within(until).delete(&key).await?,
                    _ => {}
                }
                drop(turn);
                let loaded = self.within(until).get_or_load(&key, load).await?;
                loaded.map(|bytes| decode(&bytes)).transpose()
            }
            (decoded, _) => decoded.map(Some),
        }
    }

    /// As [`Group::get_or_load_many`]. Values that are no such documents are deleted and loaded again.
    pub async fn get_or_load_many<K, F, V, I, E, L>(
        &self,
        keys: impl IntoIterator<Item = K>,
        mut load: impl FnMut(Vec<Bytes>) -> L,
    ) -> Vec<Result<Option<T>, Error>>
    where
        K: AsRef<[u8]>,
        F: AsRef<[u8]>,
        V: Into<Loaded<T>>,
        I: IntoIterator<Item = (F, V)>,
        E: Into<Box<dyn std::error::Error + Send + Sync>>,
        L: Future<Output = Result<I, E>>,
    {
        let keys: Vec<K> = keys.into_iter().collect();
        let mut load = |missing| {
            let loading = load(missing);
            async move {
                let encoded = loading.await?.into_iter().map(|(key, value)| {
                    let (value, ttl) = value.into().into_parts();
                    let encoded = value.map(|value| encode(&value)).transpose();
                    (key, encoded.map(|encoded| Loaded::from(encoded).ttl(ttl)))
                });
                Ok::<Vec<_>, E>(encoded.collect())
            }
        };
        let until = self.until();
        let stored = self.group.get_or_load_each(&keys, &mut load).await;
        // A value of this load that cannot be written is an error, too, and no reason to load it again.
        let is_stored: Vec<bool> = stored.iter().map(Result::is_ok).collect();
        let mut values = decoded(stored);
        let others: Vec<usize> =
            (0..values.len()).filter(|at| is_stored[*at] && values[*at].is_err()).collect();
        let of_others: Vec<&K> = others.iter().map(|at| &keys[*at]).collect();
        let Some((turns, seen)) = self.look_again(&of_others, until).await else { return values };
        let (mut left, mut missing) = (Vec::new(), Vec::new());
        for (at, seen) in others.into_iter().zip(seen) {
            match seen {
                Ok(Some(_)) => values[at] = seen,
                _ if is_other(&seen) => left.push(at),
                _ => missing.push(at),
            }
        }
        let deleted = self.within(until).delete_many(left.iter().map(|at| &keys[*at])).await;
        for (at, deleted) in left.into_iter().zip(deleted) {
            match deleted {
                Ok(()) => missing.push(at),
                Err(error) => values[at] = Err(error),
            }
        }
        drop(turns);
        let of_missing = missing.iter().map(|at| &keys[*at]);
        let loaded = decoded(self.within(until).get_or_load_each(of_missing, load).await);
        for (at, loaded) in missing.into_iter().zip(loaded) {
            values[at] = loaded;
        }
        values
    }

    /// The group itself, whose values are bytes.
    pub fn bytes(&self) -> &Group {
        &self.group
    }
}

/// A write of a JSON value that has begun; see [`BegunWrite`].
#[derive(Debug)]
#[must_use = "end it with `set` or `delete` after the database was written"]
pub struct BegunJsonWrite<T> {
    write: BegunWrite,
    values: PhantomData<fn(T)>,
}

impl<T: Serialize> BegunJsonWrite<T> {
    /// As [`BegunWrite::set`].
    ///
    /// # Errors
    /// As [`BegunWrite::set`], and [`ErrorKind::Codec`] where the value cannot be written as JSON: the key is
    /// deleted then.
    pub async fn set(self, value: &T) -> Result<(), Error> {
        self.end(value, None).await
    }

    /// As [`BegunWrite::set_with_ttl`].
    ///
    /// # Errors
    /// As [`set`](Self::set).
    pub async fn set_with_ttl(self, value: &T, ttl: Duration) -> Result<(), Error> {
        self.end(value, Some(ttl)).await
    }

    async fn end(self, value: &T, ttl: Option<Duration>) -> Result<(), Error> {
        match (encode(value), ttl) {
            (Ok(value), None) => self.write.set(value).await,
            (Ok(value), Some(ttl)) => self.write.set_with_ttl(value, ttl).await,
            // The database has been written by now.
            (Err(error), _) => self.write.delete().await.and(Err(error)),
        }
    }

    /// As [`BegunWrite::delete`].
    ///
    /// # Errors
    /// As [`Group::delete`].
    pub async fn delete(self) -> Result<(), Error> {
        self.write.delete().await
    }
}

/// Whether there is a value, and it is no document.
fn is_other<T>(got: &Result<Option<T>, Error>) -> bool {
    got.as_ref().is_err_and(|error| error.kind() == ErrorKind::Codec)
}

fn decoded<T: DeserializeOwned>(values: Vec<Result<Option<Bytes>, Error>>) -> Vec<Result<Option<T>, Error>> {
    let decode = |value: Result<Option<Bytes>, Error>| value?.map(|bytes| decode(&bytes)).transpose();
    values.into_iter().map(decode).collect()
}

fn encode<T: Serialize>(value: &T) -> Result<Vec<u8>, Error> {
    serde_json::to_vec(value).map_err(|error| codec("the value cannot be written as JSON", error))
}

fn read<T: DeserializeOwned>(detailed: &Detailed) -> Result<Option<T>, Error> {
    detailed.value.as_ref().map(|bytes| decode(bytes)).transpose()
}

fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Error> {
    serde_json::from_slice(bytes).map_err(|error| codec("the value is no such JSON document", error))
}

fn codec(what: &str, error: serde_json::Error) -> Error {
    Error::caused_by(ErrorKind::Codec, None, what, error)
}

impl<T> Clone for JsonGroup<T> {
    fn clone(&self) -> Self {
        JsonGroup { group: self.group.clone(), undecodable: self.undecodable.clone(), values: PhantomData }
    }
}

impl<T> fmt::Debug for JsonGroup<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JsonGroup").field("group", &self.group).finish()
    }
}
