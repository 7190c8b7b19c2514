//! A proxy in front of a fleet: one stateless process that any program reaches by what it already speaks.
//!
//! ```text
//! clients of Redis ── resp ──┐
//! HTTP ────────────── http ──┼── groups ──> peanut_client::Client ──> the fleet
//! gRPC ────────────── grpc ──┘
//! ```
//!
//! It is the ring as a layer of its own: programs that have no client of Peanut reach it at one address. With a near
//! cache in its client, hot keys are answered by the proxy itself, and are never outdated for that.

mod fetch;
mod groups;
mod grpc;
mod http;
mod listen;
mod proxy;
mod resp;
mod trace;

pub use proxy::Proxy;
pub use trace::trace_context;
