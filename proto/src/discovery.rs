//! Keeps a [`FleetView`] current: watch, load, follow the watch, and begin again when it breaks.
//!
//! The view only ever gets better: while the registry cannot be reached the last one stands. Time-outs
//! and endpoints are the registry's business; this loop adds jittered back-off and, every few minutes, a
//! full re-read, in case something was missed that no protocol error told of.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, sleep_until};

use crate::backoff::Backoff;
use crate::intervals::OLDER_RING_BELIEVED;
use crate::membership::{FleetView, Keys};
use crate::registry::{Change, Registry, RegistryError, read_pages};

/// Mean time between full re-reads.
const RELOAD_EVERY: Duration = Duration::from_secs(240);

/// Readings that are asked for begin so far apart, at least: somebody may ask with every answer.
const ASKED_APART: Duration = Duration::from_millis(100);

/// What is known of the fleet, and how well.
#[derive(Clone, Debug)]
pub struct Discovered {
    /// The last good view.
    pub view: Arc<FleetView>,
    /// When the last full read of the registry began that has succeeded; `None` before the first.
    pub read: Option<Instant>,
    /// Why the registry cannot be read at the moment; `None` while all is well.
    pub trouble: Option<RegistryError>,
    /// Since when the registry cannot be read.
    pub trouble_since: Option<Instant>,
    /// When it was last seen that the registry had lost its data.
    pub lost: Option<Instant>,
    /// When it could last be read again after it could not.
    pub recovered: Option<Instant>,
}

impl Discovered {
    /// How old the view may be: zero while the registry can be read.
    pub fn age(&self, now: Instant) -> Duration {
        self.trouble_since.map_or(Duration::ZERO, |since| now.saturating_duration_since(since))
    }
}

/// Asks for a full re-read of the registry.
#[derive(Clone, Debug, Default)]
pub struct Reloader(Arc<Notify>);

impl Reloader {
    /// Asks for a full re-read soon; many calls in a row make one.
    pub fn reload(&self) {
        self.0.notify_one();
    }

    /// Waits until somebody asks, and the last reading is long enough ago.
    async fn asked(&self, last: Instant) {
        sleep_until(last + ASKED_APART).await;
        self.0.notified().await;
    }

    /// Whether somebody has asked since this was called last: for tests.
    pub async fn is_asked(&self) -> bool {
        tokio::time::timeout(Duration::ZERO, self.0.notified()).await.is_ok()
    }
}

/// A task that watches the registry. It ends when this is dropped.
#[derive(Debug)]
pub struct Discovery {
    registry: Arc<dyn Registry>,
    discovered: Arc<watch::Sender<Discovered>>,
    reload: Reloader,
    task: Mutex<JoinHandle<()>>,
}

impl Discovery {
    /// Starts to watch a fleet.
    pub fn start(registry: Arc<dyn Registry>, keys: Keys) -> Self {
        let view = Arc::new(FleetView::new(keys));
        let discovered = watch::Sender::new(Discovered {
            view,
            read: None,
            trouble: None,
            trouble_since: None,
            lost: None,
            recovered: None,
        });
        let (discovered, reload) = (Arc::new(discovered), Reloader::default());
        let task = tokio::spawn(keep_current(registry.clone(), discovered.clone(), reload.clone()));
        Discovery { registry, discovered, reload, task: Mutex::new(task) }
    }

    /// Watches on the caller's runtime from now on: the one that it was started on has ended, or stands
    /// still.
    pub fn begin_anew(&self) {
        let (registry, discovered) = (self.registry.clone(), self.discovered.clone());
        let anew = tokio::spawn(keep_current(registry, discovered, self.reload.clone()));
        std::mem::replace(&mut *self.task.lock(), anew).abort();
    }

    /// The latest view and every later one. The first that was read has a revision above 0.
    pub fn subscribe(&self) -> watch::Receiver<Discovered> {
        self.discovered.subscribe()
    }

    /// Asks for a full re-read soon; many calls in a row make one.
    pub fn reload(&self) {
        self.reload.reload();
    }

