//! A fill token that this client was given: given back where nobody brings a value for it, because the caller
//! was cancelled, panicked, or had stopped waiting when the token came.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};

/// The duty to bring a value, or to give the token back.
pub(crate) struct Lease {
    release: Box<dyn Fn() + Send + Sync>,
    is_over: AtomicBool,
}

impl Lease {
    /// A lease that is given back by `release` when it is dropped.
    pub(crate) fn new(release: impl Fn() + Send + Sync + 'static) -> Self {
        Lease { release: Box::new(release), is_over: AtomicBool::new(false) }
    }

    /// The token has been used: there is nothing to give back.
    pub(crate) fn end(&self) {
        self.is_over.store(true, Ordering::Relaxed);
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if !*self.is_over.get_mut() {
            (self.release)();
        }
    }
}

impl fmt::Debug for Lease {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Lease")
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::AtomicUsize;

    use super::*;

    #[test]
    fn a_lease_is_given_back_once_unless_it_was_used() {
        let released = Arc::new(AtomicUsize::new(0));
        let lease = || {
            let released = released.clone();
            Arc::new(Lease::new(move || {
                released.fetch_add(1, Ordering::Relaxed);
            }))
        };
        let used = lease();
        used.end();
        drop(used);
        assert_eq!(released.load(Ordering::Relaxed), 0);
        let given = lease();
        drop((given.clone(), given));
        assert_eq!(released.load(Ordering::Relaxed), 1);
    }
}
