//! How one write comes to be done wherever an old value could be shown.
//!
//! The owner writes. Where it cannot be reached, word is left for it in the registry, which it reads before it answers
//! again, and the successor, who answers in its place meanwhile, writes too. For a while after a change of the ring former
//! owners forget the key as well: others may still ask them. When all of that is done and the ring has not moved
//! the key meanwhile, the write is done; else it begins again under the new ring.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures_util::future::{join, join_all, try_join_all};
use peanut_proto::frame::Write;
use peanut_proto::membership::{self, FORMAT, Undelivered, check_name};
use peanut_proto::registry::{KeyRange, Registry, RegistryError};
use peanut_proto::v1::Outcome;
use tokio::time::{Instant, sleep, sleep_until, timeout_at};

use crate::client::Shared;
use crate::config::Failover;
use crate::error::{Error, ErrorKind};
use crate::failover::{self, Wanted};
use crate::lane::Want;
use crate::node::{Node, Refusal};
use crate::routing::Routing;
use crate::unary;
use peanut_proto::clock::wall_clock_ms;

/// Rings that one write may be done under.
const MAX_RINGS: usize = 8;
/// A node that is silent for less may only be asleep, and would not notice.
const SLEEP: Duration = Duration::from_millis(500);
/// Invalidations for one node, left one by one until it is back; then one for the whole group takes the place of more. Long keys
/// count for several, so that a process leaves at most 16 KiB of keys.
const WORDS: u32 = 64;
const KEY_BYTES_PER_WORD: usize = 256;
/// Where so many wait for a node in a group, whoever left them, the next is for the whole group.
const MAX_WAITING: u64 = 1024;
/// How long a writer waits for a node to read its word, or to be reached after all.
const READ_WITHIN: Duration = Duration::from_millis(300);
const ASK_AGAIN: Duration = Duration::from_millis(20);
/// A swap that loses so often has met something other than other clients.
const SWAP_ATTEMPTS: usize = 100;

/// Numbers the words that this process leaves.
static LAST_WORD: AtomicU64 = AtomicU64::new(0);

/// Has a key written. On an error the write may have been done or not, here or there.
pub(crate) async fn write(
    client: &Shared,
    wanted: Wanted<'_>,
    group_name: &Arc<str>,
    begun: Instant,
) -> Result<(), Error> {
    for _ in 0..MAX_RINGS {
        let mut routing = client.routing.get();
        if routing.nodes().is_empty() {
            routing = Box::pin(client.wait_for_nodes(wanted.deadline)).await?;
        }
        let Some(route) = routing.route(wanted.hash) else {
            return Err(Error::new(ErrorKind::Unavailable, "the fleet has no nodes"));
        };
        let one = OneNode { client, routing: &routing, wanted, begun };
        let window = client.config.hand_over * 2;
        let is_strict = client.config.failover == Failover::Strict;
        let formers = routing.formers(wanted.hash, window, begun);
        let formers = formers.flat_map(|former| [Some(former.node), former.successor.filter(|_| is_strict)]);
        let others = formers.chain([route.successor.filter(|_| is_strict)]).flatten();
        let mut others: Vec<_> = others.filter(|node| node.id() != route.owner.id()).collect();
        others.sort_by_key(|node| node.id());
        others.dedup_by_key(|node| node.id());
        let forget = Wanted { want: Want::Write(Write::Delete { key: wanted.key }), ..wanted };
        let forgetting = OneNode { wanted: forget, ..one };
        // The former owners first: what is handed over from them meanwhile, the owner then forgets or refuses.
        try_join_all(others.into_iter().map(|node| forgetting.have_written(node, None, 0))).await?;
        let heard = one.have_written(route.owner, route.successor, route.owned_since).await?;
        // Before the look at the ring, so that a change after it is noticed there.
        client.recent.add(&wanted, group_name, routing.ring.version(), Instant::now());
        if !has_moved(client, &routing, heard, &wanted).await? {
            return Ok(());
        }
    }
    Err(Error::new(ErrorKind::Unavailable, "the ring changed during each attempt"))
}

/// Whether the key has had another owner since it was written.
async fn has_moved(client: &Shared, under: &Routing, heard: u64, wanted: &Wanted<'_>) -> Result<bool, Error> {
    if heard > client.routing.get().ring.version() {
        let waited = Box::pin(timeout_at(wanted.deadline, client.wait_for_ring(heard))).await;
        if !waited.is_ok_and(|waited| waited.is_ok()) {
            let why = format!("the nodes know ring {heard}, and it could not be read in time");
            return Err(Error::new(ErrorKind::Unavailable, why));
        }
    }
    // It may be back where it was: whoever owned it in between can have filled itself with what was before.
    Ok(client.routing.get().has_moved_since(wanted.hash, under.ring.version()))
}

/// The writing at one node.
#[derive(Clone, Copy)]
struct OneNode<'a> {
    client: &'a Shared,
    routing: &'a Routing,
    wanted: Wanted<'a>,
    begun: Instant,
}

