//! Values of one type, kept as JSON.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures_util::future::join_all;
use peanut_client::{Client, ErrorKind, Source};
use peanut_server::testing::TestFleet;
use peanut_server::{Group, Loaded, LoaderError, loader_fn};

use crate::get_or_load::two_clients;

#[derive(Debug, PartialEq, serde::Serialize, serde::Deserialize)]
struct Player {
    name: String,
    score: u32,
}

#[tokio::test(flavor = "multi_thread")]
async fn values_of_a_type_are_kept_as_json() {
    let (_etcd, _servers, clients) = two_clients(1).await;
    let players = clients[0].group("g").json::<Player>();
    let tom = || Player { name: "Tom".to_owned(), score: 630 };
    assert_eq!(players.get("Tom").await.unwrap(), None);
    let loaded = players.get_or_load("Tom", || async { Ok::<_, String>(Some(tom())) }).await.unwrap();
    assert_eq!(loaded, Some(tom()));
    assert_eq!(players.bytes().get("Tom").await.unwrap().unwrap(), r#"{"name":"Tom","score":630}"#);
    players.set("Jack", &Player { name: "Jack".to_owned(), score: 589 }).await.unwrap();
    let scores: Vec<u32> =
        players.get_many(["Tom", "Jack"]).await.into_iter().map(|got| got.unwrap().unwrap().score).collect();
    assert_eq!(scores, [630, 589]);
    players.delete("Jack").await.unwrap();
    assert_eq!(players.get("Jack").await.unwrap(), None);
    let gone = players.delete_many(["Tom", "Jack"]).await;
    assert!(gone.iter().all(Result::is_ok));
    players.set("Tom", &tom()).await.unwrap();
    let (value, detailed) = players.get_detailed("Tom").await.unwrap();
    assert_eq!((value, detailed.source), (Some(tom()), Source::Hit));
    players.clear().await.unwrap();
    assert_eq!(players.get("Tom").await.unwrap(), None);
}

/// As an application finds what an earlier version of it has stored.
#[tokio::test(flavor = "multi_thread")]
async fn a_value_that_cannot_be_decoded_is_loaded_again() {
    let (_etcd, _servers, clients) = two_clients(1).await;
    let players = clients[0].group("g").json::<Player>();
    let tom = || Player { name: "Tom".to_owned(), score: 630 };
    players.bytes().set("Tom", "no document").await.unwrap();
    let loaded = players.get_or_load("Tom", || async { Ok::<_, String>(Some(tom())) }).await.unwrap();
    assert_eq!(loaded, Some(tom()));
    assert_eq!(players.get("Tom").await.unwrap(), Some(tom()));
    players.bytes().set("Sam", "no document").await.unwrap();
    assert_eq!(players.get("Sam").await.unwrap(), None, "nobody loads for this group");
    for key in ["Ann", "Ben"] {
        players.bytes().set(key, "no document").await.unwrap();
    }
    let many = players.get_many(["Ann", "Ben"]).await;
    assert!(many.into_iter().all(|got| got.unwrap().is_none()), "nor for many");
    players.bytes().set("Ann", r#"{"name":"Ann"}"#).await.unwrap();
    let failing = players.get_or_load("Ann", || async { Err::<Option<Player>, _>("the database is down") });
    assert_eq!(failing.await.unwrap_err().kind(), ErrorKind::Loader);
}

/// Each of them would delete it, and what another has stored by then.
#[tokio::test(flavor = "multi_thread")]
async fn many_who_find_a_value_that_cannot_be_decoded_load_it_once() {
    let fleet = TestFleet::start(2, [Group::without_loader("g")]).await.unwrap();
    let deadline = Duration::from_secs(20);
    let client = Client::builder().registry(fleet.registry()).deadline(deadline).build().await.unwrap();
    let players = client.group("g").json::<Player>();
    let tom = || Player { name: "Tom".to_owned(), score: 630 };
    let (loads, keys) = (AtomicUsize::new(0), ["a", "b", "c", "d"]);
    for key in keys {
        players.bytes().set(key, "no document").await.unwrap();
    }
    let slow = async || {
        loads.fetch_add(1, Ordering::Relaxed);
        tokio::time::sleep(Duration::from_millis(300)).await;
        Ok::<_, String>(Some(tom()))
    };
    let one = async |n: usize| vec![players.get_or_load(keys[n % keys.len()], slow).await];
    let many = async || {
        let load = |missing: Vec<bytes::Bytes>| async {
            loads.fetch_add(missing.len(), Ordering::Relaxed);
            tokio::time::sleep(Duration::from_millis(300)).await;
            Ok::<_, String>(missing.into_iter().map(|key| (key, Some(tom()))))
        };
        players.get_or_load_many(keys, load).await
    };
    let ones = join_all((0..100).map(one));
    let (ones, manies) = futures_util::future::join(ones, join_all((0..20).map(|_| many()))).await;
    for got in ones.into_iter().chain(manies).flatten() {
        assert_eq!(got.unwrap(), Some(tom()));
    }
    assert_eq!(loads.load(Ordering::Relaxed), keys.len(), "one for each key");
}

/// Deleting it would change nothing, and each get would cost a load.
#[tokio::test(flavor = "multi_thread")]
async fn a_document_of_the_origin_that_cannot_be_decoded_is_an_error_and_is_left_alone() {
    let loads = Arc::new(AtomicUsize::new(0));
    let counted = loads.clone();
    let loader = loader_fn(move |_| {
        counted.fetch_add(1, Ordering::Relaxed);
        async { Ok::<_, LoaderError>(Loaded::found("no document")) }
    });
    let fleet = TestFleet::start(2, [Group::new("g", loader)]).await.unwrap();
    let deadline = Duration::from_secs(20);
    let client = Client::builder().registry(fleet.registry()).deadline(deadline).build().await.unwrap();
    let players = client.group("g").json::<Player>();
    for _ in 0..100 {
        assert_eq!(players.get("Tom").await.unwrap_err().kind(), ErrorKind::Codec);
    }
    assert!(loads.load(Ordering::Relaxed) <= 3, "{loads:?} loads");
    for got in join_all((0..100).map(|_| players.get("Sam"))).await {
        assert_eq!(got.unwrap_err().kind(), ErrorKind::Codec);
    }
    for got in players.get_many(["Tom", "Sam", "Ann"]).await {
        assert_eq!(got.unwrap_err().kind(), ErrorKind::Codec);
    }
    assert_eq!(players.get_detailed("Ann").await.unwrap_err().kind(), ErrorKind::Codec);
    assert!(loads.load(Ordering::Relaxed) <= 10, "{loads:?} loads");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_value_that_cannot_be_written_as_json_is_an_error_of_its_own() {
    let fleet = TestFleet::start(1, [Group::without_loader("g")]).await.unwrap();
    let client = Client::builder().registry(fleet.registry()).build().await.unwrap();
    // Keys of a map have to be text there.
    let maps = client.group("g").json::<BTreeMap<(u8, u8), u8>>();
    let bad = BTreeMap::from([((1, 2), 3)]);
    let mut asked = Vec::new();
    let load = |missing: Vec<bytes::Bytes>| {
        asked.extend(missing.iter().cloned());
        let map = |key: &bytes::Bytes| if key == "b" { bad.clone() } else { BTreeMap::new() };
        let found: Vec<_> = missing.iter().map(|key| (key.clone(), Some(map(key)))).collect();
        async move { Ok::<_, std::io::Error>(found) }
    };
    let got = maps.get_or_load_many(["a", "b", "c"], load).await;
    assert_eq!(
        (got[0].as_ref().unwrap(), got[2].as_ref().unwrap()),
        (&Some(BTreeMap::new()), &Some(BTreeMap::new()))
    );
    assert_eq!(got[1].as_ref().unwrap_err().kind(), ErrorKind::Codec);
    // By one call, or by several where a lease was late.
    asked.sort_unstable();
    assert_eq!(asked, ["a", "b", "c"], "it is no stored value of another type");
    for (key, value) in [("a", Some("{}")), ("b", None), ("c", Some("{}"))] {
        assert_eq!(maps.bytes().get(key).await.unwrap().as_deref(), value.map(str::as_bytes), "{key}");
    }
}

/// Numbers of every size come back as they were; what JSON has no word for is refused, and not left there.
#[tokio::test(flavor = "multi_thread")]
async fn numbers_come_back_as_they_were_or_are_refused() {
    let (_etcd, _servers, clients) = two_clients(1).await;
    let numbers = clients[0].group("g").json::<f64>();
    let odd = [110.000_000_000_000_01, 0.1 + 0.2, f64::MIN_POSITIVE, f64::MAX, -0.0, 5e-324];
    let random = (0..2_000).map(|_| f64::from_bits(fastrand::u64(..))).filter(|number| number.is_finite());
    let numbers_in: Vec<f64> = odd.into_iter().chain(random).collect();
    let entries = numbers_in.iter().map(|number| (format!("{:x}", number.to_bits()), number));
    assert!(numbers.set_many(entries).await.iter().all(Result::is_ok));
    let keys = numbers_in.iter().map(|number| format!("{:x}", number.to_bits()));
    for (number, got) in numbers_in.iter().zip(numbers.get_many(keys).await) {
        assert_eq!(got.unwrap().unwrap().to_bits(), number.to_bits(), "{number:e}");
    }
    for none in [f64::NAN, f64::INFINITY] {
        numbers.set("k", &1.0).await.unwrap();
        assert_eq!(numbers.set("k", &none).await.unwrap_err().kind(), ErrorKind::Codec);
        assert_eq!(numbers.get("k").await.unwrap(), None, "the database has the new value by now");
        numbers.set("k", &1.0).await.unwrap();
        let many = numbers.set_many([("good", &2.0), ("k", &none)]).await;
        assert!(many[0].is_ok());
        assert_eq!(many[1].as_ref().unwrap_err().kind(), ErrorKind::Codec);
        assert_eq!((numbers.get("good").await.unwrap(), numbers.get("k").await.unwrap()), (Some(2.0), None));
        let loaded = numbers.get_or_load("k", || async { Ok::<_, String>(Some(none)) }).await;
        assert_eq!(loaded.unwrap_err().kind(), ErrorKind::Loader);
        let begun = numbers.begin_write("k").await.unwrap();
        assert_eq!(begun.set(&none).await.unwrap_err().kind(), ErrorKind::Codec);
    }
    // Where there may be nothing, that is what it is.
    let some = clients[0].group("g").json::<Vec<Option<f64>>>();
    some.set("v", &vec![None, Some(1.5)]).await.unwrap();
    assert_eq!(some.get("v").await.unwrap().unwrap(), [None, Some(1.5)]);
}

/// A handler makes its typed group anew for each request.
#[tokio::test(flavor = "multi_thread")]
async fn a_bad_document_is_left_alone_by_all_groups_of_a_client() {
    let loads = Arc::new(AtomicUsize::new(0));
    let counted = loads.clone();
    let loader = loader_fn(move |_| {
        counted.fetch_add(1, Ordering::SeqCst);
        async { Ok::<_, LoaderError>(Loaded::found("no document")) }
    });
    let fleet = TestFleet::start(1, [Group::new("players", loader)]).await.unwrap();
    let client = Client::builder().registry(fleet.registry()).build().await.unwrap();
    for _ in 0..5 {
        let players = client.group("players").json::<Player>();
        assert_eq!(players.get("Tom").await.unwrap_err().kind(), ErrorKind::Codec);
        assert_eq!(players.get_many(["Tom"]).await[0].as_ref().unwrap_err().kind(), ErrorKind::Codec);
    }
    assert_eq!(loads.load(Ordering::SeqCst), 2, "once, and once more after the delete");
}
