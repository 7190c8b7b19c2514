//! Writes: what is late, and what comes between.

use super::leases::{fill, leased};
use super::*;

/// Deletes `k` to set it; gives the token.
async fn delete_to_set(cache: &Arc<Cache>, under: u64) -> FillToken {
    let account = crate::budget::Budgets::new().account(&"".into());
    let delete = Delete {
        key: &get("k").key,
        under: RingVersion(under),
        stamp: RingVersion(1),
        then_set: Some(&account),
        sequence: 0,
        by: None,
    };
    let answer = cache.delete(delete, Instant::now()).unwrap().answer().await.unwrap();
    assert_eq!(answer.outcome, Outcome::Done);
    answer.token
}

#[tokio::test(start_paused = true)]
async fn a_value_follows_its_delete_and_one_that_is_overtaken_is_not_kept() {
    let cache = Arc::new(Cache::alone(Group::without_loader("g").capacity_bytes(1 << 20)));
    let first = delete_to_set(&cache, 1).await;
    let waiting = tokio::spawn({
        let cache = cache.clone();
        async move { ask(&cache, get("k")).await }
    });
    tokio::task::yield_now().await;
    assert_eq!(fill(&cache, first, "first"), Outcome::Done);
    assert_eq!(&waiting.await.unwrap().unwrap().value[..], b"first", "others wait for the value");

    // Whatever comes in between, the late one is void.
    for later in ["set", "delete", "clear"] {
        let late = delete_to_set(&cache, 1).await;
        match later {
            "set" => assert_eq!(fill(&cache, delete_to_set(&cache, 1).await, "later"), Outcome::Done),
            "delete" => drop(delete(&cache, &get("k").key)),
            _ => drop(cache.clear(Generation::NONE, RingVersion(1), None)),
        }
        assert_eq!(fill(&cache, late, "late"), Outcome::Refused, "after a {later}");
        let found = ask(&cache, get("k")).await.unwrap();
        assert_eq!(&found.value[..], if later == "set" { &b"later"[..] } else { b"" }, "after a {later}");
    }
    // Others do not wait for long, and what comes after that is kept all the same.
    let slow = delete_to_set(&cache, 1).await;
    sleep(Duration::from_secs(1)).await;
    cache.sweep(0.0);
    assert_eq!(ask(&cache, get("k")).await.unwrap().outcome, Outcome::NotFound);
    let _ = delete(&cache, &Bytes::from_static(b"another"));
    assert_eq!(fill(&cache, slow, "slow"), Outcome::Done);
    assert_eq!(&ask(&cache, get("k")).await.unwrap().value[..], b"slow");
}

#[tokio::test(start_paused = true)]
async fn who_holds_a_lease_is_told_whether_the_key_was_written_since_the_node_came_to_own_it() {
    let (cache, _, _) = fixture(|g| g);
    let lease = |owned_since, may_hand_over| Get {
        on_miss: OnMiss::Lease,
        stamp: RingVersion(9),
        validity: Validity::since(owned_since),
        may_hand_over,
        ..get("k")
    };
    let mut told = Vec::new();
    for (under, owned_since, may_hand_over) in [(4, 5, true), (5, 5, true), (5, 6, true), (4, 6, false)] {
        let delete = Delete {
            key: &get("k").key,
            under: RingVersion(under),
            stamp: RingVersion(1),
            then_set: None,
            sequence: 0,
            by: None,
        };
        let _ = cache.delete(delete, Instant::now()).unwrap();
        let answer = ask(&cache, lease(RingVersion(owned_since), may_hand_over)).await.unwrap();
        assert_eq!(answer.outcome, Outcome::Fill);
        told.push(answer.written);
    }
    assert_eq!(told, [false, true, false, true], "the last by a process that was not there");
    let _ = cache.clear(Generation::NONE, RingVersion(7), None);
    assert!(ask(&cache, lease(RingVersion(7), true)).await.unwrap().written);
}

#[tokio::test(start_paused = true)]
async fn where_nobody_loads_whoever_gives_a_token_back_lets_others_lead() {
    let cache = Arc::new(Cache::alone(Group::without_loader("g")));
    let token = leased(&cache).await;
    let waiting = tokio::spawn({
        let cache = cache.clone();
        async move { ask(&cache, Get { on_miss: OnMiss::Lease, ..get("k") }).await }
    });
    tokio::task::yield_now().await;
    let back = ask(&cache, Get { token, ..get("k") }).await.unwrap();
    assert_eq!(back.outcome, Outcome::NotFound);
    assert_eq!(
        waiting.await.unwrap().unwrap().outcome,
        Outcome::Fill,
        "and is not told that there is no such key"
    );
}

