//! The protobuf wire format, as far as frames need it.
//! Source: <https://protobuf.dev/programming-guides/encoding/>.

use std::fmt;

use bytes::{Buf, BufMut, Bytes};

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
    /// A lane names more groups than a server keeps.
    pub const TOO_MANY_GROUPS: Self = FrameError("it names too many groups");
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

pub(super) fn put_varint(to: &mut impl BufMut, mut value: u64) {
    while value >= 0x80 {
        to.put_u8(value as u8 | 0x80);
        value >>= 7;
    }
    to.put_u8(value as u8);
}

/// Bytes that a number takes as a field; none where it is zero, as proto3 has it. Field numbers are below
/// 16 throughout, so that every tag is one byte.
pub(super) fn number_length(value: u64) -> usize {
    if value == 0 { 0 } else { 1 + varint_length(value) }
}

pub(super) fn put_number(to: &mut impl BufMut, field: u32, value: u64) {
    if value != 0 {
        to.put_u8((field << 3 | VARINT) as u8);
        put_varint(to, value);
    }
}

pub(super) fn bytes_length(value: &[u8]) -> usize {
    if value.is_empty() { 0 } else { 1 + varint_length(value.len() as u64) + value.len() }
}

pub(super) fn put_bytes(to: &mut impl BufMut, field: u32, value: &[u8]) {
    if !value.is_empty() {
        put_header(to, field, value.len());
        to.put_slice(value);
    }
}

/// The beginning of a field of that many bytes.
pub(super) fn put_header(to: &mut impl BufMut, field: u32, length: usize) {
    to.put_u8((field << 3 | BYTES) as u8);
    put_varint(to, length as u64);
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
    pub(super) fn number(self) -> Result<u64, FrameError> {
        if let Value::Number(number) = self { Ok(number) } else { Err(FrameError("a number was expected")) }
    }

    pub(super) fn bytes(self) -> Result<&'a [u8], FrameError> {
        if let Value::Bytes(bytes) = self { Ok(bytes) } else { Err(FrameError("bytes were expected")) }
    }

    pub(super) fn text(self) -> Result<&'a str, FrameError> {
        std::str::from_utf8(self.bytes()?).map_err(|_| FrameError("text is not UTF-8"))
    }
}

/// Takes the next field off the front.
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

fn take_varint(from: &mut &[u8]) -> Result<u64, FrameError> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        if !from.has_remaining() {
            return Err(FrameError("a number goes beyond its end"));
        }
        let byte = from.get_u8();
        value |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return Ok(value);
        }
    }
    Err(FrameError("a number has too many bytes"))
}

/// `part` of `frame` as a slice that shares its memory.
pub(super) fn slice_of(frame: &Bytes, part: &[u8]) -> Bytes {
    if part.is_empty() { Bytes::new() } else { frame.slice_ref(part) }
}
