//! What a connection has said of itself.

use bytes::Bytes;

use super::reply::Version;
use crate::fetch::FIRST_PORTION;

/// The state of one connection.
#[derive(Debug)]
pub(super) struct Session {
    /// Its number, which no other connection of this process has had.
    pub(super) id: i64,
    pub(super) version: Version,
    pub(super) database: usize,
    pub(super) name: Option<Bytes>,
    /// Whether it may ask for keys.
    pub(super) is_admitted: bool,
    /// How many keys are fetched for it at once.
    pub(super) portion: usize,
    /// It has taken leave, and is answered no more.
    pub(super) is_over: bool,
}

impl Session {
    /// A new connection's.
    pub(super) fn new(id: i64) -> Self {
        Session {
            id,
            version: Version::default(),
            database: 0,
            name: None,
            is_admitted: true,
            portion: FIRST_PORTION,
            is_over: false,
        }
    }

    /// As it was when the connection began.
    pub(super) fn reset(&mut self) {
        *self = Session::new(self.id);
    }
}
