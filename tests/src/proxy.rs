//! A TCP proxy on loopback that can be cut, so that its connections end and new ones are refused service, or
//! stalled, so that nothing comes through any more and nobody is told. Both can be done to the connections
//! that there are, and not to later ones, or to those of one process.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;

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

/// One of a proxy's connections: its number, and the process that opened it, where that is known.
#[derive(Clone, Copy, Debug)]
struct Connection {
    number: u64,
    process: Option<u32>,
}

/// What becomes of connections, which are numbered as they come.
#[derive(Clone, Debug)]
struct State {
    all: Passage,
    /// Of those of single processes.
    of_process: BTreeMap<u32, Passage>,
    /// Connections before this one have ended.
    cut_before: u64,
    /// Of these nothing comes through.
    stalled_before: u64,
    accepted: u64,
}

impl State {
    fn of(&self, connection: Connection) -> Passage {
        let of_process = connection.process.and_then(|process| self.of_process.get(&process));
        if self.all == Passage::Cut || connection.number < self.cut_before {
            Passage::Cut
        } else if connection.number < self.stalled_before {
            Passage::Stalled
        } else {
            of_process.copied().filter(|_| self.all == Passage::Open).unwrap_or(self.all)
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
        Proxy::start_between(Processes::default(), to).await
    }

    /// Starts a proxy to a port of this machine that tells the connections of these processes apart.
    ///
    /// # Panics
    /// Where it cannot listen.
    pub async fn start_between(processes: Processes, to: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port of any number");
        let addr = listener.local_addr().expect("it listens");
        let state = watch::Sender::new(State {
            all: Passage::Open,
            of_process: BTreeMap::new(),
            cut_before: 0,
            stalled_before: 0,
            accepted: 0,
        });
        let counted = state.clone();
        let accepting = tokio::spawn(async move {
            while let Ok((inbound, from)) = listener.accept().await {
                let mut number = 0;
                counted.send_modify(|state| (number, state.accepted) = (state.accepted, state.accepted + 1));
                let (processes, state) = (processes.clone(), counted.subscribe());
                tokio::spawn(async move {
                    let process = processes.of(from).await;
                    carry(inbound, to, Connection { number, process }, state).await;
                });
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

    /// As [`cut`](Self::cut), of the connections of one process.
    pub fn cut_from(&self, process: u32) {
        self.state.send_modify(|state| _ = state.of_process.insert(process, Passage::Cut));
    }

    /// As [`stall`](Self::stall), of the connections of one process.
    pub fn stall_from(&self, process: u32) {
        self.state.send_modify(|state| _ = state.of_process.insert(process, Passage::Stalled));
    }

    /// Carries the connections of one process again.
    pub fn mend_from(&self, process: u32) {
        self.state.send_modify(|state| _ = state.of_process.remove(&process));
    }

    /// Ends the connections that there are; later ones are carried.
    pub fn cut_present(&self) {
        self.state.send_modify(|state| state.cut_before = state.accepted);
    }

    /// Swallows, for ever, what is sent on the connections that there are, and never ends them; later ones
    /// are carried.
    pub fn stall_present(&self) {
        self.state.send_modify(|state| state.stalled_before = state.accepted);
    }

    /// How many connections have come so far.
    pub fn accepted(&self) -> u64 {
        self.state.borrow().accepted
    }
}

async fn carry(inbound: TcpStream, to: u16, connection: Connection, mut state: watch::Receiver<State>) {
    if state.borrow().of(connection) == Passage::Cut {
        return;
    }
    let Ok(outbound) = TcpStream::connect(("127.0.0.1", to)).await else { return };
    let _ = (inbound.set_nodelay(true), outbound.set_nodelay(true));
    let ((from_in, to_in), (from_out, to_out)) = (inbound.into_split(), outbound.into_split());
    tokio::select! {
        () = pump(from_in, to_out, connection, state.clone()) => {}
        () = pump(from_out, to_in, connection, state.clone()) => {}
        _ = state.wait_for(|state| state.of(connection) == Passage::Cut) => {}
    }
}

async fn pump(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    connection: Connection,
    mut state: watch::Receiver<State>,
) {
    let mut buffer = vec![0; 64 << 10];
    loop {
        let read = from.read(&mut buffer).await.unwrap_or(0);
        // Also an end does not come through where nothing does. The proxy itself is gone with its test.
        let passes = |state: &State| state.of(connection) != Passage::Stalled;
        if state.wait_for(passes).await.is_err() || read == 0 {
            return;
        }
        if to.write_all(&buffer[..read]).await.is_err() {
            return;
        }
    }
}

/// Processes of this machine whose connections are told apart; by the tables of /proc, so that there are none
/// where the system has no such. Clones are of the same list.
#[derive(Clone, Debug, Default)]
pub struct Processes(Arc<Known>);

#[derive(Debug, Default)]
struct Known {
    processes: Mutex<Vec<u32>>,
    /// Connections whose processes were asked for so far.
    asked: AtomicU64,
    sockets: tokio::sync::Mutex<Sockets>,
}

/// The system's table of connections, and how many of those that were asked for it has.
#[derive(Debug, Default)]
struct Sockets {
    asked: u64,
    table: Arc<str>,
}

impl Processes {
    /// Adds one, by its number.
    pub fn add(&self, process: u32) {
        self.0.processes.lock().push(process);
    }

    /// The process that opened the connection which comes from there.
    async fn of(&self, from: SocketAddr) -> Option<u32> {
        let processes = self.0.processes.lock().clone();
        if processes.is_empty() {
            return None;
        }
        let table = self.sockets().await;
        tokio::task::spawn_blocking(move || opened(&processes, &table, from)).await.ok().flatten()
    }

    /// The table of connections, read after this call began. Reading it takes the system tens of
    /// milliseconds, so that all who wait for it share one reading: where hundreds of connections are opened
    /// anew at a time, each with a reading of its own, nothing else is done.
    async fn sockets(&self) -> Arc<str> {
        let asked = self.0.asked.fetch_add(1, Ordering::Relaxed) + 1;
        let mut sockets = self.0.sockets.lock().await;
        if sockets.asked < asked {
            let upto = self.0.asked.load(Ordering::Relaxed);
            let read = || std::fs::read_to_string("/proc/net/tcp").unwrap_or_default();
            let table = tokio::task::spawn_blocking(read).await.unwrap_or_default();
            *sockets = Sockets { asked: upto, table: table.into() };
        }
        sockets.table.clone()
    }
}

/// Which of the processes opened the connection that comes from there.
fn opened(processes: &[u32], table: &str, from: SocketAddr) -> Option<u32> {
    // Addresses are in hexadecimal digits, the port last; the tenth field is the socket's inode.
    let local = format!("{:08X}:{:04X}", u32::from(Ipv4Addr::LOCALHOST).swap_bytes(), from.port());
    let line = table.lines().find(|line| line.split_whitespace().nth(1) == Some(&local))?;
    let socket = format!("socket:[{}]", line.split_whitespace().nth(9)?);
    let has_it = |process: &u32| {
        let open = std::fs::read_dir(format!("/proc/{process}/fd")).into_iter().flatten().flatten();
        let mut open = open.filter_map(|entry| std::fs::read_link(entry.path()).ok());
        open.any(|file| file == Path::new(&socket))
    };
    processes.iter().copied().find(has_it)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn one_process_is_cut_off_and_others_are_not() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let _echo = AbortOnDropHandle::new(tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                tokio::spawn(async move {
                    let (mut from, mut to) = stream.split();
                    tokio::io::copy(&mut from, &mut to).await
                });
            }
        }));
        let processes = Processes::default();
        processes.add(std::process::id());
        let proxy = Proxy::start_between(processes, port).await;
        let comes_back = async || {
            let mut stream = TcpStream::connect(proxy.addr()).await.unwrap();
            let _ = stream.write_all(b"word").await;
            stream.read_exact(&mut [0; 4]).await.is_ok()
        };
        assert!(comes_back().await);
        proxy.cut_from(1);
        assert!(comes_back().await, "of another process");
        proxy.cut_from(std::process::id());
        assert!(!comes_back().await);
        proxy.mend_from(std::process::id());
        assert!(comes_back().await);
    }
}
