//! The Redis protocol, versions 2 and 3.
//!
//! ```text
//! bytes ── request ──> arguments ── command ──> Command ── pipeline ──> batches ── execute ──> replies
//! ```

mod batches;
mod command;
mod connection;
mod database;
mod execute;
mod pipeline;
mod reply;
mod request;
mod session;

use std::fmt::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicUsize, Ordering};

use peanut_edge::connections::Peer;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_util::sync::CancellationToken;

use crate::core::Core;
use database::Databases;

/// What all connections of clients of Redis share.
#[derive(Debug)]
pub(crate) struct Shared {
    core: Arc<Core>,
    databases: Databases,
    next_id: AtomicI64,
    connections: AtomicUsize,
}

impl Shared {
    /// Databases as in [`Databases::new`].
    pub(crate) fn new(core: Arc<Core>, default_group: Option<String>, databases: Vec<String>) -> Self {
        let databases = Databases::new(default_group, databases);
        Shared { core, databases, next_id: AtomicI64::new(1), connections: AtomicUsize::new(0) }
    }

    /// Serves one connection until it ends, or until `stop` and what it has asked by then is answered.
    pub(crate) async fn serve(
        &self,
        stream: impl AsyncRead + AsyncWrite + Unpin,
        peer: Peer,
        stop: &CancellationToken,
    ) {
        self.connections.fetch_add(1, Ordering::Relaxed);
        let _gone = Gone(&self.connections);
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        if let Err(error) = connection::serve(self, id, peer, stream, stop).await {
            tracing::debug!(id, %error, "a connection of a Redis client has ended");
        }
    }

    /// What `INFO` says. Clients wait until nothing is `loading`.
    fn info(&self) -> String {
        let stats = self.core.groups.stats();
        let hits = stats.hits + stats.near_hits + stats.stale + stats.coalesced;
        let lines = [
            ("# Server", None),
            ("peanut_version", Some(env!("CARGO_PKG_VERSION").to_owned())),
            ("redis_version", Some(AS_REDIS.to_owned())),
            ("redis_mode", Some("standalone".to_owned())),
            ("# Clients", None),
            ("connected_clients", Some(self.connections.load(Ordering::Relaxed).to_string())),
            ("# Persistence", None),
            ("loading", Some("0".to_owned())),
            ("# Stats", None),
            ("keyspace_hits", Some(hits.to_string())),
            ("keyspace_misses", Some((stats.loaded + stats.not_found).to_string())),
            ("near_hits", Some(stats.near_hits.to_string())),
        ];
        lines.into_iter().fold(String::new(), |mut text, (name, value)| {
            let _ = match value {
                None => write!(text, "{name}\r\n"),
                Some(value) => write!(text, "{name}:{value}\r\n"),
            };
            text
        })
    }
}

/// The version of Redis whose commands those here are as, which some clients look at.
const AS_REDIS: &str = "7.0.0";

struct Gone<'a>(&'a AtomicUsize);

impl Drop for Gone<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests;
