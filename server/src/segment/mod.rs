//! The format of segment files: entries as bytes, and back, whatever has become of the bytes in between.
//!
//! A segment is a header and records, one after the other; all numbers are little-endian.
//!
//! | header | | record | |
//! |---|---|---|---|
//! | `PEANUTSG` | 8 bytes | length of what follows the checksum | 4 |
//! | format, now 2 | 4 | checksum, xxh3-64, of length and what follows | 8 |
//! | generation of the group | 8 | expires, milliseconds since 1970 | 8 |
//! | fingerprint of what wrote it | 8 | loaded, milliseconds since 1970 | 8 |
//! | run of the machine it was written in | 8 | stamp | 8 |
//! | written, milliseconds since 1970 | 8 | length of the key | 2 |
//! | checksum, xxh3-64, of all that | 8 | flags: 1 no such key, 2 removed, 4 evicted | 1 |
//! | | | key, value | |
//!
//! Of several records of a key the last one holds; *removed* says that those before it hold no more, and has
//! times that mean nothing. *Evicted* has no key, and as its value the hashes (xxh3-64) of keys whose records
//! before it are not needed any more.
//!
//! This is a pure codec: it opens no file and reads no clock. Every byte that is read is doubted.

use std::fmt;

use peanut_proto::numbers::{Generation, RingVersion};
use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

const MAGIC: &[u8; 8] = b"PEANUTSG";
const FORMAT: u32 = 2;
const CHECKSUM_BYTES: usize = 8;
/// Length of the header.
pub const HEADER_BYTES: usize = 8 + 4 + 8 + 8 + 8 + 8 + CHECKSUM_BYTES;
const LENGTH_BYTES: usize = 4;
const FIXED_BYTES: usize = 8 + 8 + 8 + 2 + 1;
/// What a record takes beside its key and value.
pub const RECORD_OVERHEAD_BYTES: usize = LENGTH_BYTES + CHECKSUM_BYTES + FIXED_BYTES;
const NEGATIVE: u8 = 1;
const REMOVED: u8 = 2;
const EVICTED: u8 = 4;
const HASH_BYTES: usize = 8;

/// What a segment says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// The group's generation: in a later one nothing of this one holds.
    pub generation: Generation,
    /// Of the configuration that its entries were kept under.
    pub fingerprint: u64,
    /// Of the run of the machine in which it was written: after a crash of the machine there may be less of
    /// it than was written, after one of the process alone there is not.
    pub boot: u64,
    /// When it was begun, in milliseconds since 1970.
    pub written_ms: u64,
}

/// One entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record<'a> {
    /// When it expires, in milliseconds since 1970.
    pub expires_ms: u64,
    /// When its load began, in milliseconds since 1970.
    pub loaded_ms: u64,
    /// Ring version that it was written under.
    pub stamp: RingVersion,
    /// The key.
    pub key: &'a [u8],
    /// What is known of it.
    pub content: Content<'a>,
}

/// What a record says of its key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content<'a> {
    /// This is its value.
    Value(&'a [u8]),
    /// The origin has no such key.
    Negative,
    /// Whatever was written of it before holds no more.
    Removed,
    /// Not of its key, but of those with these [hashes](key_hash): they have made room for others.
    Evicted(Hashes<'a>),
}

/// Hashes of keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hashes<'a>(&'a [u8]);

impl<'a> Hashes<'a> {
    /// What [`append`](Self::append) has put together.
    pub fn new(bytes: &'a [u8]) -> Self {
        Hashes(bytes)
    }

    /// Appends a hash.
    pub fn append(to: &mut Vec<u8>, hash: u64) {
        to.extend_from_slice(&hash.to_le_bytes());
    }

    /// The hashes.
    pub fn iter(&self) -> impl Iterator<Item = u64> + use<'a> {
        let (hashes, _) = self.0.as_chunks::<HASH_BYTES>();
        hashes.iter().map(|hash| u64::from_le_bytes(*hash))
    }
}

/// The hash by which [evicted keys](Content::Evicted) are named.
pub fn key_hash(key: &[u8]) -> u64 {
    xxh3_64(key)
}

/// Why a file is not read as a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoSegment {
    /// It is shorter than a header, or does not begin like one.
    Foreign,
    /// It begins like one, and its checksum is another.
    Damaged,
    /// A later program has written it in this format.
    Format(u32),
}

impl fmt::Display for NoSegment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            NoSegment::Foreign => f.write_str("it is no segment"),
            NoSegment::Damaged => f.write_str("its header is damaged"),
            NoSegment::Format(format) => write!(f, "its format is {format}, and {FORMAT} is what is known"),
        }
    }
}

impl Header {
    /// Appends the header.
    pub fn write(&self, to: &mut Vec<u8>) {
        let begin = to.len();
        to.extend_from_slice(MAGIC);
        to.extend_from_slice(&FORMAT.to_le_bytes());
        to.extend_from_slice(&self.generation.0.to_le_bytes());
        to.extend_from_slice(&self.fingerprint.to_le_bytes());
        to.extend_from_slice(&self.boot.to_le_bytes());
        to.extend_from_slice(&self.written_ms.to_le_bytes());
        let checksum = xxh3_64(&to[begin..]);
        to.extend_from_slice(&checksum.to_le_bytes());
    }

