//! A group at work: hits, shared loads, and loads that go wrong, on a paused clock.

use std::sync::atomic::{AtomicUsize, Ordering};

use peanut_proto::limits::MAX_VALUE_BYTES;
use tokio::sync::Notify;
use tokio::time::sleep;

use super::*;
use crate::loader::{Loaded, LoaderError, loader_fn};
use peanut_proto::numbers::Generation;

fn get(key: &str) -> Get {
    Get {
        key: Bytes::copy_from_slice(key.as_bytes()),
        on_miss: OnMiss::Load,
        stamp: RingVersion(1),
        validity: Validity::since(RingVersion(1)),
        origin: Origin::Owner,
        token: FillToken::NONE,
        traceparent: Bytes::new(),
        may_fill: Ok(()),
        deadline: None,
        may_hand_over: false,
    }
}

/// Deletes a key.
fn delete(cache: &Arc<Cache>, key: &Bytes) -> Begun {
    let (under, stamp) = (RingVersion(1), RingVersion(1));
    let delete = Delete { key, under, stamp, then_set: None, sequence: 0, by: None };
    cache.delete(delete, Instant::now()).unwrap()
}

/// Begins a get, and whatever load it needs, without waiting for it.
fn begin(cache: &Arc<Cache>, get: &Get) -> Begun {
    let begun = cache.begin_alone(get, Instant::now()).unwrap();
    cache.launch();
    begun
}

async fn ask(cache: &Arc<Cache>, get: Get) -> Result<Answer, Failure> {
    cache.begin_alone(&get, Instant::now())?.answer().await
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
                    b'm' => return Ok(Loaded::not_found()),
                    b'e' => return Err("no such table".into()),
                    b'p' => panic!("loader bug"),
                    b'b' => sleep(Duration::from_secs(60)).await,
                    b'g' => gate.notified().await,
                    b'z' => return Ok(Loaded::found("not kept").ttl(Duration::ZERO)),
                    _ => {}
                }
                Ok::<_, LoaderError>(Loaded::found(format!("{count}")))
            }
        }
    });
    let group = adjust(Group::new("g", loader).ttl_jitter(0.0));
    (Arc::new(Cache::alone(group)), loads, gate)
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
async fn loads_are_bounded_and_what_would_come_too_late_is_refused_at_once() {
    let (cache, loads, _) = fixture(|g| g.max_loads(2).load_timeout(Duration::from_secs(100)));
    let mut waiting: Vec<_> = (0..100).map(|n| begin(&cache, &get(&format!("b{n}")))).collect();
    sleep(Duration::from_secs(1)).await;
    assert_eq!(loads.load(Ordering::SeqCst), 2);
    sleep(Duration::from_secs(60)).await;
    assert_eq!(loads.load(Ordering::SeqCst), 4);
    // By now it is known how long loads take.
    let refused = cache.begin_alone(&get("one more"), Instant::now()).unwrap_err();
    assert_eq!(refused.code, ErrorCode::Overloaded);
    assert_eq!(cache.flights.in_progress(), 98, "it has left nothing behind");
    let last = waiting.pop().unwrap().answer().await.unwrap_err();
    assert_eq!(last.code, ErrorCode::Overloaded, "its loader was never asked");
    assert_eq!(ask(&cache, get("at last")).await.unwrap().outcome, Outcome::Loaded, "the queue is empty");
}

#[tokio::test(start_paused = true)]
async fn a_caller_with_many_loads_does_not_keep_another_waiting() {
    let (cache, loads, _) = fixture(|g| g.max_loads(1).load_timeout(Duration::from_secs(1000)));
    let budgets = crate::budget::Budgets::new();
    let (greedy, other) = (budgets.account(&"".into()), budgets.account(&"".into()));
    let _many: Vec<_> =
        (0..1000).map(|n| cache.begin(&get(&format!("b{n}")), &greedy, Instant::now()).unwrap()).collect();
    cache.launch();
    sleep(Duration::from_secs(1)).await;
    let one = cache.begin(&get("one"), &other, Instant::now()).unwrap();
    assert_eq!(one.answer().await.unwrap().value, "3", "after the one that was running, and one more");
    assert!(loads.load(Ordering::SeqCst) <= 4);
}

