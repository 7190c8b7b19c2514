//! The server: groups behind gRPC services on a listener that the caller owns, registered for as long as
//! it runs.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use peanut_proto::address;
use peanut_proto::discovery::Discovery;
use peanut_proto::fixed::fixed_list;
use peanut_proto::intervals::LEASE_TTL;
use peanut_proto::limits::MAX_MESSAGE_BYTES;
use peanut_proto::membership::{Keys, LiveGroup, NodeInfo};
use peanut_proto::peanutcachepb::peanut_cache_server::PeanutCacheServer;
use peanut_proto::v1::admin_server::AdminServer;
use peanut_proto::v1::peanut_server::PeanutServer;
use tokio::net::TcpListener;
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior, interval, timeout_at};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;
use tonic::service::interceptor::InterceptedService;

#[cfg(feature = "tls")]
use peanut_proto::tls::{Reloading, ServerTls};

#[cfg(feature = "admin")]
use crate::admin;
use crate::builder::ServerBuilder;
#[cfg(feature = "admin")]
use crate::connections::{ConnectionLimiter, ConnectionLimits};
use crate::connections::{CountStreams, Handshake, Listener};
use crate::error::Error;
use crate::hot::HotKey;
use crate::invalidations::Invalidations;
use crate::journal::PersistenceStats;
use crate::lineage::Lineage;
use crate::node::{Node, Running};
use crate::persistence::{Persistence, PersistenceOptions};
use crate::registration::Registration;
use crate::rights::Token;
use crate::service::bodies::Budgeted;
use crate::threads;

/// Streams that one connection may have open at once; a unary call is one.
const MAX_STREAMS: u32 = 1024;
/// Bytes of a message that is never long.
const SMALL_MESSAGE_BYTES: usize = 4 << 10;
/// How long a unary call may take beside the load that it waits for.
const UNARY_CALL: Duration = Duration::from_secs(30);
/// Bytes of the headers of one request.
const MAX_HEADER_BYTES: u32 = 16 << 10;
/// Streams of one connection that were reset before they were looked at. One that has more is closed (CVE-2023-44487). Of those that are
/// reset because of what the client did (CVE-2025-8671) it may have as many as streams: calls that are refused while their messages are
/// on their way are among them.
const MAX_RESETS: usize = 20;
/// Bounds on the connections to the admin port.
#[cfg(feature = "admin")]
const ADMIN_CONNECTIONS: ConnectionLimits = ConnectionLimits {
    total: 100,
    per_peer: 50,
    handshake: Duration::from_secs(5),
    first_call: Duration::from_secs(60),
    idle: Duration::from_secs(60),
    patience: Duration::ZERO,
};
/// What health checks may ask for.
const SERVICES: [&str; 3] = ["", "peanut.v1.Peanut", "peanutcachepb.PeanutCache"];
/// Every entry is looked at about every ten seconds, so that bytes of expired ones do not count for longer.
const SWEEP_EVERY: Duration = Duration::from_millis(100);
const SWEEP_PART: f64 = 0.01;
/// Time to write what calls have left in the last moment before the deadline.
const LAST_SEAL: Duration = Duration::from_secs(1);

/// A node of the cache, ready to run.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use peanut_server::{Group, Server, StaticLoader};
///
/// let scores: StaticLoader = [("Tom", "630")].into_iter().collect();
/// let server = Server::builder().group(Group::new("scores", scores)).build()?;
/// let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
/// let stop = async { /* until ctrl-C, say */ };
/// server.run(listener, stop).await?;
/// # Ok(()) }
/// ```
#[derive(Debug)]
pub struct Server {
    options: ServerBuilder,
    node: Node,
    handshake: Handshake,
    #[cfg(feature = "admin")]
    admin_handshake: Handshake,
}

/// Looks into a server while it runs. Cheap to clone.
#[derive(Clone, Debug)]
pub struct ServerHandle {
    node: Node,
    #[cfg(feature = "tls")]
    reloading: Vec<Arc<Reloading<ServerTls>>>,
}

impl ServerHandle {
    /// Reads the certificates again, for new connections. Where they cannot be used, the last good ones stay, with a
    /// warning. They are also read again by themselves, within a second of a change.
    #[cfg(feature = "tls")]
    pub fn reload_certificates(&self) {
        self.reloading.iter().for_each(|tls| tls.reload());
    }

