//! The groups that callers name, as handles of one client.
//!
//! A client remembers every group that it was asked for, so a proxy, whose callers may name anything, bounds
//! how many that are.

use std::collections::HashMap;

use parking_lot::RwLock;
use peanut_client::{Client, Group, Stats};

/// Names of groups that callers may have used, at most.
const MAX_GROUPS: usize = 1024;

/// Handles of groups.
#[derive(Debug)]
pub(crate) struct Groups {
    client: Client,
    known: RwLock<HashMap<Box<[u8]>, Group>>,
}

impl Groups {
    pub(crate) fn new(client: Client) -> Self {
        Groups { client, known: RwLock::default() }
    }

    /// The group of a name.
    ///
    /// # Errors
    /// What is wrong with the name, or that there have been too many.
    pub(crate) fn named(&self, name: &[u8]) -> Result<Group, &'static str> {
        if let Some(group) = self.known.read().get(name) {
            return Ok(group.clone());
        }
        let text = std::str::from_utf8(name).map_err(|_| "the group's name is not text")?;
        let mut known = self.known.write();
        if known.len() >= MAX_GROUPS && !known.contains_key(name) {
            return Err("callers of this proxy have named too many groups");
        }
        Ok(known.entry(name.into()).or_insert_with(|| self.client.group(text)).clone())
    }

    /// Whether there is a node that is not known to be down.
    pub(crate) fn are_reachable(&self) -> bool {
        self.client.nodes().iter().any(|node| node.up)
    }

    /// What gets came to since the proxy began.
    pub(crate) fn stats(&self) -> Stats {
        self.client.stats()
    }
}