#[tokio::test(start_paused = true)]
async fn a_write_that_was_begun_keeps_its_value_only_where_no_other_came_between() {
    let cache = Arc::new(Cache::alone(Group::without_loader("g").capacity_bytes(1 << 20)));
    let account = crate::budget::Budgets::new().account(&"".into());
    let begin = async |then_set, sequence| {
        let delete = Delete {
            key: &get("k").key,
            under: RingVersion(1),
            stamp: RingVersion(1),
            then_set,
            sequence,
            by: None,
        };
        cache.delete(delete, Instant::now()).unwrap().answer().await.unwrap()
    };
    let alone = begin(None, 0).await.sequence;
    assert!(begin(Some(&account), alone).await.token != FillToken::NONE);

    let (first, second) = (begin(None, 0).await.sequence, begin(None, 0).await.sequence);
    assert!(first != 0 && second != 0);
    assert!(begin(Some(&account), second).await.token != FillToken::NONE, "nothing came since it began");
    assert_eq!(begin(Some(&account), first).await.token, FillToken::NONE, "the other did");
    let third = begin(None, 0).await.sequence;
    let _ = cache.clear(Generation::NONE, RingVersion(1), None);
    assert_eq!(begin(Some(&account), third).await.token, FillToken::NONE);
}

/// Sets `k` where its sequence is that one still.
async fn replace(cache: &Arc<Cache>, sequence: u64, value: &'static str, or_token: bool) -> Answer {
    let account = crate::budget::Budgets::new().account(&"".into());
    let set = Set {
        key: get("k").key,
        fetched: Fetched::Value(value.into()),
        ttl: None,
        stamp: RingVersion(1),
        origin: Origin::Owner,
        under: RingVersion(1),
        token: FillToken::NONE,
        condition: Condition::Sequence(sequence, or_token.then_some(account)),
        by: None,
    };
    cache.set(set, Instant::now()).unwrap().answer().await.unwrap()
}

#[tokio::test(start_paused = true)]
async fn a_set_that_names_the_sequence_stores_at_once_and_after_any_other_write_only_deletes() {
    let cache = Arc::new(Cache::alone(Group::without_loader("g").capacity_bytes(1 << 20)));
    let known = delete(&cache, &get("k").key).answer().await.unwrap().sequence;
    let stored = replace(&cache, known, "first", true).await;
    assert_eq!(
        (stored.outcome, stored.sequence, stored.token),
        (Outcome::Stored, known + 1, FillToken::NONE)
    );
    assert_eq!(&ask(&cache, get("k")).await.unwrap().value[..], b"first");

    // The same message once more, as after an answer that was lost, and one of before.
    for late in [known, known - 1] {
        let deleted = replace(&cache, late, "late", true).await;
        assert_eq!(deleted.outcome, Outcome::Done);
        assert_eq!(
            ask(&cache, Get { on_miss: OnMiss::Peek, ..get("k") }).await.unwrap().outcome,
            Outcome::Miss
        );
        assert_eq!(
            fill(&cache, deleted.token, "after it"),
            Outcome::Done,
            "the value may follow under a token"
        );
    }
    for between in ["set", "delete", "clear"] {
        let known = delete(&cache, &get("k").key).answer().await.unwrap().sequence;
        match between {
            "set" => assert_eq!(fill(&cache, delete_to_set(&cache, 1).await, "other"), Outcome::Done),
            "delete" => drop(delete(&cache, &get("k").key)),
            _ => drop(cache.clear(Generation::NONE, RingVersion(1), None)),
        }
        // A write that was begun asks for no token.
        let deleted = replace(&cache, known, "late", false).await;
        assert_eq!((deleted.outcome, deleted.token), (Outcome::Done, FillToken::NONE), "after a {between}");
        assert_eq!(ask(&cache, get("k")).await.unwrap().outcome, Outcome::NotFound, "after a {between}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_set_that_names_the_sequence_poisons_the_load_in_progress_and_the_tokens() {
    let cache = Arc::new(Cache::alone(Group::without_loader("g").capacity_bytes(1 << 20)));
    let known = delete(&cache, &get("k").key).answer().await.unwrap().sequence;
    let loading = leased(&cache).await;
    assert_eq!(replace(&cache, known, "new", true).await.outcome, Outcome::Stored);
    assert_eq!(fill(&cache, loading, "old"), Outcome::Refused);
    assert_eq!(&ask(&cache, get("k")).await.unwrap().value[..], b"new");
    // Another process, or group, numbers its writes differently.
    let other = Arc::new(Cache::alone(Group::without_loader("g").capacity_bytes(1 << 20)));
    assert_eq!(replace(&other, known, "strange", true).await.outcome, Outcome::Done);
}
