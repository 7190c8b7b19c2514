//! The protobuf wire format, as far as frames need it.
//! Source: <https://protobuf.dev/programming-guides/encoding/>.

use std::fmt;

use bytes::{Bytes, BytesMut};

pub(super) const VARINT: u32 = 0;
pub(super) const BYTES: u32 = 2;

/// A frame that is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameError(pub(super) &'static str);

impl FrameError {
    /// An answer to no operation in flight.
    pub const UNKNOWN_ID: Self = FrameError("it answers an operation that is not in flight");
    /// A value longer than values are, or than it was said to be.
    pub const TOO_LONG: Self = FrameError("a value is too long");
    /// A group's name is longer than any may be.
    pub const BAD_GROUP: Self = FrameError("it names a group by what is no name");
    /// A lane is opened a second time.
    pub const OPENED_TWICE: Self = FrameError("it opens a lane that is open");
}

impl fmt::Display for FrameError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "malformed frame: {}", self.0)
    }
}

impl std::error::Error for FrameError {}

/// Bytes that a varint takes.
pub(super) fn varint_length(value: u64) -> usize {
    // One byte for each 7 bits, and one for zero.
    (70 - (value | 1).leading_zeros() as usize) / 7
}

/// Bytes that a number takes as a field; none where it is zero, as proto3 has it. Field numbers are below
/// 16 throughout, so that every tag is one byte.
pub(super) fn number_length(value: u64) -> usize {
    if value == 0 { 0 } else { 1 + varint_length(value) }
}

pub(super) fn bytes_length(value: &[u8]) -> usize {
    if value.is_empty() { 0 } else { 1 + varint_length(value.len() as u64) + value.len() }
}

/// Fields on their way into a buffer, which is asked for space once for all of them and not for each byte.
pub(super) struct Fields {
    bytes: [u8; Fields::MOST],
    length: usize,
}

impl Fields {
    /// What an answer ends with: five long numbers, two short ones and a bit, each with its tag.
    const MOST: usize = 72;

    pub(super) fn new() -> Self {
        Fields { bytes: [0; Fields::MOST], length: 0 }
    }

    #[inline]
    fn byte(&mut self, byte: u8) {
        self.bytes[self.length] = byte;
        self.length += 1;
    }

    #[inline]
    fn varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.byte(value as u8 | 0x80);
            value >>= 7;
        }
        self.byte(value as u8);
    }

    #[inline]
    pub(super) fn number(mut self, field: u32, value: u64) -> Self {
        if value != 0 {
            self.byte((field << 3 | VARINT) as u8);
            self.varint(value);
        }
        self
    }

    /// The beginning of a field of that many bytes.
    #[inline]
    pub(super) fn header(mut self, field: u32, length: usize) -> Self {
        self.byte((field << 3 | BYTES) as u8);
        self.varint(length as u64);
        self
    }

    /// The beginning of a field of bytes, unless there are none.
    #[inline]
    pub(super) fn header_of(self, field: u32, value: &[u8]) -> Self {
        if value.is_empty() { self } else { self.header(field, value.len()) }
    }

    pub(super) fn put(&self, to: &mut BytesMut) {
        to.extend_from_slice(&self.bytes[..self.length]);
    }
}

/// A field as it is read.
#[derive(Clone, Copy, Debug)]
pub(super) enum Value<'a> {
    Number(u64),
    Bytes(&'a [u8]),
    /// A kind of field that frames do not use.
    Other,
}

impl<'a> Value<'a> {
    #[inline]
    pub(super) fn number(self) -> Result<u64, FrameError> {
        if let Value::Number(number) = self { Ok(number) } else { Err(FrameError("a number was expected")) }
    }

    /// A number of 32 bits.
    #[inline]
    pub(super) fn small(self) -> Result<u32, FrameError> {
        u32::try_from(self.number()?).map_err(|_| FrameError("a number is too large for its field"))
    }

    #[inline]
    pub(super) fn bytes(self) -> Result<&'a [u8], FrameError> {
        if let Value::Bytes(bytes) = self { Ok(bytes) } else { Err(FrameError("bytes were expected")) }
    }

    pub(super) fn text(self) -> Result<&'a str, FrameError> {
        std::str::from_utf8(self.bytes()?).map_err(|_| FrameError("text is not UTF-8"))
    }
}

/// Takes the next field off the front.
#[inline]
pub(super) fn take_field<'a>(from: &mut &'a [u8]) -> Result<(u32, Value<'a>), FrameError> {
    let tag = take_varint(from)?;
    let number = u32::try_from(tag >> 3).map_err(|_| FrameError("a field number is too large"))?;
    let value = match tag as u32 & 7 {
        VARINT => Value::Number(take_varint(from)?),
        BYTES => {
            let length =
                usize::try_from(take_varint(from)?).map_err(|_| FrameError("a length is too large"))?;
            Value::Bytes(from.split_off(..length).ok_or(FrameError("a field goes beyond its end"))?)
        }
        1 => from.split_off(..8).map(|_| Value::Other).ok_or(FrameError("a field goes beyond its end"))?,
        5 => from.split_off(..4).map(|_| Value::Other).ok_or(FrameError("a field goes beyond its end"))?,
        _ => return Err(FrameError("unknown wire type")),
    };
    Ok((number, value))
}

/// Reads the fields of a message one by one with `read`, which passes over those that it does not know.
/// Ends after the first error.
pub(super) fn read_fields<'a, F>(
    mut from: &'a [u8],
    read: impl Fn(u32, Value<'a>) -> Result<Option<F>, FrameError>,
) -> impl Iterator<Item = Result<F, FrameError>> {
    std::iter::from_fn(move || {
        while !from.is_empty() {
            match take_field(&mut from).and_then(|(number, value)| read(number, value)) {
                Ok(Some(field)) => return Some(Ok(field)),
                Ok(None) => {}
                Err(error) => {
                    from = &[];
                    return Some(Err(error));
                }
            }
        }
        None
    })
}

#[inline]
fn take_varint(from: &mut &[u8]) -> Result<u64, FrameError> {
    const CUT: FrameError = FrameError("a number goes beyond its end");
    let (&first, rest) = from.split_first().ok_or(CUT)?;
    *from = rest;
    if first < 0x80 {
        return Ok(first.into());
    }
    let mut value = u64::from(first & 0x7f);
    for shift in (7..64).step_by(7) {
        let (&byte, rest) = from.split_first().ok_or(CUT)?;
        *from = rest;
        value |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return Ok(value);
        }
    }
    Err(FrameError("a number has too many bytes"))
}

/// `part` of `frame` as a slice that shares its memory.
#[inline]
pub(super) fn slice_of(frame: &Bytes, part: &[u8]) -> Bytes {
    if part.is_empty() { Bytes::new() } else { frame.slice_ref(part) }
}
