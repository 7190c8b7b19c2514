//! `LaneResponse`: answers from server to client.

use bytes::{Bytes, BytesMut};

use super::wire::{
    Fields, FrameError, Value, bytes_length, number_length, read_fields, slice_of, take_field, varint_length,
};
use crate::numbers::{FillToken, RingVersion};
use crate::v1::{ErrorCode, Outcome};

/// What is answered: an operation, or one key of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Target {
    /// The client's number of the operation.
    pub id: u32,
    /// Of an operation of many keys: the position of the key; else 0.
    pub position: u32,
}

/// The fields of an answer, except its value.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AnswerFields {
    /// The operation's number.
    pub id: u32,
    /// Of an operation of many keys: the position of the key.
    pub position: u32,
    /// How the answer came about; unspecified in a further piece of a value.
    pub outcome: Outcome,
    /// Milliseconds since the value was loaded.
    pub age_ms: u64,
    /// Milliseconds that it stays fresh.
    pub ttl_ms: u64,
    /// Milliseconds after which a near copy is to be asked for anew; 0: none may be kept.
    pub near_ms: u32,
    /// A fill token; 0: none.
    pub token: FillToken,
    /// Length of the whole value where it comes in pieces.
    pub value_bytes: u64,
    /// With a token: the key may have been written since the node came to own it.
    pub written: bool,
    /// Of a delete: the key's sequence.
    pub sequence: u64,
}

impl AnswerFields {
    /// What it answers.
    pub fn target(&self) -> Target {
        Target { id: self.id, position: self.position }
    }
}

/// Writes response frames, answer by answer.
#[derive(Debug, Default)]
pub struct ResponseWriter {
    buffer: BytesMut,
}

impl ResponseWriter {
    /// Says the newest ring version that the server has seen.
    pub fn ring_version(&mut self, version: RingVersion) {
        Fields::new().number(1, version.0).put(&mut self.buffer);
    }

    /// Appends an answer with its value, or a piece of it.
    pub fn answer(&mut self, answer: &AnswerFields, value: &[u8]) {
        let outcome = answer.outcome as u64;
        let length = number_length(answer.id.into())
            + number_length(outcome)
            + bytes_length(value)
            + number_length(answer.age_ms)
            + number_length(answer.ttl_ms)
            + number_length(answer.near_ms.into())
            + number_length(answer.token.0)
            + number_length(answer.value_bytes)
            + number_length(answer.written.into())
            + number_length(answer.sequence)
            + number_length(answer.position.into());
        self.buffer.reserve(length + 10);
        let before = Fields::new().header(2, length).number(1, answer.id.into()).number(2, outcome);
        before.header_of(3, value).put(&mut self.buffer);
        self.buffer.extend_from_slice(value);
        let after = Fields::new().number(4, answer.age_ms).number(5, answer.ttl_ms);
        let after = after.number(6, answer.near_ms.into());
        let after = after.number(7, answer.token.0).number(9, answer.value_bytes);
        after
            .number(10, answer.written.into())
            .number(11, answer.sequence)
            .number(12, answer.position.into())
            .put(&mut self.buffer);
    }

    /// Appends the answer that an operation has failed.
    pub fn failure(&mut self, Target { id, position }: Target, code: ErrorCode, message: &str) {
        let outcome = Outcome::Failed as u64;
        let error = number_length(code as u64) + bytes_length(message.as_bytes());
        let header = 1 + varint_length(error as u64);
        let length = number_length(id.into())
            + number_length(outcome)
            + header
            + error
            + number_length(position.into());
        let fields = Fields::new().header(2, length).number(1, id.into()).number(2, outcome);
        let fields = fields.header(8, error).number(1, code as u64).header_of(2, message.as_bytes());
        fields.put(&mut self.buffer);
        self.buffer.extend_from_slice(message.as_bytes());
        Fields::new().number(12, position.into()).put(&mut self.buffer);
    }

    /// Names near copies that are outdated by the hashes of their keys; none: all of the lane. `number` is to
    /// be confirmed.
    pub fn invalidation(&mut self, number: u64, hashes: &[u64]) {
        let keys = size_of_val(hashes);
        let header = if keys == 0 { 0 } else { 1 + varint_length(keys as u64) };
        let length = number_length(number) + header + keys;
        self.buffer.reserve(length + 10);
        let fields = Fields::new().header(3, length).number(1, number);
        if keys == 0 {
            return fields.put(&mut self.buffer);
        }
        fields.header(2, keys).put(&mut self.buffer);
        hashes.iter().for_each(|hash| self.buffer.extend_from_slice(&hash.to_le_bytes()));
    }

    /// Answers a renewal of the near lease. `is_new`: copies from before this are outdated.
    pub fn near_renewed(&mut self, number: u64, is_new: bool) {
        let length = number_length(number) + number_length(is_new.into());
        Fields::new().header(6, length).number(1, number).number(2, is_new.into()).put(&mut self.buffer);
    }

    /// Says that the server is about to close the lane.
    pub fn closing(&mut self) {
        Fields::new().number(4, 1).put(&mut self.buffer);
    }

    /// Answers a ping.
    pub fn pong(&mut self) {
        Fields::new().number(5, 1).put(&mut self.buffer);
    }

    /// Bytes written so far.
    pub fn len(&self) -> usize {
        self.buffer.len()
    }

    /// Whether nothing has been written.
    pub fn is_empty(&self) -> bool {
        self.buffer.is_empty()
    }

