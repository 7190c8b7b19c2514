//! The TLS handshake of a connection.

use std::io;

use peanut_proto::certificate::Certificate;
use peanut_proto::tls::{Chain, ServerTls};
use rustls::HandshakeKind;
use tokio_rustls::TlsAcceptor;

use super::{PeerCertificate, Stream};

/// A connection on which TLS is spoken.
pub(super) type TlsStream = Box<tokio_rustls::server::TlsStream<Stream>>;

/// Shakes hands, and gives the certificate that the peer has shown.
pub(super) async fn accept(
    tls: &ServerTls,
    stream: Stream,
) -> io::Result<(TlsStream, Option<PeerCertificate>)> {
    let stream = TlsAcceptor::from(tls.config.clone()).accept(stream).await?;
    let session = stream.get_ref().1;
    let chain = session.peer_certificates().unwrap_or_default();
    if session.handshake_kind() == Some(HandshakeKind::Resumed) {
        // Of such a session nothing was verified but that it is an earlier one's.
        tls.verify(chain).map_err(|error| io::Error::new(io::ErrorKind::PermissionDenied, error))?;
    }
    let certificate = read(chain.iter().map(|der| der.clone().into_owned()).collect());
    Ok((Box::new(stream), certificate))
}

fn read(chain: Chain) -> Option<PeerCertificate> {
    let own = Certificate::read(chain.first()?).ok()?;
    // Any of them may be the first to expire.
    let expiries = chain.iter().filter_map(|der| Certificate::read(der).ok().map(|it| it.not_after_ms));
    let not_after_ms = expiries.min().unwrap_or(own.not_after_ms);
    Some(PeerCertificate { names: own.names, not_after_ms, chain })
}
