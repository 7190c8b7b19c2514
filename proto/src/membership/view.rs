//! What a process knows of its fleet: the records under its prefix, folded from a snapshot and the
//! changes after it.
//!
//! A record that cannot be read is told of once and skipped, and a ring document that vanishes or goes bad
//! leaves the last good one standing: nobody is better off without a ring.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::{Key, Keys, Liveness, RecordError, RingDocument};
use crate::numbers::RingVersion;
use crate::registry::{Change, Entry, Snapshot};

/// Nodes that are not members, and whose liveness is known all the same, at most.
const MAX_STRANGERS: usize = 1024;
/// Longest liveness record that is read.
const MAX_LIVENESS_BYTES: usize = 128 << 10;
/// Bad records that are told of by name; of more it is told at a lower level.
const MAX_TOLD: usize = 64;

/// A fleet as of one revision of the registry.
#[derive(Clone, Debug)]
pub struct FleetView {
    keys: Keys,
    /// Revision of the registry that the view is as of.
    pub revision: i64,
    /// The last good ring document.
    pub ring: Arc<RingDocument>,
    /// Revision of the ring's key as it stands in the registry; 0 where it is absent. What a
    /// compare-and-swap of the ring has to name.
    pub ring_revision: i64,
    /// The ring in the registry at this revision; `None` where it is absent or unreadable. It differs
    /// from `ring` only where the registry has lost the last good one.
    pub stored_ring: Option<Arc<RingDocument>>,
    /// Nodes that hold a lease, by id.
    pub live: BTreeMap<String, Arc<Liveness>>,
    /// Nodes whose liveness record cannot be read. What was known of them before stands.
    pub unreadable: BTreeSet<String>,
    /// Revisions at which nodes came to hold no lease, since the view was last read whole. Of one that was
    /// back in between, however shortly, it is another.
    pub lapsed: BTreeMap<String, i64>,
    /// The stored ring is of a format that a newer build writes.
    is_newer_ring: bool,
    /// There was no room for the liveness of some nodes that were no members.
    has_passed_over: bool,
    is_incomplete: bool,
    /// Hashes of bad records that were told of.
    told: BTreeSet<u64>,
}

impl FleetView {
    /// A view in which nothing is known yet.
    pub fn new(keys: Keys) -> Self {
        FleetView {
            keys,
            revision: 0,
            ring: Arc::new(RingDocument::empty(super::DEFAULT_POINTS)),
            ring_revision: 0,
            stored_ring: None,
            live: BTreeMap::new(),
            unreadable: BTreeSet::new(),
            lapsed: BTreeMap::new(),
            is_newer_ring: false,
            has_passed_over: false,
            is_incomplete: false,
            told: BTreeSet::new(),
        }
    }

    /// The fleet's keys.
    pub fn keys(&self) -> &Keys {
        &self.keys
    }

    /// Takes a whole snapshot in place of what was known, except for the last good ring.
    pub fn replace(&mut self, snapshot: Snapshot) {
        self.begin();
        snapshot.entries.into_iter().for_each(|entry| self.add(entry));
        self.revision = snapshot.revision;
    }

    /// Begins to take a whole snapshot, whose entries come one by one.
    pub(crate) fn begin(&mut self) {
        self.live.clear();
        self.unreadable.clear();
        self.lapsed.clear();
        self.ring_revision = 0;
        self.stored_ring = None;
        self.is_newer_ring = false;
        (self.has_passed_over, self.is_incomplete) = (false, false);
    }

    /// Whether a node has become a member whose liveness may have been passed over before, among too many of
    /// others: everything is to be read again.
    pub(crate) fn is_incomplete(&self) -> bool {
        self.is_incomplete
    }

    /// Takes an entry of a snapshot.
    pub(crate) fn add(&mut self, entry: Entry) {
        self.apply(Change { key: entry.key, value: Some(entry.value), revision: entry.revision });
    }

