//! Hints that clients have stored in the registry: deletes for this node that they could not deliver,
//! and the generation of each group, which rises when it is cleared.
//!
//! The node reads it before its entries come back from the disk, whenever it wakes from sleep before it
//! answers, and follows it while it runs; page by page, since nobody says how much there is. A record goes
//! when what it says would outlive the process. One that cannot be read costs the group that its key names,
//! and no other.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic;
use std::time::Duration;

use bytes::Bytes;
use peanut_proto::backoff::Backoff;
use peanut_proto::clock::wall_clock_ms;
use peanut_proto::membership::{self, Hint, Key, Keys, RingDocument};
use peanut_proto::numbers::{Generation, RingVersion};
use peanut_proto::registry::{Change, Entry, KeyRange, Registry, RegistryError, read_pages};
use peanut_proto::sabotage::{Mechanism, without};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep};
use tokio_util::task::AbortOnDropHandle;

use crate::cache::{Begun, Delete};
use crate::lineage::Lineage;
use crate::node::Node;
use crate::registration::{holder_of, in_use};

/// So many readings and changes are removed together.
const AT_ONCE: usize = 256;
/// How long to wait when they could not be removed.
const REMOVE_AGAIN: Duration = Duration::from_millis(200);
/// How often the mark is tried again that the registry has not told or not taken.
const MARK_AGAIN: Duration = Duration::from_secs(5);
/// Records that cannot be read are told of so often, and marks.
const SAY: Duration = Duration::from_secs(10);
const SAY_OF_MARK: Duration = Duration::from_secs(600);

/// What was heard before.
#[derive(Debug)]
struct Heard {
    lineage: Option<Lineage>,
    /// The registry has this process's mark, if it has not lost it.
    is_marked: bool,
    /// The lease with which the mark was last written.
    marked_with: Option<u64>,
    /// Takes what has been applied.
    done: mpsc::UnboundedSender<Applied>,
    /// Whether what was applied may go. Not while the mark could not be made: the next start may find the
    /// directory of the one before this, and would need it.
    may_remove: watch::Sender<bool>,
    /// The generation of each of the node's groups that the registry had last; `None` where it could not be
    /// read.
    generations: HashMap<String, Option<Generation>>,
    /// When it was last told of a bad record.
    said: Option<Instant>,
    /// When it was last told that the mark is not read or made.
    said_of_mark: Option<Instant>,
}

/// Whether it is time to tell of something again, which is then taken for told.
fn is_due(said: &mut Option<Instant>, again: Duration) -> bool {
    let is_due = said.is_none_or(|at| at.elapsed() > again);
    if is_due {
        *said = Some(Instant::now());
    }
    is_due
}

/// Reads and follows what is left for one node.
#[derive(Debug)]
pub(crate) struct HintReader {
    pub(crate) registry: Arc<dyn Registry>,
    pub(crate) keys: Keys,
    pub(crate) node_id: String,
    /// Where the node is reached.
    pub(crate) addr: String,
    pub(crate) node: Node,
    /// Whether others write to the registry, and it outlives this process.
    pub(crate) is_shared: bool,
}

impl HintReader {
    /// Follows for ever. `known` hears when what was left before the start has been done.
    pub(crate) async fn run(self, known: watch::Sender<Option<Lineage>>) {
        let mut backoff = Backoff::new(Duration::from_millis(50), Duration::from_secs(1));
        let mut is_told = false;
        let (done, applied) = mpsc::unbounded_channel();
        let (may_remove, may) = watch::channel(false);
        let _removing = AbortOnDropHandle::new(tokio::spawn(remove_applied(
            self.registry.clone(),
            self.node.clone(),
            applied,
            may,
        )));
        let mut heard = Heard {
            lineage: None,
            is_marked: false,
            marked_with: None,
            done,
            may_remove,
            generations: HashMap::new(),
            said: None,
            said_of_mark: None,
        };
        loop {
            let begun = Instant::now();
            match self.follow(&known, &mut heard).await {
                Ok(()) => is_told = false,
                Err(error) => {
                    if !std::mem::replace(&mut is_told, true) {
                        tracing::warn!(
                            error = format_args!("{error:#}"),
                            "hints of clients cannot be read; trying until they can"
                        );
                    }
                    if begun.elapsed() > Duration::from_secs(1) {
                        backoff.reset();
                    }
                    let pause = sleep(backoff.next_delay(fastrand::f64()));
                    // A node that wakes needs to know now.
                    tokio::select! {
                        biased;
                        () = pause => {}
                        _ = self.node.wake().woken(), if begun.elapsed() > Duration::from_millis(50) => {}
                    }
                }
            }
        }
    }

