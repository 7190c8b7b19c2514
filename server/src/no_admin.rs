//! What takes the place of the admin port in a build without it.

use std::net::SocketAddr;
use std::sync::Arc;

use crate::connections::{ConnectionLimiter, Handshake, Listener};
use crate::error::Error;
use crate::node::Node;

/// # Errors
/// There is no admin port.
pub(crate) fn check() -> Result<(), Error> {
    Err(Error::of_setting("admin", "this build has no admin port (feature `admin`)"))
}

pub(crate) async fn listen(_: SocketAddr) -> Result<Listener, Error> {
    Err(check().expect_err("there is none"))
}

pub(crate) async fn serve(_: Node, _: Listener, _: Arc<ConnectionLimiter>, _: Handshake, _: Vec<String>) {}
