//! The one way in which a ring that is there changes: read, compare and swap, and again where another was
//! quicker.

use crate::membership::{Keys, MAX_DOCUMENT_BYTES, RingDocument};
use crate::registry::{Registry, RegistryError};

/// A swap that loses so often in a row has met something other than neighbours.
const ATTEMPTS: usize = 100;

/// Puts what `change` makes of the ring in its place. `Ok(false)`: there is no ring, or `change` would leave
/// it as it is.
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
        let Some(stored) = registry.get(&key).await? else { return Ok(false) };
        let ring = RingDocument::decode(&stored.value).map_err(|error| {
            RegistryError::new(format!(
                "{key} cannot be used: {error}; nodes that know the ring write it again"
            ))
        })?;
        let Some(next) = change(&ring) else { return Ok(false) };
        if swap_ring(registry, keys, stored.revision, next).await? {
            return Ok(true);
        }
    }
    Err(RegistryError::new(format!("{key} changed {ATTEMPTS} times meanwhile")))
}

/// Puts a ring in place of the one of revision `expected`, and says whether it did. One that is too long for
/// the registry is made shorter first ([`RingDocument::fit`]).
///
/// # Errors
/// Where the registry cannot be reached, or the ring breaks a rule or is too long whatever it forgets.
pub async fn swap_ring(
    registry: &dyn Registry,
    keys: &Keys,
    expected: i64,
    mut ring: RingDocument,
) -> Result<bool, RegistryError> {
    let mut most = MAX_DOCUMENT_BYTES;
    loop {
        ring.fit(most);
        ring.check().map_err(|error| RegistryError::new(error.to_string()))?;
        let encoded = ring.encode();
        let bytes = encoded.len();
        match registry.swap(&keys.ring(), expected, encoded).await {
            Err(error) if error.is_too_large() => {
                if ring.earlier.is_empty() && ring.departed.is_empty() {
                    let why =
                        format!("the ring document has {bytes} bytes, which is more than the registry takes");
                    let mend = "take out members that are gone (`peanut remove`), or raise etcd's --max-request-bytes";
                    return Err(RegistryError::new(format!("{why}; {mend}")).with_source(error).too_large());
                }
                most = bytes / 2;
            }
            swapped => return swapped,
        }
    }
}

#[cfg(test)]
mod tests;