    /// Reads all and follows it. `Ok` asks for the next reading at once.
    async fn follow(
        &self,
        known: &watch::Sender<Option<Lineage>>,
        heard: &mut Heard,
    ) -> Result<(), RegistryError> {
        // Hints are for one process: another that has them read and removed would take them from it.
        if let Some(other) = holder_of(&*self.registry, &self.keys, &self.node_id).await?
            && other.addr != self.addr
        {
            return Err(in_use(&self.node_id, &other.addr));
        }
        let answered = || self.node.wake().answered();
        answered();
        let (wakes, lease) = (self.node.wake().wakes(), self.node.near().last_granted());
        let groups = KeyRange::prefix(&self.keys.group(""));
        let mine = KeyRange::prefix(&self.keys.hints_for(&self.node_id));
        let ranges = [groups, mine];
        // Before anything is read, so that nothing is missed where the registry loses its data meanwhile.
        let mut changes = self.registry.watch(&ranges).await?;
        answered();
        // The ring too: others may have come to own keys in the meantime.
        if let Some(entry) = self.registry.get(&self.keys.ring()).await?
            && let Ok(ring) = RingDocument::decode(&entry.value)
        {
            self.node.learn_of_ring(ring.version);
        }
        answered();
        let lineage = self.known_lineage(heard, lease).await;
        if lineage.is_some() {
            answered();
        }
        // Where the mark cannot even be read, nothing comes back from the disk.
        heard.may_remove.send_replace(lineage.is_none() || heard.is_marked || !self.is_shared);
        let put = |Entry { key, value, revision }| Change { key, value: Some(value), revision };
        let apply = |page: Vec<Entry>| {
            answered();
            self.apply(page.into_iter().map(put), heard);
        };
        let revision = read_pages(&*self.registry, &ranges, apply).await?;
        self.node.wake().settle(wakes);
        if lineage.is_some() {
            known.send_replace(lineage);
        }
        loop {
            if heard.marked_with == Some(lease) {
                self.node.near().marked(lease);
            }
            let unmarked = lineage.filter(|_| heard.marked_with != Some(lease));
            let changed = tokio::select! {
                biased;
                _ = self.node.wake().woken() => return Ok(()),
                changed = changes.next() => changed?,
                () = sleep(MARK_AGAIN), if unmarked.is_some() => {
                    if let Some(lineage) = unmarked {
                        heard.is_marked |= self.mark(lineage, heard, lease).await;
                        heard.may_remove.send_replace(heard.is_marked);
                    }
                    continue;
                }
                () = sleep(MARK_AGAIN), if lineage.is_none() => return Ok(()),
            };
            self.apply(changed.into_iter().filter(|change| change.revision > revision), heard);
        }
    }

    /// The lineage, if the registry tells: this node may lack the right to ask. Hints are read all the same.
    async fn known_lineage(&self, heard: &mut Heard, lease: u64) -> Option<Lineage> {
        let checked = self.check_lineage(heard, lease).await;
        if let Err(error) = &checked
            && is_due(&mut heard.said_of_mark, SAY_OF_MARK)
        {
            tracing::warn!(
                error = format_args!("{error:#}"),
                "the mark of this node's last start cannot be read; until it can, nothing comes back from the disk"
            );
        }
        checked.ok()
    }

