//! What all loads from one origin share, a connection or a client that keeps several, made anew when it has
//! died.
//!
//! A connection can die without a sign: what is sent is swallowed, and nothing ever comes back. So one on
//! which a load has waited for all of its time is not used by later loads. Those that use it still go on with
//! it.

use parking_lot::Mutex;

/// Something that can be replaced.
pub(super) struct Reconnect<C> {
    current: Mutex<Current<C>>,
    make: Box<dyn Fn() -> Option<C> + Send + Sync>,
}

#[derive(Clone)]
struct Current<C> {
    connection: C,
    generation: u64,
    /// How often the origin has answered on it.
    answers: u64,
    has_failed: bool,
}

/// The use of a connection by one load. A load that is given up drops it without a word, and then later loads
/// have another one, unless the origin has answered others meanwhile.
pub(super) struct Use<'a, C: Clone> {
    of: &'a Reconnect<C>,
    /// As it was when the load began.
    used: Current<C>,
    is_over: bool,
}

impl<C: Clone> Reconnect<C> {
    /// `make` makes another one, or says `None` where the former one should stay.
    pub(super) fn new(connection: C, make: impl Fn() -> Option<C> + Send + Sync + 'static) -> Self {
        let current = Current { connection, generation: 0, answers: 0, has_failed: false };
        Reconnect { current: Mutex::new(current), make: Box::new(make) }
    }

    pub(super) fn begin(&self) -> Use<'_, C> {
        Use { of: self, used: self.current.lock().clone(), is_over: false }
    }

    /// Many that say so of the same one replace it once.
    fn replace_if(&self, used: &Current<C>, is_dead: impl FnOnce(&Current<C>) -> bool) {
        let mut current = self.current.lock();
        if current.generation == used.generation
            && is_dead(&current)
            && let Some(connection) = (self.make)()
        {
            let generation = used.generation + 1;
            *current = Current { connection, generation, answers: 0, has_failed: false };
        }
    }

    fn note(&self, used: &Current<C>, note: impl FnOnce(&mut Current<C>)) {
        let mut current = self.current.lock();
        if current.generation == used.generation {
            note(&mut current);
        }
    }
}

impl<C: Clone> Use<'_, C> {
    pub(super) fn connection(&self) -> &C {
        &self.used.connection
    }

    /// Whether a load that breaks may be repeated: the origin had answered, and perhaps only an idle
    /// connection was closed. Where it had not, the origin is down.
    pub(super) fn may_repeat(&self) -> bool {
        self.used.answers > 0 && !self.used.has_failed
    }

    /// The origin has answered.
    pub(super) fn answered(mut self) {
        self.is_over = true;
        self.of.note(&self.used, |current| {
            current.answers += 1;
            current.has_failed = false;
        });
    }

    /// The origin has failed on a new connection too. Where each load that fails has another one, that says
    /// so.
    #[cfg(feature = "http")]
    pub(super) fn failed(mut self) {
        self.is_over = true;
        self.of.note(&self.used, |current| current.has_failed = true);
    }

    /// Later loads have another one.
    pub(super) fn replace(mut self) {
        self.is_over = true;
        self.of.replace_if(&self.used, |_| true);
    }
}

impl<C: Clone> Drop for Use<'_, C> {
    fn drop(&mut self) {
        if !self.is_over {
            self.of.replace_if(&self.used, |current| current.answers == self.used.answers);
        }
    }
}

impl<C> std::fmt::Debug for Reconnect<C> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Reconnect").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    /// Connections are numbers.
    fn reconnect() -> Reconnect<u32> {
        let made = AtomicU32::new(0);
        Reconnect::new(0, move || Some(made.fetch_add(1, Ordering::Relaxed) + 1))
    }

    #[test]
    fn many_that_had_no_answer_replace_a_connection_once() {
        let reconnect = reconnect();
        reconnect.begin().answered();
        let (first, second, third) = (reconnect.begin(), reconnect.begin(), reconnect.begin());
        assert!(first.may_repeat());
        first.replace();
        second.replace();
        // What is heard of a former one says nothing of this one.
        third.answered();
        let now = reconnect.begin();
        assert_eq!((*now.connection(), now.may_repeat()), (1, false));
        now.answered();
        let now = reconnect.begin();
        assert_eq!((*now.connection(), now.may_repeat()), (1, true));
    }

    #[test]
    fn a_load_that_is_given_up_replaces_a_connection_unless_others_had_answers_meanwhile() {
        let reconnect = reconnect();
        let (given_up, other) = (reconnect.begin(), reconnect.begin());
        other.answered();
        drop(given_up);
        let given_up = reconnect.begin();
        assert_eq!(*given_up.connection(), 0);
        drop(given_up);
        assert_eq!(*reconnect.begin().connection(), 1);
    }

    #[cfg(feature = "http")]
    #[test]
    fn an_origin_that_fails_on_new_connections_is_not_asked_twice_until_it_answers() {
        let reconnect = reconnect();
        reconnect.begin().answered();
        reconnect.begin().failed();
        let next = reconnect.begin();
        assert!(!next.may_repeat());
        next.answered();
        assert!(reconnect.begin().may_repeat());
    }
}
