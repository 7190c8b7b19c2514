//! The trace that a caller belongs to, handed to the client with each of its gets.

use axum::http::HeaderMap;
use peanut_proto::limits::is_traceparent;
use tokio::task_local;

task_local! {
    static TRACEPARENT: Option<String>;
}

/// The trace that a request's headers name.
pub(crate) fn traceparent(headers: &HeaderMap) -> Option<String> {
    let value = headers.get("traceparent")?.as_bytes();
    is_traceparent(value).then(|| String::from_utf8_lossy(value).into_owned())
}

/// Runs a call that belongs to a trace, or to none.
pub(crate) async fn within<F: Future>(traceparent: Option<String>, call: F) -> F::Output {
    TRACEPARENT.scope(traceparent, call).await
}

/// The trace of the call that this task runs: for
/// [`ClientBuilder::trace_context`](peanut_client::ClientBuilder::trace_context) of the client that the proxy
/// is given.
///
/// ```
/// let client = peanut_client::Client::builder().trace_context(peanut_proxy::trace_context);
/// ```
pub fn trace_context() -> Option<String> {
    TRACEPARENT.try_with(Clone::clone).ok().flatten()
}
