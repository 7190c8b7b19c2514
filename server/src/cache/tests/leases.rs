//! Fill tokens: who holds one, and what becomes of late ones.

use super::*;

/// The token of a lease.
pub(super) async fn leased(cache: &Arc<Cache>) -> FillToken {
    let lease = ask(cache, Get { on_miss: OnMiss::Lease, ..get("k") }).await.unwrap();
    assert_eq!(lease.outcome, Outcome::Fill);
    lease.token
}

/// A value that is brought under a token.
pub(super) fn brought(token: FillToken, value: &'static str) -> Set {
    Set {
        key: get("k").key,
        fetched: Fetched::Value(value.into()),
        ttl: None,
        stamp: RingVersion(1),
        origin: Origin::Owner,
        under: RingVersion(1),
        token,
        condition: Condition::Always,
        by: None,
    }
}

pub(super) fn fill(cache: &Arc<Cache>, token: FillToken, value: &'static str) -> Outcome {
    match cache.set(brought(token, value), Instant::now()).unwrap() {
        Begun::Answered(answer) => answer.outcome,
        Begun::Waiting(_) => panic!("nothing is waited for"),
    }
}

const LIMIT: Duration = Duration::from_secs(5);

/// A group, a lease of a key there that is late, and the next one.
async fn late_and_next() -> (Arc<Cache>, FillToken, FillToken) {
    let cache = Arc::new(Cache::alone(Group::without_loader("g").load_timeout(LIMIT)));
    let first = leased(&cache).await;
    tokio::time::advance(LIMIT).await;
    cache.sweep(0.0);
    let second = leased(&cache).await;
    (cache, first, second)
}

#[tokio::test(start_paused = true)]
async fn a_late_value_is_stored_and_answers_whoever_waits_unless_the_key_was_written() {
    let (cache, first, second) = late_and_next().await;
    assert_ne!(first, second);
    let waiting = begin(&cache, &get("k"));
    assert_eq!(fill(&cache, first, "of the first"), Outcome::Done);
    assert_eq!(waiting.answer().await.unwrap().value, "of the first");
    assert_eq!(ask(&cache, get("k")).await.unwrap().value, "of the first");
    assert_eq!(fill(&cache, second, "of the second"), Outcome::Done, "it is no older");
    assert_eq!(fill(&cache, first, "again"), Outcome::Refused, "a token is good once");

    let _ = delete(&cache, &get("k").key);
    let late = leased(&cache).await;
    tokio::time::advance(LIMIT).await;
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

/// What two clients bring of which the first is late, in the other order.
#[tokio::test(start_paused = true)]
async fn a_late_value_takes_the_place_of_none_that_was_begun_later() {
    let (cache, first, second) = late_and_next().await;
    assert_eq!(fill(&cache, second, "of the second"), Outcome::Done);
    assert_eq!(fill(&cache, first, "of the first"), Outcome::Done, "the key has not been written");
    assert_eq!(ask(&cache, get("k")).await.unwrap().value, "of the second");
}

#[tokio::test(start_paused = true)]
async fn a_value_is_as_old_as_its_lease_and_lives_from_then_on() {
    let (limit, ttl) = (Duration::from_secs(60), Duration::from_secs(100));
    let group = || Group::without_loader("g").load_timeout(limit).ttl(ttl).ttl_jitter(0.0);
    let cache = Arc::new(Cache::alone(group().failover_ttl(Duration::from_secs(10))));
    for took in [Duration::from_secs(30), Duration::from_secs(90)] {
        let token = leased(&cache).await;
        tokio::time::advance(took).await;
        cache.sweep(0.0);
        assert_eq!(fill(&cache, token, "v"), Outcome::Done);
        let answer = ask(&cache, get("k")).await.unwrap();
        // Ages are kept less exactly.
        assert_eq!((answer.age.as_secs(), answer.ttl), (took.as_secs(), ttl - took));
        tokio::time::advance(ttl - took).await;
        assert_eq!(ask(&cache, get("k")).await.unwrap().outcome, Outcome::NotFound);
    }
    // In the place of a node that cannot be reached nobody is told of writes: not for longer than that.
    let failover = Get { on_miss: OnMiss::Lease, origin: Origin::Failover, ..get("k") };
    let token = ask(&cache, failover).await.unwrap().token;
    tokio::time::advance(Duration::from_secs(10)).await;
    assert_eq!(fill(&cache, token, "old"), Outcome::Done);
    let kept = cache.begin_alone(&Get { origin: Origin::Failover, ..get("k") }, Instant::now());
    assert!(kept.is_err() || kept.unwrap().answer().await.is_err());
}

#[tokio::test(start_paused = true)]
async fn a_late_value_answers_nobody_who_asks_under_a_later_ring() {
    let limit = Duration::from_secs(5);
    let cache = Arc::new(Cache::alone(Group::without_loader("g").load_timeout(limit)));
    let under = |version| Get {
        stamp: RingVersion(version),
        validity: Validity::since(RingVersion(version)),
        on_miss: OnMiss::Lease,
        ..get("k")
    };
    let late = ask(&cache, under(5)).await.unwrap().token;
    tokio::time::advance(limit).await;
    cache.sweep(0.0);
    // The key has had another owner meanwhile, where it was written.
    let token = ask(&cache, under(7)).await.unwrap().token;
    let waiting = begin(&cache, &under(7));
    assert_eq!(fill(&cache, late, "old"), Outcome::Done);
    assert_eq!(fill(&cache, token, "new"), Outcome::Done);
    assert_eq!(waiting.answer().await.unwrap().value, "new");
    assert_eq!(ask(&cache, under(7)).await.unwrap().value, "new");
}

#[tokio::test(start_paused = true)]
async fn leases_that_have_ended_leave_nothing_behind() {
    let cache = Arc::new(Cache::alone(Group::without_loader("g").load_timeout(Duration::from_secs(3600))));
    for n in 0..300 {
        let token = leased(&cache).await;
        if n % 2 == 0 {
            cache.void(token);
        } else {
            assert_eq!(fill(&cache, token, "v"), Outcome::Done);
            let _ = delete(&cache, &get("k").key);
        }
    }
    assert!(cache.flights.holds_no_leases());
}
