//! Warm restarts on real files: what comes back, what must not, and disks that fail at every single step.

use std::fs;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt as _;
use peanut_proto::machine::Pause;
use peanut_proto::numbers::{Generation, RingVersion};
use tempfile::TempDir;
use tokio::time::Instant;

use super::directory::{Directory, Kind};
use super::restore::{Check, Pace, Report, Restore};
use super::take;
use super::writer::{Limits, Writer};
use crate::cache::Cache;
use crate::group::Group;
use crate::journal::Journal;
use crate::loader::StaticLoader;
use crate::segment::{Content, Header, Record};
use crate::store::{Entry, Origin};
use peanut_proto::clock::wall_clock_ms;

/// Makes the disk fail: every call after so many.
#[derive(Debug, Default)]
pub(super) struct Faults {
    is_set: AtomicBool,
    is_once: AtomicBool,
    calls_left: AtomicI64,
}

impl Faults {
    fn fail_after(&self, calls: i64) {
        self.calls_left.store(calls, Ordering::Relaxed);
        self.is_set.store(true, Ordering::Relaxed);
    }

    /// One call fails, and none after it.
    fn fail_once_after(&self, calls: i64) {
        self.is_once.store(true, Ordering::Relaxed);
        self.fail_after(calls);
    }

    fn end(&self) {
        self.is_set.store(false, Ordering::Relaxed);
    }

    pub(super) fn next(&self) -> io::Result<()> {
        if self.is_set.load(Ordering::Relaxed) && self.calls_left.fetch_sub(1, Ordering::Relaxed) <= 0 {
            self.is_set.store(!self.is_once.load(Ordering::Relaxed), Ordering::Relaxed);
            return Err(io::Error::from(io::ErrorKind::StorageFull));
        }
        Ok(())
    }
}

const BOOT: u64 = 7;
const FINGERPRINT: u64 = 42;
const HOUR: Duration = Duration::from_secs(3600);
const CHECK: Check = Check { fingerprint: FINGERPRINT, max_ttl: HOUR, newest_version: Some(RingVersion(9)) };

/// A node's life on a directory: what it had comes back when it is made.
struct Life {
    cache: Arc<Cache>,
    writer: Writer,
    report: Report,
}

impl Life {
    fn on(directory: &TempDir) -> Self {
        Life::with(directory, CHECK, 64 << 20, 64 << 20)
    }

    fn with(directory: &TempDir, check: Check, capacity_bytes: usize, disk_bytes: u64) -> Self {
        Life::after(directory, check, (capacity_bytes, disk_bytes), |_| {})
    }

    /// One in which something happens before the entries come back.
    fn after(
        directory: &TempDir,
        check: Check,
        (capacity_bytes, disk_bytes): (usize, u64),
        before: impl FnOnce(&mut Writer),
    ) -> Self {
        let group = Group::new("g", StaticLoader::default()).capacity_bytes(capacity_bytes).max_ttl(HOUR);
        let (directory, found) = take(directory.path(), BOOT).unwrap();
        let directory = Arc::new(directory);
        let journal = Arc::new(Journal::new(Duration::from_secs(1), Instant::now(), Pause::default()));
        let cache = Arc::new(Cache::alone_with(group, Some(journal.clone())));
        let limits = Limits {
            disk_bytes,
            seal_interval: Duration::from_secs(10),
            fingerprint: FINGERPRINT,
            boot: BOOT,
        };
        let mut writer =
            Writer::new(cache.clone(), journal.clone(), directory.clone(), limits, found.clone());
        before(&mut writer);
        let mut restore = Restore {
            directory: &directory,
            cache: &cache,
            journal: &journal,
            check,
            pace: &mut Pace::new(u64::MAX, Instant::now()),
            stop: &AtomicBool::new(false),
        };
        let (report, useless) = restore.run(found, &Pause::default()).now_or_never().expect("it blocks");
        writer.discard(&useless);
        journal.set_restored();
        Life { cache, writer, report }
    }

