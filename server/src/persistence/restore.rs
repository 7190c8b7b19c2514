//! Back from the disk: which records hold, and in which order they are read.
//!
//! Newest first: the first record of a key that is met is the one that holds. What the node wrote when it was
//! stopped comes first of all, the hottest first. Everything is doubted: checksums, dates, stamps, and what a
//! damaged file may have said.

use std::cmp::Reverse;
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use hashbrown::HashSet;
use tokio::time::Instant;

use super::directory::{Directory, Kind, Segment};
use crate::cache::Cache;
use crate::journal::Journal;
use crate::segment::{Content, HEADER_BYTES, Header, RECORD_OVERHEAD_BYTES, Record, key_hash};
use crate::store::{Entry, Origin, Restored};
use peanut_proto::clock::wall_clock_ms;
use peanut_proto::machine::Pause;
use peanut_proto::numbers::{Generation, RingVersion};

/// Clocks are set right by this much without any harm.
const TOLERANCE_MS: u64 = 1_000;
/// The pace is looked at every so many bytes.
const STEP_BYTES: u64 = 64 << 10;

/// What came of the files.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Report {
    /// Entries that are back.
    pub(super) restored: u64,
    /// Their time was over.
    pub(super) expired: u64,
    /// Their dates cannot be: a clock was set back, theirs or this one.
    pub(super) misdated: u64,
    /// Written under a ring version that there has not been.
    pub(super) unowned: u64,
    /// A later record of the key was there, or it was loaded meanwhile.
    pub(super) outdated: u64,
    /// There was no room.
    pub(super) no_room: u64,
    /// Bytes that are no record.
    pub(super) damaged: u64,
    /// Files that were not read: foreign, damaged, of another format, configuration or, after damage, no
    /// longer to be trusted.
    pub(super) files: u64,
}

impl Report {
    pub(super) fn dropped(&self) -> u64 {
        self.expired + self.misdated + self.unowned + self.no_room + self.damaged
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} entries are back", self.restored)?;
        let others = [
            (self.expired, "expired"),
            (self.misdated, "misdated"),
            (self.unowned, "of no known ring version"),
            (self.no_room, "without room"),
            (self.damaged, "damaged"),
            (self.files, "files not read"),
        ];
        others
            .iter()
            .filter(|(number, _)| *number > 0)
            .try_for_each(|(number, what)| write!(f, ", {number} {what}"))
    }
}

/// What records are held against.
#[derive(Clone, Copy, Debug)]
pub(super) struct Check {
    pub(super) fingerprint: u64,
    pub(super) max_ttl: Duration,
    /// The newest version that the ring has had, where that is known.
    pub(super) newest_version: Option<RingVersion>,
}

enum Verdict {
    Holds { age: Duration, ttl: Duration },
    Expired,
    Misdated,
    Unowned,
}

impl Check {
    fn verdict(&self, record: &Record<'_>, now_ms: u64) -> Verdict {
        let max_ttl_ms = u64::try_from(self.max_ttl.as_millis()).unwrap_or(u64::MAX);
        let expires_ms = record.expires_ms.min(record.loaded_ms.saturating_add(max_ttl_ms));
        if record.loaded_ms > now_ms + TOLERANCE_MS {
            Verdict::Misdated
        } else if expires_ms <= now_ms {
            Verdict::Expired
        } else if self.newest_version.is_some_and(|newest| record.stamp > newest) {
            Verdict::Unowned
        } else {
            Verdict::Holds {
                age: Duration::from_millis(now_ms.saturating_sub(record.loaded_ms)),
                ttl: Duration::from_millis(expires_ms - now_ms),
            }
        }
    }
}

/// Reading no faster than so many bytes a second.
#[derive(Debug)]
pub(super) struct Pace {
    began: Instant,
    bytes: u64,
    bytes_per_second: u64,
}

impl Pace {
    pub(super) fn new(bytes_per_second: u64, now: Instant) -> Self {
        Pace { began: now, bytes: 0, bytes_per_second }
    }

    /// How long to wait after so many bytes more.
    fn wait(&mut self, bytes: u64, now: Instant) -> Duration {
        self.bytes += bytes;
        let due = Duration::from_secs_f64(self.bytes as f64 / self.bytes_per_second as f64);
        (self.began + due).saturating_duration_since(now)
    }
}

/// In which order segments are read.
pub(super) fn order(mut segments: Vec<Segment>) -> Vec<Segment> {
    segments.sort_by_key(|segment| Reverse(segment.number));
    let hottest = |a: &Segment, b: &Segment| (a.kind, b.kind) == (Kind::Hottest, Kind::Hottest);
    segments.chunk_by_mut(hottest).for_each(<[Segment]>::reverse);
    segments
}

/// Restores what holds of one group.
pub(super) struct Restore<'a> {
    pub(super) directory: &'a Directory,
    pub(super) cache: &'a Cache,
    pub(super) journal: &'a Journal,
    pub(super) check: Check,
    pub(super) pace: &'a mut Pace,
    pub(super) stop: &'a AtomicBool,
}

