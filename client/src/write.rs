//! How one write comes to be done wherever an old value could be shown.
//!
//! Every write is a delete: at the owner, and for a while after a change of the ring at previous owners, whom
//! clients that have not heard of it may ask still. A value follows only where a delete has been
//! acknowledged, under the fill token that the owner gave with that, which any later write of the key makes
//! void. So whatever is late on its way, a delete or a value, costs a load and brings nothing back.
//!
//! Where the owner cannot be reached, a *hint* is stored for it in the registry (hinted handoff), which it
//! reads before it answers again, and the successor, who answers in its place meanwhile, deletes too. When
//! all of that is done and the ring has not moved the key meanwhile, the write is done; else it begins again
//! under the new ring.

mod gone;
mod hint;
mod in_its_place;
mod leased;
pub(crate) mod many;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures_util::future::{OptionFuture, join, try_join_all};
use peanut_proto::backoff::Backoff;
use peanut_proto::clock::uptime;
use peanut_proto::frame::{Filled, Write};
use peanut_proto::intervals::RECOVERED;
use peanut_proto::numbers::{FillToken, RingVersion};
use peanut_proto::sabotage::{Mechanism, without};
use peanut_proto::v1::Outcome;
use tokio::time::{Instant, sleep, timeout_at};

use crate::error::{Error, ErrorKind};
use crate::failover;
use crate::lane::Reply;
use crate::node::Node;
use crate::plan::{Delivery, Duty, Part, Reach, Step, WritePlan};
use crate::refusal::Refusal;
use crate::request::{Op, Placement, Request};
use crate::routing::{Routing, Written, fingerprint};
use crate::sequences::Sequences;
use crate::shared::Shared;

/// Rings that one write may be done under.
pub(crate) const MAX_RINGS: usize = 8;
/// Attempts to bring the value of a set. Without it the key is deleted, as if the value had been evicted at
/// once.
const MAX_FILLS: u32 = 3;
/// The longest value that goes with its delete.
const MAX_AT_ONCE: usize = 16 << 10;
/// How long a value waits for room on its way, at first and at most, before it is looked for again.
const ROOM_FIRST: Duration = Duration::from_millis(5);
const ROOM_LONGEST: Duration = Duration::from_millis(100);

/// Writes a key. On error the write may have been applied on some nodes. The value of a set is kept only
/// where `sequence` is the key's still; 0: whatever it is. Gives the key's sequence at its owner; 0 where
/// that could not be reached.
pub(crate) async fn write(
    client: &Shared,
    request: &Request<'_>,
    sequence: u64,
    group_name: &Arc<str>,
    begun: Instant,
) -> Result<u64, Error> {
    let is_set = matches!(request.op, Op::Write(Write::Set { .. }));
    let sequence = if is_set { sequence } else { 0 };
    let Deleted { routing, reply } = delete(client, request, sequence, group_name, begun).await?;
    let Some(reply) = reply else { return Ok(0) };
    if !is_set {
        return Ok(reply.sequence);
    }
    if reply.outcome == Outcome::Stored {
        tell_of_bound(request, &reply);
        return Ok(reply.sequence);
    }
    // In a box, so that futures of writes that take one round trip are small.
    Box::pin(bring(client, request, (routing, reply), sequence != 0, (group_name, begun))).await
}

/// Brings the value of a set after its delete. Gives the key's sequence.
async fn bring(
    client: &Shared,
    request: &Request<'_>,
    (mut routing, mut reply): (Arc<Routing>, Reply),
    is_ticket: bool,
    (group_name, begun): (&Arc<str>, Instant),
) -> Result<u64, Error> {
    for attempt in 1.. {
        let Some(owner) = routing.route(request.hash).map(|route| route.owner) else { break };
        let is_kept = fill(request, owner, routing.ring.version(), &reply).await?;
        // A value that was lost on the way is brought once more, unless another write is to come first then.
        if is_kept || is_ticket || attempt == MAX_FILLS || Instant::now() >= request.deadline {
            break;
        }
        sleep(ROOM_FIRST).await;
        match Box::pin(delete(client, request, 0, group_name, begun)).await {
            Ok(Deleted { reply: Some(again), .. }) if again.outcome == Outcome::Stored => break,
            Ok(Deleted { routing: now, reply: Some(again) }) => (routing, reply) = (now, again),
            // The key has been deleted before, and the value is not there, which any cache may come to.
            Ok(_) | Err(_) => break,
        }
    }
    Ok(reply.sequence)
}

/// What a delete came to: under which ring, and what the owner answered, where that could be reached.
struct Deleted {
    routing: Arc<Routing>,
    reply: Option<Reply>,
}

