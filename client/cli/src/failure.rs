//! Why a command failed, as it is printed: a message, and those of its causes.

use std::error::Error;
use std::fmt;

/// Why a command failed.
#[derive(Debug)]
pub(crate) struct Failure(String);

impl Failure {
    pub(crate) fn new(message: impl Into<String>) -> Self {
        Failure(message.into())
    }
}

impl<E: Error> From<E> for Failure {
    fn from(error: E) -> Self {
        Failure(format!("{error:#}"))
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
