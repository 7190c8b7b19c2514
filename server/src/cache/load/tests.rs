//! Loads together, in the background, and of an origin that fails; on a paused clock.

use std::sync::atomic::AtomicBool;

use peanut_proto::numbers::{FillToken, RingVersion};
use peanut_proto::v1::{OnMiss, Outcome};
use tokio::time::{advance, sleep};

use super::*;
use crate::cache::Delete;
use crate::cache::{Answer, Begun};
use crate::group::Group;
use crate::loader::Loader;
use crate::store::Origin;
use crate::validity::Validity;

/// Knows every key, with a value that tells in which of its calls it was loaded; takes five at a time and a
/// second for each call. Key `bad` has an error, and while it is broken all have.
#[derive(Clone, Default)]
struct Calls {
    keys: Arc<Mutex<Vec<usize>>>,
    broken: Arc<AtomicBool>,
}

impl Loader for Calls {
    async fn load(&self, request: &LoadRequest) -> Result<Loaded, LoaderError> {
        self.load_many(std::slice::from_ref(request)).await.remove(0)
    }

    async fn load_many(&self, requests: &[LoadRequest]) -> Vec<Result<Loaded, LoaderError>> {
        let call = {
            let mut calls = self.keys.lock();
            calls.push(requests.len());
            calls.len()
        };
        let broken = self.broken.load(Ordering::Relaxed);
        // An origin that is down says so sooner.
        sleep(Duration::from_millis(if broken { 100 } else { 1000 })).await;
        let load = |request: &LoadRequest| match &request.key[..] {
            b"bad" => Err(LoaderError::of_key("no number")),
            b"gone" if call > 1 => Ok(Loaded::not_found()),
            b"worse" if call > 1 => Err(LoaderError::of_key("no number any more")),
            _ if broken => Err("the origin is down".into()),
            _ => Ok(Loaded::found(format!("call {call}"))),
        };
        requests.iter().map(load).collect()
    }

    fn max_batch_size(&self) -> usize {
        5
    }
}

impl Calls {
    fn sizes(&self) -> Vec<usize> {
        self.keys.lock().clone()
    }

    fn break_down(&self, broken: bool) {
        self.broken.store(broken, Ordering::Relaxed);
    }
}

fn fixture(adjust: impl FnOnce(Group) -> Group) -> (Arc<Cache>, Calls) {
    let calls = Calls::default();
    let group = Group::new("g", calls.clone()).ttl_jitter(0.0).ttl(Duration::from_secs(60));
    (Arc::new(Cache::alone(adjust(group))), calls)
}

