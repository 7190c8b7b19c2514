//! Where in etcd each record of a fleet lives.

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
    /// An invalidation for a node, with its number.
    Undelivered(&'a str, &'a str),
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

    /// What the keys of all invalidations that wait for a node begin with.
    pub fn undelivered(&self, node_id: &str) -> String {
        format!("{}undelivered/{node_id}/", self.prefix)
    }

    /// What a key of this fleet stands for; `None` for a key that this build does not know.
    pub fn parse<'a>(&self, key: &'a str) -> Option<Key<'a>> {
        let rest = key.strip_prefix(&self.prefix)?;
        match rest.split_once('/') {
            None => (rest == "ring").then_some(Key::Ring),
            Some(("live", id)) => Some(Key::Live(id)),
            Some(("groups", group)) => Some(Key::Group(group)),
            Some(("undelivered", rest)) => {
                rest.split_once('/').map(|(id, number)| Key::Undelivered(id, number))
            }
            Some(_) => None,
        }
    }
}
