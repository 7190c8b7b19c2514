//! What takes the place of TLS in a build without it: files that name certificates are refused, so there is
//! never anything made of them.

use std::convert::Infallible;
use std::path::Path;

use super::TlsFiles;
use crate::certificate::{Certificate, TlsError};

/// A certificate, and those between it and its authority.
pub type Chain = Vec<Infallible>;
/// What a client uses.
pub type ClientTls = Infallible;

/// What a server uses.
#[derive(Clone, Debug)]
pub enum ServerTls {}

impl ServerTls {
    /// The server's own certificate.
    pub fn own(&self) -> &Certificate {
        match *self {}
    }

    /// Verifies a client's certificates.
    ///
    /// # Errors
    /// Why it would not be let in.
    pub fn verify(&self, _: &[Infallible]) -> Result<(), TlsError> {
        match *self {}
    }
}

impl TlsFiles {
    /// What a server uses.
    ///
    /// # Errors
    /// This build has no TLS.
    pub fn server(&self, _: &[u8]) -> Result<ServerTls, TlsError> {
        Err(absent())
    }

    /// What a client uses.
    ///
    /// # Errors
    /// This build has no TLS.
    pub fn client(&self, _: &[u8]) -> Result<ClientTls, TlsError> {
        Err(absent())
    }

    /// The certificates in a file of them.
    ///
    /// # Errors
    /// This build has no TLS.
    pub fn certificates(_: &Path) -> Result<Vec<Certificate>, TlsError> {
        Err(absent())
    }

    /// When the first of the lists of revoked certificates in this file is due to be replaced.
    ///
    /// # Errors
    /// This build has no TLS.
    pub fn next_update_ms(_: &Path) -> Result<Option<u64>, TlsError> {
        Err(absent())
    }
}

fn absent() -> TlsError {
    TlsError::new("this build knows no TLS (feature `tls`)".to_owned())
}
