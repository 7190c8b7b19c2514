//! The trace that a caller belongs to, handed to the client with each of its gets.

use axum::http::HeaderMap;
use peanut_edge::traces;
use peanut_proto::limits::is_traceparent;
use tokio::task_local;
use tracing::{Instrument as _, Span};

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
    let span = tracing::debug_span!("request");
    traceparent.iter().for_each(|caller| traces::belongs_to(&span, caller));
    TRACEPARENT.scope(traceparent, call).instrument(span).await
}

/// The trace of the call that this task runs, as that of its own span where spans are sent: for
/// [`ClientBuilder::trace_context`](peanut_client::ClientBuilder::trace_context) of the client that the proxy
/// is given.
///
/// ```
/// let client = peanut_client::Client::builder().trace_context(peanut_proxy::trace_context);
/// ```
pub fn trace_context() -> Option<String> {
    let of_caller = || TRACEPARENT.try_with(Clone::clone).ok().flatten();
    traces::traceparent(&Span::current()).or_else(of_caller)
}
