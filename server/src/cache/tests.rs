//! A group at work: hits, shared loads, and loads that go wrong, on a paused clock.

use std::sync::atomic::{AtomicUsize, Ordering};

use peanut_proto::limits::MAX_VALUE_BYTES;
use tokio::sync::Notify;

use super::*;
use crate::loader::{Loaded, LoaderError, loader_fn};

fn get(key: &str) -> Get {
    Get {
        key: Bytes::copy_from_slice(key.as_bytes()),
        on_miss: OnMiss::Load,
        ring_version: 1,
        owned_since: 1,
        origin: Origin::Owner,
        token: 0,
        traceparent: Bytes::new(),
        may_fill: Ok(()),
        deadline: None,
    }
}

/// Begins a get, and whatever load it needs, without waiting for it.
fn begin(cache: &Arc<Cache>, get: &Get) -> Begun {
    let begun = cache.begin(get, Instant::now()).unwrap();
    cache.launch();
    begun
}

async fn ask(cache: &Arc<Cache>, get: Get) -> Result<Answer, Failure> {
    cache.begin(&get, Instant::now())?.answer().await
}

/// A group whose loader counts its calls and behaves as the key's first letter says: `m`issing, `e`rror,
/// `p`anic, `b`locked for a minute; a `g`ated load waits for the gate.
fn fixture(adjust: impl FnOnce(Group) -> Group) -> (Arc<Cache>, Arc<AtomicUsize>, Arc<Notify>) {
    let loads = Arc::new(AtomicUsize::new(0));
    let gate = Arc::new(Notify::new());
    let loader = loader_fn({
        let (loads, gate) = (loads.clone(), gate.clone());
        move |key: Bytes| {
            let (loads, gate) = (loads.clone(), gate.clone());
            async move {
                let count = loads.fetch_add(1, Ordering::SeqCst) + 1;
                match key[0] {
                    b'm' => return Ok(Loaded::NotFound),
                    b'e' => return Err("no such table".into()),
                    b'p' => panic!("loader bug"),
                    b'b' => sleep(Duration::from_secs(60)).await,
                    b'g' => gate.notified().await,
                    b'z' => return Ok(Loaded::found_for("not kept", Duration::ZERO)),
                    _ => {}
                }
                Ok::<_, LoaderError>(Loaded::found(format!("{count}")))
            }
        }
    });
    let group = adjust(Group::new("g", loader).ttl_jitter(0.0));
    (Arc::new(Cache::new(group)), loads, gate)
}

#[tokio::test(start_paused = true)]
async fn many_callers_share_one_load() {
    let (cache, loads, gate) = fixture(|g| g);
    let callers: Vec<_> = (0..100).map(|_| begin(&cache, &get("gated"))).collect();
    let mut answers = JoinSet::new();
    for caller in callers {
        answers.spawn(caller.answer());
    }
    tokio::task::yield_now().await;
    gate.notify_one();
    let answers: Vec<_> = answers.join_all().await.into_iter().map(Result::unwrap).collect();
    assert!(answers.iter().all(|answer| answer.value == "1"));
    assert_eq!(answers.iter().filter(|answer| answer.outcome == Outcome::Loaded).count(), 1);
    assert_eq!(answers.iter().filter(|answer| answer.outcome == Outcome::Coalesced).count(), 99);
    assert_eq!(ask(&cache, get("gated")).await.unwrap().outcome, Outcome::Hit);
    assert_eq!(loads.load(Ordering::SeqCst), 1);
}

#[tokio::test(start_paused = true)]
async fn a_caller_that_leaves_cancels_nothing() {
    let (cache, loads, gate) = fixture(|g| g);
    let leader = begin(&cache, &get("gated"));
    let waiter = begin(&cache, &get("gated"));
    drop(leader);
    tokio::task::yield_now().await;
    gate.notify_one();
    assert_eq!(waiter.answer().await.unwrap().value, "1");
    assert_eq!(loads.load(Ordering::SeqCst), 1);
}

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
async fn an_error_reaches_all_and_is_not_remembered() {
    let (cache, loads, _) = fixture(|g| g);
    let (a, b) = tokio::join!(ask(&cache, get("e")), ask(&cache, get("e")));
    let failure = a.unwrap_err();
    assert_eq!((failure.code, &*failure.message), (ErrorCode::LoaderFailed, "no such table"));
    assert_eq!(b.unwrap_err(), failure);
    assert_eq!(loads.load(Ordering::SeqCst), 1);
    ask(&cache, get("e")).await.unwrap_err();
    assert_eq!(loads.load(Ordering::SeqCst), 2);
}

