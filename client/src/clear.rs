//! How a group is cleared: its generation is raised in the registry, and every node told.

use futures_util::future::join_all;
use peanut_proto::clock::wall_clock_ms;
use peanut_proto::frame::Write;
use peanut_proto::membership::{self, check_name};
use peanut_proto::numbers::{Generation, RingVersion};
use peanut_proto::registry::{Registry, RegistryError};
use tokio::time::{Instant, timeout_at};

use crate::error::{Error, ErrorKind};
use crate::plan::Part;
use crate::refusal::Refusal;
use crate::request::{Op, Request};
use crate::shared::Shared;
use crate::unary;
use crate::write::{HeardOf, MAX_RINGS, OneNode, wait_for_ring};

/// A swap that loses so often has met something other than other clients.
const SWAP_ATTEMPTS: usize = 100;

/// Has all nodes forget a group. With a registry it is done when that has the new generation: a node that
/// cannot be reached reads it before it answers again.
pub(crate) async fn clear(client: &Shared, request: Request<'_>, begun: Instant) -> Result<(), Error> {
    // The name becomes part of a key, which nobody would look for.
    if let Err(why) = check_name(request.group_name) {
        return Err(Error::new(ErrorKind::UnknownGroup, format!("no node has a group whose name {why}")));
    }
    if client.registry.is_some() && client.config.token.is_some() {
        check_right(client, &request).await?;
    }
    let generation = match &client.registry {
        None => Generation::NONE,
        Some(registry) => {
            let key = client.keys.group(request.group_name);
            match timeout_at(request.deadline, raise(&**registry, &key)).await {
                Ok(Ok(generation)) => generation,
                Ok(Err(error)) => {
                    let why = "the registry did not take the new generation";
                    return Err(Error::caused_by(ErrorKind::Unavailable, None, why, error));
                }
                Err(_) => {
                    let why = "the registry did not take the new generation in time";
                    return Err(Error::new(ErrorKind::DeadlineExceeded, why));
                }
            }
        }
    };
    let request = Request { op: Op::Write(Write::Clear { generation }), ..request };
    for _ in 0..MAX_RINGS {
        let routing = client.routing_with_nodes(request.deadline).await?;
        let nodes = routing.all_nodes(begun);
        let heard = HeardOf::default();
        let one = OneNode { client, routing: &routing, request, begun, heard: &heard };
        let told = nodes.iter().map(|node| one.deliver(Part::OneOfAll, node, None, RingVersion::NONE));
        let told = join_all(told).await;
        let has_group = |told: &Result<_, Refusal>| !matches!(told, Err(Refusal::NoGroup(_)));
        let somebody_has = told.is_empty() || told.iter().any(has_group);
        for told in told {
            match told {
                Ok(_) => {}
                // A node that has no such group has nothing of it.
                Err(Refusal::NoGroup(_)) if somebody_has => {}
                Err(refusal) => return Err(refusal.into_error()),
            }
        }
        // Who has come meanwhile may not have heard of it yet.
        wait_for_ring(client, heard.version(), &request).await?;
        if client.routing.get().ring.version() == routing.ring.version() {
            return Ok(());
        }
    }
    Err(Error::new(ErrorKind::Unavailable, "the ring changed during each attempt"))
}

/// Asks nodes whether this client may write to a group, until one has said so: the registry would take it
/// from anybody.
async fn check_right(client: &Shared, request: &Request<'_>) -> Result<(), Error> {
    let routing = client.routing.get();
    let mut last = None;
    for node in routing.nodes().iter().filter(|node| !node.is_down()) {
        match unary::may_write(node, request.group_name, request.deadline).await {
            Ok(()) => return Ok(()),
            Err(Refusal::Elsewhere(error) | Refusal::Again(error)) => last = Some(error),
            Err(refusal) => return Err(refusal.into_error()),
        }
    }
    Err(last.unwrap_or_else(|| Error::new(ErrorKind::Unavailable, "no node says whether this may be done")))
}

/// Raises a group's generation, and gives it. A record that cannot be read or believed is written anew: nodes
/// clear the group whenever it changes.
async fn raise(registry: &dyn Registry, key: &str) -> Result<Generation, RegistryError> {
    for _ in 0..SWAP_ATTEMPTS {
        let found = registry.get(key).await?;
        let stored = found.as_ref().map(|entry| &entry.value[..]);
        let next = membership::Group::next(stored, wall_clock_ms());
        if registry.swap(key, found.map_or(0, |entry| entry.revision), next.encode()).await? {
            return Ok(next.generation);
        }
    }
    Err(RegistryError::new(format!("{key} changed {SWAP_ATTEMPTS} times in a row")))
}
