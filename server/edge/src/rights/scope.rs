//! Which groups, and which of their keys.
//!
//! `scores` is a group with all of its keys, `scores:user/*` are its keys that begin with `user/`,
//! `scores:Tom` is one key. `*` stands for every group. The first colon ends the group's name.

use std::collections::BTreeMap;
use std::sync::Arc;

/// Keys of one group.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Keys {
    #[default]
    /// Not any.
    None,
    /// Those that one of the patterns matches.
    Some(Arc<[Pattern]>),
    /// Every one.
    All,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Pattern {
    Exact(Box<[u8]>),
    Prefix(Box<[u8]>),
}

impl Pattern {
    fn matches(&self, key: &[u8]) -> bool {
        match self {
            Pattern::Exact(exact) => **exact == *key,
            Pattern::Prefix(prefix) => key.starts_with(prefix),
        }
    }
}

impl Keys {
    /// Whether a key is one of them.
    pub fn have(&self, key: &[u8]) -> bool {
        match self {
            Keys::All => true,
            Keys::None => false,
            Keys::Some(patterns) => patterns.iter().any(|pattern| pattern.matches(key)),
        }
    }

    fn and(&self, other: &Keys) -> Keys {
        match (self, other) {
            (Keys::All, _) | (_, Keys::All) => Keys::All,
            (Keys::None, keys) | (keys, Keys::None) => keys.clone(),
            (Keys::Some(a), Keys::Some(b)) => Keys::Some(a.iter().chain(b.iter()).cloned().collect()),
        }
    }
}

/// Keys of groups.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Scope {
    everywhere: Keys,
    named: BTreeMap<String, Keys>,
}

impl Scope {
    pub(super) fn everything() -> Self {
        Scope { everywhere: Keys::All, named: BTreeMap::new() }
    }

    /// Adds what one entry of a configuration says.
    ///
    /// # Errors
    /// What is wrong with it.
    pub(super) fn add(&mut self, entry: &str) -> Result<(), String> {
        let (group, keys) = match entry.split_once(':') {
            None => (entry, Keys::All),
            Some((group, keys)) => (group, Keys::Some([pattern(entry, keys)?].into())),
        };
        if group.is_empty() {
            return Err(format!("`{entry}` names no group; write it like scores, scores:user/* or *"));
        }
        if group != "*" && group.contains('*') {
            return Err(format!("`{entry}`: a `*` in the place of a group stands alone, for every group"));
        }
        let scope =
            if group == "*" { &mut self.everywhere } else { self.named.entry(group.to_owned()).or_default() };
        *scope = scope.and(&keys);
        Ok(())
    }

    pub(super) fn extend(&mut self, other: &Scope) {
        self.everywhere = self.everywhere.and(&other.everywhere);
        for (group, keys) in &other.named {
            let own = self.named.entry(group.clone()).or_default();
            *own = own.and(keys);
        }
    }

    /// The keys of this group.
    pub(super) fn keys(&self, group: &str) -> Keys {
        self.named.get(group).map_or_else(|| self.everywhere.clone(), |keys| keys.and(&self.everywhere))
    }

    pub(super) fn has(&self, group: &str, key: &[u8]) -> bool {
        self.everywhere.have(key) || self.named.get(group).is_some_and(|keys| keys.have(key))
    }

    pub(super) fn has_all(&self, group: &str) -> bool {
        self.everywhere == Keys::All || self.named.get(group) == Some(&Keys::All)
    }
}

fn pattern(entry: &str, keys: &str) -> Result<Pattern, String> {
    let (text, is_prefix) = keys.strip_suffix('*').map_or((keys, false), |prefix| (prefix, true));
    if text.contains('*') {
        return Err(format!("`{entry}`: a `*` stands at the end, for whatever follows"));
    }
    if text.is_empty() && !is_prefix {
        return Err(format!("`{entry}` names no key; write it like scores:user/* or scores:Tom"));
    }
    let bytes = text.as_bytes().into();
    Ok(if is_prefix { Pattern::Prefix(bytes) } else { Pattern::Exact(bytes) })
}
