//! Numbers that processes tell one another, each a type of its own, so that none is taken for another.

use std::fmt::{self, Display, Formatter};

use serde::{Deserialize, Serialize};

/// The version of a ring document. Equal versions mean equal rings; 0 stands for one that is not known, or
/// where none is asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct RingVersion(pub u64);

/// The right to bring the value of one missing key, good once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FillToken(pub u64);

/// The generation of a group: a `clear` raises it, and what is older is gone. 0 stands for one that is not
/// known.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Generation(pub u64);

impl RingVersion {
    /// No version.
    pub const NONE: Self = RingVersion(0);

    /// The version `n` after this one.
    pub fn plus(self, n: u64) -> Self {
        RingVersion(self.0.saturating_add(n))
    }
}

impl FillToken {
    /// No token.
    pub const NONE: Self = FillToken(0);

    /// Whether it is one.
    pub fn is_some(self) -> bool {
        self != Self::NONE
    }

    /// Whether it is none.
    pub fn is_none(self) -> bool {
        self == Self::NONE
    }
}

impl Generation {
    /// No generation.
    pub const NONE: Self = Generation(0);
}

impl Display for RingVersion {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl Display for Generation {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}
