//! Why a node did not answer with what it was asked for, by what may be done about it.

use crate::error::Error;

/// How an attempt failed, by what may be done about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Failed {
    /// What the node said is final.
    Finally,
    /// The node could not be reached.
    Elsewhere,
    /// The same node may answer on another lane, or the owner under a new ring.
    Again,
    /// Only the key's owner can say.
    OwnerOnly,
    /// The node does not have the group.
    NoGroup,
}

/// Why a node did not answer with what it was asked for.
#[derive(Debug)]
pub(crate) enum Refusal {
    /// The node itself has failed the operation: final.
    Final(Error),
    /// The call died on the way, or the node is on its way out: another node may be asked.
    Elsewhere(Error),
    /// The lane died, and not for want of the node, which may be asked again; or the ring changed meanwhile.
    Again(Error),
    /// The node was asked in the owner's place, has no entry, and cannot load: nobody but the owner knows.
    OwnerOnly(Error),
    /// The node has no such group; another may have it.
    NoGroup(Error),
}

impl Refusal {
    /// By what may be done about it.
    pub(crate) fn failed(&self) -> Failed {
        match self {
            Refusal::Final(_) => Failed::Finally,
            Refusal::Elsewhere(_) => Failed::Elsewhere,
            Refusal::Again(_) => Failed::Again,
            Refusal::OwnerOnly(_) => Failed::OwnerOnly,
            Refusal::NoGroup(_) => Failed::NoGroup,
        }
    }

    /// What the caller is told where nothing more is tried.
    pub(crate) fn into_error(self) -> Error {
        match self {
            Refusal::Final(error)
            | Refusal::Elsewhere(error)
            | Refusal::Again(error)
            | Refusal::OwnerOnly(error)
            | Refusal::NoGroup(error) => error,
        }
    }
}
