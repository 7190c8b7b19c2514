//! Warm restarts: what a node had in memory comes back from files of its own.
//!
//! ```text
//! Cache ── stored ──> Journal ── every 100 ms ──> Writer ──> Directory        one thread, all groups in turn
//! Cache <── restored ── Restore <─────────────────────────── Directory        another, once, from the start
//! ```
//!
//! Nothing here is on the way of a get but a push onto a list after a load. No get waits for a disk; writes
//! wait until the removal is with the system. A node is ready before its entries are back, and a disk that
//! fails leaves it with its memory.

mod directory;
mod restore;
mod writer;

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use peanut_proto::machine::{self, Pause, work_on_thread};
use peanut_proto::numbers::RingVersion;
use peanut_proto::sabotage::{Mechanism, without};
use tokio::sync::watch;
use tokio::time::{Instant, timeout_at};
use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

use crate::cache::Cache;
use crate::group;
use crate::journal::Journal;
use crate::lineage::Lineage;
use crate::segment::{Header, whole_length};
use directory::{Directory, Kind, Segment};

use restore::{Check, Pace, Restore};
use writer::{Limits, Writer};

/// How often what was stored is handed to the system: a process that is killed loses no more.
const TICK: Duration = Duration::from_millis(100);

/// Where and how.
#[derive(Clone, Debug)]
pub(crate) struct PersistenceOptions {
    pub(crate) data_dir: PathBuf,
    pub(crate) seal_interval: Duration,
    pub(crate) restore_rate: u64,
}

/// The writing of all groups' segments. Dropping it ends the writing where it stands.
#[derive(Debug)]
pub(crate) struct Persistence {
    shared: Arc<Shared>,
    /// How the writer waits.
    writer: Pause,
    ended: watch::Receiver<()>,
    groups: Vec<Group>,
    pace: u64,
}

/// The groups' directories, taken before there is anything to write.
#[derive(Debug)]
pub(crate) struct Directories {
    options: PersistenceOptions,
    writer: Pause,
    boot: u64,
    groups: BTreeMap<String, Taken>,
}

/// A group's directory, and what was found in it.
#[derive(Debug)]
struct Taken {
    journal: Arc<Journal>,
    directory: Arc<Directory>,
    found: Vec<Segment>,
    fingerprint: u64,
}

/// What a group is restored from.
#[derive(Debug)]
struct Group {
    cache: Arc<Cache>,
    taken: Taken,
}

#[derive(Debug)]
struct Shared {
    phase: Mutex<Phase>,
    stop_restoring: AtomicBool,
    /// Segments that the restore found to be of no use, by group.
    useless: Mutex<Vec<(usize, Vec<Segment>)>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Running,
    /// The node has been told to stop: the hottest are written until then.
    Stopping(Instant),
    /// It serves no more.
    Stopped,
    /// It is gone.
    Abandoned,
}

impl Directories {
    /// Takes the groups' directories. `identity` names whose entries these are. A group whose directory
    /// cannot be used stays in memory, with a warning.
    pub(crate) fn take(options: PersistenceOptions, identity: &str, groups: &[group::Group]) -> Self {
        let has = |name: &OsStr| groups.iter().any(|group| *name == *group.name);
        match Directory::remove_others(&options.data_dir, has) {
            Ok(removed) if removed.is_empty() => {}
            Ok(removed) => {
                tracing::info!(?removed, "what was kept of groups that this node does not have is removed")
            }
            Err(error) => {
                tracing::warn!(%error, "what is kept of groups that this node does not have may be outdated when they are back")
            }
        }
        let (boot, writer) = (boot(), Pause::default());
        let taken = groups.iter().filter_map(|group| {
            let path = options.data_dir.join(&group.name);
            let (directory, found) = take(&path, boot)
                .inspect_err(|error| {
                    let path = path.display();
                    tracing::warn!(group = group.name, "in memory only, {path} cannot be used: {error}");
                })
                .ok()?;
            let taken = Taken {
                journal: Arc::new(Journal::new(options.seal_interval, Instant::now(), writer.clone())),
                directory: Arc::new(directory),
                found,
                fingerprint: xxh3_64_with_seed(identity.as_bytes(), group.fingerprint()),
            };
            Some((group.name.clone(), taken))
        });
        let groups = taken.collect();
        Directories { options, writer, boot, groups }
    }

