//! Values of many keys, fetched in portions.
//!
//! A caller may ask for any number of keys at once, and nobody knows how long their values are before they
//! are there. So the size of a portion follows that of the values before, nothing more is fetched once there
//! is enough, and what values take counts for the caller's budget until the answer is written.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use parking_lot::Mutex;
use peanut_client::{Error, Group};
use peanut_edge::budget::{Account, Held};

/// Keys that are fetched at once before it is known how long values are.
pub(crate) const FIRST_PORTION: usize = 16;
/// Keys that are fetched at once, at most.
pub(crate) const MAX_PORTION: usize = 128;
/// Bytes of values in a portion, about.
const PORTION_BYTES: usize = 16 << 20;
/// What a value is taken for before it is there.
const USUAL_BYTES: usize = 16 << 10;

/// `None`: enough had been fetched before.
pub(crate) type Fetched = Option<Result<Option<Bytes>, Error>>;

/// How much is fetched.
#[derive(Debug)]
pub(crate) struct Fetch {
    /// Keys at once.
    portion: AtomicUsize,
    /// Bytes of values so far.
    fetched: AtomicUsize,
    most: usize,
    account: Arc<Account>,
    held: Mutex<Vec<Held>>,
}

impl Fetch {
    /// Fetches so many keys at once at first, and values of `most` bytes or a portion more.
    pub(crate) fn new(portion: usize, most: usize, account: Arc<Account>) -> Self {
        let (portion, fetched) = (AtomicUsize::new(portion), AtomicUsize::new(0));
        Fetch { portion, fetched, most, account, held: Mutex::default() }
    }

    /// The room that the values take, until this is dropped.
    pub(crate) fn into_held(self) -> Vec<Held> {
        self.held.into_inner()
    }

    /// Room for so many values, which is waited for by a caller that has none yet: one that has would keep
    /// others waiting.
    async fn room_for(&self, keys: usize) -> Option<Held> {
        let (bytes, is_first) = (keys * USUAL_BYTES, self.held.lock().is_empty());
        if is_first {
            Some(self.account.values.take(bytes).await)
        } else {
            self.account.values.try_take(bytes)
        }
    }

    /// How many keys to fetch at once the next time.
    pub(crate) fn portion(&self) -> usize {
        self.portion.load(Ordering::Relaxed)
    }

    /// The values of keys, in their order.
    pub(crate) async fn get<K: AsRef<[u8]>>(&self, group: &Group, keys: &[K]) -> Vec<Fetched> {
        let mut got = Vec::with_capacity(keys.len());
        while got.len() < keys.len() && self.fetched.load(Ordering::Relaxed) < self.most {
            let rest = &keys[got.len()..];
            let portion = &rest[..rest.len().min(self.portion())];
            let Some(room) = self.room_for(portion.len()).await else { break };
            let values = match portion {
                [only] => vec![group.get(only).await],
                some => group.get_many(some).await,
            };
            let bytes: usize = values.iter().flatten().flatten().map(Bytes::len).sum();
            let more = bytes.saturating_sub(room.bytes());
            // They are there: what there is no room for is one portion at most.
            self.held.lock().extend(self.account.values.try_take(more).into_iter().chain([room]));
            self.fetched.fetch_add(bytes, Ordering::Relaxed);
            self.portion.store(next_portion(values.len(), bytes), Ordering::Relaxed);
            got.extend(values.into_iter().map(Some));
        }
        got.resize_with(keys.len(), || None);
        got
    }
}

/// How many keys to fetch at once after so many that had so many bytes: four times as many, as long as a
/// portion is not too long then.
fn next_portion(keys: usize, bytes: usize) -> usize {
    let each = bytes.div_ceil(keys.max(1)).max(1);
    (PORTION_BYTES / each).min(keys.saturating_mul(4)).clamp(1, MAX_PORTION)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn portions_grow_while_values_are_short_and_shrink_when_they_are_long() {
        assert_eq!(next_portion(16, 1600), 64);
        assert_eq!(next_portion(64, 6400), MAX_PORTION);
        assert_eq!(next_portion(128, 128 << 20), 16);
        assert_eq!(next_portion(16, 16 * (8 << 20)), 2);
        assert_eq!(next_portion(1, 64 << 20), 1);
        assert_eq!(next_portion(0, 0), 1);
    }
}
