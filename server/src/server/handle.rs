//! A handle to a server that runs.

use std::sync::Arc;

use peanut_proto::tls::{Reloading, ServerTls};

use crate::error::Error;
use crate::hot::HotKey;
use crate::journal::PersistenceStats;
use crate::node::Node;
use crate::rights::Token;

/// Looks into a server while it runs, from [`PreparedServer::handle`](crate::PreparedServer::handle). Cheap
/// to clone.
#[derive(Clone, Debug)]
pub struct ServerHandle {
    pub(super) node: Node,
    pub(super) reloading: Vec<Arc<Reloading<ServerTls>>>,
}

impl ServerHandle {
    /// Reads the certificates again, for new connections. Where they cannot be used, the last good ones stay,
    /// with a warning. They are also read again by themselves, within a second of a change.
    pub fn reload_certificates(&self) {
        self.reloading.iter().for_each(|tls| tls.reload());
    }

    /// Puts these tokens in the place of those that the server has. Open lanes have their callers' rights
    /// looked up again with their next frame, and end with `UNAUTHENTICATED` where what let the caller in is
    /// gone. Says whether anything has changed.
    ///
    /// # Errors
    /// [`ErrorKind::Configuration`](crate::ErrorKind::Configuration) where they cannot be used, or are none
    /// where there are some; those that the server has stay in force.
    pub fn set_tokens(&self, tokens: &[Token]) -> Result<bool, Error> {
        Ok(self.node.tokens().replace(tokens)?)
    }

    /// The keys of a group that are asked for most, at most `most` and never more than 128, the hottest
    /// first; as of the last full window of five seconds. None where there is no such group.
    pub fn hot_keys(&self, group: &str, most: usize) -> Vec<HotKey> {
        self.node.cache(group).map(|cache| cache.hottest(most)).unwrap_or_default()
    }

    /// What is known of a group's segment files; `None` where there is no such group, or it has none.
    pub fn persistence(&self, group: &str) -> Option<PersistenceStats> {
        Some(self.node.cache(group).ok()?.journal()?.stats())
    }
}
