//! What a loader found for a key: a node's loader and an application's, with one type.

use std::time::Duration;

use bytes::Bytes;

/// What a loader found for a key: a value, which may have a lifetime of its own, or that the origin has no
/// such key.
///
/// An `Option` converts into it, and so do the usual types of bytes and text; a value of any other type is
/// put into `Some`, or into [`Loaded::found`]:
///
/// ```
/// use std::time::Duration;
/// # use peanut_proto::loaded::Loaded;
///
/// let for_a_minute = Loaded::found("630").ttl(Duration::from_secs(60));
/// # let _: Loaded = for_a_minute;
/// let as_long_as_the_group_says: Loaded = "589".into();
/// let no_such_key: Loaded = None::<String>.into();
/// assert_eq!(no_such_key, Loaded::not_found());
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Loaded<V = Bytes> {
    value: Option<V>,
    ttl: Option<Duration>,
}

impl<V> Loaded<V> {
    /// The origin has this value. It stays fresh for the group's `ttl`, unless [`ttl`](Self::ttl) says
    /// otherwise.
    pub fn found(value: impl Into<V>) -> Self {
        Loaded { value: Some(value.into()), ttl: None }
    }

    /// The origin has no such key, which is remembered for the group's `negative_ttl`.
    pub fn not_found() -> Self {
        Loaded { value: None, ttl: None }
    }

    /// How long the value stays fresh, in place of the group's `ttl` and at most its `max_ttl`; zero: it is
    /// not kept at all; `None`: as the group says. That nothing was found is remembered no longer than that
    /// either, and than the group's `negative_ttl`.
    #[must_use]
    pub fn ttl(self, ttl: impl Into<Option<Duration>>) -> Self {
        Loaded { ttl: ttl.into(), ..self }
    }

    /// The value; `None` where the origin has no such key.
    pub fn value(&self) -> Option<&V> {
        self.value.as_ref()
    }

    /// The value, and the lifetime that was given to it.
    pub fn into_parts(self) -> (Option<V>, Option<Duration>) {
        (self.value, self.ttl)
    }
}

impl<V, T: Into<V>> From<Option<T>> for Loaded<V> {
    fn from(value: Option<T>) -> Self {
        value.map_or_else(Loaded::not_found, Loaded::found)
    }
}

impl From<Bytes> for Loaded {
    fn from(value: Bytes) -> Self {
        Loaded::found(value)
    }
}

impl From<Vec<u8>> for Loaded {
    fn from(value: Vec<u8>) -> Self {
        Loaded::found(value)
    }
}

impl From<String> for Loaded {
    fn from(value: String) -> Self {
        Loaded::found(value)
    }
}

impl From<&'static str> for Loaded {
    fn from(value: &'static str) -> Self {
        Loaded::found(value)
    }
}

impl From<&'static [u8]> for Loaded {
    fn from(value: &'static [u8]) -> Self {
        Loaded::found(value)
    }
}
