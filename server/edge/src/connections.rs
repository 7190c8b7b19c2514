//! Connections, from the socket to the first byte of HTTP: TLS, and how long all that may take.
//!
//! What is bounded here is bounded before anybody has said who he is. A peer that speaks no HTTP/2, or does
//! not speak at all, is gone before the services see him; nobody else waits for him.

mod accept;
mod activity;
mod certificates;
mod grpc;
#[cfg(feature = "http")]
mod http;
mod limiter;
mod progress;
mod socket;
#[cfg_attr(not(feature = "tls"), path = "connections/no_tls.rs")]
mod tls;

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::{Buf as _, Bytes};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, ReadBuf};
use tokio::time::timeout;
use tonic::transport::server::Connected;

use peanut_proto::tls::{Reloading, ServerTls, TlsFiles};

pub use accept::{Permitted, accept};
pub use activity::CountStreams;
pub use certificates::PeerCertificate;
pub use grpc::{Services, serve_grpc};
#[cfg(feature = "http")]
pub use http::serve_http;
pub use limiter::{ConnectionLimiter, ConnectionLimits, OpenStream, Permit, Presence};
pub use progress::Progressing;
pub use socket::{Accepted, Listener, Stream};

use crate::budget::{Accounts, Budgets};

/// What an HTTP/2 client says first (RFC 9113, 3.4).
const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// How a connection's first bytes are taken.
#[derive(Clone, Debug)]
pub struct Handshake {
    /// The certificates, where TLS is spoken.
    pub tls: Option<Arc<Reloading<ServerTls>>>,
    /// Whether HTTP/2 is all that is spoken.
    pub http2_only: bool,
    /// Where what connections may hold comes from.
    pub budgets: Budgets,
}

impl Handshake {
    /// One without TLS.
    #[cfg(any(test, feature = "testing"))]
    pub fn plain() -> Self {
        Handshake { tls: None, http2_only: false, budgets: Budgets::new() }
    }

    /// Certificates from files, read again when those change, for a port on which `protocol` is spoken within
    /// TLS.
    ///
    /// # Errors
    /// Where they cannot be used, or this build knows no TLS.
    pub fn reloading(files: &TlsFiles, protocol: &'static [u8]) -> Result<Arc<Reloading<ServerTls>>, String> {
        // Other crates of the program may have TLS.
        if !cfg!(feature = "tls") {
            return Err("this build knows no TLS (feature `tls`)".to_owned());
        }
        let made = Reloading::new(files.clone(), |files| files.server(protocol), tokio::time::Instant::now());
        made.map(Arc::new).map_err(|error| error.to_string())
    }

    /// Whether TLS is spoken.
    pub fn is_tls(&self) -> bool {
        self.tls.is_some()
    }

    /// Takes a connection to where HTTP begins; `None` where it does not get there in time, or is cut off.
    pub async fn run(self, stream: Stream, permit: Permit) -> Option<Connection> {
        let (limit, presence) = (permit.limits().handshake, permit.presence().clone());
        let handshake = timeout(limit, self.shake(stream, permit));
        match presence.cut().run_until_cancelled(handshake).await {
            Some(Ok(Ok(connection))) => Some(connection),
            Some(Ok(Err(error))) => {
                tracing::debug!(error = format_args!("{error:#}"), "a connection came to nothing");
                None
            }
            Some(Err(_)) => {
                tracing::debug!("a connection came to nothing within {limit:?}");
                None
            }
            None => None,
        }
    }

    async fn shake(self, stream: Stream, permit: Permit) -> io::Result<Connection> {
        stream.set_options();
        let (presence, is_private) = (permit.presence().clone(), self.is_tls());
        let accounts = Accounts::new(self.budgets);
        let peer = Peer { addr: stream.peer_addr()?, is_private, accounts, presence };
        let io = match &self.tls {
            Some(tls) => {
                let now = tokio::time::Instant::now;
                let began_with = tls.current(now());
                let (stream, certificate) = tls::accept(&began_with, stream).await?;
                if let Some(certificate) = certificate {
                    let certificate = peer.presence.certificate.get_or_init(|| certificate);
                    // Files may have changed during the handshake, when nobody looked at this connection.
                    let current = tls.current(now());
                    if !Arc::ptr_eq(&began_with, &current) {
                        let refused = |error| io::Error::new(io::ErrorKind::PermissionDenied, error);
                        current.verify(&certificate.chain).map_err(refused)?;
                    }
                }
                Io::Tls(stream)
            }
            None => Io::Plain(stream),
        };
        let mut connection = Connection { io, said: Bytes::new(), peer, _permit: permit };
        if self.http2_only {
            let mut said = [0; PREFACE.len()];
            connection.read_exact(&mut said).await?;
            if said != *PREFACE {
                return Err(io::Error::new(io::ErrorKind::InvalidData, "it does not speak HTTP/2"));
            }
            connection.said = Bytes::from_static(PREFACE);
        }
        Ok(connection)
    }
}

