//! The one thing that threads share without a lock, in every order in which they can come.

use loom::sync::Arc;
use loom::thread;

mod atomic {
    pub(super) use loom::sync::atomic::{AtomicU8, Ordering};
}
#[expect(clippy::duplicate_mod, reason = "here with loom's atomics")]
#[path = "../hits.rs"]
mod hits;

#[test]
fn hits_at_once_are_counted_as_one_at_least_and_never_beyond_three() {
    loom::model(|| {
        let hits = Arc::new(hits::Hits::none());
        let threads: Vec<_> = (0..2)
            .map(|_| {
                let hits = hits.clone();
                thread::spawn(move || {
                    hits.add();
                    let seen = hits.get();
                    assert!((1..=3).contains(&seen), "{seen}");
                    hits.add();
                    assert!(hits.get() <= 3);
                })
            })
            .collect();
        threads.into_iter().for_each(|thread| thread.join().unwrap());
        let mut hits = Arc::try_unwrap(hits).unwrap();
        // loom lets a load that is not ordered after a store miss it, also where coherence would not.
        assert!((1..=3).contains(&hits.get()));
        hits.set(0);
        assert_eq!(hits.get(), 0);
    });
}
