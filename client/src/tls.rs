//! TLS to nodes: who is trusted, by which name a node is known, and what this client shows of itself.

use std::io;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use hyper_util::rt::TokioIo;
use peanut_proto::tls::{Reloading, TlsFiles};
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio::time::Instant;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tower::Service;

use crate::error::{Error, ErrorKind};

/// TLS to the nodes. Files are PEM, and read again when they change; connections that stand keep what they
/// were made with.
///
/// ```
/// use peanut_client::Tls;
///
/// let tls = Tls::new("ca.pem").certificate("client.pem", "client.key");
/// # drop(tls);
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tls {
    files: TlsFiles,
    name: NodeName,
}

/// The name that a node's certificate is to have.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
enum NodeName {
    #[default]
    Address,
    Id,
    Fixed(String),
}

impl Tls {
    /// Trusts nodes whose certificate comes from an authority in this file, and has the host by which the
    /// node is advertised, a name or an IP address.
    pub fn new(ca: impl Into<PathBuf>) -> Self {
        let files = TlsFiles { ca: Some(ca.into()), ..TlsFiles::default() };
        Tls { files, name: NodeName::Address }
    }

    /// Shows this certificate to nodes that want one.
    #[must_use]
    pub fn certificate(mut self, cert: impl Into<PathBuf>, key: impl Into<PathBuf>) -> Self {
        (self.files.cert, self.files.key) = (Some(cert.into()), Some(key.into()));
        self
    }

    /// A node's certificate is to have its id, so that no node can pass for another. Ids are to be like host
    /// names.
    #[must_use]
    pub fn known_by_id(mut self) -> Self {
        self.name = NodeName::Id;
        self
    }

    /// All nodes' certificates have this name.
    #[must_use]
    pub fn known_by(mut self, name: impl Into<String>) -> Self {
        self.name = NodeName::Fixed(name.into());
        self
    }

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