    /// Takes one change.
    pub fn apply(&mut self, change: Change) {
        self.revision = self.revision.max(change.revision);
        let keys = self.keys.clone();
        let Some(key) = keys.parse(&change.key) else { return };
        if let Err(error) = self.apply_to(key, &change) {
            let what = xxhash_rust::xxh3::xxh3_64_with_seed(
                change.value.as_deref().unwrap_or_default(),
                xxhash_rust::xxh3::xxh3_64(change.key.as_bytes()),
            );
            if self.told.len() < MAX_TOLD && self.told.insert(what) {
                tracing::warn!(key = change.key, %error, "skipped a record that cannot be used");
            } else {
                tracing::debug!(key = change.key, %error, "skipped a record that cannot be used");
            }
        }
    }

    fn apply_to(&mut self, key: Key<'_>, change: &Change) -> Result<(), RecordError> {
        let value = change.value.as_deref();
        match (key, value) {
            (Key::Ring, value) => {
                self.ring_revision = value.map_or(0, |_| change.revision);
                self.stored_ring = None;
                self.is_newer_ring = false;
                let Some(value) = value else { return Ok(()) };
                let ring = RingDocument::decode(value).inspect_err(|error| {
                    self.is_newer_ring = error.is_newer_format();
                })?;
                let ring = Arc::new(ring);
                self.stored_ring = Some(ring.clone());
                if !ring.follows(&self.ring) {
                    let (stored, held) = (ring.version, self.ring.version);
                    return Err(RecordError::new(format!("version {stored} is too far ahead of {held}")));
                }
                if ring.version >= self.ring.version {
                    let is_known = |id| self.live.contains_key(id) || self.unreadable.contains(id);
                    // Nodes are alive before they are members.
                    self.is_incomplete |= self.has_passed_over
                        && ring.members.iter().any(|member| !is_known(member.id.as_str()));
                    self.ring = ring;
                } else {
                    tracing::warn!(
                        stored = ring.version.0,
                        held = self.ring.version.0,
                        "the registry holds an older ring than this process"
                    );
                }
            }
            (Key::Live(id), Some(value)) => {
                if !self.live.contains_key(id)
                    && self.live.len() + self.unreadable.len() >= MAX_STRANGERS
                    && self.ring.members.binary_search_by(|member| member.id.as_str().cmp(id)).is_err()
                {
                    self.has_passed_over = true;
                    return Err(RecordError::new(format!("more than {MAX_STRANGERS} nodes are alive")));
                }
                match read_liveness(value) {
                    Ok(live) => {
                        self.live.insert(id.to_owned(), Arc::new(live));
                        self.unreadable.remove(id);
                    }
                    Err(error) => {
                        self.unreadable.insert(id.to_owned());
                        return Err(error);
                    }
                }
            }
            (Key::Live(id), None) => {
                if self.live.remove(id).is_some() | self.unreadable.remove(id) {
                    self.lapsed.insert(id.to_owned(), change.revision);
                }
            }
            (Key::Group(_) | Key::Hint { .. }, _) => {}
        }
        Ok(())
    }

    /// Whether the registry has no ring that this process could use, or an older one than the last good ring
    /// that it holds: it has lost its data, and a node that notices writes the last good ring again.
    pub fn ring_was_lost(&self) -> bool {
        let stored = self.stored_ring.as_ref().filter(|stored| stored.follows(&self.ring));
        !self.is_newer_ring && stored.map_or(RingVersion::NONE, |stored| stored.version) < self.ring.version
    }

    /// Believes the ring in the registry although it is not one that follows the one held: nobody has
    /// repaired it, so the fleet must have begun anew.
    pub fn accept_stored(&mut self) {
        if let Some(stored) = &self.stored_ring {
            self.ring = stored.clone();
        }
    }
}

fn read_liveness(value: &[u8]) -> Result<Liveness, RecordError> {
    if value.len() > MAX_LIVENESS_BYTES {
        return Err(RecordError::new(format!("{} bytes are too long", value.len())));
    }
    let mut live = Liveness::decode(value)?;
    if let Some(groups) = &mut live.groups {
        groups.sort_by(|a, b| a.name.cmp(&b.name));
        groups.dedup_by(|a, b| a.name == b.name);
    }
    Ok(live)
}
