//! The hash of a key, by which rings place it and near copies of it are named.

use xxhash_rust::xxh3::xxh3_64;

/// xxh3-64 of the group's name, a zero byte and the key.
pub fn key_hash(group: &str, key: &[u8]) -> u64 {
    // xxh3 over one buffer is several times quicker than its streaming form for short keys.
    let mut stack = [0; 256];
    let length = group.len() + 1 + key.len();
    if length <= stack.len() {
        stack[..group.len()].copy_from_slice(group.as_bytes());
        stack[group.len() + 1..length].copy_from_slice(key);
        xxh3_64(&stack[..length])
    } else {
        xxh3_64(&[group.as_bytes(), &[0], key].concat())
    }
}
