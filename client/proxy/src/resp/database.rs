//! Databases: how the keys of a connection name groups.
//!
//! Redis has numbered databases, and applications write namespaces into keys. Here the number chooses between
//! the two: a database is a group, whose keys are taken as they are, or it takes the group from the key,
//! before the first colon.

use bytes::Bytes;

use super::reply::Reply;

/// What a number stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Database {
    /// Keys are `group:key`.
    Named,
    /// All keys are of this group.
    Group(Bytes),
}

/// A key, and the name of its group.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Key {
    pub(super) group: Bytes,
    pub(super) key: Bytes,
}

/// All databases, by number.
#[derive(Clone, Debug)]
pub(super) struct Databases(Vec<Database>);

impl Databases {
    /// Database 0 takes the group from the key, or is the default group where there is one; the others are
    /// groups, in order.
    pub(super) fn new(default_group: Option<String>, others: impl IntoIterator<Item = String>) -> Self {
        let group = |name: String| Database::Group(name.into());
        let first = default_group.map_or(Database::Named, group);
        Databases(std::iter::once(first).chain(others.into_iter().map(group)).collect())
    }

    /// The number that a caller names.
    ///
    /// # Errors
    /// The answer, where there is none of that number.
    pub(super) fn select(&self, number: &[u8]) -> Result<usize, Reply> {
        let number = super::command::number(number).ok_or_else(|| Reply::error("ERR invalid DB index"))?;
        let number = usize::try_from(number).ok().filter(|number| *number < self.0.len());
        number.ok_or_else(|| {
            Reply::error("ERR DB index is out of range: the proxy's setting `databases` has a group for each")
        })
    }

    /// What a key means in a database.
    ///
    /// # Errors
    /// The answer, where it names no group.
    pub(super) fn key(&self, database: usize, key: &Bytes) -> Result<Key, Reply> {
        match self.0.get(database) {
            Some(Database::Group(group)) => Ok(Key { group: group.clone(), key: key.clone() }),
            _ => {
                let colon = key.iter().position(|byte| *byte == b':').ok_or_else(|| {
                    Reply::error(
                        "ERR the key names no group: write it like group:key, or choose a group with SELECT",
                    )
                })?;
                Ok(Key { group: key.slice(..colon), key: key.slice(colon + 1..) })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(group: &'static str, key: &'static str) -> Result<Key, Reply> {
        Ok(Key { group: Bytes::from_static(group.as_bytes()), key: Bytes::from_static(key.as_bytes()) })
    }

    #[test]
    fn a_key_names_its_group_or_its_database_does() {
        let databases = Databases::new(None, ["scores".to_owned()]);
        let of = |database, text: &'static str| databases.key(database, &Bytes::from_static(text.as_bytes()));
        assert_eq!(of(0, "scores:user:1"), key("scores", "user:1"));
        assert_eq!(of(1, "scores:user:1"), key("scores", "scores:user:1"));
        assert!(of(0, "Tom").is_err());
        let databases = Databases::new(Some("pages".to_owned()), []);
        assert_eq!(databases.key(0, &Bytes::from_static(b"a:b")), key("pages", "a:b"));
    }

    #[test]
    fn a_number_without_a_group_is_refused() {
        let databases = Databases::new(None, ["scores".to_owned()]);
        assert_eq!((databases.select(b"0"), databases.select(b"1")), (Ok(0), Ok(1)));
        for number in [&b"2"[..], b"-1", b"x", b""] {
            assert!(databases.select(number).is_err(), "{number:?}");
        }
    }
}
