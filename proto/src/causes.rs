//! What an error was caused by: read one by one, and written behind its message where `{:#}` asks for it.

use std::error::Error;
use std::fmt::{self, Formatter};
use std::iter::successors;

/// The causes of an error, the nearest first.
pub fn causes<'e>(error: &'e (dyn Error + 'static)) -> impl Iterator<Item = &'e (dyn Error + 'static)> {
    successors(error.source(), |&cause| cause.source())
}

/// Writes the causes of an error whose message has been written, each after a colon, if the format is `{:#}`.
///
/// # Errors
/// As writing does.
pub fn write_causes(error: &(dyn Error + 'static), f: &mut Formatter<'_>) -> fmt::Result {
    if f.alternate() { causes(error).try_for_each(|cause| write!(f, ": {cause}")) } else { Ok(()) }
}
