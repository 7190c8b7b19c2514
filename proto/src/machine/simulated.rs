//! The machine of a simulator.

use std::cell::RefCell;
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};

/// One end of a simulated connection.
pub trait Socket: AsyncRead + AsyncWrite + fmt::Debug + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + fmt::Debug + Send + Unpin> Socket for T {}

/// One end of a simulated connection.
pub type SimulatedSocket = Box<dyn Socket>;
/// Where simulated connections come in.
pub type SimulatedListener = Box<dyn Listener>;

/// Where simulated connections come in.
pub trait Listener: fmt::Debug + Send {
    /// The address that others connect to.
    fn local_addr(&self) -> SocketAddr;

    /// The next connection, and where it comes from.
    fn poll_accept(&mut self, context: &mut Context<'_>) -> Poll<io::Result<(Box<dyn Socket>, SocketAddr)>>;
}

/// A connection that is being made.
pub type Connecting = Pin<Box<dyn Future<Output = io::Result<Box<dyn Socket>>> + Send>>;

/// How a simulated disk is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Disk {
    /// As it should be.
    #[default]
    Good,
    /// It takes nothing more.
    Full,
    /// It stands still.
    Stalled,
}

/// A simulated machine.
pub trait Machine {
    /// Milliseconds since 1970, by a clock that may be set.
    fn wall_clock_ms(&self) -> u64;

    /// Time since the machine started, including that in which it was suspended.
    fn uptime(&self) -> Duration;

    /// How long the machine has been suspended since it started.
    fn suspended(&self) -> Duration;

    /// Connects to `host:port`.
    fn connect(&self, addr: &str) -> Connecting;

    /// How the disk is.
    fn disk(&self) -> Disk;
}

thread_local! {
    static MACHINE: RefCell<Option<Rc<dyn Machine>>> = const { RefCell::new(None) };
}

/// Puts a machine in the place of this thread's, or the real one back.
pub fn simulate(machine: Option<Rc<dyn Machine>>) {
    MACHINE.set(machine);
}

/// The simulated machine of this thread.
pub(crate) fn simulated() -> Option<Rc<dyn Machine>> {
    MACHINE.with_borrow(Clone::clone)
}

/// Whether this thread runs on a simulated machine.
pub fn is_simulated() -> bool {
    MACHINE.with_borrow(Option::is_some)
}

/// Connects to `host:port` on the simulated network.
///
/// # Errors
/// As [`std::net::TcpStream::connect`]; and where this thread runs on no simulated machine.
pub async fn connect(addr: &str) -> io::Result<Box<dyn Socket>> {
    let connecting = simulated().map(|machine| machine.connect(addr));
    connecting.ok_or_else(|| io::Error::other("the machine is not simulated"))?.await
}