    /// What becomes of a group's entries, where its directory was taken.
    pub(crate) fn journal(&self, group: &str) -> Option<Arc<Journal>> {
        self.groups.get(group).map(|taken| taken.journal.clone())
    }

    /// Begins to write what the groups' caches put into their journals.
    ///
    /// # Errors
    /// Where the system has no thread for it.
    pub(crate) fn start<'a>(
        mut self,
        caches: impl Iterator<Item = &'a Arc<Cache>>,
    ) -> io::Result<Persistence> {
        let groups: Vec<_> = caches
            .filter_map(|cache| {
                Some(Group { cache: cache.clone(), taken: self.groups.remove(cache.name())? })
            })
            .collect();
        let mut writers: Vec<_> =
            groups.iter().map(|group| group.writer(self.boot, self.options.seal_interval)).collect();
        let shared = Arc::new(Shared {
            phase: Mutex::new(Phase::Running),
            stop_restoring: AtomicBool::new(false),
            useless: Mutex::default(),
        });
        let (ending, ended) = watch::channel(());
        let (writing, pause) = (shared.clone(), self.writer.clone());
        work_on_thread("peanut-writer", async move {
            let _ending = ending;
            // A write that comes after the last of its group that were taken is not acknowledged.
            write(&writing, &mut writers, &pause).await;
        })?;
        Ok(Persistence { shared, writer: self.writer, ended, groups, pace: self.options.restore_rate })
    }
}

/// What a start has found in a group's directory.
enum Found {
    OfLastStart(Vec<Segment>),
    /// It is not there any more, unless it could not be removed.
    Outdated(Vec<Segment>),
}

/// Marks a group's directory with a start, once nothing of another than the last one is in it: under the mark
/// it would pass for what this process has left.
fn mark(group: &str, directory: &Directory, found: Vec<Segment>, lineage: Lineage) -> Found {
    let is_last = lineage.found.is_some() && directory.lineage() == lineage.found;
    let found = if is_last || found.is_empty() || without(Mechanism::Lineage) {
        Found::OfLastStart(found)
    } else {
        tracing::warn!(
            group,
            "the directory is not of the last start that the registry knows of: a cold start"
        );
        Found::Outdated(found)
    };
    let removed = match &found {
        Found::OfLastStart(_) => Ok(()),
        Found::Outdated(found) => directory.forget(found),
    };
    if let Err(error) = removed.and_then(|()| directory.set_lineage(lineage.mine)) {
        tracing::warn!(group, %error, "the next start will be a cold one");
    }
    found
}

impl Persistence {
    /// Marks the directories with this start, and leaves aside what is of another than the last one: the node
    /// was not told of all that was invalidated since.
    pub(crate) async fn take_lineage(&mut self, lineage: Lineage) {
        for (number, Group { cache, taken }) in self.groups.iter_mut().enumerate() {
            let (name, directory) = (cache.name().to_owned(), taken.directory.clone());
            let found = std::mem::take(&mut taken.found);
            // A disk that stands still holds up nothing else.
            match machine::blocking(move || mark(&name, &directory, found, lineage)).await {
                Ok(Found::OfLastStart(found)) => taken.found = found,
                Ok(Found::Outdated(found)) => self.shared.useless.lock().push((number, found)),
                // The runtime ends.
                Err(_) => return,
            }
        }
    }

    /// Brings back in the background what the disk has. `newest_version` is the ring's, where it is known.
    pub(crate) fn restore(&mut self, newest_version: Option<RingVersion>) {
        let (groups, shared) = (std::mem::take(&mut self.groups), self.shared.clone());
        let mut pace = Pace::new(self.pace, Instant::now());
        let reader = work_on_thread("peanut-restore", async move {
            let pause = Pause::default();
            for (number, Group { cache, taken }) in groups.into_iter().enumerate() {
                let Taken { journal, directory, found, fingerprint } = taken;
                let begun = Instant::now();
                let check = Check { fingerprint, max_ttl: cache.policy().longest(), newest_version };
                let mut restore = Restore {
                    directory: &directory,
                    cache: &cache,
                    journal: &journal,
                    check,
                    pace: &mut pace,
                    stop: &shared.stop_restoring,
                };
                let is_anything = !found.is_empty();
                let (report, useless) = restore.run(found, &pause).await;
                journal.counters.dropped.store(report.dropped(), Ordering::Relaxed);
                if shared.stop_restoring.load(Ordering::Relaxed) {
                    return;
                }
                shared.useless.lock().push((number, useless));
                journal.set_restored();
                let (name, took) = (cache.name(), begun.elapsed());
                if is_anything {
                    tracing::info!(group = name, "warm restart: {report}, in {took:.1?}");
                }
            }
        });
        if let Err(error) = reader {
            tracing::warn!("a cold start, no thread to read with: {error}");
        }
    }

