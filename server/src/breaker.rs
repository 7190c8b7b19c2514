//! The circuit breaker of a group: an origin that fails is left alone for a while, and asked slowly at first
//! when it is back.
//!
//! Closed, it counts; where at least half of the loads of a window have failed, and enough of them, it opens
//! for a pause that doubles each time. Enough are fewer where none has succeeded and few may run at once: an
//! origin that is silent lets each of them fail once in a time-out. After the pause it lets one load through,
//! and with every success one more at a time (as TCP's slow start does), until as many run as may; where half
//! of those have failed it opens again, so that an origin that always fails now and then closes it. The
//! ready-made ones let everything through after one success, which is what an origin that has just come back
//! bears least. It reads no clock: time and chance are arguments.

use std::time::Duration;

use tokio::time::Instant;

/// Loads are counted for so long.
const WINDOW: Duration = Duration::from_secs(10);
/// Fewer loads than that say nothing, or than may run at once where none of them has succeeded; never one.
const ENOUGH: u32 = 20;
const LEAST: u32 = 2;
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
    HalfOpen { allowed: usize, running: usize, failures: usize, pause: Duration },
}

/// How a load has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ended {
    /// The origin has answered.
    Well,
    Badly,
    /// Nothing can be said of the origin: the load had no time.
    Unknown,
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
                self.change(State::HalfOpen { allowed: 1, running: 1, failures: 0, pause });
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
    pub(crate) fn record(&mut self, epoch: Epoch, ended: Ended, now: Instant, random: f64) {
        if epoch != self.epoch {
            return;
        }
        let has_failed = ended == Ended::Badly;
        match &mut self.state {
            State::Closed { .. } if ended == Ended::Unknown => {}
            State::Closed { since, loads, failures } => {
                if now.saturating_duration_since(*since) >= WINDOW {
                    (*since, *loads, *failures) = (now, 0, 0);
                }
                *loads += 1;
                *failures += u32::from(has_failed);
                let at_once = u32::try_from(self.most).unwrap_or(u32::MAX);
                let enough = if failures == loads { at_once.clamp(LEAST, ENOUGH) } else { ENOUGH };
                if has_failed && *loads >= enough && *failures * 2 >= *loads {
                    self.open(FIRST_PAUSE, now, random);
                }
            }
            // Nothing begins while it is open.
            State::Open { .. } => {}
            State::HalfOpen { allowed, running, failures, pause } => {
                *running = running.saturating_sub(1);
                *failures += usize::from(has_failed);
                // With each success one more is allowed.
                let succeeded = *allowed - 1;
                if has_failed && *failures >= succeeded {
                    let pause = (*pause * 2).min(LONGEST_PAUSE);
                    return self.open(pause, now, random);
                }
                *allowed += usize::from(ended == Ended::Well);
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
        let succeeds = if succeeds { Ended::Well } else { Ended::Badly };
        let epoch = breaker.admits(now).expect("it lets loads through");
        breaker.record(epoch, succeeds, now, 0.0);
    }

    fn opened(now: Instant) -> Breaker {
        opened_of(8, now)
    }

    fn opened_of(most: usize, now: Instant) -> Breaker {
        let mut breaker = Breaker::new(most, now);
        (0..ENOUGH.min(u32::try_from(most).unwrap())).for_each(|_| load(&mut breaker, false, now));
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
        let mut breaker = Breaker::new(100, now);
        (1..ENOUGH).for_each(|_| load(&mut breaker, false, now));
        assert_eq!(breaker.position(now), Position::Closed, "one too few");
        load(&mut breaker, false, now + WINDOW);
        assert_eq!(breaker.position(now), Position::Closed, "the others were long ago");
    }

    /// A time-out as long as half of the window, and as few loads at once as may be configured.
    #[tokio::test(start_paused = true)]
    async fn a_silent_origin_opens_it_however_few_loads_run_at_once() {
        for most in [1, 2, 4, 8, 16, 19, 128] {
            let mut now = Instant::now();
            let mut breaker = Breaker::new(most, now);
            for wave in 0.. {
                assert!(wave < 4, "{most} at once");
                let wave: Vec<Epoch> = (0..most).filter_map(|_| breaker.admits(now)).collect();
                now += WINDOW / 2;
                wave.iter().for_each(|epoch| breaker.record(*epoch, Ended::Badly, now, 0.0));
                // Those that got their turn when their time was almost over say nothing.
                let late: Vec<Epoch> = (0..most).filter_map(|_| breaker.admits(now)).collect();
                late.iter().for_each(|epoch| breaker.record(*epoch, Ended::Unknown, now, 0.0));
                if breaker.position(now) == Position::Open {
                    break;
                }
            }
        }
        // One success among them, and few say nothing.
        let now = Instant::now();
        let mut breaker = Breaker::new(4, now);
        load(&mut breaker, true, now);
        (0..ENOUGH - 2).for_each(|_| load(&mut breaker, false, now));
        assert_eq!(breaker.position(now), Position::Closed);
    }

    /// One in twenty, of which nobody would say that the origin is down.
    #[tokio::test(start_paused = true)]
    async fn an_origin_that_fails_now_and_then_closes_it() {
        for most in [8, 128, 1000] {
            let (mut now, mut tries) = (Instant::now(), 0);
            let mut breaker = opened_of(most, now);
            while breaker.position(now) != Position::Closed {
                now += LONGEST_PAUSE * 2;
                for n in 0.. {
                    if breaker.position(now) != Position::HalfOpen {
                        break;
                    }
                    load(&mut breaker, n % 20 != 7, now);
                }
                tries += 1;
                assert!(tries < 3, "{most} at once");
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_had_no_time_opens_nothing_and_allows_nothing() {
        let now = Instant::now();
        let mut breaker = opened(now);
        let later = now + FIRST_PAUSE;
        let epoch = breaker.admits(later).unwrap();
        breaker.record(epoch, Ended::Unknown, later, 0.0);
        assert!(breaker.admits(later).is_some(), "in its place");
        assert!(breaker.admits(later).is_none(), "still one");
    }

    #[tokio::test(start_paused = true)]
    async fn it_lets_one_through_after_the_pause_and_then_ever_more() {
        let now = Instant::now();
        let mut breaker = opened(now);
        assert!(breaker.admits(now + FIRST_PAUSE / 2).is_none());
        let later = now + FIRST_PAUSE;
        let epoch = breaker.admits(later).unwrap();
        assert!(breaker.admits(later).is_none(), "one");
        breaker.record(epoch, Ended::Well, later, 0.0);
        assert!(breaker.admits(later).is_some() && breaker.admits(later).is_some(), "two");
        assert!(breaker.admits(later).is_none(), "and no third");
        breaker.record(epoch, Ended::Well, later, 0.0);
        breaker.record(epoch, Ended::Well, later, 0.0);
        assert_eq!((0..10).filter(|_| breaker.admits(later).is_some()).count(), 4);
        (0..5).for_each(|_| breaker.record(epoch, Ended::Well, later, 0.0));
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
        early[..20].iter().for_each(|epoch| breaker.record(*epoch, Ended::Badly, now, 0.0));
        let later = now + FIRST_PAUSE;
        let probe = breaker.admits(later).unwrap();
        // Late ones, of both kinds, while the probe is under way.
        early[20..25].iter().for_each(|epoch| breaker.record(*epoch, Ended::Badly, later, 0.0));
        early[25..].iter().for_each(|epoch| breaker.record(*epoch, Ended::Well, later, 0.0));
        assert!(breaker.admits(later).is_none(), "still one");
        breaker.record(probe, Ended::Well, later, 0.0);
        assert_eq!(breaker.position(later), Position::HalfOpen);
    }
}
