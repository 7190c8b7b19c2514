//! Near copies: hot keys are answered in the application's own memory, and show every write that was
//! acknowledged.

use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use nix::sys::signal::Signal;
use peanut_client::{Client, Group as Keys, NearCache, NearKeys, Source};
use peanut_proto::clock::uptime_nanos;
use peanut_server::testing::TestFleet;
use peanut_server::{Group, Loaded, loader_fn};
use peanut_tests::{Process, ServerProcess, eventually, free_port};

use crate::SERVER;
use crate::admin::get;

const MINUTE: Duration = Duration::from_secs(60);

async fn fleet(nodes: usize) -> TestFleet {
    let upper = |key: Bytes| async move {
        let key = String::from_utf8_lossy(&key).into_owned();
        Ok(if key.starts_with("no") { Loaded::not_found() } else { Loaded::found(key.to_uppercase()) })
    };
    let groups = [Group::without_loader("g"), Group::new("upper", loader_fn(upper))];
    TestFleet::start(nodes, groups).await.unwrap()
}

async fn client(fleet: &TestFleet, near: Option<NearCache>) -> Client {
    let builder = Client::builder().registry(fleet.registry()).deadline(MINUTE);
    let builder = match near {
        Some(near) => builder.near_cache(near),
        None => builder,
    };
    builder.build().await.unwrap()
}

fn all() -> Option<NearCache> {
    Some(NearCache::bytes(4 << 20).keys(NearKeys::All))
}

