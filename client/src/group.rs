//! A group as an application uses it.

use std::sync::Arc;

use bytes::Bytes;
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
        let checked: Vec<Result<(), Error>> = keys.iter().map(|key| check(key.as_ref())).collect();
        let wanted = keys.iter().zip(&checked).filter(|(_, checked)| checked.is_ok());
        let wanted: Vec<_> = wanted.map(|(key, _)| self.wanted(key.as_ref(), now)).collect();
        let client = &self.client;
        let most = client.config.keys_in_flight;
        let answers = failover::get_many(&client.routing, &wanted, now, &client.budget, most).await;
        let mut answers = answers.into_iter().map(|answer| self.settle(answer));
        let next =
            |checked: Result<(), Error>| checked.and_then(|()| answers.next().expect("one for each key"));
        checked.into_iter().map(next).collect()
    }

    async fn get_from(&self, key: &[u8], now: Instant) -> Result<Option<Bytes>, Error> {
        check(key)?;
        let client = &self.client;
        self.settle(failover::get(&client.routing, self.wanted(key, now), now, &client.budget).await)
    }

    fn wanted<'a>(&'a self, key: &'a [u8], now: Instant) -> Wanted<'a> {
        Wanted {
            group: self.number,
            group_name: &self.name,
            key,
            deadline: now + self.client.config.deadline,
        }
    }

    /// Takes in what an answer says besides the value, and gives the value.
    fn settle(&self, answer: Result<Answered, Error>) -> Result<Option<Bytes>, Error> {
        let client = &self.client;
        match answer {
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

fn check(key: &[u8]) -> Result<(), Error> {
    check_key(key).map_err(|why| Error::new(ErrorKind::InvalidArgument, why))
}
