//! What tests of whole fleets are made of: etcd, servers and clients as processes of their own, an origin
//! that counts, and a proxy that can cut.
//!
//! Every process ends with its handle, also when a test fails; then the end of its log is printed.

mod certificates;
mod databases;
mod etcd;
pub mod history;
mod origin;
mod proxy;
pub mod raw_lane;
mod server;
pub mod soak;

pub use certificates::{Authority, Certificate};
pub use databases::{Database, PgBouncer};
pub use etcd::{Etcd, http_client};
pub use origin::Origin;
pub use peanut_processes::{PATIENCE, Process, cpu_time, eventually, free_port, now, resident_bytes};
pub use proxy::{Processes, Proxy};
pub use server::{ServerProcess, group_from, token_in};

/// The message of an error's source; empty where it has none.
pub fn source_of(error: &impl std::error::Error) -> String {
    error.source().map(ToString::to_string).unwrap_or_default()
}
