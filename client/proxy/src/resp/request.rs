//! Requests as clients of Redis send them, taken from the bytes of a connection as they come: arrays of
//! strings, or a line of words.
//!
//! No socket and no clock. `redis-protocol` reads any value, arrays within arrays as deep as they come; a
//! server is sent flat arrays of strings, and has to refuse what is too long before it has come. Tests hold
//! this reader against that crate.

use std::ops::Range;

use bytes::{Buf as _, Bytes, BytesMut};
use peanut_proto::limits::MAX_VALUE_BYTES;

/// Longest line of a header: a sign and twenty digits, with room.
const MAX_HEADER_BYTES: usize = 32;
/// Longest line of words.
const MAX_LINE_BYTES: usize = 64 << 10;

/// Bounds on requests.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// Arguments, the command's name included.
    pub(super) arguments: usize,
    /// Bytes of one argument.
    pub(super) argument_bytes: usize,
    /// Bytes of the whole request.
    pub(super) bytes: usize,
}

impl Limits {
    /// Of callers that have been admitted.
    pub(super) const ADMITTED: Limits =
        Limits { arguments: 1 << 16, argument_bytes: MAX_VALUE_BYTES, bytes: 2 * MAX_VALUE_BYTES };
    /// Of callers that have not, and can only say who they are.
    pub(super) const STRANGER: Limits = Limits { arguments: 16, argument_bytes: 4 << 10, bytes: 16 << 10 };
}

/// Why a connection cannot be read any further.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Malformed(String);

impl Malformed {
    fn new(why: impl Into<String>) -> Self {
        Malformed(why.into())
    }

    /// What has come is a request of HTTP.
    pub(super) fn http() -> Self {
        Malformed::new("this is HTTP, which a web page may have sent; the proxy has another port for it")
    }

    /// As Redis says it.
    pub(super) fn message(&self) -> String {
        format!("ERR Protocol error: {}", self.0)
    }
}

/// Reads requests from the bytes of one connection.
#[derive(Debug, Default)]
pub(super) struct Reader {
    /// Arguments of the present request that have not come; `None` before its header has.
    left: Option<usize>,
    /// Those that have, in the buffer.
    arguments: Vec<Range<usize>>,
    /// How far the buffer has been read.
    at: usize,
}

impl Reader {
    /// Takes the next request from `buffer`, as its arguments, of which there is at least one. `None`: there
    /// has to come more.
    ///
    /// # Errors
    /// Where what has come is no request, or one over the limits. Nothing after it can be read.
    pub(super) fn next(
        &mut self,
        buffer: &mut BytesMut,
        limits: &Limits,
    ) -> Result<Option<Vec<Bytes>>, Malformed> {
        loop {
            match self.left {
                Some(0) => return Ok(Some(self.take(buffer))),
                Some(left) => {
                    if !self.read_argument(buffer, limits)? {
                        return Ok(None);
                    }
                    self.left = Some(left - 1);
                }
                None if buffer.first() == Some(&b'*') => {
                    let Some((count, at)) = number(buffer, 1, "invalid multibulk length")? else {
                        return Ok(None);
                    };
                    match usize::try_from(count) {
                        Ok(count) if count > limits.arguments => {
                            return Err(Malformed::new("invalid multibulk length"));
                        }
                        // As Redis does, an array of nothing is nothing.
                        Err(_) | Ok(0) => buffer.advance(at),
                        Ok(count) => (self.left, self.at) = (Some(count), at),
                    }
                }
                None => match line(buffer)? {
                    None => return Ok(None),
                    Some(words) if words.is_empty() => {}
                    Some(words) if words.len() > limits.arguments => {
                        return Err(Malformed::new("too many words in a line"));
                    }
                    Some(words) => return Ok(Some(words)),
                },
            }
        }
    }

    /// Reads one argument; `false`: it has not come yet.
    fn read_argument(&mut self, buffer: &BytesMut, limits: &Limits) -> Result<bool, Malformed> {
        match buffer.get(self.at) {
            None => return Ok(false),
            Some(b'$') => {}
            Some(other) => {
                return Err(Malformed::new(format!("expected '$', got '{}'", other.escape_ascii())));
            }
        }
        let Some((length, begin)) = number(buffer, self.at + 1, "invalid bulk length")? else {
            return Ok(false);
        };
        let length = usize::try_from(length).ok().filter(|length| *length <= limits.argument_bytes);
        let end = begin + length.ok_or_else(|| Malformed::new("invalid bulk length"))?;
        if end + 2 > limits.bytes {
            return Err(Malformed::new("the request is too long"));
        }
        let Some(ending) = buffer.get(end..end + 2) else { return Ok(false) };
        if ending != b"\r\n" {
            return Err(Malformed::new("a string is longer than it says"));
        }
        self.arguments.push(begin..end);
        self.at = end + 2;
        Ok(true)
    }

    /// Takes a request that is complete.
    fn take(&mut self, buffer: &mut BytesMut) -> Vec<Bytes> {
        let whole = buffer.split_to(self.at).freeze();
        (self.left, self.at) = (None, 0);
        self.arguments.drain(..).map(|range| whole.slice(range)).collect()
    }
}

/// The number in the line that begins at `from`, and where the next line begins; `None`: the line has not
/// ended yet.
fn number(buffer: &[u8], from: usize, what: &str) -> Result<Option<(i64, usize)>, Malformed> {
    let line = &buffer[from.min(buffer.len())..];
    let line = &line[..line.len().min(MAX_HEADER_BYTES)];
    let Some(end) = line.windows(2).position(|two| two == b"\r\n") else {
        return if line.len() < MAX_HEADER_BYTES { Ok(None) } else { Err(Malformed::new(what)) };
    };
    super::command::number(&line[..end])
        .map(|number| Some((number, from + end + 2)))
        .ok_or_else(|| Malformed::new(what))
}

/// Takes a line of words, as people type them; `None`: it has not ended yet.
fn line(buffer: &mut BytesMut) -> Result<Option<Vec<Bytes>>, Malformed> {
    let Some(end) = buffer.iter().take(MAX_LINE_BYTES).position(|byte| *byte == b'\n') else {
        let is_too_long = buffer.len() >= MAX_LINE_BYTES;
        return if is_too_long { Err(Malformed::new("too big inline request")) } else { Ok(None) };
    };
    let line = buffer.split_to(end + 1).freeze();
    // In Redis they are no part of a value; who means that would store others than he reads.
    if line.contains(&b'"') || line.contains(&b'\'') {
        return Err(Malformed::new("quotes are not taken in inline requests; use a client, or redis-cli"));
    }
    let words = line.split(u8::is_ascii_whitespace).filter(|word| !word.is_empty());
    Ok(Some(words.map(|word| line.slice_ref(word)).collect()))
}

#[cfg(test)]
mod tests;
