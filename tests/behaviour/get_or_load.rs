//! Loaders that live in the application: one runs in the whole fleet for each missing key.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use peanut_client::{Client, ErrorKind};
use tokio::sync::Notify;
use tokio::task::JoinSet;

use crate::{client_of, fleet};

const GROUP: &str = "[[group]]\nname = \"g\"\nload_timeout = \"2s\"\n[group.loader]\nkind = \"none\"\n";

type Loaded = Result<Option<String>, String>;

/// Many callers in two clients ask for one key; each would load.
async fn ask(
    clients: &[Client],
    key: &'static str,
    loads: &Arc<AtomicUsize>,
    loaded: Loaded,
) -> Vec<Result<Option<String>, ErrorKind>> {
    let mut callers = JoinSet::new();
    for n in 0..100 {
        let (client, loads, loaded) = (clients[n % clients.len()].clone(), loads.clone(), loaded.clone());
        callers.spawn(async move {
            let load = || async {
                loads.fetch_add(1, Ordering::SeqCst);
                tokio::time::sleep(Duration::from_millis(200)).await;
                loaded
            };
            let value = client.group("g").get_or_load(key, load).await;
            value.map(|value| value.map(|v| String::from_utf8(v.to_vec()).unwrap())).map_err(|error| {
                let source = std::error::Error::source(&error).map(ToString::to_string).unwrap_or_default();
                assert!(format!("{error}: {source}").contains("no such table"), "{error}");
                assert!(source.is_empty() || !error.to_string().contains(&source), "told twice: {error}");
                error.kind()
            })
        });
    }
    callers.join_all().await
}

pub(crate) async fn two_clients(
    nodes: usize,
) -> (peanut_tests::Etcd, Vec<peanut_tests::ServerProcess>, Vec<Client>) {
    let (etcd, servers) = fleet(nodes, GROUP).await;
    let mut clients = Vec::new();
    for unary in [false, true] {
        let builder = client_of(&etcd).deadline(Duration::from_secs(10));
        let client = if unary { builder.unary() } else { builder }.build().await.unwrap();
        client.wait_for_ring(nodes as u64).await.unwrap();
        clients.push(client);
    }
    (etcd, servers, clients)
}

