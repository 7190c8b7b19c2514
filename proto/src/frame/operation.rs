//! `LaneRequest` as a server reads it: operation by operation, with pauses.

use bytes::Bytes;

use super::response::Target;
use super::wire::{FrameError, Value, slice_of, take_field};
use crate::numbers::{FillToken, RingVersion};
use crate::v1::operation::Kind;
use crate::v1::{Near, OnMiss};

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
        /// Milliseconds for which its near copies may be outdated; 0: writes wait for it.
        near_staleness_ms: u32,
    },
    /// The ring version that operations go by from here on.
    RingVersion(RingVersion),
    /// A group's number and name, and of which of its keys near copies are kept.
    Group(u32, &'a str, Near),
    /// An operation.
    Operation(Operation),
    /// Milliseconds that the operations after this have waited.
    WaitedMs(u32),
    /// The client asks for a pong.
    Ping,
    /// It asks for the lane's near lease, by this number.
    NearRenewal(u64),
    /// It has dropped the copies that invalidations up to this number name.
    NearConfirmed(u64),
}

/// An operation as it was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Operation {
    /// The client's number for it.
    pub id: u32,
    /// Of an operation of many keys: the position of this one.
    pub position: u32,
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
    pub owned_since: RingVersion,
    /// The node is asked in the owner's place.
    pub failover: bool,
    /// A fill token; 0: none.
    pub token: FillToken,
    /// What else it says, if it does.
    pub rare: Option<Box<Rare>>,
}

/// What few operations say: those that write, and those that are traced.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rare {
    /// The value, a slice of the frame.
    pub value: Bytes,
    /// Time to live in milliseconds; 0: the group's.
    pub ttl_ms: u64,
    /// The origin has no such key.
    pub not_found: bool,
    /// Why the load under the token has failed; empty: it has not.
    pub load_error: String,
    /// To which generation a group is cleared; of a delete, or of a set without a token, the key's sequence,
    /// which is to stand still, 0: whatever it is; of a get, not 0 where the caller reads a near copy that is
    /// about to end.
    pub raised: u64,
    /// W3C trace context of the caller, a slice of the frame; empty: none.
    pub traceparent: Bytes,
}

impl Operation {
    /// What its answer names.
    pub fn target(&self) -> Target {
        Target { id: self.id, position: self.position }
    }
}

impl RequestFrame {
    /// The fields, in the order in which they stand. Unknown ones are passed over. Ends after the first
    /// error. An operation of many keys is read as one operation for each.
    pub fn fields(&self) -> impl Iterator<Item = Result<RequestField<'_>, FrameError>> {
        let mut place = Place::default();
        std::iter::from_fn(move || place.next_field(&self.0))
    }

    /// Reads the frame field by field, with pauses.
    pub fn into_reader(self) -> RequestReader {
        RequestReader { frame: self.0, place: Place::default() }
    }
}

/// A request frame that is being read: a server that has an answer to send reads on later.
#[derive(Debug)]
pub struct RequestReader {
    frame: Bytes,
    place: Place,
}

/// How far a frame has been read.
#[derive(Debug, Default)]
struct Place {
    at: usize,
    /// The last field before `at`, where it is an operation of many keys that have not all been read.
    many: Option<Many>,
}

/// An operation of many keys that is being read: each key becomes an operation.
#[derive(Debug)]
struct Many {
    /// What all of them have in common.
    common: Operation,
    /// The field that each is in: the key of a get, or the whole of a write.
    each: u32,
    position: u32,
    /// What is left of the message begins here, and ends with it.
    at: usize,
}

impl RequestReader {
    /// What operations begin with: their field numbers and wire types.
    const OPERATION: u8 = 5 << 3 | 2;
    const GET_MANY: u8 = 7 << 3 | 2;
    const WRITE_MANY: u8 = 8 << 3 | 2;