/// Deletes a key wherever its value could be shown, for itself or as the first part of a set.
async fn delete(
    client: &Shared,
    request: &Request<'_>,
    sequence: u64,
    group_name: &Arc<str>,
    begun: Instant,
) -> Result<Deleted, Error> {
    for _ in 0..MAX_RINGS {
        let routing = client.routing_with_nodes(request.deadline).await?;
        let was_left = |owner: &Arc<Node>| owner.was_left_within(RECOVERED, begun);
        let Some(WritePlan { ring_version, previous_owners, owner, owned_since, successor }) =
            WritePlan::new(&routing, request.hash, client.config.failover, begun, was_left)
        else {
            return Err(Error::new(ErrorKind::Unavailable, "the fleet has no nodes"));
        };
        let op = Op::Write(at_once(&client.sequences, request, sequence, owner.id()));
        let heard = HeardOf::default();
        let to_owner =
            OneNode { client, routing: &routing, request: Request { op, ..*request }, begun, heard: &heard };
        // The previous owners first: what is handed over from them meanwhile, the owner then forgets or
        // refuses.
        if !previous_owners.is_empty() {
            Box::pin(to_owner.tell_previous(&previous_owners)).await.map_err(Refusal::into_error)?;
        }
        // In a box, as that is rare.
        let to_successor = successor.as_ref().filter(|(_, duty)| *duty != Duty::InItsPlace);
        let to_successor = OptionFuture::from(to_successor.map(|(node, duty)| {
            Box::pin(async {
                let other = to_owner.without_token();
                match duty {
                    Duty::Owed => other.deliver(Part::Answers, node, None, RingVersion::NONE).await.map(drop),
                    Duty::Attempt | Duty::InItsPlace => {
                        drop(other.try_to_delete_at(node).await);
                        Ok(())
                    }
                }
            })
        }));
        let in_its_place = successor.as_ref().map(|(node, _)| node);
        let answer = to_owner.deliver(Part::Answers, &owner, in_its_place, owned_since);
        let (told, mut reply) = join(to_successor, answer).await;
        // There is no room for so many values at once: the deletes go first.
        if to_owner.has_value()
            && matches!(&reply, Err(Refusal::Final(error)) if error.kind() == ErrorKind::Overloaded)
        {
            reply = Box::pin(async {
                let op = Op::Write(deleted_first(request, sequence));
                let to_owner = OneNode { request: Request { op, ..*request }, ..to_owner };
                to_owner.deliver(Part::Answers, &owner, in_its_place, owned_since).await
            })
            .await;
        }
        let reply = told.unwrap_or(Ok(())).and(reply).map_err(Refusal::into_error)?;
        let is_told = |duty| duty != Duty::InItsPlace || reply.is_none() || owner.left_since(begun);
        let successor =
            successor.filter(|(_, duty)| is_told(*duty)).map_or(0, |(node, _)| fingerprint(&node));
        let by = (client, Written { under: ring_version, successor }, &*owner);
        if !has_moved_meanwhile(by, request, reply.as_ref(), heard.version(), group_name).await? {
            return Ok(Deleted { routing, reply });
        }
    }
    Err(Error::new(ErrorKind::Unavailable, "the ring changed during each attempt"))
}

/// The delete of a write.
fn deleted_first<'a>(request: &Request<'a>, sequence: u64) -> Write<'a> {
    let then_set = matches!(request.op, Op::Write(Write::Set { .. }));
    Write::Delete { key: request.key, then_set, sequence }
}

/// The delete and the value of a set as one operation, where the key's sequence is known: from the write that
/// was begun, or from this client's last one. Else, and for a long value, the delete alone.
fn at_once<'a>(sequences: &Sequences, request: &Request<'a>, sequence: u64, owner: &str) -> Write<'a> {
    let delete = deleted_first(request, sequence);
    let Op::Write(Write::Set { key, outcome: Filled::Value(value), ttl_ms, .. }) = request.op else {
        return delete;
    };
    if value.len() > MAX_AT_ONCE {
        return delete;
    }
    if sequence != 0 {
        return Write::ReplaceOrForget { key, value, ttl_ms, sequence };
    }
    let known = sequences.known(owner, request.group, key);
    known.map_or(delete, |sequence| Write::Replace { key, value, ttl_ms, sequence })
}

