//! Writes of a group: set, delete, clear, and writes that begin before the database is written.

use std::time::Duration;

use peanut_proto::frame::{Filled, Write};
use peanut_proto::limits::MAX_VALUE_BYTES;
use peanut_proto::numbers::{FillToken, RingVersion};
use tokio::time::Instant;

use super::Group;
use super::unfinished::Unfinished;
use crate::clear;
use crate::error::{Error, ErrorKind};
use crate::request::{Key, Op, Request};
use crate::write;
use crate::write::many::WriteOf;

impl Group {
    /// Stores a value at the node that owns the key. It stays fresh for the group's `ttl`.
    ///
    /// When this returns `Ok`, no get of any client that begins later shows what was before, as far as
    /// docs/consistency.md's promise goes. The key is deleted and the value stored in one round trip, or in
    /// two where another client has written a key of the same class since this one last did. Where the owner
    /// cannot be reached, or another write comes between, no value is kept.
    ///
    /// # Errors
    /// As [`ErrorKind`] has them; [`ErrorKind::Unavailable`] where the owner could not be reached, and a hint
    /// could not be stored for it in the registry, or the owner holds a lease there and has not read it by
    /// the deadline. After an error the write may have been done or not; after [`ErrorKind::TooLarge`] the
    /// key has been deleted. Where the future is dropped before it is ready, the key is deleted in the
    /// background.
    #[doc(alias = "insert")]
    #[doc(alias = "put")]
    pub async fn set(&self, key: impl AsRef<[u8]>, value: impl AsRef<[u8]>) -> Result<(), Error> {
        self.set_since(key.as_ref(), value.as_ref(), None, 0).await
    }

    /// As [`set`](Self::set), of a value that stays fresh for `ttl`, at least a millisecond. The group's
    /// `max_ttl` bounds it, which the log says.
    ///
    /// # Errors
    /// As [`set`](Self::set).
    #[doc(alias = "setex")]
    pub async fn set_with_ttl(
        &self,
        key: impl AsRef<[u8]>,
        value: impl AsRef<[u8]>,
        ttl: Duration,
    ) -> Result<(), Error> {
        self.set_since(key.as_ref(), value.as_ref(), Some(ttl), 0).await
    }

    /// Stores many values, all at the same time, each as by [`set`](Self::set); the results are in the order
    /// of the entries. Of entries with the same key any may be the last.
    #[doc(alias = "mset")]
    pub async fn set_many<K: AsRef<[u8]>, V: AsRef<[u8]>>(
        &self,
        entries: impl IntoIterator<Item = (K, V)>,
    ) -> Vec<Result<(), Error>> {
        let entries: Vec<(K, V)> = entries.into_iter().collect();
        let sets = entries.iter().map(|(key, value)| self.set_of(key.as_ref(), value.as_ref(), None));
        let (sets, kept): (Vec<_>, Vec<_>) = sets
            .map(|set| match set {
                Ok((write, kept)) => (Ok(write), kept),
                Err(error) => (Err(error), Ok(())),
            })
            .unzip();
        let written = self.write_many(sets).await;
        written.into_iter().zip(kept).map(|(written, kept)| written.and(kept)).collect()
    }

    /// Begins a write of a key, before the database is written: of two applications that write a key at the
    /// same time, neither then leaves the other's older value. [`set`](Self::set) alone is enough where one
    /// writer at a time writes a key, or where the database and the cache are written in the same order.
    ///
    /// ```no_run
    /// # async fn example(client: peanut_client::Client) -> Result<(), peanut_client::Error> {
    /// let scores = client.group("scores");
    /// let write = scores.begin_write("Tom").await?;
    /// // … the database is written …
    /// write.set("631").await?;
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// As [`delete`](Self::delete), which it also is.
    pub async fn begin_write(&self, key: impl AsRef<[u8]>) -> Result<BegunWrite, Error> {
        let key = key.as_ref();
        // What the ring becomes while it begins counts too.
        let under = self.client.routing.get().ring.version();
        let sequence = self.write(key, self.delete_of(key)?, 0).await?;
        Ok(BegunWrite { group: self.clone(), key: key.into(), under, sequence, end: End::NotBegun })
    }

