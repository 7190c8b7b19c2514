//! What becomes of a group's entries, on its way to the disk; and what is known of that way.
//!
//! The serving path puts it into a list and goes on; the writer takes the list every tenth of a second. The
//! list is bounded: a disk that does not keep up costs entries after a restart, never memory or time.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use hashbrown::HashSet;
use parking_lot::Mutex;
use peanut_proto::clock::suspended;
use peanut_proto::machine::Pause;
use peanut_proto::numbers::Generation;
use tokio::sync::watch;
use tokio::time::{Instant, timeout};

use crate::segment::key_hash;
use crate::store::{Entry, Origin};

/// What is known of a group's segment files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PersistenceStats {
    /// Whether all that could be read is back.
    pub is_restored: bool,
    /// Entries that came back.
    pub restored: u64,
    /// Records that were there and did not come back: expired, damaged, misdated, of an unknown ring version,
    /// without room.
    pub dropped: u64,
    /// Entries that were not written because the disk did not keep up.
    pub unwritten: u64,
    /// Bytes of the group's segments.
    pub disk_bytes: u64,
    /// Times that the disk failed.
    pub disk_errors: u64,
    /// Whether the group is in memory only because the disk has failed; it is tried again, first after a
    /// minute.
    pub is_failing: bool,
}

/// Bytes that wait for the disk, at most: a second and more of whatever a network brings.
const MOST_BYTES: usize = 64 << 20;
/// Keys that are told apart while older entries come back: some 20 MB.
const MOST_KEYS: usize = 1 << 20;
/// How long a load waits for its entry to come back from the disk instead, and for how long after the start
/// any does: a big cache takes longer, and the origin is there.
const PATIENCE: Duration = Duration::from_millis(500);
const LAST_PATIENCE: Duration = Duration::from_secs(5);

/// One group's journal.
#[derive(Debug)]
pub(crate) struct Journal {
    pending: Mutex<Pending>,
    /// Entries that live no longer than this are not worth writing.
    shortest: Duration,
    impatient_from: Instant,
    is_restored: watch::Sender<bool>,
    /// `None` once all is back.
    pub(crate) written: Mutex<Option<Written>>,
    /// How many writes the disk has, or will not have.
    settled: watch::Sender<u64>,
    /// How the writer waits.
    writer: Pause,
    pub(crate) counters: Counters,
}

/// What the disk is to know.
#[derive(Debug)]
pub(crate) enum Change {
    /// What was loaded: if it is lost, it is loaded again.
    Loaded(Bytes, Entry),
    /// A key has made room; this is its hash.
    Evicted(u64),
    /// What a client has set.
    Set(Bytes, Entry),
    Removed(Bytes),
    /// The group was cleared, but for what is on the disk from under this generation.
    Cleared(Option<Generation>),
}

/// A write on its way to the disk: the number of writes up to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct WriteNumber(u64);

#[derive(Debug, Default)]
struct Pending {
    list: Vec<Change>,
    bytes: usize,
    writes: u64,
    /// To which the group was cleared last.
    generation: Generation,
    /// How long the machine had been suspended when the first change came.
    suspended: Option<Duration>,
}

/// What waits for the disk.
#[derive(Debug)]
pub(crate) struct Taken {
    pub(crate) changes: Vec<Change>,
    pub(crate) number: WriteNumber,
    /// Of which all of them are: a clear to another comes first, and nothing before it is left.
    pub(crate) generation: Generation,
    /// How long the machine had been suspended when the first of them came, as
    /// [`suspended`](peanut_proto::clock::suspended) has it.
    pub(crate) suspended: Duration,
}

/// Keys that were written while older entries come back, by hash: those are outdated.
#[derive(Debug, Default)]
pub(crate) struct Written {
    keys: HashSet<u64>,
    /// All of them, but for what is kept.
    is_cleared: bool,
    /// What was written under this generation already.
    kept: Option<Generation>,
}

impl Written {
    /// Adds a key, by hash. Where there are too many, as while nothing comes back for hours, all are
    /// outdated.
    fn add(&mut self, key: u64) {
        if self.is_cleared && self.kept.is_none() {
            return;
        }
        self.keys.insert(key);
        if self.keys.len() > MOST_KEYS {
            *self = Written { is_cleared: true, ..Written::default() };
        }
    }

    /// Whether an entry of a key, by hash, that was written under a generation is outdated.
    pub(crate) fn outdates(&self, key: u64, generation: Generation) -> bool {
        self.is_cleared && self.kept != Some(generation) || self.keys.contains(&key)
    }
}

