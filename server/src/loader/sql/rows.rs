//! What one query for many keys has answered: the rows of keys that were asked for, as far as there is room.

use std::collections::HashMap;

use bytes::Bytes;
use peanut_proto::limits::MAX_VALUE_BYTES;

use crate::loader::{Loaded, LoaderError, MOST_BATCH_BYTES};

/// The rows of one query.
#[derive(Debug)]
pub(super) struct Rows {
    /// By key, `None` where no row has come.
    found: HashMap<Bytes, Option<Found>>,
    bytes: usize,
    has_strange: bool,
}

#[derive(Clone, Debug)]
enum Found {
    Value(Option<Bytes>),
    /// Longer than a value may be: so many bytes.
    TooLong(usize),
    /// There was no room for it: it was dropped as it came.
    Dropped,
}

impl Rows {
    pub(super) fn of(keys: &[Bytes]) -> Self {
        let found = keys.iter().map(|key| (key.clone(), None)).collect();
        Rows { found, bytes: 0, has_strange: false }
    }

    /// Takes a row; of several for one key the first, as for one key.
    pub(super) fn take(&mut self, key: &[u8], value: Option<Bytes>) {
        let Some(found) = self.found.get_mut(key) else {
            self.has_strange = true;
            return;
        };
        if found.is_some() {
            return;
        }
        let length = value.as_ref().map_or(0, Bytes::len);
        *found = Some(if length > MAX_VALUE_BYTES {
            Found::TooLong(length)
        } else if self.bytes + length > MOST_BATCH_BYTES {
            Found::Dropped
        } else {
            self.bytes += length;
            Found::Value(value)
        });
    }

    /// Whether the database compares keys in a way of its own, so that rows came for others than were asked
    /// for, or one key's row stands for two.
    pub(super) fn are_by_another_comparison(&self) -> bool {
        let has_row =
            |(key, found): (&Bytes, &Option<Found>)| found.is_some().then(|| key.to_ascii_lowercase());
        let mut without = self.found.iter().filter(|(_, found)| found.is_none()).peekable();
        if self.has_strange || without.peek().is_none() {
            return self.has_strange;
        }
        let with: std::collections::HashSet<Vec<u8>> = self.found.iter().filter_map(has_row).collect();
        without.any(|(key, _)| with.contains(&key.to_ascii_lowercase()))
    }

    /// What is known of a key; `None` where it has to be asked for again.
    pub(super) fn loaded(&self, key: &[u8]) -> Option<Result<Loaded, LoaderError>> {
        match self.found.get(key).cloned().flatten() {
            None => Some(Ok(Loaded::not_found())),
            Some(Found::Value(value)) => Some(Ok(value.into())),
            Some(Found::TooLong(length)) => {
                let why = format!("the value has {length} bytes; the limit is {MAX_VALUE_BYTES}");
                Some(Err(LoaderError::of_key(why)))
            }
            Some(Found::Dropped) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_keeps_so_many_bytes_and_says_what_has_to_be_asked_again() {
        let keys: Vec<Bytes> = (0..8).map(|n| Bytes::from(format!("{n}"))).collect();
        let mut rows = Rows::of(&keys);
        for key in &keys[..6] {
            rows.take(key, Some(vec![0; MAX_VALUE_BYTES].into()));
        }
        rows.take(b"6", Some(vec![0; MAX_VALUE_BYTES + 1].into()));
        let again: Vec<&Bytes> = keys.iter().filter(|key| rows.loaded(key).is_none()).collect();
        assert_eq!(again, ["4", "5"]);
        assert!(rows.loaded(b"3").unwrap().is_ok() && rows.bytes <= MOST_BATCH_BYTES);
        assert!(rows.loaded(b"6").unwrap().unwrap_err().to_string().contains("8388608"));
        assert_eq!(rows.loaded(b"7").unwrap().unwrap(), Loaded::not_found());
        assert!(!rows.are_by_another_comparison());
    }

    #[test]
    fn the_first_row_of_a_key_counts_and_rows_of_other_keys_are_noticed() {
        let mut rows = Rows::of(&["a".into(), "A".into(), "b".into()]);
        rows.take(b"b", Some("1".into()));
        rows.take(b"b", Some("2".into()));
        assert_eq!(rows.loaded(b"b").unwrap().unwrap(), Loaded::found("1"));
        assert!(!rows.are_by_another_comparison());
        rows.take(b"A", None);
        assert!(rows.are_by_another_comparison(), "`a` has no row and `A` has one");
        let mut rows = Rows::of(&["a".into()]);
        rows.take(b"a ", None);
        assert!(rows.are_by_another_comparison());
    }
}
