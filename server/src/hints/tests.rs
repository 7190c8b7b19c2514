//! Reading what is left for a node, from a registry that does not answer everything.

use std::sync::atomic::AtomicU32;

use peanut_proto::registry::{Asked, Refusing};
use tokio::time::timeout;

use super::*;

/// Nothing comes back from a disk, and no near copies are given, before the mark is read.
#[tokio::test(start_paused = true)]
async fn a_mark_that_could_not_be_read_is_read_again() {
    let (mark, asked_before) = (KeyRange::key("/peanut/f/lineage/a"), AtomicU32::new(0));
    let registry = Refusing::new(move |asked| {
        let is_mark = matches!(asked, Asked::Page(range) if *range == mark);
        let is_early = is_mark && asked_before.fetch_add(1, atomic::Ordering::Relaxed) < 2;
        is_early.then(|| RegistryError::new("too slow"))
    });
    let reader = HintReader {
        registry: Arc::new(registry),
        keys: Keys::new("f"),
        node_id: "a".into(),
        addr: "a:1".into(),
        node: Node::alone([]),
        is_shared: true,
    };
    let (known, mut lineage) = watch::channel(None);
    let reading = AbortOnDropHandle::new(tokio::spawn(reader.run(known)));
    let told = timeout(Duration::from_secs(3600), lineage.wait_for(Option::is_some)).await;
    assert!(told.is_ok_and(|told| told.is_ok_and(|lineage| lineage.is_some_and(|it| it.found.is_none()))));
    drop(reading);
}

/// What a start has read is there for the next one, which may find the directory of the one before, until the
/// registry has taken the mark of this start.
#[tokio::test(start_paused = true)]
async fn hints_stay_until_the_mark_is_made() {
    let keys = Keys::new("f");
    let (lineage, hint) = (keys.lineage("a"), format!("{}g/1", keys.hints_for("a")));
    let is_full = Arc::new(AtomicU32::new(1));
    let registry = {
        let is_full = is_full.clone();
        Arc::new(Refusing::new(move |asked| {
            let is_mark = matches!(asked, Asked::Put(key) if *key == lineage);
            let is_refused = is_mark && is_full.load(atomic::Ordering::Relaxed) == 1;
            is_refused.then(|| RegistryError::new("database space exceeded"))
        }))
    };
    let record = Hint { format: membership::FORMAT, keys: None, ring_version: RingVersion(1), at_ms: 0 };
    registry.put(&hint, record.encode(), None).await.unwrap();
    let node = Node::alone([]);
    let reader = HintReader {
        registry: registry.clone(),
        keys,
        node_id: "a".into(),
        addr: "a:1".into(),
        node: node.clone(),
        is_shared: true,
    };
    let (known, mut lineage) = watch::channel(None);
    let _reading = AbortOnDropHandle::new(tokio::spawn(reader.run(known)));
    lineage.wait_for(Option::is_some).await.unwrap();
    sleep(Duration::from_secs(60)).await;
    assert!(registry.get(&hint).await.unwrap().is_some(), "it has been read, and is there still");
    is_full.store(0, atomic::Ordering::Relaxed);
    sleep(MARK_AGAIN * 2).await;
    assert!(registry.get(&hint).await.unwrap().is_none(), "it has gone with the mark");
}