#[tokio::test(flavor = "multi_thread")]
async fn one_closure_runs_for_all_who_ask_in_the_fleet() {
    let (_etcd, _servers, clients) = two_clients(3).await;
    let loads = Arc::new(AtomicUsize::new(0));
    let got = ask(&clients, "k", &loads, Ok(Some("630".to_owned()))).await;
    assert!(got.iter().all(|value| *value == Ok(Some("630".to_owned()))), "{got:?}");
    assert_eq!(loads.load(Ordering::SeqCst), 1);
    assert_eq!(clients[0].group("g").get("k").await.unwrap().unwrap(), "630", "it was stored");

    let got = ask(&clients, "failing", &loads, Err("no such table".to_owned())).await;
    assert!(got.iter().all(|value| *value == Err(ErrorKind::Loader)), "{got:?}");
    assert_eq!(loads.load(Ordering::SeqCst), 2);

    let got = ask(&clients, "missing", &loads, Ok(None)).await;
    assert!(got.iter().all(|value| *value == Ok(None)));
    assert_eq!(loads.load(Ordering::SeqCst), 3);
    // A plain get finds nothing where nobody has brought anything, and that is not remembered.
    assert_eq!(clients[0].group("g").get("nothing").await.unwrap(), None);
    let got = ask(&clients, "nothing", &loads, Ok(Some("something".to_owned()))).await;
    assert!(got.iter().all(|value| *value == Ok(Some("something".to_owned()))));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_is_late_or_dies_is_replaced() {
    let (etcd, _servers, clients) = two_clients(1).await;
    // One that never ends: after `load_timeout` another runs.
    let begun = Arc::new(Notify::new());
    let stuck = tokio::spawn({
        let (client, begun) = (clients[0].clone(), begun.clone());
        async move {
            let load = || async {
                begun.notify_one();
                std::future::pending::<Result<Option<String>, String>>().await
            };
            client.group("g").get_or_load("late", load).await
        }
    });
    begun.notified().await;
    let loads = Arc::new(AtomicUsize::new(0));
    let got = ask(&clients, "late", &loads, Ok(Some("630".to_owned()))).await;
    assert!(got.iter().all(|value| *value == Ok(Some("630".to_owned()))), "{got:?}");
    assert_eq!(loads.load(Ordering::SeqCst), 1, "one replaced it");
    stuck.abort();

    // One whose client is gone: at once.
    let doomed = client_of(&etcd).deadline(Duration::from_secs(10)).build().await.unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let endpoint = etcd.endpoint();
    let begun = Arc::new(Notify::new());
    runtime.spawn({
        let begun = begun.clone();
        async move {
            let client = Client::builder().etcd([endpoint]).build().await.unwrap();
            let load = || async {
                begun.notify_one();
                std::future::pending::<Result<Option<String>, String>>().await
            };
            let _ = client.group("g").get_or_load("dead", load).await;
        }
    });
    begun.notified().await;
    runtime.shutdown_background();
    drop(doomed);
    let loads = Arc::new(AtomicUsize::new(0));
    let got = ask(&clients, "dead", &loads, Ok(Some("589".to_owned()))).await;
    assert!(got.iter().all(|value| *value == Ok(Some("589".to_owned()))), "{got:?}");
    assert_eq!(loads.load(Ordering::SeqCst), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_caller_that_is_cancelled_or_panics_gives_way_to_the_next_at_once() {
    // Long enough that nobody is replaced by time alone.
    let group = GROUP.replace("2s", "10m");
    let (etcd, _servers) = fleet(1, &group).await;
    for unary in [false, true] {
        let client = async |deadline| {
            let builder = client_of(&etcd).deadline(Duration::from_secs(deadline));
            if unary { builder.unary() } else { builder }.build().await.unwrap()
        };
        let (doomed, patient) = (client(30).await, client(30).await);
        for (key, panics) in [("cancelled", false), ("panicked", true)] {
            let key = format!("{key}-{unary}");
            let begun = Arc::new(Notify::new());
            let first = tokio::spawn({
                let (group, key, begun) = (doomed.group("g"), key.clone(), begun.clone());
                async move {
                    let load = || async {
                        begun.notify_one();
                        if panics {
                            tokio::time::sleep(Duration::from_millis(100)).await;
                            panic!("a panic that the test makes");
                        }
                        std::future::pending::<Result<Option<String>, String>>().await
                    };
                    group.get_or_load(key, load).await
                }
            });
            begun.notified().await;
            let waiting = tokio::spawn({
                let (group, key) = (patient.group("g"), key.clone());
                async move { group.get_or_load(key, || async { Ok::<_, String>(Some("of the next")) }).await }
            });
            tokio::time::sleep(Duration::from_millis(100)).await;
            first.abort();
            assert_eq!(waiting.await.unwrap().unwrap().unwrap(), "of the next");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn callers_that_have_left_are_given_nothing_to_do() {
    let group = GROUP.replace("2s", "10m");
    let (etcd, _servers) = fleet(1, &group).await;
    let client = client_of(&etcd).deadline(Duration::from_millis(300)).build().await.unwrap();
    let begun = Arc::new(Notify::new());
    let holder = tokio::spawn({
        let (group, begun) = (client.group("g"), begun.clone());
        async move {
            let load = || async {
                begun.notify_one();
                std::future::pending::<Result<Option<String>, String>>().await
            };
            group.get_or_load("k", load).await
        }
    });
    begun.notified().await;
    // They wait for the first, and leave when their time is over.
    let load = || async { Ok::<_, String>(Some("of a waiter")) };
    for _ in 0..5 {
        let error = client.group("g").get_or_load("k", load).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::DeadlineExceeded, "{error}");
    }
    holder.abort();
    let got = peanut_tests::eventually("somebody's closure to run", async || {
        client.group("g").get_or_load("k", load).await.ok()
    });
    assert_eq!(got.await.unwrap(), "of a waiter");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_closures_value_is_stored_and_answers_all_who_wait() {
    let group = GROUP.replace("2s", "1s");
    let (etcd, _servers) = fleet(1, &group).await;
    let client = client_of(&etcd).deadline(Duration::from_secs(30)).build().await.unwrap();
    let loads = Arc::new(AtomicUsize::new(0));
    let mut callers = JoinSet::new();
    for _ in 0..50 {
        let (group, loads) = (client.group("g"), loads.clone());
        callers.spawn(async move {
            let load = || async {
                let number = loads.fetch_add(1, Ordering::SeqCst);
                // Much longer than a load may take.
                tokio::time::sleep(Duration::from_millis(2500)).await;
                Ok::<_, String>(Some(format!("{number}")))
            };
            group.get_or_load("slow", load).await
        });
    }
    let got = callers.join_all().await;
    assert!(got.iter().all(|value| value.as_ref().is_ok_and(Option::is_some)), "{got:?}");
    assert!(loads.load(Ordering::SeqCst) <= 5, "{loads:?} closures");
    assert!(client.group("g").get("slow").await.unwrap().is_some(), "it is stored");
}

#[tokio::test(flavor = "multi_thread")]
async fn where_no_node_can_be_asked_the_closure_runs_all_the_same() {
    let (etcd, mut servers) = fleet(1, GROUP).await;
    let builder = || client_of(&etcd).deadline(Duration::from_secs(2));
    let (client, strict) =
        (builder().build().await.unwrap(), builder().uncached_loads(0).build().await.unwrap());
    let few = builder().uncached_loads(3).build().await.unwrap();
    servers[0].process().kill();
    let group = client.group("g");
    let loaded = group.get_or_load("k", || async { Ok::<_, String>(Some("from the origin")) }).await;
    assert_eq!(loaded.unwrap().unwrap(), "from the origin");
    assert_eq!(client.stats().uncached, 1);
    let failed = group.get_or_load("k", || async { Err::<Option<Vec<u8>>, _>("no such table") }).await;
    assert_eq!(failed.unwrap_err().kind(), ErrorKind::Loader);
    let refused = strict.group("g").get_or_load("k", || async { Ok::<_, String>(Some("unused")) }).await;
    assert_eq!(refused.unwrap_err().kind(), ErrorKind::Unavailable);
    // A dead fleet does not become a stampede.
    let (running, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let mut callers = JoinSet::new();
    for n in 0..100 {
        let (group, running, most) = (few.group("g"), running.clone(), most.clone());
        callers.spawn(async move {
            let load = || async {
                most.fetch_max(running.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                tokio::time::sleep(Duration::from_millis(500)).await;
                running.fetch_sub(1, Ordering::SeqCst);
                Ok::<_, String>(Some("v"))
            };
            let _ = group.get_or_load(format!("{n}"), load).await;
        });
    }
    callers.join_all().await;
    assert!((1..=3).contains(&most.load(Ordering::SeqCst)), "{most:?} at a time");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_written_meanwhile_stays() {
    let (_etcd, _servers, clients) = two_clients(1).await;
    let group = clients[0].group("g");
    let other = clients[1].group("g");
    let load = || async {
        other.set("k", "written").await.map_err(|error| error.to_string())?;
        Ok::<_, String>(Some("loaded before"))
    };
    assert_eq!(group.get_or_load("k", load).await.unwrap().unwrap(), "loaded before");
    assert_eq!(group.get("k").await.unwrap().unwrap(), "written");
}

#[tokio::test(flavor = "multi_thread")]
async fn many_keys_are_loaded_by_one_call_of_the_closure() {
    let (_etcd, _servers, clients) = two_clients(3).await;
    let keys: Vec<String> = (0..50).map(|n| format!("k{n}")).collect();
    for client in &clients {
        client.group("g").clear().await.unwrap();
        let group = client.group("g");
        group.set("k0", "set").await.unwrap();
        group.set_many([("k1", "set"), ("k2", "set")]).await.into_iter().for_each(|set| set.unwrap());
        let calls = std::sync::Mutex::new(Vec::new());
        let load = |missing: Vec<bytes::Bytes>| {
            calls.lock().unwrap().push(missing.len());
            async move {
                let found = missing.into_iter().filter(|key| key != "k49");
                Ok::<_, std::io::Error>(found.map(|key| (key.clone(), key)).collect::<Vec<_>>())
            }
        };
        let twice: Vec<String> = keys.iter().cloned().chain(["", "k3"].map(str::to_owned)).collect();
        let found = group.get_or_load_many(&twice, load).await;
        for (at, (key, found)) in twice.iter().zip(&found).enumerate() {
            match at {
                0..=2 => assert_eq!(found.as_ref().unwrap().as_ref().unwrap(), "set"),
                49 => assert_eq!(found.as_ref().unwrap(), &None),
                50 => assert_eq!(found.as_ref().unwrap_err().kind(), ErrorKind::InvalidArgument),
                _ => assert_eq!(found.as_ref().unwrap().as_ref().unwrap(), key),
            }
        }
        let calls = calls.into_inner().unwrap();
        assert_eq!(calls.iter().sum::<usize>(), 47, "each once: {calls:?}");
        // All are kept, also that one is not there.
        let none = |_| async { Err::<Vec<(String, String)>, _>("nothing is to be loaded") };
        assert!(group.get_or_load_many(&keys, none).await.iter().all(Result::is_ok));
    }
}

/// Two callers each of whom holds what the other one waits for.
#[tokio::test(flavor = "multi_thread")]
async fn callers_that_load_overlapping_keys_do_not_wait_for_one_another() {
    let (_etcd, _servers, clients) = two_clients(1).await;
    let loads = Arc::new(AtomicUsize::new(0));
    let mut callers = JoinSet::new();
    for n in 0..8 {
        let (group, loads) = (clients[n % 2].group("g"), loads.clone());
        callers.spawn(async move {
            let mut keys: Vec<String> = (0..40).map(|key| ((key * 7 + n * 11) % 40).to_string()).collect();
            keys.truncate(30);
            let load = |missing: Vec<bytes::Bytes>| {
                loads.fetch_add(missing.len(), Ordering::SeqCst);
                async move {
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    Ok::<_, String>(missing.into_iter().map(|key| (key, "loaded")).collect::<Vec<_>>())
                }
            };
            let found = group.get_or_load_many(&keys, load).await;
            assert!(found.into_iter().all(|found| found.unwrap().unwrap() == "loaded"));
        });
    }
    callers.join_all().await;
    assert_eq!(loads.load(Ordering::SeqCst), 40);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_load_of_many_that_fails_fails_its_keys_and_names_its_error() {
    let (_etcd, _servers, clients) = two_clients(1).await;
    let group = clients[0].group("g");
    group.set("kept", "set").await.unwrap();
    let load = |_| async { Err::<Vec<(String, String)>, _>(std::io::Error::other("no such table")) };
    let found = group.get_or_load_many(["kept", "a", "b"], load).await;
    assert_eq!(found[0].as_ref().unwrap().as_ref().unwrap(), "set");
    for failed in &found[1..] {
        let error = failed.as_ref().unwrap_err();
        let source = std::error::Error::source(error).unwrap().downcast_ref::<std::io::Error>();
        assert_eq!(
            (error.kind(), source.unwrap().to_string()),
            (ErrorKind::Loader, "no such table".to_owned())
        );
    }
}

/// A lifetime that comes with a value, and one with a call.
#[tokio::test(flavor = "multi_thread")]
async fn a_loaded_value_may_have_a_lifetime_and_a_call_a_deadline() {
    use peanut_client::Loaded as Found;
    let (_etcd, _servers, clients) = two_clients(1).await;
    for client in &clients {
        let group = client.group("g");
        group.clear().await.unwrap();
        let short = || async { Ok::<_, String>(Found::found("v").ttl(Duration::from_millis(1))) };
        assert_eq!(group.get_or_load("short", short).await.unwrap().unwrap(), "v");
        peanut_tests::eventually("it to expire", async || {
            group.get("short").await.unwrap().is_none().then_some(())
        })
        .await;
        let for_an_hour = || async { Ok::<_, String>(Found::found("v").ttl(Duration::from_secs(3600))) };
        group.get_or_load("long", for_an_hour).await.unwrap();
        let ttl = group.get_detailed("long").await.unwrap().ttl;
        // A group's is ten minutes; lanes tell how long it is.
        assert!(ttl.is_zero() || ttl > Duration::from_secs(3000), "{ttl:?}");

        let runs = Arc::new(Notify::new());
        let stuck = tokio::spawn({
            let (group, runs) = (group.clone(), runs.clone());
            let never = move || async move {
                runs.notify_one();
                std::future::pending::<Result<Option<String>, String>>().await
            };
            async move { group.get_or_load("stuck", never).await }
        });
        runs.notified().await;
        let begun = peanut_tests::now();
        let hurried = group.with_deadline(Duration::from_millis(50));
        peanut_tests::eventually("the other to load", async || {
            let error = hurried
                .get_or_load("stuck", || async { Err::<Option<String>, _>("mine runs") })
                .await
                .unwrap_err();
            (error.kind() == ErrorKind::DeadlineExceeded).then_some(())
        })
        .await;
        assert!(begun.elapsed() < Duration::from_secs(8), "the client's is 10 s: {:?}", begun.elapsed());
        stuck.abort();
        for bad in [Duration::ZERO, Duration::MAX] {
            let error = group.with_deadline(bad).get("k").await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidArgument);
            assert!(error.to_string().contains("deadline: must be from 1ms to 1d"), "{error}");
        }
    }
}

/// As a new version of an application finds them, which has another type.
#[tokio::test(flavor = "multi_thread")]
async fn many_json_values_of_another_type_are_loaded_again() {
    let (_etcd, _servers, clients) = two_clients(1).await;
    let bytes = clients[0].group("g");
    let numbers = bytes.json::<u32>();
    bytes.set("old", "{}").await.unwrap();
    bytes.set("good", "1").await.unwrap();
    let loads = std::sync::Mutex::new(Vec::new());
    let load = |missing: Vec<bytes::Bytes>| {
        loads.lock().unwrap().extend(missing.iter().cloned());
        async move {
            let found = missing.into_iter().filter(|key| key != "none").map(|key| (key, Some(7_u32)));
            Ok::<Vec<_>, String>(found.collect())
        }
    };
    let loaded = numbers.get_or_load_many(["old", "good", "new", "none"], load).await;
    let loaded: Vec<_> = loaded.into_iter().map(Result::unwrap).collect();
    assert_eq!(loaded, [Some(7), Some(1), Some(7), None]);
    let mut loads = loads.into_inner().unwrap();
    loads.sort();
    assert_eq!(loads, ["new", "none", "old"]);
    bytes.set("old", "{}").await.unwrap();
    let got = numbers.get_many(["old", "good"]).await;
    assert_eq!(got.into_iter().map(Result::unwrap).collect::<Vec<_>>(), [None, Some(1)], "it was deleted");
    bytes.set("old", "{}").await.unwrap();
    assert_eq!(numbers.get_detailed("old").await.unwrap().0, None);
}
