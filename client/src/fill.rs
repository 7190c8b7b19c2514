//! Values that clients bring to a node under a fill token: from the previous owner of a key, or from a loader
//! of the application's.
//!
//! A node gives one token for a missing key and has all others wait. A write of the key makes the token void,
//! so that nothing older than a write is stored after it.

use std::sync::Arc;

use peanut_proto::frame::{Filled, Write};
use peanut_proto::numbers::{FillToken, RingVersion};
use peanut_proto::v1::{OnMiss, Outcome};
use tokio::time::{Instant, timeout};

use crate::error::ErrorKind;
use crate::lane::Reply;
use crate::node::Node;
use crate::portions::portions;
use crate::refusal::Refusal;
use crate::request::{Op, Placement, Request};
use crate::routing::PreviousOwner;
use crate::shared::Shared;

/// The most bytes of keys and values that the writes of one call have in flight to a node.
const MAX_PORTION_BYTES: usize = 4 << 20;

/// How many writes, and bytes of theirs, one call has in flight to a node.
pub(crate) fn portion_of(node: &Node) -> (usize, usize) {
    (node.config().keys_in_flight, MAX_PORTION_BYTES)
}

/// Gets a key from its new owner, which has the value from the previous one where that still has it.
pub(crate) async fn hand_over(
    client: &Shared,
    request: &Request<'_>,
    owner: &Arc<Node>,
    previous: PreviousOwner<'_>,
    placement: Placement,
    now: Instant,
) -> Result<Reply, Refusal> {
    let lease =
        Request { op: Op::Get { on_miss: OnMiss::Lease, token: FillToken::NONE, near: false }, ..*request };
    let reply = match owner.get(&lease.at(placement), now).await {
        // Who may not write fills nobody.
        Err(Refusal::Final(denied)) if denied.kind() == ErrorKind::PermissionDenied => {
            let reply = owner.get(&request.at(placement), Instant::now()).await;
            return reply.map(|reply| client.heed(owner, reply, placement.ring_version));
        }
        reply => client.heed(owner, reply?, placement.ring_version),
    };
    if reply.outcome != Outcome::Fill {
        return Ok(reply);
    }
    let token = reply.token;
    let found = if reply.may_hand_over(placement.ring_version) {
        peek(client, request, previous, placement.ring_version).await
    } else {
        None
    };
    let Some(found) = found else {
        let back = Request { op: Op::Get { on_miss: OnMiss::Load, token, near: false }, ..*request };
        let loaded = owner.get(&back.at(placement), Instant::now()).await;
        return loaded
            .inspect(|_| reply.end_lease())
            .map(|loaded| client.heed(owner, loaded, placement.ring_version));
    };
    client.counters.handed_over();
    fill_with(&found, request, owner, placement.ring_version, &reply).await;
    Ok(Reply { ring_version: reply.ring_version, ..found })
}

/// What the previous owner has of a key that its owner has given a token for; the owner has it then as well.
pub(crate) async fn value_of_previous_owner(
    client: &Shared,
    request: &Request<'_>,
    owner: &Arc<Node>,
    ring_version: RingVersion,
    lease: &Reply,
) -> Option<Reply> {
    let routing = client.routing.get();
    let owned_since = routing.route(request.hash)?.owned_since;
    let previous =
        routing.previous_owner(request.hash, owned_since, client.config.hand_over, Instant::now())?;
    let found = peek(client, request, previous, ring_version).await?;
    client.counters.handed_over();
    fill_with(&found, request, owner, ring_version, lease).await;
    Some(found)
}

async fn fill_with(
    found: &Reply,
    request: &Request<'_>,
    owner: &Arc<Node>,
    ring_version: RingVersion,
    lease: &Reply,
) {
    let outcome =
        if found.outcome == Outcome::NotFound { Filled::NotFound } else { Filled::Value(&found.value) };
    let ttl_ms = u64::try_from(found.ttl.as_millis()).unwrap_or(u64::MAX).max(1);
    let write = Write::Set { key: request.key, outcome, ttl_ms, token: lease.token };
    fill(request, owner, ring_version, write, lease).await;
}

/// What the previous owner has.
async fn peek(
    client: &Shared,
    request: &Request<'_>,
    previous: PreviousOwner<'_>,
    ring_version: RingVersion,
) -> Option<Reply> {
    // Without a lease it may not have been told of writes. Also one that is in the ring no more.
    if previous.node.is_left() || !client.is_alive(previous.node.id()) {
        return None;
    }
    let peek =
        Request { op: Op::Get { on_miss: OnMiss::Peek, token: FillToken::NONE, near: false }, ..*request };
    let ask = peek.at(Placement::owner(ring_version, previous.owned_since));
    // It may be on its way out; the origin is there.
    let found =
        timeout(client.config.suspect_after(), previous.node.get(&ask, Instant::now())).await.ok()?.ok()?;
    matches!(found.outcome, Outcome::Hit | Outcome::NotFound).then_some(found)
}

/// Brings a value. Where that fails the token is given back, or runs out, and another is given one.
pub(crate) async fn fill(
    request: &Request<'_>,
    node: &Arc<Node>,
    ring_version: RingVersion,
    write: Write<'_>,
    lease: &Reply,
) {
    match fill_one(request, node, ring_version, write, lease).await {
        Ok(reply) => tracing::trace!(node = node.id(), outcome = reply.outcome.as_str_name(), "filled"),
        Err(refusal) => not_filled(node, refusal),
    }
}

/// As [`fill`], of many keys of the request's group.
pub(crate) async fn fill_all(
    request: &Request<'_>,
    node: &Arc<Node>,
    ring_version: RingVersion,
    fills: &[(Write<'_>, &Reply)],
) {
    for filled in fill_many(request, node, ring_version, fills).await {
        filled.map_or_else(|refusal| not_filled(node, refusal), drop);
    }
}

fn not_filled(node: &Node, refusal: Refusal) {
    let error = refusal.into_error();
    tracing::debug!(
        node = node.id(),
        error = format_args!("{error:#}"),
        "a value that was loaded could not be stored"
    );
}

/// Brings many values under their tokens, and gives what the node said to each.
pub(crate) async fn fill_many(
    request: &Request<'_>,
    node: &Arc<Node>,
    ring_version: RingVersion,
    fills: &[(Write<'_>, &Reply)],
) -> Vec<Result<Reply, Refusal>> {
    let mut filled = Vec::with_capacity(fills.len());
    for portion in portions(fills, portion_of(node), |(write, _)| write.bytes()) {
        let mut writes = Vec::with_capacity(portion.len());
        writes.extend(portion.iter().map(|(write, _)| *write));
        if let Some(portion_filled) = node.write_many(request, ring_version, &writes, Instant::now()).await {
            let both = portion.iter().zip(&portion_filled);
            both.filter(|(_, filled)| filled.is_ok()).for_each(|((_, lease), _)| lease.end_lease());
            filled.extend(portion_filled);
            continue;
        }
        for (write, lease) in portion {
            let request = Request { key: write.key(), ..*request };
            filled.push(fill_one(&request, node, ring_version, *write, lease).await);
        }
    }
    filled
}

async fn fill_one(
    request: &Request<'_>,
    node: &Arc<Node>,
    ring_version: RingVersion,
    write: Write<'_>,
    lease: &Reply,
) -> Result<Reply, Refusal> {
    let fill = Request { op: Op::Write(write), ..*request };
    let filled =
        node.write(&fill.at(Placement::owner(ring_version, RingVersion::NONE)), Instant::now()).await;
    filled.inspect(|_| lease.end_lease())
}
