//! Counts that threads do not share: each thread counts in a line of the processor's cache of its own, as a
//! rule.

use std::sync::atomic::{AtomicUsize, Ordering};

const STRIPES: usize = 8;

/// Something for each of some threads.
#[derive(Debug, Default)]
pub struct Striped<T>([Stripe<T>; STRIPES]);

#[derive(Debug, Default)]
#[repr(align(128))]
struct Stripe<T>(T);

impl<T> Striped<T> {
    /// That of this thread.
    pub fn mine(&self) -> &T {
        static THREADS: AtomicUsize = AtomicUsize::new(0);
        thread_local! {
            static STRIPE: usize = THREADS.fetch_add(1, Ordering::Relaxed) % STRIPES;
        }
        &self.0[STRIPE.with(|stripe| *stripe)].0
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = &T> {
        self.0.iter().map(|stripe| &stripe.0)
    }
}
