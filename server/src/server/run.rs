//! The life of a server: it is prepared, started, and drained.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::Pin;
use std::time::Duration;

use peanut_proto::clock::uptime;
use peanut_proto::discovery::Discovery;
use peanut_proto::peanutcachepb::peanut_cache_server::PeanutCacheServer;
use peanut_proto::v1::peanut_server::PeanutServer;
use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior, interval, timeout_at};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;
use tonic_health::ServingStatus;
use tonic_health::server::HealthReporter;

use super::Server;
use crate::connections::Listener;
use crate::error::Error;
use crate::hints::HintReader;
use crate::lineage::Lineage;
use crate::node::{self, Node};
use crate::persistence::Persistence;
use crate::registration::Registration;
use crate::wake::Ticking;

/// The services that health checks name; the empty name is the server itself.
const SERVICES: [&str; 3] = ["", "peanut.v1.Peanut", "peanutcachepb.PeanutCache"];
/// Expired entries are looked for so often, in this part of all slots.
const SWEEP_EVERY: Duration = Duration::from_millis(100);
const SWEEP_PART: f64 = 0.01;
/// What is left to write when the calls are done has at least so long.
const LAST_SEAL: Duration = Duration::from_secs(1);

/// What has to be before the first connection is accepted.
pub(super) struct Prepared {
    local: SocketAddr,
    registration: Option<Registration>,
    persistence: Option<Persistence>,
}

/// What goes on beside the serving of calls; it ends when this is dropped.
pub(super) struct Running {
    node: Node,
    /// Whether the registry is one that other processes share.
    is_shared: bool,
    health: HealthReporter,
    persistence: Option<Persistence>,
    joined: watch::Receiver<bool>,
    lineage: watch::Receiver<Option<Lineage>>,
    invalidations: Option<AbortOnDropHandle<()>>,
    registration: Option<AbortOnDropHandle<()>>,
    stop_registration: CancellationToken,
    _tasks: [AbortOnDropHandle<()>; 2],
    _ticking: Ticking,
}

impl Server {
    /// Checks what can be checked before anything runs, and takes the data directory.
    pub(super) fn prepare(&self, listener: &Listener) -> Result<Prepared, Error> {
        let local = listener.local_addr().map_err(|e| Error::transport("the listener has no address", e))?;
        let registration = self.registration(local)?;
        self.check_ports(local)?;
        let persistence = self.persistence(registration.as_ref());
        if registration.is_some() {
            self.node.wake().will_ask();
            self.node.lease_lost();
        }
        Ok(Prepared { local, registration, persistence })
    }

    /// Starts what goes on beside the serving of calls: registration, and the reading of what clients have
    /// stored for this node.
    pub(super) async fn start(&self, prepared: Prepared, health: HealthReporter) -> Running {
        let Prepared { local, registration, persistence } = prepared;
        health.set_serving::<PeanutServer<Node>>().await;
        health.set_serving::<PeanutCacheServer<Node>>().await;
        let watch_connections = self.node.limiter().clone().watch(self.handshake.clone());
        let tasks = [tokio::spawn(watch_connections), tokio::spawn(sweep(self.node.clone()))];
        let (known, lineage) = watch::channel(None);
        let invalidations = registration.as_ref().map(|registration| {
            let follow = HintReader {
                registry: registration.registry.clone(),
                keys: registration.keys.clone(),
                node_id: registration.node.id.clone(),
                addr: registration.node.addr.clone(),
                node: self.node.clone(),
                is_shared: self.options.registry.is_some(),
            };
            AbortOnDropHandle::new(tokio::spawn(follow.run(known)))
        });
        let (has_joined, joined) = watch::channel(false);
        let discovery =
            registration.as_ref().map(|it| Discovery::start(it.registry.clone(), it.keys.clone()));
        self.node.begin_to_run(node::Running {
            id: registration.as_ref().map_or_else(|| local.to_string(), |it| it.node.id.clone()),
            fleet: self.options.fleet.clone(),
            discovered: discovery.as_ref().map(Discovery::subscribe),
            reloader: discovery.as_ref().map(Discovery::reloader),
            joined: joined.clone(),
        });
        let stop_registration = CancellationToken::new();
        let registration = registration.zip(discovery).map(|(it, discovery)| {
            let run = it.run(discovery, self.node.clone(), has_joined, stop_registration.clone());
            AbortOnDropHandle::new(tokio::spawn(run))
        });
        tracing::info!("listening on {local}");
        Running {
            node: self.node.clone(),
            is_shared: self.options.registry.is_some(),
            health,
            persistence,
            joined,
            lineage,
            invalidations,
            registration,
            stop_registration,
            _tasks: tasks.map(AbortOnDropHandle::new),
            _ticking: self.node.wake().tick(),
        }
    }

    /// Says to health checks and the registry that it stops, finishes the calls in flight within the
    /// deadline, and seals what is kept.
    pub(super) async fn drain(
        &self,
        mut serving: Pin<&mut impl Future<Output = Result<(), Error>>>,
        running: Running,
    ) -> Result<(), Error> {
        tracing::info!("shutting down");
        self.node.leave();
        let Running { health, persistence, invalidations, registration, stop_registration, .. } = running;
        let deadline = Instant::now() + self.options.shutdown_deadline;
        if let Some(persistence) = &persistence {
            persistence.write_hottest_first(deadline - self.options.shutdown_deadline / 10);
        }
        let goodbye = async {
            // First nobody new is sent here, then nobody new is let in.
            for service in SERVICES {
                health.set_service_status(service, ServingStatus::NotServing).await;
            }
            stop_registration.cancel();
            if let Some(registration) = registration {
                let _ = registration.await;
            }
            self.node.stopping().cancel();
            let mut health = health.clone();
            for service in SERVICES {
                // Ends the streams of those who watch.
                health.clear_service_status(service).await;
            }
            std::future::pending().await
        };
        let finished = timeout_at(deadline, async {
            tokio::select! {
                biased;
                ended = &mut serving => ended,
                never = goodbye => never,
            }
        });
        let finished = finished.await;
        // What it removed from the registry from now on might not be written any more.
        drop(invalidations);
        if let Some(persistence) = persistence {
            persistence.finish(deadline.max(Instant::now() + LAST_SEAL)).await;
        }
        finished.unwrap_or_else(|_| {
            tracing::warn!("some calls did not finish within {:?}", self.options.shutdown_deadline);
            Ok(())
        })
    }
}

impl Running {
    /// Restores what was kept, where there is a registry not before it has told the ring's version and what
    /// was invalidated meanwhile.
    pub(super) async fn restore(&mut self) -> Infallible {
        if let Some(persistence) = &mut self.persistence {
            // Both end where there is no registry.
            let known = self.lineage.wait_for(Option::is_some).await.ok().and_then(|known| *known);
            if let Some(lineage) = known.filter(|_| self.is_shared) {
                persistence.take_lineage(lineage);
            }
            let has_joined = self.joined.wait_for(|joined| *joined).await.is_ok();
            persistence.restore(has_joined.then(|| self.node.ring().version()));
        }
        std::future::pending().await
    }
}

/// Drops expired entries for as long as it is polled.
async fn sweep(node: Node) {
    let mut tick = interval(SWEEP_EVERY);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tick.tick().await;
        node.caches().for_each(|cache| cache.sweep(SWEEP_PART));
        node.near().sweep(uptime());
    }
}