/// Shared by the writer, the restore and the statistics.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) restored: AtomicU64,
    pub(crate) dropped: AtomicU64,
    pub(crate) unwritten: AtomicU64,
    pub(crate) disk_bytes: AtomicU64,
    pub(crate) disk_errors: AtomicU64,
    pub(crate) is_failing: AtomicBool,
}

impl Pending {
    /// The disk is to forget a key. Where it takes nothing for so long that there are too many, it forgets
    /// all: that costs a warm restart, and keys without end would cost the memory of the node.
    fn remove(&mut self, key: &Bytes) {
        if self.bytes > 2 * MOST_BYTES {
            return self.clear(None);
        }
        self.bytes += key.len();
        self.list.push(Change::Removed(key.clone()));
    }

    /// The disk is to forget all, but for what is `kept`.
    fn clear(&mut self, kept: Option<Generation>) {
        (self.bytes, self.list) = (0, vec![Change::Cleared(kept)]);
    }
}

impl Journal {
    /// A journal that is written by whoever waits by `writer`.
    pub(crate) fn new(shortest: Duration, now: Instant, writer: Pause) -> Self {
        Journal {
            pending: Mutex::default(),
            shortest,
            impatient_from: now + LAST_PATIENCE,
            is_restored: watch::Sender::new(false),
            written: Mutex::new(Some(Written::default())),
            settled: watch::Sender::new(0),
            writer,
            counters: Counters::default(),
        }
    }

    /// Takes in an entry that a client has set. Where the disk is not to have it, it must forget what it has.
    pub(crate) fn set(&self, key: &Bytes, entry: &Entry, evicted: &[u64]) -> WriteNumber {
        let is_worth_writing = self.is_worth_writing(entry, entry.loaded);
        self.write(|pending| {
            pending.list.extend(evicted.iter().map(|hash| Change::Evicted(*hash)));
            let has_room = pending.bytes <= MOST_BYTES;
            if is_worth_writing && has_room {
                pending.bytes += key.len() + entry.value.as_ref().map_or(0, |value| value.len());
                pending.list.push(Change::Set(key.clone(), entry.clone()));
            } else {
                pending.remove(key);
            }
        })
    }

    /// Takes in that a key was forgotten.
    pub(crate) fn removed(&self, key: &Bytes) -> WriteNumber {
        self.write(|pending| pending.remove(key))
    }

    /// Takes in that all keys were forgotten, but for what is `kept` on the disk, for the sake of a
    /// generation or altogether.
    pub(crate) fn cleared(&self, kept: Option<Generation>, to: Option<Generation>) -> WriteNumber {
        self.write(|pending| {
            pending.generation = to.unwrap_or(pending.generation);
            pending.clear(kept);
        })
    }

    fn write(&self, push: impl FnOnce(&mut Pending)) -> WriteNumber {
        let mut pending = self.pending.lock();
        pending.suspended.get_or_insert_with(suspended);
        push(&mut pending);
        pending.bytes += size_of::<Change>();
        pending.writes += 1;
        WriteNumber(pending.writes)
    }

    /// Notes that a key is about to be written, before the store knows.
    pub(crate) fn outdate(&self, key: &[u8]) {
        if let Some(written) = &mut *self.written.lock() {
            written.add(key_hash(key));
        }
    }

    /// The same of all keys, for the sake of a generation or altogether. Gives the generation whose entries
    /// stay on the disk: that very one, which a node that starts is told of again. None where something was
    /// written before in this process: that may have outdated them.
    pub(crate) fn outdate_all(&self, to: Option<Generation>) -> Option<Generation> {
        let kept = to.filter(|_| self.latest() == WriteNumber(0));
        if let Some(written) = &mut *self.written.lock() {
            let is_same = !written.is_cleared || written.kept == kept;
            written.kept = kept.filter(|_| is_same);
            written.is_cleared = true;
        }
        kept
    }

    /// The latest write so far.
    pub(crate) fn latest(&self) -> WriteNumber {
        WriteNumber(self.pending.lock().writes)
    }

    /// Waits until what was written before a restart cannot come back after it.
    pub(crate) async fn settled(&self, WriteNumber(number): WriteNumber) {
        if *self.settled.borrow() < number {
            self.writer.wake();
            // The sender is here, so this does not fail.
            let _ = self.settled.subscribe().wait_for(|settled| *settled >= number).await;
        }
    }

