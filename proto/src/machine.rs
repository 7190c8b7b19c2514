//! What a process takes from the machine under it: clocks, sockets, and threads beside the runtime's.
//!
//! With the feature `simulation` a simulator may take the place of the machine, for the thread that calls
//! [`simulate`]: sockets are the simulator's, work that otherwise has a thread of its own runs as a task, and
//! clocks go by the runtime's paused time. Without the feature nothing of that is compiled in.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};

#[cfg(feature = "simulation")]
pub use simulated::{Connecting, Disk, Listener, Machine, Socket, connect, is_simulated, simulate};

/// Whether the machine is simulated: never.
#[cfg(not(feature = "simulation"))]
pub const fn is_simulated() -> bool {
    false
}

/// Runs work beside the runtime: on a thread of that name, and as a task where the machine is simulated. The work may block;
/// it awaits nothing but [`Pause::pause`].
///
/// # Errors
/// Where the system has no thread for it.
pub fn work_on_thread(name: &str, work: impl Future<Output = ()> + Send + 'static) -> io::Result<()> {
    #[cfg(feature = "simulation")]
    if is_simulated() {
        tokio::spawn(work);
        return Ok(());
    }
    let run = move || {
        // A pause on a thread is over when its future is first polled.
        let mut context = std::task::Context::from_waker(std::task::Waker::noop());
        let is_over = std::pin::pin!(work).poll(&mut context).is_ready();
        debug_assert!(is_over, "work on a thread awaits pauses only");
    };
    std::thread::Builder::new().name(name.to_owned()).spawn(run).map(drop)
}

/// How work on a thread waits. Cheap to clone: a clone ends the other's waiting.
#[derive(Clone, Debug, Default)]
pub struct Pause {
    shared: Arc<Paused>,
}

#[derive(Debug, Default)]
struct Paused {
    is_woken: Mutex<bool>,
    woken: Condvar,
    #[cfg(feature = "simulation")]
    task: tokio::sync::Notify,
}

impl Pause {
    /// Waits for so long, or until it is woken.
    pub async fn pause(&self, time: Duration) {
        #[cfg(feature = "simulation")]
        if is_simulated() {
            let _ = tokio::time::timeout(time, self.shared.task.notified()).await;
            while simulated().is_some_and(|machine| machine.disk() == Disk::Stalled) {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            return;
        }
        let mut is_woken = self.shared.is_woken.lock();
        self.shared.woken.wait_while_for(&mut is_woken, |is_woken| !*is_woken, time);
        *is_woken = false;
    }

    /// Ends the pause that the work is in, or the next one.
    pub fn wake(&self) {
        #[cfg(feature = "simulation")]
        if is_simulated() {
            return self.shared.task.notify_one();
        }
        *self.shared.is_woken.lock() = true;
        self.shared.woken.notify_one();
    }
}

/// Runs what takes long on a thread that may block.
///
/// # Errors
/// Where `work` panics, or its runtime ends.
pub async fn blocking<R: Send + 'static>(
    work: impl FnOnce() -> R + Send + 'static,
) -> Result<R, tokio::task::JoinError> {
    #[cfg(feature = "simulation")]
    if is_simulated() {
        return Ok(work());
    }
    tokio::task::spawn_blocking(work).await
}

/// Drops what takes long to drop, on a thread of its own where there is one.
pub fn drop_in_background<T: Send + 'static>(dropped: T) {
    #[cfg(feature = "simulation")]
    if is_simulated() {
        return drop(dropped);
    }
    // Where there is no thread for it, it is dropped here, with the closure.
    let _ = std::thread::Builder::new().name("peanut-drop".to_owned()).spawn(move || drop(dropped));
}

#[cfg(feature = "simulation")]
mod simulated {
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

    /// Where simulated connections come in.
    pub trait Listener: fmt::Debug + Send {
        /// The address that others connect to.
        fn local_addr(&self) -> SocketAddr;

        /// The next connection, and where it comes from.
        fn poll_accept(
            &mut self,
            context: &mut Context<'_>,
        ) -> Poll<io::Result<(Box<dyn Socket>, SocketAddr)>>;
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

    pub(crate) fn machine() -> Option<Rc<dyn Machine>> {
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
        let connecting = machine().map(|machine| machine.connect(addr));
        connecting.ok_or_else(|| io::Error::other("the machine is not simulated"))?.await
    }
}

/// Whether the disk takes what is written to it now, as far as a simulator has a say.
///
/// # Errors
/// [`io::ErrorKind::StorageFull`] where a simulated disk is full.
pub fn may_write() -> io::Result<()> {
    #[cfg(feature = "simulation")]
    if simulated().is_some_and(|machine| machine.disk() == Disk::Full) {
        return Err(io::ErrorKind::StorageFull.into());
    }
    Ok(())
}

/// The simulated machine of this thread.
#[cfg(feature = "simulation")]
pub(crate) fn simulated() -> Option<std::rc::Rc<dyn Machine>> {
    simulated::machine()
}