    /// Holds what the registry has of this node's mark against its own, and makes it where it is not there. A
    /// node whose mark is gone may not have been told of everything, and forgets all. It is written again
    /// with each lease.
    async fn check_lineage(&self, heard: &mut Heard, lease: u64) -> Result<Lineage, RegistryError> {
        let key = self.keys.lineage(&self.node_id);
        let read = |value: &[u8]| u64::from_str_radix(std::str::from_utf8(value).ok()?, 16).ok();
        let found = self.registry.get(&key).await?.and_then(|entry| read(&entry.value));
        if heard.lineage.is_none() && found.is_none() && self.is_shared && self.registry.keeps_all() {
            self.node.near().first_start();
        }
        let mut lineage = *heard.lineage.get_or_insert_with(|| Lineage { found, mine: fastrand::u64(1..) });
        if !self.is_shared {
            heard.marked_with = Some(lease);
            return Ok(lineage);
        }
        if found == Some(lineage.mine) {
            heard.is_marked = true;
            if heard.marked_with != Some(lease) {
                self.mark(lineage, heard, lease).await;
            }
            return Ok(lineage);
        }
        // Also before the mark of this start was made: with the last one's, hints may have gone that were not
        // read.
        let is_lost = heard.is_marked || found != lineage.found;
        if !heard.is_marked {
            lineage.found = found;
            heard.lineage = Some(lineage);
        }
        if is_lost && !without(Mechanism::Lineage) {
            if !without(Mechanism::Marks) {
                // Writers that find the new mark go by the lease that is no more.
                self.node.lease_doubted();
            }
            tracing::warn!(
                "the registry has lost what it knew of this node, which may not have been told of all; it forgets all that it has"
            );
            let under = self.node.ring().heard_of_any();
            done(self.node.caches().map(|cache| cache.clear(Generation::NONE, under, None))).await;
        }
        heard.is_marked = self.mark(lineage, heard, lease).await;
        Ok(lineage)
    }

    /// Writes the mark with a lease, and says whether the registry has it.
    async fn mark(&self, lineage: Lineage, heard: &mut Heard, lease: u64) -> bool {
        let (key, mark) = (self.keys.lineage(&self.node_id), format!("{:016x}", lineage.mine));
        let made = self.registry.put(&key, mark.into_bytes(), None).await;
        match &made {
            Ok(()) => heard.marked_with = Some(lease),
            Err(error) => {
                if is_due(&mut heard.said_of_mark, SAY_OF_MARK) {
                    tracing::warn!(
                        error = format_args!("{error:#}"),
                        "the mark of this start was not made; until it is, the next one will be cold"
                    );
                }
            }
        }
        made.is_ok()
    }

    /// Does what records say, and removes those that are this node's alone.
    fn apply(&self, changes: impl IntoIterator<Item = Change>, heard: &mut Heard) {
        let (mut begun, mut stale) = (Vec::new(), Vec::new());
        // One that is cleared after the records were read has forgotten all that they are of.
        let mut unread = HashSet::new();
        for change in changes {
            let Some(value) = &change.value else { continue };
            match self.keys.parse(&change.key) {
                Some(Key::Group(group)) => begun.extend(self.hear_of_generation(group, value, heard)),
                Some(Key::Hint { group, .. }) => {
                    match Hint::decode(value) {
                        Ok(record) => self.invalidate(group, record, &mut begun),
                        Err(error) if unread.insert(group.to_owned()) => {
                            if is_due(&mut heard.said, SAY) {
                                tracing::warn!(
                                    key = change.key,
                                    error = format_args!("{error:#}"),
                                    "a hint that cannot be read; its group is cleared"
                                );
                            }
                            begun.extend(self.node.cache(group).ok().map(|cache| {
                                cache.clear(Generation::NONE, self.node.ring().heard_of_any(), None)
                            }));
                        }
                        Err(_) => {}
                    }
                    stale.push((change.key, change.revision));
                }
                _ => {}
            }
        }
        self.node.near().will_remove(stale.len());
        // What comes next does not wait for that.
        let _ = heard.done.send((begun, stale));
    }

