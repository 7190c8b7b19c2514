//! What applications do in a scenario, and what they saw.
//!
//! The origin has a version for each key, raised before the cache is told: by one writer of a key at a time,
//! or by several that begin their writes before. One in seven versions says that there is no such key.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU64, Ordering};
use std::time::Duration;

use fastrand::Rng;
use futures_util::future::join_all;
use parking_lot::Mutex;
use peanut_client::{Client, Error};
use tokio::sync::MutexGuard;
use tokio::time::{sleep, timeout};

use super::plan::{CLIENTS, GROUPS, KEYS};
use super::registry::Store;
use super::world::time;
use crate::history::{Kind, Op};

/// Whether this version of a key says that there is no such key.
pub(super) fn is_absent(version: u64) -> bool {
    version % 7 == 6
}

/// A key of a group, in histories.
pub(super) fn number(group: usize, key: u32) -> u32 {
    group as u32 * KEYS + key
}

/// What all that runs in a scenario shares.
pub(super) struct Load {
    versions: Vec<AtomicU64>,
    writers: Vec<tokio::sync::Mutex<()>>,
    loads: AtomicU64,
    /// What is wrong with the origin, by number of faults.
    origin: Mutex<OriginTrouble>,
    ops: Mutex<Vec<Done>>,
    /// Reads of applications whose near copies may be outdated.
    outdated: Mutex<Vec<Done>>,
    /// How much longer each application pauses between reads and between writes.
    paces: [(u64, u64); CLIENTS],
    /// By how much near copies of each application may be outdated.
    staleness: [Option<Duration>; CLIENTS],
    /// The only key that the first application reads, so that it speaks to few nodes, and hears of a change
    /// of the ring from nobody else.
    only: Option<(usize, u32)>,
    /// A registry of which a client and owners of keys may hear late, all of them, without knowing that.
    slow: Option<Store>,
    /// How often the time was asked for.
    ticks: AtomicU64,
    /// While it is above zero, nobody writes.
    quiet: AtomicI32,
    /// Applications do nothing more.
    pub(super) stop: AtomicBool,
}

/// An operation of a client.
#[derive(Clone, Copy, Debug)]
pub(super) struct Done {
    /// The number of the client.
    pub(super) by: usize,
    pub(super) op: Op,
    /// It is a read that another node answered in the owner's place.
    pub(super) is_failover: bool,
}

#[derive(Clone, Copy, Debug, Default)]
struct OriginTrouble {
    fails: u32,
    is_slow: u32,
}

impl Load {
    /// An origin in which every key has version zero, and applications that pause so much longer between
    /// reads and between writes. The first reads no key but `only`, where that is given. `slow`: the
    /// registry, where a client and a node hear of it late.
    pub(super) fn new(
        paces: [(u64, u64); CLIENTS],
        only: Option<(usize, u32)>,
        staleness: [Option<Duration>; CLIENTS],
        slow: Option<Store>,
    ) -> Arc<Self> {
        let keys = GROUPS.len() * KEYS as usize;
        Arc::new(Load {
            versions: (0..keys).map(|_| AtomicU64::new(0)).collect(),
            writers: (0..keys).map(|_| tokio::sync::Mutex::new(())).collect(),
            loads: AtomicU64::new(0),
            origin: Mutex::default(),
            ops: Mutex::default(),
            outdated: Mutex::default(),
            paces,
            staleness,
            only,
            slow,
            ticks: AtomicU64::new(0),
            quiet: AtomicI32::new(0),
            stop: AtomicBool::new(false),
        })
    }

    /// Whether a client that has just written goes by the last ring, as far as that matters: a write that
    /// goes to a previous owner, since neither the writer nor that node has heard of a change of the ring, is
    /// done for those who have when the writer has heard, too (docs/consistency.md).
    fn has_heard(&self, client: &Client) -> bool {
        self.slow.as_ref().is_none_or(|store| client.ring().version().0 >= store.newest_ring())
    }

    /// The time, in which nothing takes none: what goes on in one process without waiting has an order too.
    fn time(&self) -> Duration {
        time() + Duration::from_nanos(self.ticks.fetch_add(1, Ordering::Relaxed))
    }

    /// How often the origin was asked.
    pub(super) fn loads(&self) -> u64 {
        self.loads.load(Ordering::Relaxed)
    }

