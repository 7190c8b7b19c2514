//! How many keys find their answers: each owner is asked for all of its keys in one operation.
//!
//! What fails on the way, keys of owners that are down, and those that have just changed their owner, are
//! asked for one by one, as [`failover`] does it. No owner's keys wait for those of another.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::future::{join, join_all};
use futures_util::stream::iter;
use hashbrown::HashTable;
use peanut_proto::numbers::RingVersion;
use tokio::time::Instant;

use crate::error::{Error, ErrorKind};
use crate::failover;
use crate::lane::Reply;
use crate::node::Node;
use crate::refusal::Refusal;
use crate::request::{Key, Request};
use crate::routing::{Handle, Routing};
use crate::shared::{Answered, Shared};

/// What there is of a key: an answer, and whether it was given in the owner's place.
pub(crate) type Got = Result<(Reply, bool), Error>;

/// The keys that one node is asked for, in the order of the ring versions since which it owns them.
pub(crate) struct OfOwner<'a, N = Arc<Node>> {
    pub(crate) owner: &'a N,
    pub(crate) keys: Vec<(RingVersion, Key<'a>)>,
    /// Where the keys stand in the call.
    pub(crate) places: Vec<usize>,
}

/// Asks for many keys; `request` is what is asked for each. The answers come in the order of the keys. A key
/// that is there twice is asked for once.
pub(crate) async fn get(client: &Shared, request: Request<'_>, keys: &[Key<'_>], now: Instant) -> Vec<Got> {
    let table = client.routing.get();
    let mut got: Vec<Option<Got>> = keys.iter().map(|_| None).collect();
    let twins = twins(keys);
    let mut is_twin = vec![false; if twins.is_empty() { 0 } else { keys.len() }];
    twins.iter().for_each(|(at, _)| is_twin[*at] = true);
    let different = keys.iter().copied().enumerate().filter(|(at, _)| is_twin.get(*at) != Some(&true));
    let (by_owner, alone) = by_owner(&table, different, client.config.hand_over, now);
    let call = Call { client, request, keys, table: &table };
    let rounds = join_all(by_owner.into_iter().map(|of_owner| call.ask_owner(of_owner, now)));
    let (rounds, alone) = join(rounds, call.ask_alone(alone)).await;
    rounds.into_iter().flatten().chain(alone).for_each(|(at, answer)| got[at] = Some(answer));
    for (at, first) in twins {
        got[at] = got[first].clone();
    }
    got.into_iter().map(|got| got.expect("every key has been asked for")).collect()
}

/// Which keys are the same as one before, and which that is.
fn twins(keys: &[Key<'_>]) -> Vec<(usize, usize)> {
    let (mut seen, mut twins) = (HashTable::<usize>::with_capacity(keys.len()), Vec::new());
    for (at, key) in keys.iter().enumerate() {
        match seen.find(key.hash, |other| keys[*other].bytes == key.bytes) {
            Some(first) => twins.push((at, *first)),
            None => drop(seen.insert_unique(key.hash, at, |other| keys[*other].hash)),
        }
    }
    twins
}

/// Keys, with their places in the call, by their owners; and the places of those that have to be asked for
/// alone, since their owner is left or has just come to own them.
pub(crate) fn by_owner<'a, N: Handle>(
    table: &'a Routing<N>,
    keys: impl IntoIterator<Item = (usize, Key<'a>)>,
    hand_over: Duration,
    now: Instant,
) -> (Vec<OfOwner<'a, N>>, Vec<usize>) {
    // By the place in the table.
    let (mut by_owner, mut alone) = (BTreeMap::<usize, OfOwner<'_, N>>::new(), Vec::new());
    for (at, key) in keys {
        let route = table.route(key.hash).filter(|route| {
            let previous = || table.previous_owner(key.hash, route.owned_since, hand_over, now);
            !route.owner.is_left() && previous().is_none()
        });
        let Some(route) = route else {
            alone.push(at);
            continue;
        };
        let owner = by_owner.entry(std::ptr::from_ref(route.owner).addr()).or_insert_with(|| OfOwner {
            owner: route.owner,
            keys: Vec::new(),
            places: Vec::new(),
        });
        owner.keys.push((route.owned_since, key));
        owner.places.push(at);
    }
    // Not in the order of addresses in memory: a simulated run is to be the same each time.
    let mut by_owner: Vec<_> = by_owner.into_values().map(OfOwner::sorted).collect();
    by_owner.sort_by(|a, b| a.owner.id().cmp(b.owner.id()));
    (by_owner, alone)
}

impl<N> OfOwner<'_, N> {
    fn sorted(self) -> Self {
        // Nearly always, unless the ring has changed lately.
        if self.keys.is_sorted_by_key(|(since, _)| *since) {
            return self;
        }
        let mut both: Vec<_> = self.keys.into_iter().zip(self.places).collect();
        both.sort_by_key(|((since, _), _)| *since);
        let (keys, places) = both.into_iter().unzip();
        OfOwner { owner: self.owner, keys, places }
    }
}

/// A call for many keys.
#[derive(Clone, Copy)]
struct Call<'a> {
    client: &'a Shared,
    /// Of each, but for its key.
    request: Request<'a>,
    keys: &'a [Key<'a>],
    table: &'a Routing,
}

