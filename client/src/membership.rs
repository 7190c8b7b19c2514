//! Changes of the ring that an operator asks for.

use peanut_proto::change::change_ring;
use peanut_proto::clock::wall_clock_ms;

use crate::error::{Error, ErrorKind};
use crate::shared::Shared;

/// Takes a node out of the ring and keeps it from joining again by itself.
pub(crate) async fn take_out(client: &Shared, node: &str) -> Result<(), Error> {
    let Some(registry) = &client.registry else {
        return Err(Error::new(ErrorKind::Unavailable, "a fixed list of nodes cannot be changed"));
    };
    match change_ring(&**registry, &client.keys, |ring| ring.drained(node, wall_clock_ms())).await {
        Ok(true) => Ok(()),
        Ok(false) => Err(Error::new(ErrorKind::InvalidArgument, format!("the ring has no node `{node}`"))),
        Err(error) => {
            Err(Error::caused_by(ErrorKind::Unavailable, None, "the ring could not be changed", error))
        }
    }
}
