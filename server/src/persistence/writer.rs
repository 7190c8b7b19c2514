//! One group's way to the disk: what was stored goes into the open segment, which is sealed when it is full
//! or old.
//!
//! The oldest segment is cleaned when there are too many bytes or files: what the store still has of it is
//! written again, and the file goes. A disk that fails is left alone for a while, with nothing of ours on it,
//! so that nothing outdated can come back from it; then all that the store has is written anew.

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use hashbrown::HashSet;
use tokio::time::Instant;

use super::directory::{Directory, Kind, Segment};
use crate::cache::Cache;
use crate::journal::{Change, Journal, Taken};
use crate::segment::{Content, HEADER_BYTES, Hashes, Header, Record, key_hash};
use crate::store::{Entry, Origin, Store};
use peanut_proto::clock::{milliseconds, suspended, wall_clock_ms};
use peanut_proto::numbers::{Generation, RingVersion};

/// A segment that has so many bytes is sealed, unless an eighth of what the group may have is less.
const SEGMENT_BYTES: u64 = 16 << 20;
/// Files beyond this are cleaned also where there is room: a group with few loads seals small ones.
const MOST_SEGMENTS: usize = 64;
/// Bytes that go to the system at a time.
const BUFFER_BYTES: usize = 256 << 10;
/// How long a disk that failed is left alone: at first, and at most.
const RETRY: Duration = Duration::from_secs(60);
const LAST_RETRY: Duration = Duration::from_secs(3600);
/// The store keeps the time of a load in steps of 64 ms, and the clocks may have drifted.
const SAME_LOAD_MS: u64 = 200;
/// The clock is looked at once in so many records.
const STRIDE: u32 = 64;

/// What a writer is told once.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    pub(super) disk_bytes: u64,
    pub(super) seal_interval: Duration,
    pub(super) fingerprint: u64,
    pub(super) boot: u64,
}

#[derive(Debug)]
pub(super) struct Writer {
    pub(super) cache: Arc<Cache>,
    pub(super) journal: Arc<Journal>,
    pub(super) directory: Arc<Directory>,
    limits: Limits,
    sealed: VecDeque<Segment>,
    open: Option<Open>,
    next_number: u64,
    /// Of which the segments are that are begun now.
    generation: Generation,
    failed: Option<Failed>,
}

#[derive(Debug)]
struct Open {
    file: (Segment, File),
    began: Instant,
    buffer: Vec<u8>,
}

/// The disk has failed.
#[derive(Clone, Copy, Debug)]
struct Failed {
    retry_at: Instant,
    pause: Duration,
}

/// Wall clock and monotonic clock at one moment.
#[derive(Clone, Copy)]
struct Now {
    monotonic: Instant,
    wall_ms: u64,
    /// How long the machine has been suspended since the times were read that are to be told by these clocks.
    suspended: Duration,
}

impl Now {
    /// For times that were read when the machine had been suspended for so long.
    fn since(suspended_then: Duration) -> Self {
        Now::read(suspended().saturating_sub(suspended_then))
    }

    /// For the times of entries as the store gives them.
    fn of_entries(store: &Store) -> Self {
        Now::read(store.suspended().uncounted())
    }

    fn read(suspended: Duration) -> Self {
        Now { monotonic: Instant::now(), wall_ms: wall_clock_ms(), suspended }
    }

    fn wall_ms(self, time: Instant) -> u64 {
        let time = time.checked_sub(self.suspended).unwrap_or(time);
        match time.checked_duration_since(self.monotonic) {
            Some(ahead) => self.wall_ms.saturating_add(milliseconds(ahead)),
            None => self.wall_ms.saturating_sub(milliseconds(self.monotonic.duration_since(time))),
        }
    }
}

impl Writer {
    /// A writer behind the segments that are there.
    pub(super) fn new(
        cache: Arc<Cache>,
        journal: Arc<Journal>,
        directory: Arc<Directory>,
        limits: Limits,
        sealed: Vec<Segment>,
    ) -> Self {
        let next_number = sealed.last().map_or(0, |segment| segment.number + 1);
        let writer = Writer {
            cache,
            journal,
            directory,
            limits,
            sealed: sealed.into(),
            open: None,
            next_number,
            generation: Generation::NONE,
            failed: None,
        };
        writer.count();
        writer
    }

