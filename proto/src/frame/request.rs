//! `LaneRequest`: operations from client to server.

use bytes::{Bytes, BytesMut};

use super::wire::{
    Fields, FrameError, Value, bytes_length, number_length, read_fields, slice_of, take_field,
};
use crate::v1::OnMiss;
use crate::v1::operation::Kind;

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
    pub owned_since: u64,
    /// The node is asked in the owner's place.
    pub failover: bool,
}

/// Writes request frames, operation by operation.
#[derive(Debug, Default)]
pub struct RequestWriter {
    buffer: BytesMut,
}

impl RequestWriter {
    /// Opens a lane: the client's random number, the lane's slot, and how often it was opened.
    pub fn open(&mut self, client_id: u64, slot: u32, epoch: u64) {
        let length = number_length(client_id) + number_length(slot.into()) + number_length(epoch);
        let fields = Fields::new().header(1, length);
        fields.number(1, client_id).number(2, slot.into()).number(3, epoch).put(&mut self.buffer);
    }

    /// Says the ring version that the operations of this frame go by.
    pub fn ring_version(&mut self, version: u64) {
        Fields::new().number(2, version).put(&mut self.buffer);
    }

    /// Names a group, before its first operation.
    pub fn group(&mut self, number: u32, name: &str) {
        let length = number_length(number.into()) + bytes_length(name.as_bytes());
        let fields = Fields::new().header(3, length).number(1, number.into());
        fields.header_of(2, name.as_bytes()).put(&mut self.buffer);
        self.buffer.extend_from_slice(name.as_bytes());
    }

    /// Appends a get.
    pub fn get(&mut self, get: &GetOperation<'_>) {
        let length = number_length(get.id.into())
            + number_length(get.group.into())
            + bytes_length(get.key)
            + number_length(get.deadline_ms.into())
            + number_length(get.owned_since)
            + number_length(get.failover.into());
        self.buffer.reserve(length + 4);
        let before = Fields::new().header(4, length).number(1, get.id.into()).number(3, get.group.into());
        before.header_of(4, get.key).put(&mut self.buffer);
        self.buffer.extend_from_slice(get.key);
        let after = Fields::new().number(5, get.deadline_ms.into()).number(7, get.owned_since);
        after.number(8, get.failover.into()).put(&mut self.buffer);
    }

    /// Says how long the frame has waited since its deadlines were written.
    pub fn waited_ms(&mut self, waited_ms: u32) {
        Fields::new().number(5, waited_ms.into()).put(&mut self.buffer);
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

/// A request frame as it is on the wire.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RequestFrame(pub Bytes);

/// One field of a request frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RequestField<'a> {
    /// The lane is opened.
    Open {
        /// Random number of the client.
        client_id: u64,
        /// The lane's position in the client's pool.
        slot: u32,
        /// Raised each time the slot is opened.
        epoch: u64,
    },
    /// The ring version that operations go by from here on.
    RingVersion(u64),
    /// A group's number and name.
    Group(u32, &'a str),
    /// An operation.
    Operation(Operation),
    /// Milliseconds that the frame has waited.
    WaitedMs(u32),
}

/// An operation as it was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Operation {
    /// The client's number for it.
    pub id: u32,
    /// What is to be done.
    pub kind: Kind,
    /// Number of the group.
    pub group: u32,
    /// The key, a slice of the frame.
    pub key: Bytes,
    /// Milliseconds until the answer is of no use; 0: no limit.
    pub deadline_ms: u32,
    /// What to do on a miss.
    pub on_miss: OnMiss,
    /// Ring version since which the node has owned the key.
    pub owned_since: u64,
    /// The node is asked in the owner's place.
    pub failover: bool,
}

impl RequestFrame {
    /// The fields, in the order in which they stand. Unknown ones are passed over.
    pub fn fields(&self) -> impl Iterator<Item = Result<RequestField<'_>, FrameError>> {
        read_fields(&self.0, |number, value| self.field(number, value))
    }

    #[inline]
    fn field<'a>(&'a self, number: u32, value: Value<'a>) -> Result<Option<RequestField<'a>>, FrameError> {
        Ok(Some(match number {
            1 => read_open(value.bytes()?)?,
            2 => RequestField::RingVersion(value.number()?),
            3 => read_group(value.bytes()?)?,
            4 => RequestField::Operation(read_operation(&self.0, value.bytes()?)?),
            5 => RequestField::WaitedMs(small(value)?),
            _ => return Ok(None),
        }))
    }
}

#[inline]
fn small(value: Value<'_>) -> Result<u32, FrameError> {
    u32::try_from(value.number()?).map_err(|_| FrameError("a number is too large for its field"))
}

fn read_open(mut from: &[u8]) -> Result<RequestField<'static>, FrameError> {
    let (mut client_id, mut slot, mut epoch) = (0, 0, 0);
    while !from.is_empty() {
        match take_field(&mut from)? {
            (1, value) => client_id = value.number()?,
            (2, value) => slot = small(value)?,
            (3, value) => epoch = value.number()?,
            _ => {}
        }
    }
    Ok(RequestField::Open { client_id, slot, epoch })
}

fn read_group(mut from: &[u8]) -> Result<RequestField<'_>, FrameError> {
    let (mut number, mut name) = (0, "");
    while !from.is_empty() {
        match take_field(&mut from)? {
            (1, value) => number = small(value)?,
            (2, value) => name = value.text()?,
            _ => {}
        }
    }
    Ok(RequestField::Group(number, name))
}

#[inline]
fn read_operation(frame: &Bytes, mut from: &[u8]) -> Result<Operation, FrameError> {
    let mut read = Operation {
        id: 0,
        kind: Kind::Get,
        group: 0,
        key: Bytes::new(),
        deadline_ms: 0,
        on_miss: OnMiss::Load,
        owned_since: 0,
        failover: false,
    };
    while !from.is_empty() {
        match take_field(&mut from)? {
            (1, value) => read.id = small(value)?,
            (2, value) => read.kind = enumeration(value)?,
            (3, value) => read.group = small(value)?,
            (4, value) => read.key = slice_of(frame, value.bytes()?),
            (5, value) => read.deadline_ms = small(value)?,
            (6, value) => read.on_miss = enumeration(value)?,
            (7, value) => read.owned_since = value.number()?,
            (8, value) => read.failover = value.number()? != 0,
            _ => {}
        }
    }
    Ok(read)
}

#[inline]
fn enumeration<E: TryFrom<i32>>(value: Value<'_>) -> Result<E, FrameError> {
    let number = i32::try_from(value.number()?).map_err(|_| FrameError("unknown enumeration value"))?;
    E::try_from(number).map_err(|_| FrameError("unknown enumeration value"))
}
