//! Settings from TOML: what is wrong with them has a place, a file and its line.

use std::fmt;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use serde::Deserialize;

/// A struct read from a file whose fields' descriptions are kept, for the documents.
#[doc(hidden)]
#[macro_export]
macro_rules! documented {
    (
        $(#[$meta:meta])*
        $vis:vis struct $name:ident {
            $($(#[doc = $doc:literal])+ $(#[serde($serde:ident)])? $field:ident: $type:ty,)*
        }
    ) => {
        $(#[$meta])*
        $vis struct $name { $($(#[doc = $doc])+ $(#[serde($serde)])? $field: $type,)* }

        impl $name {
            /// Each field's name and description, with its default in brackets at the end.
            pub const FIELDS: &'static [(&'static str, &'static str)] =
                &[$((stringify!($field), concat!($($doc),+))),*];
        }
    };
}
/// What is wrong with the configuration, in one line that begins with the place.
#[derive(Debug)]
pub struct ConfigError {
    place: String,
    message: String,
}

impl ConfigError {
    /// Says what is wrong, and where.
    pub fn new(place: impl Into<String>, message: impl fmt::Display) -> Self {
        let message = message.to_string().trim().replace('\n', "; ");
        ConfigError { place: place.into(), message }
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.place, self.message)
    }
}

impl std::error::Error for ConfigError {}

/// Where settings were read from: a file, or a flag with TOML in it.
#[derive(Clone, Debug)]
pub struct Source {
    /// Of the file, or of the flag.
    pub name: String,
    /// All of it.
    pub text: Arc<str>,
}

impl Source {
    /// Reads a file.
    ///
    /// # Errors
    /// Where it cannot be read.
    pub fn of_file(path: &Path) -> Result<Self, ConfigError> {
        let name = path.display().to_string();
        let text = std::fs::read_to_string(path).map_err(|error| ConfigError::new(&name, error))?;
        Ok(Source { name, text: text.into() })
    }

    /// `file:line`.
    pub fn at(&self, span: Option<Range<usize>>) -> String {
        let Some(span) = span else { return self.name.clone() };
        let line = self.text.bytes().take(span.start).filter(|byte| *byte == b'\n').count() + 1;
        format!("{}:{line}", self.name)
    }

    /// What is wrong at a place in it.
    pub fn error(&self, span: Option<Range<usize>>, message: impl fmt::Display) -> ConfigError {
        ConfigError::new(self.at(span), message)
    }

    /// What it says.
    ///
    /// # Errors
    /// Where it is not as `T` has it, with the line.
    pub fn read<T: for<'de> Deserialize<'de>>(&self) -> Result<T, ConfigError> {
        toml::from_str(&self.text).map_err(|error| self.error(error.span(), error.message()))
    }
}
