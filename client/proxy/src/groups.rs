//! The groups that callers name, as handles of one client.
//!
//! A client remembers every group that it was asked for, so a proxy, whose callers may name anything, bounds
//! how many that are. Names that no node serves, such as misspelt ones, take no place among those that are
//! served, and there may be more of them.

use std::collections::{HashMap, HashSet};

use parking_lot::RwLock;
use peanut_client::{Client, Error, ErrorKind, Group, Stats};
use peanut_proto::membership::check_name;

/// Groups that callers use, at most.
const MAX_GROUPS: usize = 1024;
/// Names that callers have used since the proxy began, at most. Each takes some hundred bytes.
const MAX_NAMES: usize = 1 << 16;

/// Handles of groups.
#[derive(Debug)]
pub(crate) struct Groups {
    client: Client,
    names: RwLock<Names<Group>>,
}

/// The names that callers have used, and the handles of those that nodes serve.
#[derive(Debug)]
struct Names<G> {
    used: HashMap<Box<[u8]>, G>,
    /// Those for which no node has answered, or that no node served when it was asked last.
    unserved: HashSet<Box<[u8]>>,
}

impl<G: Clone> Names<G> {
    /// The handle of a name, which has no place before a node has answered for it.
    ///
    /// # Errors
    /// Where there have been too many.
    fn of(&mut self, name: &[u8], handle: impl FnOnce() -> G) -> Result<G, String> {
        if let Some(handle) = self.used.get(name) {
            return Ok(handle.clone());
        }
        let is_new = !self.unserved.contains(name);
        let count = self.used.len() + self.unserved.len();
        if self.used.len() >= MAX_GROUPS || is_new && count >= MAX_NAMES {
            return Err("callers of this proxy have named too many groups".to_owned());
        }
        if is_new {
            self.unserved.insert(name.into());
        }
        Ok(handle())
    }

    /// Gives a name a place: a node has answered for it.
    fn place(&mut self, name: &[u8], handle: G) {
        if self.used.len() < MAX_GROUPS
            && let Some(name) = self.unserved.take(name)
        {
            self.used.insert(name, handle);
        }
    }

    /// Gives the place of a name that no node serves to others.
    fn free(&mut self, name: &[u8]) {
        if let Some((name, _)) = self.used.remove_entry(name) {
            self.unserved.insert(name);
        }
    }
}

impl Groups {
    pub(crate) fn new(client: Client) -> Self {
        let names = Names { used: HashMap::new(), unserved: HashSet::new() };
        Groups { client, names: RwLock::new(names) }
    }

    /// The group of a name. It remembers the name: check before whether the caller has a right to it.
    ///
    /// # Errors
    /// What is wrong with the name, or that there have been too many.
    pub(crate) fn named(&self, name: &[u8]) -> Result<Group, String> {
        if let Some(group) = self.names.read().used.get(name) {
            return Ok(group.clone());
        }
        let text = as_text(name)?;
        check_name(text).map_err(|why| format!("the group's name {why}"))?;
        self.names.write().of(name, || self.client.group(text))
    }

    /// Takes note of what calls to a group came to: one for which a node has answered has a place, and one
    /// that no node serves gives its place to another.
    pub(crate) fn heed<'r, T: 'r>(
        &self,
        group: &Group,
        results: impl IntoIterator<Item = &'r Result<T, Error>>,
    ) {
        let is_unserved = |result: &Result<T, Error>| {
            result.as_ref().is_err_and(|error| error.kind() == ErrorKind::UnknownGroup)
        };
        // Other errors may be of calls that no node was asked for.
        let is_answered = |result: &Result<T, Error>| {
            result.as_ref().map_or_else(|error| error.kind() == ErrorKind::Loader, |_| true)
        };
        let (mut unserved, mut answered) = (false, false);
        for result in results {
            unserved |= is_unserved(result);
            answered |= is_answered(result);
        }
        let name = group.name().as_bytes();
        if unserved {
            self.names.write().free(name);
        } else if answered && !self.names.read().used.contains_key(name) {
            self.names.write().place(name, group.clone());
        }
    }

    /// The names of groups that have a place.
    #[cfg(test)]
    pub(crate) fn used(&self) -> Vec<String> {
        let names = self.names.read();
        names.used.keys().map(|name| String::from_utf8(name.to_vec()).unwrap()).collect()
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

/// A group's name as text.
///
/// # Errors
/// Where it is none.
pub(crate) fn as_text(name: &[u8]) -> Result<&str, &'static str> {
    std::str::from_utf8(name).map_err(|_| "the group's name is not text")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_that_no_node_serves_takes_no_place_and_there_is_an_end_to_names() {
        let mut names = Names { used: HashMap::new(), unserved: HashSet::new() };
        for n in 0..MAX_NAMES - 1 {
            let name = format!("typo{n}");
            names.of(name.as_bytes(), || n).unwrap();
        }
        assert_eq!(names.of(b"scores", || 0), Ok(0));
        names.place(b"scores", 0);
        assert!(names.of(b"pages", || 1).is_err(), "one name too many");
        assert_eq!(names.of(b"typo7", || 7), Ok(7), "it may be served by now");
        names.place(b"typo7", 7);
        assert_eq!((names.used.len(), names.unserved.len()), (2, MAX_NAMES - 2));
    }

    #[test]
    fn there_is_an_end_to_groups_that_are_used() {
        let mut names = Names { used: HashMap::new(), unserved: HashSet::new() };
        for n in 0..MAX_GROUPS {
            let name = format!("group{n}");
            assert_eq!(names.of(name.as_bytes(), || n), Ok(n));
            names.place(name.as_bytes(), n);
        }
        assert!(names.of(b"one more", || 0).is_err());
        assert_eq!(names.of(b"group5", || 0), Ok(5));
        names.free(b"group6");
        assert_eq!(names.of(b"one more", || 1), Ok(1));
    }
}
