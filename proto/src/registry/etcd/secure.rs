//! Certificates for connections to etcd.

use etcd_client::ConnectOptions;

use crate::tls::{TlsError, TlsFiles};

/// Has connections be made with the certificates in these files.
#[cfg(feature = "tls")]
pub(super) fn secure(connect: ConnectOptions, files: &TlsFiles) -> Result<ConnectOptions, TlsError> {
    use etcd_client::{Certificate, Identity, TlsOptions};
    let mut options = TlsOptions::new();
    if let Some(ca) = &files.ca {
        options = options.ca_certificate(Certificate::from_pem(TlsFiles::read(ca)?));
    }
    if let (Some(cert), Some(key)) = (&files.cert, &files.key) {
        options = options.identity(Identity::from_pem(TlsFiles::read(cert)?, TlsFiles::read(key)?));
    }
    Ok(connect.with_tls(options))
}

#[cfg(not(feature = "tls"))]
pub(super) fn secure(_: ConnectOptions, files: &TlsFiles) -> Result<ConnectOptions, TlsError> {
    files.client(b"h2").map(|never| match never {})
}
