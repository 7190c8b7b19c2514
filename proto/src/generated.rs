//! What `cargo xtask generate` makes of the `.proto` files. It is written by programs, and not linted.
#![allow(
    missing_docs,
    unreachable_pub,
    unused_qualifications,
    clippy::all,
    clippy::allow_attributes_without_reason,
    clippy::missing_errors_doc,
    clippy::too_many_lines,
    clippy::wildcard_imports,
    rustdoc::all,
    reason = "generated"
)]

/// Messages and services of package `peanut.v1`.
pub mod v1 {
    include!("generated/peanut.v1.rs");
}

/// Messages and service of package `peanut.loader.v1`: loaders outside the node.
pub mod loader_v1 {
    include!("generated/peanut.loader.v1.rs");
}

/// Messages and service of the original PeanutCache.
pub mod peanutcachepb {
    include!("generated/peanutcachepb.rs");
}
