//! Connections, from the listener to what serves them.

use std::future::Future;
use std::time::Duration;

use axum::Router;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use peanut_proto::limits::MAX_MESSAGE_BYTES;
use peanut_proto::peanutcachepb::peanut_cache_server::PeanutCacheServer;
use peanut_proto::v1::peanut_server::PeanutServer;
use tokio::net::{TcpListener, TcpStream};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::transport::server::TcpIncoming;

use crate::grpc::Grpc;

/// After a connection could not be accepted, for want of file descriptors say.
const PAUSE: Duration = Duration::from_millis(50);
/// How long the headers of a request may take.
const HEADERS_WITHIN: Duration = Duration::from_secs(5);

/// Accepts connections until `stop`, each served by a task of its own.
pub(crate) async fn accept<F>(
    listener: TcpListener,
    stop: CancellationToken,
    tasks: TaskTracker,
    serve: impl Fn(TcpStream) -> F,
) where
    F: Future<Output = ()> + Send + 'static,
{
    while let Some(accepted) = stop.run_until_cancelled(listener.accept()).await {
        match accepted {
            Ok((stream, _)) => {
                // Answers are written whole; nothing is gained by waiting for more.
                let _ = stream.set_nodelay(true);
                tasks.spawn(serve(stream));
            }
            Err(error) => {
                tracing::warn!(%error, "a connection cannot be accepted");
                sleep(PAUSE).await;
            }
        }
    }
}

/// Serves HTTP on a connection, until it ends or, after `stop`, until what it has asked is answered.
pub(crate) async fn serve_http(stream: TcpStream, router: Router, stop: CancellationToken) {
    let served = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADERS_WITHIN)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
    tokio::pin!(served);
    // Whatever is wrong is the caller's to see.
    tokio::select! {
        _ = &mut served => {}
        () = stop.cancelled() => {
            served.as_mut().graceful_shutdown();
            let _ = served.await;
        }
    }
}

/// Serves gRPC on a listener, until `stop` and what has been asked by then is answered.
///
/// # Errors
/// As the transport has them.
pub(crate) async fn serve_grpc(
    listener: TcpListener,
    grpc: Grpc,
    stop: CancellationToken,
) -> Result<(), tonic::transport::Error> {
    let peanut = PeanutServer::new(grpc.clone())
        .max_decoding_message_size(MAX_MESSAGE_BYTES)
        .max_encoding_message_size(MAX_MESSAGE_BYTES);
    let original = PeanutCacheServer::new(grpc).max_encoding_message_size(MAX_MESSAGE_BYTES);
    let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
    tonic::transport::Server::builder()
        .add_service(peanut)
        .add_service(original)
        .serve_with_incoming_shutdown(incoming, stop.cancelled_owned())
        .await
}
