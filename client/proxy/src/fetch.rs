//! Values of many keys, fetched in portions.
//!
//! A caller may ask for any number of keys at once, and nobody knows how long their values are before they
//! are there. So the size of a portion follows that of the values before, nothing more is fetched once there
//! is enough, and what values take counts for the caller's budget until the answer is written.
//!
//! Room is waited for only by a fetch that holds none, for a caller that holds none, and for a minute:
//! callers who hold some and wait for more would wait for each other.

use std::iter::successors;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::join_all;
use parking_lot::Mutex;
use peanut_client::{Detailed, Error, Group};
use peanut_edge::budget::{Account, Budget, Held};
use tokio::time::{Instant, timeout_at};

use crate::groups::Groups;

/// Keys that are fetched at once before it is known how long values are.
pub(crate) const FIRST_PORTION: usize = 16;
/// Keys that are fetched at once, at most.
pub(crate) const MAX_PORTION: usize = 128;
/// Bytes of values in a portion, about.
const PORTION_BYTES: usize = 16 << 20;
/// What a value is taken for before it is there.
const USUAL_BYTES: usize = 16 << 10;

/// How long room is waited for.
const ROOM_WITHIN: Duration = Duration::from_secs(60);
/// How often one value is asked for that grows meanwhile.
const ATTEMPTS: usize = 3;

/// `None`: it was not fetched, for the reason that [`Fetch::shortage`] tells.
pub(crate) type Fetched<T> = Option<Result<T, Error>>;

/// Why values were not fetched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Shortage {
    /// The values before are as long as an answer may be.
    TooLong,
    /// Others hold the room for more values.
    NoRoom,
}

/// Waits for room for so many bytes, as long as that is waited for.
pub(crate) async fn room(budget: &Arc<Budget>, bytes: usize) -> Option<Held> {
    room_until(Instant::now() + ROOM_WITHIN, budget, bytes).await
}

async fn room_until(until: Instant, budget: &Arc<Budget>, bytes: usize) -> Option<Held> {
    timeout_at(until, budget.take(bytes)).await.ok()
}

/// One value, and the room that it takes. A value for which there turns out to be no room is let go, and
/// asked for again once there is; it is cached by then.
///
/// # Errors
/// Where there is no room for it.
pub(crate) async fn get_detailed(
    groups: &Groups,
    group: &Group,
    key: &[u8],
    account: &Account,
) -> Result<(Result<Detailed, Error>, Held), Shortage> {
    let values = &account.values;
    let (until, mut expected) = (Instant::now() + ROOM_WITHIN, USUAL_BYTES);
    for _ in 0..ATTEMPTS {
        let mut held = room_until(until, values, expected).await.ok_or(Shortage::NoRoom)?;
        let got = group.get_detailed(key).await;
        groups.heed(group, [&got]);
        let bytes = got.as_ref().ok().and_then(|got| got.value.as_ref()).map_or(0, Bytes::len);
        held.shrink_to(bytes);
        if let Some(more) = values.try_take(bytes - held.bytes()) {
            return Ok((got, held.and(more)));
        }
        expected = bytes;
    }
    Err(Shortage::NoRoom)
}

/// How much is fetched.
#[derive(Debug)]
pub(crate) struct Fetch {
    /// Keys at once.
    portion: AtomicUsize,
    /// Bytes of values so far.
    fetched: AtomicUsize,
    most: usize,
    account: Arc<Account>,
    /// Until when room may be waited for: not by a caller that holds some, and not once this fetch does.
    may_wait: tokio::sync::Mutex<Option<Instant>>,
    found_no_room: AtomicBool,
    held: Mutex<Option<Held>>,
}

impl Fetch {
    /// Fetches so many keys at once at first, and values of `most` bytes, or one that is longer. `may_wait`:
    /// the caller holds no room for values.
    pub(crate) fn new(portion: usize, most: usize, account: Arc<Account>, may_wait: bool) -> Self {
        Fetch {
            portion: AtomicUsize::new(portion),
            fetched: AtomicUsize::new(0),
            most,
            account,
            may_wait: tokio::sync::Mutex::new(may_wait.then(|| Instant::now() + ROOM_WITHIN)),
            found_no_room: AtomicBool::new(false),
            held: Mutex::default(),
        }
    }

    /// The room that the values take, until this is dropped.
    pub(crate) fn into_held(self) -> Held {
        self.held.into_inner().unwrap_or_else(|| self.account.values.take_nothing())
    }

