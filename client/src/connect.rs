//! How connections to a node are made: where, with which certificates, and with which token.

use std::net::IpAddr;
use std::time::Duration;

use peanut_proto::limits::CALL_TO_KEY;
use tonic::metadata::{Binary, MetadataValue};
use tonic::transport::{Channel, Endpoint};

use crate::config::Config;
use crate::connection::ConnectionTask;
use crate::tls::NodeConnector;
use crate::token::Token;

/// HTTP/2 pings on a connection that hears nothing, so that one which died silently is noticed.
const KEEPALIVE_EVERY: Duration = Duration::from_secs(10);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(5);
/// How much a node may send ahead of what this side has read.
const STREAM_WINDOW_BYTES: u32 = 1 << 20;
const CONNECTION_WINDOW_BYTES: u32 = 2 << 20;
/// The longest HTTP/2 frame that a node may send: an answer frame of a lane, a little longer than its piece
/// of a value, in one.
const HTTP_FRAME_BYTES: u32 = 128 << 10;

/// Makes connections to one node.
#[derive(Debug)]
pub(crate) struct Connector {
    endpoint: Endpoint,
    token: Option<Token>,
    /// For whom calls are meant.
    to: Option<MetadataValue<Binary>>,
    tls: Option<NodeConnector>,
}

impl Connector {
    /// # Errors
    /// Why the node cannot be connected to, ever.
    pub(crate) fn new(id: &str, addr: &str, config: &Config) -> Result<Self, String> {
        let endpoint = Endpoint::from_shared(format!("http://{addr}"));
        let endpoint = endpoint.map_err(|_| format!("`{addr}` is not an address"))?;
        let host = endpoint.uri().host().unwrap_or_default().to_owned();
        if config.token.is_some() && !config.is_tls() && !is_loopback(&host) {
            return Err(format!("the token would go to {addr} for everybody to read; use TLS"));
        }
        let to =
            config.fleet.as_ref().map(|fleet| MetadataValue::from_bytes(format!("{fleet}/{id}").as_bytes()));
        Ok(Connector {
            endpoint: tuned(endpoint, config),
            token: config.token.clone(),
            to,
            tls: config.tls.as_ref().map(|tls| tls.to_node(id, addr, &host)).transpose()?,
        })
    }

    /// A call to the node, which answers it only if it is the one that is meant, and lets it in by the token.
    pub(crate) fn request<T>(&self, message: T) -> tonic::Request<T> {
        let mut request = tonic::Request::new(message);
        if let Some(token) = &self.token {
            token.show(request.metadata_mut());
        }
        if let Some(to) = &self.to {
            request.metadata_mut().insert_bin(CALL_TO_KEY, to.clone());
        }
        request
    }

    /// A connection that is made when it is first used, and again when it is lost.
    pub(crate) fn channel(&self, task: ConnectionTask) -> Channel {
        let endpoint = self.endpoint.clone().executor(task);
        if let Some(tls) = &self.tls {
            return tls.channel(&endpoint);
        }
        #[cfg(feature = "simulation")]
        if peanut_proto::machine::is_simulated() {
            return endpoint.connect_with_connector_lazy(tower::service_fn(
                |to: tonic::codegen::http::Uri| async move {
                    let to = to.authority().map(ToString::to_string).unwrap_or_default();
                    peanut_proto::machine::connect(&to).await.map(hyper_util::rt::TokioIo::new)
                },
            ));
        }
        endpoint.connect_lazy()
    }
}

fn is_loopback(host: &str) -> bool {
    let ip: Option<IpAddr> = host.trim_start_matches('[').trim_end_matches(']').parse().ok();
    host == "localhost" || ip.is_some_and(|ip| ip.is_loopback())
}

fn tuned(endpoint: Endpoint, config: &Config) -> Endpoint {
    endpoint
        .connect_timeout(config.connect_timeout)
        .tcp_nodelay(true)
        .http2_keep_alive_interval(KEEPALIVE_EVERY)
        .keep_alive_timeout(KEEPALIVE_TIMEOUT)
        .keep_alive_while_idle(true)
        .max_frame_size(HTTP_FRAME_BYTES)
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
}
