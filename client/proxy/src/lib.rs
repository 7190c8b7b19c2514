//! A proxy in front of a fleet: one stateless process that any program reaches by what it already speaks.
//!
//! ```text
//! clients of Redis ── resp ──┐
//! HTTP ────────────── http ──┼── groups ──> peanut_client::Client ──> the fleet
//! gRPC ────────────── grpc ──┤
//! operators ───────── page ──┘
//! ```
//!
//! It is the ring as a layer of its own: programs that have no client of Peanut reach it at one address. With
//! a near cache in its client, hot keys are answered by the proxy itself, and are never outdated for that.

mod core;
mod counters;
mod fetch;
mod groups;
mod grpc;
mod http;
mod listen;
mod metrics;
mod page;
mod problem;
mod proxy;
mod resp;
mod trace;

pub use peanut_edge::Token;
pub use peanut_edge::connections::Listener;
#[cfg(feature = "files")]
pub use peanut_edge::rights::file::TokenFiles;
#[cfg(feature = "signals")]
pub use peanut_edge::signals::{hangup, stop_signal};
#[cfg(feature = "otlp")]
pub use peanut_edge::traces;
pub use proxy::{Error, Proxy, ProxyBuilder, ProxyHandle};
pub use trace::trace_context;