    /// Writes what has been stored since the last time, and does what is due. Never fails: a disk that does
    /// is left alone.
    pub(super) fn tick(&mut self, now: Instant) {
        let Taken { changes, number, generation, suspended } = self.journal.take();
        self.generation = generation;
        if let Some(failed) = self.failed {
            // Nothing of ours is on the disk, unless it could not be removed.
            self.journal.settle(number);
            if now >= failed.retry_at {
                self.try_again(now);
            }
            return;
        }
        let mut work = || {
            let clocks = Now::since(suspended);
            self.write_down(&changes, clocks)?;
            self.flush()?;
            self.journal.settle(number);
            if self.open.as_ref().is_some_and(|open| now >= open.began + self.limits.seal_interval) {
                self.seal()?;
            }
            self.clean()
        };
        if let Err(error) = work() {
            self.give_up(&error, now);
            self.journal.settle(number);
        }
        self.count();
    }

    /// Writes all that the store has, the hottest first, until that is done or the time is over.
    pub(super) fn write_hottest_first(&mut self, until: Instant) {
        self.tick(Instant::now());
        if self.failed.is_some() {
            return;
        }
        if let Err(error) = self.dump(until) {
            self.give_up(&error, Instant::now());
        }
        self.count();
    }

    /// Writes and seals what is left.
    pub(super) fn finish(&mut self) {
        self.tick(Instant::now());
        if self.failed.is_none()
            && let Err(error) = self.seal()
        {
            self.give_up(&error, Instant::now());
        }
        self.count();
    }

    /// Forgets segments that are of no use.
    pub(super) fn discard(&mut self, useless: &[Segment]) {
        // The oldest first: what outdates others goes after them.
        let mut oldest_first: Vec<_> = useless.iter().collect();
        oldest_first.sort_by_key(|segment| segment.number);
        let removed = oldest_first.into_iter().try_for_each(|segment| {
            self.directory.remove(segment)?;
            self.sealed.retain(|sealed| sealed.number != segment.number);
            Ok(())
        });
        if let Err(error) = removed {
            self.give_up(&error, Instant::now());
        }
        self.count();
    }

    fn write_down(&mut self, changes: &[Change], now: Now) -> io::Result<()> {
        // Evicted keys are written together, but not after what is stored under the same key later.
        let mut evicted = HashSet::new();
        for change in changes {
            match change {
                Change::Evicted(hash) => {
                    evicted.insert(*hash);
                }
                Change::Loaded(key, entry) | Change::Set(key, entry) => {
                    if !evicted.is_empty() && evicted.contains(&key_hash(key)) {
                        self.append_evicted(&mut evicted, now)?;
                    }
                    let is_write = matches!(change, Change::Set(..));
                    self.append_entry(if is_write { Kind::Writes } else { Kind::Loads }, key, entry, now)?;
                }
                Change::Removed(key) => {
                    let (content, key) = (Content::Removed, &key[..]);
                    let record =
                        Record { expires_ms: 0, loaded_ms: 0, stamp: RingVersion::NONE, key, content };
                    self.append(Kind::Writes, &record, now)?;
                }
                Change::Cleared(kept) => {
                    evicted.clear();
                    self.clear(*kept)?;
                }
            }
        }
        if evicted.is_empty() { Ok(()) } else { self.append_evicted(&mut evicted, now) }
    }

    /// Drops all but what was written under the generation that is kept. They are gone for good when this
    /// returns.
    fn clear(&mut self, kept: Option<Generation>) -> io::Result<()> {
        let open = self.open.take().map(|open| open.file.0);
        self.sealed.extend(open);
        let (mut stay, mut go, mut may_stay) = (VecDeque::new(), VecDeque::new(), kept.is_some());
        while let Some(newest) = self.sealed.pop_back() {
            let stays = may_stay && self.directory.header(&newest).map(|header| header.generation) == kept;
            // What came before writes that go may have been outdated by them.
            may_stay &= stays || newest.kind != Kind::Writes;
            if stays { stay.push_front(newest) } else { go.push_front(newest) }
        }
        self.sealed = go;
        while !self.sealed.is_empty() {
            self.drop_oldest()?;
        }
        self.sealed = stay;
        self.directory.sync()
    }

