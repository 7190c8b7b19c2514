//! The contract of the Peanut cache: what client and server say to each other, and what a fleet keeps in
//! its registry.
//!
//! - [`v1`], [`loader_v1`] and [`peanutcachepb`] are the gRPC messages and services, generated from the
//!   `.proto` files.
//! - [`frame`] is how the messages of a lane are written and read, and [`codec`] how all meet tonic.
//! - [`membership`] is the ring document and the other records, with their key layout, as pure data.
//! - [`registry`] is the store behind them: etcd, or one process.
//! - `tls` (a feature) reads certificates, for both sides.
//! - [`discovery`] keeps a view of them current.
//! - [`fixed`] is a fleet without a registry of its own.
//! - [`loaded`] is what a loader found, of a node or of an application.
//! - [`key`] hashes keys, for rings and for near copies.
//! - [`numbers`] are the types of versions, tokens and generations.
//! - [`sequence`] numbers the writes of a key.
//! - [`intervals`] holds the times that processes rely on one another for.
//! - [`causes`] of errors, and [`striped`] counts, are the same on both sides.
//! - [`clock`] and [`machine`] are what both sides take from the system, and what a simulator replaces.
//!
//! Which node owns which key is not here: only clients need to know.

pub mod address;
pub mod audit;
pub mod backoff;
pub mod bounds;
pub mod causes;
pub mod certificate;
pub mod change;
pub mod clock;
pub mod codec;
pub mod discovery;
pub mod failure;
pub mod fixed;
pub mod frame;
mod generated;
pub mod intervals;
pub mod key;
pub mod limits;
pub mod loaded;
pub mod machine;
pub mod membership;
pub mod nothing;
pub mod numbers;
pub mod registry;
pub mod sabotage;
pub mod sequence;
pub mod striped;
pub mod tls;

pub use generated::{loader_v1, peanutcachepb, v1};

/// The encoded `FileDescriptorSet` of all packages, for the reflection service.
pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!("generated/descriptor_set.bin");
