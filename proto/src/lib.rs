//! The contract of the Peanut cache: what client and server say to each other, and what a fleet keeps in
//! its registry.
//!
//! - [`v1`], [`loader_v1`] and [`peanutcachepb`] are the gRPC messages and services, generated from the `.proto` files.
//! - [`frame`] is how the messages of a lane are written and read, and [`codec`] how all meet tonic.
//! - [`membership`] is the ring document and the other records, with their key layout, as pure data.
//! - [`registry`] is the store behind them: etcd, or one process.
//! - `tls` (a feature) reads certificates, for both sides.
//! - [`discovery`] keeps a view of them current.
//!
//! Which node owns which key is not here: only clients need to know.

pub mod backoff;
pub mod change;
pub mod clock;
pub mod codec;
pub mod discovery;
pub mod failure;
pub mod frame;
pub mod limits;
pub mod membership;
pub mod registry;
#[cfg(feature = "tls")]
pub mod tls;

/// Messages and services of package `peanut.v1`.
#[allow(
    missing_docs,
    unreachable_pub,
    unused_qualifications,
    clippy::all,
    clippy::allow_attributes_without_reason,
    clippy::missing_errors_doc,
    clippy::wildcard_imports,
    rustdoc::all,
    reason = "generated"
)]
pub mod v1 {
    include!("generated/peanut.v1.rs");
}

/// Messages and service of package `peanut.loader.v1`: loaders outside the node.
#[allow(
    missing_docs,
    unreachable_pub,
    unused_qualifications,
    clippy::all,
    clippy::allow_attributes_without_reason,
    clippy::missing_errors_doc,
    clippy::wildcard_imports,
    rustdoc::all,
    reason = "generated"
)]
pub mod loader_v1 {
    include!("generated/peanut.loader.v1.rs");
}

/// Messages and service of the original PeanutCache.
#[allow(
    missing_docs,
    unreachable_pub,
    unused_qualifications,
    clippy::all,
    clippy::allow_attributes_without_reason,
    clippy::missing_errors_doc,
    clippy::wildcard_imports,
    rustdoc::all,
    reason = "generated"
)]
pub mod peanutcachepb {
    include!("generated/peanutcachepb.rs");
}

/// The encoded `FileDescriptorSet` of all packages, for the reflection service.
pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!("generated/descriptor_set.bin");