    fn append_evicted(&mut self, evicted: &mut HashSet<u64>, now: Now) -> io::Result<()> {
        let mut hashes = Vec::new();
        evicted.drain().for_each(|hash| Hashes::append(&mut hashes, hash));
        let content = Content::Evicted(Hashes::new(&hashes));
        self.append(
            Kind::Loads,
            &Record { expires_ms: 0, loaded_ms: 0, stamp: RingVersion::NONE, key: &[], content },
            now,
        )
    }

    fn append_entry(&mut self, kind: Kind, key: &[u8], entry: &Entry, now: Now) -> io::Result<()> {
        let record = Record {
            expires_ms: now.wall_ms(entry.expires),
            loaded_ms: now.wall_ms(entry.loaded),
            stamp: entry.stamp,
            key,
            content: entry.value.as_ref().map_or(Content::Negative, |value| Content::Value(value)),
        };
        self.append(kind, &record, now)
    }

    fn append(&mut self, kind: Kind, record: &Record<'_>, now: Now) -> io::Result<()> {
        // What was loaded may stand among writes, but not the other way round.
        let fits = |open: &Open| match open.file.0.kind {
            Kind::Writes => kind != Kind::Hottest,
            other => other == kind,
        };
        if self.open.as_ref().is_some_and(|open| !fits(open)) {
            self.seal()?;
        }
        let mut open = match self.open.take() {
            Some(open) => open,
            None => self.begin(kind, now)?,
        };
        record.write(&mut open.buffer);
        let buffered = open.buffer.len();
        let bytes = open.file.0.bytes + buffered as u64;
        self.open = Some(open);
        if bytes >= self.segment_bytes() {
            self.seal()
        } else if buffered >= BUFFER_BYTES {
            self.flush()
        } else {
            Ok(())
        }
    }

    fn begin(&mut self, kind: Kind, now: Now) -> io::Result<Open> {
        let file = self.directory.create(self.next_number, kind)?;
        self.next_number += 1;
        let Limits { fingerprint, boot, .. } = self.limits;
        let mut buffer = Vec::with_capacity(BUFFER_BYTES);
        let generation = self.generation;
        Header { generation, fingerprint, boot, written_ms: now.wall_ms }.write(&mut buffer);
        Ok(Open { file, began: now.monotonic, buffer })
    }

    fn flush(&mut self) -> io::Result<()> {
        let Some(open) = &mut self.open else { return Ok(()) };
        if !open.buffer.is_empty() {
            self.directory.append(&mut open.file, &open.buffer)?;
            open.buffer.clear();
        }
        Ok(())
    }

    fn seal(&mut self) -> io::Result<()> {
        self.flush()?;
        if let Some(open) = self.open.take() {
            self.sealed.push_back(self.directory.seal(open.file)?);
        }
        Ok(())
    }

    /// Brings bytes and files below their bounds, by at most a few segments at a time.
    fn clean(&mut self) -> io::Result<()> {
        // What is not back yet would be taken for gone.
        if !self.journal.is_restored() {
            return Ok(());
        }
        for _ in 0..4 {
            if self.bytes() <= self.limits.disk_bytes && self.sealed.len() <= MOST_SEGMENTS {
                break;
            }
            let Some(oldest) = self.sealed.front().cloned() else { break };
            // Where the store has more than the disk may have, the oldest is what it may not have.
            if self.cache.entries().used_bytes() as u64 <= self.limits.disk_bytes / 4 * 3 {
                self.write_again(&oldest)?;
            }
            self.directory.remove(&oldest)?;
            self.sealed.pop_front();
        }
        Ok(())
    }

    /// Writes again what the store still has of a segment.
    fn write_again(&mut self, segment: &Segment) -> io::Result<()> {
        let bytes = self.directory.read(segment)?;
        let Ok((_, records)) = Header::read(&bytes) else { return Ok(()) };
        let now = Now::of_entries(self.cache.entries());
        for record in records.flatten() {
            let Some(entry) = self.cache.entries().peek(record.key, Origin::Owner, now.monotonic) else {
                continue;
            };
            let is_of_this_record = now.wall_ms(entry.loaded) <= record.loaded_ms + SAME_LOAD_MS;
            if is_of_this_record && self.journal.is_worth_writing(&entry, now.monotonic) {
                self.append_entry(Kind::Loads, record.key, &entry, now)?;
            }
        }
        self.flush()
    }