impl Call<'_> {
    /// Asks one owner for all of its keys, so many at once as may be in flight, and for those that it does
    /// not answer by themselves.
    async fn ask_owner(self, of_owner: OfOwner<'_>, now: Instant) -> Vec<(usize, Got)> {
        let Call { client, request, table, .. } = self;
        let OfOwner { owner, keys, places } = of_owner;
        let (mut got, mut left) = (Vec::with_capacity(keys.len()), Vec::new());
        let at_once = client.config.keys_in_flight;
        for (keys, places) in keys.chunks(at_once).zip(places.chunks(at_once)) {
            // It may have fallen silent meanwhile; others answer in its place.
            let is_over = owner.is_left() || Instant::now() >= request.deadline;
            let portion = if is_over {
                None
            } else {
                client.budget.deposit_for(keys.len());
                owner.get_many(&request, table.ring.version(), keys, now).await
            };
            let mut answers = portion.into_iter().flatten();
            for at in places {
                let Some(answer) = answers.next() else {
                    left.push(*at);
                    continue;
                };
                match settle(client, &request.of(self.keys[*at]), table, answer).await {
                    Some(answer) => got.push((*at, answer)),
                    None => left.push(*at),
                }
            }
        }
        got.extend(self.ask_alone(left).await);
        got
    }

    /// Asks for keys by themselves, by their places in the call.
    async fn ask_alone(self, places: Vec<usize>) -> Vec<(usize, Got)> {
        let ask = |at: usize| async move {
            let now = Instant::now();
            if now >= self.request.deadline {
                let why = "no answer by the call's deadline";
                return (at, Err(Error::new(ErrorKind::DeadlineExceeded, why)));
            }
            let answered = failover::get(self.client, &self.request.of(self.keys[at]), now).await;
            (at, answered.map(|answered| (answered.reply, answered.failover)))
        };
        iter(places.into_iter().map(ask)).buffer_unordered(self.client.config.keys_in_flight).collect().await
    }
}

/// What an owner's answer comes to; `None`: the key has to be asked for again.
async fn settle(
    client: &Shared,
    request: &Request<'_>,
    table: &Routing,
    answer: Result<Reply, Refusal>,
) -> Option<Got> {
    let ring_version = table.ring.version();
    match answer {
        // Nearly always.
        Ok(reply) if reply.ring_version <= ring_version => Some(Ok((reply, false))),
        Ok(reply) => {
            let node = table.route(request.hash)?.owner.clone();
            let reply = client.heed(&node, reply, ring_version);
            let answered = Answered { reply, node, failover: false, ring_version };
            let is_moved = client.has_moved(request, &answered).await;
            (!is_moved).then_some(Ok((answered.reply, false)))
        }
        Err(Refusal::Final(error)) => Some(Err(error)),
        Err(refusal) => (!client.budget.withdraw()).then(|| Err(refusal.into_error())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::routing::tests::{hashes, routing};

    const WINDOW: Duration = Duration::from_secs(60);

    fn keys() -> Vec<(usize, Key<'static>)> {
        hashes().map(|hash| Key { bytes: b"k", hash }).enumerate().collect()
    }

    #[test]
    fn keys_that_are_the_same_are_asked_for_once() {
        let key = |bytes: &'static [u8], hash| Key { bytes, hash };
        let keys = [key(b"a", 1), key(b"b", 1), key(b"a", 1), key(b"c", 2), key(b"b", 1), key(b"a", 1)];
        assert_eq!(twins(&keys), [(2, 0), (4, 1), (5, 0)], "by key, not by hash alone");
    }

    #[test]
    fn each_owner_is_asked_for_its_keys_in_the_order_of_the_rings_since_which_it_has_them() {
        let now = Instant::now();
        let table = routing(&["a", "b", "c"], None, now);
        let (by_owner, alone) = by_owner(&table, keys(), WINDOW, now);
        assert_eq!((by_owner.len(), alone.len()), (3, 0));
        let mut places = Vec::new();
        for OfOwner { owner, keys, places: of_owner } in by_owner {
            assert!(keys.is_sorted_by_key(|(since, _)| *since));
            for ((since, key), at) in keys.iter().zip(&of_owner) {
                let route = table.route(key.hash).expect("an owner");
                assert_eq!((route.owner, route.owned_since), (owner, *since));
                assert_eq!(hashes().nth(*at), Some(key.hash), "keys and places go together");
            }
            places.extend(of_owner);
        }
        places.sort_unstable();
        assert!(places.into_iter().eq(0..keys().len()));
    }

    #[test]
    fn keys_whose_owner_is_new_or_down_are_asked_for_alone() {
        let now = Instant::now();
        let before = routing(&["a", "b"], None, now);
        let after = routing(&["a", "b", "c"], Some(&before), now);
        let is_of = |id: &str, at: &usize| {
            hashes().nth(*at).and_then(|hash| after.route(hash)).is_some_and(|route| &*route.owner.0 == id)
        };
        let (_, alone) = by_owner(&after, keys(), WINDOW, now);
        assert!(alone.len() > 30 && alone.iter().all(|at| is_of("c", at)));
        let (_, later) = by_owner(&after, keys(), WINDOW, now + WINDOW);
        assert!(later.is_empty(), "the previous owner is asked no more");
        // A name that begins so stands for a node that is down.
        let table = routing(&["-a", "b"], None, now);
        let (by_owner, alone) = by_owner(&table, keys(), WINDOW, now);
        assert!(by_owner.iter().all(|it| &*it.owner.0 == "b") && alone.len() > 30);
    }
}