#[tokio::test(start_paused = true)]
async fn what_waits_is_bounded_by_bytes_for_each_connection() {
    let (cache, _, gate) = fixture(|g| g.max_loads(100_000));
    let budgets = crate::budget::Budgets::new();
    let (greedy, other) = (budgets.account(&"".into()), budgets.account(&"".into()));
    let key = |n: usize| format!("g{n:0>1000}");
    let mut waiting = Vec::new();
    let refused = loop {
        match cache.begin(&get(&key(waiting.len())), &greedy, Instant::now()) {
            Ok(begun) => waiting.push(begun),
            Err(failure) => break failure,
        }
    };
    assert_eq!(refused.code, ErrorCode::Overloaded);
    let most = crate::budget::Budgets::CONNECTION_OPERATIONS / (1001 + OPERATION_BYTES);
    assert_eq!(waiting.len(), most);
    assert!(cache.begin(&get(&key(most + 1)), &other, Instant::now()).is_ok(), "nobody else suffers");
    drop(waiting);
    assert!(greedy.operations.used() > 0, "what it has had loaded is still to be done");
    gate.notify_waiters();
}

#[tokio::test(start_paused = true)]
async fn what_waits_is_bounded_by_bytes_for_each_token_however_many_connections_show_it() {
    let (cache, _, gate) = fixture(|g| g.max_loads(1_000_000));
    let budgets = crate::budget::Budgets::new();
    let (greedy, other) = ("greedy".into(), "other".into());
    let key = |n: usize| format!("g{n:0>1000}");
    // Twice as many connections as there is room for.
    let connections =
        2 * crate::budget::Budgets::TOKEN_OPERATIONS / crate::budget::Budgets::CONNECTION_OPERATIONS;
    let mut waiting = Vec::new();
    for _ in 0..connections {
        let account = budgets.account(&greedy);
        while let Ok(begun) = cache.begin(&get(&key(waiting.len())), &account, Instant::now()) {
            waiting.push(begun);
        }
    }
    let most = crate::budget::Budgets::TOKEN_OPERATIONS / (1001 + OPERATION_BYTES);
    // The last of them have less than others, since none has more than is left.
    assert!((most / 2..=most).contains(&waiting.len()), "{} of {most}", waiting.len());
    assert!(
        cache.begin(&get("one"), &budgets.account(&other), Instant::now()).is_ok(),
        "no other token suffers"
    );
    drop(waiting);
    gate.notify_waiters();
}

