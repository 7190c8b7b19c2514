//! The two kinds of trouble: a [`Failure`] answers one operation, an [`Error`] ends the server.

use std::fmt;
use std::sync::Arc;

use peanut_proto::causes::write_causes;
use peanut_proto::v1::ErrorCode;

const MAX_MESSAGE_BYTES: usize = 1024;

/// Why one operation failed, in words for its caller. Cheap to clone: all who wait share it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Failure {
    pub(crate) code: ErrorCode,
    pub(crate) message: Arc<str>,
}

impl Failure {
    /// A failure with a message of at most about a kilobyte: it may travel in a header, and one that is
    /// too long for headers would arrive as a fault of the transport.
    pub(crate) fn new(code: ErrorCode, message: impl AsRef<str>) -> Self {
        let message = message.as_ref();
        if message.len() <= MAX_MESSAGE_BYTES {
            return Failure { code, message: message.into() };
        }
        let cut = message.floor_char_boundary(MAX_MESSAGE_BYTES);
        Failure { code, message: format!("{}…", &message[..cut]).into() }
    }
}

/// Why a server could not be built, or stopped running.
#[derive(Debug)]
pub struct Error {
    kind: ErrorKind,
    /// What is to be changed, where it is one setting.
    setting: Option<&'static str>,
    message: String,
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

/// What an [`Error`] is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The server was told something that cannot be; it has not started.
    Configuration,
    /// The sockets or the transport failed.
    Transport,
}

impl Error {
    pub(crate) fn configuration(message: impl Into<String>) -> Self {
        Error { kind: ErrorKind::Configuration, setting: None, message: message.into(), source: None }
    }

    /// One setting cannot be as it is.
    pub(crate) fn of_setting(setting: &'static str, message: impl Into<String>) -> Self {
        Error { setting: Some(setting), ..Error::configuration(message) }
    }

    /// The setting that it is about, and the rest of the message.
    #[cfg(feature = "cli")]
    pub(crate) fn by_setting(&self) -> (Option<&'static str>, &str) {
        (self.setting, &self.message)
    }

    pub(crate) fn transport(
        message: &str,
        source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> Self {
        let source = source.into();
        let message = format!("{message}: {source}");
        Error { kind: ErrorKind::Transport, setting: None, message, source: Some(source) }
    }

    /// What the error is about.
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(setting) = self.setting {
            write!(f, "{setting}: ")?;
        }
        f.write_str(&self.message)?;
        write_causes(self, f)
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.source.as_ref().map(|source| &**source as _)
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