    fn dump(&mut self, until: Instant) -> io::Result<()> {
        self.seal()?;
        let first = self.next_number;
        let cache = self.cache.clone();
        let mut now = Now::of_entries(cache.entries());
        let mut seen = 0_u32;
        let mut failed = None;
        let mut in_time = true;
        cache.entries().visit_hottest_first(|key, entry| {
            seen = seen.wrapping_add(1);
            if seen.is_multiple_of(STRIDE) {
                now = Now::of_entries(cache.entries());
                in_time = now.monotonic < until;
            }
            if !in_time {
                return ControlFlow::Break(());
            }
            if !self.journal.is_worth_writing(&entry, now.monotonic) {
                return ControlFlow::Continue(());
            }
            match self.append_entry(Kind::Hottest, key, &entry, now).and_then(|()| self.make_room(first)) {
                Ok(()) => ControlFlow::Continue(()),
                Err(error) => {
                    failed = Some(error);
                    ControlFlow::Break(())
                }
            }
        });
        if let Some(error) = failed {
            return Err(error);
        }
        self.seal()?;
        // With everything in it, what was there before is of no use; without, it has the rest.
        while in_time && self.journal.is_restored() && self.sealed.front().is_some_and(|s| s.number < first) {
            self.drop_oldest()?;
        }
        Ok(())
    }

    /// Drops segments before `first` until the bytes are within their bound.
    fn make_room(&mut self, first: u64) -> io::Result<()> {
        while self.bytes() > self.limits.disk_bytes && self.sealed.front().is_some_and(|s| s.number < first) {
            self.drop_oldest()?;
        }
        Ok(())
    }

    fn drop_oldest(&mut self) -> io::Result<()> {
        if let Some(oldest) = self.sealed.front() {
            self.directory.remove(oldest)?;
            self.sealed.pop_front();
        }
        Ok(())
    }

    fn give_up(&mut self, error: &io::Error, now: Instant) {
        let pause = self.failed.map_or(RETRY, |failed| (failed.pause * 2).min(LAST_RETRY));
        let counters = &self.journal.counters;
        counters.disk_errors.fetch_add(1, Ordering::Relaxed);
        if !counters.is_failing.swap(true, Ordering::Relaxed) {
            tracing::warn!(
                group = self.cache.name(),
                %error,
                "the disk failed: in memory only, and all of this group's segments are dropped; next try in {pause:?}"
            );
        }
        self.failed = Some(Failed { retry_at: now + pause, pause });
        if let Err(error) = self.drop_all() {
            tracing::warn!(group = self.cache.name(), %error, "segments cannot be removed; they may come back outdated");
        }
    }

    /// Removes every segment that the directory has: what is on the disk can be outdated by what does not get
    /// there any more. The directory is asked, as a segment at which a call has failed may be one that the
    /// writer does not know.
    fn drop_all(&mut self) -> io::Result<()> {
        self.open = None;
        let segments = self.directory.list()?;
        segments.iter().map(|segment| self.directory.remove(segment)).fold(Ok(()), Result::and)?;
        self.sealed.clear();
        self.directory.sync()
    }

    fn try_again(&mut self, now: Instant) {
        match self.drop_all().and_then(|()| self.dump(now + self.limits.seal_interval)) {
            Ok(()) => {
                self.failed = None;
                self.journal.counters.is_failing.store(false, Ordering::Relaxed);
                tracing::info!(group = self.cache.name(), "the disk works again: segments are written");
            }
            Err(error) => self.give_up(&error, now),
        }
        self.count();
    }

    fn bytes(&self) -> u64 {
        let open = self.open.as_ref().map_or(0, |open| open.file.0.bytes + open.buffer.len() as u64);
        self.sealed.iter().map(|segment| segment.bytes).sum::<u64>() + open
    }

    fn segment_bytes(&self) -> u64 {
        SEGMENT_BYTES.min(self.limits.disk_bytes / 8).max(HEADER_BYTES as u64 + 1)
    }

    fn count(&self) {
        self.journal.counters.disk_bytes.store(self.bytes(), Ordering::Relaxed);
    }
}
