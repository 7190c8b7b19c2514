//! The slow loop of every node: members that are gone for good leave the ring, and what was left for them
//! goes too.
//!
//! A member without a liveness record for `forget_after` has died. Where more than half of them seem to have,
//! it is rather the registry or this node that something is the matter with, and nobody is forgotten.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use peanut_proto::discovery::Discovered;
use peanut_proto::membership::{FleetView, Key, Keys, RingDocument};
use peanut_proto::registry::{KeyRange, PageOptions, Registry, RegistryError};
use tokio::sync::watch;
use tokio::time::{Instant, sleep};

use peanut_proto::change::change_ring;
use peanut_proto::clock::wall_clock_ms;

use crate::seen_ring::SeenRing;

/// Forgets members that are gone.
#[derive(Debug)]
pub(crate) struct Reconcile {
    pub(crate) registry: Arc<dyn Registry>,
    pub(crate) keys: Keys,
    pub(crate) forget_after: Duration,
    pub(crate) seen: SeenRing,
}

/// Since when members have had no liveness record.
#[derive(Debug, Default)]
struct Absences {
    since: BTreeMap<String, Instant>,
}

impl Absences {
    /// The members that have been absent for `forget_after` by now.
    fn longer_than(&mut self, forget_after: Duration, view: &FleetView, now: Instant) -> Vec<String> {
        let members = &view.ring.members;
        let absent: Vec<&String> =
            members.iter().map(|member| &member.id).filter(|id| !view.live.contains_key(*id)).collect();
        self.since.retain(|id, _| absent.contains(&id));
        for id in &absent {
            self.since.entry((*id).clone()).or_insert(now);
        }
        if absent.len() * 2 > members.len() {
            return Vec::new();
        }
        let gone = self.since.iter().filter(|(_, since)| now.duration_since(**since) >= forget_after);
        gone.map(|(id, _)| id.clone()).collect()
    }
}

impl Reconcile {
    /// Looks for ever.
    pub(crate) async fn run(self, mut discovered: watch::Receiver<Discovered>) {
        let mut absences = Absences::default();
        loop {
            // Not all at the same time: only one of the nodes has to do it.
            sleep(self.forget_after.mul_f64(0.05 + fastrand::f64() / 10.0)).await;
            let (view, is_in_trouble) = {
                let known = discovered.borrow_and_update();
                (known.view.clone(), known.trouble.is_some())
            };
            if is_in_trouble {
                // Who has not been heard of through no fault of its own is given its time again.
                absences = Absences::default();
                continue;
            }
            for id in absences.longer_than(self.forget_after, &view, Instant::now()) {
                match self.forget(&id, &view.ring).await {
                    Ok(true) => {
                        tracing::warn!(node = id, "forgotten: it had no lease for {:?}", self.forget_after)
                    }
                    Ok(false) => {}
                    Err(error) => tracing::debug!(
                        node = id,
                        error = format_args!("{error:#}"),
                        "not forgotten; trying again"
                    ),
                }
            }
            if let Err(error) = self.sweep(&view.ring).await {
                tracing::debug!(error = format_args!("{error:#}"), "hints for former nodes were not removed");
            }
        }
    }

    /// Takes a member out of the ring, unless it is back or another node has done so.
    async fn forget(&self, id: &str, known: &RingDocument) -> Result<bool, RegistryError> {
        if self.registry.get(&self.keys.live(id)).await?.is_some() {
            return Ok(false);
        }
        let next = Mutex::new(None);
        let without = |ring: &RingDocument| {
            let without = ring.without(id, wall_clock_ms()).filter(|_| ring.follows(known));
            next.lock().clone_from(&without);
            without
        };
        let changed = change_ring(&*self.registry, &self.keys, without).await;
        // Where the registry does not say whether it has stored the ring, it may have.
        if !matches!(changed, Ok(false))
            && let Some(next) = &*next.lock()
        {
            self.seen.note(next);
        }
        changed
    }

    /// Removes what was left for nodes that the ring has forgotten altogether: nothing they have can be
    /// shown. What is left for the others is passed over, however much it is.
    async fn sweep(&self, ring: &RingDocument) -> Result<(), RegistryError> {
        let first = PageOptions { limit: 1, keys_only: true, ..PageOptions::default() };
        let mut rest = KeyRange::prefix(&self.keys.all_hints());
        loop {
            let mut page = self.registry.page(&rest, first).await?;
            let Some(entry) = page.entries.pop() else {
                // The key that is there is no text.
                let Some(next) = page.next else { return Ok(()) };
                rest = next;
                continue;
            };
            let Some(Key::Hint { node, .. }) = self.keys.parse(&entry.key) else {
                // Not one of ours: neither is what begins like it.
                rest = rest.behind(&entry.key);
                continue;
            };
            let prefix = self.keys.hints_for(node);
            if !knows(ring, node) {
                self.remove(node, &prefix).await?;
            }
            rest = rest.behind(&prefix);
        }
    }

