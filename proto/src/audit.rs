//! The audit log: what operators did, who was refused what, and what was read anew of the configuration.
//!
//! Its lines are events of `tracing` with one target, so that a filter like `peanut::audit=info` keeps them,
//! and nothing else. Secrets and values are never in them.

/// The target of all events of the audit log.
pub const TARGET: &str = "peanut::audit";
