//! What a process knows of its fleet: the records under its prefix, folded from a snapshot and the
//! changes after it.
//!
//! A record that cannot be read is logged and skipped, and a ring document that vanishes or goes bad
//! leaves the last good one standing: nobody is better off without a ring.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::{Group, Key, Keys, Liveness, RecordError, RingDocument};
use crate::registry::{Change, Snapshot};

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
    pub live: BTreeMap<String, Liveness>,
    /// Generation of each group that has ever been cleared.
    pub generations: BTreeMap<String, u64>,
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
            generations: BTreeMap::new(),
        }
    }

    /// The fleet's keys.
    pub fn keys(&self) -> &Keys {
        &self.keys
    }

    /// Takes a whole snapshot in place of what was known, except for the last good ring.
    pub fn replace(&mut self, snapshot: Snapshot) {
        self.live.clear();
        self.ring_revision = 0;
        self.stored_ring = None;
        let revision = snapshot.revision;
        for entry in snapshot.entries {
            self.apply(Change { key: entry.key, value: Some(entry.value), revision: entry.revision });
        }
        self.revision = revision;
    }

    /// Takes one change.
    pub fn apply(&mut self, change: Change) {
        self.revision = self.revision.max(change.revision);
        let Some(key) = self.keys.parse(&change.key) else { return };
        if let Err(error) = self.apply_to(key, &change) {
            tracing::warn!(key = change.key, %error, "skipped a record that cannot be read");
        }
    }

    fn apply_to(&mut self, key: Key<'_>, change: &Change) -> Result<(), RecordError> {
        let value = change.value.as_deref();
        match (key, value) {
            (Key::Ring, None) => {
                self.ring_revision = 0;
                self.stored_ring = None;
            }
            (Key::Ring, Some(value)) => {
                self.ring_revision = change.revision;
                self.stored_ring = None;
                let ring = Arc::new(RingDocument::decode(value)?);
                self.stored_ring = Some(ring.clone());
                if ring.version >= self.ring.version {
                    self.ring = ring;
                } else {
                    tracing::warn!(
                        stored = ring.version,
                        held = self.ring.version,
                        "the registry holds an older ring than this process"
                    );
                }
            }
            (Key::Live(id), Some(value)) => {
                self.live.insert(id.to_owned(), Liveness::decode(value)?);
            }
            (Key::Live(id), None) => {
                self.live.remove(id);
            }
            (Key::Group(name), Some(value)) => {
                let generation = Group::decode(value)?.generation;
                let known = self.generations.entry(name.to_owned()).or_default();
                *known = generation.max(*known);
            }
            // Generations only rise, so a group's record that vanished changes nothing.
            (Key::Group(_), None) | (Key::Undelivered(..), _) => {}
        }
        Ok(())
    }

    /// Whether the registry has no ring, or an older one than the last good ring that this process
    /// holds: it has lost its data, and a node that notices writes the last good ring again.
    pub fn ring_was_lost(&self) -> bool {
        self.stored_ring.as_ref().map_or(0, |stored| stored.version) < self.ring.version
    }

    /// Believes the ring in the registry although it is older than the one held: nobody has repaired
    /// it, so the fleet must have begun anew.
    pub fn accept_stored(&mut self) {
        if let Some(stored) = &self.stored_ring {
            self.ring = stored.clone();
        }
    }
}
