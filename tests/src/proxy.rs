//! A TCP proxy on loopback that can be cut, so that its connections end and new ones are refused service, or stalled, so that
//! nothing comes through any more and nobody is told. Both can be done to the connections that there are, and not to later ones.

use std::net::SocketAddr;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio_util::task::AbortOnDropHandle;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Passage {
    Open,
    Cut,
    Stalled,
}

/// What becomes of connections, which are numbered as they come.
#[derive(Clone, Copy, Debug)]
struct State {
    all: Passage,
    /// Connections before this one have ended.
    cut_before: u64,
    /// Of these nothing comes through.
    stalled_before: u64,
    accepted: u64,
}

impl State {
    fn of(self, connection: u64) -> Passage {
        if self.all == Passage::Cut || connection < self.cut_before {
            Passage::Cut
        } else if connection < self.stalled_before {
            Passage::Stalled
        } else {
            self.all
        }
    }
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
        let first = State { all: Passage::Open, cut_before: 0, stalled_before: 0, accepted: 0 };
        let state = watch::Sender::new(first);
        let counted = state.clone();
        let accepting = tokio::spawn(async move {
            while let Ok((inbound, _)) = listener.accept().await {
                let mut number = 0;
                counted.send_modify(|state| (number, state.accepted) = (state.accepted, state.accepted + 1));
                tokio::spawn(carry(inbound, to, number, counted.subscribe()));
            }
        });
        Proxy { addr, state, _accepting: AbortOnDropHandle::new(accepting) }
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
        self.state.send_modify(|state| state.all = Passage::Cut);
    }

    /// Holds everything back until it is mended; then it arrives.
    pub fn stall(&self) {
        self.state.send_modify(|state| state.all = Passage::Stalled);
    }

    /// Carries connections again.
    pub fn mend(&self) {
        self.state.send_modify(|state| state.all = Passage::Open);
    }

    /// Ends the connections that there are; later ones are carried.
    pub fn cut_present(&self) {
        self.state.send_modify(|state| state.cut_before = state.accepted);
    }

    /// Swallows, for ever, what is sent on the connections that there are, and never ends them; later ones are carried.
    pub fn stall_present(&self) {
        self.state.send_modify(|state| state.stalled_before = state.accepted);
    }

    /// How many connections have come so far.
    pub fn accepted(&self) -> u64 {
        self.state.borrow().accepted
    }
}

async fn carry(inbound: TcpStream, to: u16, number: u64, mut state: watch::Receiver<State>) {
    if state.borrow().of(number) == Passage::Cut {
        return;
    }
    let Ok(outbound) = TcpStream::connect(("127.0.0.1", to)).await else { return };
    let _ = (inbound.set_nodelay(true), outbound.set_nodelay(true));
    let ((from_in, to_in), (from_out, to_out)) = (inbound.into_split(), outbound.into_split());
    tokio::select! {
        () = pump(from_in, to_out, number, state.clone()) => {}
        () = pump(from_out, to_in, number, state.clone()) => {}
        _ = state.wait_for(|state| state.of(number) == Passage::Cut) => {}
    }
}

async fn pump(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    number: u64,
    mut state: watch::Receiver<State>,
) {
    let mut buffer = vec![0; 64 << 10];
    loop {
        let read = from.read(&mut buffer).await.unwrap_or(0);
        // Also an end does not come through where nothing does. The proxy itself is gone with its test.
        let passes = |state: &State| state.of(number) != Passage::Stalled;
        if state.wait_for(passes).await.is_err() || read == 0 {
            return;
        }
        if to.write_all(&buffer[..read]).await.is_err() {
            return;
        }
    }
}
