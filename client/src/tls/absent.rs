//! What takes the place of connections with TLS in a build without it: nobody is given a client with
//! certificates.

use tonic::transport::{Channel, Endpoint};

use super::Tls;
use crate::error::{Error, ErrorKind};

impl Tls {
    pub(crate) fn build(self) -> Result<ReadTls, Error> {
        // Other crates of the program may have TLS.
        let Tls { files, name } = self;
        let why = format!("tls: this build knows no TLS (feature `tls`), for {files:?} and {name:?}");
        Err(Error::new(ErrorKind::Configuration, why))
    }
}

/// [`Tls`] whose files were read.
#[derive(Clone, Debug)]
pub(crate) enum ReadTls {}

impl ReadTls {
    /// # Errors
    /// Where the node's name is none that a certificate could have.
    pub(crate) fn to_node(&self, _: &str, _: &str, _: &str) -> Result<NodeConnector, String> {
        match *self {}
    }
}

/// Connects to one node.
#[derive(Clone, Debug)]
pub(crate) enum NodeConnector {}

impl NodeConnector {
    /// A connection that is made when it is first used.
    pub(crate) fn channel(&self, _: &Endpoint) -> Channel {
        match *self {}
    }
}
