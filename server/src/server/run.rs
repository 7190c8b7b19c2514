//! The life of a server: it is prepared, started, and drained.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::Pin;
use std::time::Duration;

use peanut_proto::clock::uptime;
use peanut_proto::discovery::Discovery;
use peanut_proto::peanutcachepb::peanut_cache_server::PeanutCacheServer;
use peanut_proto::v1::peanut_server::PeanutServer;
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior, interval, timeout_at};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;
use tonic_health::ServingStatus;
use tonic_health::server::HealthReporter;

use super::{Server, ServerHandle};
use crate::admin;
use crate::builder::ServerBuilder;
use crate::connections::{ConnectionLimiter, ConnectionLimits, Handshake, Listener};
use crate::error::Error;
use crate::group::Group;
use crate::hints::HintReader;
use crate::lineage::Lineage;
use crate::node::{Membership, Node, NodeParts};
use crate::persistence::Persistence;
use crate::registration::Registration;
use crate::threads;
use crate::wake::Ticking;

/// The services that health checks name; the empty name is the server itself.
const SERVICES: [&str; 3] = ["", "peanut.v1.Peanut", "peanutcachepb.PeanutCache"];
/// Expired entries are looked for so often, in this part of all slots.
const SWEEP_EVERY: Duration = Duration::from_millis(100);
const SWEEP_PART: f64 = 0.01;
/// What is left to write when the calls are done has at least so long.
const LAST_SEAL: Duration = Duration::from_secs(1);

/// Bounds on the connections to the admin port.
const ADMIN_CONNECTIONS: ConnectionLimits = ConnectionLimits {
    total: 100,
    per_peer: 50,
    handshake: Duration::from_secs(5),
    first_call: Duration::from_secs(60),
    idle: Duration::from_secs(60),
    patience: Duration::ZERO,
};

/// A server that holds all it needs, the data directory too, and has not begun to accept connections.
#[derive(Debug)]
pub struct PreparedServer {
    pub(super) options: ServerBuilder,
    pub(super) node: Node,
    pub(super) handshake: Handshake,
    admin_handshake: Handshake,
    listener: Listener,
    local: SocketAddr,
    membership: Option<(Registration, Discovery)>,
    has_joined: watch::Sender<bool>,
    persistence: Option<Persistence>,
}

/// What goes on beside the serving of calls; it ends when this is dropped.
struct Running {
    node: Node,
    health: HealthReporter,
    persistence: Option<Persistence>,
    member: Option<Member>,
    _tasks: [AbortOnDropHandle<()>; 2],
    _ticking: Ticking,
}

/// A node's part in its fleet: it is registered, and reads what clients have stored for it.
struct Member {
    /// Whether the registry is one that other processes share.
    is_shared: bool,
    joined: watch::Receiver<bool>,
    lineage: watch::Receiver<Option<Lineage>>,
    hints: AbortOnDropHandle<()>,
    registration: AbortOnDropHandle<()>,
    stop_registration: CancellationToken,
    /// Another process has been started as this node.
    replaced: CancellationToken,
}

impl Server {
    /// Checks what can be checked before anything runs, takes the data directory, and begins to follow the
    /// registry.
    pub(super) async fn prepare_on(self, listener: Listener) -> Result<PreparedServer, Error> {
        let local = listener.local_addr().map_err(|e| Error::transport("the listener has no address", e))?;
        let registration = self.registration(local)?;
        self.check_ports(local)?;
        let directories = self.directories(registration.as_ref());
        let membership = registration.map(|registration| {
            let discovery = Discovery::start(registration.registry.clone(), registration.keys.clone());
            (registration, discovery)
        });
        let (has_joined, joined) = watch::channel(false);
        let discovery = membership.as_ref().map(|(_, discovery)| discovery);
        let journal = |group: &Group| directories.as_ref().and_then(|it| it.journal(&group.name));
        let node = Node::new(NodeParts {
            groups: self.options.groups.iter().map(|group| (group.clone(), journal(group))).collect(),
            tokens: self.tokens,
            connections: self.options.connections,
            budgets: self.budgets,
            membership: Membership {
                id: membership.as_ref().map_or_else(|| local.to_string(), |(it, _)| it.node.id.clone()),
                fleet: self.options.fleet.clone(),
                discovered: discovery.map(Discovery::subscribe),
                reloader: discovery.map(Discovery::reloader),
                joined,
            },
            runtime: Some(Handle::current()),
        });
        if membership.is_some() {
            node.wake().will_ask();
            node.lease_lost();
        }
        let persistence = directories.map(|directories| directories.start(node.caches())).transpose();
        Ok(PreparedServer {
            options: self.options,
            node,
            handshake: self.handshake,
            admin_handshake: self.admin_handshake,
            listener,
            local,
            membership,
            has_joined,
            persistence: persistence
                .map_err(|error| Error::transport("no thread to write segments with", error))?,
        })
    }
}

impl PreparedServer {
    /// A handle by which the server can be looked into.
    pub fn handle(&self) -> ServerHandle {
        let ports = [&self.handshake, &self.admin_handshake];
        let reloading = ports.into_iter().filter_map(|port| port.tls.clone()).collect();
        ServerHandle { node: self.node.clone(), reloading }
    }

