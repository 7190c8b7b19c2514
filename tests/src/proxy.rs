//! A TCP proxy on loopback that can be cut: its connections end and new ones are refused service.

use std::net::SocketAddr;

use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio_util::task::AbortOnDropHandle;

/// A proxy to one address.
#[derive(Debug)]
pub struct Proxy {
    addr: SocketAddr,
    cut: watch::Sender<bool>,
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
        let cut = watch::Sender::new(false);
        let state = cut.subscribe();
        let accepting = tokio::spawn(async move {
            while let Ok((inbound, _)) = listener.accept().await {
                tokio::spawn(carry(inbound, to, state.clone()));
            }
        });
        Proxy { addr, cut, _accepting: AbortOnDropHandle::new(accepting) }
    }

    /// Its address as an etcd endpoint.
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.addr)
    }

    /// Ends all connections, and every new one at once.
    pub fn cut(&self) {
        self.cut.send_replace(true);
    }

    /// Carries connections again.
    pub fn mend(&self) {
        self.cut.send_replace(false);
    }
}

async fn carry(mut inbound: TcpStream, to: u16, mut cut: watch::Receiver<bool>) {
    if *cut.borrow() {
        return;
    }
    let Ok(mut outbound) = TcpStream::connect(("127.0.0.1", to)).await else { return };
    tokio::select! {
        _ = copy_bidirectional(&mut inbound, &mut outbound) => {}
        _ = cut.wait_for(|cut| *cut) => {}
    }
}