/// Stores the value of a set, after the delete. `false`: it was lost on the way, or there was no room for a
/// token.
async fn fill(
    request: &Request<'_>,
    owner: &Arc<Node>,
    ring_version: RingVersion,
    lease: &Reply,
) -> Result<bool, Error> {
    let Op::Write(set @ Write::Set { .. }) = request.op else { return Ok(true) };
    if lease.token.is_none() {
        return Ok(false);
    }
    let set = under_token(set, lease);
    let request = Request { op: Op::Write(set), ..*request };
    let ask = request.at(Placement::owner(ring_version, RingVersion::NONE));
    let mut pauses = Backoff::new(ROOM_FIRST, ROOM_LONGEST);
    loop {
        match owner.write(&ask, Instant::now()).await {
            Ok(reply) => {
                lease.end_lease();
                tell_of_bound(&request, &reply);
                return Ok(true);
            }
            // Many deletes are answered at once, and then all their values are to be sent: they wait for one
            // another.
            Err(Refusal::Final(error))
                if error.kind() == ErrorKind::Overloaded && Instant::now() < request.deadline =>
            {
                sleep(pauses.next_delay(fastrand::f64())).await;
            }
            Err(Refusal::Final(error)) if error.kind() != ErrorKind::DeadlineExceeded => return Err(error),
            Err(refusal) => {
                let error = refusal.into_error();
                tracing::debug!(
                    node = owner.id(),
                    error = format_args!("{error:#}"),
                    "the value of a set was lost on the way"
                );
                return Ok(false);
            }
        }
    }
}

/// A set as it follows its delete.
fn under_token<'a>(set: Write<'a>, lease: &Reply) -> Write<'a> {
    let given = if without(Mechanism::Tokens) { FillToken::NONE } else { lease.token };
    match set {
        Write::Set { key, outcome, ttl_ms, .. } => Write::Set { key, outcome, ttl_ms, token: given },
        other => other,
    }
}

/// Says where a value stays fresh for a shorter time than was asked for: at most once a second in a process.
fn tell_of_bound(request: &Request<'_>, reply: &Reply) {
    let Op::Write(Write::Set { ttl_ms, .. }) = request.op else { return };
    let (group, max_ttl) = (request.group_name, reply.ttl);
    if max_ttl.is_zero() || max_ttl >= Duration::from_millis(ttl_ms) {
        return;
    }
    static LAST: AtomicU64 = AtomicU64::new(0);
    let now = uptime().as_secs().max(1);
    if LAST.swap(now, Ordering::Relaxed) != now {
        tracing::warn!(
            group,
            ?max_ttl,
            "the group's max_ttl is shorter than the lifetime of a value that was set"
        );
    }
}

/// Takes down a write that is done, with the owner's reply, where that could be reached, and the latest ring
/// that any node has named. Whether it has to be done again under a later ring.
async fn has_moved_meanwhile(
    (client, written, owner): (&Shared, Written, &Node),
    request: &Request<'_>,
    reply: Option<&Reply>,
    heard: RingVersion,
    group_name: &Arc<str>,
) -> Result<bool, Error> {
    take_down((client, written, owner), request, reply, group_name);
    wait_for_ring(client, heard, request).await?;
    // It may be back where it was: its owner in between can have filled itself with what was before.
    Ok(client.routing.get().has_misplaced(request.hash, written))
}

/// Takes down a write that is done: before the look at the ring, so that a change after it is noticed there.
fn take_down(
    (client, written, owner): (&Shared, Written, &Node),
    request: &Request<'_>,
    reply: Option<&Reply>,
    group_name: &Arc<str>,
) {
    let sequence = reply.map_or(0, |reply| reply.sequence);
    client.sequences.learn(owner.id(), request.group, request.key, sequence);
    client.recent.add(request, group_name, written, Instant::now());
}

/// Waits for a ring that nodes know, and for one that this client may have missed.
pub(crate) async fn wait_for_ring(
    client: &Shared,
    heard: RingVersion,
    request: &Request<'_>,
) -> Result<(), Error> {
    client.wait_for_view(request.deadline).await;
    // The registry may have told of one that is not gone by yet.
    let heard = heard.max(client.view().ring.version);
    if heard <= client.routing.get().ring.version() {
        return Ok(());
    }
    let waited = Box::pin(timeout_at(request.deadline, client.wait_for_ring(heard))).await;
    if waited.is_ok_and(|waited| waited.is_ok()) {
        return Ok(());
    }
    let why = format!("the nodes know ring {heard}, and it could not be read in time");
    Err(Error::new(ErrorKind::Unavailable, why))
}

/// The deleting at one node.
#[derive(Clone, Copy)]
pub(crate) struct OneNode<'a> {
    pub(crate) client: &'a Shared,
    pub(crate) routing: &'a Routing,
    pub(crate) request: Request<'a>,
    pub(crate) begun: Instant,
    /// What all nodes say that this write is done at.
    pub(crate) heard: &'a HeardOf,
}

/// The latest ring that nodes have named in the course of a write: the owner may not have heard of one that
/// another knows.
#[derive(Debug, Default)]
pub(crate) struct HeardOf(AtomicU64);

impl HeardOf {
    fn note(&self, version: RingVersion) {
        self.0.fetch_max(version.0, Ordering::Relaxed);
    }

    pub(crate) fn version(&self) -> RingVersion {
        RingVersion(self.0.load(Ordering::Relaxed))
    }
}