    /// Why there are values that were not fetched, where there are some.
    pub(crate) fn shortage(&self) -> Shortage {
        if self.found_no_room.load(Ordering::Relaxed) { Shortage::NoRoom } else { Shortage::TooLong }
    }

    /// Room for the values of as many of these keys as there is room for, and of how many; `None` where that
    /// is none. `first`: what the first value is taken for.
    async fn room_for(&self, keys: usize, first: usize) -> Option<(usize, Held)> {
        let values = &self.account.values;
        let mut may_wait = self.may_wait.lock().await;
        let fewer = successors(Some(keys), |keys| Some(keys / 2).filter(|keys| *keys > 0));
        let with_room = |keys: usize| Some((keys, values.try_take(first + (keys - 1) * USUAL_BYTES)?));
        let held = match (fewer.into_iter().find_map(with_room), *may_wait) {
            (None, Some(until)) => room_until(until, values, first).await.map(|held| (1, held)),
            (held, _) => held,
        };
        // It holds some now, or has waited for as long as that is waited for.
        *may_wait = None;
        held
    }

    /// How many keys to fetch at once the next time.
    pub(crate) fn portion(&self) -> usize {
        self.portion.load(Ordering::Relaxed)
    }

    /// The values of keys, in their order.
    pub(crate) async fn get<K: AsRef<[u8]>>(
        &self,
        groups: &Groups,
        group: &Group,
        keys: &[K],
    ) -> Vec<Fetched<Option<Bytes>>> {
        let mut got = Vec::with_capacity(keys.len());
        let (mut first, mut attempts) = (USUAL_BYTES, 0);
        while got.len() < keys.len() && self.fetched.load(Ordering::Relaxed) < self.most {
            let rest = &keys[got.len()..];
            let until = *self.may_wait.lock().await;
            let Some((count, room)) = self.room_for(rest.len().min(self.portion()), first).await else {
                self.note_no_room();
                break;
            };
            let mut values = match &rest[..count] {
                [only] => vec![group.get(only).await],
                some => group.get_many(some).await,
            };
            groups.heed(group, &values);
            let bytes = values.iter().map(length).sum();
            self.portion.store(next_portion(values.len(), bytes), Ordering::Relaxed);
            let (kept, shortage) = self.keep(room, values.iter().map(length), got.is_empty());
            attempts += 1;
            let holds_none = self.held.lock().as_ref().is_none_or(|held| held.bytes() == 0);
            if kept == 0 && until.is_some() && holds_none && attempts < ATTEMPTS {
                // It is let go, and asked for again when there is room for it; it is cached by then.
                first = values.first().map_or(USUAL_BYTES, length);
                *self.may_wait.lock().await = until;
                continue;
            }
            first = USUAL_BYTES;
            values.truncate(kept);
            got.extend(values.into_iter().map(Some));
            if let Some(shortage) = shortage {
                if shortage == Shortage::NoRoom {
                    self.note_no_room();
                }
                break;
            }
        }
        got.resize_with(keys.len(), || None);
        got
    }

    /// Keeps as many of the first values as there is room for and as are not too long together, and gives how
    /// many those are, and why not all. `room` was taken before their lengths were known. The very first is
    /// never too long.
    fn keep(
        &self,
        mut room: Held,
        lengths: impl Iterator<Item = usize>,
        is_first: bool,
    ) -> (usize, Option<Shortage>) {
        let left = self.most.saturating_sub(self.fetched.load(Ordering::Relaxed));
        let (mut kept, mut bytes, mut shortage) = (0, 0, None);
        for length in lengths {
            if bytes + length > left && !(is_first && kept == 0) {
                shortage = Some(Shortage::TooLong);
                break;
            }
            let more = (bytes + length).saturating_sub(room.bytes());
            let Some(more) = self.account.values.try_take(more) else {
                shortage = Some(Shortage::NoRoom);
                break;
            };
            (kept, bytes, room) = (kept + 1, bytes + length, room.and(more));
        }
        room.shrink_to(bytes);
        self.fetched.fetch_add(bytes, Ordering::Relaxed);
        let mut held = self.held.lock();
        *held = held.take().into_iter().chain([room]).reduce(Held::and);
        (kept, shortage)
    }

