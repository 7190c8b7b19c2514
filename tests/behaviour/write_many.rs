//! Many writes in one call, and many keys that the application loads itself: one operation for each owner, a
//! result for each key.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::join_all;
use parking_lot::Mutex;
use peanut_client::{Client, ErrorKind, Failover};
use peanut_server::Group;
use peanut_server::testing::TestFleet;

const MINUTE: Duration = Duration::from_secs(60);

async fn fleet(nodes: usize) -> (TestFleet, Client) {
    let group = Group::without_loader("g").capacity_bytes(1 << 30).max_loads(10_000);
    let fleet = TestFleet::start(nodes, [group]).await.unwrap();
    let client = client(&fleet).await;
    (fleet, client)
}

async fn client(fleet: &TestFleet) -> Client {
    Client::builder().registry(fleet.registry()).deadline(MINUTE).build().await.unwrap()
}

fn keys(count: usize) -> Vec<String> {
    (0..count).map(|n| format!("key-{n}")).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn each_write_has_a_result_of_its_own_in_the_order_of_the_call() {
    let (fleet, client) = fleet(3).await;
    // What it has to hear first, and what it knows of what others have written, differ from round to round.
    let other = self::client(&fleet).await;
    let (group, long_key) = (client.group("g"), "k".repeat(1025));
    let too_long = vec![b'v'; (8 << 20) + 1];
    let long = vec![b'l'; 20 << 10];
    for round in 0..4 {
        let value = format!("value of {round}");
        let entries: [(&str, &[u8]); 6] = [
            ("a", value.as_bytes()),
            ("", b"v"),
            ("b", &long),
            (&long_key, b"v"),
            ("c", &too_long),
            ("d", value.as_bytes()),
        ];
        other.group("g").set("c", "from before").await.unwrap();
        let results = group.set_many(entries).await;
        let kinds: Vec<_> = results.iter().map(|result| result.as_ref().map_err(|e| e.kind())).collect();
        let invalid = Err(ErrorKind::InvalidArgument);
        assert_eq!(kinds, [Ok(&()), invalid, Ok(&()), invalid, Err(ErrorKind::TooLarge), Ok(&())]);
        let got = other.group("g").get_many(["a", "b", "c", "d"]).await;
        let got: Vec<_> = got.into_iter().map(Result::unwrap).collect();
        let value = Some(Bytes::from(value));
        assert_eq!(got, [value.clone(), Some(long.clone().into()), None, value]);
        if round % 2 == 1 {
            let deleted = other.group("g").delete_many(["a", "", "d", "a"]).await;
            let is_ok: Vec<_> = deleted.iter().map(Result::is_ok).collect();
            assert_eq!(is_ok, [true, false, true, true]);
            assert!(group.get_many(["a", "d"]).await.iter().all(|got| matches!(got, Ok(None))));
        }
    }
    assert!(group.set_many(Vec::<(&str, &str)>::new()).await.is_empty());
    assert!(group.delete_many(Vec::<&str>::new()).await.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn of_entries_with_the_same_key_one_is_the_last() {
    let (_fleet, client) = fleet(2).await;
    let group = client.group("g");
    for _ in 0..3 {
        let results = group.set_many([("a", "1"), ("b", "0"), ("a", "2"), ("a", "3")]).await;
        assert!(results.iter().all(Result::is_ok));
        // A value that another has come before may be gone, as after a delete.
        let got = group.get("a").await.unwrap();
        assert!(got.as_ref().is_none_or(|value| ["1", "2", "3"].map(Bytes::from).contains(value)), "{got:?}");
        assert_eq!(group.get("b").await.unwrap().unwrap(), "0");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_is_not_refused_for_the_number_of_its_keys_nor_for_the_size_of_its_values() {
    let (_fleet, client) = fleet(3).await;
    let group = client.group("g");
    let keys = keys(100_000);
    for _ in 0..2 {
        let results = group.set_many(keys.iter().map(|key| (key, key))).await;
        results.into_iter().for_each(|result| result.unwrap());
        for (key, got) in keys.iter().zip(group.get_many(&keys).await) {
            assert_eq!(got.unwrap().as_deref(), Some(key.as_bytes()));
        }
    }
    group.delete_many(&keys).await.into_iter().for_each(|result| result.unwrap());
    assert!(group.get_many(&keys).await.iter().all(|got| matches!(got, Ok(None))));
    let long = vec![b'v'; 60 << 10];
    let results = group.set_many(keys[..3_000].iter().map(|key| (key, &long))).await;
    results.into_iter().for_each(|result| result.unwrap());
    for got in group.get_many(&keys[..3_000]).await {
        assert_eq!(got.unwrap().unwrap().len(), 60 << 10);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn with_a_strict_successor_and_with_unary_calls_it_is_the_same() {
    let (fleet, _) = fleet(3).await;
    let builder = || Client::builder().registry(fleet.registry()).deadline(MINUTE);
    let strict = builder().failover(Failover::Strict).build().await.unwrap();
    let unary = builder().unary().build().await.unwrap();
    for (writer, reader) in [(&strict, &unary), (&unary, &strict)] {
        let (writer, reader) = (writer.group("g"), reader.group("g"));
        assert!(writer.set_many([("a", "1"), ("b", "2")]).await.iter().all(Result::is_ok));
        let got = reader.get_many(["a", "b"]).await;
        let got: Vec<_> = got.into_iter().map(|got| got.unwrap().unwrap()).collect();
        assert_eq!(got, ["1", "2"]);
        assert!(writer.delete_many(["a", "b"]).await.iter().all(Result::is_ok));
        let loaded = reader.get_or_load_many(["a", "b"], |missing| async move {
            Ok::<_, std::io::Error>(missing.into_iter().map(|key| (key, "new")))
        });
        assert!(loaded.await.into_iter().all(|got| got.unwrap().unwrap() == "new"));
        assert!(writer.get_many(["a", "b"]).await.into_iter().all(|got| got.unwrap().unwrap() == "new"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_dies_in_the_middle_leaves_no_old_value_where_the_result_is_ok() {
    let (fleet, client) = fleet(3).await;
    let (group, keys) = (client.group("g"), keys(2_000));
    assert!(group.set_many(keys.iter().map(|key| (key, "old"))).await.iter().all(Result::is_ok));
    let reader = self::client(&fleet).await;
    assert!(reader.group("g").get_many(&keys).await.iter().all(Result::is_ok));
    let writing = tokio::spawn({
        let (group, keys) = (group.clone(), keys.clone());
        async move {
            let mut done = HashSet::new();
            for round in 0..20 {
                let value = format!("new-{round}");
                let results = group.set_many(keys.iter().map(|key| (key, &value))).await;
                done.extend(keys.iter().zip(results).filter(|(_, r)| r.is_ok()).map(|(key, _)| key.clone()));
            }
            done
        }
    });
    fleet.kill(1);
    let done = writing.await.unwrap();
    assert!(!done.is_empty());
    for (key, got) in keys.iter().zip(reader.group("g").get_many(&keys).await) {
        // Without a loader a successor cannot answer for what it does not have.
        let Ok(Some(value)) = got else { continue };
        assert!(!done.contains(key) || value != "old", "{key} shows what was before");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_that_is_dropped_is_done_as_deletes() {
    let (fleet, client) = fleet(2).await;
    let (group, keys) = (client.group("g"), keys(3_000));
    assert!(group.set_many(keys.iter().map(|key| (key, "old"))).await.iter().all(Result::is_ok));
    let mut set = Box::pin(group.set_many(keys.iter().map(|key| (key, "new"))));
    assert!(futures_util::poll!(&mut set).is_pending());
    drop(set);
    let reader = self::client(&fleet).await.group("g");
    let is_old = |got: &Result<Option<Bytes>, _>| matches!(got, Ok(Some(value)) if value == "old");
    tokio::time::timeout(MINUTE, async {
        while reader.get_many(&keys).await.iter().any(is_old) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await
    .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn callers_that_load_keys_in_other_orders_do_not_wait_for_one_another() {
    let (fleet, client) = fleet(3).await;
    let (loads, keys) = (Arc::new(Mutex::new(Vec::new())), keys(500));
    let other = self::client(&fleet).await;
    let mut callers = Vec::new();
    for caller in 0..8 {
        let group = if caller % 2 == 0 { &client } else { &other }.group("g");
        let (loads, mut keys) = (loads.clone(), keys.clone());
        keys.rotate_left(caller * 61);
        callers.push(tokio::spawn(async move {
            let got = group
                .get_or_load_many(&keys, |missing| {
                    loads.lock().extend(missing.iter().cloned());
                    async move {
                        tokio::time::sleep(Duration::from_millis(20)).await;
                        Ok::<_, std::io::Error>(missing.into_iter().map(|key| (key.clone(), key)))
                    }
                })
                .await;
            for (key, got) in keys.iter().zip(got) {
                assert_eq!(got.unwrap().unwrap(), *key);
            }
        }));
    }
    tokio::time::timeout(MINUTE, join_all(callers)).await.unwrap().into_iter().for_each(Result::unwrap);
    let loads = std::mem::take(&mut *loads.lock());
    assert_eq!(loads.len(), keys.len(), "each key is loaded once");
    assert_eq!(loads.into_iter().collect::<HashSet<_>>().len(), keys.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_caller_that_leaves_gives_back_all_tokens_that_it_was_given() {
    let (fleet, client) = fleet(2).await;
    let (group, keys) = (client.group("g"), keys(300));
    let begun = Arc::new(AtomicUsize::new(0));
    let leaving = tokio::spawn({
        let (group, keys, begun) = (group.clone(), keys.clone(), begun.clone());
        async move {
            group
                .get_or_load_many(&keys, |missing| {
                    begun.fetch_add(missing.len(), Ordering::SeqCst);
                    std::future::pending::<Result<Vec<(Bytes, Bytes)>, std::io::Error>>()
                })
                .await
        }
    });
    tokio::time::timeout(MINUTE, async {
        while begun.load(Ordering::SeqCst) == 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    })
    .await
    .unwrap();
    leaving.abort();
    // Without what was given back it would wait for the group's `load_timeout`, and fail.
    let next = self::client(&fleet).await.group("g").with_deadline(Duration::from_secs(8));
    let loaded = next.get_or_load_many(&keys, |missing| async move {
        Ok::<_, std::io::Error>(missing.into_iter().map(|key| (key, "v")))
    });
    assert!(loaded.await.into_iter().all(|got| got.unwrap().unwrap() == "v"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_is_alone_has_several_lanes_and_takes_many_writes_on_any() {
    let (_fleet, client) = fleet(1).await;
    let (group, keys) = (client.group("g"), keys(5_000));
    for keys in keys.chunks(1_000) {
        let results = group.set_many(keys.iter().map(|key| (key, "v"))).await;
        results.into_iter().for_each(|result| result.unwrap());
    }
    assert!(group.get_many(&keys).await.into_iter().all(|got| got.unwrap().unwrap() == "v"));
}