    fn store(&self, key: &str, value: &str) {
        self.store_for(key, value, HOUR / 2);
    }

    fn store_for(&self, key: &str, value: &str, ttl: Duration) {
        let now = Instant::now();
        let value = Some(value.as_bytes().to_vec().into());
        let entry =
            Entry { value, loaded: now, expires: now + ttl, stamp: RingVersion(3), origin: Origin::Owner };
        self.store_entry(key, &entry);
    }

    fn store_entry(&self, key: &str, entry: &Entry) {
        self.cache.store_loaded(&Bytes::copy_from_slice(key.as_bytes()), entry);
    }

    fn tick(&mut self) {
        self.writer.tick(Instant::now());
    }

    /// Told to stop, with time enough.
    fn stop(mut self) {
        self.writer.write_hottest_first(Instant::now() + HOUR);
        self.writer.finish();
    }

    fn value(&self, key: &str) -> Option<String> {
        let entry = self.cache.entries().peek(key.as_bytes(), Origin::Owner, Instant::now())?;
        Some(String::from_utf8(entry.value?.to_vec()).unwrap())
    }
}

fn files(directory: &TempDir) -> Vec<PathBuf> {
    let all = fs::read_dir(directory.path()).unwrap().map(|file| file.unwrap().path());
    let mut segments: Vec<_> = all.filter(|path| !path.ends_with("lock")).collect();
    segments.sort();
    segments
}

/// A directory with one segment of the keys k0 to k9, whose values are v0 to v9.
fn ten() -> TempDir {
    let directory = tempfile::tempdir().unwrap();
    let mut life = Life::on(&directory);
    (0..10).for_each(|n| life.store(&format!("k{n}"), &format!("v{n}")));
    life.tick();
    life.writer.finish();
    assert_eq!(files(&directory).len(), 1);
    directory
}

/// Restores what there is, and checks that nothing is wrong.
fn restored(directory: &TempDir) -> Report {
    let life = Life::on(directory);
    let right = (0..10).filter(|n| {
        let value = life.value(&format!("k{n}"));
        assert!(value.is_none() || value == Some(format!("v{n}")), "k{n} is {value:?}");
        value.is_some()
    });
    assert_eq!(right.count() as u64, life.report.restored);
    assert_eq!(life.cache.entries().len() as u64, life.report.restored);
    life.report
}