    /// What clients did and saw.
    pub(super) fn ops(&self) -> Vec<Done> {
        self.ops.lock().clone()
    }

    /// For each application whose near copies may be outdated its reads, which show its own writes all the
    /// same, and all writes, of which those of others count as not acknowledged.
    pub(super) fn own_ops(&self) -> Vec<Vec<Done>> {
        let (ops, outdated) = (self.ops(), self.outdated.lock().clone());
        let of_client = |reader: usize| {
            let reads = outdated.iter().filter(|read| read.by == reader).copied();
            let writes = ops.iter().filter_map(|write| {
                let kind = match write.op.kind {
                    Kind::Written(version) if write.by != reader => Kind::WriteFailed(version),
                    Kind::Written(_) | Kind::WriteFailed(_) => write.op.kind,
                    Kind::Read(_) | Kind::ReadAbsent | Kind::ReadFailed => return None,
                };
                Some(Done { op: Op { kind, ..write.op }, ..*write })
            });
            reads.chain(writes).collect()
        };
        (0..CLIENTS).filter(|client| self.staleness[*client].is_some()).map(of_client).collect()
    }

    /// The present version of a key.
    pub(super) fn version(&self, key: u32) -> u64 {
        self.versions[key as usize].load(Ordering::Relaxed)
    }

    /// What the origin has of a key, after a while; it is read at some time in between.
    pub(super) async fn load(&self, group: usize, key: u32) -> Result<Option<String>, String> {
        self.loads.fetch_add(1, Ordering::Relaxed);
        sleep(Duration::from_millis(fastrand::u64(1..12))).await;
        let version = self.version(number(group, key));
        let OriginTrouble { fails, is_slow } = *self.origin.lock();
        // Longer than loads may take, now and then.
        let longest = if is_slow > 0 { 600 } else { 25 };
        sleep(Duration::from_millis(fastrand::u64(1..longest))).await;
        if fails > 0 && fastrand::bool() {
            return Err("the origin fails".to_owned());
        }
        Ok((!is_absent(version)).then(|| version.to_string()))
    }

    /// The origin fails half of all loads, or is slow, from now on or not any more.
    pub(super) fn trouble_origin(&self, is_slow: bool, by: i32) {
        let mut origin = self.origin.lock();
        let count = if is_slow { &mut origin.is_slow } else { &mut origin.fails };
        *count = count.saturating_add_signed(by);
    }

    /// Applications write nothing, or do again.
    pub(super) fn quiet(&self, by: i32) {
        self.quiet.fetch_add(by, Ordering::Relaxed);
    }

    fn add(&self, by: usize, key: u32, kind: Kind, begun: Duration, is_failover: bool) {
        tracing::trace!(key, ?kind, ?begun, is_failover, "operation");
        let mut op = Op { key, kind, begun, ended: self.time() };
        if let (Kind::Read(_) | Kind::ReadAbsent, Some(staleness)) = (kind, self.staleness[by]) {
            self.outdated.lock().push(Done { by, op, is_failover });
            // It may show what was there a while ago, by a clock that may be slow.
            op.begun = begun.saturating_sub(staleness * 11 / 10);
        }
        self.ops.lock().push(Done { by, op, is_failover });
    }

    fn raise(&self, key: u32) -> u64 {
        self.versions[key as usize].fetch_add(1, Ordering::Relaxed) + 1
    }

    /// Reads until told to stop.
    pub(super) async fn read(self: Arc<Self>, number: usize, client: Client, mut random: Rng) {
        let only = self.only.filter(|_| number == 0);
        while !self.stop.load(Ordering::Relaxed) {
            match only {
                Some((group, key)) => drop(self.read_one(number, &client, group, key).await),
                None => self.read_any(number, &client, &mut random).await,
            }
            sleep(Duration::from_millis(random.u64(5..90) * self.paces[number].0)).await;
        }
    }

    /// Reads any key, or all of a group, and may give up before it has.
    async fn read_any(&self, number: usize, client: &Client, random: &mut Rng) {
        let group = random.usize(..GROUPS.len());
        if random.u8(..12) == 0 {
            return self.read_many(number, client, group).await;
        }
        let is_cancelled = random.u8(..15) == 0;
        let read = self.read_one(number, client, group, random.u32(..KEYS));
        if is_cancelled {
            let _ = timeout(Duration::from_millis(random.u64(..20)), read).await;
        } else {
            read.await;
        }
    }