    /// The writer has done, or has given up, what was taken with this number.
    pub(crate) fn settle(&self, WriteNumber(number): WriteNumber) {
        self.settled.send_if_modified(|settled| std::mem::replace(settled, number.max(*settled)) < number);
    }

    /// Takes in an entry that was loaded, and the hashes of the keys that have made room for it.
    pub(crate) fn loaded(&self, key: &Bytes, entry: &Entry, evicted: &[u64]) {
        let is_worth_writing = self.is_worth_writing(entry, entry.loaded);
        let length = entry.value.as_ref().map_or(0, |value| value.len());
        let stored = if is_worth_writing { key.len() + length + size_of::<Change>() } else { 0 };
        let bytes = stored + evicted.len() * size_of::<Change>();
        let mut pending = self.pending.lock();
        if pending.bytes + bytes > MOST_BYTES {
            self.counters.unwritten.fetch_add(u64::from(is_worth_writing), Ordering::Relaxed);
            return;
        }
        pending.suspended.get_or_insert_with(suspended);
        pending.bytes += bytes;
        pending.list.extend(evicted.iter().map(|hash| Change::Evicted(*hash)));
        if is_worth_writing {
            pending.list.push(Change::Loaded(key.clone(), entry.clone()));
        }
    }

    /// What this node keeps in another's place, or for a few seconds, is not.
    pub(crate) fn is_worth_writing(&self, entry: &Entry, now: Instant) -> bool {
        entry.origin == Origin::Owner && entry.expires.saturating_duration_since(now) > self.shortest
    }

    /// Takes all that waits for the disk.
    pub(crate) fn take(&self) -> Taken {
        let mut pending = self.pending.lock();
        pending.bytes = 0;
        Taken {
            changes: std::mem::take(&mut pending.list),
            number: WriteNumber(pending.writes),
            generation: pending.generation,
            suspended: pending.suspended.take().unwrap_or_else(suspended),
        }
    }

    pub(crate) fn is_restored(&self) -> bool {
        *self.is_restored.borrow()
    }

    /// Whether it is worth waiting for [`restored`](Self::restored).
    pub(crate) fn is_restoring(&self) -> bool {
        !self.is_restored() && Instant::now() < self.impatient_from
    }

    pub(crate) fn set_restored(&self) {
        *self.written.lock() = None;
        self.is_restored.send_replace(true);
    }

    /// Waits until all that could be read is back, half a second at most.
    pub(crate) async fn restored(&self) {
        let mut restored = self.is_restored.subscribe();
        let _ = timeout(PATIENCE, restored.wait_for(|restored| *restored)).await;
    }

    pub(crate) fn stats(&self) -> PersistenceStats {
        let number = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let Counters { restored, dropped, unwritten, disk_bytes, disk_errors, is_failing } = &self.counters;
        PersistenceStats {
            is_restored: self.is_restored(),
            restored: number(restored),
            dropped: number(dropped),
            unwritten: number(unwritten),
            disk_bytes: number(disk_bytes),
            disk_errors: number(disk_errors),
            is_failing: is_failing.load(Ordering::Relaxed),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_without_end_while_nothing_comes_back_outdate_all() {
        let (mut written, generation) = (Written::default(), Generation(1));
        (0..MOST_KEYS as u64).for_each(|key| written.add(key));
        assert!(written.outdates(0, generation) && !written.outdates(u64::MAX, generation));
        written.add(MOST_KEYS as u64);
        assert!(written.outdates(u64::MAX, generation));
        (0..100).for_each(|key| written.add(key));
        assert!(written.keys.is_empty(), "they take no memory");
        let mut kept = Written { is_cleared: true, kept: Some(generation), ..Written::default() };
        kept.add(7);
        assert!(kept.outdates(7, generation) && !kept.outdates(8, generation));
    }

    #[test]
    fn keys_without_end_for_a_disk_that_stands_still_become_one_change() {
        let journal = Journal::new(Duration::ZERO, Instant::now(), Pause::default());
        let key = Bytes::from(vec![b'k'; 1024]);
        for _ in 0..400_000 {
            journal.removed(&key);
            let pending = journal.pending.lock();
            assert!(pending.bytes <= 2 * MOST_BYTES + 2 * key.len());
            assert!(pending.list.len() <= 2 * MOST_BYTES / key.len());
        }
        let taken = journal.take();
        assert!(matches!(taken.changes[0], Change::Cleared(None)), "whatever there is goes");
        assert_eq!(journal.latest(), WriteNumber(400_000), "and each is waited for");
    }
}