impl OneNode<'_> {
    /// Has a node forget what the request names, now or before it answers again. Gives its reply, if it gave
    /// one.
    pub(crate) async fn deliver(
        &self,
        part: Part,
        node: &Arc<Node>,
        successor: Option<&Arc<Node>>,
        owned_since: RingVersion,
    ) -> Result<Option<Reply>, Refusal> {
        let has_registry = self.client.registry.is_some();
        // The fleet and the registry's view are looked at only where it matters: most nodes are up, and
        // answer.
        let reach = |has_failed: bool| {
            let is_down = node.is_down();
            let is_mostly_down = is_down && self.routing.mostly_down();
            let is_leased = !(is_down || has_failed) || self.client.may_be_alive(node.id());
            Reach { is_down, is_mostly_down, is_leased, has_registry }
        };
        let mut delivery = Delivery::new(part);
        let mut last = Refusal::Elsewhere(Error::at(ErrorKind::Unavailable, node.id(), "the node is down"));
        let mut step = delivery.begin(reach(false));
        let reply = loop {
            match step {
                Step::Attempt => match self.ask(node, owned_since).await {
                    Ok(reply) => break reply,
                    Err(refusal) => {
                        step = delivery.after(Err(refusal.failed()), reach(true));
                        last = refusal;
                    }
                },
                Step::StoreHint => {
                    let error = last.into_error();
                    tracing::debug!(
                        node = node.id(),
                        error = format_args!("{error:#}"),
                        "a hint is stored for the node"
                    );
                    let stored = Box::pin(self.store_hint(node, successor, error)).await;
                    stored.map_err(Refusal::Final)?;
                    // Others may reach it, and be sent on.
                    let has_group = self.client.view().has_group(node.id(), self.request.group_name);
                    if has_group == Some(false) && part != Part::OneOfAll {
                        self.delete_where_group_is().await?;
                    }
                    return Ok(None);
                }
                Step::DeleteWhereGroupIs => {
                    if self.delete_where_group_is().await? || part == Part::PreviousOwner {
                        return Ok(None);
                    }
                    let error = failover::has_no_group(self.client, &self.request, &last.into_error());
                    return Err(Refusal::Final(error));
                }
                Step::Done => {
                    // It may have given near leases until it went.
                    let lapse = gone::lapse(self.client, node);
                    let since = node.passed_over(lapse, Instant::now());
                    let over = Box::pin(gone::near_leases_over(node, since, self.request.deadline)).await;
                    return over.map(|()| None).map_err(Refusal::Final);
                }
                Step::Fail => return Err(last),
            }
        };
        match successor.filter(|_| node.left_since(self.begun)) {
            Some(successor) => Ok(Some(self.tell_too(successor, reply).await)),
            None => Ok(Some(reply)),
        }
    }

    /// Has all previous owners forget.
    async fn tell_previous(self, previous_owners: &[Arc<Node>]) -> Result<(), Refusal> {
        let other = self.without_token();
        let each = previous_owners.iter();
        let told = each.map(|node| other.deliver(Part::PreviousOwner, node, None, RingVersion::NONE));
        try_join_all(told).await.map(drop)
    }

    /// Asks a node once.
    async fn ask(&self, node: &Arc<Node>, owned_since: RingVersion) -> Result<Reply, Refusal> {
        let ask = self.request.at(Placement::owner(self.routing.ring.version(), owned_since));
        let reply = node.write(&ask, Instant::now()).await?;
        self.heed(node, reply)
    }

    fn heed(&self, node: &Node, reply: Reply) -> Result<Reply, Refusal> {
        let reply = heed_write(self.client, node, reply, self.routing.ring.version())?;
        self.heard.note(reply.ring_version);
        Ok(reply)
    }

    /// Whether it brings a value with the delete.
    fn has_value(&self) -> bool {
        matches!(self.request.op, Op::Write(Write::Replace { .. } | Write::ReplaceOrForget { .. }))
    }

    /// The same without a token: only the owner gives one.
    fn without_token(self) -> Self {
        if matches!(self.request.op, Op::Write(Write::Clear { .. })) {
            return self;
        }
        let op = Op::Write(Write::Delete { key: self.request.key, then_set: false, sequence: 0 });
        OneNode { request: Request { op, ..self.request }, ..self }
    }
}

/// Takes in a reply to a write.
fn heed_write(client: &Shared, node: &Node, reply: Reply, chosen_by: RingVersion) -> Result<Reply, Refusal> {
    if !matches!(reply.outcome, Outcome::Done | Outcome::Stored) {
        let why = format!("the node answered a write with {}", reply.outcome.as_str_name());
        return Err(Refusal::Final(Error::at(ErrorKind::Protocol, node.id(), why)));
    }
    node.hints().store(0, Ordering::Relaxed);
    node.was_reached();
    Ok(client.heed(node, reply, chosen_by))
}

#[cfg(test)]
mod tests;
