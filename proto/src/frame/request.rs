//! `LaneRequest` as a client writes it: operations from client to server.

use bytes::BytesMut;

use super::operation::{EACH_WRITE, RequestFrame};
use super::wire::{Fields, bytes_length, number_length, varint_length};
use crate::numbers::{FillToken, Generation, RingVersion};
use crate::v1::operation::Kind;
use crate::v1::{Near, OnMiss};

/// A get, ready to be written.
#[derive(Clone, Copy, Debug)]
pub struct GetOperation<'a> {
    /// Unique among those in flight on the lane.
    pub id: u32,
    /// Number of the group.
    pub group: u32,
    /// The key.
    pub key: &'a [u8],
    /// Milliseconds until the answer is of no use; 0: no limit.
    pub deadline_ms: u32,
    /// Ring version since which the node has owned the key.
    pub owned_since: RingVersion,
    /// The node is asked in the owner's place.
    pub failover: bool,
    /// What to do on a miss.
    pub on_miss: OnMiss,
    /// A fill token that is given back; 0: none.
    pub token: FillToken,
    /// The caller reads a near copy that is about to end.
    pub near: bool,
    /// W3C trace context of the caller; empty: none.
    pub traceparent: &'a str,
}

/// A get of many keys, ready to be written.
#[derive(Clone, Copy, Debug)]
pub struct GetManyOperation<'a> {
    /// Unique among those in flight on the lane.
    pub id: u32,
    /// Number of the group.
    pub group: u32,
    /// Milliseconds until the answers are of no use; 0: no limit.
    pub deadline_ms: u32,
    /// Ring version since which the node has owned all of the keys.
    pub owned_since: RingVersion,
    /// What to do on a miss.
    pub on_miss: OnMiss,
    /// W3C trace context of the caller; empty: none.
    pub traceparent: &'a str,
}

/// A write, ready to be written.
#[derive(Clone, Copy, Debug)]
pub struct WriteOperation<'a> {
    /// Unique among those in flight on the lane.
    pub id: u32,
    /// Number of the group.
    pub group: u32,
    /// Milliseconds until the answer is of no use; 0: no limit.
    pub deadline_ms: u32,
    /// The node is asked in the owner's place.
    pub failover: bool,
    /// What is to be written.
    pub write: Write<'a>,
}

/// What a write does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Write<'a> {
    /// Stores what is known of a key.
    Set {
        /// The key.
        key: &'a [u8],
        /// The value, that there is none, or that the load has failed.
        outcome: Filled<'a>,
        /// Time to live in milliseconds; 0: the group's.
        ttl_ms: u64,
        /// The fill token under which it was loaded; 0: none.
        token: FillToken,
    },
    /// Forgets a key, and stores its value in the same step where nothing has been written since; where
    /// something has, a fill token is asked for.
    Replace {
        /// The key.
        key: &'a [u8],
        /// The value.
        value: &'a [u8],
        /// Time to live in milliseconds; 0: the group's.
        ttl_ms: u64,
        /// The value is stored where this is the key's sequence still; not 0.
        sequence: u64,
    },
    /// As `Replace`, and no token is asked for.
    ReplaceOrForget {
        /// The key.
        key: &'a [u8],
        /// The value.
        value: &'a [u8],
        /// Time to live in milliseconds; 0: the group's.
        ttl_ms: u64,
        /// The value is stored where this is the key's sequence still; not 0.
        sequence: u64,
    },
    /// Forgets a key.
    Delete {
        /// The key.
        key: &'a [u8],
        /// It is to be set next: a fill token is asked for.
        then_set: bool,
        /// The token is asked for only where this is the key's sequence still; 0: whatever it is.
        sequence: u64,
    },
    /// Forgets the group.
    Clear {
        /// How many times it has been cleared; 0: not known.
        generation: Generation,
    },
    /// Gives a fill token back.
    Release {
        /// The token.
        token: FillToken,
    },
}

impl<'a> Write<'a> {
    /// Length of the key and the value, if any.
    pub fn bytes(&self) -> usize {
        self.key().len() + self.value_bytes()
    }

    /// Length of the value that it brings, if any.
    pub fn value_bytes(&self) -> usize {
        match self {
            Write::Set { outcome: Filled::Value(value), .. }
            | Write::Replace { value, .. }
            | Write::ReplaceOrForget { value, .. } => value.len(),
            _ => 0,
        }
    }

    /// The key that it is of, if it is of one.
    pub fn key(&self) -> &'a [u8] {
        match self {
            Write::Set { key, .. }
            | Write::Replace { key, .. }
            | Write::ReplaceOrForget { key, .. }
            | Write::Delete { key, .. } => key,
            Write::Clear { .. } | Write::Release { .. } => &[],
        }
    }
}

