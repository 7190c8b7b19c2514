//! Limits that both sides keep. A request beyond them is refused by name and leaves the connection as it
//! is.

/// Longest key, in bytes.
pub const MAX_KEY_BYTES: usize = 1024;
/// Longest value, in bytes.
pub const MAX_VALUE_BYTES: usize = 8 << 20;
/// Longest gRPC message, in bytes: the longest value with its key and everything around them.
pub const MAX_MESSAGE_BYTES: usize = MAX_VALUE_BYTES + (64 << 10);

/// The metadata of a call that says for which node it is meant: `<fleet>/<node id>`. Without it any node
/// answers.
pub const CALL_TO_KEY: &str = "peanut-to-bin";

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

/// Whether this has the form of W3C's trace context, version 00: `00-<32 hex>-<16 hex>-<2 hex>`.
pub fn is_traceparent(text: &[u8]) -> bool {
    let is_hex = |part: &[u8]| part.iter().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(byte));
    let lengths = [2, 32, 16, 2];
    let mut parts = text.split(|byte| *byte == b'-');
    text.len() == 55
        && lengths.iter().all(|length| parts.next().is_some_and(|part| part.len() == *length && is_hex(part)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_trace_context_is_told() {
        let good = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        assert!(is_traceparent(good.as_bytes()));
        for bad in [
            "",
            "00-4bf92f-00f067aa0ba902b7-01",
            &good.replace('4', "X"),
            &format!("{good}-x"),
            &good.replace('1', "\n"),
        ] {
            assert!(!is_traceparent(bad.as_bytes()), "{bad}");
        }
    }
}
