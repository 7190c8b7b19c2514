//! The gRPC services of a server, with the bounds of each.

use std::time::Duration;

use peanut_proto::limits::MAX_MESSAGE_BYTES;
use peanut_proto::peanutcachepb::peanut_cache_server::PeanutCacheServer;
use peanut_proto::v1::admin_server::AdminServer;
use peanut_proto::v1::peanut_server::PeanutServer;
use tonic::service::interceptor::InterceptedService;

use super::PreparedServer;
use crate::connections::{CountStreams, Services};
use crate::error::Error;
use peanut_edge::bodies::Budgeted;

/// Streams that one connection may have open at once; a unary call is one.
const MAX_STREAMS: u32 = 1024;
/// Bytes of a message that is never long.
const SMALL_MESSAGE_BYTES: usize = 4 << 10;
/// How long a unary call may take beside the load that it waits for.
const UNARY_CALL: Duration = Duration::from_secs(30);
/// Bytes of the headers of one request.
const MAX_HEADER_BYTES: u32 = 16 << 10;
/// Streams of one connection that were reset before they were looked at. One that has more is closed
/// (CVE-2023-44487). Of those that are reset because of what the client did (CVE-2025-8671) it may have as
/// many as streams: calls that are refused while their messages are on their way are among them.
const MAX_RESETS: usize = 20;

impl PreparedServer {
    /// All services, and who is admitted to each.
    pub(super) fn services(
        &self,
        health: tonic_health::pb::health_server::HealthServer<impl tonic_health::pb::health_server::Health>,
    ) -> Result<Services, Error> {
        let reflection = || {
            tonic_reflection::server::Builder::configure()
                .register_encoded_file_descriptor_set(peanut_proto::FILE_DESCRIPTOR_SET)
                .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        };
        let reflection_v1 = reflection().build_v1().map_err(|e| Error::transport("reflection", e))?;
        let reflection_v1 = reflection_v1.max_decoding_message_size(SMALL_MESSAGE_BYTES);
        let reflection_v1alpha =
            reflection().build_v1alpha().map_err(|e| Error::transport("reflection", e))?;
        let reflection_v1alpha = reflection_v1alpha.max_decoding_message_size(SMALL_MESSAGE_BYTES);
        let reflected = self.options.reflection;
        let admit = || {
            let node = self.node.clone();
            move |request| node.admit(request)
        };
        let peanut = PeanutServer::new(self.node.clone())
            .max_decoding_message_size(MAX_MESSAGE_BYTES)
            .max_encoding_message_size(MAX_MESSAGE_BYTES);
        let original = PeanutCacheServer::new(self.node.clone())
            .max_decoding_message_size(SMALL_MESSAGE_BYTES)
            .max_encoding_message_size(MAX_MESSAGE_BYTES);
        let admin = AdminServer::new(self.node.clone()).max_decoding_message_size(SMALL_MESSAGE_BYTES);
        let longest_load = self.options.groups.iter().map(|group| group.policy.load_timeout).max();
        Ok(tonic::transport::Server::builder()
            .max_concurrent_streams(MAX_STREAMS)
            .http2_max_header_list_size(MAX_HEADER_BYTES)
            .http2_max_pending_accept_reset_streams(Some(MAX_RESETS))
            .http2_max_local_error_reset_streams(Some(MAX_STREAMS as usize))
            .http2_keepalive_interval(Some(self.options.keepalive))
            .http2_keepalive_timeout(Some(self.options.keepalive))
            // A unary call, from its headers to its answer; a lane is open with its headers.
            .timeout(UNARY_CALL + longest_load.unwrap_or_default())
            .layer(CountStreams)
            .add_service(InterceptedService::new(health.max_decoding_message_size(SMALL_MESSAGE_BYTES), {
                let node = self.node.clone();
                move |request| node.check_address(request)
            }))
            .add_optional_service(reflected.then(|| InterceptedService::new(reflection_v1, admit())))
            .add_optional_service(reflected.then(|| InterceptedService::new(reflection_v1alpha, admit())))
            .add_service(InterceptedService::new(Budgeted(peanut), admit()))
            .add_service(InterceptedService::new(admin, admit()))
            .add_service(InterceptedService::new(Budgeted(original), admit())))
    }
}
