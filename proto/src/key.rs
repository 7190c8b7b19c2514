//! The hash of a key, by which rings place it and near copies of it are named.

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
