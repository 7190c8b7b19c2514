//! The policies of eviction, by name.

use std::fmt;
use std::str::FromStr;

use super::lru::Lru;
use super::policy::Policy;
use super::s3_fifo::S3Fifo;

/// A policy of eviction, by name.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Eviction {
    /// S3-FIFO, the default: Yang et al., "FIFO queues are all you need for cache eviction", SOSP 2023. Keeps
    /// what is read once out of the way of the rest, and a hit moves nothing.
    #[default]
    S3Fifo,
    /// The entry that has not been used for the longest time leaves.
    Lru,
}

impl Eviction {
    /// All of them.
    pub const ALL: [Eviction; 2] = [Eviction::S3Fifo, Eviction::Lru];

    /// Whether a hit changes the order; else hits are only counted in the slot.
    pub(super) fn promotes(self) -> bool {
        self == Eviction::Lru
    }

    pub(super) fn policy(self, capacity: usize) -> Box<dyn Policy> {
        match self {
            Eviction::S3Fifo => Box::new(S3Fifo::new(capacity)),
            Eviction::Lru => Box::new(Lru::new()),
        }
    }
}

impl fmt::Display for Eviction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Eviction::S3Fifo => "s3-fifo",
            Eviction::Lru => "lru",
        })
    }
}

impl FromStr for Eviction {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        let known = Eviction::ALL.into_iter().find(|eviction| eviction.to_string() == name);
        known.ok_or_else(|| format!("`{name}` is no policy; there are s3-fifo and lru"))
    }
}
