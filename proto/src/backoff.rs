//! Exponential back-off with jitter: delays double from a first to a longest one, and each is shortened
//! by a random part of up to half, so that processes which failed together do not return together.

use std::time::Duration;

/// The delays between attempts. Randomness is an argument.
#[derive(Clone, Debug)]
pub struct Backoff {
    first: Duration,
    longest: Duration,
    next: Duration,
}

impl Backoff {
    /// Delays from `first`, doubling, up to `longest`.
    pub fn new(first: Duration, longest: Duration) -> Self {
        Backoff { first, longest, next: first }
    }

    /// The delay before the next attempt. `random` is uniform in 0..1.
    pub fn next_delay(&mut self, random: f64) -> Duration {
        let delay = self.next;
        self.next = (delay * 2).min(self.longest);
        delay.mul_f64(1.0 - random / 2.0)
    }

    /// Begins again at the first delay, after a success.
    pub fn reset(&mut self) {
        self.next = self.first;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_double_to_the_longest_and_jitter_only_shortens() {
        let ms = Duration::from_millis;
        let mut backoff = Backoff::new(ms(100), ms(500));
        let delays: Vec<_> = (0..5).map(|_| backoff.next_delay(0.0)).collect();
        assert_eq!(delays, [ms(100), ms(200), ms(400), ms(500), ms(500)]);
        assert_eq!(backoff.next_delay(1.0), ms(250));
        backoff.reset();
        assert_eq!(backoff.next_delay(0.5), ms(75));
    }
}
