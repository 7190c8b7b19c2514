//! The bytes of a value, wherever they are.

use std::fmt;
use std::ops::Deref;

use bytes::Bytes;
use smallvec::SmallVec;
use triomphe::ThinArc;

/// Key and value in one allocation with one counter.
pub(super) type Record = ThinArc<(), u8>;

/// A record of a key and a value.
pub(super) fn record(key: &[u8], value: &[u8]) -> Record {
    // Small ones are put together on the stack.
    let mut both = SmallVec::<[u8; 1024]>::with_capacity(key.len() + value.len());
    both.extend_from_slice(key);
    both.extend_from_slice(value);
    Record::from_header_and_slice((), &both)
}

/// A value: bytes as a loader gave them, or a part of a stored record. Cheap to clone.
#[derive(Clone)]
pub struct Value(Place);

#[derive(Clone)]
enum Place {
    Loaded(Bytes),
    Stored { record: Record, key_bytes: usize },
}

impl Value {
    pub(super) fn stored(record: Record, key_bytes: usize) -> Self {
        Value(Place::Stored { record, key_bytes })
    }

    /// The same bytes, not copied.
    pub fn into_bytes(self) -> Bytes {
        match self.0 {
            Place::Loaded(bytes) => bytes,
            stored @ Place::Stored { .. } => Bytes::from_owner(Value(stored)),
        }
    }
}

impl Default for Value {
    fn default() -> Self {
        Value(Place::Loaded(Bytes::new()))
    }
}

impl<B: Into<Bytes>> From<B> for Value {
    fn from(bytes: B) -> Self {
        Value(Place::Loaded(bytes.into()))
    }
}

impl Deref for Value {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match &self.0 {
            Place::Loaded(bytes) => bytes,
            Place::Stored { record, key_bytes } => &record.slice[*key_bytes..],
        }
    }
}

impl AsRef<[u8]> for Value {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl<B: AsRef<[u8]>> PartialEq<B> for Value {
    fn eq(&self, other: &B) -> bool {
        **self == *other.as_ref()
    }
}

impl Eq for Value {}

impl fmt::Debug for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Value({} bytes)", self.len())
    }
}
