//! Whether a node is worth asking: a state machine without clock or socket.
//!
//! A node is down on a failed connect, on five failures in a row, or when it fails a probe; a probe that
//! it passes brings it back. Membership is another matter: a node that is down keeps its keys.

/// Failures in a row after which a node is down. One is no more than an unlucky call.
const FAILURES: u32 = 5;

/// What was seen of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Signal {
    /// It answered, be it with an error of its own.
    Answered,
    /// A call died on the way, or timed out while a probe went unanswered.
    Failed,
    /// It could not be connected to.
    NotConnected,
    /// A probe was answered: it serves.
    ProbePassed,
    /// A probe was not answered in time, or the node says that it does not serve.
    ProbeFailed,
}

/// What a signal changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Change {
    WentDown,
    CameUp,
}

/// The health of one node as one client sees it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Health {
    down: bool,
    failures: u32,
}

impl Health {
    /// Takes in a signal and tells what it changed.
    pub(crate) fn on(&mut self, signal: Signal) -> Option<Change> {
        match signal {
            Signal::Answered => {
                // While down only a probe counts: an answer may have been on its way since before.
                self.failures = 0;
                return None;
            }
            Signal::ProbePassed => {
                let was = std::mem::take(self);
                return was.down.then_some(Change::CameUp);
            }
            Signal::Failed => self.failures += 1,
            Signal::NotConnected | Signal::ProbeFailed => self.failures = FAILURES,
        }
        let goes_down = !self.down && self.failures >= FAILURES;
        self.down |= goes_down;
        goes_down.then_some(Change::WentDown)
    }

    #[cfg(test)]
    fn is_down(self) -> bool {
        self.down
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(signals: &[Signal]) -> Health {
        let mut health = Health::default();
        for signal in signals {
            health.on(*signal);
        }
        health
    }

    #[test]
    fn five_failures_in_a_row_are_down_and_an_answer_breaks_the_row() {
        use Signal::{Answered, Failed};
        assert!(!after(&[Failed; 4]).is_down());
        assert!(after(&[Failed; 5]).is_down());
        assert!(
            !after(&[Failed, Failed, Failed, Failed, Answered, Failed, Failed, Failed, Failed]).is_down()
        );
    }

    #[test]
    fn a_failed_connect_or_probe_is_down_at_once() {
        assert!(after(&[Signal::NotConnected]).is_down());
        assert!(after(&[Signal::ProbeFailed]).is_down());
    }

    #[test]
    fn only_a_probe_brings_a_node_back() {
        assert!(after(&[Signal::NotConnected, Signal::Answered]).is_down());
        assert_eq!(after(&[Signal::NotConnected, Signal::ProbePassed]), Health::default());
    }

    #[test]
    fn each_change_is_told_once() {
        let mut health = Health::default();
        assert_eq!(health.on(Signal::NotConnected), Some(Change::WentDown));
        assert_eq!(health.on(Signal::NotConnected), None);
        assert_eq!(health.on(Signal::ProbeFailed), None);
        assert_eq!(health.on(Signal::ProbePassed), Some(Change::CameUp));
        assert_eq!(health.on(Signal::ProbePassed), None);
    }
}
