//! Client of the Peanut cache.
//!
//! A client watches the fleet's ring in etcd and sends each get straight to the node that owns the key;
//! that node answers from its store or loads the key, once for everyone who asks. There is no proxy and
//! one hop.
//!
//! ```no_run
//! # async fn page(_: &str) -> Result<Option<String>, std::io::Error> { Ok(None) }
//! # async fn f() -> Result<(), peanut_client::Error> {
//! use peanut_client::Client;
//!
//! let client = Client::builder().etcd("http://127.0.0.1:2379").build().await?;
//! let pages = client.group("pages");
//! // Loaded once for all processes that ask at the same time, and kept.
//! let home = pages.get_or_load("/", || page("/")).await?;
//! // After the database was written.
//! pages.delete("/").await?;
//! # drop(home); Ok(()) }
//! ```
//!
//! Where to begin: [`Client`], [`Group::get_or_load`], [`Group::begin_write`] for keys that several may write
//! at the same time, `Group::json` (feature `json`) for values of one type, [`NearCache`] for hot keys. The
//! client logs by the crate `tracing`: install a subscriber to see it.
//!
//! Inside, a get goes `group → failover → routing → ring`, which says whom to ask, and `→ node → lane`, which
//! asks. Beside it runs `discovery`, which swaps the routing table whole when the ring changes.
//!
//! An application that builds against this crate with feature `etcd` (the default) needs `protoc` for
//! etcd's client; without the feature there are fixed lists and registries of one process.

mod addresses;
mod background;
mod budget;
mod builder;
mod claims;
mod clear;
mod client;
mod config;
mod connect;
mod connection;
mod discovery;
mod error;
mod failover;
mod fill;
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub mod fuzzing {
    pub use crate::lane::fuzzing::{GetsOfALane, answers};
}
mod group;
mod health;
#[cfg(feature = "json")]
mod json;
mod lane;
mod leases;
mod many;
mod membership;
#[cfg(feature = "metrics")]
mod metrics;
mod monitor;
mod near;
mod node;
mod owed;
mod plan;
mod portions;
mod recent;
mod refusal;
mod repeat;
mod report;
mod request;
pub mod ring;
mod routing;
mod sequences;
mod shared;
mod stats;
#[cfg_attr(not(feature = "metrics"), path = "no_tally.rs")]
mod tally;
mod tls;
mod token;
mod unary;
#[cfg(feature = "json")]
mod undecodable;
mod write;

pub use addresses::Addresses;
pub use builder::ClientBuilder;
pub use bytes::Bytes;
pub use client::{Client, NodeStatus};
pub use config::Failover;
pub use error::{Error, ErrorKind};
pub use group::{BegunWrite, Detailed, Group, HeldEntry, Holding, KeyRole, Source};
#[cfg(feature = "json")]
pub use json::{BegunJsonWrite, JsonGroup};
pub use near::{NearCache, NearKeys};
pub use peanut_proto::loaded::Loaded;
pub use peanut_proto::membership::{Notice, PartialGroup, SharedAddress};
pub use peanut_proto::registry;
pub use peanut_proto::tls::TlsFiles;
pub use report::{GroupReport, HotKeyReport, NodeReport};
pub use stats::Stats;
pub use tls::Tls;
