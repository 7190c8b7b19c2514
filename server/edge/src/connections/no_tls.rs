//! What takes the place of TLS in a build without it.

use std::io;

use peanut_proto::nothing::NoStream;
use peanut_proto::tls::ServerTls;

use super::{PeerCertificate, Stream};

/// A connection on which TLS is spoken: there is none.
pub(super) type TlsStream = NoStream;

/// Shakes hands with nobody.
pub(super) async fn accept(_: &ServerTls, _: Stream) -> io::Result<(TlsStream, Option<PeerCertificate>)> {
    Err(io::ErrorKind::Unsupported.into())
}
