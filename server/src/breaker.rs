//! The circuit breaker of a group: an origin that fails is left alone for a while, and asked slowly at first
//! when it is back.
//!
//! Closed, it counts; where at least half of the loads of a window have failed, and enough of them, it opens
//! for a pause that doubles each time. After the pause it lets one load through, and with every success one
//! more at a time (as TCP's slow start does), until as many run as may; one failure opens it again. The
//! ready-made ones let everything through after one success, which is what an origin that has just come back
//! bears least. It reads no clock: time and chance are arguments.

use std::time::Duration;

use tokio::time::Instant;

/// Loads are counted for so long.
const WINDOW: Duration = Duration::from_secs(10);
/// Fewer loads than that say nothing.
const ENOUGH: u32 = 20;
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// The breaker of one origin.
#[derive(Debug)]
pub(crate) struct Breaker {
    state: State,
    /// Raised with each change of state: loads from before are not taken for those of now.
    epoch: Epoch,
    /// Loads at once from which on it is closed again.
    most: usize,
}

/// Between which changes a load began.
pub(crate) type Epoch = u64;

#[derive(Debug)]
enum State {
    Closed { since: Instant, loads: u32, failures: u32 },
    Open { until: Instant, pause: Duration },
    HalfOpen { allowed: usize, running: usize, pause: Duration },
}

/// As operators see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Position {
    Closed,
    Open,
    HalfOpen,
}

impl Breaker {
    pub(crate) fn new(most: usize, now: Instant) -> Self {
        Breaker { state: State::closed(now), epoch: 0, most }
    }

    /// Whether a load may begin. One that begins is to be [`record`](Self::record)ed when it ends.
    pub(crate) fn admits(&mut self, now: Instant) -> Option<Epoch> {
        let admits = match &mut self.state {
            State::Closed { .. } => true,
            State::Open { until, pause } if *until <= now => {
                let pause = *pause;
                self.change(State::HalfOpen { allowed: 1, running: 1, pause });
                true
            }
            State::Open { .. } => false,
            State::HalfOpen { allowed, running, .. } => {
                let admits = running < allowed;
                *running += usize::from(admits);
                admits
            }
        };
        admits.then_some(self.epoch)
    }

    /// Takes in how a load of that epoch ended. `random` (0 to 1) spreads the pauses of many nodes.
    pub(crate) fn record(&mut self, epoch: Epoch, succeeded: bool, now: Instant, random: f64) {
        if epoch != self.epoch {
            return;
        }
        match &mut self.state {
            State::Closed { since, loads, failures } => {
                if now.saturating_duration_since(*since) >= WINDOW {
                    (*since, *loads, *failures) = (now, 0, 0);
                }
                *loads += 1;
                *failures += u32::from(!succeeded);
                if !succeeded && *loads >= ENOUGH && *failures * 2 >= *loads {
                    self.open(FIRST_PAUSE, now, random);
                }
            }
            // Nothing begins while it is open.
            State::Open { .. } => {}
            State::HalfOpen { pause, .. } if !succeeded => {
                let pause = (*pause * 2).min(LONGEST_PAUSE);
                self.open(pause, now, random);
            }
            State::HalfOpen { allowed, running, .. } => {
                *running = running.saturating_sub(1);
                *allowed += 1;
                if *allowed > self.most {
                    self.change(State::closed(now));
                }
            }
        }
    }

    fn change(&mut self, state: State) {
        self.state = state;
        self.epoch += 1;
    }

    /// Half-open also where its pause is over and nobody has asked since.
    pub(crate) fn position(&self, now: Instant) -> Position {
        match self.state {
            State::Closed { .. } => Position::Closed,
            State::Open { until, .. } if now < until => Position::Open,
            State::Open { .. } => Position::HalfOpen,
            State::HalfOpen { .. } => Position::HalfOpen,
        }
    }

    fn open(&mut self, pause: Duration, now: Instant, random: f64) {
        self.change(State::Open { until: now + pause.mul_f64(1.0 + 0.2 * random), pause });
    }
}