    async fn set_since(
        &self,
        key: &[u8],
        value: &[u8],
        ttl: Option<Duration>,
        sequence: u64,
    ) -> Result<(), Error> {
        let (write, kept) = self.set_of(key, value, ttl)?;
        self.write(key, write, sequence).await?;
        kept
    }

    /// A set, or, of a value that no node keeps, a delete, since the database has been written by then, and
    /// the error that the caller has when that is done.
    fn set_of<'a>(
        &self,
        key: &'a [u8],
        value: &'a [u8],
        ttl: Option<Duration>,
    ) -> Result<(Write<'a>, Result<(), Error>), Error> {
        self.check(key)?;
        if value.len() > MAX_VALUE_BYTES {
            let length = value.len();
            let why =
                format!("the value has {length} bytes; the limit is {MAX_VALUE_BYTES}; the key is deleted");
            return Ok((self.delete_of(key)?, Err(Error::new(ErrorKind::TooLarge, why))));
        }
        let outcome = Filled::Value(value);
        Ok((Write::Set { key, outcome, ttl_ms: ttl_ms(ttl), token: FillToken::NONE }, Ok(())))
    }

    /// Has the fleet forget a key: the next get loads it. A load in progress is not kept.
    ///
    /// When this returns `Ok`, it has happened or will have happened before the owner answers again, also
    /// where the owner is down.
    ///
    /// # Errors
    /// As [`set`](Self::set).
    #[doc(alias = "invalidate")]
    #[doc(alias = "remove")]
    #[doc(alias = "del")]
    pub async fn delete(&self, key: impl AsRef<[u8]>) -> Result<(), Error> {
        let key = key.as_ref();
        self.write(key, self.delete_of(key)?, 0).await.map(drop)
    }

    /// Has the fleet forget many keys, all at the same time; the results are in the order of the keys.
    pub async fn delete_many<K: AsRef<[u8]>>(
        &self,
        keys: impl IntoIterator<Item = K>,
    ) -> Vec<Result<(), Error>> {
        let keys: Vec<K> = keys.into_iter().collect();
        let deletes = keys.iter().map(|key| self.delete_of(key.as_ref()));
        let deletes: Vec<_> = deletes.collect();
        self.write_many(deletes).await
    }

    fn delete_of<'a>(&self, key: &'a [u8]) -> Result<Write<'a>, Error> {
        self.check(key).map(|()| Write::Delete { key, then_set: false, sequence: 0 })
    }

    /// Has the fleet forget all keys of the group.
    ///
    /// # Errors
    /// [`ErrorKind::Unavailable`] or [`ErrorKind::DeadlineExceeded`] where the registry did not take it, or,
    /// in a fleet that is a fixed list, one of the nodes. Some nodes may have forgotten all then.
    #[doc(alias = "invalidate_all")]
    #[doc(alias = "flush")]
    pub async fn clear(&self) -> Result<(), Error> {
        self.check(b"any key")?;
        let now = Instant::now();
        let request = self.request(b"", now);
        self.wrote_all();
        let cleared = clear::clear(&self.client, request, now).await;
        self.wrote_all();
        cleared.inspect_err(|_| self.count_failed())
    }

    async fn write(&self, key: &[u8], write: Write<'_>, sequence: u64) -> Result<u64, Error> {
        let now = Instant::now();
        let request = Request { op: Op::Write(write), ..self.request(key, now) };
        let unfinished = Unfinished::new(self, [key]);
        self.wrote(request.hash);
        let written = write::write(&self.client, &request, sequence, &self.name, now).await;
        self.wrote(request.hash);
        unfinished.end();
        self.count_written(written.is_ok());
        written
    }

    /// Does many writes; those that are refused have errors already.
    async fn write_many(&self, writes: Vec<Result<Write<'_>, Error>>) -> Vec<Result<(), Error>> {
        let now = Instant::now();
        let (mut asked, mut refused) = (Vec::with_capacity(writes.len()), Vec::new());
        for (at, write) in writes.into_iter().enumerate() {
            match write {
                Ok(write) => asked.push(self.write_of(write)),
                Err(error) => refused.push((at, error)),
            }
        }
        let keys: Vec<&[u8]> = asked.iter().map(|one| one.key.bytes).collect();
        let unfinished = Unfinished::new(self, keys);
        let request = self.request(&[], now);
        asked.iter().for_each(|one| self.wrote(one.key.hash));
        let mut written = Box::pin(write::many::write(&self.client, request, &asked, &self.name, now)).await;
        asked.iter().for_each(|one| self.wrote(one.key.hash));
        unfinished.end();
        written.iter().for_each(|written| self.count_written(written.is_ok()));
        // In the order of their places, so that each is right when it is its turn.
        refused.into_iter().for_each(|(at, error)| written.insert(at, Err(error)));
        written
    }

    pub(super) fn write_of<'a>(&self, write: Write<'a>) -> WriteOf<'a> {
        let bytes = write.key();
        WriteOf { key: Key { bytes, hash: self.hasher.hash(bytes) }, write }
    }
}

