//! `/status`: everything that the page shows of this node, as JSON.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use peanut_page::{Figures, Histories, Member, Ring, Scope};
use peanut_proto::clock::wall_clock_ms;
use peanut_proto::membership::FleetView;
use peanut_proto::v1::StatusResponse;
use tokio::time::{MissedTickBehavior, interval};

use super::neighbours::Neighbours;
use crate::node::Node;

const HOT_KEYS: u32 = 10;

/// Takes a sample a second for as long as it is polled, so that a page that is opened now shows what was
/// before.
pub(super) async fn sample(histories: Arc<Mutex<Histories>>, node: Node) {
    let mut tick = interval(Duration::from_secs(1));
    tick.set_missed_tick_behavior(MissedTickBehavior::Skip);
    loop {
        tick.tick().await;
        let status = node.status_now(0);
        histories.lock().add(&status.node_id, &status, wall_clock_ms());
    }
}

pub(super) fn figures(node: &Node, histories: &Mutex<Histories>, neighbours: &Neighbours) -> Figures {
    let status = node.status_now(HOT_KEYS);
    let discovered = node.membership().discovered.as_ref();
    let view = discovered.map(|discovered| discovered.borrow().view.clone());
    let ring = Ring {
        version: status.ring_version,
        fingerprint: format!("{:08x}", status.ring_fingerprint),
        registry_age_ms: status.registry_age_ms,
        notices: view.iter().flat_map(|view| view.notices()).map(|notice| notice.to_string()).collect(),
    };
    let fleet = status.fleet.clone();
    let members = members(view.as_deref(), status, neighbours);
    Figures::new(Scope::Node, fleet, ring, &members, &histories.lock(), None)
}

/// The members of the ring, of which only this node tells its figures; it alone, where it is in none.
fn members(view: Option<&FleetView>, status: StatusResponse, neighbours: &Neighbours) -> Vec<Member> {
    let of_ring = view.iter().flat_map(|view| {
        view.ring.members.iter().map(|member| Member {
            id: member.id.clone(),
            addr: member.addr.clone(),
            zone: member.zone.clone(),
            weight: member.weight,
            alive: view.live.contains_key(&member.id),
            reached: neighbours.reached(&member.addr),
            ..Member::default()
        })
    });
    let mut members: Vec<Member> = of_ring.collect();
    let own = members.iter().position(|member| member.id == status.node_id).unwrap_or_else(|| {
        members.push(Member { id: status.node_id.clone(), weight: 1, alive: true, ..Member::default() });
        members.len() - 1
    });
    members[own].told = Some(Ok(status));
    members
}
