//! Random scenarios under the history checker: a short sweep of what `cargo xtask history` does for long. And
//! the proof that the checker sees: with each of the things that keep answers right turned off, it finds
//! answers that are not.

use peanut_tests::history::{Fault, Scenario};

fn scenario(seed: u64) -> Scenario {
    Scenario::new(crate::SERVER, env!("CARGO_BIN_EXE_history"), seed)
}

#[tokio::test(flavor = "multi_thread")]
async fn no_answer_is_older_than_the_promise_allows() {
    for seed in 1..=6 {
        let outcome = scenario(seed).run().await;
        assert!(
            outcome.violations.is_empty(),
            "seed {seed}: {:?}: {:#?}",
            outcome.faults,
            outcome.violations
        );
    }
}

/// Where no node dies, one load for each write and each owner is all that a key costs.
#[tokio::test(flavor = "multi_thread")]
async fn a_key_is_loaded_once_for_each_write_and_each_ring() {
    for faults in [vec![Fault::Nothing], vec![Fault::Join, Fault::Drain]] {
        let outcome = Scenario { faults, ..scenario(3) }.run().await;
        assert!(outcome.violations.is_empty(), "{:#?}", outcome.violations);
        assert!(outcome.loaded_too_often.is_empty(), "{:?}: {:?}", outcome.faults, outcome.loaded_too_often);
        // Those of most keys that are read for the first time, at least.
        assert!(outcome.loads >= 50, "{outcome:?}");
    }
}

/// Runs scenarios until one has a violation; gives how many it took.
async fn until_caught(of_seed: impl Fn(u64) -> Scenario) -> Option<u64> {
    for seed in 1..=12 {
        let outcome = of_seed(seed).run().await;
        println!("{:?}: {} violations", outcome.faults, outcome.violations.len());
        if !outcome.violations.is_empty() {
            return Some(seed);
        }
    }
    None
}

#[tokio::test(flavor = "multi_thread")]
async fn without_what_is_left_in_the_registry_it_sees_what_a_node_slept_through() {
    let of_seed = |seed| Scenario {
        faults: vec![Fault::Sleep, Fault::Kill, Fault::CutNode],
        is_strict: Some(true),
        sabotage: Some("hints"),
        ..scenario(seed)
    };
    assert!(until_caught(of_seed).await.is_some());
}

#[tokio::test(flavor = "multi_thread")]
async fn without_poisoned_loads_it_sees_what_was_loaded_before_a_write() {
    let of_seed = |seed| {
        let sabotage = Some("poison");
        Scenario { sabotage, is_strict: Some(true), ..scenario(seed) }
    };
    assert!(until_caught(of_seed).await.is_some());
}
