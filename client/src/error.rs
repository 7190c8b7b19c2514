//! The one error that callers see.

use std::fmt;
use std::sync::Arc;

use peanut_proto::causes::write_causes;
use peanut_proto::v1::ErrorCode;

/// Why an operation failed. Cheap to clone.
#[derive(Clone)]
pub struct Error(Arc<Inner>);

struct Inner {
    kind: ErrorKind,
    node: Option<String>,
    message: String,
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

/// What an [`Error`] is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The request breaks a rule or a limit, and always will.
    InvalidArgument,
    /// The node serves no group of that name.
    UnknownGroup,
    /// The loader failed or took too long. It was asked once; asking another node would only ask it
    /// again.
    Loader,
    /// The value is over the limit for values.
    TooLarge,
    /// Too much is in progress; nothing was done.
    Overloaded,
    /// The deadline passed. The server may go on with a load and keep what it brings.
    DeadlineExceeded,
    /// No node that could answer was reached.
    Unavailable,
    /// The node wants a token and this client has none, or one that it does not know.
    Unauthenticated,
    /// The token has no right to this.
    PermissionDenied,
    /// The client was told something that cannot be.
    Configuration,
    /// A value could not be turned into bytes, or bytes into a value.
    Codec,
    /// The other side does not speak as it should.
    Protocol,
}

impl Error {
    pub(crate) fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Error(Arc::new(Inner { kind, node: None, message: message.into(), source: None }))
    }

    pub(crate) fn at(kind: ErrorKind, node: &str, message: impl Into<String>) -> Self {
        Error(Arc::new(Inner { kind, node: Some(node.to_owned()), message: message.into(), source: None }))
    }

    pub(crate) fn caused_by(
        kind: ErrorKind,
        node: Option<&str>,
        message: impl Into<String>,
        source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> Self {
        let (node, message, source) = (node.map(str::to_owned), message.into(), Some(source.into()));
        Error(Arc::new(Inner { kind, node, message, source }))
    }

    /// What the error is about.
    pub fn kind(&self) -> ErrorKind {
        self.0.kind
    }

    /// The id of the node that was asked last, where one was.
    pub fn node(&self) -> Option<&str> {
        self.0.node.as_deref()
    }

    pub(crate) fn message(&self) -> &str {
        &self.0.message
    }

    /// Whether the same call may succeed later without anyone having mended anything.
    pub fn is_retryable(&self) -> bool {
        matches!(self.0.kind, ErrorKind::Overloaded | ErrorKind::DeadlineExceeded | ErrorKind::Unavailable)
    }
}

impl From<ErrorCode> for ErrorKind {
    fn from(code: ErrorCode) -> Self {
        match code {
            ErrorCode::InvalidRequest => ErrorKind::InvalidArgument,
            ErrorCode::UnknownGroup => ErrorKind::UnknownGroup,
            ErrorCode::LoaderFailed | ErrorCode::LoadTimedOut => ErrorKind::Loader,
            ErrorCode::ValueTooLarge => ErrorKind::TooLarge,
            ErrorCode::Overloaded => ErrorKind::Overloaded,
            ErrorCode::DeadlinePassed => ErrorKind::DeadlineExceeded,
            ErrorCode::ShuttingDown | ErrorCode::WrongNode | ErrorCode::NoLoader | ErrorCode::RingUnknown => {
                ErrorKind::Unavailable
            }
            ErrorCode::Unauthenticated => ErrorKind::Unauthenticated,
            ErrorCode::PermissionDenied => ErrorKind::PermissionDenied,
            ErrorCode::InternalError | ErrorCode::Unspecified => ErrorKind::Protocol,
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0.node {
            Some(node) => write!(f, "node {node}: {}", self.0.message)?,
            None => f.write_str(&self.0.message)?,
        }
        write_causes(self, f)
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Error")
            .field("kind", &self.0.kind)
            .field("node", &self.0.node)
            .field("message", &self.0.message)
            .field("source", &self.0.source)
            .finish()
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.0.source.as_ref().map(|source| &**source as _)
    }
}
