//! Failures that a server speaks of, told apart from those of the transport.
//!
//! A dead connection can arrive as nearly any status code, `Unknown` and `Cancelled` included. So a
//! status that a server has made carries its [`ErrorCode`] as metadata, and a status without it came
//! from below.

use tonic::metadata::{MetadataMap, MetadataValue};
use tonic::{Code, Status};

use crate::v1::ErrorCode;

/// The metadata key that marks a status made by a Peanut server.
pub const METADATA_KEY: &str = "peanut-error";

/// The status that tells a unary caller of a failure.
pub fn to_status(code: ErrorCode, message: impl Into<String>) -> Status {
    let mut metadata = MetadataMap::with_capacity(1);
    metadata.insert(METADATA_KEY, MetadataValue::from_static(code.as_str_name()));
    Status::with_metadata(grpc_code(code), message, metadata)
}

/// What the server said had failed; `None` where the status is the transport's.
pub fn from_status(status: &Status) -> Option<ErrorCode> {
    let name = status.metadata().get(METADATA_KEY)?.to_str().ok()?;
    Some(ErrorCode::from_str_name(name).unwrap_or(ErrorCode::Unspecified))
}

fn grpc_code(code: ErrorCode) -> Code {
    match code {
        ErrorCode::InvalidRequest => Code::InvalidArgument,
        ErrorCode::UnknownGroup => Code::NotFound,
        ErrorCode::LoaderFailed => Code::Aborted,
        ErrorCode::LoadTimedOut | ErrorCode::DeadlinePassed => Code::DeadlineExceeded,
        ErrorCode::Overloaded | ErrorCode::ValueTooLarge => Code::ResourceExhausted,
        ErrorCode::ShuttingDown | ErrorCode::NoLoader | ErrorCode::RingUnknown => Code::Unavailable,
        ErrorCode::WrongNode => Code::FailedPrecondition,
        ErrorCode::Unauthenticated => Code::Unauthenticated,
        ErrorCode::PermissionDenied => Code::PermissionDenied,
        ErrorCode::InternalError | ErrorCode::Unspecified => Code::Internal,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_servers_status_is_told_from_the_transports() {
        let status = to_status(ErrorCode::LoaderFailed, "no such table");
        assert_eq!((status.code(), status.message()), (Code::Aborted, "no such table"));
        assert_eq!(from_status(&status), Some(ErrorCode::LoaderFailed));
        assert_eq!(from_status(&Status::aborted("reset by peer")), None);
    }
}