impl OneNode<'_> {
    /// Has a node write, now or before it answers again. Gives the newest ring version that it has heard of.
    async fn have_written(
        &self,
        node: &Arc<Node>,
        successor: Option<&Arc<Node>>,
        owned_since: u64,
    ) -> Result<u64, Error> {
        let ask = self.wanted.ask(self.routing.ring.version(), owned_since, false);
        let mut last = Error::at(ErrorKind::Unavailable, node.id(), "the node is down");
        // The second time on a new lane, in case the first was lost.
        for _ in 0..2 {
            if node.is_down() && !self.routing.mostly_down() {
                break;
            }
            match node.write(&ask, Instant::now()).await {
                Ok(reply) if reply.outcome == Outcome::Done => {
                    node.words().store(0, Ordering::Relaxed);
                    return Ok(self.client.heed(node, reply, self.routing.ring.version()).ring_version);
                }
                Ok(reply) => {
                    let why = format!("the node answered a write with {}", reply.outcome.as_str_name());
                    return Err(Error::at(ErrorKind::Protocol, node.id(), why));
                }
                Err(Refusal::Elsewhere(error) | Refusal::Again(error)) => last = error,
                Err(Refusal::NoGroup(error)) => return Box::pin(self.write_where_it_is(error)).await,
                Err(refusal) => return Err(refusal.into_error()),
            }
        }
        tracing::debug!(node = node.id(), error = %last, "word is left for the node");
        Box::pin(self.leave_word(node, successor, last)).await.map(|()| 0)
    }

    /// Writes at the nodes that have the group, one of which is asked in the place of a node that has not.
    async fn write_where_it_is(&self, error: Error) -> Result<u64, Error> {
        let ask = self.wanted.ask(self.routing.ring.version(), 0, true);
        let nodes = failover::nodes_with_group(self.client, &self.wanted);
        let written = join_all(nodes.iter().map(|node| node.write(&ask, Instant::now()))).await;
        match written
            .into_iter()
            .map(|written| written.map_err(Refusal::into_error))
            .collect::<Result<Vec<_>, _>>()
        {
            Ok(written) if !written.is_empty() => Ok(0),
            Ok(_) => Err(failover::has_no_group(self.client, &self.wanted, &error)),
            Err(error) => Err(error),
        }
    }

    /// Tells the node in the registry what it could not be told, and the successor what it is to know meanwhile.
    async fn leave_word(
        &self,
        node: &Arc<Node>,
        successor: Option<&Arc<Node>>,
        because: Error,
    ) -> Result<(), Error> {
        let Some(registry) = &self.client.registry else { return Err(because) };
        if check_name(self.wanted.group_name).is_err() {
            return Err(because);
        }
        let Wanted { group_name, key, hash, deadline, .. } = self.wanted;
        // A node that only sleeps a little would not look.
        let silent_since = node.down_since().unwrap_or(self.begun).min(self.begun);
        if timeout_at(deadline, sleep_until(silent_since + SLEEP)).await.is_err() {
            return Err(because);
        }
        let prefix = self.client.keys.undelivered_of(node.id(), group_name);
        let weight = u32::try_from(1 + key.len() / KEY_BYTES_PER_WORD).unwrap_or(WORDS);
        let is_many = node.words().fetch_add(weight, Ordering::Relaxed) >= WORDS || {
            let waiting = timeout_at(deadline, registry.count(&KeyRange::prefix(&prefix))).await;
            matches!(waiting, Ok(Ok(waiting)) if waiting >= MAX_WAITING)
        };
        let number = LAST_WORD.fetch_add(1, Ordering::Relaxed);
        let id = self.client.config.identity.client_id;
        let fence = node.fence(hash);
        // Each writer's own, and for each lane that it shuts out: none takes the place of another that says more.
        let slot = fence.map_or(0, |fence| fence.slot);
        let at = if is_many {
            format!("{prefix}{id:016x}-all-{slot}")
        } else {
            format!("{prefix}{id:016x}-{number}")
        };
        let word = Undelivered {
            format: FORMAT,
            keys: (!is_many).then(|| vec![key.to_vec()]),
            ring_version: self.routing.ring.version(),
            at_ms: wall_clock_ms(),
            fence,
        };
        let answers = self.client.config.failover != Failover::Off;
        let successor = async {
            if let Some(successor) = successor.filter(|successor| answers && !successor.is_down()) {
                let ask = self.wanted.ask(self.routing.ring.version(), 0, true);
                // What it has by then goes by itself, after `failover_ttl`.
                if let Err(refusal) = successor.write(&ask, Instant::now()).await {
                    let error = refusal.into_error();
                    tracing::debug!(node = successor.id(), %error, "the successor did not write");
                    return Some(error);
                }
            }
            None
        };
        let left = timeout_at(deadline, registry.put(&at, word.encode(), None));
        // The registry would take it from anybody, so whoever has a token asks for the right first.
        let left = if self.client.config.token.is_some() {
            match successor.await {
                Some(denied) if denied.kind() == ErrorKind::PermissionDenied => return Err(denied),
                _ => left.await,
            }
        } else {
            join(left, successor).await.0
        };
        match left {
            Ok(Ok(())) => {
                self.client.counters.left_word();
                // It may be back already, and others may know; or this client alone may not reach it.
                let until = self.wanted.deadline.min(Instant::now() + READ_WITHIN);
                let wanted = Wanted { deadline: until, ..self.wanted };
                let ask = wanted.ask(self.routing.ring.version(), 0, false);
                tokio::select! {
                    biased;
                    () = self.read(&**registry, node, &at, until) => {}
                    Ok(_) = node.write(&ask, Instant::now()) => {}
                    () = sleep_until(until) => {}
                }
                Ok(())
            }
            Ok(Err(error)) => Err(neither(&because, node, Some(error))),
            Err(_) => Err(neither(&because, node, None)),
        }
    }

    /// Waits until a node that holds a lease has read its word: it does so at once. One that sleeps does so when it
    /// wakes, and is not waited for.
    async fn read(&self, registry: &dyn Registry, node: &Node, at: &str, until: Instant) {
        while self.client.is_alive(node.id()) {
            if matches!(timeout_at(until, registry.get(at)).await, Ok(Ok(None))) {
                return;
            }
            sleep(ASK_AGAIN).await;
        }
        // Its lease has ended, but that may be the registry's fault.
        std::future::pending().await
    }
}

