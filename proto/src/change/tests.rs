//! Changing a ring in a registry that takes only short values.

use super::*;
use crate::membership::NodeInfo;
use crate::registry::{Asked, LocalRegistry, Refusing};

fn node(n: usize) -> NodeInfo {
    NodeInfo { id: format!("node-{n}"), addr: format!("host-{n}:1"), zone: String::new(), weight: 1 }
}

#[tokio::test]
async fn a_ring_that_is_too_long_for_the_registry_forgets_before_it_fails_and_says_what_to_do() {
    let keys = Keys::new("f");
    let registry = Refusing::new(|asked| {
        let is_long = matches!(asked, Asked::Swap(value) if value.len() > 6_000);
        is_long.then(|| RegistryError::new("request is too large").too_large())
    });
    assert!(swap_ring(&registry, &keys, 0, RingDocument::empty(8).with(&node(0), 0).unwrap()).await.unwrap());
    let mut members = 1;
    let error = loop {
        assert!(members < 1000);
        match change_ring(&registry, &keys, |ring| ring.with(&node(members), 0)).await {
            Ok(changed) => assert!(changed),
            Err(error) => break error,
        }
        members += 1;
    };
    assert!(members > 50, "{members} members, where nothing else is kept");
    assert!(error.is_too_large() && error.to_string().contains("peanut remove"), "{error}");
    let stored = registry.get(&keys.ring()).await.unwrap().unwrap();
    let ring = RingDocument::decode(&stored.value).unwrap();
    assert_eq!((ring.members.len(), ring.version.0), (members, members as u64));
    // And shrinks all the same.
    assert!(change_ring(&registry, &keys, |ring| ring.without("node-0", 0)).await.unwrap());
}

#[tokio::test]
async fn a_ring_that_breaks_a_rule_is_not_written() {
    let (keys, registry) = (Keys::new("f"), LocalRegistry::new());
    let ring = RingDocument::empty(8).with(&node(0), 0).unwrap();
    assert!(swap_ring(&registry, &keys, 0, ring).await.unwrap());
    let heavy = NodeInfo { weight: 5_000, ..node(1) };
    let error = change_ring(&registry, &keys, |ring| ring.with(&heavy, 0)).await.unwrap_err();
    assert!(error.to_string().contains("weight 5000"), "{error}");
}
