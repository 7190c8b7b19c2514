//! Changes of the ring that an operator asks for.

use peanut_proto::membership::RingDocument;

use crate::client::Shared;
use crate::error::{Error, ErrorKind};
use peanut_proto::clock::wall_clock_ms;

/// A swap that loses so often has met something other than nodes that join.
const SWAP_ATTEMPTS: usize = 100;

/// Takes a node out of the ring, by compare-and-swap, and keeps it from joining again by itself.
pub(crate) async fn take_out(client: &Shared, node: &str) -> Result<(), Error> {
    let Some(registry) = &client.registry else {
        return Err(Error::new(ErrorKind::Unavailable, "a fixed list of nodes cannot be changed"));
    };
    let failed = |error: peanut_proto::registry::RegistryError| {
        Error::caused_by(ErrorKind::Unavailable, None, error.to_string(), error)
    };
    let key = client.keys.ring();
    for _ in 0..SWAP_ATTEMPTS {
        let stored = registry.load(&key).await.map_err(failed)?;
        let Some(stored) = stored.entries.into_iter().find(|entry| entry.key == key) else {
            return Err(Error::new(ErrorKind::Unavailable, "the registry has no ring"));
        };
        let ring = RingDocument::decode(&stored.value)
            .map_err(|error| Error::caused_by(ErrorKind::Protocol, None, error.to_string(), error))?;
        let Some(next) = ring.drained(node, wall_clock_ms()) else {
            let why = format!("the ring has no node `{node}`");
            return Err(Error::new(ErrorKind::InvalidArgument, why));
        };
        if registry.swap(&key, stored.revision, next.encode()).await.map_err(failed)? {
            return Ok(());
        }
    }
    Err(Error::new(ErrorKind::Unavailable, format!("the ring changed {SWAP_ATTEMPTS} times meanwhile")))
}
