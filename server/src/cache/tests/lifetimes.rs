//! How long entries live.

use super::*;

#[tokio::test(start_paused = true)]
async fn not_found_is_remembered_for_the_negative_ttl() {
    let (cache, loads, _) = fixture(|g| g.negative_ttl(Duration::from_secs(3)));
    for _ in 0..3 {
        assert_eq!(ask(&cache, get("missing")).await.unwrap().outcome, Outcome::NotFound);
    }
    assert_eq!(loads.load(Ordering::SeqCst), 1);
    tokio::time::advance(Duration::from_secs(3)).await;
    ask(&cache, get("missing")).await.unwrap();
    assert_eq!(loads.load(Ordering::SeqCst), 2);
}

#[tokio::test(start_paused = true)]
async fn what_is_loaded_in_anothers_place_lives_for_the_failover_ttl() {
    let (cache, _, _) = fixture(|g| g.failover_ttl(Duration::from_secs(7)));
    let failover = Get { origin: Origin::Failover, ..get("k") };
    assert_eq!(ask(&cache, failover.clone()).await.unwrap().ttl.as_secs(), 7);
    assert_eq!(ask(&cache, failover).await.unwrap().outcome, Outcome::Hit);
    assert_eq!(ask(&cache, get("k")).await.unwrap().outcome, Outcome::Loaded, "as an owner it loads anew");
    let failover = Get { origin: Origin::Failover, ..get("k") };
    assert_eq!(ask(&cache, failover).await.unwrap().outcome, Outcome::Hit, "and neither replaces the other");
    assert_eq!(ask(&cache, get("k")).await.unwrap().outcome, Outcome::Hit);
}
