//! A group as an application uses it.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::StreamExt as _;
use futures_util::stream::{FuturesUnordered, iter};
use peanut_proto::limits::check_key;
use peanut_proto::v1::Outcome;
use tokio::time::Instant;

use crate::client::Shared;
use crate::error::{Error, ErrorKind};
use crate::failover::{self, Answered, Wanted};

/// A group of a fleet: a namespace of keys. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Group {
    client: Arc<Shared>,
    name: Arc<str>,
    /// By which lanes name it, once they have said its name.
    number: u32,
}

impl Group {
    pub(crate) fn new(client: Arc<Shared>, name: &str) -> Self {
        let number = client.group_number(name);
        Group { client, name: name.into(), number }
    }

    /// The group's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The value of a key, from the node that owns it, which loads it where it is missing. `None`: the
    /// origin has no such key.
    ///
    /// A key has 1 to 1024 bytes. The client's deadline bounds the call; a load that outlives it goes on
    /// at the node, for whoever asks next.
    ///
    /// # Errors
    /// As [`ErrorKind`] has them. Where the owner cannot be reached its successor is asked, so
    /// [`ErrorKind::Unavailable`] means that both could not.
    pub async fn get(&self, key: impl AsRef<[u8]>) -> Result<Option<Bytes>, Error> {
        self.get_from(key.as_ref(), Instant::now()).await
    }

    /// The values of many keys, in their order, each with an error of its own where there is one.
    ///
    /// Every owner is asked for all its keys in one round, at the same time as the others, under one
    /// deadline.
    pub async fn get_many<K: AsRef<[u8]>>(
        &self,
        keys: impl IntoIterator<Item = K>,
    ) -> Vec<Result<Option<Bytes>, Error>> {
        let now = Instant::now();
        let keys: Vec<K> = keys.into_iter().collect();
        let in_flight = self.client.config.keys_in_flight;
        let mut rounds: FuturesUnordered<_> = self
            .by_owner(&keys)
            .into_values()
            .map(|round| {
                let gets = round.into_iter().map(|at| {
                    let get = self.get_from(keys[at].as_ref(), now);
                    async move { (at, get.await) }
                });
                iter(gets).buffer_unordered(in_flight).collect::<Vec<_>>()
            })
            .collect();
        let mut answers: Vec<Option<Result<Option<Bytes>, Error>>> = keys.iter().map(|_| None).collect();
        while let Some(round) = rounds.next().await {
            for (at, answer) in round {
                answers[at] = Some(answer);
            }
        }
        answers.into_iter().map(|answer| answer.expect("every key is in one round")).collect()
    }

    /// Positions of the keys by owner.
    fn by_owner<K: AsRef<[u8]>>(&self, keys: &[K]) -> BTreeMap<Option<usize>, Vec<usize>> {
        let routing = self.client.routing.get();
        let mut rounds = BTreeMap::<_, Vec<usize>>::new();
        for (at, key) in keys.iter().enumerate() {
            let place = routing.ring.place(&self.name, key.as_ref());
            rounds.entry(place.map(|place| place.owner)).or_default().push(at);
        }
        rounds
    }

    async fn get_from(&self, key: &[u8], now: Instant) -> Result<Option<Bytes>, Error> {
        check_key(key).map_err(|why| Error::new(ErrorKind::InvalidArgument, why))?;
        let client = &self.client;
        let deadline = now + client.config.deadline;
        let wanted = Wanted { group: self.number, group_name: &self.name, key, deadline };
        match failover::get(&client.routing, wanted, now, &client.budget).await {
            Ok(Answered { reply, failover, ring_version }) => {
                client.hear_of_ring(reply.ring_version, ring_version);
                client.counters.answered(reply.outcome, failover);
                match reply.outcome {
                    Outcome::Hit | Outcome::Loaded | Outcome::Coalesced | Outcome::Stale => {
                        Ok(Some(reply.value))
                    }
                    Outcome::NotFound => Ok(None),
                    other => {
                        let why = format!("the node answered a get with {}", other.as_str_name());
                        Err(Error::new(ErrorKind::Protocol, why))
                    }
                }
            }
            Err(error) => {
                client.counters.failed();
                Err(error)
            }
        }
    }
}