/// Who is at the other end.
#[derive(Clone, Debug)]
pub struct Peer {
    /// Where it comes from.
    pub addr: SocketAddr,
    /// Whether nobody else can read what is said.
    pub is_private: bool,
    /// What the connection may hold.
    pub accounts: Arc<Accounts>,
    presence: Arc<Presence>,
}

impl Peer {
    /// Its address, without the port.
    pub fn ip(&self) -> IpAddr {
        self.addr.ip()
    }

    /// Its connection, as the limiter knows it.
    pub fn presence(&self) -> &Arc<Presence> {
        &self.presence
    }

    /// The certificate that it has shown, which was good then.
    pub fn certificate(&self) -> Option<&PeerCertificate> {
        self.presence.certificate.get()
    }

    /// One that has no connection.
    #[cfg(any(test, feature = "testing"))]
    pub fn of(addr: &str, is_private: bool) -> Self {
        let now = tokio::time::Instant::now();
        let addr: SocketAddr = addr.parse().expect("an address");
        let accounts = Accounts::new(Budgets::new());
        Peer { addr, is_private, accounts, presence: Presence::new(addr.ip(), now, now) }
    }

    /// Has it shown a certificate with these names.
    ///
    /// # Panics
    /// Where it has shown one before.
    #[cfg(any(test, feature = "testing"))]
    pub fn show_certificate(&self, names: &[&str], not_after_ms: u64) {
        let names = names.iter().map(|name| (*name).to_owned()).collect();
        let certificate = PeerCertificate { names, not_after_ms, chain: Vec::new() };
        self.presence.certificate.set(certificate).expect("it has none yet");
    }
}

/// A connection on which HTTP begins.
#[derive(Debug)]
pub struct Connection {
    io: Io,
    /// What the peer has said already.
    said: Bytes,
    peer: Peer,
    _permit: Permit,
}

#[derive(Debug)]
enum Io {
    Plain(Stream),
    Tls(tls::TlsStream),
}

impl Connection {
    /// Who is at the other end.
    pub fn peer(&self) -> &Peer {
        &self.peer
    }

    fn is_cut(&self) -> io::Result<()> {
        if self.peer.presence.is_cut() { Err(io::ErrorKind::ConnectionAborted.into()) } else { Ok(()) }
    }
}

impl Connected for Connection {
    type ConnectInfo = Peer;

    fn connect_info(&self) -> Peer {
        self.peer.clone()
    }
}

macro_rules! each_io {
    ($self:expr, $io:ident => $what:expr) => {
        match &mut $self.get_mut().io {
            Io::Plain(stream) => {
                let $io = Pin::new(stream);
                $what
            }
            Io::Tls(stream) => {
                let $io = Pin::new(stream);
                $what
            }
        }
    };
}

impl AsyncRead for Io {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Io::Plain(stream) => Pin::new(stream).poll_read(context, buffer),
            Io::Tls(stream) => Pin::new(stream).poll_read(context, buffer),
        }
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if !self.said.is_empty() {
            let length = self.said.len().min(buffer.remaining());
            buffer.put_slice(&self.said[..length]);
            self.said.advance(length);
            return Poll::Ready(Ok(()));
        }
        if self.peer.presence.poll_cut(context.waker()) {
            return Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into()));
        }
        each_io!(self, io => io.poll_read(context, buffer))
    }
}

impl AsyncWrite for Connection {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.is_cut()?;
        each_io!(self, io => io.poll_write(context, bytes))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.is_cut()?;
        each_io!(self, io => io.poll_write_vectored(context, slices))
    }

    fn is_write_vectored(&self) -> bool {
        match &self.io {
            Io::Plain(stream) => stream.is_write_vectored(),
            Io::Tls(stream) => stream.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.is_cut()?;
        each_io!(self, io => io.poll_flush(context))
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        each_io!(self, io => io.poll_shutdown(context))
    }
}
