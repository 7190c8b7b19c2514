//! Connections with TLS.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use hyper_util::rt::TokioIo;
use peanut_proto::tls::Reloading;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio::time::Instant;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tonic::transport::{Channel, Endpoint};
use tower::Service;

use super::{NodeName, Tls};
use crate::error::{Error, ErrorKind};

impl Tls {
    pub(crate) fn build(self) -> Result<ReadTls, Error> {
        let refuse = |why: String| Error::new(ErrorKind::Configuration, format!("tls: {why}"));
        if let NodeName::Fixed(name) = &self.name {
            ServerName::try_from(name.as_str()).map_err(|e| refuse(format!("`{name}`: {e}")))?;
        }
        let config = Reloading::new(self.files, |files| files.client(b"h2"), Instant::now());
        let config = config.map_err(|error| refuse(error.to_string()))?;
        Ok(ReadTls { config: Arc::new(config), name: self.name })
    }
}

/// [`Tls`] whose files were read.
#[derive(Clone, Debug)]
pub(crate) struct ReadTls {
    config: Arc<Reloading<ClientConfig>>,
    name: NodeName,
}

impl ReadTls {
    /// # Errors
    /// Where the node's name is none that a certificate could have.
    pub(crate) fn to_node(&self, id: &str, addr: &str, host: &str) -> Result<NodeConnector, String> {
        let name = match &self.name {
            NodeName::Address => host.trim_start_matches('[').trim_end_matches(']'),
            NodeName::Id => id,
            NodeName::Fixed(name) => name,
        };
        let name = ServerName::try_from(name.to_owned())
            .map_err(|error| format!("no certificate can have the name `{name}`: {error}"))?;
        Ok(NodeConnector { config: self.config.clone(), name, addr: addr.into() })
    }
}

/// Connects to one node.
#[derive(Clone, Debug)]
pub(crate) struct NodeConnector {
    config: Arc<Reloading<ClientConfig>>,
    name: ServerName<'static>,
    addr: Arc<str>,
}

impl NodeConnector {
    /// A connection that is made when it is first used, and again when it is lost.
    pub(crate) fn channel(&self, endpoint: &Endpoint) -> Channel {
        endpoint.connect_with_connector_lazy(self.clone())
    }
}

type Connecting = Pin<Box<dyn Future<Output = io::Result<TokioIo<TlsStream<TcpStream>>>> + Send>>;

impl<T> Service<T> for NodeConnector {
    type Response = TokioIo<TlsStream<TcpStream>>;
    type Error = io::Error;
    type Future = Connecting;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: T) -> Connecting {
        let NodeConnector { config, name, addr } = self.clone();
        Box::pin(async move {
            let stream = TcpStream::connect(&*addr).await?;
            stream.set_nodelay(true)?;
            let connector = TlsConnector::from(config.current(Instant::now()));
            Ok(TokioIo::new(connector.connect(name, stream).await?))
        })
    }
}
