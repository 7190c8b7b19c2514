//! How one get finds an answer: the owner first, its successor where the owner cannot be reached, until
//! the deadline.
//!
//! Only failures of the transport move a get to another node. What a node itself says is final: a loader
//! that failed would only be asked again elsewhere. Every attempt after the first draws on a budget, so
//! that a fleet in trouble is not asked twice as much because of it.

use std::sync::Arc;

use tokio::time::{Instant, sleep};

use crate::config::Failover;
use crate::error::{Error, ErrorKind};
use crate::fill;
use crate::lane::Reply;
use crate::node::Node;
use crate::plan::{ReadPlan, Role, Standing, Then};
use crate::refusal::Refusal;
use crate::request::{Placement, Request};
use crate::ring::key_hash;
use crate::routing::Routing;
use crate::shared::{Answered, Shared};

/// Asks for a key until there is an answer that stands. The routing table is looked at for each attempt,
/// since the ring may have changed.
pub(crate) async fn get(client: &Shared, request: &Request<'_>, now: Instant) -> Result<Answered, Error> {
    client.budget.deposit();
    let mut plan = ReadPlan::new(client.config.failover);
    // What follows is rare, so it is in a box: futures that wait for an answer are copied from caller to
    // caller when they are made.
    match attempt(client, request, &mut plan, now).await {
        Ok(answered) if !Shared::may_have_moved(&answered) => Ok(answered),
        first => Box::pin(get_again(client, request, plan, first)).await,
    }
}

/// The answer of a first attempt where it stands, or further attempts.
async fn get_again(
    client: &Shared,
    request: &Request<'_>,
    mut plan: ReadPlan,
    first: Result<Answered, Refusal>,
) -> Result<Answered, Error> {
    let mut refusal = match first {
        Ok(answered) if !client.has_moved(request, &answered).await => return Ok(answered),
        Ok(answered) => moved(&answered),
        Err(refusal) => refusal,
    };
    let mut before: Option<Error> = None;
    loop {
        let routing = client.routing.get();
        let owner_is_down = routing.route(request.hash).is_none_or(|route| route.owner.is_down());
        let then = plan.after(refusal.failed(), owner_is_down);
        let error = match (refusal, before) {
            (Refusal::OwnerOnly(error), Some(before)) => {
                let why = format!("{}; its successor could not answer for it", before.message());
                Error::caused_by(ErrorKind::Unavailable, before.node(), why, error)
            }
            (refusal, _) => refusal.into_error(),
        };
        let pause = match then {
            Then::Fail => return Err(error),
            Then::AskWhereGroupIs => {
                let answered = get_where_it_is(client, request, error).await?;
                if !client.has_moved(request, &answered).await {
                    return Ok(answered);
                }
                (refusal, before) = (moved(&answered), None);
                continue;
            }
            Then::Retry(pause) => pause,
        };
        tracing::debug!(error = format_args!("{error:#}"), "attempt failed");
        if Instant::now() >= request.deadline || !client.budget.withdraw() {
            return Err(error);
        }
        if !pause.is_zero() {
            let pause = pause.mul_f64(0.5 + fastrand::f64() / 2.0);
            sleep(pause.min(request.deadline.saturating_duration_since(Instant::now()))).await;
        }
        before = Some(error);
        refusal = match attempt(client, request, &mut plan, Instant::now()).await {
            Ok(answered) if !client.has_moved(request, &answered).await => return Ok(answered),
            Ok(answered) => moved(&answered),
            Err(refusal) => refusal,
        };
    }
}

/// The nodes that say that they have a group: while a configuration is rolled out, a key's owner may not have
/// the group yet.
pub(crate) fn nodes_with_group(client: &Shared, request: &Request<'_>) -> Vec<Arc<Node>> {
    let view = client.view();
    let with_group = view.nodes_with_group(request.group_name);
    let routing = client.routing.get();
    routing.nodes().iter().filter(|node| with_group.contains(&node.id())).cloned().collect()
}

/// Where no node that was to answer has the group.
pub(crate) fn has_no_group(client: &Shared, request: &Request<'_>, error: &Error) -> Error {
    let view = client.view();
    let with_group = view.nodes_with_group(request.group_name);
    let tail = if with_group.is_empty() {
        "nor has any other".to_owned()
    } else {
        format!("{} have it", with_group.join(", "))
    };
    let why = format!("{}; {tail}", error.message());
    match error.node() {
        Some(node) => Error::at(ErrorKind::UnknownGroup, node, why),
        None => Error::new(ErrorKind::UnknownGroup, why),
    }
}

