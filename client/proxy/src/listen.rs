//! Connections, from a listener to what serves them.

use std::future::Future;
use std::sync::Arc;

use peanut_edge::bodies::Budgeted;
use peanut_edge::connections::{Connection, ConnectionLimiter, Handshake, Listener, Services, accept};
use peanut_proto::limits::MAX_MESSAGE_BYTES;
use peanut_proto::peanutcachepb::peanut_cache_server::PeanutCacheServer;
use peanut_proto::v1::peanut_server::PeanutServer;
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::{AbortOnDropHandle, TaskTracker};
use tonic::service::interceptor::InterceptedService;

use crate::grpc::Grpc;

/// Streams that one connection may have open at once.
const MAX_STREAMS: u32 = 256;
/// Bytes of a message that is never long.
const SMALL_MESSAGE_BYTES: usize = 4 << 10;

/// The tasks of a proxy. They end with it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Tasks {
    all: TaskTracker,
    cut: CancellationToken,
}

impl Tasks {
    pub(crate) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let cut = self.cut.clone();
        self.all.spawn(async move { cut.run_until_cancelled(task).await });
    }

    /// Waits until all have ended.
    pub(crate) async fn ended(&self) {
        self.all.close();
        self.all.wait().await;
    }

    /// Ends all that are there when it is dropped.
    pub(crate) fn cut_on_drop(&self) -> DropGuard {
        self.cut.clone().drop_guard()
    }
}

/// A listener, and how its connections begin.
#[derive(Debug)]
pub(crate) struct Port {
    pub(crate) listener: Listener,
    pub(crate) limiter: Arc<ConnectionLimiter>,
    pub(crate) handshake: Handshake,
}

impl Port {
    /// Serves each connection in a task of its own, until `stop`.
    pub(crate) async fn serve<F>(
        self,
        stop: CancellationToken,
        tasks: Tasks,
        serve: impl Fn(Connection) -> F + Clone + Send + 'static,
    ) where
        F: Future<Output = ()> + Send + 'static,
    {
        let Port { listener, limiter, handshake } = self;
        let _watching = AbortOnDropHandle::new(tokio::spawn(limiter.clone().watch(handshake.clone())));
        accept(&listener, &limiter, &stop, |(stream, permit)| {
            let (handshake, serve, stop) = (handshake.clone(), serve.clone(), stop.clone());
            tasks.spawn(async move {
                let Ok(stream) = stream.bind() else { return };
                let handshake = stop.run_until_cancelled(handshake.run(stream, permit));
                if let Some(Some(connection)) = handshake.await {
                    serve(connection).await;
                }
            });
            true
        })
        .await;
    }
}

/// The gRPC services: the two of a node that need no ring, health, and reflection.
///
/// # Errors
/// Where the descriptions of the services cannot be read.
pub(crate) fn services(
    grpc: &Grpc,
    health: tonic_health::pb::health_server::HealthServer<impl tonic_health::pb::health_server::Health>,
) -> Result<Services, tonic_reflection::server::Error> {
    let reflection = tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(peanut_proto::FILE_DESCRIPTOR_SET)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        .build_v1()?
        .max_decoding_message_size(SMALL_MESSAGE_BYTES);
    let admit = || {
        let grpc = grpc.clone();
        move |request: tonic::Request<()>| grpc.admit(request)
    };
    let peanut = PeanutServer::new(grpc.clone())
        .max_decoding_message_size(MAX_MESSAGE_BYTES)
        .max_encoding_message_size(MAX_MESSAGE_BYTES);
    let original = PeanutCacheServer::new(grpc.clone())
        .max_decoding_message_size(SMALL_MESSAGE_BYTES)
        .max_encoding_message_size(MAX_MESSAGE_BYTES);
    Ok(tonic::transport::Server::builder()
        .max_concurrent_streams(MAX_STREAMS)
        .layer(peanut_edge::connections::CountStreams)
        .add_service(health.max_decoding_message_size(SMALL_MESSAGE_BYTES))
        .add_service(InterceptedService::new(reflection, admit()))
        .add_service(InterceptedService::new(Budgeted(peanut), admit()))
        .add_service(InterceptedService::new(Budgeted(original), admit())))
}
