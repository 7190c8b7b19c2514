//! The hash of a key, by which rings place it and near copies of it are named.

use std::sync::Arc;

use xxhash_rust::xxh3::xxh3_64;

/// xxh3-64 of the group's name, a zero byte and the key.
pub fn key_hash(group: &str, key: &[u8]) -> u64 {
    // xxh3 over one buffer is several times quicker than its streaming form for short keys.
    match group.len() + 1 + key.len() {
        ..=64 => hash_in::<64>(group.as_bytes(), key),
        65..=256 => hash_in::<256>(group.as_bytes(), key),
        _ => xxh3_64(&[group.as_bytes(), &[0], key].concat()),
    }
}

/// By way of a buffer on the stack, in which both have room.
#[inline]
fn hash_in<const N: usize>(group: &[u8], key: &[u8]) -> u64 {
    let (mut buffer, length) = ([0; N], group.len() + 1 + key.len());
    buffer[..group.len()].copy_from_slice(group);
    buffer[group.len() + 1..length].copy_from_slice(key);
    xxh3_64(&buffer[..length])
}

/// Bytes of group, zero byte and key up to which [`KeyHasher`] is quicker.
const SHORT: usize = 64;

/// Hashes the keys of one group, as [`key_hash`] does: the group's part is written once.
#[derive(Clone, Debug)]
pub struct KeyHasher {
    group: Arc<str>,
    /// The group and the zero byte, where they have room.
    prefix: [u8; SHORT],
    prefix_bytes: usize,
}

impl KeyHasher {
    /// For the keys of that group.
    pub fn new(group: Arc<str>) -> Self {
        let (mut prefix, prefix_bytes) = ([0; SHORT], group.len() + 1);
        if prefix_bytes <= SHORT {
            prefix[..group.len()].copy_from_slice(group.as_bytes());
        }
        KeyHasher { group, prefix, prefix_bytes }
    }

    /// The hash of a key.
    #[inline]
    pub fn hash(&self, key: &[u8]) -> u64 {
        let length = self.prefix_bytes + key.len();
        if length > SHORT {
            return key_hash(&self.group, key);
        }
        let mut buffer = self.prefix;
        buffer[self.prefix_bytes..length].copy_from_slice(key);
        xxh3_64(&buffer[..length])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hasher_hashes_as_the_function_does() {
        for group in 0..80 {
            let group: Arc<str> = "g".repeat(group).into();
            let hasher = KeyHasher::new(group.clone());
            for key in 0..80_u8 {
                let key: Vec<u8> = (0..key).map(|n| n.wrapping_mul(37)).collect();
                assert_eq!(hasher.hash(&key), key_hash(&group, &key), "{group}, {key:?}");
            }
        }
    }
}
