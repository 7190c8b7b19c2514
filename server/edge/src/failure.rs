//! What answers one operation that has come to nothing.

use std::sync::Arc;

use peanut_proto::v1::ErrorCode;

const MAX_MESSAGE_BYTES: usize = 1024;

/// Why one operation failed, in words for its caller. Cheap to clone: all who wait share it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// What it is about.
    pub code: ErrorCode,
    /// In words.
    pub message: Arc<str>,
}

impl Failure {
    /// A failure with a message of at most about a kilobyte: it may travel in a header, and one that is
    /// too long for headers would arrive as a fault of the transport.
    pub fn new(code: ErrorCode, message: impl AsRef<str>) -> Self {
        let message = message.as_ref();
        if message.len() <= MAX_MESSAGE_BYTES {
            return Failure { code, message: message.into() };
        }
        let cut = message.floor_char_boundary(MAX_MESSAGE_BYTES);
        Failure { code, message: format!("{}…", &message[..cut]).into() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_message_is_cut_between_characters() {
        let failure = Failure::new(ErrorCode::LoaderFailed, format!("a{}", "ü".repeat(100_000)));
        assert!(failure.message.len() <= MAX_MESSAGE_BYTES + 3 && failure.message.ends_with("ü…"));
        assert_eq!(&*Failure::new(ErrorCode::LoaderFailed, "short").message, "short");
    }
}