    /// Takes what was written as a frame and begins anew.
    pub fn take(&mut self) -> ResponseFrame {
        ResponseFrame(self.buffer.split().freeze())
    }
}

/// A response frame as it is on the wire.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResponseFrame(pub Bytes);

/// One field of a response frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ResponseField<'a> {
    /// The newest ring version that the server has seen.
    RingVersion(RingVersion),
    /// An answer, with its value or a piece of it, a slice of the frame.
    Answer(AnswerFields, Bytes),
    /// An operation has failed.
    Failure {
        /// What has failed.
        to: Target,
        /// Why.
        code: ErrorCode,
        /// Why, in words.
        message: &'a str,
    },
    /// The server is about to close the lane.
    Closing,
    /// The server answers a ping.
    Pong,
    /// Near copies are outdated.
    Invalidation {
        /// To be confirmed.
        number: u64,
        /// Of which keys.
        keys: OutdatedKeys<'a>,
    },
    /// The near lease is renewed.
    NearRenewed {
        /// Of the renewal.
        number: u64,
        /// Copies from before this are outdated.
        is_new: bool,
    },
}

/// Which near copies an invalidation names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OutdatedKeys<'a>(&'a [u8]);

impl OutdatedKeys<'_> {
    /// Whether it names all of the lane.
    pub fn is_all(&self) -> bool {
        self.0.is_empty()
    }

    /// The hashes of the keys.
    pub fn hashes(&self) -> impl Iterator<Item = u64> {
        self.0.as_chunks().0.iter().map(|hash| u64::from_le_bytes(*hash))
    }
}

impl ResponseFrame {
    /// The fields, in the order in which they stand. Unknown ones are passed over.
    pub fn fields(&self) -> impl Iterator<Item = Result<ResponseField<'_>, FrameError>> {
        read_fields(&self.0, |number, value| self.field(number, value))
    }

    #[inline]
    fn field<'a>(&'a self, number: u32, value: Value<'a>) -> Result<Option<ResponseField<'a>>, FrameError> {
        Ok(match number {
            1 => Some(ResponseField::RingVersion(RingVersion(value.number()?))),
            2 => Some(read_answer(&self.0, value.bytes()?)?),
            4 => (value.number()? != 0).then_some(ResponseField::Closing),
            5 => (value.number()? != 0).then_some(ResponseField::Pong),
            3 => Some(read_invalidation(value.bytes()?)?),
            6 => Some(read_near_renewed(value.bytes()?)?),
            _ => None,
        })
    }
}

#[inline]
fn read_answer<'a>(frame: &Bytes, mut from: &'a [u8]) -> Result<ResponseField<'a>, FrameError> {
    let (mut answer, mut part, mut error) = (AnswerFields::default(), &[][..], None);
    while !from.is_empty() {
        match take_field(&mut from)? {
            (1, value) => answer.id = value.small()?,
            (2, value) => {
                let number = i32::try_from(value.number()?).ok();
                let known = number.and_then(|number| Outcome::try_from(number).ok());
                answer.outcome = known.ok_or(FrameError("unknown outcome"))?;
            }
            (3, value) => part = value.bytes()?,
            (4, value) => answer.age_ms = value.number()?,
            (5, value) => answer.ttl_ms = value.number()?,
            (6, value) => answer.near_ms = value.small()?,
            (7, value) => answer.token = FillToken(value.number()?),
            (8, value) => error = Some(value.bytes()?),
            (9, value) => answer.value_bytes = value.number()?,
            (10, value) => answer.written = value.number()? != 0,
            (11, value) => answer.sequence = value.number()?,
            (12, value) => answer.position = value.small()?,
            _ => {}
        }
    }
    match error {
        Some(error) => read_failure(answer.target(), error),
        None => Ok(ResponseField::Answer(answer, slice_of(frame, part))),
    }
}

fn read_invalidation(mut from: &[u8]) -> Result<ResponseField<'_>, FrameError> {
    let (mut number, mut keys) = (0, &[][..]);
    while !from.is_empty() {
        match take_field(&mut from)? {
            (1, value) => number = value.number()?,
            (2, value) => keys = value.bytes()?,
            _ => {}
        }
    }
    if keys.len() % size_of::<u64>() != 0 {
        return Err(FrameError("hashes of keys have eight bytes"));
    }
    Ok(ResponseField::Invalidation { number, keys: OutdatedKeys(keys) })
}

fn read_near_renewed(mut from: &[u8]) -> Result<ResponseField<'_>, FrameError> {
    let (mut number, mut is_new) = (0, false);
    while !from.is_empty() {
        match take_field(&mut from)? {
            (1, value) => number = value.number()?,
            (2, value) => is_new = value.number()? != 0,
            _ => {}
        }
    }
    Ok(ResponseField::NearRenewed { number, is_new })
}

fn read_failure(to: Target, mut from: &[u8]) -> Result<ResponseField<'_>, FrameError> {
    let (mut code, mut message) = (ErrorCode::Unspecified, "");
    while !from.is_empty() {
        match take_field(&mut from)? {
            (1, value) => {
                let number = i32::try_from(value.number()?).unwrap_or_default();
                code = ErrorCode::try_from(number).unwrap_or(ErrorCode::Unspecified);
            }
            (2, value) => message = value.text()?,
            _ => {}
        }
    }
    Ok(ResponseField::Failure { to, code, message })
}
