//! A fleet that is a fixed list of addresses, as a registry: all of its nodes are alive, for ever.

use crate::membership::{FORMAT, Keys, Liveness, RingDocument};
use crate::registry::LocalRegistry;

/// A registry that says of `fleet`: these addresses are its nodes, all alive, for ever.
pub fn fixed_list<S: Into<String>>(fleet: &str, addrs: impl IntoIterator<Item = S>) -> LocalRegistry {
    let (keys, ring) = (Keys::new(fleet), RingDocument::fixed(addrs));
    let live = ring.members.iter().map(|member| {
        let live = Liveness {
            format: FORMAT,
            addr: member.addr.clone(),
            incarnation: "0".to_owned(),
            build: String::new(),
            started_ms: 0,
            groups: None,
        };
        (keys.live(&member.id), live.encode())
    });
    std::iter::once((keys.ring(), ring.encode())).chain(live).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::membership::FleetView;
    use crate::registry::Registry as _;

    #[tokio::test]
    async fn a_fixed_list_is_a_ring_of_live_nodes() {
        let registry = fixed_list("f", ["h:1", "h:2"]);
        let mut view = FleetView::new(Keys::new("f"));
        view.replace(registry.load("/peanut/f/").await.unwrap());
        assert_eq!((view.ring.version.0, view.ring.members.len(), view.live.len()), (1, 2, 2));
    }
}