    /// The next field, as [`RequestFrame::fields`] has them; `None` at the end.
    pub fn next_field(&mut self) -> Option<Result<RequestField<'_>, FrameError>> {
        self.place.next_field(&self.frame)
    }

    /// Whether the next field is an operation, as far as its first byte tells.
    pub fn is_at_operation(&self) -> bool {
        let begins = [RequestReader::OPERATION, RequestReader::GET_MANY, RequestReader::WRITE_MANY];
        self.place.many.is_some() || self.frame.get(self.place.at).is_some_and(|byte| begins.contains(byte))
    }
}

impl Place {
    fn next_field<'a>(&mut self, frame: &'a Bytes) -> Option<Result<RequestField<'a>, FrameError>> {
        loop {
            if let Some(many) = &mut self.many {
                match many.next(frame, self.at) {
                    Some(Ok(operation)) => return Some(Ok(RequestField::Operation(operation))),
                    Some(Err(error)) => {
                        (self.at, self.many) = (frame.len(), None);
                        return Some(Err(error));
                    }
                    None => self.many = None,
                }
            }
            if self.at >= frame.len() {
                return None;
            }
            let mut rest = &frame[self.at..];
            let read = take_field(&mut rest);
            self.at = frame.len() - rest.len();
            let read = read.and_then(|(number, value)| match number {
                7 => {
                    self.many = Some(read_get_many(frame, value.bytes()?, self.at)?);
                    Ok(None)
                }
                8 => {
                    self.many = Some(read_write_many(value.bytes()?, self.at)?);
                    Ok(None)
                }
                _ => field(frame, number, value),
            });
            match read {
                Ok(Some(field)) => return Some(Ok(field)),
                Ok(None) => {}
                Err(error) => {
                    self.at = frame.len();
                    return Some(Err(error));
                }
            }
        }
    }
}

#[inline]
fn field<'a>(
    frame: &'a Bytes,
    number: u32,
    value: Value<'a>,
) -> Result<Option<RequestField<'a>>, FrameError> {
    Ok(Some(match number {
        1 => read_open(value.bytes()?)?,
        2 => RequestField::RingVersion(RingVersion(value.number()?)),
        3 => read_group(value.bytes()?)?,
        4 => RequestField::WaitedMs(value.small()?),
        5 => RequestField::Operation(read_operation(frame, value.bytes()?)?),
        6 if value.number()? != 0 => RequestField::Ping,
        9 if value.number()? != 0 => RequestField::NearRenewal(value.number()?),
        10 if value.number()? != 0 => RequestField::NearConfirmed(value.number()?),
        _ => return Ok(None),
    }))
}

impl Many {
    /// The operation of the next key; the message ends at `end`.
    #[inline]
    fn next(&mut self, frame: &Bytes, end: usize) -> Option<Result<Operation, FrameError>> {
        let mut rest = &frame[self.at..end];
        while !rest.is_empty() {
            // It was read before, so this does not fail.
            let (number, value) = take_field(&mut rest).ok()?;
            let Value::Bytes(one) = value else { continue };
            if number != self.each {
                continue;
            }
            self.at = end - rest.len();
            let position = self.position;
            self.position += 1;
            if self.each == EACH_KEY {
                return Some(Ok(Operation { key: slice_of(frame, one), position, ..self.common.clone() }));
            }
            return Some(self.read_write(frame, one, position));
        }
        None
    }

    #[inline(never)]
    fn read_write(&self, frame: &Bytes, one: &[u8], position: u32) -> Result<Operation, FrameError> {
        let Operation { id, group, deadline_ms, .. } = self.common;
        Ok(Operation { id, group, deadline_ms, position, ..read_operation(frame, one)? })
    }
}

/// The fields of the messages of many keys that there is one of for each.
const EACH_KEY: u32 = 6;
pub(super) const EACH_WRITE: u32 = 4;

