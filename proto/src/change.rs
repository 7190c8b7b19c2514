//! The one way in which a ring that is there changes: read, compare and swap, and again where another was quicker.

use crate::membership::{Keys, RingDocument};
use crate::registry::{Registry, RegistryError};

/// A swap that loses so often in a row has met something other than neighbours.
const ATTEMPTS: usize = 100;

/// Puts what `change` makes of the ring in its place. `Ok(false)`: there is no ring, or `change` would leave it as it is.
///
/// # Errors
/// Where the registry cannot be reached, or what it holds cannot be read.
pub async fn change_ring(
    registry: &dyn Registry,
    keys: &Keys,
    change: impl Fn(&RingDocument) -> Option<RingDocument>,
) -> Result<bool, RegistryError> {
    let key = keys.ring();
    for _ in 0..ATTEMPTS {
        let stored = registry.load(&key).await?.entries.into_iter().find(|entry| entry.key == key);
        let Some(stored) = stored else { return Ok(false) };
        let ring =
            RingDocument::decode(&stored.value).map_err(|error| RegistryError::new(error.to_string()))?;
        let Some(next) = change(&ring) else { return Ok(false) };
        if registry.swap(&key, stored.revision, next.encode()).await? {
            return Ok(true);
        }
    }
    Err(RegistryError::new(format!("{key} changed {ATTEMPTS} times meanwhile")))
}