impl State {
    fn closed(now: Instant) -> Self {
        State::Closed { since: now, loads: 0, failures: 0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Begins loads and ends them, one after the other.
    fn load(breaker: &mut Breaker, succeeds: bool, now: Instant) {
        let epoch = breaker.admits(now).expect("it lets loads through");
        breaker.record(epoch, succeeds, now, 0.0);
    }

    fn opened(now: Instant) -> Breaker {
        let mut breaker = Breaker::new(8, now);
        (0..ENOUGH).for_each(|_| load(&mut breaker, false, now));
        assert_eq!(breaker.position(now), Position::Open);
        let long_after = now + LONGEST_PAUSE * 2;
        assert_eq!(breaker.position(long_after), Position::HalfOpen, "it would let one through");
        breaker
    }

    #[tokio::test(start_paused = true)]
    async fn it_opens_when_half_of_enough_loads_have_failed_and_not_before() {
        let now = Instant::now();
        let mut breaker = Breaker::new(8, now);
        (0..1000).for_each(|n| load(&mut breaker, n % 5 < 3, now));
        assert_eq!(breaker.position(now), Position::Closed, "two in five are not half");
        let mut breaker = Breaker::new(8, now);
        (1..ENOUGH).for_each(|_| load(&mut breaker, false, now));
        assert_eq!(breaker.position(now), Position::Closed, "one too few");
        load(&mut breaker, false, now + WINDOW);
        assert_eq!(breaker.position(now), Position::Closed, "the others were long ago");
    }

    #[tokio::test(start_paused = true)]
    async fn it_lets_one_through_after_the_pause_and_then_ever_more() {
        let now = Instant::now();
        let mut breaker = opened(now);
        assert!(breaker.admits(now + FIRST_PAUSE / 2).is_none());
        let later = now + FIRST_PAUSE;
        let epoch = breaker.admits(later).unwrap();
        assert!(breaker.admits(later).is_none(), "one");
        breaker.record(epoch, true, later, 0.0);
        assert!(breaker.admits(later).is_some() && breaker.admits(later).is_some(), "two");
        assert!(breaker.admits(later).is_none(), "and no third");
        breaker.record(epoch, true, later, 0.0);
        breaker.record(epoch, true, later, 0.0);
        assert_eq!((0..10).filter(|_| breaker.admits(later).is_some()).count(), 4);
        (0..5).for_each(|_| breaker.record(epoch, true, later, 0.0));
        assert_eq!(breaker.position(later), Position::Closed);
    }

    #[tokio::test(start_paused = true)]
    async fn a_failure_on_the_way_back_doubles_the_pause_up_to_the_longest() {
        let mut now = Instant::now();
        let mut breaker = opened(now);
        let mut pause = FIRST_PAUSE;
        for _ in 0..10 {
            assert!(breaker.admits(now + pause - Duration::from_millis(1)).is_none());
            now += pause;
            load(&mut breaker, false, now);
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
        assert_eq!(pause, LONGEST_PAUSE);
    }

    #[tokio::test(start_paused = true)]
    async fn what_began_before_it_opened_says_nothing_of_the_way_back() {
        let now = Instant::now();
        let mut breaker = Breaker::new(8, now);
        let early: Vec<Epoch> = (0..30).filter_map(|_| breaker.admits(now)).collect();
        early[..20].iter().for_each(|epoch| breaker.record(*epoch, false, now, 0.0));
        let later = now + FIRST_PAUSE;
        let probe = breaker.admits(later).unwrap();
        // Late ones, of both kinds, while the probe is under way.
        early[20..25].iter().for_each(|epoch| breaker.record(*epoch, false, later, 0.0));
        early[25..].iter().for_each(|epoch| breaker.record(*epoch, true, later, 0.0));
        assert!(breaker.admits(later).is_none(), "still one");
        breaker.record(probe, true, later, 0.0);
        assert_eq!(breaker.position(later), Position::HalfOpen);
    }
}
