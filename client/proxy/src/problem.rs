//! What went wrong, as a caller is told: a status, and a body of `application/problem+json` (RFC 9457).

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use peanut_client::{Error, ErrorKind};
use peanut_edge::Failure;
use peanut_proto::v1::ErrorCode;
use serde::Serialize;

use crate::fetch::Shortage;

/// An answer that is none.
#[derive(Debug)]
pub(crate) struct Problem {
    status: StatusCode,
    detail: String,
    headers: Vec<(header::HeaderName, &'static str)>,
}

/// As it is written.
#[derive(Serialize)]
pub(crate) struct Body {
    title: &'static str,
    status: u16,
    detail: String,
}

impl Problem {
    fn new(status: StatusCode, detail: impl Into<String>) -> Self {
        Problem { status, detail: detail.into(), headers: Vec::new() }
    }

    pub(crate) fn bad_request(detail: impl Into<String>) -> Self {
        Problem::new(StatusCode::BAD_REQUEST, detail)
    }

    pub(crate) fn forbidden(detail: impl Into<String>) -> Self {
        Problem::new(StatusCode::FORBIDDEN, detail)
    }

    pub(crate) fn not_found(detail: impl Into<String>) -> Self {
        Problem::new(StatusCode::NOT_FOUND, detail)
    }

    pub(crate) fn too_long(detail: impl Into<String>) -> Self {
        Problem::new(StatusCode::PAYLOAD_TOO_LARGE, detail)
    }

    pub(crate) fn late(detail: impl Into<String>) -> Self {
        Problem::new(StatusCode::REQUEST_TIMEOUT, detail)
    }

    pub(crate) fn busy(detail: impl Into<String>) -> Self {
        let headers = vec![(header::RETRY_AFTER, "1")];
        Problem { headers, ..Problem::new(StatusCode::SERVICE_UNAVAILABLE, detail) }
    }

    pub(crate) fn method_not_allowed(allowed: &'static str) -> Self {
        let detail = format!("the methods here are {allowed}");
        let headers = vec![(header::ALLOW, allowed)];
        Problem { headers, ..Problem::new(StatusCode::METHOD_NOT_ALLOWED, detail) }
    }

    /// As one of many answers.
    pub(crate) fn into_body(self) -> Body {
        let title = self.status.canonical_reason().unwrap_or_default();
        Body { title, status: self.status.as_u16(), detail: self.detail }
    }
}

impl From<Failure> for Problem {
    fn from(failure: Failure) -> Self {
        if failure.code == ErrorCode::Unauthenticated {
            // A header each: Chromium does not look for a second scheme behind a comma.
            let schemes = ["Bearer", "Basic realm=\"peanut: a token as the password\""];
            let headers = schemes.map(|scheme| (header::WWW_AUTHENTICATE, scheme)).to_vec();
            return Problem { headers, ..Problem::new(StatusCode::UNAUTHORIZED, &*failure.message) };
        }
        Problem::new(StatusCode::FORBIDDEN, &*failure.message)
    }
}

impl From<Shortage> for Problem {
    fn from(shortage: Shortage) -> Self {
        match shortage {
            Shortage::TooLong => Problem::too_long("the values before are as long as an answer may be"),
            Shortage::NoRoom => Problem::busy(
                "there is no room for so many values now; try again, or ask for fewer keys at once",
            ),
        }
    }
}

impl From<Error> for Problem {
    fn from(error: Error) -> Self {
        let status = match error.kind() {
            ErrorKind::InvalidArgument => StatusCode::BAD_REQUEST,
            ErrorKind::UnknownGroup => StatusCode::NOT_FOUND,
            ErrorKind::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            // The proxy's own token or certificate, not the caller's.
            ErrorKind::Loader | ErrorKind::Unauthenticated => StatusCode::BAD_GATEWAY,
            ErrorKind::Overloaded | ErrorKind::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
            ErrorKind::DeadlineExceeded => StatusCode::GATEWAY_TIMEOUT,
            ErrorKind::PermissionDenied => StatusCode::FORBIDDEN,
            _ => StatusCode::INTERNAL_SERVER_ERROR,
        };
        let retry = error.is_retryable() && status == StatusCode::SERVICE_UNAVAILABLE;
        let headers = retry.then_some((header::RETRY_AFTER, "1")).into_iter().collect();
        Problem { headers, ..Problem::new(status, format!("{error:#}")) }
    }
}

impl IntoResponse for Problem {
    fn into_response(mut self) -> Response {
        let (status, headers) = (self.status, std::mem::take(&mut self.headers));
        let mut response = (status, axum::Json(self.into_body())).into_response();
        let kind = HeaderValue::from_static("application/problem+json");
        response.headers_mut().insert(header::CONTENT_TYPE, kind);
        for (name, value) in headers {
            response.headers_mut().append(name, HeaderValue::from_static(value));
        }
        response
    }
}