/// What a load has brought.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Filled<'a> {
    /// A value.
    Value(&'a [u8]),
    /// The origin has no such key.
    NotFound,
    /// It has failed with this message.
    Failed(&'a str),
}

/// Writes request frames, operation by operation.
#[derive(Debug, Default)]
pub struct RequestWriter {
    buffer: BytesMut,
}

impl RequestWriter {
    /// Opens a lane: the client's random number, and for how many milliseconds its near copies may be
    /// outdated; 0: writes wait for it.
    pub fn open(&mut self, client_id: u64, near_staleness_ms: u32) {
        let length = number_length(client_id) + number_length(near_staleness_ms.into());
        let fields = Fields::new().header(1, length).number(1, client_id);
        fields.number(2, near_staleness_ms.into()).put(&mut self.buffer);
    }

    /// Says the ring version that the operations of this frame go by.
    pub fn ring_version(&mut self, version: RingVersion) {
        Fields::new().number(2, version.0).put(&mut self.buffer);
    }

    /// Names a group, before its first operation, and says of which of its keys near copies are kept.
    pub fn group(&mut self, number: u32, name: &str, near: Near) {
        let length =
            number_length(number.into()) + bytes_length(name.as_bytes()) + number_length(near as u64);
        let fields = Fields::new().header(3, length).number(1, number.into());
        fields.header_of(2, name.as_bytes()).put(&mut self.buffer);
        self.buffer.extend_from_slice(name.as_bytes());
        Fields::new().number(3, near as u64).put(&mut self.buffer);
    }

    /// Asks for the lane's near lease, by a number that is not 0.
    pub fn near_renewal(&mut self, number: u64) {
        Fields::new().number(9, number).put(&mut self.buffer);
    }

    /// Says that the copies that invalidations up to this number name are dropped.
    pub fn near_confirmed(&mut self, number: u64) {
        Fields::new().number(10, number).put(&mut self.buffer);
    }

    /// Appends a get.
    pub fn get(&mut self, get: &GetOperation<'_>) {
        let length = number_length(get.id.into())
            + number_length(get.group.into())
            + bytes_length(get.key)
            + number_length(get.deadline_ms.into())
            + number_length(get.on_miss as u64)
            + number_length(get.owned_since.0)
            + number_length(get.failover.into())
            + number_length(get.token.0)
            + number_length(get.near.into())
            + bytes_length(get.traceparent.as_bytes());
        self.buffer.reserve(length + 4);
        let before = Fields::new().header(5, length).number(1, get.id.into()).number(3, get.group.into());
        before.header_of(4, get.key).put(&mut self.buffer);
        self.buffer.extend_from_slice(get.key);
        let after = Fields::new().number(5, get.deadline_ms.into()).number(6, get.on_miss as u64);
        let after = after.number(7, get.owned_since.0).number(8, get.failover.into());
        let after = after.number(11, get.token.0).number(14, get.near.into());
        if get.traceparent.is_empty() {
            return after.put(&mut self.buffer);
        }
        after.header_of(15, get.traceparent.as_bytes()).put(&mut self.buffer);
        self.buffer.extend_from_slice(get.traceparent.as_bytes());
    }

    /// Appends a get of many keys.
    pub fn get_many<'k>(&mut self, get: &GetManyOperation<'_>, keys: impl Iterator<Item = &'k [u8]> + Clone) {
        let key_length = |key: &[u8]| 1 + varint_length(key.len() as u64) + key.len();
        let length = number_length(get.id.into())
            + number_length(get.group.into())
            + number_length(get.deadline_ms.into())
            + number_length(get.owned_since.0)
            + bytes_length(get.traceparent.as_bytes())
            + number_length(get.on_miss as u64)
            + keys.clone().map(key_length).sum::<usize>();
        self.buffer.reserve(length + 10);
        let fields = Fields::new().header(7, length).number(1, get.id.into()).number(2, get.group.into());
        let fields = fields.number(3, get.deadline_ms.into()).number(4, get.owned_since.0);
        fields.header_of(5, get.traceparent.as_bytes()).put(&mut self.buffer);
        self.buffer.extend_from_slice(get.traceparent.as_bytes());
        Fields::new().number(7, get.on_miss as u64).put(&mut self.buffer);
        for key in keys {
            Fields::new().header(6, key.len()).put(&mut self.buffer);
            self.buffer.extend_from_slice(key);
        }
    }

    /// Appends many writes as one operation, whose number, group and deadline these are.
    pub fn write_many<'w>(
        &mut self,
        (id, group, deadline_ms): (u32, u32, u32),
        writes: impl Iterator<Item = &'w Write<'w>>,
    ) {
        // Their lengths are not reckoned beforehand, so they are written aside.
        let mut each = RequestWriter::default();
        for write in writes {
            let write = WriteOperation { id: 0, group: 0, deadline_ms: 0, failover: false, write: *write };
            each.write_as(EACH_WRITE, &write);
        }
        let before =
            number_length(id.into()) + number_length(group.into()) + number_length(deadline_ms.into());
        self.buffer.reserve(before + each.len() + 10);
        let fields = Fields::new().header(8, before + each.len()).number(1, id.into());
        fields.number(2, group.into()).number(3, deadline_ms.into()).put(&mut self.buffer);
        self.buffer.extend_from_slice(&each.buffer);
    }

    /// Appends a write.
    pub fn write(&mut self, operation: &WriteOperation<'_>) {
        self.write_as(5, operation);
    }

    fn write_as(&mut self, field: u32, operation: &WriteOperation<'_>) {
        let kind = match operation.write {
            Write::Set { .. } | Write::Replace { .. } | Write::ReplaceOrForget { .. } => Kind::Set,
            Write::Delete { .. } => Kind::Delete,
            Write::Clear { .. } => Kind::Clear,
            Write::Release { .. } => Kind::Release,
        };
        let key = operation.write.key();
        let (mut value, mut ttl, mut fill, mut not_found, mut error) = (&[][..], 0, 0, false, "");
        let (mut raised, mut on_miss) = (0, OnMiss::Load);
        match operation.write {
            Write::Set { outcome, ttl_ms, token, .. } => {
                (ttl, fill) = (ttl_ms, token.0);
                match outcome {
                    Filled::Value(bytes) => value = bytes,
                    Filled::NotFound => not_found = true,
                    Filled::Failed(message) => error = message,
                }
            }
            Write::Replace { value: bytes, ttl_ms, sequence, .. } => {
                (value, ttl, raised, on_miss) = (bytes, ttl_ms, sequence, OnMiss::Lease);
            }
            Write::ReplaceOrForget { value: bytes, ttl_ms, sequence, .. } => {
                (value, ttl, raised) = (bytes, ttl_ms, sequence);
            }
            Write::Delete { then_set, sequence, .. } => {
                on_miss = if then_set { OnMiss::Lease } else { on_miss };
                raised = sequence;
            }
            Write::Clear { generation } => raised = generation.0,
            Write::Release { token } => fill = token.0,
        }
        let length = number_length(operation.id.into())
            + number_length(kind as u64)
            + number_length(operation.group.into())
            + bytes_length(key)
            + number_length(operation.deadline_ms.into())
            + number_length(on_miss as u64)
            + number_length(operation.failover.into())
            + bytes_length(value)
            + number_length(ttl)
            + number_length(fill)
            + number_length(not_found.into())
            + bytes_length(error.as_bytes())
            + number_length(raised);
        self.buffer.reserve(length + 10);
        let fields =
            Fields::new().header(field, length).number(1, operation.id.into()).number(2, kind as u64);
        fields.number(3, operation.group.into()).header_of(4, key).put(&mut self.buffer);
        self.buffer.extend_from_slice(key);
        let fields = Fields::new().number(5, operation.deadline_ms.into()).number(6, on_miss as u64);
        let fields = fields.number(8, operation.failover.into());
        fields.header_of(9, value).put(&mut self.buffer);
        self.buffer.extend_from_slice(value);
        let fields = Fields::new().number(10, ttl).number(11, fill).number(12, not_found.into());
        fields.header_of(13, error.as_bytes()).put(&mut self.buffer);
        self.buffer.extend_from_slice(error.as_bytes());
        Fields::new().number(14, raised).put(&mut self.buffer);
    }

    /// Says how long the operations after this have waited since their deadlines were written.
    pub fn waited_ms(&mut self, waited_ms: u32) {
        Fields::new().number(4, waited_ms.into()).put(&mut self.buffer);
    }

    /// Asks for a pong.
    pub fn ping(&mut self) {
        Fields::new().number(6, 1).put(&mut self.buffer);
    }

    /// Bytes written so far.
    pub fn len(&self) -> usize {
        self.buffer.len()
    }

    /// Whether nothing has been written.
    pub fn is_empty(&self) -> bool {
        self.buffer.is_empty()
    }

    /// Appends the fields of a frame.
    pub fn append(&mut self, frame: &RequestFrame) {
        self.buffer.extend_from_slice(&frame.0);
    }

    /// Takes what was written as a frame and begins anew.
    pub fn take(&mut self) -> RequestFrame {
        RequestFrame(self.buffer.split().freeze())
    }
}
