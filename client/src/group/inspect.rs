//! Who holds a key, for operators: its owner, the next node, and those that owned it lately are peeked at.
//! Nothing is loaded.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::join_all;
use peanut_proto::numbers::{FillToken, RingVersion};
use peanut_proto::v1::{OnMiss, Outcome};
use tokio::time::Instant;

use super::Group;
use crate::error::Error;
use crate::node::Node;
use crate::request::{Op, Placement, Request};

/// What a node is to a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum KeyRole {
    /// It answers for the key.
    Owner,
    /// It is asked while the owner is down.
    Successor,
    /// It was one of these in the last minutes, in a ring that has been replaced.
    Previous,
}

/// What a node holds of a key.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Holding {
    /// Its id.
    pub node: String,
    /// What it is to the key.
    pub role: KeyRole,
    /// What it would answer from memory; `None` where it would have to load. Of a node that does not answer
    /// for the key: what it has, though nobody is shown that.
    pub entry: Result<Option<HeldEntry>, Error>,
}

/// An entry of a node.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct HeldEntry {
    /// The value; `None`: that the origin has no such key.
    pub value: Option<Bytes>,
    /// Since it was loaded or set.
    pub age: Duration,
    /// How long it stays fresh.
    pub ttl: Duration,
}

impl Group {
    /// Asks the nodes that may hold a key what they have of it: its owner first, then its successor, then
    /// those that were one of these in a ring that was replaced in the last minutes. Nothing is loaded, and
    /// no copy of this client's is looked at. For operators: a get is one call, this is one for each node.
    ///
    /// # Errors
    /// Where the key or the group's name breaks a rule. What a node fails with is in its [`Holding`].
    pub async fn inspect(&self, key: impl AsRef<[u8]>) -> Result<Vec<Holding>, Error> {
        let (key, now) = (key.as_ref(), Instant::now());
        self.check(key)?;
        let op = Op::Get { on_miss: OnMiss::Peek, token: FillToken::NONE, near: false };
        let request = Request { op, ..self.request(key, now) };
        let routing = self.client.routing.get();
        let Some(route) = routing.route(request.hash) else { return Ok(Vec::new()) };
        let previous = routing.previous_owners(request.hash, true, now);
        let version = routing.ring.version();
        let owner = [Placement::owner(version, route.owned_since); 1];
        // What another node has it has in the owner's place, or from when it was the owner itself.
        let other = [Placement::in_its_place(version), Placement::owner(version, RingVersion::NONE)];
        let asked = [(KeyRole::Owner, route.owner, &owner[..])]
            .into_iter()
            .chain(route.successor.map(|node| (KeyRole::Successor, node, &other[..])))
            .chain(previous.into_iter().map(|node| (KeyRole::Previous, node, &other[..])));
        let asked = asked.map(async |(role, node, placements): (_, &Arc<Node>, _)| Holding {
            node: node.id().to_owned(),
            role,
            entry: peek(&request, node, placements, now).await,
        });
        Ok(join_all(asked).await)
    }
}

/// The first of what a node has by these placements.
async fn peek(
    request: &Request<'_>,
    node: &Arc<Node>,
    placements: &[Placement],
    now: Instant,
) -> Result<Option<HeldEntry>, Error> {
    for placement in placements {
        let reply = node.get(&request.at(*placement), now).await.map_err(|refusal| refusal.into_error())?;
        let value = match reply.outcome {
            Outcome::Hit | Outcome::Stale => Some(reply.value),
            Outcome::NotFound => None,
            _ => continue,
        };
        return Ok(Some(HeldEntry { value, age: reply.age, ttl: reply.ttl }));
    }
    Ok(None)
}
