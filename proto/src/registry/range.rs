//! Which keys are read or watched, and the pages in which they are read.

use super::Entry;

/// A range of keys in the order of their bytes: from the first, inclusive, to the last, exclusive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyRange {
    from: Vec<u8>,
    /// Empty: no end.
    to: Vec<u8>,
}

impl KeyRange {
    /// Every key that begins with `prefix`.
    pub fn prefix(prefix: &str) -> Self {
        let mut to = prefix.as_bytes().to_vec();
        // The last byte of UTF-8 is never 0xff, so the next prefix of that length is one more.
        if let Some(last) = to.last_mut() {
            *last += 1;
        }
        KeyRange { from: prefix.as_bytes().to_vec(), to }
    }

    /// That key alone.
    pub fn key(key: &str) -> Self {
        KeyRange { from: key.as_bytes().to_vec(), to: after(key.as_bytes()) }
    }

    /// The part of this range behind every key that begins with `prefix`.
    #[must_use]
    pub fn behind(&self, prefix: &str) -> Self {
        KeyRange { from: KeyRange::prefix(prefix).to, to: self.to.clone() }
    }

    /// The part of this range behind `key`.
    #[must_use]
    pub(super) fn after(&self, key: &[u8]) -> Self {
        KeyRange { from: after(key), to: self.to.clone() }
    }

    /// Whether a key is one of the range's.
    pub fn contains(&self, key: &str) -> bool {
        key.as_bytes() >= &self.from[..] && (self.to.is_empty() || key.as_bytes() < &self.to[..])
    }

    /// The first key that may be in the range.
    pub(super) fn from(&self) -> &[u8] {
        &self.from
    }

    /// The first key behind the range; empty: there is none.
    #[cfg(feature = "etcd")]
    pub(super) fn to(&self) -> &[u8] {
        &self.to
    }
}

/// The least key that is greater.
fn after(key: &[u8]) -> Vec<u8> {
    [key, &[0]].concat()
}

/// How a page is read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PageOptions {
    /// The revision as of which it is read; 0: the latest.
    pub revision: i64,
    /// Most entries that are wanted; 0: as many as fit.
    pub limit: usize,
    /// Reads no values.
    pub keys_only: bool,
}

impl PageOptions {
    /// A page as of that revision, in other respects as long as it comes.
    pub fn at(revision: i64) -> Self {
        PageOptions { revision, ..PageOptions::default() }
    }
}

/// The first keys of a range.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Page {
    /// The revision as of which it was read; changes after it are watched from `revision + 1`.
    pub revision: i64,
    /// The entries, in order of key. One whose value is longer than this process takes has an empty value.
    pub entries: Vec<Entry>,
    /// What is left of the range; `None` where this was all.
    pub next: Option<KeyRange>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_has_what_it_says() {
        let prefix = KeyRange::prefix("/p/a");
        assert!(["/p/a", "/p/a/b", "/p/ab", "/p/a\u{10ffff}"].iter().all(|key| prefix.contains(key)));
        assert!(["/p/b", "/p/", "/p/A"].iter().all(|key| !prefix.contains(key)));
        let key = KeyRange::key("/p/a");
        assert!(key.contains("/p/a") && !key.contains("/p/ab") && !key.contains("/p/a/b"));
        let rest = KeyRange::prefix("/p/").behind("/p/a/");
        assert!(!rest.contains("/p/a/zzz") && rest.contains("/p/a0") && !rest.contains("/q"));
        assert!(KeyRange::prefix("").contains("anything"));
        assert_eq!(KeyRange::prefix("/p/").after(b"/p/x").from(), b"/p/x\0");
    }
}
