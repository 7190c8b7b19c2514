//! What ends a server, or keeps it from being built. A [`Failure`](peanut_edge::Failure) answers one
//! operation.

use std::fmt;

use peanut_edge::rights::Misconfigured;
use peanut_proto::causes::write_causes;

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
    /// Another process has been started as this node, which is told of nothing more and so answers nothing
    /// more.
    Replaced,
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
        Error {
            kind: ErrorKind::Transport,
            setting: None,
            message: message.to_owned(),
            source: Some(source.into()),
        }
    }

    pub(crate) fn replaced(node: &str) -> Self {
        let message = format!(
            "another process has been started as node `{node}`, and this one is told of nothing more; give one of the two another node_id"
        );
        Error { kind: ErrorKind::Replaced, ..Error::configuration(message) }
    }

    /// What the error is about.
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }
}

impl From<Misconfigured> for Error {
    fn from(error: Misconfigured) -> Self {
        Error { setting: error.setting, ..Error::configuration(error.message) }
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