    /// Begins to write what the groups have, the hottest first, for at most until then.
    pub(crate) fn write_hottest_first(&self, until: Instant) {
        self.enter(Phase::Stopping(until));
    }

    /// Writes what is left, and waits for it at most until then.
    pub(crate) async fn finish(mut self, until: Instant) {
        self.enter(Phase::Stopped);
        // It ends by being dropped.
        if timeout_at(until, self.ended.changed()).await.is_err() {
            tracing::warn!("the segments were not all written in time");
        }
    }

    fn enter(&self, phase: Phase) {
        self.shared.stop_restoring.store(true, Ordering::Relaxed);
        *self.shared.phase.lock() = phase;
        self.writer.wake();
    }
}

impl Drop for Persistence {
    fn drop(&mut self) {
        let is_stopped = *self.shared.phase.lock() == Phase::Stopped;
        if !is_stopped {
            self.enter(Phase::Abandoned);
        }
    }
}

impl Group {
    fn writer(&self, boot: u64, seal_interval: Duration) -> Writer {
        let Group { cache, taken: Taken { journal, directory, found, fingerprint } } = self;
        let limits = Limits {
            disk_bytes: cache.policy().disk_capacity_bytes(),
            seal_interval,
            fingerprint: *fingerprint,
            boot,
        };
        Writer::new(cache.clone(), journal.clone(), directory.clone(), limits, found.clone())
    }
}

/// Takes a group's directory, and seals what an earlier process has left open there.
fn take(path: &Path, boot: u64) -> io::Result<(Directory, Vec<Segment>)> {
    let directory = Directory::open(path)?;
    let mut segments = directory.list()?;
    for at in 0..segments.len() {
        let segment = segments[at].clone();
        if !segment.is_open {
            continue;
        }
        let bytes = directory.read(&segment)?;
        let was_written_in = Header::read(&bytes).ok().map(|(header, _)| header.boot);
        if segment.kind == Kind::Writes && was_written_in != Some(boot) {
            // The machine has gone down meanwhile: writes may be missing here that outdated anything before
            // them.
            for segment in &segments {
                directory.remove(segment)?;
            }
            return Ok((directory, Vec::new()));
        }
        segments[at] = directory.seal_left(segment, whole_length(&bytes) as u64)?;
    }
    Ok((directory, segments))
}

/// What the writer's thread does.
async fn write(shared: &Shared, writers: &mut [Writer], pause: &Pause) {
    let mut dumped = false;
    loop {
        let phase = *shared.phase.lock();
        if phase == Phase::Running || (dumped && matches!(phase, Phase::Stopping(_))) {
            pause.pause(TICK).await;
        }
        let phase = *shared.phase.lock();
        for (number, useless) in shared.useless.lock().drain(..) {
            writers[number].discard(&useless);
        }
        match phase {
            Phase::Running => writers.iter_mut().for_each(|writer| writer.tick(Instant::now())),
            Phase::Stopping(until) if !dumped => {
                dumped = true;
                let count = writers.len();
                for (number, writer) in writers.iter_mut().enumerate() {
                    // An equal part of what is left for each.
                    let now = Instant::now();
                    let part = until.saturating_duration_since(now) / (count - number) as u32;
                    writer.write_hottest_first(now + part);
                }
            }
            Phase::Stopping(_) => writers.iter_mut().for_each(|writer| writer.tick(Instant::now())),
            Phase::Stopped => {
                writers.iter_mut().for_each(Writer::finish);
                return;
            }
            Phase::Abandoned => return,
        }
    }
}

/// Names the run of the machine, where the system tells; else each start of the process is taken for one.
fn boot() -> u64 {
    std::fs::read("/proc/sys/kernel/random/boot_id").map_or_else(|_| fastrand::u64(..), |id| xxh3_64(&id))
}

#[cfg(test)]
mod tests;
