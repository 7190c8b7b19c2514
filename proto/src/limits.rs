//! Limits that both sides keep. A request beyond them is refused by name and leaves the connection as it
//! is.

/// Longest key, in bytes.
pub const MAX_KEY_BYTES: usize = 1024;
/// Longest value, in bytes.
pub const MAX_VALUE_BYTES: usize = 8 << 20;
/// Longest gRPC message, in bytes: the longest value with its key and everything around them.
pub const MAX_MESSAGE_BYTES: usize = MAX_VALUE_BYTES + (64 << 10);

/// Checks a key.
///
/// # Errors
/// What is wrong with it, and which limit it breaks.
pub fn check_key(key: &[u8]) -> Result<(), String> {
    if key.is_empty() {
        Err("the key is empty; a key has at least one byte".to_owned())
    } else if key.len() > MAX_KEY_BYTES {
        Err(format!("the key has {} bytes; the limit is {MAX_KEY_BYTES}", key.len()))
    } else {
        Ok(())
    }
}
