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
