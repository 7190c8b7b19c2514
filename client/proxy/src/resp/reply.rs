//! What a request is answered with, and how either version of the protocol writes it.

use bytes::{Bytes, BytesMut};
use peanut_client::{Error, ErrorKind};
use redis_protocol::bytes_utils::Str;
use redis_protocol::{resp2, resp3};

/// A version of the protocol.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Version {
    /// That of clients that say nothing.
    #[default]
    Resp2,
    /// With maps and one null; chosen by `HELLO 3`.
    Resp3,
}

/// An answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Reply {
    /// A word, as `OK`.
    Simple(&'static str),
    /// What went wrong, beginning with a word in capitals.
    Error(String),
    Integer(i64),
    Bulk(Bytes),
    Null,
    Array(Vec<Reply>),
    /// Version 2 has them as arrays.
    Map(Vec<(&'static str, Reply)>),
}

impl Reply {
    pub(super) const OK: Reply = Reply::Simple("OK");

    pub(super) fn text(text: impl Into<String>) -> Self {
        Reply::Bulk(Bytes::from(text.into()))
    }

    pub(super) fn error(message: impl Into<String>) -> Self {
        Reply::Error(message.into())
    }

    /// A count, which is far below the largest integer.
    pub(super) fn count(count: usize) -> Self {
        Reply::Integer(i64::try_from(count).unwrap_or(i64::MAX))
    }

    /// Writes it behind what `to` holds.
    pub(super) fn write(self, version: Version, to: &mut BytesMut) {
        let length = to.len();
        let written = match version {
            Version::Resp2 => resp2::encode::extend_encode(to, &self.into_resp2(), false),
            Version::Resp3 => resp3::encode::complete::extend_encode(to, &self.into_resp3(), false),
        };
        if let Err(error) = written {
            to.truncate(length);
            tracing::error!(%error, "a reply could not be written");
            to.extend_from_slice(b"-ERR the reply could not be written\r\n");
        }
    }

    fn into_resp2(self) -> resp2::types::BytesFrame {
        use resp2::types::BytesFrame as Frame;
        match self {
            Reply::Simple(word) => Frame::SimpleString(Bytes::from_static(word.as_bytes())),
            Reply::Error(message) => Frame::Error(one_line(message)),
            Reply::Integer(number) => Frame::Integer(number),
            Reply::Bulk(bytes) => Frame::BulkString(bytes),
            Reply::Null => Frame::Null,
            Reply::Array(replies) => Frame::Array(replies.into_iter().map(Reply::into_resp2).collect()),
            Reply::Map(entries) => {
                let flat = entries.into_iter().flat_map(|(key, value)| [Reply::text(key), value]);
                Frame::Array(flat.map(Reply::into_resp2).collect())
            }
        }
    }

    fn into_resp3(self) -> resp3::types::BytesFrame {
        use resp3::types::BytesFrame as Frame;
        let attributes = None;
        match self {
            Reply::Simple(word) => {
                Frame::SimpleString { data: Bytes::from_static(word.as_bytes()), attributes }
            }
            Reply::Error(message) => Frame::SimpleError { data: one_line(message), attributes },
            Reply::Integer(data) => Frame::Number { data, attributes },
            Reply::Bulk(data) => Frame::BlobString { data, attributes },
            Reply::Null => Frame::Null,
            Reply::Array(replies) => {
                let data = replies.into_iter().map(Reply::into_resp3).collect();
                Frame::Array { data, attributes }
            }
            Reply::Map(entries) => {
                let entries = entries.into_iter();
                let data =
                    entries.map(|(key, value)| (Reply::text(key).into_resp3(), value.into_resp3())).collect();
                Frame::Map { data, attributes }
            }
        }
    }
}

/// An error is one line on the wire.
fn one_line(message: String) -> Str {
    let message = if message.contains(['\r', '\n']) { message.replace(['\r', '\n'], " ") } else { message };
    Str::from(message)
}

impl From<Error> for Reply {
    fn from(error: Error) -> Self {
        let word = match error.kind() {
            ErrorKind::Overloaded => "BUSY",
            ErrorKind::Unavailable | ErrorKind::DeadlineExceeded => "TRYAGAIN",
            ErrorKind::PermissionDenied => "NOPERM",
            _ => "ERR",
        };
        if error.kind() == ErrorKind::Unauthenticated {
            // It is not the caller who was not let in.
            return Reply::Error(format!("ERR the proxy is not let in by its nodes: {error:#}"));
        }
        Reply::Error(format!("{word} {error:#}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(reply: Reply, version: Version) -> String {
        let mut to = BytesMut::from("before ");
        reply.write(version, &mut to);
        String::from_utf8(to.to_vec()).unwrap().strip_prefix("before ").unwrap().to_owned()
    }

    #[test]
    fn each_version_writes_what_its_clients_read() {
        let both = |reply: Reply| (written(reply.clone(), Version::Resp2), written(reply, Version::Resp3));
        let same = |text: &str| (text.to_owned(), text.to_owned());
        assert_eq!(both(Reply::OK), same("+OK\r\n"));
        assert_eq!(both(Reply::error("ERR no\r\n+OK")), same("-ERR no  +OK\r\n"));
        assert_eq!(both(Reply::Integer(-2)), same(":-2\r\n"));
        assert_eq!(both(Reply::text("a\r\nb")), same("$4\r\na\r\nb\r\n"));
        assert_eq!(both(Reply::Null), ("$-1\r\n".to_owned(), "_\r\n".to_owned()));
        let array = Reply::Array(vec![Reply::text(""), Reply::Null]);
        assert_eq!(both(array), ("*2\r\n$0\r\n\r\n$-1\r\n".to_owned(), "*2\r\n$0\r\n\r\n_\r\n".to_owned()));
        let map = Reply::Map(vec![("proto", Reply::Integer(3))]);
        let flat = "*2\r\n$5\r\nproto\r\n:3\r\n".to_owned();
        assert_eq!(both(map), (flat, "%1\r\n$5\r\nproto\r\n:3\r\n".to_owned()));
    }
}
