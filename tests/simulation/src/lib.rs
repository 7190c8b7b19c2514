//! Deterministic simulation of whole fleets: the real client and server, in one thread, on simulated
//! machines.
//!
//! ```text
//! Plan ── seed ──> Scenario ── faults ──> World ── in turn ──> nodes, applications, the registry
//!                      │              └── Network ── delivers ──> connections, the registry
//!                      └── Load: what applications did and saw ──> check
//! ```
//!
//! Everything is drawn from the seed: the same seed gives the same history, byte for byte. What is not
//! simulated: TLS, the admin port, etcd's own client, loaders over a network, and threads, which real
//! processes are put through elsewhere.

pub mod history;
mod load;
mod network;
mod plan;
mod registry;
mod rings;
mod scenario;
mod unread;
mod world;

pub use network::Mended;
pub use plan::{Directory, End, Fault, Planned, Theme};
pub use registry::StoreFault;
pub use scenario::{Outcome, Scenario};
pub use world::current;
