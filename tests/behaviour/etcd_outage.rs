//! etcd goes away, comes back, forgets: running clients and nodes go on.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use peanut_client::{Client, Error};
use peanut_proto::registry::Registry as _;
use peanut_tests::{Etcd, Origin, Proxy, ServerProcess, eventually, group_from, now};
use tokio::task::JoinHandle;

use crate::{SCORES, SERVER, client, client_of, fleet};

/// Reads all the time, at a measured pace, until told to stop; gives the errors.
struct Load {
    stop: Arc<AtomicBool>,
    readers: Vec<JoinHandle<(u64, Vec<Error>)>>,
}

impl Load {
    fn start(client: &Client) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let reader = |_| {
            let (group, stop) = (client.group("scores"), stop.clone());
            tokio::spawn(async move {
                let (mut reads, mut errors) = (0, Vec::new());
                while !stop.load(Ordering::Relaxed) {
                    let answer = group.get(format!("key-{}", fastrand::u32(..300))).await;
                    errors.extend(answer.err());
                    reads += 1;
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
                (reads, errors)
            })
        };
        Load { readers: (0..8).map(reader).collect(), stop }
    }

    async fn stop(self) -> (u64, Vec<Error>) {
        self.stop.store(true, Ordering::Relaxed);
        let (mut reads, mut errors) = (0, Vec::new());
        for reader in self.readers {
            let (some, wrong) = reader.await.unwrap();
            reads += some;
            errors.extend(wrong);
        }
        (reads, errors)
    }
}

/// What etcd holds of the nodes' liveness, by number of keys: under the fleet and under the naming scheme.
async fn liveness(etcd: &Etcd) -> (usize, usize) {
    let registry = etcd.registry();
    let live = registry.load("/peanut/default/live/").await.map_or(0, |snapshot| snapshot.entries.len());
    let naming = registry.load("peanutcache/").await.map_or(0, |snapshot| snapshot.entries.len());
    (live, naming)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_minute_without_etcd_fails_no_call_and_loses_no_ring() {
    let origin = Origin::start(Duration::ZERO).await;
    let (mut etcd, mut servers) = fleet(3, &group_from("scores", origin.url(), "ttl = \"1s\"")).await;
    let client = client(&etcd, 3).await;
    let version = client.ring().version();
    let load = Load::start(&client);

    etcd.stop();
    tokio::time::sleep(Duration::from_secs(20)).await;
    servers[0].process().kill();
    tokio::time::sleep(Duration::from_secs(5)).await;
    servers[0].start_again().await;
    tokio::time::sleep(Duration::from_secs(35)).await;
    assert_eq!(client.ring().version(), version, "the last good ring stays");
    etcd.start_again().await;

    servers[0].registered().await;
    eventually("all nodes to be alive in etcd", async || (liveness(&etcd).await == (3, 3)).then_some(()))
        .await;
    let back = servers[0].addr().to_owned();
    eventually("the client to see the node back", async || {
        client.nodes().iter().any(|node| node.id == back && node.alive && node.up).then_some(())
    })
    .await;
    let (reads, errors) = load.stop().await;
    assert!(
        reads > 5_000 && errors.is_empty(),
        "{reads} reads, {} errors: {:?}",
        errors.len(),
        errors.first()
    );
    assert_eq!(client.ring().version(), version, "coming back changes no ownership");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_was_cut_off_during_a_compaction_reloads_and_agrees_with_a_fresh_one() {
    let (etcd, mut servers) = fleet(2, SCORES).await;
    let proxy = Proxy::start(etcd.port()).await;
    let cut_off = Client::builder().etcd([proxy.endpoint()]).build().await.unwrap();
    eventually("the ring to be whole", async || (cut_off.nodes().len() == 2).then_some(())).await;

    proxy.cut();
    servers.push(ServerProcess::start(SERVER, &etcd.endpoint(), SCORES).await);
    servers[2].registered().await;
    etcd.compact().await;
    assert_eq!(cut_off.nodes().len(), 2);
    proxy.mend();

    let fresh = client(&etcd, 3).await;
    let version = fresh.ring().version();
    eventually("the client to catch up", async || (cut_off.ring().version() == version).then_some(())).await;
    for n in 0..10_000_u32 {
        let key = n.to_be_bytes();
        assert_eq!(cut_off.ring().place("scores", &key), fresh.ring().place("scores", &key));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_key_of_a_lost_lease_is_back_within_five_seconds() {
    let (etcd, _servers) = fleet(3, SCORES).await;
    assert_eq!(liveness(&etcd).await, (3, 3));
    let begun = now();
    etcd.revoke_all_leases().await;
    eventually("liveness and naming records", async || (liveness(&etcd).await == (3, 3)).then_some(())).await;
    assert!(begun.elapsed() < Duration::from_secs(5), "back after {:?}", begun.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_etcd_that_has_lost_everything_is_given_the_ring_again() {
    let (mut etcd, mut servers) = fleet(3, SCORES).await;
    let client = client(&etcd, 3).await;
    let before = client.ring();
    // One node is down meanwhile, and a member all the same.
    servers[2].process().kill();
    etcd.wipe();
    etcd.start_again().await;
    eventually("the nodes to register again", async || (liveness(&etcd).await == (2, 2)).then_some(())).await;
    eventually("the client to have the new ring", async || {
        (client.ring().version() > before.version()).then_some(())
    })
    .await;
    assert_eq!(client.ring().members(), before.members());
    assert!(client.group("scores").get("Tom").await.unwrap().is_some());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_etcd_that_is_frozen_and_thawed_is_watched_again() {
    let (etcd, mut servers) = fleet(2, SCORES).await;
    let client = client_of(&etcd).build().await.unwrap();
    eventually("the ring to be whole", async || (client.nodes().len() == 2).then_some(())).await;
    etcd.freeze();
    // Longer than a watch may be silent.
    tokio::time::sleep(Duration::from_secs(18)).await;
    assert!(client.group("scores").get("Tom").await.unwrap().is_some());
    etcd.thaw();
    servers.push(ServerProcess::start(SERVER, &etcd.endpoint(), SCORES).await);
    servers[2].registered().await;
    eventually("the client to see the node", async || (client.nodes().len() == 3).then_some(())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_endpoint_is_passed_over() {
    let (etcd, _servers) = fleet(1, SCORES).await;
    let dead = format!("http://127.0.0.1:{}", peanut_tests::free_port());
    for endpoints in [[dead.clone(), etcd.endpoint()], [etcd.endpoint(), dead]] {
        let client = Client::builder().etcd(endpoints).build().await.unwrap();
        assert_eq!(client.group("scores").get("Tom").await.unwrap().unwrap(), "630");
    }
}