#[tokio::test(start_paused = true)]
async fn large_values_are_loaded_and_waited_for_a_few_at_a_time() {
    let (running, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let loader = loader_fn({
        let (running, most) = (running.clone(), most.clone());
        move |_| {
            let (running, most) = (running.clone(), most.clone());
            async move {
                most.fetch_max(running.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                sleep(Duration::from_millis(10)).await;
                running.fetch_sub(1, Ordering::SeqCst);
                Ok(Loaded::found(vec![0; MAX_VALUE_BYTES]))
            }
        }
    });
    let group = Group::new("g", loader).max_loads(1000).load_timeout(Duration::from_secs(60));
    let cache = Arc::new(Cache::alone(group));
    let account = crate::budget::Budgets::new().account(&"".into());
    let mut callers = JoinSet::new();
    for n in 0..100 {
        let (cache, account) = (cache.clone(), account.clone());
        callers.spawn(async move {
            let begun = cache.begin(&get(&format!("{n}")), &account, Instant::now())?;
            begun.answer().await
        });
    }
    while let Some(answer) = callers.join_next().await {
        assert_eq!(answer.unwrap().unwrap().value.len(), MAX_VALUE_BYTES);
    }
    let bound = crate::budget::Budgets::LOADING / 2 / MAX_VALUE_BYTES;
    assert!(most.load(Ordering::SeqCst) <= bound, "{most:?} at once, where {bound} have room");
    assert_eq!((account.values.used(), account.operations.used()), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn values_larger_than_those_before_are_not_held_for_who_does_not_take_them() {
    let loads = Arc::new(AtomicUsize::new(0));
    let loader = loader_fn({
        let loads = loads.clone();
        move |key: Bytes| {
            loads.fetch_add(1, Ordering::SeqCst);
            async move { Ok(Loaded::found(vec![7; if key.starts_with(b"large") { MAX_VALUE_BYTES } else { 1 }])) }
        }
    });
    let group = Group::new("g", loader)
        .max_loads(1000)
        .capacity_bytes(32 << 20)
        .load_timeout(Duration::from_secs(60));
    let cache = Arc::new(Cache::alone(group));
    let budgets = crate::budget::Budgets::new();
    let (slow, other) = (budgets.account(&"".into()), budgets.account(&"".into()));
    let one = cache.begin(&get("small"), &other, Instant::now()).unwrap();
    assert_eq!(one.answer().await.unwrap().value.len(), 1);
    let large = |n: usize| get(&format!("large-{n}"));
    let waiting: Vec<_> = (0..100).map(|n| cache.begin(&large(n), &slow, Instant::now()).unwrap()).collect();
    cache.launch();
    // Nobody takes what comes.
    sleep(Duration::from_secs(1)).await;
    assert_eq!(loads.load(Ordering::SeqCst), 101);
    let most = crate::budget::Budgets::CONNECTION_VALUES;
    let held = slow.values.used();
    assert!(held > most - MAX_VALUE_BYTES && held <= most, "{held} bytes are held");
    let beside = cache.begin(&large(1000), &other, Instant::now()).unwrap();
    assert_eq!(beside.answer().await.unwrap().value.len(), MAX_VALUE_BYTES, "nobody else suffers");
    // Who takes them has all of them, in turn.
    for begun in waiting {
        assert_eq!(begun.answer().await.unwrap().value.len(), MAX_VALUE_BYTES);
    }
    assert_eq!((slow.values.used(), slow.operations.used()), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn who_gives_back_a_lease_does_not_wait_for_room_behind_those_who_wait_for_it() {
    let (cache, _, _) = fixture(|g| g);
    let account = crate::budget::Budgets::new().account(&"".into());
    let lease = Get { on_miss: OnMiss::Lease, ..get("k") };
    let Begun::Answered(Answer { token, .. }) = cache.begin(&lease, &account, Instant::now()).unwrap() else {
        panic!("a lease is given at once")
    };
    // They have taken all the room that there is, for values of unknown size.
    let begin = |get: &Get| tokio::spawn(cache.begin(get, &account, Instant::now()).unwrap().answer());
    let waiting: Vec<_> = (0..20).map(|_| begin(&get("k"))).collect();
    let back = begin(&Get { token, ..get("k") });
    assert_eq!(back.await.unwrap().unwrap().value, "1");
    for waiting in waiting {
        assert_eq!(waiting.await.unwrap().unwrap().value, "1");
    }
}

#[tokio::test(start_paused = true)]
async fn a_poisoned_flight_answers_those_who_wait_and_stores_nothing() {
    let (cache, loads, gate) = fixture(|g| g);
    let before = begin(&cache, &get("gated"));
    tokio::task::yield_now().await;
    let _ = delete(&cache, &get("gated").key);
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
    let new = begin(
        &cache,
        &Get { stamp: RingVersion(5), validity: Validity::since(RingVersion(5)), ..get("gated") },
    );
    tokio::task::yield_now().await;
    gate.notify_waiters();
    assert_eq!(
        (old.answer().await.unwrap().value, new.answer().await.unwrap().value),
        ("1".into(), "2".into())
    );
    let seen =
        ask(&cache, Get { stamp: RingVersion(5), validity: Validity::since(RingVersion(5)), ..get("gated") })
            .await
            .unwrap();
    assert_eq!((seen.outcome, &*seen.value), (Outcome::Hit, &b"2"[..]));
}

#[tokio::test(start_paused = true)]
async fn what_a_reader_says_removes_nothing_where_there_is_no_loader() {
    let cache = Arc::new(Cache::alone(Group::without_loader("g")));
    let set = Set {
        key: get("k").key,
        fetched: Fetched::Value("v".into()),
        ttl: None,
        stamp: RingVersion(5),
        origin: Origin::Owner,
        under: RingVersion(1),
        token: FillToken::NONE,
        condition: Condition::Always,
        by: None,
    };
    let _ = cache.set(set, Instant::now()).unwrap();
    let denied = || Err(Failure::new(ErrorCode::PermissionDenied, "no"));
    let read = |owned_since, origin| Get {
        stamp: RingVersion(9),
        validity: Validity::since(owned_since),
        origin,
        may_fill: denied(),
        ..get("k")
    };
    assert_eq!(ask(&cache, read(RingVersion(9), Origin::Owner)).await.unwrap().outcome, Outcome::NotFound);
    let failure = ask(&cache, read(RingVersion::NONE, Origin::Failover)).await.unwrap_err();
    assert_eq!(failure.code, ErrorCode::NoLoader, "it cannot tell whether there is such a key");
    assert_eq!(ask(&cache, read(RingVersion(5), Origin::Owner)).await.unwrap().outcome, Outcome::Hit);
}

#[tokio::test(start_paused = true)]
async fn a_key_has_one_load_whatever_is_said_of_rings() {
    let (cache, loads, gate) = fixture(|g| g);
    let callers: Vec<_> = (0..100)
        .map(|n| {
            begin(
                &cache,
                &Get { stamp: RingVersion(100), validity: Validity::since(RingVersion(n)), ..get("gated") },
            )
        })
        .collect();
    tokio::task::yield_now().await;
    gate.notify_waiters();
    for caller in callers {
        assert_eq!(caller.answer().await.unwrap().value, "1");
    }
    assert_eq!(loads.load(Ordering::SeqCst), 1);
}

#[tokio::test(start_paused = true)]
async fn a_clear_is_done_once_and_none_is_skipped_for_what_a_client_says() {
    let (cache, _, _) = fixture(|g| g);
    for foretold in [2, u64::from(u32::MAX), u64::MAX, 0] {
        ask(&cache, get("k")).await.unwrap();
        cache.clear(Generation(foretold), RingVersion(1), None).answer().await.unwrap();
        assert_eq!(
            (cache.entries().len(), cache.generation()),
            (0, Generation::NONE),
            "it is cleared, and nothing is believed"
        );
    }
    // The registry's word comes while the client's waits: what is set after that stays.
    ask(&cache, get("k")).await.unwrap();
    let told = tokio::spawn(cache.clear(Generation(2), RingVersion(1), None).answer());
    tokio::task::yield_now().await;
    assert_eq!(cache.entries().len(), 1);
    cache.clear_to(Generation(2), RingVersion(1)).answer().await.unwrap();
    told.await.unwrap().unwrap();
    assert_eq!((cache.entries().len(), cache.generation().0), (0, 2));
    ask(&cache, get("k")).await.unwrap();
    cache.clear_to(Generation(3), RingVersion(1)).answer().await.unwrap();
    ask(&cache, get("k")).await.unwrap();
    for begun in [
        cache.clear_to(Generation(3), RingVersion(1)),
        cache.clear(Generation(3), RingVersion(1), None),
        cache.clear(Generation(2), RingVersion(1), None),
    ] {
        begun.answer().await.unwrap();
    }
    assert_eq!(cache.entries().len(), 1, "it has been done");
    // The registry has lost its data, and who clears next has a clock that is behind.
    let told = tokio::spawn(cache.clear(Generation(1), RingVersion(1), None).answer());
    tokio::task::yield_now().await;
    assert!(!told.is_finished() && cache.entries().len() == 1);
    cache.clear_to(Generation(1), RingVersion(1)).answer().await.unwrap();
    told.await.unwrap().unwrap();
    assert_eq!((cache.entries().len(), cache.generation().0), (0, 1));
    ask(&cache, get("k")).await.unwrap();
    cache.clear(Generation(7), RingVersion(1), None).answer().await.unwrap();
    assert_eq!(cache.entries().len(), 0, "it is cleared though the registry does not tell");
}

#[tokio::test(start_paused = true)]
async fn a_value_that_is_too_large_to_be_kept_is_counted_and_set_says_so() {
    let loader = loader_fn(|_| async { Ok(Loaded::found(vec![0; 20_000])) });
    let cache = Arc::new(Cache::alone(Group::new("g", loader).capacity_bytes(10_000)));
    for _ in 0..2 {
        assert_eq!(ask(&cache, get("k")).await.unwrap().outcome, Outcome::Loaded);
    }
    let set = |length| Set {
        key: get("k").key,
        fetched: Fetched::Value(vec![0; length].into()),
        ttl: None,
        stamp: RingVersion(1),
        origin: Origin::Owner,
        under: RingVersion(1),
        token: FillToken::NONE,
        condition: Condition::Always,
        by: None,
    };
    let _ = cache.set(set(100), Instant::now()).unwrap();
    assert_eq!(ask(&cache, get("k")).await.unwrap().outcome, Outcome::Hit);
    let failure = cache.set(set(20_000), Instant::now()).unwrap_err();
    assert_eq!(failure.code, ErrorCode::ValueTooLarge);
    assert_eq!(ask(&cache, get("k")).await.unwrap().outcome, Outcome::Loaded, "what was there is gone");
    assert_eq!(cache.metrics.too_large.load(Ordering::SeqCst), 4);
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
    let cache = Arc::new(Cache::alone(group));
    let failure = ask(&cache, get("big")).await.unwrap_err();
    assert_eq!(failure.code, ErrorCode::ValueTooLarge);
    assert!(failure.message.contains("8388608"), "{}", failure.message);
    let failure = ask(&cache, get(&"k".repeat(1025))).await.unwrap_err();
    assert_eq!(failure.code, ErrorCode::InvalidRequest);
    assert!(failure.message.contains("1024"), "{}", failure.message);
    assert_eq!(ask(&cache, get("")).await.unwrap_err().code, ErrorCode::InvalidRequest);
}

mod given_back;
mod leases;
mod lifetimes;
mod writes;
