//! Values with a form of their own: sizes, durations, addresses. Each is read by the same function from a
//! flag, a variable and the file.

use std::fmt;
use std::net::SocketAddr;
use std::str::FromStr;
use std::time::Duration;

use bytesize::ByteSize;
use serde::de::{Deserialize, Deserializer, Visitor};

/// A length of time, like `10m` or `1h 30m`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Span(pub(crate) Duration);

/// A number of bytes, like `64MiB`; never zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Capacity(pub(crate) usize);

/// An address to listen on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ListenAddr(pub(crate) SocketAddr);

impl Default for ListenAddr {
    fn default() -> Self {
        ListenAddr(SocketAddr::from(([127, 0, 0, 1], 9999)))
    }
}

impl FromStr for Span {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parsed = humantime::parse_duration(text);
        parsed.map(Span).map_err(|_| format!("`{text}` is not a duration; write it like 500ms, 30s or 10m"))
    }
}

impl FromStr for Capacity {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parsed = text.parse::<ByteSize>().ok().and_then(|size| usize::try_from(size.as_u64()).ok());
        match parsed {
            Some(0) => Err("the capacity is zero; give it some bytes, like 64MiB".to_owned()),
            Some(bytes) => Ok(Capacity(bytes)),
            None => Err(format!("`{text}` is not a size; write it like 512KiB, 64MiB or 2GiB")),
        }
    }
}

impl FromStr for ListenAddr {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parsed = text.parse().map(ListenAddr);
        parsed.map_err(|_| format!("`{text}` is not an IP address with a port; write it like 127.0.0.1:9999"))
    }
}

macro_rules! read_as_text {
    ($($type:ident),*) => {$(
        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
                from.deserialize_any(Text(std::marker::PhantomData))
            }
        }
    )*};
}
read_as_text!(Span, Capacity, ListenAddr);

/// Reads a string, or a number as if it were quoted.
struct Text<T>(std::marker::PhantomData<T>);

impl<T: FromStr<Err = String>> Visitor<'_> for Text<T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a string")
    }

    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<T, E> {
        text.parse().map_err(E::custom)
    }

    fn visit_i64<E: serde::de::Error>(self, number: i64) -> Result<T, E> {
        self.visit_str(&number.to_string())
    }
}
