//! Sequences: numbers that each write of a key raises at its node, by classes of keys.
//!
//! A writer names the sequence that it knows, and the node stores its value only where nothing of the key's
//! class has been written since: so a message that is late never brings an old value. The class stands in the
//! number itself, so that the sequence of one class is never taken for another's.

use xxhash_rust::xxh3::xxh3_64;

/// How many classes there are: as many as a number's upper bits tell apart. Two writes at the same time
/// seldom are of one.
pub const CLASSES: usize = 1 << 16;
/// Counts take the lower bits.
const COUNT_BITS: u32 = 48;

/// The class of a key.
pub fn class(key: &[u8]) -> usize {
    xxh3_64(key) as usize % CLASSES
}

/// The sequence of a class after so many writes; `begun` is what it begins with, another number for each
/// group and process. Not zero.
pub fn sequence(class: usize, begun: u64, writes: u64) -> u64 {
    (class as u64) << COUNT_BITS | (begun.wrapping_add(writes) & ((1 << COUNT_BITS) - 1)).max(1)
}

/// Whether a number can be a sequence of that class.
pub fn is_of(class: usize, sequence: u64) -> bool {
    sequence >> COUNT_BITS == class as u64 && sequence != 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_write_raises_the_sequence_and_no_two_classes_share_one() {
        let [before, after] = [7, 8].map(|writes| sequence(5, 100, writes));
        assert_eq!(after, before + 1);
        assert!(is_of(5, before) && !is_of(6, before) && !is_of(0, before));
        assert_ne!(sequence(5, 100, 7), sequence(6, 100, 7));
        assert!(is_of(0, sequence(0, u64::MAX, 1)), "a count that has come round is none");
        assert!((0..1000_u32).all(|key| class(&key.to_le_bytes()) < CLASSES));
    }
}
