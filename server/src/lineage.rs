//! The mark of a start, which tells whether the registry and the disk are of the same history.

/// The mark that a node makes in the registry at each start, and on its disk. Where the two do not agree, the
/// node was not told of all that was invalidated: the registry has been lost or restored, or the directory is
/// of another start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Lineage {
    /// What the registry had when this process started.
    pub(crate) found: Option<u64>,
    /// This process's own.
    pub(crate) mine: u64,
}
