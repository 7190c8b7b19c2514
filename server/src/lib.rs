//! A node of the Peanut cache.
//!
//! A node owns some of a fleet's keys, and does not route: it asks no other node, and goes by the ring only
//! to tell what of its entries is outdated. Clients know who owns a key, and ask it; it answers from its
//! store, or loads the key once for all who wait, and remembers. A get goes `service → cache → store`, and on
//! a miss `→ flight → loader`.
//!
//! [`Server`] runs a node inside any program, with a listener and a stop signal of the caller's. The
//! binary `peanut-server` is a configuration file in front of it.

#[cfg_attr(not(feature = "admin"), path = "no_admin.rs")]
mod admin;
mod breaker;
mod builder;
mod cache;
#[cfg(feature = "cli")]
pub mod command;
#[cfg(feature = "cli")]
mod config;
mod error;
mod flight;
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub mod fuzzing;
mod group;
mod hints;
mod hot;
mod journal;
mod lineage;
mod loader;
mod memory;
mod metrics;
mod near;
mod node;
mod notices;
mod persistence;
mod reconcile;
mod registration;
mod seen_ring;
// For the project's own measurements and tests; no part of the API.
#[doc(hidden)]
pub mod segment;
mod server;
mod service;
// As `segment`.
#[doc(hidden)]
pub mod store;
#[cfg(feature = "testing")]
pub mod testing;
mod threads;
mod validity;
mod wake;

use peanut_edge::{budget, connections, rights};

pub use builder::AdminTls;
pub use builder::ServerBuilder;
pub use error::{Error, ErrorKind};
pub use group::Group;
pub use hot::{HotKey, HotKeys};
pub use journal::PersistenceStats;
#[cfg(feature = "grpc")]
pub use loader::GrpcLoader;
#[cfg(feature = "http")]
pub use loader::HttpLoader;
#[cfg(feature = "redis")]
pub use loader::RedisLoader;
pub use loader::{LoadRequest, Loaded, Loader, LoaderError, LoaderFn, StaticLoader, loader_fn};
#[cfg(feature = "sql")]
pub use loader::{SqlLoader, SqlOptions};
pub use peanut_edge::Token;
pub use peanut_proto::registry;
pub use peanut_proto::tls::TlsFiles;
pub use registration::OnShutdown;
pub use server::{PreparedServer, Server, ServerHandle};
pub use store::Eviction;
