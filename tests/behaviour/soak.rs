//! Two minutes of what `cargo xtask soak` does for an hour.

use std::path::Path;
use std::time::Duration;

use peanut_tests::soak;

#[tokio::test(flavor = "multi_thread")]
async fn nothing_grows_under_mixed_work_and_faults() {
    let outcome = soak::run(Path::new(crate::SERVER), Duration::from_secs(120)).await;
    let complaints = outcome.complaints();
    assert!(complaints.is_empty(), "{complaints:?}; at rest {:?}", outcome.at_rest);
    assert!(outcome.calls.0 > 1_000, "{:?} calls", outcome.calls);
}
