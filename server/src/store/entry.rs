//! One entry: a value or the knowledge that there is none, its age, and the ring version it was written
//! under.

use bytes::Bytes;
use tokio::time::Instant;

/// Why this node holds an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Origin {
    /// It owned the key.
    Owner,
    /// A client asked it in the owner's place. Such an entry answers only such clients, and vice versa:
    /// what this node wrote as an owner of old may be long outdated.
    Failover,
}

/// What is remembered of a key.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    /// The value; `None` where the origin has no such key.
    pub(crate) value: Option<Bytes>,
    /// When the load began: the value is at least as new as that.
    pub(crate) loaded: Instant,
    pub(crate) expires: Instant,
    /// Ring version of the request that caused the load.
    pub(crate) stamp: u64,
    pub(crate) origin: Origin,
}

impl Entry {
    pub(crate) fn value_bytes(&self) -> usize {
        self.value.as_ref().map_or(0, Bytes::len)
    }

    /// Copies a value that is small, so that it does not keep a whole receive buffer alive.
    pub(crate) fn unpin(&mut self) {
        const SMALL_BYTES: usize = 16 << 10;
        if let Some(value) = &mut self.value
            && value.len() <= SMALL_BYTES
        {
            *value = Bytes::copy_from_slice(value);
        }
    }
}
