//! Many writes at once: each owner does all of its keys' in one operation, and is brought the values that
//! have to follow in another.
//!
//! A write that takes more than that is done alone: of a key that has had another owner lately, or whose
//! owner is down or does not answer, and where successors are told too.

use std::collections::BTreeMap;
use std::sync::Arc;

use futures_util::StreamExt as _;
use futures_util::future::join_all;
use futures_util::stream::iter;
use peanut_proto::frame::Write;
use peanut_proto::intervals::RECOVERED;
use peanut_proto::v1::Outcome;
use tokio::time::Instant;

use super::{Reply, at_once, heed_write, take_down, tell_of_bound, under_token, wait_for_ring};
use crate::error::{Error, ErrorKind};
use crate::fill;
use crate::node::Node;
use crate::plan::WritePlan;
use crate::portions::portions;
use crate::refusal::Refusal;
use crate::request::{Key, Op, Request};
use crate::routing::{Routing, Written};
use crate::shared::Shared;

/// A set or a delete of one of the keys.
#[derive(Clone, Copy, Debug)]
pub(crate) struct WriteOf<'a> {
    pub(crate) key: Key<'a>,
    pub(crate) write: Write<'a>,
}

/// The writes that one owner is to do, by their places in the call.
struct OfOwner {
    owner: Arc<Node>,
    places: Vec<usize>,
}

/// A call of many writes.
#[derive(Clone, Copy)]
struct Call<'a> {
    client: &'a Shared,
    /// Of each, but for its key.
    request: Request<'a>,
    routing: &'a Routing,
    writes: &'a [WriteOf<'a>],
    group_name: &'a Arc<str>,
    begun: Instant,
}