    /// A group is cleared with each other generation, also where it is less than the last: then the registry
    /// has lost that.
    fn hear_of_generation(&self, group: &str, value: &[u8], heard: &mut Heard) -> Option<Begun> {
        // The client that has cleared it may know any ring.
        let under = self.node.ring().heard_of_any();
        let cache = self.node.cache(group).ok()?;
        match membership::Group::decode(value) {
            Ok(membership::Group { generation, .. }) => {
                let last = heard.generations.insert(group.to_owned(), Some(generation)).flatten();
                let is_believable = membership::Group::is_believable(generation, wall_clock_ms());
                if last == Some(generation) || generation == cache.generation() {
                    None
                } else if is_believable {
                    Some(cache.clear_to(generation, under))
                } else {
                    // A number that is not kept.
                    Some(cache.clear(Generation::NONE, under, None))
                }
            }
            Err(error) => {
                // Told once; the next clear writes it anew.
                if !matches!(heard.generations.insert(group.to_owned(), None), Some(None)) {
                    tracing::warn!(
                        group,
                        error = format_args!("{error:#}"),
                        "skipped a generation that cannot be read"
                    );
                }
                None
            }
        }
    }

    fn invalidate(&self, group: &str, record: Hint, begun: &mut Vec<Begun>) {
        if without(Mechanism::Hints) {
            return;
        }
        // A hint to look, like any caller's word.
        self.node.ring().knows(record.ring_version);
        self.node.metrics().hints_applied.fetch_add(1, atomic::Ordering::Relaxed);
        let under = self.node.ring().heard_of(record.ring_version);
        let Ok(cache) = self.node.cache(group) else { return };
        tracing::debug!(group, keys = record.keys.as_ref().map(Vec::len), "applying a hint of a client");
        match record.keys {
            None => begun.push(cache.clear(Generation::NONE, under, None)),
            Some(keys) => begun.extend(keys.into_iter().filter_map(|key| {
                let delete = Delete {
                    key: &Bytes::from(key),
                    under,
                    stamp: RingVersion::NONE,
                    then_set: None,
                    sequence: 0,
                    by: None,
                };
                cache.delete(delete, Instant::now()).ok()
            })),
        }
    }
}

/// Invalidations that have been applied: what waits for the disk, and the records, which go when that is
/// done.
type Applied = (Vec<Begun>, Vec<(String, i64)>);

/// Removes records when what they say would outlive the process, many at a time.
async fn remove_applied(
    registry: Arc<dyn Registry>,
    node: Node,
    mut applied: mpsc::UnboundedReceiver<Applied>,
    mut may: watch::Receiver<bool>,
) {
    let mut some = Vec::new();
    while applied.recv_many(&mut some, AT_ONCE).await > 0 {
        let mut stale = Vec::new();
        for (begun, records) in some.drain(..) {
            done(begun).await;
            stale.extend(records);
        }
        if may.wait_for(|may| *may).await.is_err() {
            return;
        }
        while let Err(error) = registry.delete_all_if(&stale).await {
            tracing::debug!(
                error = format_args!("{error:#}"),
                "hints that were applied are not removed; trying until they are"
            );
            sleep(REMOVE_AGAIN).await;
        }
        node.near().removed(stale.len());
    }
}

/// Waits until all of it would outlive the process.
async fn done(begun: impl IntoIterator<Item = Begun>) {
    for begun in begun.into_iter().collect::<Vec<_>>() {
        // Writes do not fail once they have begun.
        let _ = begun.answer().await;
    }
}

#[cfg(test)]
mod tests;
