//! Hints (hinted handoff): what a node that cannot be reached is to delete, stored for it in the registry.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures_util::future::join;
use peanut_proto::clock::wall_clock_ms;
use peanut_proto::frame::Write;
use peanut_proto::intervals::SILENCE_BEFORE_HINT;
use peanut_proto::membership::{FORMAT, Hint, check_name};
use peanut_proto::numbers::RingVersion;
use peanut_proto::registry::{KeyRange, Registry, RegistryError};
use tokio::time::{Instant, sleep, sleep_until, timeout_at};

use super::OneNode;
use super::gone::{self, Gone, lapse, near_leases_over};
use super::leased::{holds_no_lease, is_whole};
use crate::error::{Error, ErrorKind};
use crate::monitor::Probed;
use crate::node::{LeftHint, Node};
use crate::refusal::Refusal;
use crate::request::{Op, Placement, Request};

/// Hints for one node, stored one by one until it is back; then one for the whole group takes the place of
/// more. Long keys count for several, so that a process stores at most 16 KiB of keys.
const MAX_HINTS: u32 = 64;
const KEY_BYTES_PER_HINT: usize = 256;
/// Where so many hints of all writers wait for a node in a group, the next is for the whole group.
const MAX_WAITING: u64 = 1024;
/// How often it is looked whether a node has read a hint.
const ASK_AGAIN: Duration = Duration::from_millis(20);

