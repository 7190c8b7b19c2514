//! A loader over a fixed table, for trying things out.

use std::collections::HashMap;

use bytes::Bytes;

use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

use super::{LoadRequest, Loaded, Loader, LoaderError};

/// A loader over a fixed table.
#[derive(Clone, Debug, Default)]
pub struct StaticLoader {
    entries: HashMap<Vec<u8>, Bytes>,
}

impl<K: Into<Vec<u8>>, V: Into<Bytes>> FromIterator<(K, V)> for StaticLoader {
    fn from_iter<I: IntoIterator<Item = (K, V)>>(entries: I) -> Self {
        StaticLoader { entries: entries.into_iter().map(|(k, v)| (k.into(), v.into())).collect() }
    }
}

impl Loader for StaticLoader {
    fn fingerprint(&self) -> u64 {
        // Of all entries, in whatever order.
        self.entries.iter().fold(0, |sum, (key, value)| sum ^ xxh3_64_with_seed(value, xxh3_64(key)))
    }

    async fn load(&self, request: &LoadRequest) -> Result<Loaded, LoaderError> {
        Ok(self.entries.get(&request.key[..]).cloned().into())
    }
}