    /// Reads the header, and gives what comes after it.
    ///
    /// # Errors
    /// [`NoSegment`] tells why it is none.
    pub fn read(from: &[u8]) -> Result<(Self, Records<'_>), NoSegment> {
        let mut fields = Fields(from);
        if fields.take(MAGIC.len()) != Some(MAGIC) {
            return Err(NoSegment::Foreign);
        }
        let format = fields.u32().ok_or(NoSegment::Foreign)?;
        if format != FORMAT {
            return Err(NoSegment::Format(format));
        }
        let read = (fields.u64(), fields.u64(), fields.u64(), fields.u64(), fields.u64());
        let (Some(generation), Some(fingerprint), Some(boot), Some(written_ms), Some(checksum)) = read else {
            return Err(NoSegment::Foreign);
        };
        if xxh3_64(&from[..HEADER_BYTES - CHECKSUM_BYTES]) != checksum {
            return Err(NoSegment::Damaged);
        }
        Ok((
            Header { generation: Generation(generation), fingerprint, boot, written_ms },
            Records { rest: fields.0 },
        ))
    }
}

impl Record<'_> {
    /// Appends the record.
    ///
    /// # Panics
    /// Where key or value are longer than the format can say: 64 KiB, 4 GiB.
    pub fn write(&self, to: &mut Vec<u8>) {
        let (value, flags): (&[u8], u8) = match self.content {
            Content::Value(value) => (value, 0),
            Content::Negative => (&[], NEGATIVE),
            Content::Removed => (&[], REMOVED),
            Content::Evicted(Hashes(hashes)) => (hashes, EVICTED),
        };
        let key_bytes = u16::try_from(self.key.len()).expect("keys have at most 1 KiB");
        let length =
            u32::try_from(FIXED_BYTES + self.key.len() + value.len()).expect("values have at most 8 MiB");
        let begin = to.len();
        to.extend_from_slice(&length.to_le_bytes());
        to.extend_from_slice(&[0; CHECKSUM_BYTES]);
        to.extend_from_slice(&self.expires_ms.to_le_bytes());
        to.extend_from_slice(&self.loaded_ms.to_le_bytes());
        to.extend_from_slice(&self.stamp.0.to_le_bytes());
        to.extend_from_slice(&key_bytes.to_le_bytes());
        to.push(flags);
        to.extend_from_slice(self.key);
        to.extend_from_slice(value);
        let body = begin + LENGTH_BYTES + CHECKSUM_BYTES;
        let checksum = checksum(length, &to[body..]);
        to[begin + LENGTH_BYTES..body].copy_from_slice(&checksum.to_le_bytes());
    }
}

/// The length counts too: a record that is cut at another place is none.
fn checksum(length: u32, body: &[u8]) -> u64 {
    xxh3_64_with_seed(body, length.into())
}

/// The records of a segment, in the order in which they were written.
#[derive(Clone, Debug)]
pub struct Records<'a> {
    rest: &'a [u8],
}

/// A place where there is no record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bad {
    /// Something with a length and another checksum; the next record may be a good one.
    Record,
    /// Less is left than there should be: the file was cut, or a length is damaged. Nothing comes after it.
    Tail,
}

impl<'a> Iterator for Records<'a> {
    type Item = Result<Record<'a>, Bad>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let mut fields = Fields(self.rest);
        let framed = (|| {
            let (length, checksum) = (fields.u32()?, fields.u64()?);
            Some((length, checksum, fields.take(usize::try_from(length).ok()?)?))
        })();
        let Some((length, sum, body)) = framed else {
            self.rest = &[];
            return Some(Err(Bad::Tail));
        };
        self.rest = fields.0;
        let record = Some(body).filter(|body| checksum(length, body) == sum).and_then(read_body);
        Some(record.ok_or(Bad::Record))
    }
}

/// How many of a segment's bytes are before a torn tail; zero where it is no segment.
pub fn whole_length(from: &[u8]) -> usize {
    let Ok((_, mut records)) = Header::read(from) else { return 0 };
    let mut rest = records.rest.len();
    while records.next().is_some_and(|record| record != Err(Bad::Tail)) {
        rest = records.rest.len();
    }
    from.len() - rest
}

fn read_body(body: &[u8]) -> Option<Record<'_>> {
    let mut fields = Fields(body);
    let (expires_ms, loaded_ms, stamp) = (fields.u64()?, fields.u64()?, fields.u64()?);
    let key_bytes = fields.take(2)?.try_into().ok().map(u16::from_le_bytes)?;
    let flags = *fields.take(1)?.first()?;
    let key = fields.take(key_bytes.into())?;
    let content = match flags {
        0 => Content::Value(fields.0),
        NEGATIVE => Content::Negative,
        REMOVED => Content::Removed,
        EVICTED => Content::Evicted(Hashes(fields.0)),
        _ => return None,
    };
    Some(Record { expires_ms, loaded_ms, stamp: RingVersion(stamp), key, content })
}

/// Takes numbers and bytes off the front.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        self.0.split_off(..length)
    }

    fn u32(&mut self) -> Option<u32> {
        self.take(4)?.try_into().ok().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Option<u64> {
        self.take(8)?.try_into().ok().map(u64::from_le_bytes)
    }
}

#[cfg(test)]
mod tests;