    /// Puts these tokens in the place of those that the server has. Open lanes have their callers' rights looked up again with their next
    /// frame, and end with `UNAUTHENTICATED` where what let the caller in is gone. Says whether anything has changed.
    ///
    /// # Errors
    /// [`ErrorKind::Configuration`](crate::ErrorKind::Configuration) where they cannot be used, or are none where there are some; those
    /// that the server has stay in force.
    pub fn set_tokens(&self, tokens: &[Token]) -> Result<bool, Error> {
        self.node.tokens().replace(tokens)
    }

    /// The keys of a group that are asked for most, at most `most` and never more than 128, the hottest first; as
    /// of the last full window of five seconds. None where there is no such group.
    pub fn hot_keys(&self, group: &str, most: usize) -> Vec<HotKey> {
        self.node.cache(group).map(|cache| cache.hottest(most)).unwrap_or_default()
    }

    /// What is known of a group's segment files; `None` where there is no such group, or it has none.
    pub fn persistence(&self, group: &str) -> Option<PersistenceStats> {
        Some(self.node.cache(group).ok()?.journal()?.stats())
    }
}

impl Server {
    /// 5 seconds.
    pub const DEFAULT_LEASE_TTL: Duration = LEASE_TTL;
    /// The name that PeanutCache's clients look under.
    pub const DEFAULT_NAMING_SERVICE: &str = "peanutcache";
    /// 10 seconds.
    pub const DEFAULT_SHUTDOWN_DEADLINE: Duration = Duration::from_secs(10);
    /// 2 minutes.
    pub const DEFAULT_FORGET_AFTER: Duration = Duration::from_secs(120);
    /// 10 seconds.
    pub const DEFAULT_SEAL_INTERVAL: Duration = Duration::from_secs(10);
    /// 10,000.
    pub const DEFAULT_MAX_CONNECTIONS: usize = 10_000;
    /// 1,000.
    pub const DEFAULT_MAX_CONNECTIONS_PER_PEER: usize = 1_000;
    /// 5 seconds.
    pub const DEFAULT_HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
    /// 20 seconds.
    pub const DEFAULT_KEEPALIVE: Duration = Duration::from_secs(20);
    /// 30 seconds.
    pub const DEFAULT_FIRST_CALL_TIMEOUT: Duration = Duration::from_secs(30);
    /// 5 minutes.
    pub const DEFAULT_IDLE_TIMEOUT: Duration = Duration::from_secs(300);
    /// 256 MiB.
    pub const DEFAULT_RESTORE_BYTES_PER_SECOND: u64 = 256 << 20;

    pub(crate) fn new(
        options: ServerBuilder,
        node: Node,
        handshake: Handshake,
        #[cfg(feature = "admin")] admin_handshake: Handshake,
    ) -> Self {
        Server {
            options,
            node,
            handshake,
            #[cfg(feature = "admin")]
            admin_handshake,
        }
    }

    /// Describes a server.
    pub fn builder() -> ServerBuilder {
        ServerBuilder::default()
    }

    /// A handle by which a server that runs can be looked into.
    pub fn handle(&self) -> ServerHandle {
        ServerHandle {
            node: self.node.clone(),
            #[cfg(feature = "tls")]
            reloading: {
                let ports = [
                    Some(&self.handshake),
                    #[cfg(feature = "admin")]
                    Some(&self.admin_handshake),
                ];
                ports.into_iter().flatten().filter_map(|port| port.tls.clone()).collect()
            },
        }
    }

    /// Serves on `listener` until `shutdown` completes; then says so to health checks and the registry,
    /// finishes the calls in flight within the deadline, and returns.
    ///
    /// # Errors
    /// [`ErrorKind::Configuration`](crate::ErrorKind::Configuration) where no address is known to
    /// advertise, or the fixed list of nodes does not have it;
    /// [`ErrorKind::Transport`](crate::ErrorKind::Transport) where the listener fails.
    pub async fn run(self, listener: TcpListener, shutdown: impl Future<Output = ()>) -> Result<(), Error> {
        self.run_on(Listener::Tcp(listener), shutdown).await
    }

    /// As [`run`](Self::run), on a simulated machine.
    ///
    /// # Errors
    /// As `run`.
    #[cfg(feature = "simulation")]
    pub async fn run_simulated(
        self,
        listener: Box<dyn peanut_proto::machine::Listener>,
        shutdown: impl Future<Output = ()>,
    ) -> Result<(), Error> {
        self.run_on(Listener::Simulated(parking_lot::Mutex::new(listener)), shutdown).await
    }

