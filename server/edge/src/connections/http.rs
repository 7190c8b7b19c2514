//! HTTP/1.1 on one connection.

use std::time::Duration;

use axum::body::Body;
use axum::extract::Request;
use axum::middleware::{Next, from_fn};
use axum::response::Response;
use axum::{Extension, Router};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio_util::sync::CancellationToken;

use super::{Connection, Peer, Progressing};
use crate::body::holding;

/// How long a connection may wait for the end of the next headers. It counts while nothing comes as well, so
/// it is as long as one may be idle; strangers have less time for their first call.
const HEADERS_WITHIN: Duration = Duration::from_secs(300);

/// Serves a connection until it ends or is cut off or, when it is to retire or at `stop`, until what it has
/// asked is answered. One whose peer reads nothing of its answers for a minute ends. Requests have its
/// [`Peer`] as an extension.
pub async fn serve_http(connection: Connection, router: Router, stop: CancellationToken) {
    let peer = connection.peer().clone();
    let presence = peer.presence().clone();
    let router = router.layer(from_fn(count)).layer(Extension(peer));
    let served = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADERS_WITHIN)
        .serve_connection(TokioIo::new(Progressing::new(connection)), TowerToHyperService::new(router));
    tokio::pin!(served);
    // Whatever is wrong is the caller's to see.
    tokio::select! {
        _ = &mut served => return,
        () = presence.cut().cancelled() => return,
        () = stop.cancelled() => {}
        () = presence.retiring().cancelled() => {}
    }
    served.as_mut().graceful_shutdown();
    let _ = presence.cut().run_until_cancelled(served).await;
}

/// Keeps a connection from being idle while a request of it is answered, until all of the answer is sent.
async fn count(Extension(peer): Extension<Peer>, request: Request, next: Next) -> Response {
    let stream = peer.presence().enter();
    let response = next.run(request).await;
    response.map(|body| Body::new(holding(tonic::body::Body::new(body), stream)))
}
