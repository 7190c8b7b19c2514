//! Watching a registry that fails, forgets and comes back, on a paused clock.

use async_trait::async_trait;
use parking_lot::Mutex;

use super::*;
use crate::membership::{Liveness, NodeInfo, RingDocument};
use crate::numbers::RingVersion;
use crate::registry::{Changes, KeyRange, LeaseId, LocalRegistry, Page, PageOptions};

/// A local registry whose reads and watches can be made to fail, and which can lose its data.
#[derive(Debug)]
struct Faulty {
    inner: Mutex<LocalRegistry>,
    down: watch::Sender<bool>,
    loads: Mutex<u32>,
    /// How often it has lost its data, which ends the watches.
    lost: watch::Sender<u32>,
    /// After so many reads and watches more it loses its data.
    loses_data: Mutex<Option<u32>>,
}

impl Faulty {
    fn inner(&self) -> LocalRegistry {
        self.inner.lock().clone()
    }

    /// Of one read or watch.
    fn count(&self) {
        let mut left = self.loses_data.lock();
        *left = left.and_then(|left| left.checked_sub(1));
        if *left == Some(0) {
            let mut inner = self.inner.lock();
            *inner = inner.emptied();
            self.lost.send_modify(|lost| *lost += 1);
        }
    }
}

struct Breakable {
    inner: Box<dyn Changes>,
    down: watch::Receiver<bool>,
    lost: watch::Receiver<u32>,
}

#[async_trait]
impl Changes for Breakable {
    async fn next(&mut self) -> Result<Vec<Change>, RegistryError> {
        tokio::select! {
            changes = self.inner.next() => changes,
            _ = self.down.wait_for(|down| *down) => Err(RegistryError::new("cut")),
            _ = self.lost.changed() => Err(RegistryError::new("another store")),
        }
    }
}

#[async_trait]
impl Registry for Faulty {
    async fn page(&self, range: &KeyRange, options: PageOptions) -> Result<Page, RegistryError> {
        // A full read begins with the ring.
        if range.contains("/peanut/f/ring") {
            *self.loads.lock() += 1;
        }
        if *self.down.borrow() {
            return Err(RegistryError::new("down"));
        }
        let page = self.inner().page(range, options).await;
        self.count();
        page
    }
    async fn watch(&self, ranges: &[KeyRange]) -> Result<Box<dyn Changes>, RegistryError> {
        let (down, lost) = (self.down.subscribe(), self.lost.subscribe());
        let inner = self.inner().watch(ranges).await?;
        self.count();
        Ok(Box::new(Breakable { inner, down, lost }))
    }
    async fn put(&self, key: &str, value: Vec<u8>, lease: Option<LeaseId>) -> Result<(), RegistryError> {
        self.inner().put(key, value, lease).await
    }
    async fn swap(&self, key: &str, expected: i64, value: Vec<u8>) -> Result<bool, RegistryError> {
        self.inner().swap(key, expected, value).await
    }
    async fn delete_if(&self, key: &str, expected: i64) -> Result<bool, RegistryError> {
        self.inner().delete_if(key, expected).await
    }
    async fn delete(&self, key: &str) -> Result<(), RegistryError> {
        self.inner().delete(key).await
    }
    async fn grant(&self, ttl: Duration) -> Result<LeaseId, RegistryError> {
        self.inner().grant(ttl).await
    }
    async fn renew(&self, lease: LeaseId) -> Result<bool, RegistryError> {
        self.inner().renew(lease).await
    }
    async fn revoke(&self, lease: LeaseId) -> Result<(), RegistryError> {
        self.inner().revoke(lease).await
    }
}

struct Fixture {
    registry: Arc<Faulty>,
    keys: Keys,
    discovery: Discovery,
    seen: watch::Receiver<Discovered>,
}

fn start() -> Fixture {
    let registry = Arc::new(Faulty {
        inner: Mutex::new(LocalRegistry::new()),
        down: watch::Sender::new(false),
        loads: Mutex::new(0),
        lost: watch::Sender::new(0),
        loses_data: Mutex::new(None),
    });
    let keys = Keys::new("f");
    let discovery = Discovery::start(registry.clone(), keys.clone());
    let seen = discovery.subscribe();
    Fixture { registry, keys, discovery, seen }
}

impl Fixture {
    async fn put_ring(&self, ring: &RingDocument) {
        self.registry.put(&self.keys.ring(), ring.encode(), None).await.unwrap();
    }
}

fn ring(version: u64) -> RingDocument {
    let node = NodeInfo { id: "a".into(), addr: "a:1".into(), zone: String::new(), weight: 1 };
    RingDocument { version: RingVersion(version), ..RingDocument::empty(8).with(&node, 0).unwrap() }
}

#[tokio::test(start_paused = true)]
async fn a_change_is_seen_and_the_last_view_outlives_the_registry() {
    let mut f = start();
    f.put_ring(&ring(1)).await;
    f.seen.wait_for(|d| d.view.ring.version == RingVersion(1)).await.unwrap();

    f.registry.down.send_replace(true);
    let held = f.seen.wait_for(|d| d.trouble.is_some()).await.unwrap().clone();
    assert_eq!(held.view.ring.version, RingVersion(1));
    f.put_ring(&ring(2)).await;
    sleep(Duration::from_secs(60)).await;
    assert!(*f.registry.loads.lock() < 40, "attempts back off");
    assert_eq!(f.seen.borrow().view.ring.version, RingVersion(1));

    f.registry.down.send_replace(false);
    let back = f.seen.wait_for(|d| d.trouble.is_none()).await.unwrap();
    assert_eq!(back.view.ring.version, RingVersion(2));
}

