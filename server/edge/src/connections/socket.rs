//! Where connections come from: sockets of the system, or of a simulator.
//!
//! A Unix socket's peer is on this machine, and counts as one on loopback.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use peanut_proto::machine::{SimulatedListener, SimulatedSocket};
use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
#[cfg(unix)]
use tokio::net::{UnixListener, UnixStream};

/// After so long a silence the system asks a peer whether it is still there.
const SILENT_FOR: Duration = Duration::from_secs(60);
/// Time between two such questions, of which the system sends nine on Linux.
const ASKED_EVERY: Duration = Duration::from_secs(10);

/// What connections come in on.
#[derive(Debug)]
pub enum Listener {
    /// A socket of the system.
    Tcp(TcpListener),
    /// A socket in the file system.
    #[cfg(unix)]
    Unix(UnixListener),
    /// One of a simulator.
    Simulated(parking_lot::Mutex<SimulatedListener>),
}

impl From<TcpListener> for Listener {
    fn from(listener: TcpListener) -> Self {
        Listener::Tcp(listener)
    }
}

#[cfg(unix)]
impl From<UnixListener> for Listener {
    fn from(listener: UnixListener) -> Self {
        Listener::Unix(listener)
    }
}

/// What stands for the address of a peer on this machine.
const LOCAL: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 0);

impl Listener {
    /// Where it listens.
    ///
    /// # Errors
    /// As the system has them.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        match self {
            Listener::Tcp(listener) => listener.local_addr(),
            #[cfg(unix)]
            Listener::Unix(_) => Ok(LOCAL),
            Listener::Simulated(listener) => Ok(listener.lock().local_addr()),
        }
    }

    /// The next connection and its peer. Cancel-safe.
    ///
    /// # Errors
    /// As the system has them: for want of descriptors, say.
    pub async fn accept(&self) -> io::Result<(Accepted, SocketAddr)> {
        match self {
            Listener::Tcp(listener) => {
                let (stream, peer) = listener.accept().await?;
                Ok((Accepted::Tcp(stream.into_std()?), peer))
            }
            #[cfg(unix)]
            Listener::Unix(listener) => {
                let (stream, _) = listener.accept().await?;
                Ok((Accepted::Unix(stream.into_std()?), LOCAL))
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
pub enum Accepted {
    /// A socket of the system.
    Tcp(std::net::TcpStream),
    /// A socket in the file system.
    #[cfg(unix)]
    Unix(std::os::unix::net::UnixStream),
    /// One of a simulator, and its peer.
    Simulated(SimulatedSocket, SocketAddr),
}

impl Accepted {
    /// Gives it to the runtime that this is called on.
    ///
    /// # Errors
    /// As the system has them.
    pub fn bind(self) -> io::Result<Stream> {
        match self {
            Accepted::Tcp(stream) => TcpStream::from_std(stream).map(Stream::Tcp),
            #[cfg(unix)]
            Accepted::Unix(stream) => UnixStream::from_std(stream).map(Stream::Unix),
            Accepted::Simulated(socket, peer) => Ok(Stream::Simulated(socket, peer)),
        }
    }
}

/// The bytes of a connection.
#[derive(Debug)]
pub enum Stream {
    /// A socket of the system.
    Tcp(TcpStream),
    /// A socket in the file system.
    #[cfg(unix)]
    Unix(UnixStream),
    /// One of a simulator, and its peer.
    Simulated(SimulatedSocket, SocketAddr),
}

impl Stream {
    /// Where the other end is.
    ///
    /// # Errors
    /// Where it is gone.
    pub fn peer_addr(&self) -> io::Result<SocketAddr> {
        match self {
            Stream::Tcp(stream) => stream.peer_addr(),
            #[cfg(unix)]
            Stream::Unix(_) => Ok(LOCAL),
            Stream::Simulated(_, peer) => Ok(*peer),
        }
    }

    /// Has small writes sent at once, and the system look whether a silent peer is still there.
    pub fn set_options(&self) {
        match self {
            Stream::Tcp(stream) => {
                drop(stream.set_nodelay(true));
                let keepalive = TcpKeepalive::new().with_time(SILENT_FOR).with_interval(ASKED_EVERY);
                drop(SockRef::from(stream).set_tcp_keepalive(&keepalive));
            }
            #[cfg(unix)]
            Stream::Unix(_) => {}
            Stream::Simulated(..) => {}
        }
    }
}

macro_rules! each {
    ($self:expr, $stream:ident => $what:expr) => {
        match $self {
            Stream::Tcp($stream) => $what,
            #[cfg(unix)]
            Stream::Unix($stream) => $what,
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

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_silent_peer_is_asked_whether_it_is_there() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let _peer = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (accepted, _) = Listener::from(listener).accept().await.unwrap();
        let stream = accepted.bind().unwrap();
        stream.set_options();
        let Stream::Tcp(stream) = stream else { panic!("{stream:?}") };
        let socket = SockRef::from(&stream);
        assert!(socket.keepalive().unwrap() && stream.nodelay().unwrap());
        assert_eq!(socket.tcp_keepalive_time().unwrap(), SILENT_FOR);
    }
}
