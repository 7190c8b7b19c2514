//! The sequences that this client has last heard of: a set that names the right one takes a single round
//! trip.
//!
//! A sequence that is outdated, or of another node or group, costs a second round trip and nothing else, so
//! this is a small table whose places are taken by whichever was heard of last.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use peanut_proto::sequence::{class, is_of};
use xxhash_rust::xxh3::xxh3_64;

/// Places of the table: 1 MiB, taken with the first write.
const PLACES: usize = 131_072;

/// A table of sequences by node, group and class of the key.
#[derive(Debug, Default)]
pub(crate) struct Sequences {
    places: OnceLock<Box<[AtomicU64]>>,
}

impl Sequences {
    /// The sequence of a key at a node, if it was heard of.
    pub(crate) fn known(&self, node: &str, group: u32, key: &[u8]) -> Option<u64> {
        let class = class(key);
        let sequence = self.place(node, group, class).load(Ordering::Relaxed);
        is_of(class, sequence).then_some(sequence)
    }

    /// Takes in what a node has answered to a write; 0: nothing.
    pub(crate) fn learn(&self, node: &str, group: u32, key: &[u8], sequence: u64) {
        if sequence != 0 {
            self.place(node, group, class(key)).store(sequence, Ordering::Relaxed);
        }
    }

    fn place(&self, node: &str, group: u32, class: usize) -> &AtomicU64 {
        let places = self.places.get_or_init(|| (0..PLACES).map(|_| AtomicU64::default()).collect());
        let of_node = xxh3_64(node.as_bytes()) as usize ^ (group as usize).wrapping_mul(0x9e37_79b1);
        // The classes of one node and group have places of their own.
        &places[of_node.wrapping_add(class) % PLACES]
    }
}

#[cfg(test)]
mod tests {
    use peanut_proto::sequence::sequence;

    use super::*;

    #[test]
    fn what_was_heard_is_known_and_the_last_counts() {
        let sequences = Sequences::default();
        assert_eq!(sequences.known("a", 0, b"Tom"), None);
        for writes in 0..3 {
            let heard = sequence(class(b"Tom"), 9, writes);
            sequences.learn("a", 0, b"Tom", heard);
            sequences.learn("a", 0, b"Tom", 0);
            assert_eq!(sequences.known("a", 0, b"Tom"), Some(heard));
        }
        // A place that another class has taken is not taken for this one's.
        sequences.learn("a", 0, b"Tom", sequence(class(b"Tom") ^ 1, 9, 0));
        assert_eq!(sequences.known("a", 0, b"Tom"), None);
    }
}