/// A write that has begun, before the database is written; see [`Group::begin_write`].
///
/// One that is dropped without an end has the key deleted in the background, at once and once more after the
/// call's deadline: its database write may have been done. A statement that is committed later than that is
/// not seen, so a handler that its server drops when the caller hangs up writes in a task of its own.
#[derive(Debug)]
#[must_use = "end it with `set` or `delete` after the database was written"]
pub struct BegunWrite {
    group: Group,
    key: Box<[u8]>,
    /// The ring when it began.
    under: RingVersion,
    /// Of the key, at its owner.
    sequence: u64,
    end: End,
}

/// How far the end of a write has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    NotBegun,
    /// The call that ends it deletes the key at once where it is dropped.
    UnderWay,
    Done,
}

impl Drop for BegunWrite {
    fn drop(&mut self) {
        let later = self.group.deadline;
        match self.end {
            End::NotBegun => self.group.delete_in_background(&[&self.key], [Duration::ZERO, later]),
            End::UnderWay => self.group.delete_in_background(&[&self.key], [later]),
            End::Done => {}
        }
    }
}

impl BegunWrite {
    /// Ends the write with its value, after the database was written: as [`Group::set`], but where another
    /// write of the key has begun or ended since this one began, or the key has had another owner, it is as
    /// [`delete`](Self::delete). A write of another key of the node may have the same effect, one in
    /// 65,536.
    ///
    /// # Errors
    /// As [`Group::set`].
    pub async fn set(self, value: impl AsRef<[u8]>) -> Result<(), Error> {
        self.end(value.as_ref(), None).await
    }

    /// As [`set`](Self::set), of a value that stays fresh for `ttl`, as of [`Group::set_with_ttl`].
    ///
    /// # Errors
    /// As [`Group::set`].
    pub async fn set_with_ttl(self, value: impl AsRef<[u8]>, ttl: Duration) -> Result<(), Error> {
        self.end(value.as_ref(), Some(ttl)).await
    }

    async fn end(mut self, value: &[u8], ttl: Option<Duration>) -> Result<(), Error> {
        self.end = End::UnderWay;
        // The owner could not be reached, or has not owned it all the time: it was not told of all writes.
        let ended = if self.sequence == 0 || self.has_moved() {
            let kept = self.group.set_of(&self.key, value, ttl).and_then(|(_, kept)| kept);
            self.group.delete(&self.key).await.and(kept)
        } else {
            self.group.set_since(&self.key, value, ttl, self.sequence).await
        };
        self.end = End::Done;
        ended
    }

    /// Whether the key has had another owner since it began.
    fn has_moved(&self) -> bool {
        let hash = self.group.hasher.hash(&self.key);
        self.group.client.routing.get().has_moved_since(hash, self.under)
    }

    /// Ends the write without a value, after the database was written.
    ///
    /// # Errors
    /// As [`Group::delete`].
    pub async fn delete(mut self) -> Result<(), Error> {
        self.end = End::UnderWay;
        let ended = self.group.delete(&self.key).await;
        self.end = End::Done;
        ended
    }
}

/// A lifetime as the wire has it, where zero is the group's.
pub(super) fn ttl_ms(ttl: Option<Duration>) -> u64 {
    ttl.map_or(0, |ttl| u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX).max(1))
}