    /// Whether the registry knows nothing of a node now: it may have come since this node last heard.
    async fn is_forgotten(&self, id: &str) -> Result<bool, RegistryError> {
        let Some(entry) = self.registry.get(&self.keys.ring()).await? else { return Ok(false) };
        let Ok(ring) = RingDocument::decode(&entry.value) else { return Ok(false) };
        Ok(!knows(&ring, id) && self.registry.get(&self.keys.live(id)).await?.is_none())
    }

    /// Removes every hint for a node, below `prefix`, as long as the registry knows nothing of the node: what
    /// was there before it came is of no use to it, and what comes later is.
    async fn remove(&self, node: &str, prefix: &str) -> Result<(), RegistryError> {
        let mut rest = Some(KeyRange::prefix(prefix));
        while let Some(range) = rest {
            let page =
                self.registry.page(&range, PageOptions { keys_only: true, ..PageOptions::default() }).await?;
            // After the page was read, so that all that is in it is from before.
            if !self.is_forgotten(node).await? {
                return Ok(());
            }
            let stale: Vec<_> = page.entries.into_iter().map(|entry| (entry.key, entry.revision)).collect();
            self.registry.delete_all_if(&stale).await?;
            rest = page.next;
        }
        Ok(())
    }
}

/// Whether a node is in the ring, or was.
fn knows(ring: &RingDocument, id: &str) -> bool {
    ring.member(id).is_some() || ring.departed.iter().any(|gone| gone.id == id)
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;
    use peanut_proto::membership::{DEFAULT_POINTS, FORMAT, Liveness, NodeInfo};
    use peanut_proto::registry::{Asked, LocalRegistry, Refusing};

    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);

    fn view(members: &[&str], live: &[&str]) -> FleetView {
        let mut ring = RingDocument::empty(DEFAULT_POINTS);
        for id in members {
            let (id, addr, zone) = ((*id).to_owned(), (*id).to_owned(), String::new());
            ring = ring.with(&NodeInfo { id, addr, zone, weight: 1 }, 0).unwrap();
        }
        let mut view = FleetView::new(Keys::new("f"));
        view.ring = Arc::new(ring);
        for id in live {
            let (addr, incarnation, build) = (String::new(), String::new(), String::new());
            let live = Liveness { format: FORMAT, addr, incarnation, build, started_ms: 0, groups: None };
            view.live.insert((*id).to_owned(), Arc::new(live));
        }
        view
    }

    #[tokio::test(start_paused = true)]
    async fn a_member_is_gone_when_it_has_been_absent_without_a_break() {
        let mut absences = Absences::default();
        let now = Instant::now();
        let (all, without_c) =
            (view(&["a", "b", "c"], &["a", "b", "c"]), view(&["a", "b", "c"], &["a", "b"]));
        assert!(absences.longer_than(MINUTE, &without_c, now).is_empty());
        assert!(absences.longer_than(MINUTE, &all, now + MINUTE / 2).is_empty());
        assert!(absences.longer_than(MINUTE, &without_c, now + MINUTE).is_empty(), "it was back meanwhile");
        assert_eq!(absences.longer_than(MINUTE, &without_c, now + MINUTE * 2), ["c"]);
    }

    #[tokio::test(start_paused = true)]
    async fn most_of_a_fleet_is_never_gone() {
        let mut absences = Absences::default();
        let now = Instant::now();
        let view = view(&["a", "b", "c"], &["a"]);
        absences.longer_than(MINUTE, &view, now);
        assert!(absences.longer_than(MINUTE, &view, now + MINUTE * 10).is_empty());
    }

    /// The node has been forgotten when the sweep looks for it first, and is back when its hints are read.
    #[tokio::test]
    async fn a_hint_for_a_node_that_has_come_back_meanwhile_stays() {
        let (store, keys) = (LocalRegistry::new(), Keys::new("f"));
        let (hint, ring) = (format!("{}g/x", keys.hints_for("z")), view(&["a"], &[]).ring);
        store.put(&hint, vec![], None).await.unwrap();
        store.put(&keys.ring(), ring.encode(), None).await.unwrap();
        let (back, live, range) = (store.clone(), keys.live("z"), KeyRange::prefix(&keys.hints_for("z")));
        let registry = Refusing::of(store.clone(), move |asked| {
            if matches!(asked, Asked::Page(asked) if *asked == range) {
                back.put(&live, b"{}".to_vec(), None).now_or_never().unwrap().unwrap();
            }
            None
        });
        let (registry, seen) = (Arc::new(registry), SeenRing::default());
        let reconcile = Reconcile { registry, keys, forget_after: MINUTE, seen };
        reconcile.sweep(&ring).await.unwrap();
        assert!(store.get(&hint).await.unwrap().is_some());
        // One for a node that nobody knows goes.
        let other = format!("{}g/x", reconcile.keys.hints_for("y"));
        store.put(&other, vec![], None).await.unwrap();
        reconcile.sweep(&ring).await.unwrap();
        assert!(store.get(&other).await.unwrap().is_none() && store.get(&hint).await.unwrap().is_some());
    }
}