fn get(key: impl AsRef<str>) -> Get {
    Get {
        key: Bytes::copy_from_slice(key.as_ref().as_bytes()),
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

fn delete(cache: &Arc<Cache>, key: &Bytes) -> Begun {
    cache
        .delete(
            Delete {
                key,
                under: RingVersion(1),
                stamp: RingVersion(1),
                then_set: None,
                sequence: 0,
                by: None,
            },
            Instant::now(),
        )
        .unwrap()
}

async fn ask(cache: &Arc<Cache>, key: &str) -> Result<Answer, Failure> {
    cache.begin_alone(&get(key), Instant::now())?.answer().await
}

async fn outcome(cache: &Arc<Cache>, key: &str) -> Outcome {
    ask(cache, key).await.unwrap().outcome
}

#[tokio::test(start_paused = true)]
async fn what_is_missed_in_one_moment_is_loaded_together_up_to_what_the_loader_takes() {
    let (cache, calls) = fixture(|g| g);
    let begun: Vec<Begun> =
        (0..12).map(|n| cache.begin_alone(&get(format!("k{n}")), Instant::now()).unwrap()).collect();
    let start = Instant::now();
    for begun in begun {
        assert_eq!(begun.answer().await.unwrap().outcome, Outcome::Loaded);
    }
    assert_eq!(start.elapsed(), Duration::from_secs(1), "all at the same time");
    assert_eq!(calls.sizes(), [5, 5, 2]);
    assert_eq!(cache.metrics.keys_loaded(), 12);
}

#[tokio::test(start_paused = true)]
async fn what_waits_for_a_turn_goes_together_when_it_comes_and_one_alone_goes_at_once() {
    let (cache, calls) = fixture(|g| g.max_loads(1));
    let answers: Vec<_> = (0..4)
        .map(|n| {
            let begun = cache.begin_alone(&get(format!("k{n}")), Instant::now()).unwrap();
            // Each as if in a frame of its own.
            cache.launch();
            begun
        })
        .collect();
    // The first has its turn before the others come.
    let start = Instant::now();
    for begun in answers {
        assert_eq!(begun.answer().await.unwrap().outcome, Outcome::Loaded);
    }
    let sizes = calls.sizes();
    assert_eq!(sizes.iter().sum::<usize>(), 4);
    assert!(sizes.len() <= 2 && start.elapsed() <= Duration::from_secs(2), "{sizes:?}");
}

#[tokio::test(start_paused = true)]
async fn an_error_of_one_key_is_not_the_others() {
    let (cache, calls) = fixture(|g| g);
    let bad = cache.begin_alone(&get("bad"), Instant::now()).unwrap();
    let good = cache.begin_alone(&get("good"), Instant::now()).unwrap();
    assert_eq!(&*bad.answer().await.unwrap_err().message, "no number");
    assert_eq!(good.answer().await.unwrap().value, "call 1");
    assert_eq!(calls.sizes(), [2]);
}

#[tokio::test(start_paused = true)]
async fn whoever_begins_a_flight_and_leaves_does_not_keep_the_next_from_it() {
    let (cache, calls) = fixture(|g| g.load_timeout(Duration::from_secs(5)));
    drop(cache.begin_alone(&get("k"), Instant::now()).unwrap());
    advance(Duration::from_secs(60)).await;
    assert_eq!(outcome(&cache, "k").await, Outcome::Coalesced, "with all of its time");
    assert_eq!(calls.sizes(), [1]);
}

#[tokio::test(start_paused = true)]
async fn a_load_that_had_its_turn_late_says_so_and_nothing_of_the_origin() {
    let (cache, _) = fixture(|g| g.max_loads(1).load_timeout(Duration::from_millis(1300)));
    for round in 0..30 {
        let first = tokio::spawn({
            let cache = cache.clone();
            async move { ask(&cache, &format!("a{round}")).await }
        });
        tokio::task::yield_now().await;
        // It has its turn when the first is done, after a second, and three tenths are left of its time.
        let second = ask(&cache, &format!("b{round}")).await.unwrap_err();
        assert_eq!(second.code, ErrorCode::LoadTimedOut);
        assert!(second.message.contains("within 300.0ms of the 1.3s"), "{}", second.message);
        assert!(first.await.unwrap().is_ok());
    }
    assert_eq!(cache.breaker(), Position::Closed);
}

#[tokio::test(start_paused = true)]
async fn an_old_load_in_a_batch_does_not_take_the_time_of_the_others() {
    let (cache, calls) = fixture(|g| g.max_loads(1).load_timeout(Duration::from_millis(1800)));
    let first = cache.begin_alone(&get("first"), Instant::now()).unwrap();
    cache.launch();
    tokio::task::yield_now().await;
    let old = cache.begin_alone(&get("old"), Instant::now()).unwrap();
    cache.launch();
    advance(Duration::from_millis(900)).await;
    let young = cache.begin_alone(&get("young"), Instant::now()).unwrap();
    let (first, old, young) = tokio::join!(first.answer(), old.answer(), young.answer());
    assert!(first.is_ok() && young.is_ok() && old.is_ok());
    assert_eq!(calls.sizes(), [1, 2]);
}

#[tokio::test(start_paused = true)]
async fn keys_that_are_bad_by_themselves_say_nothing_of_the_origin() {
    let (cache, _) = fixture(|g| g);
    for _ in 0..100 {
        assert!(ask(&cache, "bad").await.is_err());
    }
    assert_eq!(cache.breaker(), Position::Closed);
}

#[tokio::test(start_paused = true)]
async fn who_has_little_time_gets_what_is_stale_while_the_load_goes_on() {
    let (cache, _) = fixture(|g| g.stale_if_error(Duration::from_secs(300)));
    ask(&cache, "k").await.unwrap();
    advance(Duration::from_secs(61)).await;
    // The load takes a second, and the caller has half of one.
    let now = Instant::now();
    let hasty = Get { deadline: Some(now + Duration::from_millis(500)), ..get("k") };
    let answer = cache.begin_alone(&hasty, now).unwrap().answer().await.unwrap();
    assert_eq!((answer.outcome, &*answer.value), (Outcome::Stale, &b"call 1"[..]));
    assert_eq!(now.elapsed(), Duration::from_millis(400));
    sleep(Duration::from_secs(1)).await;
    let answer = ask(&cache, "k").await.unwrap();
    assert_eq!((answer.outcome, &*answer.value), (Outcome::Hit, &b"call 2"[..]));
}

#[tokio::test(start_paused = true)]
async fn a_refresh_that_fails_is_not_tried_again_at_once_nor_for_whoever_peeks() {
    let (cache, calls) = fixture(|g| g.refresh_after(Some(Duration::from_secs(20))).breaker(false));
    ask(&cache, "k").await.unwrap();
    calls.break_down(true);
    advance(Duration::from_secs(30)).await;
    let peek = Get { on_miss: OnMiss::Peek, ..get("k") };
    assert_eq!(
        cache.begin_alone(&peek, Instant::now()).unwrap().answer().await.unwrap().outcome,
        Outcome::Hit
    );
    tokio::task::yield_now().await;
    assert_eq!(calls.sizes().len(), 1);
    for _ in 0..100 {
        assert_eq!(outcome(&cache, "k").await, Outcome::Hit);
        sleep(Duration::from_millis(20)).await;
    }
    // Two seconds: a call, its tenth of a second, and a pause of one.
    assert!((2..=3).contains(&(calls.sizes().len() - 1)), "{:?}", calls.sizes());
}

/// The origin is well, and one of its keys is not, by itself or among others.
#[tokio::test(start_paused = true)]
async fn a_key_whose_refresh_fails_is_left_alone_for_a_while_and_others_are_refreshed() {
    let (cache, calls) = fixture(|g| g.refresh_after(Some(Duration::from_secs(20))));
    for key in ["worse", "k"] {
        ask(&cache, key).await.unwrap();
    }
    advance(Duration::from_secs(30)).await;
    let before = calls.sizes().len();
    for _ in 0..200 {
        assert_eq!(outcome(&cache, "worse").await, Outcome::Hit);
        sleep(Duration::from_millis(50)).await;
    }
    // Ten seconds: each call takes one, and the pause after it another.
    let tried = calls.sizes().len() - before;
    assert!((4..=6).contains(&tried), "{tried} times");
    assert_eq!(outcome(&cache, "k").await, Outcome::Hit);
    sleep(Duration::from_millis(1100)).await;
    assert_ne!(ask(&cache, "k").await.unwrap().value, "call 2", "it is refreshed meanwhile");
}

/// Each of them with a load that runs, or has not begun yet.
#[tokio::test(start_paused = true)]
async fn what_is_missed_waits_for_no_refresh_that_has_no_turn() {
    let (cache, calls) = fixture(|g| g.max_loads(1).refresh_after(Some(Duration::from_secs(20))));
    for key in 0..12 {
        ask(&cache, &format!("k{key}")).await.unwrap();
    }
    advance(Duration::from_secs(15)).await;
    let before = calls.sizes().len();
    for key in 0..12 {
        assert_eq!(outcome(&cache, &format!("k{key}")).await, Outcome::Hit);
        // It has its turn, where there is one.
        tokio::task::yield_now().await;
    }
    let begun = Instant::now();
    assert_eq!(outcome(&cache, "missed").await, Outcome::Loaded);
    assert!(
        begun.elapsed() <= Duration::from_secs(2),
        "the one that ran, and its own: {:?}",
        begun.elapsed()
    );
    assert_eq!(calls.sizes().len() - before, 2);
}

#[tokio::test(start_paused = true)]
async fn what_clients_bring_is_not_refreshed_away() {
    let group = Group::without_loader("g").refresh_after(Some(Duration::from_secs(1)));
    assert!(group.check().unwrap_err().to_string().contains("refresh_after needs a loader"));
}

#[tokio::test(start_paused = true)]
async fn a_value_is_refreshed_in_the_background_once_while_it_answers() {
    let (cache, calls) = fixture(|g| g.refresh_after(Some(Duration::from_secs(20))));
    assert_eq!(ask(&cache, "k").await.unwrap().value, "call 1");
    advance(Duration::from_secs(18)).await;
    assert_eq!(ask(&cache, "k").await.unwrap().value, "call 1");
    assert_eq!(calls.sizes().len(), 1, "not yet");
    advance(Duration::from_secs(2)).await;
    for _ in 0..10 {
        let answer = ask(&cache, "k").await.unwrap();
        assert_eq!((answer.outcome, &*answer.value), (Outcome::Hit, &b"call 1"[..]));
    }
    sleep(Duration::from_secs(2)).await;
    let answer = ask(&cache, "k").await.unwrap();
    assert_eq!((answer.outcome, &*answer.value), (Outcome::Hit, &b"call 2"[..]));
    assert!(answer.age < Duration::from_secs(3));
    assert_eq!(calls.sizes(), [1, 1]);
    assert_eq!(cache.metrics.refreshes.load(Ordering::Relaxed), 1);
}

#[tokio::test(start_paused = true)]
async fn a_key_that_is_gone_when_it_is_refreshed_leaves_nothing_behind() {
    let (cache, _) = fixture(|g| g.refresh_after(Some(Duration::from_secs(20))).negative_ttl(Duration::ZERO));
    assert_eq!(outcome(&cache, "gone").await, Outcome::Loaded);
    advance(Duration::from_secs(30)).await;
    assert_eq!(outcome(&cache, "gone").await, Outcome::Hit);
    sleep(Duration::from_secs(2)).await;
    assert_eq!(outcome(&cache, "gone").await, Outcome::NotFound);
}

#[tokio::test(start_paused = true)]
async fn a_delete_while_a_value_is_refreshed_is_not_undone_by_it() {
    let (cache, calls) = fixture(|g| g.refresh_after(Some(Duration::from_secs(20))));
    ask(&cache, "k").await.unwrap();
    advance(Duration::from_secs(30)).await;
    assert_eq!(ask(&cache, "k").await.unwrap().value, "call 1");
    tokio::task::yield_now().await;
    assert_eq!(calls.sizes().len(), 2, "the refresh is under way");
    let _ = delete(&cache, &get("k").key);
    sleep(Duration::from_secs(2)).await;
    assert_eq!(ask(&cache, "k").await.unwrap().value, "call 3");
}

#[tokio::test(start_paused = true)]
async fn a_value_outlives_its_time_while_the_origin_is_down_and_no_longer() {
    let (cache, calls) = fixture(|g| g.stale_if_error(Duration::from_secs(300)));
    ask(&cache, "k").await.unwrap();
    advance(Duration::from_secs(61)).await;
    calls.break_down(true);
    let answer = ask(&cache, "k").await.unwrap();
    assert_eq!(
        (answer.outcome, &*answer.value, answer.ttl),
        (Outcome::Stale, &b"call 1"[..], Duration::ZERO)
    );
    assert!(answer.age >= Duration::from_secs(61));
    assert!(ask(&cache, "other").await.is_err(), "nothing is known of it");
    let peek = cache.begin_alone(&Get { on_miss: OnMiss::Peek, ..get("k") }, Instant::now()).unwrap();
    assert_eq!(peek.answer().await.unwrap().outcome, Outcome::Miss, "nobody is filled with what is stale");
    calls.break_down(false);
    let answer = ask(&cache, "k").await.unwrap();
    assert_eq!((answer.outcome, &*answer.value), (Outcome::Loaded, &b"call 4"[..]));
    calls.break_down(true);
    advance(Duration::from_secs(361)).await;
    assert!(ask(&cache, "k").await.is_err(), "past its window");
}

#[tokio::test(start_paused = true)]
async fn what_was_deleted_is_not_served_stale() {
    let (cache, calls) = fixture(|g| g.stale_if_error(Duration::from_secs(300)));
    ask(&cache, "k").await.unwrap();
    advance(Duration::from_secs(61)).await;
    calls.break_down(true);
    let begun = cache.begin_alone(&get("k"), Instant::now()).unwrap();
    cache.launch();
    let _ = delete(&cache, &get("k").key);
    assert!(begun.answer().await.is_err());
    assert!(ask(&cache, "k").await.is_err());
}

#[tokio::test(start_paused = true)]
async fn an_origin_that_fails_is_left_alone_and_comes_back_one_by_one() {
    let (cache, calls) = fixture(|g| g.max_loads(4).stale_if_error(Duration::from_secs(3600)));
    ask(&cache, "kept").await.unwrap();
    calls.break_down(true);
    for n in 0..40 {
        assert!(ask(&cache, &format!("k{n}")).await.is_err());
    }
    assert_eq!(cache.breaker(), Position::Open);
    let asked = calls.sizes().len();
    assert!(asked < 40, "{asked}");
    let begun = Instant::now();
    let failure = ask(&cache, "k").await.unwrap_err();
    assert!(failure.message.contains("left alone"), "{}", failure.message);
    assert_eq!(begun.elapsed(), Duration::ZERO, "at once");
    calls.break_down(false);
    advance(Duration::from_secs(40)).await;
    // One is let through, and the others fail meanwhile.
    let (one, other) = tokio::join!(ask(&cache, "a"), async {
        tokio::task::yield_now().await;
        ask(&cache, "b").await
    });
    assert!(one.is_ok() && other.is_err());
    assert_eq!(cache.breaker(), Position::HalfOpen);
    for n in 0..4 {
        ask(&cache, &format!("n{n}")).await.unwrap();
    }
    assert_eq!(cache.breaker(), Position::Closed);
    advance(Duration::from_secs(61)).await;
    assert_eq!(outcome(&cache, "kept").await, Outcome::Loaded);
}

/// Never answers, and takes its time to be given up.
struct Silent(Arc<AtomicBool>);

struct GivenUp(Arc<AtomicBool>);

impl Drop for GivenUp {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

impl Loader for Silent {
    async fn load(&self, _: &LoadRequest) -> Result<Loaded, LoaderError> {
        let _given_up = GivenUp(self.0.clone());
        std::future::pending().await
    }
}

/// A load has its origin's connection replaced when it is given up: the next load begins when its caller has
/// been told.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_load_that_is_late_has_been_given_up_when_those_who_wait_are_told() {
    let given_up = Arc::new(AtomicBool::new(false));
    let group = Group::new("g", Silent(given_up.clone())).load_timeout(Duration::from_millis(20));
    let cache = Arc::new(Cache::alone(group));
    for _ in 0..20 {
        given_up.store(false, Ordering::SeqCst);
        let (cache, given_up) = (cache.clone(), given_up.clone());
        let caller = tokio::spawn(async move {
            let failure = ask(&cache, "k").await.unwrap_err();
            assert_eq!(failure.code, ErrorCode::LoadTimedOut);
            given_up.load(Ordering::SeqCst)
        });
        assert!(caller.await.unwrap(), "the next load would be on the same connection");
    }
}

#[tokio::test(start_paused = true)]
async fn refreshes_take_turns_that_nobody_waits_for() {
    let (cache, calls) = fixture(|g| {
        g.max_loads(2).load_timeout(Duration::from_secs(5)).refresh_after(Some(Duration::from_secs(20)))
    });
    for some in 0..10 {
        let begun: Vec<Begun> = (some * 10..some * 10 + 10)
            .map(|key| cache.begin_alone(&get(format!("k{key}")), Instant::now()).unwrap())
            .collect();
        cache.launch();
        for begun in begun {
            begun.answer().await.unwrap();
        }
    }
    advance(Duration::from_secs(25)).await;
    let before = calls.sizes().iter().sum::<usize>();
    for _ in 0..3 {
        for key in 0..100 {
            assert_eq!(outcome(&cache, &format!("k{key}")).await, Outcome::Hit);
        }
    }
    // Two calls of five keys; what is missed has its turn after them.
    assert_eq!(outcome(&cache, "missed").await, Outcome::Loaded);
    let since = calls.sizes().iter().sum::<usize>() - before;
    assert!((2..=11).contains(&since), "{since} keys");
}

#[tokio::test(start_paused = true)]
async fn loads_count_for_who_has_caused_them_until_they_are_done() {
    let (cache, _) = fixture(|g| g.max_loads(1).load_timeout(Duration::from_secs(60)));
    let account = crate::budget::Budgets::new().account(&"".into());
    for key in 0..20 {
        let begun = cache.begin(&get(format!("k{key}")), &account, Instant::now()).unwrap();
        cache.launch();
        // The caller hangs up.
        drop(begun);
    }
    assert!(account.operations.used() >= 20 * crate::budget::OPERATION_BYTES);
    sleep(Duration::from_secs(30)).await;
    assert_eq!(account.operations.used(), 0);
}