fn neither(because: &Error, node: &Node, registry: Option<RegistryError>) -> Error {
    let why = match &registry {
        Some(error) => format!("{because}; nor could word be left for it: {error}"),
        None => format!("{because}; nor could word be left for it in time"),
    };
    match registry {
        Some(error) => Error::caused_by(ErrorKind::Unavailable, Some(node.id()), why, error),
        None => Error::at(ErrorKind::Unavailable, node.id(), why),
    }
}

/// Has all nodes forget a group. With a registry it is done when that has the new generation: a node that cannot be reached
/// reads it before it answers again.
pub(crate) async fn clear(client: &Shared, wanted: Wanted<'_>) -> Result<(), Error> {
    // The name becomes part of a key, which nobody would look for.
    if let Err(why) = check_name(wanted.group_name) {
        return Err(Error::new(ErrorKind::UnknownGroup, format!("no node has a group whose name {why}")));
    }
    if client.registry.is_some() && client.config.token.is_some() {
        check_right(client, &wanted).await?;
    }
    let generation = match &client.registry {
        None => 0,
        Some(registry) => {
            let key = client.keys.group(wanted.group_name);
            match timeout_at(wanted.deadline, raise(&**registry, &key)).await {
                Ok(Ok(generation)) => generation,
                Ok(Err(error)) => {
                    let why = format!("the registry did not take the new generation: {error}");
                    return Err(Error::caused_by(ErrorKind::Unavailable, None, why, error));
                }
                Err(_) => {
                    let why = "the registry did not take the new generation in time";
                    return Err(Error::new(ErrorKind::DeadlineExceeded, why));
                }
            }
        }
    };
    let routing = client.routing.get();
    let wanted = Wanted { want: Want::Write(Write::Clear { generation }), ..wanted };
    let ask = wanted.ask(routing.ring.version(), 0, false);
    let window = client.config.hand_over * 2;
    let nodes = routing.all_nodes(window, Instant::now());
    let told = join_all(nodes.iter().map(|node| node.write(&ask, Instant::now()))).await;
    let has_group = |told: &Result<_, Refusal>| !matches!(told, Err(Refusal::NoGroup(_)));
    let somebody_has = told.is_empty() || told.iter().any(has_group);
    for told in told {
        match told {
            Ok(_) => {}
            Err(Refusal::Final(error)) if error.kind() != ErrorKind::DeadlineExceeded => return Err(error),
            // A node that has no such group has nothing of it.
            Err(Refusal::NoGroup(_)) if somebody_has => {}
            Err(Refusal::NoGroup(error)) => return Err(error),
            Err(refusal) if generation == 0 => return Err(refusal.into_error()),
            Err(refusal) => {
                let error = refusal.into_error();
                tracing::debug!(%error, "a node reads later that the group was cleared");
            }
        }
    }
    Ok(())
}

/// Asks nodes whether this client may write to a group, until one has said so: the registry would take it from anybody.
async fn check_right(client: &Shared, wanted: &Wanted<'_>) -> Result<(), Error> {
    let routing = client.routing.get();
    let mut last = None;
    for node in routing.nodes().iter().filter(|node| !node.is_down()) {
        match unary::may_write(node, wanted.group_name, wanted.deadline).await {
            Ok(()) => return Ok(()),
            Err(Refusal::Elsewhere(error) | Refusal::Again(error)) => last = Some(error),
            Err(refusal) => return Err(refusal.into_error()),
        }
    }
    Err(last.unwrap_or_else(|| Error::new(ErrorKind::Unavailable, "no node says whether this may be done")))
}

/// Raises a group's generation, and gives it. A record that cannot be read or believed is written anew: nodes clear the group
/// whenever it changes.
async fn raise(registry: &dyn Registry, key: &str) -> Result<u64, RegistryError> {
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