    /// Serves until `shutdown` completes, as [`Server::run`] does.
    ///
    /// # Errors
    /// [`ErrorKind::Transport`](crate::ErrorKind::Transport) where the admin port cannot be listened on, or
    /// the listener fails; [`ErrorKind::Replaced`](crate::ErrorKind::Replaced) where another process has been
    /// started as this node.
    pub async fn run(self, shutdown: impl Future<Output = ()>) -> Result<(), Error> {
        let _admin = self.serve_admin().await?;
        let _abort_loads = AbortLoads(self.node.clone());
        let (health, health_service) = tonic_health::server::health_reporter();
        let services = self.services(health_service)?;
        let PreparedServer { options, node, handshake, listener, local, .. } = self;
        let PreparedServer { membership, has_joined, persistence, .. } = self;
        let limits = (node.limiter().clone(), handshake.clone());
        let watch_connections = node.limiter().clone().watch(handshake);
        let serving = threads::serve(options.threads, listener, limits, services, node.stopping().clone());
        tokio::pin!(serving);
        health.set_serving::<PeanutServer<Node>>().await;
        health.set_serving::<PeanutCacheServer<Node>>().await;
        let tasks = [tokio::spawn(watch_connections), tokio::spawn(sweep(node.clone()))];
        let is_shared = options.registry.is_some();
        let member = membership.map(|it| Member::start(it, &node, is_shared, has_joined));
        tracing::info!("listening on {local}");
        let mut running = Running {
            health,
            persistence,
            member,
            _tasks: tasks.map(AbortOnDropHandle::new),
            _ticking: node.wake().tick(),
            node,
        };
        let replaced = running.member.as_ref().map(|member| member.replaced.clone()).unwrap_or_default();
        tokio::select! {
            biased;
            ended = &mut serving => return ended,
            () = replaced.cancelled() => return Err(Error::replaced(&running.node.membership().id)),
            () = shutdown => {}
            never = running.restore() => match never {},
        }
        running.drain(serving, options.shutdown_deadline).await
    }

    /// Begins to serve the admin port, where there is one, until the handle is dropped.
    async fn serve_admin(&self) -> Result<Option<AbortOnDropHandle<()>>, Error> {
        let Some(addr) = self.options.admin else { return Ok(None) };
        let listener = admin::listen(addr).await?;
        if let Ok(addr) = listener.local_addr() {
            tracing::info!("admin on {addr}");
        }
        let serving = admin::serve(
            self.node.clone(),
            listener,
            ConnectionLimiter::new(ADMIN_CONNECTIONS),
            self.admin_handshake.clone(),
            self.options.admin_hosts.clone(),
        );
        Ok(Some(AbortOnDropHandle::new(tokio::spawn(serving))))
    }
}

impl Running {
    /// Says to health checks and the registry that it stops, finishes the calls in flight within the
    /// deadline, and seals what is kept.
    async fn drain(
        self,
        mut serving: Pin<&mut impl Future<Output = Result<(), Error>>>,
        shutdown_deadline: Duration,
    ) -> Result<(), Error> {
        tracing::info!("shutting down");
        let Running { node, health, persistence, member, .. } = self;
        node.leave();
        let deadline = Instant::now() + shutdown_deadline;
        if let Some(persistence) = &persistence {
            persistence.write_hottest_first(deadline - shutdown_deadline / 10);
        }
        let (hints, registration) =
            member.map(|it| (it.hints, (it.registration, it.stop_registration))).unzip();
        let goodbye = async {
            // First nobody new is sent here, then nobody new is let in.
            for service in SERVICES {
                health.set_service_status(service, ServingStatus::NotServing).await;
            }
            if let Some((registration, stop)) = registration {
                stop.cancel();
                let _ = registration.await;
            }
            node.stopping().cancel();
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
        // What it removed from the registry from now on might not be written any more, and nor might what
        // callers write.
        drop(hints);
        node.stopping().cancel();
        if let Some(persistence) = persistence {
            persistence.finish(deadline.max(Instant::now() + LAST_SEAL)).await;
        }
        finished.unwrap_or_else(|_| {
            tracing::warn!("some calls did not finish within {shutdown_deadline:?}");
            Ok(())
        })
    }

    /// Restores what was kept, where there is a registry not before it has told the ring's version and what
    /// was invalidated meanwhile.
    async fn restore(&mut self) -> Infallible {
        if let Some(persistence) = &mut self.persistence {
            let newest_version = match &mut self.member {
                Some(member) => {
                    let known = member.lineage.wait_for(Option::is_some).await.ok().and_then(|known| *known);
                    if let Some(lineage) = known.filter(|_| member.is_shared) {
                        persistence.take_lineage(lineage).await;
                    }
                    let has_joined = member.joined.wait_for(|joined| *joined).await.is_ok();
                    has_joined.then(|| self.node.ring().version())
                }
                None => None,
            };
            persistence.restore(newest_version);
        }
        std::future::pending().await
    }
}

impl Member {
    fn start(
        (registration, discovery): (Registration, Discovery),
        node: &Node,
        is_shared: bool,
        has_joined: watch::Sender<bool>,
    ) -> Self {
        let (known, lineage) = watch::channel(None);
        let hints = HintReader {
            registry: registration.registry.clone(),
            keys: registration.keys.clone(),
            node_id: registration.node.id.clone(),
            addr: registration.node.addr.clone(),
            node: node.clone(),
            is_shared,
        };
        let hints = AbortOnDropHandle::new(tokio::spawn(hints.run(known)));
        let (stop_registration, replaced) = (CancellationToken::new(), CancellationToken::new());
        let (joined, ends) = (has_joined.subscribe(), (stop_registration.clone(), replaced.clone()));
        let registration = registration.run(discovery, node.clone(), has_joined, ends);
        let registration = AbortOnDropHandle::new(tokio::spawn(registration));
        Member { is_shared, joined, lineage, hints, registration, stop_registration, replaced }
    }
}

/// Ends what is left of loads with the server: they have nobody to answer to.
struct AbortLoads(Node);

impl Drop for AbortLoads {
    fn drop(&mut self) {
        self.0.caches().for_each(|cache| cache.abort_loads());
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