#[tokio::test(start_paused = true)]
async fn a_panic_frees_the_key() {
    let (cache, loads, _) = fixture(|g| g);
    for load in 1..=2 {
        let failure = ask(&cache, get("panic")).await.unwrap_err();
        assert_eq!(
            (failure.code, &*failure.message),
            (ErrorCode::LoaderFailed, "the loader panicked: loader bug")
        );
        assert_eq!(loads.load(Ordering::SeqCst), load);
    }
    assert_eq!(cache.flights.in_progress(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_load_that_outlives_its_time_frees_the_key() {
    let (cache, loads, _) = fixture(|g| g.load_timeout(Duration::from_secs(2)));
    let begun = Instant::now();
    let (a, b) = tokio::join!(ask(&cache, get("blocked")), ask(&cache, get("blocked")));
    assert_eq!(begun.elapsed().as_secs(), 2);
    assert_eq!(a.unwrap_err().code, ErrorCode::LoadTimedOut);
    assert_eq!(b.unwrap_err().code, ErrorCode::LoadTimedOut);
    assert_eq!((loads.load(Ordering::SeqCst), cache.flights.in_progress()), (1, 0));
}

#[tokio::test(start_paused = true)]
async fn loads_are_bounded_and_so_is_the_queue_for_them() {
    let (cache, loads, _) = fixture(|g| g.max_loads(2).load_timeout(Duration::from_secs(100)));
    let limit = 2 * (1 + WAITING_PER_LOAD);
    let mut waiting = Vec::new();
    for n in 0..limit {
        waiting.push(begin(&cache, &get(&format!("b{n}"))));
    }
    let refused = cache.begin(&get("one more"), Instant::now()).unwrap_err();
    assert_eq!(refused.code, ErrorCode::Overloaded);
    sleep(Duration::from_secs(1)).await;
    assert_eq!(loads.load(Ordering::SeqCst), 2);
    sleep(Duration::from_secs(60)).await;
    assert_eq!(loads.load(Ordering::SeqCst), 4);
    let last = waiting.pop().unwrap().answer().await.unwrap_err();
    assert_eq!(last.code, ErrorCode::Overloaded, "its loader was never asked");
}

#[tokio::test(start_paused = true)]
async fn a_poisoned_flight_answers_those_who_wait_and_stores_nothing() {
    let (cache, loads, gate) = fixture(|g| g);
    let before = begin(&cache, &get("gated"));
    tokio::task::yield_now().await;
    let _ = cache.delete(&get("gated").key).unwrap();
    let after = begin(&cache, &get("gated"));
    tokio::task::yield_now().await;
    gate.notify_waiters();
    assert_eq!(before.answer().await.unwrap().value, "1");
    assert_eq!(after.answer().await.unwrap().value, "2");
    assert_eq!(ask(&cache, get("gated")).await.unwrap().value, "2");
    assert_eq!(loads.load(Ordering::SeqCst), 2);
}

#[tokio::test(start_paused = true)]
async fn a_flight_from_before_the_node_owned_the_key_is_not_joined() {
    let (cache, _, gate) = fixture(|g| g);
    let old = begin(&cache, &get("gated"));
    let new = begin(&cache, &Get { ring_version: 5, owned_since: 5, ..get("gated") });
    tokio::task::yield_now().await;
    gate.notify_waiters();
    assert_eq!(
        (old.answer().await.unwrap().value, new.answer().await.unwrap().value),
        ("1".into(), "2".into())
    );
    let seen = ask(&cache, Get { ring_version: 5, owned_since: 5, ..get("gated") }).await.unwrap();
    assert_eq!((seen.outcome, &*seen.value), (Outcome::Hit, &b"2"[..]));
}

#[tokio::test(start_paused = true)]
async fn what_is_loaded_in_anothers_place_lives_for_the_failover_ttl() {
    let (cache, _, _) = fixture(|g| g.failover_ttl(Duration::from_secs(7)));
    let failover = Get { origin: Origin::Failover, ..get("k") };
    assert_eq!(ask(&cache, failover.clone()).await.unwrap().ttl.as_secs(), 7);
    assert_eq!(ask(&cache, failover).await.unwrap().outcome, Outcome::Hit);
    assert_eq!(ask(&cache, get("k")).await.unwrap().outcome, Outcome::Loaded, "as an owner it loads anew");
}

#[tokio::test(start_paused = true)]
async fn peeking_never_loads_and_zero_ttl_is_never_kept() {
    let (cache, loads, _) = fixture(|g| g);
    let peek = Get { on_miss: OnMiss::Peek, ..get("k") };
    assert_eq!(ask(&cache, peek).await.unwrap().outcome, Outcome::Miss);
    for _ in 0..2 {
        assert_eq!(ask(&cache, get("zero")).await.unwrap().outcome, Outcome::Loaded);
    }
    assert_eq!(loads.load(Ordering::SeqCst), 2);
}

#[tokio::test]
async fn keys_and_values_over_their_limits_are_refused_by_name() {
    let group = Group::new("g", loader_fn(|_| async { Ok(Loaded::found(vec![0; MAX_VALUE_BYTES + 1])) }));
    let cache = Arc::new(Cache::new(group));
    let failure = ask(&cache, get("big")).await.unwrap_err();
    assert_eq!(failure.code, ErrorCode::ValueTooLarge);
    assert!(failure.message.contains("8388608"), "{}", failure.message);
    let failure = ask(&cache, get(&"k".repeat(1025))).await.unwrap_err();
    assert_eq!(failure.code, ErrorCode::InvalidRequest);
    assert!(failure.message.contains("1024"), "{}", failure.message);
    assert_eq!(ask(&cache, get("")).await.unwrap_err().code, ErrorCode::InvalidRequest);
}

#[tokio::test(start_paused = true)]
async fn a_clear_is_done_once_whoever_tells_of_it_first_and_none_is_skipped_for_what_a_client_says() {
    let (cache, loads, _gate) = fixture(|group| group);
    let loaded = async || {
        ask(&cache, get("k")).await.unwrap();
        loads.load(Ordering::SeqCst)
    };
    assert_eq!(loaded().await, 1);
    let _ = cache.clear(7).answer().await;
    assert_eq!(loaded().await, 2);
    let _ = cache.clear_to(7).answer().await;
    assert_eq!((loaded().await, cache.generation()), (2, 7), "what came since stays");
    let _ = cache.clear_to(8).answer().await;
    assert_eq!(loaded().await, 3);
    let _ = cache.clear(8).answer().await;
    assert_eq!(loaded().await, 3);
    for foretold in [u64::MAX, u64::from(u32::MAX), 100] {
        let _ = cache.clear(foretold).answer().await;
        let before = loaded().await;
        let _ = cache.clear_to(cache.generation() + 1).answer().await;
        assert_eq!(loaded().await, before + 1, "{foretold}");
    }
    assert_eq!(cache.generation(), 11);
}
