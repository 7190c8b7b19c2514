//! What all nodes tell of themselves, asked once a second while somebody looks, for however many do.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join;
use parking_lot::Mutex;
use peanut_client::Client;
use peanut_page::{Figures, Histories, Member, Ring, Scope};
use peanut_proto::clock::wall_clock_ms;
use peanut_proto::v1::StatusResponse;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

const EVERY: Duration = Duration::from_secs(1);
/// A page that was asked for so lately is looked at still; charts have no gap where somebody comes back
/// before.
const ATTENTION: Duration = Duration::from_secs(300);
/// How long the first figures are waited for.
const FIRST: Duration = Duration::from_secs(3);
/// What was told before is shown while nodes are asked.
const RECENT: Duration = Duration::from_secs(4);
const HOT_KEYS: u32 = 10;

/// The nodes of a client's fleet.
#[derive(Debug)]
pub(crate) struct Fleet {
    client: Client,
    /// When somebody looked last.
    looked: watch::Sender<Option<Instant>>,
    /// When the nodes were asked last.
    asked: watch::Sender<Option<Instant>>,
    seen: Mutex<Seen>,
}

#[derive(Debug, Default)]
struct Seen {
    members: Vec<Member>,
    histories: Histories,
}

impl Fleet {
    pub(crate) fn new(client: Client) -> Self {
        Fleet {
            client,
            looked: watch::Sender::new(None),
            asked: watch::Sender::new(None),
            seen: Mutex::default(),
        }
    }

    /// Asks the nodes while somebody looks, until `stop`.
    pub(crate) async fn watch(self: Arc<Self>, stop: CancellationToken) {
        let _ = stop.run_until_cancelled(self.look()).await;
    }

    async fn look(&self) {
        let mut looked = self.looked.subscribe();
        loop {
            let is_watched = |at: &Option<Instant>| at.is_some_and(|at| at.elapsed() < ATTENTION);
            // The sender is this one's own.
            let _ = looked.wait_for(is_watched).await;
            let statuses = self.client.statuses(HOT_KEYS, EVERY);
            let (told, pending) = join(statuses, timeout(EVERY, self.client.pending_hints())).await;
            let pending = pending.ok().flatten();
            let hints = |node: &str| Some(pending.as_ref()?.get(node).copied().unwrap_or_default());
            self.see(told.into_iter().map(|(node, status)| Member {
                hints_pending: hints(&node.id),
                id: node.id,
                addr: node.addr,
                zone: node.zone,
                weight: node.weight,
                share: Some(node.share),
                alive: node.alive,
                reached: Some(node.up),
                told: Some(status.map_err(|error| error.to_string())),
            }));
            self.asked.send_replace(Some(Instant::now()));
            sleep(EVERY).await;
        }
    }

    fn see(&self, members: impl Iterator<Item = Member>) {
        let (seen, at_ms) = (&mut *self.seen.lock(), wall_clock_ms());
        seen.members = members.collect();
        let Seen { members, histories } = seen;
        histories.retain(|node| members.iter().any(|member| member.id == node));
        for member in members {
            if let Some(Ok(status)) = &member.told {
                histories.add(&member.id, status, at_ms);
            }
        }
    }

    /// Waits until what nodes have told is of now. Where they are silent there is the ring at least.
    async fn is_current(&self) {
        let mut asked = self.asked.subscribe();
        self.looked.send_replace(Some(Instant::now()));
        let is_recent = |at: &Option<Instant>| at.is_some_and(|at| at.elapsed() < RECENT);
        let _ = timeout(FIRST, asked.wait_for(is_recent)).await;
    }

    /// Whether a node has told of a group of that name.
    pub(crate) async fn has_group(&self, name: &str) -> bool {
        self.is_current().await;
        let seen = self.seen.lock();
        let told = seen.members.iter().filter_map(|member| member.told.as_ref()?.as_ref().ok());
        told.flat_map(|status| &status.groups).any(|group| group.name == name)
    }

    /// The figures of all nodes, or of one.
    pub(crate) async fn figures(&self, node: Option<&str>) -> Figures {
        self.is_current().await;
        let seen = self.seen.lock();
        let told = seen.members.iter().filter_map(|member| member.told.as_ref()?.as_ref().ok());
        let told: Vec<_> = told.collect();
        let name = told.first().map(|status| status.fleet.clone()).unwrap_or_default();
        Figures::new(Scope::Fleet, name, self.ring(&told), &seen.members, &seen.histories, node)
    }

    /// The ring that the client goes by, and what is odd about it.
    fn ring(&self, told: &[&StatusResponse]) -> Ring {
        let version = self.client.ring().version().0;
        let mut notices: Vec<_> = self.client.notices().iter().map(ToString::to_string).collect();
        let others = told.iter().filter(|status| status.ring_version != version);
        notices.extend(others.map(|status| {
            format!(
                "node `{}` goes by ring version {}, and this client by {version}",
                status.node_id, status.ring_version
            )
        }));
        let same = told.iter().find(|status| status.ring_version == version);
        Ring {
            version,
            fingerprint: same.map(|status| format!("{:08x}", status.ring_fingerprint)).unwrap_or_default(),
            registry_age_ms: told.iter().map(|status| status.registry_age_ms).max().unwrap_or_default(),
            notices,
        }
    }
}