impl Restore<'_> {
    /// Reads the segments, and gives what came of them and those of no use.
    pub(super) async fn run(&mut self, segments: Vec<Segment>, pause: &Pause) -> (Report, Vec<Segment>) {
        let mut report = Report::default();
        let mut useless = Vec::new();
        let now_ms = wall_clock_ms();
        let latest_ms = segments.iter().map(|segment| segment.modified_ms).max().unwrap_or(0);
        if latest_ms > now_ms + TOLERANCE_MS {
            let back = Duration::from_millis(latest_ms - now_ms);
            tracing::warn!(
                group = self.cache.name(),
                "the clock was set back by {back:?} or more: a cold start"
            );
            report.files = segments.len() as u64;
            return (report, segments);
        }
        // Hashes of keys: two keys of one hash cost one of them its entry.
        let mut seen = HashSet::new();
        let mut distrusted_before = 0;
        for segment in order(segments) {
            if self.stop.load(Ordering::Relaxed) {
                break;
            }
            let damaged = report.damaged;
            let is_of_use = segment.number >= distrusted_before
                && self.read(&segment, &mut seen, &mut report, pause).await.unwrap_or_else(|why| {
                    tracing::warn!(group = self.cache.name(), segment = segment.number, "not read: {why}");
                    false
                });
            if segment.kind == Kind::Writes && (!is_of_use || report.damaged > damaged) {
                distrusted_before = distrusted_before.max(segment.number);
            }
            if !is_of_use {
                report.files += 1;
                useless.push(segment);
            }
        }
        (report, useless)
    }

    /// Whether the segment is one of ours.
    async fn read(
        &mut self,
        segment: &Segment,
        seen: &mut HashSet<u64>,
        report: &mut Report,
        pause: &Pause,
    ) -> Result<bool, String> {
        let bytes = self.directory.read(segment).map_err(|error| error.to_string())?;
        let (header, records) = Header::read(&bytes).map_err(|why| why.to_string())?;
        if header.fingerprint != self.check.fingerprint || header.generation != self.cache.generation() {
            return Ok(false);
        }
        let mut records: Vec<_> = records.collect();
        if segment.kind != Kind::Hottest {
            records.reverse();
        }
        let mut step = HEADER_BYTES as u64;
        for record in records {
            match record {
                Ok(record) => {
                    step += (RECORD_OVERHEAD_BYTES + record.key.len()) as u64;
                    if let Content::Value(value) = record.content {
                        step += value.len() as u64;
                    }
                    self.restore(&record, header.generation, seen, report);
                }
                Err(_) => {
                    report.damaged += 1;
                    // What comes after it in this order was written before it, and it may have outdated that.
                    if segment.kind == Kind::Writes {
                        break;
                    }
                }
            }
            if step >= STEP_BYTES {
                let wait = self.pace.wait(step, Instant::now());
                step = 0;
                if self.stop.load(Ordering::Relaxed) {
                    break;
                }
                pause.pause(wait).await;
            }
        }
        Ok(true)
    }

    fn restore(
        &self,
        record: &Record<'_>,
        generation: Generation,
        seen: &mut HashSet<u64>,
        report: &mut Report,
    ) {
        if let Content::Evicted(hashes) = record.content {
            seen.extend(hashes.iter());
            return;
        }
        // The first that is met is the last that was written: whatever becomes of it, those before it hold no
        // more.
        if !seen.insert(key_hash(record.key)) {
            report.outdated += 1;
            return;
        }
        let value = match record.content {
            Content::Removed | Content::Evicted(_) => return,
            Content::Negative => None,
            Content::Value(value) => Some(value.to_vec().into()),
        };
        match self.check.verdict(record, wall_clock_ms()) {
            Verdict::Expired => report.expired += 1,
            Verdict::Misdated => report.misdated += 1,
            Verdict::Unowned => report.unowned += 1,
            Verdict::Holds { age, ttl } => {
                let now = Instant::now();
                let loaded = now.checked_sub(age).unwrap_or(now);
                let entry =
                    Entry { value, loaded, expires: now + ttl, stamp: record.stamp, origin: Origin::Owner };
                // A writer says so first, and then waits for this lock.
                let written = self.journal.written.lock();
                let is_outdated =
                    written.as_ref().is_none_or(|written| written.outdates(key_hash(record.key), generation));
                if is_outdated {
                    report.outdated += 1;
                    return;
                }
                match self.cache.entries().restore(record.key, &entry) {
                    Restored::Stored => {
                        report.restored += 1;
                        self.journal.counters.restored.fetch_add(1, Ordering::Relaxed);
                    }
                    Restored::Known => report.outdated += 1,
                    Restored::NoRoom => report.no_room += 1,
                }
            }
        }
    }
}
