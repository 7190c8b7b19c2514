//! Where in etcd each record of a fleet lives.

use crate::registry::KeyRange;

/// Longest node id, group name or fleet name, in bytes.
pub const MAX_NAME_BYTES: usize = 128;

/// Checks a name that becomes part of an etcd key: a node id, a group or a fleet.
///
/// # Errors
/// What is wrong with it, worded to follow the name.
pub fn check_name(name: &str) -> Result<(), &'static str> {
    if name.is_empty() {
        Err("is empty; give it at least one character")
    } else if name.len() > MAX_NAME_BYTES {
        Err("is longer than 128 bytes")
    } else if name.chars().any(|c| c == '/' || c.is_control()) {
        Err("contains a slash or a control character")
    } else {
        Ok(())
    }
}

/// The etcd keys of one fleet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Keys {
    prefix: String,
}

/// What a key of a fleet stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Key<'a> {
    /// The ring document.
    Ring,
    /// Liveness of the node of that id.
    Live(&'a str),
    /// The group of that name.
    Group(&'a str),
    /// An invalidation that waits for a node.
    Hint {
        /// The node's id.
        node: &'a str,
        /// The group. The key says it, not the record: so the registry's rights can follow groups.
        group: &'a str,
        /// Its writer and number.
        name: &'a str,
    },
}

impl Keys {
    /// The keys of the fleet of that name.
    pub fn new(fleet: &str) -> Self {
        Keys { prefix: format!("/peanut/{fleet}/") }
    }

    /// What all keys of the fleet begin with.
    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    /// Key of the ring document.
    pub fn ring(&self) -> String {
        format!("{}ring", self.prefix)
    }

    /// Key of a node's liveness.
    pub fn live(&self, node_id: &str) -> String {
        format!("{}live/{node_id}", self.prefix)
    }

    /// Key of a group's record.
    pub fn group(&self, group: &str) -> String {
        format!("{}groups/{group}", self.prefix)
    }

    /// Key of the mark that a node makes in the registry and on its disk at each start.
    pub fn lineage(&self, node_id: &str) -> String {
        format!("{}lineage/{node_id}", self.prefix)
    }

    /// What the keys of all invalidations begin with.
    pub fn all_hints(&self) -> String {
        format!("{}undelivered/", self.prefix)
    }

    /// What the keys of all invalidations that wait for a node begin with.
    pub fn hints_for(&self, node_id: &str) -> String {
        format!("{}undelivered/{node_id}/", self.prefix)
    }

    /// What the keys of a group's invalidations that wait for a node begin with.
    pub fn hints_of(&self, node_id: &str, group: &str) -> String {
        format!("{}undelivered/{node_id}/{group}/", self.prefix)
    }

    /// What says where keys are: the ring document first, then the liveness of nodes. Clients read no more.
    pub fn placement(&self) -> [KeyRange; 2] {
        [KeyRange::key(&self.ring()), KeyRange::prefix(&self.live(""))]
    }

    /// What a key of this fleet stands for; `None` for a key that this build does not know.
    pub fn parse<'a>(&self, key: &'a str) -> Option<Key<'a>> {
        let rest = key.strip_prefix(&self.prefix)?;
        match rest.split_once('/') {
            None => (rest == "ring").then_some(Key::Ring),
            Some(("live", id)) => Some(Key::Live(id)),
            Some(("groups", group)) => Some(Key::Group(group)),
            Some(("undelivered", rest)) => {
                let (node, rest) = rest.split_once('/')?;
                let (group, name) = rest.split_once('/')?;
                Some(Key::Hint { node, group, name })
            }
            Some(_) => None,
        }
    }
}
