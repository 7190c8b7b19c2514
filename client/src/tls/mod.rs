//! TLS to nodes: who is trusted, by which name a node is known, and what this client shows of itself.

#[cfg_attr(not(feature = "tls"), path = "absent.rs")]
mod connect;

use std::path::PathBuf;

use peanut_proto::tls::TlsFiles;

pub(crate) use connect::{NodeConnector, ReadTls};

/// TLS to the nodes. Files are PEM, and read again when they change; connections that stand keep what they
/// were made with. In a build without the feature `tls` a client with it is refused.
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
}
