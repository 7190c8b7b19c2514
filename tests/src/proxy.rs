//! A TCP proxy on loopback that can be cut, so that its connections end and new ones are refused service, or stalled, so that
//! nothing comes through any more and nobody is told.

use std::net::SocketAddr;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio_util::task::AbortOnDropHandle;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Open,
    Cut,
    Stalled,
}

/// A proxy to one address.
#[derive(Debug)]
pub struct Proxy {
    addr: SocketAddr,
    state: watch::Sender<State>,
    _accepting: AbortOnDropHandle<()>,
}

impl Proxy {
    /// Starts a proxy to a port of this machine.
    ///
    /// # Panics
    /// Where it cannot listen.
    pub async fn start(to: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port of any number");
        let addr = listener.local_addr().expect("it listens");
        let sender = watch::Sender::new(State::Open);
        let state = sender.subscribe();
        let accepting = tokio::spawn(async move {
            while let Ok((inbound, _)) = listener.accept().await {
                tokio::spawn(carry(inbound, to, state.clone()));
            }
        });
        Proxy { addr, state: sender, _accepting: AbortOnDropHandle::new(accepting) }
    }

    /// Its address.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Its address as an etcd endpoint.
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.addr)
    }

    /// Ends all connections, and every new one at once.
    pub fn cut(&self) {
        self.state.send_replace(State::Cut);
    }

    /// Holds everything back until it is mended; then it arrives.
    pub fn stall(&self) {
        self.state.send_replace(State::Stalled);
    }

    /// Carries connections again.
    pub fn mend(&self) {
        self.state.send_replace(State::Open);
    }
}

async fn carry(inbound: TcpStream, to: u16, mut state: watch::Receiver<State>) {
    if *state.borrow() == State::Cut {
        return;
    }
    let Ok(outbound) = TcpStream::connect(("127.0.0.1", to)).await else { return };
    let _ = (inbound.set_nodelay(true), outbound.set_nodelay(true));
    let ((from_in, to_in), (from_out, to_out)) = (inbound.into_split(), outbound.into_split());
    tokio::select! {
        () = pump(from_in, to_out, state.clone()) => {}
        () = pump(from_out, to_in, state.clone()) => {}
        _ = state.wait_for(|state| *state == State::Cut) => {}
    }
}

async fn pump(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, mut state: watch::Receiver<State>) {
    let mut buffer = vec![0; 64 << 10];
    loop {
        let read = from.read(&mut buffer).await.unwrap_or(0);
        // The proxy itself is gone with its test.
        if read == 0 || state.wait_for(|state| *state != State::Stalled).await.is_err() {
            return;
        }
        if to.write_all(&buffer[..read]).await.is_err() {
            return;
        }
    }
}