/// A file with a name of ours and these records.
fn write(directory: &TempDir, name: &str, header: Header, records: &[Record<'_>]) {
    let mut bytes = Vec::new();
    header.write(&mut bytes);
    records.iter().for_each(|record| record.write(&mut bytes));
    fs::write(directory.path().join(name), bytes).unwrap();
}

fn header() -> Header {
    Header { generation: Generation::NONE, fingerprint: FINGERPRINT, boot: BOOT, written_ms: wall_clock_ms() }
}

fn record<'a>(key: &'a str, content: Content<'a>) -> Record<'a> {
    let now_ms = wall_clock_ms();
    Record {
        expires_ms: now_ms + 600_000,
        loaded_ms: now_ms - 1000,
        stamp: RingVersion(3),
        key: key.as_bytes(),
        content,
    }
}

fn value<'a>(key: &'a str, value: &'a str) -> Record<'a> {
    record(key, Content::Value(value.as_bytes()))
}

#[test]
fn entries_come_back_as_they_were_after_a_stop_and_after_a_kill() {
    for is_stopped in [true, false] {
        let directory = tempfile::tempdir().unwrap();
        let mut life = Life::on(&directory);
        let now = Instant::now();
        let entry = Entry {
            value: Some(b"630".to_vec().into()),
            loaded: now - Duration::from_secs(60),
            expires: now + Duration::from_secs(600),
            stamp: RingVersion(8),
            origin: Origin::Owner,
        };
        life.store_entry("Tom", &entry);
        life.store_entry("Jack", &Entry { value: None, ..entry.clone() });
        life.store_entry("elsewhere", &Entry { origin: Origin::Failover, ..entry.clone() });
        life.store_entry("soon", &Entry { loaded: now, expires: now, ..entry.clone() });
        life.tick();
        if is_stopped {
            life.stop();
        } else {
            drop(life);
        }

        let life = Life::on(&directory);
        assert_eq!(life.report, Report { restored: 2, ..Report::default() });
        let now = Instant::now();
        let tom = life.cache.entries().get(b"Tom", Origin::Owner, RingVersion(8), now).unwrap();
        assert_eq!(tom.value.unwrap(), b"630");
        assert!((58..62).contains(&(now - tom.loaded).as_secs()), "{:?}", now - tom.loaded);
        assert!((598..601).contains(&(tom.expires - now).as_secs()));
        assert_eq!(tom.stamp, RingVersion(8));
        assert!(
            life.cache.entries().get(b"Jack", Origin::Owner, RingVersion::NONE, now).unwrap().value.is_none()
        );
        assert!(life.cache.entries().peek(b"elsewhere", Origin::Owner, now).is_none());
    }
}

#[test]
fn the_last_of_several_values_holds_over_files_lives_and_within_a_file() {
    let directory = tempfile::tempdir().unwrap();
    for value in 0..7 {
        let mut life = Life::on(&directory);
        if value > 0 {
            assert_eq!(life.value("k"), Some(format!("{value}b")));
        }
        life.store("k", &format!("{}a", value + 1));
        life.store("k", &format!("{}b", value + 1));
        life.tick();
        match value % 3 {
            0 => life.stop(),
            1 => life.writer.finish(),
            _ => drop(life),
        }
    }
}

#[test]
fn what_was_expired_outdated_or_misdated_does_not_come_back() {
    let directory = tempfile::tempdir().unwrap();
    let now_ms = wall_clock_ms();
    let old =
        [value("expired", "old"), value("removed", "old"), value("kept", "old"), value("future", "old")];
    write(&directory, "00000000000000000001.loads", header(), &old);
    let new = [
        Record { expires_ms: now_ms - 1, ..value("expired", "new") },
        record("removed", Content::Removed),
        Record { loaded_ms: now_ms + 60_000, expires_ms: now_ms + 120_000, ..value("future", "new") },
        Record { stamp: RingVersion(10), ..value("unowned", "new") },
        // Nothing lives longer than an hour.
        Record { loaded_ms: now_ms - 4_000_000, ..value("aged", "new") },
    ];
    write(&directory, "00000000000000000002.writes", header(), &new);
    let life = Life::on(&directory);
    assert_eq!(life.value("kept").as_deref(), Some("old"));
    assert_eq!(life.cache.entries().len(), 1);
    let expected =
        Report { restored: 1, expired: 2, misdated: 1, unowned: 1, outdated: 3, ..Report::default() };
    assert_eq!(life.report, expected);
}

#[test]
fn a_file_from_the_future_means_that_the_clock_was_set_back() {
    let directory = ten();
    let hour_ahead = std::time::SystemTime::UNIX_EPOCH + Duration::from_millis(wall_clock_ms()) + HOUR;
    let file = fs::OpenOptions::new().append(true).open(&files(&directory)[0]).unwrap();
    file.set_modified(hour_ahead).unwrap();
    assert_eq!(restored(&directory), Report { files: 1, ..Report::default() });
    assert!(files(&directory).is_empty(), "nor does it come back when the clock is right again");
}

#[test]
fn entries_of_another_configuration_do_not_come_back() {
    let directory = ten();
    let life = Life::with(&directory, Check { fingerprint: 43, ..CHECK }, 1 << 20, 1 << 20);
    assert_eq!(life.report, Report { files: 1, ..Report::default() });
    assert!(files(&directory).is_empty());
}

#[test]
fn a_file_cut_anywhere_costs_what_was_cut() {
    let whole = fs::read(&files(&ten())[0]).unwrap();
    for length in (0..whole.len()).step_by(7) {
        for name in ["00000000000000000000.loads", "00000000000000000000.loads.open"] {
            let directory = tempfile::tempdir().unwrap();
            fs::write(directory.path().join(name), &whole[..length]).unwrap();
            let report = restored(&directory);
            assert!(report.restored < 10 && report.restored + 1 >= (length as u64 / 43).saturating_sub(1));
            // The cut is mended where it stood in the open file, and the rest comes back a second time.
            let again = restored(&directory);
            assert_eq!(again.restored, report.restored);
        }
    }
}

#[test]
fn a_flipped_bit_costs_a_record_and_never_makes_a_wrong_one() {
    let whole = fs::read(&files(&ten())[0]).unwrap();
    for at in 0..whole.len() {
        let directory = tempfile::tempdir().unwrap();
        let mut bytes = whole.clone();
        bytes[at] ^= 1 << (at % 8);
        fs::write(directory.path().join("00000000000000000000.loads"), bytes).unwrap();
        let report = restored(&directory);
        assert!(report.restored < 10);
        assert!(report.damaged > 0 || report.files > 0, "the damage at {at} is counted");
    }
}

#[test]
fn damage_to_writes_costs_what_they_may_have_outdated() {
    for cut in [false, true] {
        let directory = ten();
        let mut bytes = Vec::new();
        header().write(&mut bytes);
        value("before", "x").write(&mut bytes);
        let damage = bytes.len() + 20;
        record("k1", Content::Removed).write(&mut bytes);
        if cut {
            bytes.truncate(damage);
        } else {
            bytes[damage] ^= 1;
            value("after", "x").write(&mut bytes);
        }
        fs::write(directory.path().join("00000000000000000001.writes"), bytes).unwrap();
        let life = Life::on(&directory);
        assert_eq!(life.value("k1"), None);
        assert_eq!(life.value("after").is_some(), !cut);
        assert_eq!(life.report.files, 1, "the one before it is not trusted");
    }
}

#[test]
fn writes_left_open_are_whole_after_a_kill_but_maybe_not_after_the_machine_went_down() {
    for (boot, is_trusted) in [(BOOT, true), (BOOT + 1, false)] {
        let directory = ten();
        let removal = [record("k1", Content::Removed)];
        write(&directory, "00000000000000000001.writes.open", Header { boot, ..header() }, &removal);
        let life = Life::on(&directory);
        assert_eq!(life.value("k1"), None);
        assert_eq!(life.value("k2").is_some(), is_trusted);
        assert_eq!(life.cache.entries().len(), if is_trusted { 9 } else { 0 });
    }
}

#[test]
fn the_hottest_come_back_where_not_all_have_room() {
    let directory = tempfile::tempdir().unwrap();
    let life = Life::on(&directory);
    (0..1000).for_each(|n| life.store(&format!("k{n}"), &"x".repeat(1000)));
    let hot: Vec<String> = (0..1000).step_by(20).map(|n| format!("k{n}")).collect();
    for key in hot.iter().chain(&hot) {
        life.cache.entries().get(key.as_bytes(), Origin::Owner, RingVersion::NONE, Instant::now()).unwrap();
    }
    life.stop();
    let life = Life::with(&directory, CHECK, 100_000, 64 << 20);
    assert!(life.report.no_room > 800 && life.report.restored > 80, "{:?}", life.report);
    assert!(hot.iter().all(|key| life.value(key).is_some()));
    // And they stay, when others come.
    (0..30).for_each(|n| life.store(&format!("new{n}"), &"x".repeat(1000)));
    assert!(hot.iter().all(|key| life.value(key).is_some()));
}

#[test]
fn a_stop_with_no_time_loses_nothing_that_was_written_before() {
    let directory = tempfile::tempdir().unwrap();
    let mut life = Life::on(&directory);
    (0..1000).for_each(|n| life.store(&format!("k{n}"), "x"));
    life.writer.write_hottest_first(Instant::now());
    life.writer.finish();
    drop(life);
    assert_eq!(Life::on(&directory).report.restored, 1000);
}

#[test]
fn bytes_and_files_are_bounded_and_what_lives_is_not_lost() {
    let directory = tempfile::tempdir().unwrap();
    const DISK: u64 = 200_000;
    let mut life = Life::with(&directory, CHECK, 100_000, DISK);
    (0..50).for_each(|n| life.store(&format!("stays{n}"), &"x".repeat(100)));
    let hit = |life: &Life| {
        (0..50).all(|n| {
            let key = format!("stays{n}");
            life.cache
                .entries()
                .get(key.as_bytes(), Origin::Owner, RingVersion::NONE, Instant::now())
                .is_some()
        })
    };
    let mut most = 0;
    for round in 0..500 {
        assert!(hit(&life), "in round {round}");
        (0..20).for_each(|n| life.store(&format!("goes{}", round * 20 + n), &"x".repeat(100)));
        life.tick();
        life.writer.finish();
        let bytes: u64 = files(&directory).iter().map(|path| path.metadata().unwrap().len()).sum();
        most = most.max(bytes);
        assert!(files(&directory).len() <= 66);
    }
    assert!((100_000..=DISK + 50_000).contains(&most), "{most} bytes were in use");
    drop(life);
    let life = Life::with(&directory, CHECK, 100_000, DISK);
    assert!((0..50).all(|n| life.value(&format!("stays{n}")).is_some()));
}

#[test]
fn what_the_disk_may_not_have_is_dropped_from_the_oldest_on() {
    let directory = tempfile::tempdir().unwrap();
    let mut life = Life::with(&directory, CHECK, 10 << 20, 100_000);
    for n in 0..5000 {
        life.store(&format!("k{n}"), &"x".repeat(100));
        if n % 50 == 0 {
            life.tick();
        }
    }
    life.writer.finish();
    life.tick();
    let bytes: u64 = files(&directory).iter().map(|path| path.metadata().unwrap().len()).sum();
    assert!((50_000..110_000).contains(&bytes), "{bytes}");
    drop(life);
    let life = Life::on(&directory);
    assert!(life.value("k4999").is_some() && life.value("k0").is_none());
}

#[test]
fn a_directory_that_another_process_has_is_left_alone() {
    let directory = tempfile::tempdir().unwrap();
    let _life = Life::on(&directory);
    assert!(Directory::open(directory.path()).unwrap_err().to_string().contains("another process"));
}

#[test]
fn a_journal_that_the_disk_does_not_empty_is_bounded() {
    let directory = tempfile::tempdir().unwrap();
    let life = Life::with(&directory, CHECK, 256 << 20, 1 << 30);
    let long = "x".repeat(1 << 20);
    (0..80).for_each(|n| life.store(&format!("k{n}"), &long));
    let stats = life.writer.journal.stats();
    assert!((16..20).contains(&stats.unwritten), "{stats:?}");
    // What the journal had to leave out is still written when the node stops.
    life.stop();
    assert_eq!(Life::with(&directory, CHECK, 256 << 20, 1 << 30).report.restored, 80);
}

#[test]
fn kinds_are_told_by_their_names() {
    let directory = tempfile::tempdir().unwrap();
    let directory = Directory::open(directory.path()).unwrap();
    for (number, kind) in [Kind::Loads, Kind::Writes, Kind::Hottest].into_iter().enumerate() {
        let open = directory.create(number as u64, kind).unwrap();
        assert!(directory.list().unwrap().last().is_some_and(|last| last.is_open && last.kind == kind));
        directory.seal(open).unwrap();
        assert!(directory.list().unwrap().last().is_some_and(|last| !last.is_open && last.kind == kind));
    }
}

mod failures;
mod foreign;
mod generations;
mod marks;
