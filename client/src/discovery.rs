//! Follows the fleet: turns each new view of it into a routing table.
//!
//! A ring from which more than half of the nodes have vanished at once is not believed while those nodes
//! still answer: it is more likely that a registry was restored or misled than that they all left without
//! stopping. They write the ring again within a lease, so doubt ends after [`DOUBT`]. Nor is a ring believed
//! to which more nodes have come at once than there were, without any sign of life.

mod doubt;

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::{join, join_all};
use peanut_proto::discovery::Discovered;
use peanut_proto::machine::blocking;
use peanut_proto::membership::FleetView;
use peanut_proto::registry::Registry;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

use crate::config::Config;
use crate::leases::{self, Undecided};
use crate::monitor::Probed;
use crate::node::Node;
use crate::routing::{CurrentRouting, Routing};
use doubt::Doubt;

/// How long a ring without most of its nodes is doubted at most.
const DOUBT: Duration = Duration::from_secs(60);
/// How often nodes that have vanished are asked whether they are there while there is doubt.
const ASK_AGAIN: Duration = Duration::from_secs(1);

/// Keeps the routing table in step with the fleet, for ever.
pub(crate) async fn follow(
    discovered: watch::Receiver<Discovered>,
    current: Arc<CurrentRouting>,
    config: Config,
    registry: Option<Arc<dyn Registry>>,
) {
    let lapses = leases::tell_of_lapses(discovered.clone(), &current);
    join(lapses, follow_rings(discovered, &current, &config, registry.as_deref())).await;
}

async fn follow_rings(
    mut discovered: watch::Receiver<Discovered>,
    current: &CurrentRouting,
    config: &Config,
    registry: Option<&dyn Registry>,
) {
    let mut doubted_since = None;
    let mut undecided = Undecided::default();
    let mut last = discovered.borrow_and_update().view.clone();
    loop {
        let by = (config, registry, &discovered);
        let doubt = adopt(&last, current, by, doubted_since, &mut undecided).await;
        current.consider(last.ring.version);
        undecided = leases::tell(&now(&discovered), current.get().nodes(), registry, undecided).await;
        doubted_since = if doubt { doubted_since.or_else(|| Some(Instant::now())) } else { None };
        let is_due = doubted_since.is_some() || undecided.is_left();
        let again = async {
            match is_due {
                true => sleep_until(Instant::now() + ASK_AGAIN).await,
                false => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            changed = discovered.changed() => if changed.is_err() {
                return;
            },
            () = again => {}
        }
        let view = discovered.borrow_and_update().view.clone();
        probe_what_changed(&last, &view, current);
        last = view;
    }
}

/// The view as it is now.
fn now(discovered: &watch::Receiver<Discovered>) -> Arc<FleetView> {
    discovered.borrow().view.clone()
}

/// Takes the view's ring, or says that it is in doubt.
async fn adopt(
    view: &FleetView,
    current: &CurrentRouting,
    (config, registry, discovered): (&Config, Option<&dyn Registry>, &watch::Receiver<Discovered>),
    doubted_since: Option<Instant>,
    undecided: &mut Undecided,
) -> bool {
    let routing = current.get();
    if view.ring.version == routing.ring.version() && view.ring.members == routing.ring.members() {
        return false;
    }
    let patient = doubted_since.is_none_or(|since| since.elapsed() < DOUBT);
    let doubt = if patient { Doubt::of(&routing, view) } else { None };
    if let Some(doubt) = doubt
        && stands(&doubt).await
    {
        if doubted_since.is_none() {
            let (held, offered) = (routing.ring.version().0, view.ring.version.0);
            tracing::warn!(held, offered, "{doubt}");
        }
        return true;
    }
    // A large ring takes tens of milliseconds to build, too long for a thread that carries calls.
    let (document, of_build) = (view.ring.clone(), config.clone());
    let build = move || Routing::of(&document, Some(&routing), &of_build);
    match blocking(build).await {
        Ok(next) => {
            tracing::debug!(version = next.ring.version().0, nodes = next.nodes().len(), "new ring");
            // Before anybody can ask those that it brings; by what is known now, since it has taken a while.
            *undecided = leases::tell(&now(discovered), next.nodes(), registry, *undecided).await;
            if let Some(near) = &config.near {
                near.go_by(next.ring.version());
            }
            current.set(next);
        }
        Err(error) => tracing::error!(
            error = format_args!("{error:#}"),
            "a ring that could not be built; keeping the old one"
        ),
    }
    false
}

/// Whether a doubt is one: nodes that have vanished and do not answer may well have gone.
async fn stands(doubt: &Doubt<Arc<Node>>) -> bool {
    let Doubt::Vanished(vanished) = doubt else { return true };
    let answers = join_all(vanished.iter().map(|node| node.check())).await;
    answers.iter().filter(|answer| **answer == Probed::Serving).count() * 2 > vanished.len()
}

/// Nodes whose liveness has come, gone or begun anew are asked at once, rather than when they are next
/// needed.
fn probe_what_changed(before: &FleetView, now: &FleetView, current: &CurrentRouting) {
    for node in current.get().nodes() {
        let incarnation = |view: &FleetView| view.live.get(node.id()).map(|live| live.incarnation.clone());
        if before.revision > 0 && incarnation(before) != incarnation(now) {
            let node = node.clone();
            tokio::spawn(async move { node.check().await });
        }
    }
}
