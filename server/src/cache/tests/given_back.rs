//! What becomes of those who wait for a token's value where that comes too late, or the token is given back.

use tokio::time::timeout;

use super::leases::{brought, fill, leased};
use super::*;

/// What a get comes to, which would wait for ever where nobody lands its flight.
async fn answered(begun: Begun) -> Result<Answer, Failure> {
    timeout(Duration::from_secs(24 * 3600), begun.answer()).await.expect("somebody lands its flight")
}

/// A value is as old as its lease: one that is past its time by now is nobody's but its caller's.
#[tokio::test(start_paused = true)]
async fn a_value_that_comes_after_its_own_time_answers_nobody_who_waits() {
    let limit = Duration::from_secs(60);
    for origin in [Origin::Owner, Origin::Failover] {
        let group =
            Group::without_loader("g").load_timeout(limit).ttl(Duration::from_secs(10)).ttl_jitter(0.0);
        let cache = Arc::new(Cache::alone(group));
        let lease = Get { on_miss: OnMiss::Lease, origin, ..get("k") };
        let first = ask(&cache, lease.clone()).await.unwrap().token;
        tokio::time::advance(limit).await;
        cache.sweep(0.0);
        let second = ask(&cache, lease.clone()).await.unwrap().token;
        let waiting = begin(&cache, &lease);
        assert_eq!(fill(&cache, first, "old"), Outcome::Done);
        assert_eq!(fill(&cache, second, "new"), Outcome::Done);
        assert_eq!(answered(waiting).await.unwrap().value, "new", "{origin:?}");
        assert!(cache.flights.holds_no_leases());
    }
}

/// The node has lost its lease in the registry in between, and shows nothing from before (decision 70).
#[tokio::test(start_paused = true)]
async fn a_late_value_answers_nobody_who_may_be_shown_nothing_of_its_time() {
    let limit = Duration::from_secs(5);
    let cache = Arc::new(Cache::alone(Group::without_loader("g").load_timeout(limit)));
    let late = leased(&cache).await;
    tokio::time::advance(limit).await;
    cache.sweep(0.0);
    let since = |seconds| {
        let loaded_since = Some(Instant::now() + Duration::from_secs(seconds));
        let validity = Validity { owned_since: RingVersion(1), loaded_since };
        Get { validity, on_miss: OnMiss::Lease, ..get("k") }
    };
    let returned = since(0);
    let token = ask(&cache, returned.clone()).await.unwrap().token;
    let waiting = begin(&cache, &returned);
    assert_eq!(fill(&cache, late, "old"), Outcome::Done);
    assert_eq!(fill(&cache, token, "new"), Outcome::Done);
    assert_eq!(answered(waiting).await.unwrap().value, "new");
}

/// A group with a loader, or without one; a lease of a key there, and who waits for it.
async fn given(has_loader: bool) -> (Arc<Cache>, FillToken, Begun) {
    let cache = match has_loader {
        true => fixture(|group| group).0,
        false => Arc::new(Cache::alone(Group::without_loader("g"))),
    };
    let token = leased(&cache).await;
    let waiting = begin(&cache, &get("k"));
    (cache, token, waiting)
}

#[tokio::test(start_paused = true)]
async fn a_token_that_is_given_back_with_a_hit_keeps_nobody_waiting() {
    for has_loader in [true, false] {
        for on_miss in [OnMiss::Load, OnMiss::Lease, OnMiss::Peek] {
            let (cache, token, waiting) = given(has_loader).await;
            let _ = delete(&cache, &get("k").key);
            let other = leased(&cache).await;
            assert_eq!(fill(&cache, other, "set"), Outcome::Done);
            let back = ask(&cache, Get { token, on_miss, ..get("k") }).await.unwrap();
            assert_eq!((back.outcome, back.value), (Outcome::Hit, "set".to_owned().into_bytes().into()));
            let begun = Instant::now();
            assert_eq!(answered(waiting).await.unwrap().value, "set");
            assert_eq!(begun.elapsed(), Duration::ZERO, "{has_loader} {on_miss:?}");
            assert!(cache.flights.holds_no_leases());
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_token_that_is_given_back_without_room_or_right_keeps_nobody_waiting() {
    let (cache, token, waiting) = given(true).await;
    let account = crate::budget::Budgets::new().account(&"".into());
    let _beside = account.operations.try_take(account.operations.most()).unwrap();
    let refused = cache.begin(&Get { token, ..get("k") }, &account, Instant::now()).unwrap_err();
    assert_eq!(refused.code, ErrorCode::Overloaded);
    let begun = Instant::now();
    assert_eq!(answered(waiting).await.unwrap().value, "1", "it loads by itself");
    assert_eq!(begun.elapsed(), Duration::ZERO);

    let (cache, token, waiting) = given(true).await;
    let denied = Failure::new(ErrorCode::PermissionDenied, "no");
    let back = begin(&cache, &Get { token, may_fill: Err(denied), ..get("k") });
    assert_eq!(answered(waiting).await.unwrap().value, answered(back).await.unwrap().value);
    assert!(cache.flights.holds_no_leases());
}

#[tokio::test(start_paused = true)]
async fn who_has_stopped_waiting_for_a_load_holds_nothing() {
    let (cache, loads, gate) = fixture(|group| group.load_timeout(Duration::from_secs(60)));
    let account = crate::budget::Budgets::new().account(&"".into());
    let wait = |key: &str| {
        let deadline = Some(Instant::now() + Duration::from_secs(1));
        let begun = cache.begin(&Get { deadline, ..get(key) }, &account, Instant::now()).unwrap();
        cache.launch();
        tokio::spawn(begun.answer())
    };
    let waiting: Vec<_> = (0..8).map(|n| wait(&format!("gated-{n}"))).collect();
    for gone in waiting {
        assert_eq!(gone.await.unwrap().unwrap_err().code, ErrorCode::DeadlinePassed);
    }
    assert_eq!(account.values.used(), 0, "the loads go on, and their callers have gone");
    assert_eq!(wait("k").await.unwrap().unwrap().outcome, Outcome::Loaded);
    // The loads that were begun are for who comes next.
    let next = begin(&cache, &get("gated-0"));
    gate.notify_waiters();
    assert_eq!(answered(next).await.unwrap().outcome, Outcome::Coalesced);
    assert_eq!(loads.load(Ordering::SeqCst), 9);
}

#[tokio::test(start_paused = true)]
async fn a_value_that_is_not_to_be_kept_answers_those_who_wait_and_is_gone() {
    let group = Group::without_loader("g").stale_if_error(Duration::from_secs(3600));
    let cache = Arc::new(Cache::alone(group));
    let token = leased(&cache).await;
    let waiting = begin(&cache, &Get { on_miss: OnMiss::Lease, ..get("k") });
    // As the client sends zero.
    let set = Set { ttl: Some(Duration::from_millis(1)), ..brought(token, "once") };
    assert!(
        matches!(cache.set(set, Instant::now()).unwrap(), Begun::Answered(it) if it.outcome == Outcome::Done)
    );
    assert_eq!(answered(waiting).await.unwrap().value, "once");
    assert_eq!(cache.entries().len(), 0);
}
