//! Fill tokens: who holds one, and what becomes of late ones.

use super::*;

/// The token of a lease.
pub(super) async fn leased(cache: &Arc<Cache>) -> FillToken {
    let lease = ask(cache, Get { on_miss: OnMiss::Lease, ..get("k") }).await.unwrap();
    assert_eq!(lease.outcome, Outcome::Fill);
    lease.token
}

pub(super) fn fill(cache: &Arc<Cache>, token: FillToken, value: &'static str) -> Outcome {
    let set = Set {
        key: get("k").key,
        fetched: Fetched::Value(value.into()),
        ttl: None,
        stamp: RingVersion(1),
        origin: Origin::Owner,
        under: RingVersion(1),
        token,
        condition: Condition::Always,
        by: None,
    };
    match cache.set(set, Instant::now()).unwrap() {
        Begun::Answered(answer) => answer.outcome,
        Begun::Waiting(_) => panic!("nothing is waited for"),
    }
}

#[tokio::test(start_paused = true)]
async fn a_late_value_is_stored_and_answers_whoever_waits_unless_the_key_was_written() {
    let limit = Duration::from_secs(5);
    let cache = Arc::new(Cache::alone(Group::without_loader("g").load_timeout(limit)));
    let first = leased(&cache).await;
    tokio::time::advance(limit).await;
    cache.sweep(0.0);
    let second = leased(&cache).await;
    assert_ne!(first, second);
    let waiting = begin(&cache, &get("k"));
    assert_eq!(fill(&cache, first, "of the first"), Outcome::Done);
    assert_eq!(waiting.answer().await.unwrap().value, "of the first");
    assert_eq!(ask(&cache, get("k")).await.unwrap().value, "of the first");
    assert_eq!(fill(&cache, second, "of the second"), Outcome::Done, "it is no older");
    assert_eq!(fill(&cache, first, "again"), Outcome::Refused, "a token is good once");

    let _ = delete(&cache, &get("k").key);
    let late = leased(&cache).await;
    tokio::time::advance(limit).await;
    cache.sweep(0.0);
    let _ = delete(&cache, &get("k").key);
    assert_eq!(fill(&cache, late, "old"), Outcome::Refused);
    assert_eq!(ask(&cache, get("k")).await.unwrap().outcome, Outcome::NotFound);
}

#[tokio::test(start_paused = true)]
async fn who_has_stopped_waiting_is_given_no_lease() {
    let cache = Arc::new(Cache::alone(Group::without_loader("g")));
    let token = leased(&cache).await;
    let lease = |seconds| {
        let deadline = Some(Instant::now() + Duration::from_secs(seconds));
        begin(&cache, &Get { on_miss: OnMiss::Lease, deadline, ..get("k") })
    };
    let (gone, patient) = (lease(1), lease(100));
    tokio::time::advance(Duration::from_secs(2)).await;
    let _ = cache.release(token);
    assert_eq!(gone.answer().await.unwrap_err().code, ErrorCode::DeadlinePassed);
    assert_eq!(patient.answer().await.unwrap().outcome, Outcome::Fill);
}

#[tokio::test(start_paused = true)]
async fn leases_that_are_written_away_are_bounded_and_do_not_stay() {
    let cache = Arc::new(Cache::alone(Group::without_loader("g").load_timeout(Duration::from_secs(5))));
    let account = crate::budget::Budgets::new().account(&"".into());
    let lease = Get { on_miss: OnMiss::Lease, ..get("k") };
    let mut leases = 0;
    while cache.begin(&lease, &account, Instant::now()).is_ok() {
        leases += 1;
        let _ = delete(&cache, &lease.key);
    }
    assert_eq!(leases, crate::budget::Budgets::CONNECTION_OPERATIONS / (1 + OPERATION_BYTES));
    tokio::time::advance(Duration::from_secs(5)).await;
    cache.sweep(0.0);
    assert_eq!(account.operations.used(), 0);
}