    /// How long values stay fresh, in the order of their keys; `None` where there is none. A value takes room
    /// only until that is known.
    pub(crate) async fn lifetimes(
        &self,
        groups: &Groups,
        group: &Group,
        keys: &[Bytes],
    ) -> Vec<Fetched<Option<Duration>>> {
        let mut got = Vec::with_capacity(keys.len());
        while got.len() < keys.len() {
            let rest = &keys[got.len()..];
            let portion = rest.len().min(self.portion());
            let Some((count, _room)) = self.room_for(portion, USUAL_BYTES).await else {
                self.note_no_room();
                break;
            };
            let details = join_all(rest[..count].iter().map(|key| group.get_detailed(key))).await;
            groups.heed(group, &details);
            let values = details.iter().flatten().filter_map(|detailed| detailed.value.as_ref());
            let bytes = values.map(Bytes::len).sum();
            self.portion.store(next_portion(count, bytes), Ordering::Relaxed);
            let lifetime = |detailed: Detailed| detailed.value.map(|_| detailed.ttl);
            got.extend(details.into_iter().map(|detailed| Some(detailed.map(lifetime))));
        }
        got.resize_with(keys.len(), || None);
        got
    }

    /// Notes that there was no room, unless the values so far are all that the caller may ever hold.
    fn note_no_room(&self) {
        let own = self.fetched.load(Ordering::Relaxed);
        if own + USUAL_BYTES <= self.account.values.most() {
            self.found_no_room.store(true, Ordering::Relaxed);
        }
    }
}

/// How long a value is.
fn length(got: &Result<Option<Bytes>, Error>) -> usize {
    got.as_ref().ok().and_then(Option::as_ref).map_or(0, Bytes::len)
}

/// How many keys to fetch at once after so many that had so many bytes: four times as many, as long as a
/// portion is not too long then.
fn next_portion(keys: usize, bytes: usize) -> usize {
    let each = bytes.div_ceil(keys.max(1)).max(1);
    (PORTION_BYTES / each).min(keys.saturating_mul(4)).clamp(1, MAX_PORTION)
}

#[cfg(test)]
mod tests {
    use peanut_edge::budget::Budgets;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn room_is_waited_for_but_not_for_ever() {
        let budget = Budget::root(100);
        let held = room(&budget, 60).await.unwrap();
        assert!(room(&budget, 60).await.is_none());
        let (more, ()) = tokio::join!(room(&budget, 60), async { drop(held) });
        assert_eq!(more.unwrap().bytes(), 60);
    }

    #[tokio::test(start_paused = true)]
    async fn a_fetch_of_many_groups_waits_for_room_once() {
        let account = Budgets::new().account(&Arc::from(""));
        let _others = account.values.try_take(account.values.most()).unwrap();
        let (fetch, begun) = (Fetch::new(FIRST_PORTION, usize::MAX, account, true), Instant::now());
        for _group in 0..3 {
            assert!(fetch.room_for(1, USUAL_BYTES).await.is_none());
        }
        assert!(begun.elapsed() < ROOM_WITHIN * 2, "{:?}", begun.elapsed());
    }

    #[tokio::test]
    async fn what_is_kept_is_what_there_is_room_for() {
        let account = Budgets::new().account(&Arc::from(""));
        let values = account.values.clone();
        let most = values.most();
        let of = |limit| Fetch::new(FIRST_PORTION, limit, account.clone(), true);
        let keep = |fetch: &Fetch, lengths: &[usize], is_first| {
            let room = values.try_take(USUAL_BYTES).unwrap();
            fetch.keep(room, lengths.iter().copied(), is_first)
        };
        let fetch = of(usize::MAX);
        let kept = keep(&fetch, &[most / 2, 0, most / 4, most / 2, 0], true);
        assert_eq!(kept, (3, Some(Shortage::NoRoom)));
        assert_eq!(values.used(), most / 2 + most / 4, "what is kept, and no more");
        drop(fetch.into_held());
        let fetch = of(100);
        let kept = keep(&fetch, &[60, 40, 1], true);
        assert_eq!((kept, values.used()), ((2, Some(Shortage::TooLong)), 100), "as long as an answer may be");
        drop(fetch.into_held());
        let fetch = of(100);
        let kept = keep(&fetch, &[101, 1], true);
        assert_eq!(kept, (1, Some(Shortage::TooLong)), "one that is longer is answered alone");
        assert_eq!(keep(&fetch, &[1], false), (0, Some(Shortage::TooLong)));
        drop(fetch.into_held());
        assert_eq!(values.used(), 0);
    }

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
