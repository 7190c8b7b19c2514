//! What takes the place of a simulated machine in a build without the feature `simulation`: there is none, so
//! nothing of this is ever compiled into a call.

use std::io;
use std::net::SocketAddr;
use std::task::{Context, Poll};
use std::time::Duration;

use crate::nothing::NoStream;

/// One end of a simulated connection.
pub type SimulatedSocket = NoStream;

/// Where simulated connections come in.
#[derive(Debug)]
pub enum SimulatedListener {}

impl SimulatedListener {
    /// The address that others connect to.
    pub fn local_addr(&self) -> SocketAddr {
        match *self {}
    }

    /// The next connection, and where it comes from.
    pub fn poll_accept(&mut self, _: &mut Context<'_>) -> Poll<io::Result<(SimulatedSocket, SocketAddr)>> {
        match *self {}
    }
}

/// How a simulated disk is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Disk {
    /// It takes nothing more.
    Full,
    /// It stands still.
    Stalled,
}

/// A simulated machine.
pub(crate) enum Machine {}

impl Machine {
    pub(crate) fn wall_clock_ms(&self) -> u64 {
        match *self {}
    }

    pub(crate) fn uptime(&self) -> Duration {
        match *self {}
    }

    pub(crate) fn suspended(&self) -> Duration {
        match *self {}
    }

    pub(crate) fn disk(&self) -> Disk {
        match *self {}
    }
}

pub(crate) const fn simulated() -> Option<Machine> {
    None
}

/// Whether the machine is simulated: never.
pub const fn is_simulated() -> bool {
    false
}