/// Reads all of a get of many but its keys, which are the fields that it ends with as a rule. `end` is where
/// it ends in the frame.
fn read_get_many(frame: &Bytes, message: &[u8], end: usize) -> Result<Many, FrameError> {
    let (mut common, mut from) = (nothing(), message);
    while !from.is_empty() {
        match take_field(&mut from)? {
            (1, value) => common.id = value.small()?,
            (2, value) => common.group = value.small()?,
            (3, value) => common.deadline_ms = value.small()?,
            (4, value) => common.owned_since = RingVersion(value.number()?),
            (5, value) => rare(&mut common).traceparent = slice_of(frame, value.bytes()?),
            (EACH_KEY, value) => value.bytes().map(drop)?,
            (7, value) => common.on_miss = enumeration(value)?,
            _ => {}
        }
    }
    Ok(Many { common, each: EACH_KEY, position: 0, at: end - message.len() })
}

/// Reads all of a write of many but the writes.
fn read_write_many(message: &[u8], end: usize) -> Result<Many, FrameError> {
    let (mut common, mut from) = (nothing(), message);
    while !from.is_empty() {
        match take_field(&mut from)? {
            (1, value) => common.id = value.small()?,
            (2, value) => common.group = value.small()?,
            (3, value) => common.deadline_ms = value.small()?,
            (EACH_WRITE, value) => value.bytes().map(drop)?,
            _ => {}
        }
    }
    Ok(Many { common, each: EACH_WRITE, position: 0, at: end - message.len() })
}

fn read_open(mut from: &[u8]) -> Result<RequestField<'static>, FrameError> {
    let (mut client_id, mut near_staleness_ms) = (0, 0);
    while !from.is_empty() {
        match take_field(&mut from)? {
            (1, value) => client_id = value.number()?,
            (2, value) => near_staleness_ms = value.small()?,
            _ => {}
        }
    }
    Ok(RequestField::Open { client_id, near_staleness_ms })
}

fn read_group(mut from: &[u8]) -> Result<RequestField<'_>, FrameError> {
    let (mut number, mut name, mut near) = (0, "", Near::Off);
    while !from.is_empty() {
        match take_field(&mut from)? {
            (1, value) => number = value.small()?,
            (2, value) => name = value.text()?,
            (3, value) => near = enumeration(value)?,
            _ => {}
        }
    }
    Ok(RequestField::Group(number, name, near))
}

#[inline]
fn read_operation(frame: &Bytes, mut from: &[u8]) -> Result<Operation, FrameError> {
    let mut read = nothing();
    while !from.is_empty() {
        match take_field(&mut from)? {
            (1, value) => read.id = value.small()?,
            (2, value) => read.kind = enumeration(value)?,
            (3, value) => read.group = value.small()?,
            (4, value) => read.key = slice_of(frame, value.bytes()?),
            (5, value) => read.deadline_ms = value.small()?,
            (6, value) => read.on_miss = enumeration(value)?,
            (7, value) => read.owned_since = RingVersion(value.number()?),
            (8, value) => read.failover = value.number()? != 0,
            (9, value) => rare(&mut read).value = slice_of(frame, value.bytes()?),
            (10, value) => rare(&mut read).ttl_ms = value.number()?,
            (11, value) => read.token = FillToken(value.number()?),
            (12, value) => rare(&mut read).not_found = value.number()? != 0,
            (13, value) => rare(&mut read).load_error = value.text()?.to_owned(),
            (14, value) => rare(&mut read).raised = value.number()?,
            (15, value) => rare(&mut read).traceparent = slice_of(frame, value.bytes()?),
            _ => {}
        }
    }
    Ok(read)
}

/// An operation that says nothing.
fn nothing() -> Operation {
    Operation {
        id: 0,
        position: 0,
        kind: Kind::Get,
        group: 0,
        key: Bytes::new(),
        deadline_ms: 0,
        on_miss: OnMiss::Load,
        owned_since: RingVersion::NONE,
        failover: false,
        token: FillToken::NONE,
        rare: None,
    }
}

fn rare(operation: &mut Operation) -> &mut Rare {
    operation.rare.get_or_insert_default()
}

#[inline]
fn enumeration<E: TryFrom<i32>>(value: Value<'_>) -> Result<E, FrameError> {
    let number = i32::try_from(value.number()?).map_err(|_| FrameError("unknown enumeration value"))?;
    E::try_from(number).map_err(|_| FrameError("unknown enumeration value"))
}
