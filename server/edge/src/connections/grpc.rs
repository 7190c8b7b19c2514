//! gRPC on one connection.

use std::io;
use std::sync::Arc;

use futures_util::StreamExt as _;
use futures_util::stream::{once, pending};
use tokio_util::sync::CancellationToken;
use tonic::transport::server::Router;
use tower::layer::util::{Identity, Stack};

use super::{Connection, CountStreams, Presence};

/// All services, with the streams of each connection counted.
pub type Services = Router<Stack<CountStreams, Identity>>;

/// Serves a connection to its end. When it is to retire, or at `stop`, its client is told so (GOAWAY), and
/// what it asks until it has heard that is answered.
pub async fn serve_grpc(connection: Connection, services: Services, stop: CancellationToken) {
    let presence = connection.peer().presence().clone();
    // tonic serves it in a task of its own, which ends with this one.
    let _cut = CutOnDrop(presence.clone());
    let ending = async {
        tokio::select! {
            biased;
            () = stop.cancelled() => {}
            () = presence.retiring().cancelled() => {}
        }
    };
    let alone = once(std::future::ready(Ok::<_, io::Error>(connection))).chain(pending());
    if let Err(error) = services.serve_with_incoming_shutdown(alone, ending).await {
        tracing::debug!(error = format_args!("{error:#}"), "a connection could not be served");
    }
}

/// Cuts a connection off with the task that serves it.
struct CutOnDrop(Arc<Presence>);

impl Drop for CutOnDrop {
    fn drop(&mut self) {
        self.0.cut_off();
    }
}
