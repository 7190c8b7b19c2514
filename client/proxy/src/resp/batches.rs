//! What many commands ask of the same group, as one call for each group.

use std::collections::HashMap;

use bytes::Bytes;
use futures_util::future::join_all;
use peanut_client::Group;

use super::database::Key;
use super::reply::Reply;
use crate::groups::Groups;

/// Where the result of an item will be.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    batch: usize,
    item: usize,
}

/// Items by group.
#[derive(Debug)]
pub(super) struct Batches<T> {
    all: Vec<(Group, Vec<T>)>,
    by_group: HashMap<Bytes, usize>,
}

impl<T> Default for Batches<T> {
    fn default() -> Self {
        Batches { all: Vec::new(), by_group: HashMap::new() }
    }
}

impl<T> Batches<T> {
    /// Adds what is to be done about a key.
    ///
    /// # Errors
    /// The answer, where there can be no such group.
    pub(super) fn add(
        &mut self,
        groups: &Groups,
        key: Key,
        item: impl FnOnce(Bytes) -> T,
    ) -> Result<Place, Reply> {
        let batch = match self.by_group.get(&key.group) {
            Some(batch) => *batch,
            None => {
                let group = groups.named(&key.group).map_err(|why| Reply::error(format!("ERR {why}")))?;
                self.by_group.insert(key.group, self.all.len());
                self.all.push((group, Vec::new()));
                self.all.len() - 1
            }
        };
        let items = &mut self.all[batch].1;
        items.push(item(key.key));
        Ok(Place { batch, item: items.len() - 1 })
    }

    /// Calls each group once, all at the same time; a call gives the results in the order of its items.
    pub(super) async fn call<R, F>(self, call: impl Fn(Group, Vec<T>) -> F) -> Results<R>
    where
        F: Future<Output = Vec<R>>,
    {
        let calls = self.all.into_iter().map(|(group, items)| call(group, items));
        let results = join_all(calls).await.into_iter();
        Results(results.map(|of_batch| of_batch.into_iter().map(Some).collect()).collect())
    }
}

/// What the items came to.
#[derive(Debug)]
pub(super) struct Results<R>(Vec<Vec<Option<R>>>);

impl<R> Results<R> {
    /// The result of one item, which is asked for once.
    pub(super) fn take(&mut self, place: Place) -> R {
        self.0[place.batch][place.item].take().expect("each item has one result, which is taken once")
    }
}
