//! The small records beside the ring document, and the one way in which all of them are written.
//!
//! Records are JSON with a `format` number. A reader takes its own format and refuses others by name;
//! fields that it does not know are ignored, so a newer build may add some.

use std::fmt;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::FORMAT;
use crate::numbers::{Generation, RingVersion};

/// That a node is alive: it holds a lease, and this record hangs on it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Liveness {
    /// Format of the record.
    pub format: u32,
    /// Where clients reach the node, `host:port`.
    pub addr: String,
    /// Random number of this run of the process, in hexadecimal.
    pub incarnation: String,
    /// Version of the server.
    pub build: String,
    /// When the process started, in milliseconds since 1970.
    pub started_ms: u64,
    /// The node's groups, in order of name; absent where the node does not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub groups: Option<Vec<LiveGroup>>,
}

/// A group that a node has.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LiveGroup {
    /// Its name.
    pub name: String,
    /// Whether the node can load what is missing: without a loader values come from clients only.
    pub loads: bool,
}

impl LiveGroup {
    /// Most bytes of names that a liveness record has.
    const MAX_BYTES: usize = 64 << 10;

    /// What a liveness record says of a node with these groups: `None` where they are too many to be named.
    pub fn told(groups: impl IntoIterator<Item = LiveGroup>) -> Option<Vec<LiveGroup>> {
        let mut groups: Vec<LiveGroup> = groups.into_iter().collect();
        groups.sort_by(|a, b| a.name.cmp(&b.name));
        let bytes: usize =
            groups.iter().map(|group| group.name.len() + r#"{"name":"","loads":false},"#.len()).sum();
        (bytes <= LiveGroup::MAX_BYTES).then_some(groups)
    }
}

/// What `clear` leaves behind: entries of an older generation are dead.
///
/// A generation is one more than the last, and not less than the time in milliseconds since 1970: so the next
/// one is newer also where the registry has lost the last, or it cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Group {
    /// Format of the record.
    pub format: u32,
    /// The group's generation.
    pub generation: Generation,
}

impl Group {
    /// How far ahead of a clock a generation may be.
    const MAX_AHEAD_MS: u64 = 24 * 3600 * 1000;

    /// Whether somebody's clock can have come to this generation. Any other number has not come from a
    /// `clear`, and no later one could be told from it.
    pub fn is_believable(generation: Generation, now_ms: u64) -> bool {
        generation <= Generation(now_ms.saturating_add(Group::MAX_AHEAD_MS))
    }

    /// The record that clears a group, in place of the stored one. One that cannot be read or believed is not
    /// counted on.
    pub fn next(stored: Option<&[u8]>, now_ms: u64) -> Self {
        let last = stored.and_then(|stored| Group::decode(stored).ok()).map(|group| group.generation);
        let last = last.filter(|last| Group::is_believable(*last, now_ms)).unwrap_or(Generation::NONE);
        Group { format: FORMAT, generation: Generation((last.0 + 1).max(now_ms)) }
    }
}

/// An invalidation that could not reach its node and waits for it. Its key names the node and the group.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hint {
    /// Format of the record.
    pub format: u32,
    /// The keys to forget; absent: the whole group.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "base64_list")]
    pub keys: Option<Vec<Vec<u8>>>,
    /// Ring version under which the invalidation was meant.
    pub ring_version: RingVersion,
    /// When it was written, in milliseconds since 1970.
    pub at_ms: u64,
}

/// The record that PeanutCache and every grpc-go etcd resolver read, under `<service>/<addr>`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct NamingRecord {
    /// 0: an address was added.
    pub op: u8,
    /// The address, `host:port`.
    pub addr: String,
    /// Anything or nothing.
    pub metadata: Option<serde_json::Value>,
}

impl NamingRecord {
    /// The record of an address.
    pub fn new(addr: &str) -> Self {
        NamingRecord { op: 0, addr: addr.to_owned(), metadata: None }
    }

    /// The key of an address under a service name.
    pub fn key(service: &str, addr: &str) -> String {
        format!("{service}/{addr}")
    }

    /// Writes the record as it stands in etcd.
    pub fn encode(&self) -> Vec<u8> {
        encode(self)
    }
}

macro_rules! record {
    ($($name:ident),*) => {$(
        impl $name {
            /// Writes the record as it stands in etcd.
            pub fn encode(&self) -> Vec<u8> {
                encode(self)
            }

            /// Reads a record.
            ///
            /// # Errors
            /// Where it is not such a record, or of a format that this build does not know.
            pub fn decode(bytes: &[u8]) -> Result<Self, RecordError> {
                decode(bytes)
            }
        }
    )*};
}
record!(Liveness, Group, Hint);

/// A record in etcd cannot be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecordError {
    why: String,
    is_newer: bool,
}

impl RecordError {
    /// Most characters of what is said: a record may be long, and goes into logs.
    const MAX_CHARS: usize = 300;

    pub(super) fn new(why: impl fmt::Display) -> Self {
        RecordError { why: why.to_string().chars().take(RecordError::MAX_CHARS).collect(), is_newer: false }
    }

    /// Whether the record is of a format that a newer build writes: it is good, and not for this one to
    /// replace.
    pub fn is_newer_format(&self) -> bool {
        self.is_newer
    }
}

impl fmt::Display for RecordError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.why)
    }
}

impl std::error::Error for RecordError {}

pub(super) fn encode<T: Serialize>(record: &T) -> Vec<u8> {
    serde_json::to_vec(record).expect("records hold only strings, numbers and lists")
}

pub(super) fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, RecordError> {
    #[derive(Deserialize)]
    struct Format {
        format: u32,
    }
    // The format first: a record of another format may have any other shape.
    let not_one = |e: serde_json::Error| RecordError::new(format!("not a Peanut record: {e}"));
    let Format { format } = serde_json::from_slice(bytes).map_err(not_one)?;
    if format != FORMAT {
        let why = format!("format {format} is not known to this build, only {FORMAT}");
        return Err(RecordError { is_newer: format > FORMAT, ..RecordError::new(why) });
    }
    serde_json::from_slice(bytes).map_err(not_one)
}

mod base64_list {
    use base64::Engine as _;
    use base64::engine::general_purpose::STANDARD;
    use serde::de::Error as _;
    use serde::{Deserialize as _, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(keys: &Option<Vec<Vec<u8>>>, to: S) -> Result<S::Ok, S::Error> {
        to.collect_seq(keys.iter().flatten().map(|key| STANDARD.encode(key)))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Vec<Vec<u8>>>, D::Error> {
        let keys = Vec::<String>::deserialize(from)?;
        let keys = keys.iter().map(|key| STANDARD.decode(key).map_err(D::Error::custom));
        keys.collect::<Result<_, _>>().map(Some)
    }
}
