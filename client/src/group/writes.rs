//! Writes of a group: set, delete, clear, and writes that begin before the database is written.

use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream::iter;
use peanut_proto::frame::{Filled, Write};
use peanut_proto::limits::MAX_VALUE_BYTES;
use peanut_proto::numbers::FillToken;
use tokio::time::Instant;

use super::Group;
use crate::clear;
use crate::error::{Error, ErrorKind};
use crate::request::{Op, Request};
use crate::write;

impl Group {
    /// Stores a value at the node that owns the key. It stays fresh for the group's `ttl`.
    ///
    /// When this returns `Ok`, no get of any client that begins later shows what was before, as far as
    /// ARCHITECTURE.md's promise goes. The key is deleted first and the value follows, which takes two round
    /// trips. Where the owner cannot be reached, or another write comes between, no value is kept.
    ///
    /// # Errors
    /// As [`ErrorKind`] has them; [`ErrorKind::Unavailable`] where the owner could not be reached, and a hint
    /// could not be stored for it in the registry, or the owner holds a lease there and has not read it by
    /// the deadline. After an error the write may have been done or not.
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
        // Without a closure: a future that has one cannot be spawned.
        let mut sets = Vec::with_capacity(entries.len());
        for (key, value) in &entries {
            sets.push(self.set(key, value));
        }
        iter(sets).buffered(self.client.config.keys_in_flight).collect().await
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
        self.check(key)?;
        if value.len() > MAX_VALUE_BYTES {
            let why = format!("the value has {} bytes; the limit is {MAX_VALUE_BYTES}", value.len());
            return Err(Error::new(ErrorKind::TooLarge, why));
        }
        let set =
            Write::Set { key, outcome: Filled::Value(value), ttl_ms: ttl_ms(ttl), token: FillToken::NONE };
        self.write(key, set, sequence).await.map(drop)
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
    #[doc(alias = "invalidate_all")]
    #[doc(alias = "flush")]
    pub async fn clear(&self) -> Result<(), Error> {
        self.check(b"any key")?;
        let now = Instant::now();
        let request = self.request(b"", now);
        clear::clear(&self.client, request, now).await.inspect_err(|_| self.client.counters.failed())
    }

    async fn write(&self, key: &[u8], write: Write<'_>, sequence: u64) -> Result<u64, Error> {
        let now = Instant::now();
        let request = Request { op: Op::Write(write), ..self.request(key, now) };
        let written = write::write(&self.client, request, sequence, &self.name, now).await;
        self.client.counters.written(written.is_ok());
        written
    }
}

/// A write that has begun, before the database is written; see [`Group::begin_write`]. Where nothing comes of
/// it, it can be dropped.
#[derive(Debug)]
pub struct BegunWrite {
    group: Group,
    key: Box<[u8]>,
    /// Of the key, at its owner.
    sequence: u64,
}

impl BegunWrite {
    /// Ends the write with its value, after the database was written: as [`Group::set`], but where another
    /// write of the key has begun or ended since this one began, or the key has another owner, it is as
    /// [`delete`](Self::delete). A write of another key of the node may have the same effect, one in a
    /// thousand.
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

    async fn end(self, value: &[u8], ttl: Option<Duration>) -> Result<(), Error> {
        match self.sequence {
            // The owner could not be reached: nobody knows what it is told meanwhile.
            0 => self.delete().await,
            sequence => self.group.set_since(&self.key, value, ttl, sequence).await,
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

/// A lifetime as the wire has it, where zero is the group's.
pub(super) fn ttl_ms(ttl: Option<Duration>) -> u64 {
    ttl.map_or(0, |ttl| u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX).max(1))
}