/// Asks nodes that have the group, in the place of one that has not; they keep what they load for a short
/// time.
async fn get_where_it_is(client: &Shared, request: &Request<'_>, error: Error) -> Result<Answered, Error> {
    let ring_version = client.routing.get().ring.version();
    let mut nodes = nodes_with_group(client, request);
    nodes.retain(|node| !node.is_down() && client.config.failover != Failover::Off);
    // Everybody goes by the same order, which is another for each key.
    nodes.sort_by_key(|node| key_hash(node.id(), request.key));
    for node in nodes.into_iter().take(2) {
        let reply = node.get(&request.at(Placement::in_its_place(ring_version)), Instant::now()).await;
        match reply {
            Ok(reply) => {
                let reply = client.heed(&node, reply, ring_version);
                return Ok(Answered { reply, node, failover: true, ring_version });
            }
            Err(Refusal::Final(error) | Refusal::OwnerOnly(error)) => return Err(error),
            Err(refusal) => {
                tracing::debug!(
                    error = format_args!("{:#}", refusal.into_error()),
                    "a node with the group did not answer"
                )
            }
        }
    }
    Err(has_no_group(client, request, &error))
}

/// The answer of a node that was not the owner any more: the owner under the new ring is asked, as if nobody
/// had been.
fn moved(answered: &Answered) -> Refusal {
    let error = Error::at(ErrorKind::Unavailable, answered.node.id(), "the ring changed meanwhile");
    Refusal::Again(error)
}

/// Whom an attempt asks, and as what.
struct Chosen {
    node: Arc<Node>,
    placement: Placement,
    /// It has owned the key for a short time only: another may have the value.
    is_new_owner: bool,
}

async fn attempt(
    client: &Shared,
    request: &Request<'_>,
    plan: &mut ReadPlan,
    now: Instant,
) -> Result<Answered, Refusal> {
    let chosen = match client.routing.with(|routing| choose(client, routing, request, plan, now)) {
        Some(chosen) => chosen,
        None => {
            let routing = Box::pin(client.wait_for_nodes(request.deadline)).await.map_err(Refusal::Final)?;
            let nobody = || Refusal::Elsewhere(Error::new(ErrorKind::Unavailable, "the fleet has no nodes"));
            choose(client, &routing, request, plan, now).ok_or_else(nobody)?
        }
    };
    let Chosen { node, placement, is_new_owner } = chosen?;
    let reply = if is_new_owner {
        Box::pin(get_from_new_owner(client, request, &node, placement, now)).await?
    } else {
        client.heed(&node, node.get(&request.at(placement), now).await?, placement.ring_version)
    };
    let Placement { ring_version, failover, .. } = placement;
    Ok(Answered { reply, node, failover, ring_version })
}

/// Whom the next attempt asks; `None`: there are no nodes.
fn choose(
    client: &Shared,
    routing: &Routing,
    request: &Request<'_>,
    plan: &mut ReadPlan,
    now: Instant,
) -> Option<Result<Chosen, Refusal>> {
    let route = routing.route(request.hash)?;
    let standing = |node: &Arc<Node>| Standing {
        is_left: node.is_left() && !routing.mostly_down(),
        is_unleased: node.is_unleased(),
    };
    let role = plan.next(standing(route.owner), route.successor.map(standing));
    let node = match (role, route.successor) {
        (Ok(Role::Successor) | Err(Role::Successor), Some(successor)) => successor,
        _ => route.owner,
    };
    let Ok(role) = role else {
        let why = "it holds no lease in the registry, and may not have been told of writes";
        return Some(Err(Refusal::Elsewhere(Error::at(ErrorKind::Unavailable, node.id(), why))));
    };
    let failover = role == Role::Successor;
    if failover {
        // What it answers this client's own writes are to reach, also where the owner is not down.
        route.owner.left(now);
    }
    let is_new_owner = !failover
        && request.op.can_be_shared()
        && routing.previous_owner(request.hash, route.owned_since, client.config.hand_over, now).is_some();
    let ring_version = routing.ring.version();
    let owned_since = plan.good_since(role, route.owned_since, ring_version);
    let placement = Placement { ring_version, owned_since, failover };
    Some(Ok(Chosen { node: node.clone(), placement, is_new_owner }))
}

async fn get_from_new_owner(
    client: &Shared,
    request: &Request<'_>,
    owner: &Arc<Node>,
    placement: Placement,
    now: Instant,
) -> Result<Reply, Refusal> {
    let routing = client.routing.get();
    match routing.previous_owner(request.hash, placement.owned_since, client.config.hand_over, now) {
        Some(previous) => fill::hand_over(client, request, owner, previous, placement, now).await,
        // The ring has just changed once more.
        None => {
            let reply = owner.get(&request.at(placement), now).await?;
            Ok(client.heed(owner, reply, placement.ring_version))
        }
    }
}
