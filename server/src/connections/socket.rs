//! Where connections come from: sockets of the system, or of a simulator.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll};

use peanut_proto::machine::{SimulatedListener, SimulatedSocket};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};

/// What connections come in on.
#[derive(Debug)]
pub(crate) enum Listener {
    Tcp(TcpListener),
    Simulated(parking_lot::Mutex<SimulatedListener>),
}

impl Listener {
    pub(crate) fn local_addr(&self) -> io::Result<SocketAddr> {
        match self {
            Listener::Tcp(listener) => listener.local_addr(),
            Listener::Simulated(listener) => Ok(listener.lock().local_addr()),
        }
    }

    /// The next connection and its peer. Cancel-safe.
    pub(crate) async fn accept(&self) -> io::Result<(Accepted, SocketAddr)> {
        match self {
            Listener::Tcp(listener) => {
                let (stream, peer) = listener.accept().await?;
                Ok((Accepted::Tcp(stream.into_std()?), peer))
            }
            Listener::Simulated(listener) => {
                let accepted = std::future::poll_fn(|context| listener.lock().poll_accept(context)).await?;
                Ok((Accepted::Simulated(accepted.0, accepted.1), accepted.1))
            }
        }
    }
}

/// A connection that no runtime has yet.
#[derive(Debug)]
pub(crate) enum Accepted {
    Tcp(std::net::TcpStream),
    Simulated(SimulatedSocket, SocketAddr),
}

impl Accepted {
    /// Gives it to the runtime that this is called on.
    pub(crate) fn bind(self) -> io::Result<Stream> {
        match self {
            Accepted::Tcp(stream) => TcpStream::from_std(stream).map(Stream::Tcp),
            Accepted::Simulated(socket, peer) => Ok(Stream::Simulated(socket, peer)),
        }
    }
}

/// The bytes of a connection.
#[derive(Debug)]
pub(crate) enum Stream {
    Tcp(TcpStream),
    Simulated(SimulatedSocket, SocketAddr),
}

impl Stream {
    pub(crate) fn peer_addr(&self) -> io::Result<SocketAddr> {
        match self {
            Stream::Tcp(stream) => stream.peer_addr(),
            Stream::Simulated(_, peer) => Ok(*peer),
        }
    }

    /// Has small writes sent at once.
    pub(crate) fn set_nodelay(&self) {
        match self {
            Stream::Tcp(stream) => drop(stream.set_nodelay(true)),
            Stream::Simulated(..) => {}
        }
    }
}

macro_rules! each {
    ($self:expr, $stream:ident => $what:expr) => {
        match $self {
            Stream::Tcp($stream) => $what,
            Stream::Simulated($stream, _) => $what,
        }
    };
}

impl AsyncRead for Stream {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        each!(self.get_mut(), stream => Pin::new(stream).poll_read(context, buffer))
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        each!(self.get_mut(), stream => Pin::new(stream).poll_write(context, bytes))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        each!(self.get_mut(), stream => Pin::new(stream).poll_write_vectored(context, slices))
    }

    fn is_write_vectored(&self) -> bool {
        each!(self, stream => stream.is_write_vectored())
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        each!(self.get_mut(), stream => Pin::new(stream).poll_flush(context))
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        each!(self.get_mut(), stream => Pin::new(stream).poll_shutdown(context))
    }
}
