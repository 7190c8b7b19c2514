//! What a process takes from the machine under it: clocks, sockets, and threads beside the runtime's.
//!
//! With the feature `simulation` a simulator may take the place of the machine, for the thread that calls
//! [`simulate`]: sockets are the simulator's, work that otherwise has a thread of its own runs as a task, and
//! clocks go by the runtime's paused time. Without the feature nothing of that is compiled in.

#[cfg_attr(not(feature = "simulation"), path = "machine/real.rs")]
mod simulated;

use std::io;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};

pub(crate) use simulated::simulated;
#[cfg(feature = "simulation")]
pub use simulated::{Connecting, Listener, Machine, Socket, connect, simulate};
pub use simulated::{Disk, SimulatedListener, SimulatedSocket, is_simulated};

/// Runs work beside the runtime: on a thread of that name, and as a task where the machine is simulated. The
/// work may block; it awaits nothing but [`Pause::pause`].
///
/// # Errors
/// Where the system has no thread for it.
pub fn work_on_thread(name: &str, work: impl Future<Output = ()> + Send + 'static) -> io::Result<()> {
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
    task: tokio::sync::Notify,
}

impl Pause {
    /// Waits for so long, or until it is woken.
    pub async fn pause(&self, time: Duration) {
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
    if is_simulated() {
        return Ok(work());
    }
    tokio::task::spawn_blocking(work).await
}

/// Drops what takes long to drop, on a thread of its own where there is one.
pub fn drop_in_background<T: Send + 'static>(dropped: T) {
    if is_simulated() {
        return drop(dropped);
    }
    // Where there is no thread for it, it is dropped here, with the closure.
    let _ = std::thread::Builder::new().name("peanut-drop".to_owned()).spawn(move || drop(dropped));
}

/// Whether the disk takes what is written to it now, as far as a simulator has a say.
///
/// # Errors
/// [`io::ErrorKind::StorageFull`] where a simulated disk is full.
pub fn may_write() -> io::Result<()> {
    if simulated().is_some_and(|machine| machine.disk() == Disk::Full) {
        return Err(io::ErrorKind::StorageFull.into());
    }
    Ok(())
}