/// Reads a key until it is read from a near copy.
async fn read_near(group: &Keys, key: &str) -> Option<String> {
    let near = eventually("a near copy", async || {
        let read = group.get_detailed(key).await.unwrap();
        (read.source == Source::Near).then_some(read.value)
    });
    near.await.map(|value| String::from_utf8_lossy(&value).into_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_near_copy_says_how_long_its_value_stays_fresh_not_how_long_the_copy_is_kept() {
    let fleet = fleet(1).await;
    let group = client(&fleet, all()).await.group("g");
    let ttl = Duration::from_secs(3000);
    group.set_with_ttl("k", "v", ttl).await.unwrap();
    assert_eq!(read_near(&group, "k").await.as_deref(), Some("v"));
    let found = group.get_detailed("k").await.unwrap();
    assert!(found.ttl > ttl / 2 && found.ttl <= ttl, "{found:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_near_copy_shows_every_write_that_was_acknowledged_before() {
    let fleet = fleet(2).await;
    let (reader, writer) = (client(&fleet, all()).await, client(&fleet, None).await);
    let (read, write) = (reader.group("g"), writer.group("g"));
    let mut near = 0;
    for n in 0..300 {
        let value = n.to_string();
        match n % 3 {
            0 => write.set("k", &value).await.unwrap(),
            1 => write.set_many([("k", &value)]).await.into_iter().next().unwrap().unwrap(),
            _ => write.begin_write("k").await.unwrap().set(&value).await.unwrap(),
        }
        for _ in 0..20 {
            let found = read.get_detailed("k").await.unwrap();
            assert_eq!(found.value.unwrap(), value, "from {:?}", found.source);
            near += u32::from(found.source == Source::Near);
        }
    }
    assert!(near > 1_000, "{near} of 6000 gets were of near copies");
    let stats = reader.stats();
    assert!(stats.near_hits > 1_000 && stats.near_invalidations > 200, "{stats:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn every_way_to_read_finds_near_copies_and_every_write_ends_them() {
    let fleet = fleet(3).await;
    let (reader, writer) = (client(&fleet, all()).await, client(&fleet, None).await);
    let (read, write) = (reader.group("upper"), writer.group("upper"));
    assert_eq!(read_near(&read, "tom").await.unwrap(), "TOM");
    assert_eq!(read_near(&read, "nobody").await, None, "that there is none is known too");
    let gets = |stats: peanut_client::Stats| stats.hits + stats.loaded + stats.not_found;
    let before = gets(reader.stats());
    let values = read.get_many(["tom", "nobody", ""]).await;
    assert_eq!(values[0].as_ref().unwrap().as_deref(), Some(&b"TOM"[..]));
    assert!(matches!(values[1], Ok(None)) && values[2].is_err());
    let load = || async { Err::<Option<String>, _>("it is there") };
    assert_eq!(read.get_or_load("tom", load).await.unwrap().unwrap(), "TOM");
    let load = |_| async { Err::<Vec<(String, String)>, _>("they are there") };
    let values = read.get_or_load_many(["nobody", "tom"], load).await;
    assert!(matches!(&values[..], [Ok(None), Ok(Some(value))] if value == "TOM"));
    assert_eq!(gets(reader.stats()), before, "no node was asked");

    for round in 0..20 {
        let value = format!("{round}");
        for write_it in 0..5 {
            read_near(&read, "tom").await;
            let expected = match write_it {
                0 => write.set("tom", &value).await.map(|()| value.clone()),
                1 => write.delete("tom").await.map(|()| "TOM".to_owned()),
                2 => write.delete_many(["tom", "x"]).await.pop().unwrap().map(|()| "TOM".to_owned()),
                3 => write.clear().await.map(|()| "TOM".to_owned()),
                _ => read.set("tom", &value).await.map(|()| value.clone()),
            };
            let expected = expected.unwrap();
            assert_eq!(
                read.get("tom").await.unwrap().unwrap(),
                expected,
                "write {write_it} of round {round}"
            );
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn readers_and_writers_of_many_processes_never_see_an_older_value() {
    let fleet = fleet(2).await;
    let writer = client(&fleet, all()).await;
    let (written, stop) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
    writer.group("g").set("k", "0").await.unwrap();
    let mut readers = Vec::new();
    for _ in 0..4 {
        let (client, written, stop) = (client(&fleet, all()).await, written.clone(), stop.clone());
        readers.push(tokio::spawn(async move {
            let group = client.group("g");
            while !stop.load(Ordering::Relaxed) {
                let at_least = written.load(Ordering::SeqCst);
                let value = group.get("k").await.unwrap();
                // Between its delete and its value a set leaves nothing.
                if let Some(value) = value {
                    let value: u64 = std::str::from_utf8(&value).unwrap().parse().unwrap();
                    assert!(value >= at_least, "{value} after {at_least}");
                }
                tokio::task::coop::consume_budget().await;
            }
            client.stats().near_hits
        }));
    }
    for n in 1..2_000_u64 {
        writer.group("g").set("k", n.to_string()).await.unwrap();
        written.store(n, Ordering::SeqCst);
        if n % 50 == 0 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
    stop.store(true, Ordering::Relaxed);
    for reader in readers {
        assert!(reader.await.unwrap() > 0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_is_gone_is_waited_for_once() {
    let fleet = fleet(1).await;
    let writer = client(&fleet, None).await;
    writer.group("g").set_many([("a", "1"), ("b", "1")]).await.into_iter().for_each(Result::unwrap);
    // It ends without a word, as a process that is killed: its runtime does.
    let (registry, gone) = (fleet.registry(), std::sync::mpsc::channel());
    let holder = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let near = all().unwrap();
            let client = Client::builder().registry(registry).near_cache(near).build().await.unwrap();
            for key in ["a", "b"] {
                read_near(&client.group("g"), key).await;
            }
            std::mem::forget(client);
        });
        runtime.shutdown_background();
        gone.0.send(()).unwrap();
    });
    gone.1.recv().unwrap();
    holder.join().unwrap();
    writer.group("g").set("a", "2").await.unwrap();
    let begun = peanut_tests::now();
    for n in 0..100 {
        writer.group("g").set("b", n.to_string()).await.unwrap();
    }
    // A hundred waits would take a minute.
    assert!(begun.elapsed() < Duration::from_secs(20));
}

/// A node with one group, whose metrics can be read.
struct Metered {
    server: ServerProcess,
    admin: String,
}

impl Metered {
    async fn start() -> Self {
        let (listen, admin) = (format!("127.0.0.1:{}", free_port()), format!("127.0.0.1:{}", free_port()));
        let config = format!("listen = \"{listen}\"\nnodes = [\"{listen}\"]\nadmin = \"{admin}\"\n");
        let group = "[[group]]\nname = \"g\"\n[group.loader]\nkind = \"none\"\n";
        Metered { server: ServerProcess::start_with(SERVER, &format!("{config}{group}")).await, admin }
    }

    async fn metric(&self, name: &str) -> f64 {
        let (_, text) = get(&self.admin, "/metrics").await;
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.unwrap_or_else(|| panic!("no {name} in {text}")).parse().unwrap()
    }

    /// A process that reads `a` and `b` from near copies.
    async fn holder(&self) -> Process {
        let mut command = Command::new(env!("CARGO_BIN_EXE_holder"));
        let holder = Process::start("holder", command.args([self.server.addr(), "g", "a", "b"]));
        eventually("near copies of both", async || {
            let log = holder.log();
            ["a", "b"].iter().all(|key| log.iter().rev().take(2).any(|line| is_near(line, key))).then_some(())
        })
        .await;
        holder
    }
}

fn is_near(line: &str, key: &str) -> bool {
    line.split(' ').nth(1) == Some(key) && line.ends_with(" near")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_holder_that_stands_still_or_is_killed_is_waited_for_once_and_shows_nothing_old_afterwards() {
    for is_killed in [false, true] {
        let node = Metered::start().await;
        let writer = Client::builder().nodes([node.server.addr()]).deadline(MINUTE).build().await.unwrap();
        let group = writer.group("g");
        group.set_many([("a", "0"), ("b", "0")]).await.into_iter().for_each(Result::unwrap);
        let mut holder = node.holder().await;
        if is_killed {
            holder.kill();
        } else {
            holder.signal(Signal::SIGSTOP);
        }
        let mut acknowledged = 0;
        for n in 1..=50_u64 {
            let value = n.to_string();
            group.set_many([("a", &value), ("b", &value)]).await.into_iter().for_each(Result::unwrap);
            acknowledged = uptime_nanos();
        }
        // Of a process that was killed the node may hear, and wait for its leases all the same.
        let waits = node.metric("peanut_near_unconfirmed_total").await;
        assert!((1.0..=2.0).contains(&waits), "{waits} leases of two lanes were waited for");
        assert!(node.metric("peanut_near_waits_total").await <= 4.0, "only writes of what it held waited");
        if !is_killed {
            holder.signal(Signal::SIGCONT);
            let read_again = eventually("it to read both again", async || {
                let log = holder.log();
                let last: Vec<_> = log.iter().filter_map(|line| line.split_once(' ')).collect();
                let of = |key: &str| {
                    let began_late = |(begun, rest): &&(&str, &str)| {
                        begun.parse::<u64>().unwrap() > acknowledged && rest.starts_with(key)
                    };
                    last.iter().filter(began_late).map(|(_, rest)| rest.to_string()).collect::<Vec<_>>()
                };
                let (a, b) = (of("a"), of("b"));
                (a.len() > 20 && b.len() > 20).then(|| [a, b].concat())
            });
            for read in read_again.await {
                assert!(
                    read[2..].starts_with("50 "),
                    "{read}: an older value after a later one was acknowledged"
                );
            }
            holder.kill();
        }
        eventually("nothing to be held", async || {
            (node.metric("peanut_near_copies").await == 0.0).then_some(())
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn hot_keys_come_near_and_others_do_not() {
    let fleet = fleet(2).await;
    let reader = client(&fleet, Some(NearCache::bytes(4 << 20).group("g", NearKeys::Off))).await;
    let group = reader.group("upper");
    for n in 0..200 {
        group.get(format!("cold-{n}")).await.unwrap();
    }
    assert_eq!(reader.stats().near_copies, 0, "nobody asks for those");
    eventually("the hot key is near", async || {
        for _ in 0..200 {
            group.get("hot").await.unwrap();
        }
        (reader.stats().near_hits > 0).then_some(())
    })
    .await;
    let off = reader.group("g");
    off.set("k", "v").await.unwrap();
    let before = reader.stats();
    for _ in 0..1_000 {
        off.get("k").await.unwrap();
    }
    assert_eq!(reader.stats().near_hits, before.near_hits, "that group has none");
}

#[tokio::test(flavor = "multi_thread")]
async fn where_copies_may_be_outdated_writes_do_not_wait_and_reads_show_ones_own() {
    let fleet = fleet(1).await;
    let near = NearCache::bytes(4 << 20).keys(NearKeys::All).max_staleness(Duration::from_secs(1));
    let (one, other) = (client(&fleet, Some(near.clone())).await, client(&fleet, Some(near)).await);
    let (one, other) = (one.group("g"), other.group("g"));
    for n in 0..100 {
        let value = n.to_string();
        one.set("k", &value).await.unwrap();
        assert_eq!(one.get("k").await.unwrap().unwrap(), value, "its own");
        eventually("the other's copy is dropped", async || {
            (other.get("k").await.unwrap().unwrap() == value).then_some(())
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_a_near_cache_is_refused() {
    for (near, why) in [
        (NearCache::bytes(1_000), "near_cache: 1000 bytes"),
        (NearCache::bytes(1 << 20).max_staleness(Duration::ZERO), "near_cache: max_staleness"),
        (NearCache::bytes(1 << 20).max_staleness(Duration::from_secs(61)), "near_cache: max_staleness"),
    ] {
        let error = Client::builder().nodes("127.0.0.1:1").near_cache(near).build().await.unwrap_err();
        assert!(error.to_string().starts_with(why), "{error}");
    }
}