impl OneNode<'_> {
    /// Stores a hint for a node that could not be reached, and has the successor forget what it is asked for
    /// meanwhile. A node that holds a lease is waited for, until it has read the hint or can be reached after
    /// all: others may be able to ask it.
    pub(super) async fn store_hint(
        &self,
        node: &Arc<Node>,
        successor: Option<&Arc<Node>>,
        because: Error,
    ) -> Result<(), Error> {
        let Some(registry) = &self.client.registry else { return Err(because) };
        if check_name(self.request.group_name).is_err() {
            return Err(because);
        }
        let Request { group_name, key, deadline, .. } = self.request;
        // A node that only sleeps a little would not look.
        let silent_since = node.down_since().unwrap_or(self.begun).min(self.begun);
        let silence = timeout_at(deadline, sleep_until(silent_since + SILENCE_BEFORE_HINT));
        let gone = timeout_at(deadline, Gone::seen(self.client, &**registry, node));
        let (is_silent, gone) = join(silence, gone).await;
        if is_silent.is_err() {
            return Err(because);
        }
        let gone = gone.ok().flatten();
        let prefix = self.client.keys.hints_of(node.id(), group_name);
        let weight = u32::try_from(1 + key.len() / KEY_BYTES_PER_HINT).unwrap_or(MAX_HINTS);
        let is_clear = matches!(self.request.op, Op::Write(Write::Clear { .. }));
        let before = node.hints().fetch_add(weight, Ordering::Relaxed);
        let is_many = is_clear || before >= MAX_HINTS || {
            let waiting = timeout_at(deadline, registry.count(&KeyRange::prefix(&prefix))).await;
            matches!(waiting, Ok(Ok(waiting)) if waiting >= MAX_WAITING)
        };
        let identity = &self.client.config.identity;
        let (id, number) = (identity.client_id, identity.next_hint());
        // Each writer's own: none takes the place of another.
        let at =
            if is_many { format!("{prefix}{id:016x}-all") } else { format!("{prefix}{id:016x}-{number}") };
        let keys = (!is_many).then(|| vec![key.to_vec()]);
        let fewer = |by: u32| {
            let less = |hints: u32| Some(hints.saturating_sub(by));
            let _ = node.hints().fetch_update(Ordering::Relaxed, Ordering::Relaxed, less);
        };
        self.put_hint(&**registry, (node, successor), (&at, keys), &because)
            .await
            .inspect_err(|_| fewer(weight))?;
        let ask = self.request.at(Placement::owner(self.routing.ring.version(), RingVersion::NONE));
        tokio::select! {
            biased;
            is_read = self.is_read(&**registry, node, &at) => {
                if is_read {
                    // A node reads all that are there: those before this one, too, whose writers did not wait
                    // to see it.
                    fewer(before.saturating_add(weight));
                    return Ok(());
                }
                if !gone.as_ref().is_some_and(Gone::is_told_by_hint)
                    && let Some(lapse) = lapse(self.client, node)
                {
                    node.left_hint(LeftHint { at: at.clone(), left: Instant::now(), lapse });
                }
                let since = gone::since(self.client, &**registry, node, (gone, deadline)).await;
                near_leases_over(node, since, deadline).await
            }
            Ok(reply) = node.write(&ask, Instant::now()) => {
                self.heed(node, reply).map(drop).map_err(Refusal::into_error)
            }
            () = sleep_until(deadline) => {
                let why = format!("{because}; it holds a lease, and has not read the hint that was stored for it");
                Err(Error::at(ErrorKind::Unavailable, node.id(), why))
            }
        }
    }

    /// Puts a hint into the registry, and has the successor forget.
    async fn put_hint(
        &self,
        registry: &dyn Registry,
        (node, successor): (&Arc<Node>, Option<&Arc<Node>>),
        (at, keys): (&str, Option<Vec<Vec<u8>>>),
        because: &Error,
    ) -> Result<(), Error> {
        let ring_version = self.routing.ring.version();
        let hint = Hint { format: FORMAT, keys, ring_version, at_ms: wall_clock_ms() };
        // Also where this client never asks it: others may.
        let successor = async { self.try_to_delete_at(successor?).await };
        let stored = timeout_at(self.request.deadline, registry.put(at, hint.encode(), None));
        // The registry would take it from anybody, so a client with a token asks for the right first.
        let stored = if self.client.config.token.is_some() {
            match successor.await {
                Some(denied) if denied.kind() == ErrorKind::PermissionDenied => return Err(denied),
                _ => stored.await,
            }
        } else {
            join(stored, successor).await.0
        };
        match stored {
            Ok(Ok(())) => self.client.counters.stored_hint(),
            Ok(Err(error)) => return Err(neither(because, node, Some(error))),
            Err(_) => return Err(neither(because, node, None)),
        }
        Ok(())
    }

    /// Waits until a node that holds a lease has read its hint, which it does at once, unless it sleeps, or
    /// until it holds none. Whether it has read it. One at whose address nothing listens has ended, whatever
    /// its lease, and reads its hints when it starts again.
    async fn is_read(&self, registry: &dyn Registry, node: &Arc<Node>, at: &str) -> bool {
        loop {
            match registry.get(at).await {
                Ok(None) if is_whole(self.client, registry, node).await => return true,
                // As of now, not as of when this client last heard: a node reads its hints after it has come
                // to hold a lease.
                Ok(Some(_))
                    if holds_no_lease(self.client, registry, node).await
                        && is_whole(self.client, registry, node).await =>
                {
                    return false;
                }
                Ok(Some(_)) if node.probe().await == Probed::Silent && node.is_refusing() => return false,
                _ => {}
            }
            sleep(ASK_AGAIN).await;
        }
    }
}

fn neither(because: &Error, node: &Node, registry: Option<RegistryError>) -> Error {
    // Whose name the error has anyway.
    let because = match because.node() {
        Some(id) if id == node.id() => because.message().to_owned(),
        _ => because.to_string(),
    };
    let why = match &registry {
        Some(_) => format!("{because}; nor could a hint be stored for it"),
        None => format!("{because}; nor could a hint be stored for it in time"),
    };
    match registry {
        Some(error) => Error::caused_by(ErrorKind::Unavailable, Some(node.id()), why, error),
        None => Error::at(ErrorKind::Unavailable, node.id(), why),
    }
}