    async fn run_on(self, listener: Listener, shutdown: impl Future<Output = ()>) -> Result<(), Error> {
        let local = listener.local_addr().map_err(|e| Error::transport("the listener has no address", e))?;
        let registration = self.registration(local)?;
        self.check_ports(local)?;
        #[cfg(feature = "admin")]
        let _admin = self.serve_admin().await?;
        let mut persistence = self.persistence(registration.as_ref());
        let _abort_loads = AbortLoads(self.node.clone());
        let watch = self.node.door().clone().watch(self.handshake.clone());
        let _watching = AbortOnDropHandle::new(tokio::spawn(watch));
        let _sweeping = AbortOnDropHandle::new(tokio::spawn(sweep(self.node.clone())));
        let (mut health, health_service) = tonic_health::server::health_reporter();
        health.set_serving::<PeanutServer<Node>>().await;
        health.set_serving::<PeanutCacheServer<Node>>().await;
        let services = self.services(health_service)?;

        if registration.is_some() {
            self.node.wake().will_ask();
            self.node.wake().lease_lost();
        }
        let stop_serving = self.node.stopping().clone();
        self.node.run_loads_on(&Handle::current());
        let serving = threads::serve(
            self.options.threads,
            listener,
            (self.node.door().clone(), self.handshake.clone()),
            services,
            stop_serving.clone(),
        );
        tokio::pin!(serving);
        let stop_registration = CancellationToken::new();
        let _ticking = self.node.wake().tick();
        let (known, is_known) = watch::channel(None);
        let following = registration.as_ref().map(|registration| {
            let follow = Invalidations {
                registry: registration.registry.clone(),
                keys: registration.keys.clone(),
                node_id: registration.node.id.clone(),
                addr: registration.node.addr.clone(),
                node: self.node.clone(),
                is_shared: self.options.registry.is_some(),
            };
            AbortOnDropHandle::new(tokio::spawn(follow.run(known)))
        });
        let (joined, has_joined) = watch::channel(false);
        let discovery = registration
            .as_ref()
            .map(|registration| Discovery::start(registration.registry.clone(), registration.keys.clone()));
        self.node.begin_to_run(Running {
            id: registration.as_ref().map_or_else(|| local.to_string(), |it| it.node.id.clone()),
            fleet: self.options.fleet.clone(),
            discovered: discovery.as_ref().map(Discovery::subscribe),
            reloader: discovery.as_ref().map(Discovery::reloader),
            joined: has_joined.clone(),
        });
        let registration = registration.zip(discovery).map(|(it, discovery)| {
            let run = it.run(discovery, self.node.clone(), joined, stop_registration.clone());
            AbortOnDropHandle::new(tokio::spawn(run))
        });
        tracing::info!("listening on {local}");

        tokio::select! {
            biased;
            ended = &mut serving => return ended,
            () = shutdown => {}
            never = self.restore(persistence.as_mut(), has_joined, is_known) => match never {},
        }

        tracing::info!("shutting down");
        self.node.leave();
        let deadline = Instant::now() + self.options.shutdown_deadline;
        if let Some(persistence) = &persistence {
            persistence.write_hottest_first(deadline - self.options.shutdown_deadline / 10);
        }
        let goodbye = async {
            // First nobody new is sent here, then nobody new is let in.
            for service in SERVICES {
                health.set_service_status(service, tonic_health::ServingStatus::NotServing).await;
            }
            stop_registration.cancel();
            if let Some(registration) = registration {
                let _ = registration.await;
            }
            stop_serving.cancel();
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
        drop(following);
        if let Some(persistence) = persistence {
            persistence.finish(deadline.max(Instant::now() + LAST_SEAL)).await;
        }
        match finished {
            Ok(ended) => ended,
            Err(_) => {
                tracing::warn!("some calls did not finish within {:?}", self.options.shutdown_deadline);
                Ok(())
            }
        }
    }

    /// How many groups it has.
    #[cfg(feature = "cli")]
    pub(crate) fn groups(&self) -> usize {
        self.options.groups.len()
    }

    /// The id and the address that clients know it by when it listens on this one.
    #[cfg(feature = "cli")]
    pub(crate) fn known_as(&self, listen: SocketAddr) -> Result<(String, String), Error> {
        let local = listen.to_string();
        Ok(self.registration(listen)?.map_or((local.clone(), local), |it| (it.node.id, it.node.addr)))
    }

    /// Whether it may listen on these addresses.
    pub(crate) fn check_ports(&self, listen: SocketAddr) -> Result<(), Error> {
        self.check_listener(listen)?;
        #[cfg(feature = "admin")]
        if let Some(admin) = self.options.admin {
            if admin == listen && admin.port() != 0 {
                return Err(Error::of_setting(
                    "admin",
                    format!("{admin} is the address of gRPC; choose another"),
                ));
            }
            self.check_admin(admin)?;
        }
        Ok(())
    }

    /// Begins to serve the admin port, where there is one, until the handle is dropped.
    #[cfg(feature = "admin")]
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

    /// What others on the network could read and write is to be asked for by name.
    fn check_private(
        &self,
        addr: SocketAddr,
        port: &Handshake,
        (setting, what): (&'static str, &str),
        may: &str,
    ) -> Result<(), Error> {
        if addr.ip().is_loopback() || port.is_tls() || self.options.insecure {
            return Ok(());
        }
        let why =
            format!("{what} {addr} without TLS lets everybody there {may}; set `tls`, or `insecure = true`");
        Err(Error::of_setting(setting, why))
    }

    fn check_listener(&self, local: SocketAddr) -> Result<(), Error> {
        self.check_private(local, &self.handshake, ("listen", "listening on"), "read and write")
    }

    #[cfg(feature = "admin")]
    fn check_admin(&self, addr: SocketAddr) -> Result<(), Error> {
        self.check_private(addr, &self.admin_handshake, ("admin", "admin on"), "read")
    }

    fn services(
        &self,
        health: tonic_health::pb::health_server::HealthServer<impl tonic_health::pb::health_server::Health>,
    ) -> Result<threads::Services, Error> {
        let reflection = || {
            tonic_reflection::server::Builder::configure()
                .register_encoded_file_descriptor_set(peanut_proto::FILE_DESCRIPTOR_SET)
                .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        };
        let reflection_v1 = reflection().build_v1().map_err(|e| Error::transport("reflection", e))?;
        let reflection_v1 = reflection_v1.max_decoding_message_size(SMALL_MESSAGE_BYTES);
        let reflection_v1alpha =
            reflection().build_v1alpha().map_err(|e| Error::transport("reflection", e))?;
        let reflection_v1alpha = reflection_v1alpha.max_decoding_message_size(SMALL_MESSAGE_BYTES);
        let reflected = self.options.reflection;
        let admit = || {
            let node = self.node.clone();
            move |request| node.admit(request)
        };
        let peanut = PeanutServer::new(self.node.clone())
            .max_decoding_message_size(MAX_MESSAGE_BYTES)
            .max_encoding_message_size(MAX_MESSAGE_BYTES);
        let original = PeanutCacheServer::new(self.node.clone())
            .max_decoding_message_size(SMALL_MESSAGE_BYTES)
            .max_encoding_message_size(MAX_MESSAGE_BYTES);
        let admin = AdminServer::new(self.node.clone()).max_decoding_message_size(SMALL_MESSAGE_BYTES);
        let longest_load = self.options.groups.iter().map(|group| group.policy.load_timeout).max();
        Ok(tonic::transport::Server::builder()
            .max_concurrent_streams(MAX_STREAMS)
            .http2_max_header_list_size(MAX_HEADER_BYTES)
            .http2_max_pending_accept_reset_streams(Some(MAX_RESETS))
            .http2_max_local_error_reset_streams(Some(MAX_STREAMS as usize))
            .http2_keepalive_interval(Some(self.options.keepalive))
            .http2_keepalive_timeout(Some(self.options.keepalive))
            // A unary call, from its headers to its answer; a lane is open with its headers.
            .timeout(UNARY_CALL + longest_load.unwrap_or_default())
            .layer(CountStreams)
            .add_service(InterceptedService::new(health.max_decoding_message_size(SMALL_MESSAGE_BYTES), {
                let node = self.node.clone();
                move |request| node.check_address(request)
            }))
            .add_optional_service(reflected.then(|| InterceptedService::new(reflection_v1, admit())))
            .add_optional_service(reflected.then(|| InterceptedService::new(reflection_v1alpha, admit())))
            .add_service(InterceptedService::new(Budgeted(peanut), admit()))
            .add_service(InterceptedService::new(admin, admit()))
            .add_service(InterceptedService::new(Budgeted(original), admit())))
    }

    /// Begins to keep what the groups have, where there is a folder for it.
    fn persistence(&self, registration: Option<&Registration>) -> Option<Persistence> {
        let ServerBuilder { data_dir, seal_interval, restore_bytes_per_second, fleet, nodes, .. } =
            &self.options;
        let options = PersistenceOptions {
            data_dir: data_dir.clone()?,
            seal_interval: *seal_interval,
            restore_bytes_per_second: *restore_bytes_per_second,
        };
        // A fixed list has no versions, so with another list everything may be outdated.
        let id = registration.map_or("", |registration| &registration.node.id);
        let identity = format!("{fleet}\0{id}\0{}", nodes.join(","));
        let caches: Vec<_> = self.node.caches().cloned().collect();
        Some(Persistence::start(&options, &identity, &caches))
    }

    /// Restores what was kept, where there is a registry not before it has told the ring's version and what was invalidated
    /// meanwhile.
    async fn restore(
        &self,
        persistence: Option<&mut Persistence>,
        mut joined: watch::Receiver<bool>,
        mut known: watch::Receiver<Option<Lineage>>,
    ) -> Infallible {
        if let Some(persistence) = persistence {
            // Both end where there is no registry.
            let known = known.wait_for(Option::is_some).await.ok().and_then(|known| *known);
            if let Some(lineage) = known.filter(|_| self.options.registry.is_some()) {
                persistence.take_lineage(lineage);
            }
            let has_joined = joined.wait_for(|joined| *joined).await.is_ok();
            persistence.restore(has_joined.then(|| self.node.ring().version()));
        }
        std::future::pending().await
    }

    /// What to register, where there is a registry.
    fn registration(&self, local: SocketAddr) -> Result<Option<Registration>, Error> {
        let options = &self.options;
        let registry = match (&options.registry, options.nodes.is_empty()) {
            (Some(registry), _) => registry.clone(),
            (None, false) => Arc::new(fixed_list(&options.fleet, options.nodes.iter())) as _,
            (None, true) => return Ok(None),
        };
        let addr = advertised(options.advertise.as_deref(), local)?;
        if !options.nodes.is_empty() && !options.nodes.contains(&addr) {
            let nodes = options.nodes.join(", ");
            return Err(Error::of_setting("nodes", format!("({nodes}) does not have this node's `{addr}`")));
        }
        let id = options.node_id.clone().unwrap_or_else(|| addr.clone());
        Ok(Some(Registration {
            registry,
            keys: Keys::new(&options.fleet),
            node: NodeInfo { id, addr, zone: options.zone.clone(), weight: options.weight },
            groups: LiveGroup::told(
                options
                    .groups
                    .iter()
                    .map(|group| LiveGroup { name: group.name.clone(), loads: !group.loader.is_none() }),
            ),
            lease_ttl: options.lease_ttl,
            naming_service: options.naming_service.clone(),
            on_shutdown: options.on_shutdown,
            forget_after: options.forget_after,
            max_ttl: options.groups.iter().map(|g| g.policy.longest()).max().unwrap_or_default(),
        }))
    }
}

/// Drops expired entries for as long as it is polled.
async fn sweep(node: Node) {
    let mut tick = interval(SWEEP_EVERY);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tick.tick().await;
        node.caches().for_each(|cache| cache.sweep(SWEEP_PART));
    }
}

/// Ends what is left of loads with the server: they have nobody to answer to.
struct AbortLoads(Node);

impl Drop for AbortLoads {
    fn drop(&mut self) {
        self.0.caches().for_each(|cache| cache.abort_loads());
    }
}

/// The address that clients are told.
fn advertised(advertise: Option<&str>, local: SocketAddr) -> Result<String, Error> {
    let Some(advertise) = advertise else {
        if local.ip().is_unspecified() {
            let why = format!(
                "listening on {local} says nothing of where clients reach this node; set `advertise`"
            );
            return Err(Error::of_setting("advertise", why));
        }
        return Ok(local.to_string());
    };
    match address::host_and_port(advertise) {
        Ok((host, 0)) => Ok(format!("{host}:{}", local.port())),
        Ok(_) => Ok(advertise.to_owned()),
        Err(why) => Err(Error::of_setting("advertise", why)),
    }
}
