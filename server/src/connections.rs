//! Connections, from the socket to the first byte of HTTP: how many there may be, TLS, and how long all that may take.
//!
//! What is bounded here is bounded before anybody has said who he is. Whoever speaks no HTTP/2, or does not speak at all, is gone
//! before the services see him; nobody else waits for him.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Buf as _, Bytes};
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tonic::transport::server::Connected;

#[cfg(feature = "tls")]
use peanut_proto::tls::Reloading;
#[cfg(feature = "tls")]
use rustls::ServerConfig;

use crate::budget::{Account, Budgets};

/// What an HTTP/2 client says first (RFC 9113, 3.4).
const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Bounds on connections.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ConnectionLimits {
    pub(crate) total: usize,
    pub(crate) per_peer: usize,
    /// From the accepted socket to the first words of HTTP.
    pub(crate) handshake: Duration,
}

/// Counts connections, and lets in no more than there may be.
#[derive(Debug)]
pub(crate) struct Door {
    limits: ConnectionLimits,
    total: AtomicUsize,
    by_peer: Mutex<HashMap<IpAddr, usize>>,
    refused: AtomicUsize,
}

/// Leave to have a connection, for as long as it is held.
#[derive(Debug)]
pub(crate) struct Pass {
    door: Arc<Door>,
    peer: IpAddr,
}

impl Door {
    pub(crate) fn new(limits: ConnectionLimits) -> Arc<Self> {
        let (total, refused) = (AtomicUsize::new(0), AtomicUsize::new(0));
        Arc::new(Door { limits, total, by_peer: Mutex::default(), refused })
    }

    /// Lets a peer in, unless there are too many.
    pub(crate) fn let_in(self: &Arc<Self>, peer: IpAddr) -> Option<Pass> {
        let mut by_peer = self.by_peer.lock();
        let of_peer = by_peer.get(&peer).copied().unwrap_or(0);
        if of_peer >= self.limits.per_peer || self.total.load(Ordering::Relaxed) >= self.limits.total {
            self.refused.fetch_add(1, Ordering::Relaxed);
            return None;
        }
        by_peer.insert(peer, of_peer + 1);
        self.total.fetch_add(1, Ordering::Relaxed);
        Some(Pass { door: self.clone(), peer })
    }

    /// Connections that there are.
    pub(crate) fn connections(&self) -> usize {
        self.total.load(Ordering::Relaxed)
    }

    /// Connections that were too many, since the start.
    pub(crate) fn refused(&self) -> usize {
        self.refused.load(Ordering::Relaxed)
    }
}

impl Drop for Pass {
    fn drop(&mut self) {
        let mut by_peer = self.door.by_peer.lock();
        if let Some(count) = by_peer.get_mut(&self.peer) {
            *count -= 1;
            if *count == 0 {
                by_peer.remove(&self.peer);
            }
        }
        self.door.total.fetch_sub(1, Ordering::Relaxed);
    }
}

/// How a connection's first bytes are taken.
#[derive(Clone, Debug)]
pub(crate) struct Handshake {
    #[cfg(feature = "tls")]
    pub(crate) tls: Option<Arc<Reloading<ServerConfig>>>,
    /// Whether HTTP/2 is all that is spoken.
    pub(crate) http2_only: bool,
    /// Where what connections may hold comes from.
    pub(crate) budgets: Budgets,
}

impl Handshake {
    pub(crate) fn is_tls(&self) -> bool {
        #[cfg(feature = "tls")]
        return self.tls.is_some();
        #[cfg(not(feature = "tls"))]
        false
    }

    /// Takes a connection to where HTTP begins; `None` where it does not get there in time.
    pub(crate) async fn run(self, stream: TcpStream, pass: Pass) -> Option<Connection> {
        let limit = pass.door.limits.handshake;
        match timeout(limit, self.shake(stream, pass)).await {
            Ok(Ok(connection)) => Some(connection),
            Ok(Err(error)) => {
                tracing::debug!(%error, "a connection came to nothing");
                None
            }
            Err(_) => {
                tracing::debug!("a connection came to nothing within {limit:?}");
                None
            }
        }
    }

    async fn shake(self, stream: TcpStream, pass: Pass) -> io::Result<Connection> {
        let _ = stream.set_nodelay(true);
        let account = self.budgets.account();
        let peer = Peer { addr: stream.peer_addr()?, is_private: self.is_tls(), account };
        let io = match () {
            #[cfg(feature = "tls")]
            () if let Some(tls) = &self.tls => {
                let acceptor = tokio_rustls::TlsAcceptor::from(tls.current(tokio::time::Instant::now()));
                Io::Tls(Box::new(acceptor.accept(stream).await?))
            }
            () => Io::Plain(stream),
        };
        let mut connection = Connection { io, said: Bytes::new(), peer, _pass: pass };
        if self.http2_only {
            let mut said = [0; PREFACE.len()];
            connection.io.read_exact(&mut said).await?;
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
pub(crate) struct Peer {
    pub(crate) addr: SocketAddr,
    /// Whether nobody else can read what is said.
    pub(crate) is_private: bool,
    /// What the connection may hold.
    pub(crate) account: Arc<Account>,
}

/// A connection on which HTTP begins.
#[derive(Debug)]
pub(crate) struct Connection {
    io: Io,
    /// What the peer has said already.
    said: Bytes,
    peer: Peer,
    _pass: Pass,
}

#[derive(Debug)]
enum Io {
    Plain(TcpStream),
    #[cfg(feature = "tls")]
    Tls(Box<tokio_rustls::server::TlsStream<TcpStream>>),
}

impl Connection {
    /// Who is at the other end.
    #[cfg(feature = "admin")]
    pub(crate) fn peer(&self) -> Peer {
        self.peer.clone()
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
            #[cfg(feature = "tls")]
            Io::Tls(stream) => {
                let $io = Pin::new(&mut **stream);
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
            #[cfg(feature = "tls")]
            Io::Tls(stream) => Pin::new(&mut **stream).poll_read(context, buffer),
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
        each_io!(self, io => io.poll_read(context, buffer))
    }
}

impl AsyncWrite for Connection {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        each_io!(self, io => io.poll_write(context, bytes))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        each_io!(self, io => io.poll_write_vectored(context, slices))
    }

    fn is_write_vectored(&self) -> bool {
        match &self.io {
            Io::Plain(stream) => stream.is_write_vectored(),
            #[cfg(feature = "tls")]
            Io::Tls(stream) => stream.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        each_io!(self, io => io.poll_flush(context))
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        each_io!(self, io => io.poll_shutdown(context))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_door_lets_in_as_many_as_it_may_of_each_and_of_all_and_counts_those_who_leave() {
        let door = Door::new(ConnectionLimits { total: 3, per_peer: 2, handshake: Duration::from_secs(1) });
        let [a, b, c] = [1, 2, 3].map(|n| IpAddr::from([127, 0, 0, n]));
        let first = door.let_in(a).unwrap();
        let _second = door.let_in(a).unwrap();
        assert!(door.let_in(a).is_none(), "two of one peer");
        let _third = door.let_in(b).unwrap();
        assert!(door.let_in(c).is_none(), "three of all");
        drop(first);
        assert!(door.let_in(c).is_some());
        assert_eq!((door.connections(), door.refused(), door.by_peer.lock().len()), (2, 2, 2));
    }
}
