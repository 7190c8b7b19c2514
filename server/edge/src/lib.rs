//! The edge of a process that serves: connections before their first call, and callers.
//!
//! ```text
//! Listener ── accept, under a ConnectionLimiter ──> Handshake (TLS) ──> Connection
//! its Peer, and what it shows ── Tokens ──> Caller ──> Rights
//! ```
//!
//! `peanut-server` and `peanut-proxy` are built on it. It has no promise of compatibility of its own: depend
//! on those.

pub mod bodies;
mod body;
pub mod budget;
pub mod connections;
mod failure;
pub mod rights;
#[cfg(feature = "files")]
pub mod settings;
#[cfg(feature = "signals")]
pub mod signals;
#[cfg_attr(not(feature = "otlp"), path = "no_traces.rs")]
pub mod traces;

pub use body::holding;
pub use failure::Failure;
pub use rights::Token;