fn live() -> Liveness {
    Liveness {
        format: 1,
        addr: "a:1".into(),
        incarnation: "0".into(),
        build: "t".into(),
        started_ms: 0,
        groups: None,
    }
}

#[tokio::test(start_paused = true)]
async fn nothing_is_missed_of_a_registry_that_loses_its_data_between_two_steps_of_a_reading() {
    for calls in 1..=6 {
        let mut f = start();
        f.put_ring(&ring(1)).await;
        f.put_ring(&ring(2)).await;
        f.seen.wait_for(|d| d.view.ring.version == RingVersion(2)).await.unwrap();

        *f.registry.loses_data.lock() = Some(calls);
        f.discovery.reload();
        f.registry.lost.subscribe().wait_for(|lost| *lost == 1).await.unwrap();
        let begun = Instant::now();
        // What a store that begins anew has counts from the beginning, and may be more than the last one had,
        // or less.
        f.registry.put(&f.keys.live("a"), live().encode(), None).await.unwrap();
        let back = f.seen.wait_for(|d| d.view.live.contains_key("a")).await.unwrap();
        assert!(back.lost.is_some(), "after {calls} calls");
        assert!(begun.elapsed() < RELOAD_EVERY / 2, "after {calls} calls: {:?}", begun.elapsed());
    }
}

#[tokio::test(start_paused = true)]
async fn what_a_broken_watch_missed_is_read_again_deletions_too() {
    let mut f = start();
    f.registry.put(&f.keys.live("a"), live().encode(), None).await.unwrap();
    f.seen.wait_for(|d| d.view.live.contains_key("a")).await.unwrap();
    f.registry.down.send_replace(true);
    f.seen.wait_for(|d| d.trouble.is_some()).await.unwrap();
    f.registry.delete(&f.keys.live("a")).await.unwrap();
    f.registry.down.send_replace(false);
    f.seen.wait_for(|d| d.view.live.is_empty()).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn an_older_ring_is_believed_only_if_nobody_repairs_it() {
    let mut f = start();
    f.put_ring(&ring(9)).await;
    f.seen.wait_for(|d| d.view.ring.version == RingVersion(9)).await.unwrap();

    f.put_ring(&ring(3)).await;
    f.seen.wait_for(|d| d.view.ring_was_lost()).await.unwrap();
    f.put_ring(&ring(10)).await;
    f.seen.wait_for(|d| d.view.ring.version == RingVersion(10)).await.unwrap();

    let begun = Instant::now();
    f.put_ring(&ring(4)).await;
    f.seen.wait_for(|d| d.view.ring.version == RingVersion(4)).await.unwrap();
    assert!(begun.elapsed() >= OLDER_RING_BELIEVED);
}

#[tokio::test(start_paused = true)]
async fn who_asks_does_not_wait_for_the_back_off_and_has_it_read_ten_times_a_second_at_most() {
    let mut f = start();
    f.put_ring(&ring(1)).await;
    f.seen.wait_for(|d| d.view.ring.version == RingVersion(1)).await.unwrap();
    f.registry.down.send_replace(true);
    // The next attempt comes seconds later.
    sleep(Duration::from_secs(30)).await;
    f.registry.down.send_replace(false);
    f.put_ring(&ring(2)).await;
    let asked = Instant::now();
    f.discovery.reload();
    f.seen.wait_for(|d| d.view.ring.version == RingVersion(2)).await.unwrap();
    assert!(asked.elapsed() <= ASKED_APART, "{:?}", asked.elapsed());

    for is_down in [false, true] {
        f.registry.down.send_replace(is_down);
        sleep(Duration::from_secs(1)).await;
        let before = *f.registry.loads.lock();
        for _ in 0..1000 {
            f.discovery.reload();
            sleep(Duration::from_millis(1)).await;
        }
        let loads = *f.registry.loads.lock() - before;
        assert!((5..=11).contains(&loads), "{loads} in a second");
    }
}

#[tokio::test(start_paused = true)]
async fn a_node_that_was_passed_over_among_thousands_is_read_when_it_joins() {
    let mut f = start();
    for stranger in 0..1_100 {
        f.registry.put(&f.keys.live(&format!("stranger-{stranger}")), live().encode(), None).await.unwrap();
    }
    f.put_ring(&ring(1)).await;
    f.seen.wait_for(|d| d.view.ring.version == RingVersion(1)).await.unwrap();
    f.registry.put(&f.keys.live("z"), live().encode(), None).await.unwrap();
    sleep(Duration::from_secs(1)).await;
    assert!(!f.seen.borrow().view.live.contains_key("z"), "there are too many");
    let newcomer = NodeInfo { id: "z".into(), addr: "z:1".into(), zone: String::new(), weight: 1 };
    let begun = Instant::now();
    f.put_ring(&ring(1).with(&newcomer, 0).unwrap()).await;
    f.seen.wait_for(|d| d.view.live.contains_key("z")).await.unwrap();
    assert!(begun.elapsed() < Duration::from_secs(1));
    // It is read once for it, whether or not it is alive.
    f.registry.delete(&f.keys.live("z")).await.unwrap();
    let loads = *f.registry.loads.lock();
    sleep(Duration::from_secs(10)).await;
    assert_eq!(*f.registry.loads.lock(), loads);
}

#[tokio::test(start_paused = true)]
async fn everything_is_read_again_every_few_minutes() {
    let mut f = start();
    f.seen.wait_for(|d| d.view.revision > 0).await.unwrap();
    sleep(RELOAD_EVERY * 4).await;
    let loads = *f.registry.loads.lock();
    assert!((4..=7).contains(&loads), "{loads}");
}