    /// Reads a key; gives whether it was read.
    pub(super) async fn read_one(&self, by: usize, client: &Client, group: usize, key: u32) -> bool {
        let (begun, handle, name) = (self.time(), client.group(GROUPS[group]), key.to_string());
        let before = client.stats().failovers;
        let read = if GROUPS[group] == "app" {
            handle.get_or_load(name, || self.load(group, key)).await
        } else if key.is_multiple_of(2) {
            handle.get(name).await
        } else {
            handle.get_detailed(name).await.map(|detailed| detailed.value)
        };
        let (is_read, is_failover) = (read.is_ok(), client.stats().failovers > before);
        self.add(by, number(group, key), kind_of(GROUPS[group] != "plain", read), begun, is_failover);
        is_read
    }

    async fn read_many(&self, by: usize, client: &Client, group: usize) {
        let (begun, before) = (self.time(), client.stats().failovers);
        let (handle, keys) = (client.group(GROUPS[group]), (0..KEYS).map(|key| key.to_string()));
        let load = |missing: Vec<bytes::Bytes>| async move {
            let keys = missing.iter().filter_map(|key| std::str::from_utf8(key).ok()?.parse().ok());
            let loads =
                keys.map(|key: u32| async move { Ok((key.to_string(), self.load(group, key).await?)) });
            join_all(loads).await.into_iter().collect::<Result<Vec<_>, String>>()
        };
        let read = if GROUPS[group] == "app" {
            handle.get_or_load_many(keys, load).await
        } else {
            handle.get_many(keys).await
        };
        let is_failover = client.stats().failovers > before;
        for (key, read) in read.into_iter().enumerate() {
            self.add(by, number(group, key as u32), kind_of(group < 2, read), begun, is_failover);
        }
    }

    /// Writes until told to stop.
    pub(super) async fn write(self: Arc<Self>, number: usize, client: Client, mut random: Rng) {
        let mut was_quiet = false;
        while !self.stop.load(Ordering::Relaxed) {
            if self.quiet.load(Ordering::Relaxed) > 0 {
                was_quiet = true;
                sleep(Duration::from_millis(10)).await;
                continue;
            }
            let group = random.usize(..GROUPS.len());
            if random.u8(..20) == 0 {
                self.clear(number, &client, group).await;
            } else if random.u8(..20) == 0 {
                self.write_many(number, &client, group, &mut random).await;
            } else if random.u8(..4) == 0 {
                self.begin_and_write(number, &client, group, &mut random).await;
            } else {
                let key = random.u32(..KEYS);
                let (group, key) =
                    self.only.filter(|_| was_quiet || random.u8(..3) == 0).unwrap_or((group, key));
                self.write_one(number, &client, group, key, &mut random).await;
            }
            was_quiet = false;
            sleep(Duration::from_millis(random.u64(5..150) * self.paces[number].1)).await;
        }
    }

    async fn write_one(&self, by: usize, client: &Client, group: usize, key: u32, random: &mut Rng) {
        let name = client.group(GROUPS[group]);
        let at = number(group, key);
        let _one_at_a_time = self.writers[at as usize].lock().await;
        let (begun, version) = (self.time(), self.raise(at));
        // Whoever is dropped meanwhile has not been told that it is done.
        let mut ending = Ending { load: self, by, key: at, begun, kind: Kind::WriteFailed(version) };
        let is_set = random.bool() && !is_absent(version);
        tracing::trace!(key = at, version, is_set, "write");
        let ttl = (random.u8(..4) == 0).then(|| Duration::from_millis(random.u64(200..3000)));
        let write = async {
            match ttl {
                _ if !is_set => name.delete(key.to_string()).await,
                Some(ttl) => name.set_with_ttl(key.to_string(), version.to_string(), ttl).await,
                None => name.set(key.to_string(), version.to_string()).await,
            }
        };
        let patience = if random.u8(..15) == 0 { random.u64(..15) } else { 60_000 };
        let is_done = matches!(timeout(Duration::from_millis(patience), write).await, Ok(Ok(())));
        ending.ended(is_done && self.has_heard(client));
    }

