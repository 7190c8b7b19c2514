//! The small records beside the ring document, and the one way in which all of them are written.
//!
//! Records are JSON with a `format` number. A reader takes its own format and refuses others by name;
//! fields that it does not know are ignored, so a newer build may add some.

use std::fmt;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::FORMAT;

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
}

/// What `clear` leaves behind: entries of an older generation are dead.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Group {
    /// Format of the record.
    pub format: u32,
    /// The group's generation.
    pub generation: u64,
}

/// An invalidation that could not reach its node and waits for it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Undelivered {
    /// Format of the record.
    pub format: u32,
    /// The group.
    pub group: String,
    /// The keys to forget; absent: the whole group.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "base64_list")]
    pub keys: Option<Vec<Vec<u8>>>,
    /// Ring version under which the invalidation was meant.
    pub ring_version: u64,
    /// When it was written, in milliseconds since 1970.
    pub at_ms: u64,
    /// The lane that could not deliver it: what still comes of that is not to be done any more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fence: Option<Fence>,
}

/// A slot of a client, and the first of its openings that is not shut out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fence {
    /// Random number of the client, as its lanes say it.
    pub client: u64,
    /// The slot.
    pub slot: u32,
    /// Lanes with a smaller epoch are shut out.
    pub epoch: u64,
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
record!(Liveness, Group, Undelivered);

/// A record in etcd cannot be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecordError(String);

impl RecordError {
    pub(super) fn new(why: String) -> Self {
        RecordError(why)
    }
}

impl fmt::Display for RecordError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
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
    let Format { format } =
        serde_json::from_slice(bytes).map_err(|e| RecordError(format!("not a Peanut record: {e}")))?;
    if format != FORMAT {
        return Err(RecordError(format!("format {format} is not known to this build, only {FORMAT}")));
    }
    serde_json::from_slice(bytes).map_err(|e| RecordError(format!("not a Peanut record: {e}")))
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
