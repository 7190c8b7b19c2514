//! Hot keys: which keys of a group are asked for most, and how often a second.
//!
//! Space-Saving (Metwally, Agrawal, El Abbadi, "Efficient Computation of Frequent and Top-k Elements in Data
//! Streams", ICDT 2005) over a sample of all gets, anew in every window of some seconds: a key is hot for
//! what it is asked now, not for what it was asked in its life. A key that has less than 1/[`COUNTERS`] of
//! the gets of a window may be missing; a count is too high by at most that share.

use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use peanut_proto::machine::is_simulated;
use tokio::time::Instant;

/// One get in so many is counted.
const SAMPLED: u32 = 32;
/// In a simulation, where a key is asked for some ten times in a window.
const SAMPLED_OF_RUN: u32 = 2;
/// Keys that are counted at a time.
const COUNTERS: usize = 128;
/// Counted gets in a window from which on a key is hot.
const HOT_SAMPLES: u64 = 2;
const WINDOW: Duration = Duration::from_secs(5);

/// A key that is asked for often.
#[derive(Clone, Debug, PartialEq)]
pub struct HotKey {
    /// The key.
    pub key: Bytes,
    /// Gets a second, lately; an estimate.
    pub gets_per_second: f64,
}

/// The hot keys of one group.
#[derive(Debug)]
pub struct HotKeys {
    windows: Mutex<Windows>,
}

#[derive(Debug)]
struct Windows {
    began: Instant,
    current: Counters,
    /// What the window before came to, by count.
    last: Vec<HotKey>,
}

#[derive(Debug, Default)]
struct Counters {
    counters: Vec<Counter>,
}

#[derive(Debug)]
struct Counter {
    key: Bytes,
    count: u64,
    /// How much of that may be of other keys.
    inherited: u64,
}

impl HotKeys {
    /// None yet.
    pub fn new(now: Instant) -> Self {
        let windows = Windows { began: now, current: Counters::default(), last: Vec::new() };
        HotKeys { windows: Mutex::new(windows) }
    }

    /// Takes in a get; one in 32 is counted, and that one only where no other thread is counting.
    pub fn count(&self, key: &[u8], now: Instant) {
        if is_sampled() {
            self.count_sampled(key, now);
        }
    }

    fn count_sampled(&self, key: &[u8], now: Instant) {
        if let Some(mut windows) = self.windows.try_lock() {
            windows.turn(now);
            windows.current.add(key);
        }
    }

    /// Whether a key is asked for so often that clients should keep it: some fifty gets in the present window
    /// at the least. One call in 32 looks.
    pub fn is_hot(&self, key: &[u8]) -> bool {
        is_sampled() && self.windows.try_lock().is_some_and(|windows| windows.current.is_hot(key))
    }

    /// The hottest keys of the last full window, at most `most`, the hottest first.
    pub fn hottest(&self, most: usize, now: Instant) -> Vec<HotKey> {
        let mut windows = self.windows.lock();
        windows.turn(now);
        windows.last.iter().take(most).cloned().collect()
    }
}

fn is_sampled() -> bool {
    fastrand::u32(..if is_simulated() { SAMPLED_OF_RUN } else { SAMPLED }) == 0
}

impl Windows {
    /// Begins a new window where the current one is over.
    fn turn(&mut self, now: Instant) {
        let length = now.saturating_duration_since(self.began);
        if length < WINDOW {
            return;
        }
        let mut counters = std::mem::take(&mut self.current).counters;
        counters.sort_unstable_by(|a, b| b.count.cmp(&a.count).then_with(|| a.key.cmp(&b.key)));
        let rate = |count: u64| count as f64 * f64::from(SAMPLED) / length.as_secs_f64();
        let hot = counters
            .into_iter()
            .map(|counter| HotKey { gets_per_second: rate(counter.count), key: counter.key });
        self.last = hot.collect();
        self.began = now;
    }
}

impl Counters {
    fn add(&mut self, key: &[u8]) {
        if let Some(counter) = self.counters.iter_mut().find(|counter| counter.key == key) {
            counter.count += 1;
        } else if self.counters.len() < COUNTERS {
            self.counters.push(Counter { key: Bytes::copy_from_slice(key), count: 1, inherited: 0 });
        } else if let Some(least) = self.counters.iter_mut().min_by_key(|counter| counter.count) {
            // The newcomer takes over the count of the one it drives out: that is how much it may be too
            // high.
            least.key = Bytes::copy_from_slice(key);
            least.inherited = least.count;
            least.count += 1;
        }
    }

    fn is_hot(&self, key: &[u8]) -> bool {
        let counter = self.counters.iter().find(|counter| counter.key == key);
        counter.is_some_and(|counter| counter.count - counter.inherited >= HOT_SAMPLES)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_hottest_are_found_among_many_and_their_rate_is_that_of_the_last_window() {
        let begun = Instant::now();
        let hot = HotKeys::new(begun);
        let mut random = fastrand::Rng::with_seed(3);
        // A tenth of all gets goes to each of two keys, the rest to ten thousand.
        let keys = |random: &mut fastrand::Rng| match random.u32(..10) {
            0 => "first".to_owned(),
            1 => "second".to_owned(),
            _ => format!("key-{}", random.u32(..10_000)),
        };
        for n in 0..50_000 {
            hot.count_sampled(keys(&mut random).as_bytes(), begun + WINDOW.mul_f64(f64::from(n) / 50_000.0));
        }
        assert!(hot.hottest(2, begun).is_empty(), "the first window is not over");
        let found = hot.hottest(2, begun + WINDOW);
        let mut names: Vec<_> = found.iter().map(|hot| hot.key.clone()).collect();
        names.sort();
        assert_eq!(names, ["first", "second"]);
        let rate = 5_000.0 * f64::from(SAMPLED) / WINDOW.as_secs_f64();
        for HotKey { gets_per_second, .. } in found {
            // Space-Saving counts at most 1/128 of all gets too many, a tenth of these here.
            assert!(
                (rate * 0.9..rate * 1.2).contains(&gets_per_second),
                "{gets_per_second} is not about {rate}"
            );
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_hot_is_so_no_more_when_nobody_asks() {
        let begun = Instant::now();
        let hot = HotKeys::new(begun);
        hot.count_sampled(b"k", begun);
        assert_eq!(hot.hottest(10, begun + WINDOW).len(), 1);
        assert_eq!(hot.hottest(10, begun + WINDOW * 2).len(), 0);
    }
}