    /// What asks for a full re-read.
    pub fn reloader(&self) -> Reloader {
        self.reload.clone()
    }
}

impl Drop for Discovery {
    fn drop(&mut self) {
        self.task.get_mut().abort();
    }
}

async fn keep_current(registry: Arc<dyn Registry>, sender: Arc<watch::Sender<Discovered>>, reload: Reloader) {
    let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(5));
    let mut older_since = None;
    loop {
        let loaded = Instant::now();
        let trouble = match load_and_watch(&*registry, &sender, &reload, &mut older_since).await {
            Ok(()) => {
                backoff.reset();
                continue;
            }
            Err(trouble) => trouble,
        };
        // A watch that stood for a while and broke is tried again at once; the load tells what is wrong.
        if loaded.elapsed() > Duration::from_secs(1) && sender.borrow().trouble.is_none() {
            backoff.reset();
        }
        if sender.borrow().trouble.is_none() {
            tracing::warn!(
                trouble = format_args!("{trouble:#}"),
                "the registry cannot be watched; the last good view stands"
            );
        }
        sender.send_modify(|discovered| {
            discovered.trouble = Some(trouble);
            discovered.trouble_since.get_or_insert_with(Instant::now);
        });
        tokio::select! {
            () = sleep(backoff.next_delay(fastrand::f64())) => {}
            // Somebody has heard of a ring, from one who could read the registry.
            () = reload.asked(loaded) => {}
        }
    }
}

/// Loads the view and follows its changes. `Ok` asks for the next load at once.
async fn load_and_watch(
    registry: &dyn Registry,
    sender: &watch::Sender<Discovered>,
    reload: &Reloader,
    older_since: &mut Option<Instant>,
) -> Result<(), RegistryError> {
    let mut view = (*sender.borrow().view).clone();
    let (ranges, read) = (view.keys().placement(), Instant::now());
    // Before it reads, so that it misses nothing where the registry loses its data meanwhile: that ends the
    // watch.
    let mut changes = registry.watch(&ranges).await?;
    view.begin();
    let revision =
        read_pages(registry, &ranges, |page| page.into_iter().for_each(|entry| view.add(entry))).await?;
    view.revision = revision;
    let next_load = sleep(RELOAD_EVERY.mul_f64(0.75 + fastrand::f64() / 2.0));
    tokio::pin!(next_load);
    loop {
        publish(sender, &mut view, read, older_since);
        let believe_older = async {
            match *older_since {
                Some(since) => sleep_until(since + OLDER_RING_BELIEVED).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            () = believe_older => {
                tracing::warn!("nobody has repaired the older ring in the registry; it is believed now");
                view.accept_stored();
            }
            () = &mut next_load => return Ok(()),
            () = reload.asked(read) => return Ok(()),
            changed = changes.next() => {
                let is_news = |change: &Change| change.revision > revision;
                changed?.into_iter().filter(is_news).for_each(|change| view.apply(change));
                if view.is_incomplete() {
                    return Ok(());
                }
            }
        }
    }
}

fn publish(
    sender: &watch::Sender<Discovered>,
    view: &mut FleetView,
    read: Instant,
    older_since: &mut Option<Instant>,
) {
    let older = view.ring_was_lost() && view.stored_ring.is_some();
    *older_since = if older { older_since.or_else(|| Some(Instant::now())) } else { None };
    let view = Arc::new(view.clone());
    sender.send_modify(|discovered| {
        // It begins to count anew, too; somebody may have written the ring again already.
        let is_lost = view.ring_was_lost() || view.revision < discovered.view.revision;
        let lost = if is_lost { Some(Instant::now()) } else { discovered.lost };
        let was_in_trouble = discovered.trouble.is_some();
        let recovered = if was_in_trouble { Some(Instant::now()) } else { discovered.recovered };
        *discovered =
            Discovered { view, read: Some(read), trouble: None, trouble_since: None, lost, recovered };
    });
}

#[cfg(test)]
mod tests;