    /// Writes a key without keeping others from it but for the origin's own write.
    async fn begin_and_write(&self, by: usize, client: &Client, group: usize, random: &mut Rng) {
        let (key, name) = (random.u32(..KEYS), client.group(GROUPS[group]));
        let at = number(group, key);
        let Ok(write) = name.begin_write(key.to_string()).await else { return };
        sleep(Duration::from_millis(random.u64(..10))).await;
        let (begun, version) = {
            let _one_at_a_time = self.writers[at as usize].lock().await;
            (self.time(), self.raise(at))
        };
        tracing::trace!(key = at, version, "write that was begun");
        let mut ending = Ending { load: self, by, key: at, begun, kind: Kind::WriteFailed(version) };
        sleep(Duration::from_millis(random.u64(..10))).await;
        let ended =
            if is_absent(version) { write.delete().await } else { write.set(version.to_string()).await };
        ending.ended(ended.is_ok() && self.has_heard(client));
    }

    /// Begins a write of every key of a group, with no other writer beside it.
    async fn begin_all(&self, by: usize, group: usize) -> Vec<(Ending<'_>, MutexGuard<'_, ()>)> {
        let mut begun = Vec::new();
        for key in 0..KEYS {
            let at = number(group, key);
            let one_at_a_time = self.writers[at as usize].lock().await;
            let kind = Kind::WriteFailed(self.raise(at));
            begun.push((Ending { load: self, by, key: at, begun: self.time(), kind }, one_at_a_time));
        }
        begun
    }

    /// Sets or deletes every key of a group, and may give up before that is done.
    async fn write_many(&self, by: usize, client: &Client, group: usize, random: &mut Rng) {
        let begun = self.begin_all(by, group).await;
        let sets_some = random.bool();
        let is_set = |ending: &Ending<'_>| {
            let version = ending.version();
            version.filter(|version| sets_some && !is_absent(*version))
        };
        let (mut set, mut deleted): (Vec<_>, Vec<_>) =
            (0..KEYS).zip(begun).partition(|(_, (ending, _))| is_set(ending).is_some());
        let handle = client.group(GROUPS[group]);
        let entries: Vec<_> = set
            .iter()
            .filter_map(|(key, (it, _))| Some((key.to_string(), it.version()?.to_string())))
            .collect();
        let names: Vec<_> = deleted.iter().map(|(key, _)| key.to_string()).collect();
        let writes = async { tokio::join!(handle.set_many(entries), handle.delete_many(names)) };
        let patience = if random.u8(..10) == 0 { random.u64(..15) } else { 60_000 };
        let Ok(done) = timeout(Duration::from_millis(patience), writes).await else { return };
        let all = set.iter_mut().chain(&mut deleted).zip(done.0.into_iter().chain(done.1));
        let has_heard = self.has_heard(client);
        all.for_each(|((_, (ending, _)), done)| ending.ended(done.is_ok() && has_heard));
    }

    async fn clear(&self, by: usize, client: &Client, group: usize) {
        let mut begun = self.begin_all(by, group).await;
        let is_cleared = client.group(GROUPS[group]).clear().await.is_ok();
        let is_done = is_cleared && self.has_heard(client);
        begun.iter_mut().for_each(|(ending, _)| ending.ended(is_done));
    }
}

/// Adds an operation when it ends, however it does.
struct Ending<'a> {
    load: &'a Load,
    by: usize,
    key: u32,
    begun: Duration,
    kind: Kind,
}

impl Ending<'_> {
    /// Of a write that has not been acknowledged, the version.
    fn version(&self) -> Option<u64> {
        if let Kind::WriteFailed(version) = self.kind { Some(version) } else { None }
    }

    /// The write was acknowledged, or was not.
    fn ended(&mut self, is_done: bool) {
        if let Kind::WriteFailed(version) = self.kind
            && is_done
        {
            self.kind = Kind::Written(version);
        }
    }
}

impl Drop for Ending<'_> {
    fn drop(&mut self) {
        self.load.add(self.by, self.key, self.kind, self.begun, false);
    }
}

fn kind_of(is_loaded: bool, read: Result<Option<bytes::Bytes>, Error>) -> Kind {
    match read {
        Ok(Some(value)) => {
            let version = std::str::from_utf8(&value).ok().and_then(|value| value.parse().ok());
            Kind::Read(version.expect("nobody writes anything else"))
        }
        Ok(None) if is_loaded => Kind::ReadAbsent,
        // What nobody loads may be gone at any time.
        Ok(None) => Kind::ReadFailed,
        Err(_) => Kind::ReadFailed,
    }
}
