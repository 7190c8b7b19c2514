//! The latest ring that a process has met in the registry, by whichever of its tasks.
//!
//! The watch tells of it too, but later, and not where the registry has lost it before: what is then written
//! again has to be above it all the same.

use std::sync::Arc;

use parking_lot::Mutex;
use peanut_proto::membership::RingDocument;

/// Rings that this process has stored or found. Clones share it.
#[derive(Clone, Debug, Default)]
pub(crate) struct SeenRing(Arc<Mutex<Option<RingDocument>>>);

impl SeenRing {
    /// Keeps a ring, unless a later one has been seen.
    pub(crate) fn note(&self, ring: &RingDocument) {
        let mut seen = self.0.lock();
        if seen.as_ref().is_none_or(|seen| seen.version < ring.version) {
            *seen = Some(ring.clone());
        }
    }

    /// The later of a ring and what was seen.
    pub(crate) fn or_later(&self, known: &RingDocument) -> RingDocument {
        let seen = self.0.lock();
        seen.as_ref().filter(|seen| seen.version > known.version).unwrap_or(known).clone()
    }
}
