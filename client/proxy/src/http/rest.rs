//! What is left of a request's body when it is answered.
//!
//! An answer may come before the body has been read, as where a caller has no right. Most clients send all of
//! the body first, and find the connection gone with the answer in it, or send their next request behind what
//! was not read. So the rest is read and let go of; where it is too much, or nobody knows whether it will
//! come, the answer says that the connection ends (RFC 9112, 9.6).

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::Request;
use axum::http::header::{CONNECTION, EXPECT};
use axum::http::{HeaderValue, Version};
use axum::middleware::Next;
use axum::response::Response;
use http_body::{Body as _, Frame, SizeHint};
use http_body_util::BodyExt as _;
use parking_lot::Mutex;
use tokio::time::timeout;

/// So much of a body is let go of, and for so long it is waited for.
const MOST: usize = 64 << 20;
const WITHIN: Duration = Duration::from_secs(5);

/// Answers when the body of a request has been read, by whoever serves it or here.
pub(super) async fn read_all(request: Request, next: Next) -> Response {
    // A body that waits for a word of the server has not been sent.
    let is_awaited = request.headers().contains_key(EXPECT);
    let is_old = request.version() < Version::HTTP_11;
    let (parts, body) = request.into_parts();
    if body.is_end_stream() {
        return next.run(Request::from_parts(parts, body)).await;
    }
    let mut rest = Shared(Arc::new(Mutex::new(body)));
    let mut response = next.run(Request::from_parts(parts, Body::new(rest.clone()))).await;
    let is_read = rest.is_end_stream() || !is_awaited && timeout(WITHIN, rest.let_go()).await == Ok(true);
    if !is_read && !is_old {
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    }
    response
}

/// A body that may be read on by another.
#[derive(Clone)]
struct Shared(Arc<Mutex<Body>>);

impl Shared {
    /// Reads what is left; `false`: that is too much, or broken.
    async fn let_go(&mut self) -> bool {
        let mut length = 0;
        while let Some(frame) = self.frame().await {
            let Ok(frame) = frame else { return false };
            length += frame.data_ref().map_or(0, Bytes::len);
            if length > MOST {
                return false;
            }
        }
        true
    }
}

impl http_body::Body for Shared {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut *self.0.lock()).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.0.lock().is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.0.lock().size_hint()
    }
}