/// Does many writes of one group. The results are in their order, each as of [`write`](super::write).
pub(crate) async fn write(
    client: &Shared,
    request: Request<'_>,
    writes: &[WriteOf<'_>],
    group_name: &Arc<str>,
    begun: Instant,
) -> Vec<Result<(), Error>> {
    let routing = client.routing.get();
    let call = Call { client, request, routing: &routing, writes, group_name, begun };
    let mut done: Vec<Option<Result<(), Error>>> = writes.iter().map(|_| None).collect();
    let mut rounds = Vec::new();
    for of_owner in call.by_owner() {
        rounds.push(call.tell(of_owner));
    }
    for (at, result) in join_all(rounds).await.into_iter().flatten() {
        done[at] = Some(result);
    }
    let mut alone = Vec::new();
    for at in (0..writes.len()).filter(|at| done[*at].is_none()) {
        alone.push(call.write_alone(at));
    }
    let mut alone = iter(alone).buffer_unordered(client.config.keys_in_flight);
    while let Some((at, result)) = alone.next().await {
        done[at] = Some(result);
    }
    drop(alone);
    done.into_iter().map(|done| done.expect("each was done, together or alone")).collect()
}

impl<'a> Call<'a> {
    /// The writes that are no more than an operation at the owner, by owner.
    fn by_owner(&self) -> Vec<OfOwner> {
        let mut by_owner = BTreeMap::<_, OfOwner>::new();
        for (at, one) in self.writes.iter().enumerate() {
            let was_left = |owner: &Arc<Node>| owner.was_left_within(RECOVERED, self.begun);
            let plan =
                WritePlan::new(self.routing, one.key.hash, self.client.config.failover, self.begun, was_left);
            let Some(plan) = plan.filter(|plan| plan.is_for_owner_alone() && !plan.owner.is_down()) else {
                continue;
            };
            let new = || OfOwner { owner: plan.owner.clone(), places: Vec::new() };
            by_owner.entry(Arc::as_ptr(&plan.owner).addr()).or_insert_with(new).places.push(at);
        }
        // Not in the order of addresses in memory: a simulated run is to be the same each time.
        let mut by_owner: Vec<_> = by_owner.into_values().collect();
        by_owner.sort_by(|a, b| a.owner.id().cmp(b.owner.id()));
        by_owner
    }

    fn request(&self, at: usize) -> Request<'a> {
        let WriteOf { key, write } = self.writes[at];
        Request { op: Op::Write(write), ..self.request.of(key) }
    }

    async fn write_alone(&self, at: usize) -> (usize, Result<(), Error>) {
        let request = self.request(at);
        let written = super::write(self.client, &request, 0, self.group_name, self.begun);
        (at, Box::pin(written).await.map(drop))
    }

    /// Has one owner do its writes. Those that are missing from the results have to be done alone.
    async fn tell(&self, of_owner: OfOwner) -> Vec<(usize, Result<(), Error>)> {
        let OfOwner { owner, places } = of_owner;
        let mut done = Vec::with_capacity(places.len());
        for portion in portions(&places, fill::portion_of(&owner), |at| self.writes[*at].write.bytes()) {
            let values = self.tell_portion(&owner, portion, &mut done).await;
            self.bring(&owner, values, &mut done).await;
        }
        done
    }

    /// Has the owner do a portion of its writes. Gives those whose values have to follow.
    async fn tell_portion(
        &self,
        owner: &Arc<Node>,
        portion: &[usize],
        done: &mut Vec<(usize, Result<(), Error>)>,
    ) -> Vec<(usize, Reply)> {
        let version = self.routing.ring.version();
        let mut ops = Vec::with_capacity(portion.len());
        for at in portion {
            ops.push(at_once(&self.client.sequences, &self.request(*at), 0, owner.id()));
        }
        let Some(replies) = owner.write_many(&self.request, version, &ops, Instant::now()).await else {
            return Vec::new();
        };
        let mut written = Vec::with_capacity(portion.len());
        for ((at, op), reply) in portion.iter().copied().zip(&ops).zip(replies) {
            let reply = match reply.and_then(|reply| heed_write(self.client, owner, reply, version)) {
                Ok(reply) => reply,
                // There is no room for so many values at once.
                Err(Refusal::Final(error))
                    if error.kind() == ErrorKind::Overloaded && op.value_bytes() > 0 =>
                {
                    continue;
                }
                Err(Refusal::Final(error)) => {
                    done.push((at, Err(error)));
                    continue;
                }
                Err(_) => continue,
            };
            let by = (self.client, Written { under: version, successor: 0 }, &**owner);
            take_down(by, &self.request(at), Some(&reply), self.group_name);
            written.push((at, reply));
        }
        if written.is_empty() { Vec::new() } else { self.end_portion(owner, written, done).await }
    }

    /// Ends writes that the owner has done, where the ring has not moved their keys meanwhile. Gives those
    /// whose values have to follow.
    async fn end_portion(
        &self,
        owner: &Arc<Node>,
        written: Vec<(usize, Reply)>,
        done: &mut Vec<(usize, Result<(), Error>)>,
    ) -> Vec<(usize, Reply)> {
        let mut values = Vec::new();
        // Once for all of them: each may take a part of the time that is left.
        let heard = written.iter().map(|(_, reply)| reply.ring_version).max().unwrap_or_default();
        let waited = wait_for_ring(self.client, heard, &self.request).await;
        let routing = self.client.routing.get();
        let known = routing.ring.version();
        let told = self.client.view().ring.version;
        let under = Written { under: self.routing.ring.version(), successor: 0 };
        // A get of this client has gone to the successor meanwhile, which is to be told too.
        let is_left = owner.left_since(self.begun);
        for (at, reply) in written {
            let request = self.request(at);
            match &waited {
                Err(error) if reply.ring_version.max(told) > known => {
                    done.push((at, Err(error.clone())));
                    continue;
                }
                _ if is_left || routing.has_misplaced(request.hash, under) => continue,
                _ => {}
            }
            if reply.outcome == Outcome::Stored {
                tell_of_bound(&request, &reply);
            } else if matches!(request.op, Op::Write(Write::Set { .. })) {
                // Without a token there was no room for one.
                if reply.token.is_some() {
                    values.push((at, reply));
                }
                continue;
            }
            done.push((at, Ok(())));
        }
        values
    }

    /// Brings values to the owner, under the tokens that came with their deletes.
    async fn bring(
        &self,
        owner: &Arc<Node>,
        values: Vec<(usize, Reply)>,
        done: &mut Vec<(usize, Result<(), Error>)>,
    ) {
        let mut fills = Vec::with_capacity(values.len());
        for (at, lease) in &values {
            fills.push((under_token(self.writes[*at].write, lease), lease));
        }
        let version = self.routing.ring.version();
        let filled = fill::fill_many(&self.request, owner, version, &fills).await;
        for ((at, lease), filled) in values.iter().zip(filled) {
            let request = self.request(*at);
            let result = match filled {
                Ok(reply) => {
                    tell_of_bound(&request, &reply);
                    Ok(())
                }
                Err(Refusal::Final(error)) => match error.kind() {
                    // The values wait for one another.
                    ErrorKind::Overloaded => {
                        Box::pin(super::fill(&request, owner, version, lease)).await.map(drop)
                    }
                    // The key has been deleted, and the value is not there, which any cache may come to.
                    ErrorKind::DeadlineExceeded => Ok(()),
                    _ => Err(error),
                },
                // The value was lost on the way.
                Err(_) => continue,
            };
            done.push((*at, result));
        }
    }
}
