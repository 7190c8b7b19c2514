//! Groups whose values are JSON documents of one type, through serde.

use std::fmt;
use std::marker::PhantomData;
use std::time::Duration;

use bytes::Bytes;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::MutexGuard;
use tokio::time::Instant;

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
    /// Values come and go; none is here.
    values: PhantomData<fn(T) -> T>,
}

impl Group {
    /// The same group, for values of type `T` as JSON.
    pub fn json<T: Serialize + DeserializeOwned>(&self) -> JsonGroup<T> {
        JsonGroup { group: self.clone(), values: PhantomData }
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

    fn is_given_up(&self, key: impl AsRef<[u8]>) -> bool {
        self.group.undecodable().is_given_up(self.group.hash(key.as_ref()))
    }

    fn give_up(&self, key: impl AsRef<[u8]>) {
        self.group.undecodable().give_up(self.group.hash(key.as_ref()));
    }

    async fn turns<K: AsRef<[u8]>>(&self, keys: &[K], until: Instant) -> Option<Vec<MutexGuard<'_, ()>>> {
        let hashes = keys.iter().map(|key| self.group.hash(key.as_ref()));
        self.group.undecodable().turns(hashes, until).await
    }

    /// Deletes what is no document, and asks for it once more, unless that has come to nothing of late.
    async fn get_again(
        &self,
        key: &[u8],
        error: Error,
        until: Instant,
    ) -> Result<(Option<T>, Detailed), Error> {
        if self.is_given_up(key) {
            return Err(error);
        }
        let Some(_turn) = self.turns(&[key], until).await else { return Err(error) };
        // Another may have done it meanwhile.
        let detailed = self.within(until).get_detailed(key).await?;
        if let Ok(value) = read(&detailed) {
            return Ok((value, detailed));
        }
        if self.is_given_up(key) || self.within(until).delete(key).await.is_err() {
            return Err(error);
        }
        let detailed = self.within(until).get_detailed(key).await?;
        match read(&detailed) {
            Ok(value) => Ok((value, detailed)),
            Err(error) => {
                self.give_up(key);
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
        let is_tried = |at: &usize| is_other(&values[*at]) && !self.is_given_up(&keys[*at]);
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
        left.retain(|at| !self.is_given_up(&keys[*at]));
        let deleted = self.within(until).delete_many(left.iter().map(|at| &keys[*at])).await;
        // Where this client may not delete it stays what it is.
        let mut deleted = deleted.into_iter();
        left.retain(|_| deleted.next().is_some_and(|deleted| deleted.is_ok()));
        let again = self.within(until).get_many(left.iter().map(|at| &keys[*at])).await;
        for (at, again) in left.into_iter().zip(decoded(again)) {
            if is_other(&again) {
                self.give_up(&keys[at]);
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
        let turns = self.turns(keys, until).await?;
        Some((turns, decoded(self.within(until).get_many(keys).await)))
    }

    /// As [`Group::set`].
    ///
    /// # Errors
    /// As [`Group::set`], and [`ErrorKind::Codec`] where the value cannot be written as JSON, or not read
    /// back from that, as a number that is none (NaN): the key is deleted then.
    pub async fn set(&self, key: impl AsRef<[u8]>, value: &T) -> Result<(), Error> {
        self.set_for(key, value, None).await
    }

    /// As [`Group::set_with_ttl`].
    ///
    /// # Errors
    /// As [`set`](Self::set).
    pub async fn set_with_ttl(&self, key: impl AsRef<[u8]>, value: &T, ttl: Duration) -> Result<(), Error> {
        self.set_for(key, value, Some(ttl)).await
    }

    async fn set_for(&self, key: impl AsRef<[u8]>, value: &T, ttl: Option<Duration>) -> Result<(), Error> {
        match (encode(value), ttl) {
            (Ok(value), None) => self.group.set(key, value).await,
            (Ok(value), Some(ttl)) => self.group.set_with_ttl(key, value, ttl).await,
            // The database has been written by now.
            (Err(error), _) => self.group.delete(key).await.and(Err(error)),
        }
    }

    /// As [`Group::with_deadline`].
    #[must_use]
    pub fn with_deadline(&self, deadline: Duration) -> Self {
        JsonGroup { group: self.group.with_deadline(deadline), values: PhantomData }
    }

    /// As [`Group::begin_write`].
    ///
    /// # Errors
    /// As [`Group::begin_write`].
    pub async fn begin_write(&self, key: impl AsRef<[u8]>) -> Result<BegunJsonWrite<T>, Error> {
        Ok(BegunJsonWrite { write: self.group.begin_write(key).await?, values: PhantomData })
    }

    /// As [`Group::set_many`]; a value that cannot be written as JSON, or not be read back, is an error of
    /// its own, with [`ErrorKind::Codec`], and its key is deleted.
    pub async fn set_many<'a, K: AsRef<[u8]>>(
        &self,
        entries: impl IntoIterator<Item = (K, &'a T)>,
    ) -> Vec<Result<(), Error>>
    where
        T: 'a,
    {
        let (mut good, mut bad, mut results) = (Vec::new(), Vec::new(), Vec::new());
        for (key, value) in entries {
            results.push(match encode(value) {
                Ok(value) => {
                    good.push((key, value));
                    Ok(())
                }
                Err(error) => {
                    bad.push(key);
                    Err(error)
                }
            });
        }
        let (written, deleted) = tokio::join!(self.group.set_many(good), self.group.delete_many(bad));
        let (mut written, mut deleted) = (written.into_iter(), deleted.into_iter());
        let of = |encoded: Result<(), Error>| match encoded {
            Ok(()) => written.next().unwrap_or(Ok(())),
            Err(error) => deleted.next().unwrap_or(Ok(())).and(Err(error)),
        };
        results.into_iter().map(of).collect()
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
            (Err(error), Some(_)) if self.is_given_up(&key) => Err(error),
            (Err(error), Some(load)) => {
                let Some((turn, mut seen)) = self.look_again(&[&key], until).await else { return Err(error) };
                match seen.pop() {
                    Some(Ok(Some(value))) => return Ok(Some(value)),
                    Some(seen) if is_other(&seen) => self.within(until).delete(&key).await?,
                    _ => {}
                }
                drop(turn);
                let loaded = self.within(until).get_or_load(&key, load).await?;
                let loaded = loaded.map(|bytes| decode(&bytes)).transpose();
                loaded.inspect_err(|_| self.give_up(&key))
            }
            (decoded, _) => decoded.map(Some),
        }
    }

    /// As [`Group::get_or_load_many`]: the values in the order of the keys, each with an error of its own
    /// where there is one. `load` brings pairs of a key and `Some` value, or [`Loaded`]; a key for which it
    /// brings none is not found. Values that are no such documents are deleted and loaded again.
    ///
    /// ```no_run
    /// # #[derive(serde::Serialize, serde::Deserialize)] struct Player { name: String, score: u32 }
    /// # use peanut_client::Bytes;
    /// # async fn select(_: Vec<Bytes>) -> Result<Vec<Player>, std::io::Error> { Ok(vec![]) }
    /// # async fn f(client: peanut_client::Client) -> Result<(), peanut_client::Error> {
    /// let players = client.group("players").json::<Player>();
    /// let found = players.get_or_load_many(["Tom", "Jack"], |missing| async {
    ///     let players = select(missing).await?;
    ///     Ok::<_, std::io::Error>(players.into_iter().map(|player| (player.name.clone(), Some(player))))
    /// });
    /// let found: Vec<Option<Player>> = found.await.into_iter().collect::<Result<_, _>>()?;
    /// # drop(found); Ok(()) }
    /// ```
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
        let is_tried = |at: &usize| is_stored[*at] && values[*at].is_err() && !self.is_given_up(&keys[*at]);
        let others: Vec<usize> = (0..values.len()).filter(is_tried).collect();
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
            if is_other(&loaded) {
                self.give_up(&keys[at]);
            }
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

impl<T: Serialize + DeserializeOwned> BegunJsonWrite<T> {
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

/// A value as JSON. What JSON has no word for, as NaN, is written as `null`, so a document with one in it is
/// read back to see.
fn encode<T: Serialize + DeserializeOwned>(value: &T) -> Result<Vec<u8>, Error> {
    let bytes =
        serde_json::to_vec(value).map_err(|error| codec("the value cannot be written as JSON", error))?;
    if bytes.windows(4).any(|word| word == b"null") {
        serde_json::from_slice::<T>(&bytes)
            .map_err(|error| codec("the value, written as JSON, cannot be read back", error))?;
    }
    Ok(bytes)
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
        JsonGroup { group: self.group.clone(), values: PhantomData }
    }
}

impl<T> fmt::Debug for JsonGroup<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JsonGroup").field("group", &self.group).finish()
    }
}
