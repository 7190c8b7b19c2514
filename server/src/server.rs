//! The server: groups behind gRPC services on a listener that the caller owns, registered for as long as
//! it runs.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use peanut_proto::discovery::Discovery;
use peanut_proto::limits::MAX_MESSAGE_BYTES;
use peanut_proto::membership::{Keys, NodeInfo, check_name};
use peanut_proto::peanutcachepb::peanut_cache_server::PeanutCacheServer;
use peanut_proto::registry::{LocalRegistry, Registry};
use peanut_proto::v1::admin_server::AdminServer;
use peanut_proto::v1::peanut_server::PeanutServer;
use tokio::net::TcpListener;
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior, interval, timeout_at};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;
use tonic::transport::server::Router;

#[cfg(feature = "tls")]
use peanut_proto::tls::{Reloading, TlsFiles};
#[cfg(feature = "tls")]
use rustls::ServerConfig;

#[cfg(feature = "admin")]
use crate::admin;
use crate::cache::Cache;
#[cfg(feature = "admin")]
use crate::connections::Door;
use crate::connections::{ConnectionLimits, Handshake};
use crate::error::Error;
use crate::group::Group;
use crate::hot::HotKey;
use crate::invalidations::Invalidations;
use crate::persistence::{Persistence, PersistenceOptions, PersistenceStats};
use crate::registration::{OnShutdown, Registration};
use crate::rights::{Token, Tokens};
use crate::service::{Node, Running};
use crate::threads;

/// Streams that one connection may have open at once; a unary call is one.
const MAX_STREAMS: u32 = 1024;
/// Bytes of the headers of one request.
const MAX_HEADER_BYTES: u32 = 16 << 10;
/// Streams of one connection that were reset before they were looked at, or because of what the client did. One that has more
/// is closed (CVE-2023-44487, CVE-2025-8671).
const MAX_RESETS: usize = 64;
/// Bounds on the connections to the admin port.
#[cfg(feature = "admin")]
const ADMIN_CONNECTIONS: ConnectionLimits =
    ConnectionLimits { total: 100, per_peer: 50, handshake: Duration::from_secs(5) };
/// What health checks may ask for.
const SERVICES: [&str; 3] = ["", "peanut.v1.Peanut", "peanutcachepb.PeanutCache"];
/// Every entry is looked at about every ten seconds, so that bytes of expired ones do not count for longer.
const SWEEP_EVERY: Duration = Duration::from_millis(100);
const SWEEP_PART: f64 = 0.01;
const MAX_THREADS: usize = 1024;
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
}

/// Looks into a server while it runs. Cheap to clone.
#[derive(Clone, Debug)]
pub struct ServerHandle {
    node: Node,
    #[cfg(feature = "tls")]
    handshake: Handshake,
}

impl ServerHandle {
    /// Reads the certificates again, for new connections. Where they cannot be used, the last good ones stay, with a
    /// warning. They are also read again by themselves, within a second of a change.
    #[cfg(feature = "tls")]
    pub fn reload_certificates(&self) {
        if let Some(tls) = &self.handshake.tls {
            tls.reload();
        }
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

/// Describes a [`Server`].
#[derive(Clone, Debug)]
pub struct ServerBuilder {
    groups: Vec<Group>,
    registry: Option<Arc<dyn Registry>>,
    nodes: Vec<String>,
    fleet: String,
    node_id: Option<String>,
    advertise: Option<String>,
    zone: String,
    weight: u32,
    lease_ttl: Duration,
    naming_service: String,
    shutdown_deadline: Duration,
    threads: usize,
    on_shutdown: OnShutdown,
    forget_after: Duration,
    data_dir: Option<PathBuf>,
    seal_interval: Duration,
    restore_bytes_per_second: u64,
    #[cfg(feature = "tls")]
    tls: Option<TlsFiles>,
    insecure: bool,
    tokens: Vec<Token>,
    connections: ConnectionLimits,
    keepalive: Duration,
    #[cfg(feature = "admin")]
    admin: Option<SocketAddr>,
    #[cfg(feature = "admin")]
    admin_tls: Option<AdminTls>,
}

impl Default for ServerBuilder {
    fn default() -> Self {
        ServerBuilder {
            groups: Vec::new(),
            registry: None,
            nodes: Vec::new(),
            fleet: "default".to_owned(),
            node_id: None,
            advertise: None,
            zone: String::new(),
            weight: 1,
            lease_ttl: Server::DEFAULT_LEASE_TTL,
            naming_service: Server::DEFAULT_NAMING_SERVICE.to_owned(),
            shutdown_deadline: Server::DEFAULT_SHUTDOWN_DEADLINE,
            threads: 0,
            on_shutdown: OnShutdown::default(),
            forget_after: Server::DEFAULT_FORGET_AFTER,
            data_dir: None,
            seal_interval: Server::DEFAULT_SEAL_INTERVAL,
            restore_bytes_per_second: Server::DEFAULT_RESTORE_BYTES_PER_SECOND,
            #[cfg(feature = "tls")]
            tls: None,
            insecure: false,
            tokens: Vec::new(),
            connections: ConnectionLimits {
                total: Server::DEFAULT_MAX_CONNECTIONS,
                per_peer: Server::DEFAULT_MAX_CONNECTIONS_PER_PEER,
                handshake: Server::DEFAULT_HANDSHAKE_TIMEOUT,
            },
            keepalive: Server::DEFAULT_KEEPALIVE,
            #[cfg(feature = "admin")]
            admin: None,
            #[cfg(feature = "admin")]
            admin_tls: None,
        }
    }
}

impl ServerBuilder {
    /// Adds a group. Every node of a fleet should have the same groups.
    #[must_use]
    pub fn group(mut self, group: Group) -> Self {
        self.groups.push(group);
        self
    }

    /// Joins the fleet that this registry keeps. Without one, and without [`nodes`](Self::nodes), the
    /// node answers whoever finds it.
    #[must_use]
    pub fn registry(mut self, registry: impl Registry) -> Self {
        self.registry = Some(Arc::new(registry));
        self
    }

    /// The fleet is this list of addresses for ever, this node's among them. For fleets without a
    /// registry; clients must be given the same list.
    #[must_use]
    pub fn nodes<S: Into<String>>(mut self, addrs: impl IntoIterator<Item = S>) -> Self {
        self.nodes = addrs.into_iter().map(Into::into).collect();
        self
    }

    /// The fleet's name in the registry; `default` by default.
    #[must_use]
    pub fn fleet(mut self, fleet: impl Into<String>) -> Self {
        self.fleet = fleet.into();
        self
    }

    /// A name for this node that stays the same when it is started again; the advertised address by
    /// default. Its place on the ring follows from it.
    #[must_use]
    pub fn node_id(mut self, id: impl Into<String>) -> Self {
        self.node_id = Some(id.into());
        self
    }

    /// Where clients reach this node, `host:port`; the listener's address by default. A port of 0 stands
    /// for the listener's.
    #[must_use]
    pub fn advertise(mut self, addr: impl Into<String>) -> Self {
        self.advertise = Some(addr.into());
        self
    }

    /// The failure domain of this node; none by default.
    #[must_use]
    pub fn zone(mut self, zone: impl Into<String>) -> Self {
        self.zone = zone.into();
        self
    }

    /// This node's share of the keys relative to the others'; 1 by default, at most 1024.
    #[must_use]
    pub fn weight(mut self, weight: u32) -> Self {
        self.weight = weight;
        self
    }

    /// How long the registry takes a silent node for alive; 5 s by default, whole seconds.
    #[must_use]
    pub fn lease_ttl(mut self, ttl: Duration) -> Self {
        self.lease_ttl = ttl;
        self
    }

    /// The service name under which grpc resolvers find this node; `peanutcache` by default.
    #[must_use]
    pub fn naming_service(mut self, name: impl Into<String>) -> Self {
        self.naming_service = name.into();
        self
    }

    /// How long calls in flight may take to finish once the server is told to stop; 10 s by default.
    #[must_use]
    pub fn shutdown_deadline(mut self, deadline: Duration) -> Self {
        self.shutdown_deadline = deadline;
        self
    }

    /// What becomes of the node's place in the ring when the server is told to stop; [`OnShutdown::Keep`] by default.
    #[must_use]
    pub fn on_shutdown(mut self, on_shutdown: OnShutdown) -> Self {
        self.on_shutdown = on_shutdown;
        self
    }

    /// How long a member of the fleet may have no lease before this node takes it out of the ring; 2 minutes by default.
    #[must_use]
    pub fn forget_after(mut self, time: Duration) -> Self {
        self.forget_after = time;
        self
    }

    /// Threads of their own for connections; 0, the default, serves them on the runtime that runs the server.
    /// Loads always run on that one. A runtime with several threads answers small requests at nearly twice
    /// the CPU time of a thread that has its connections to itself.
    #[must_use]
    pub fn threads(mut self, threads: usize) -> Self {
        self.threads = threads;
        self
    }

    /// A folder of this node's own, made where it is missing, from which its entries come back after a restart. Without one,
    /// the default, a restart is cold.
    ///
    /// What is loaded is written there in the background; what a process wrote until a tenth of a second before it was killed
    /// comes back. Bytes are bounded for each [group](Group::disk_capacity_bytes). A disk that is full or fails leaves the
    /// node in memory only, with a warning, and is tried again later.
    #[must_use]
    pub fn data_dir(mut self, folder: impl Into<PathBuf>) -> Self {
        self.data_dir = Some(folder.into());
        self
    }

    /// How often what was written is also made to outlive the machine; 10 s by default. Entries that live no longer than
    /// this are not written.
    #[must_use]
    pub fn seal_interval(mut self, interval: Duration) -> Self {
        self.seal_interval = interval;
        self
    }

    /// The most bytes a second that are read from [`data_dir`](Self::data_dir) after a start, while the node already
    /// serves; 256 MiB by default.
    #[must_use]
    pub fn restore_bytes_per_second(mut self, bytes: u64) -> Self {
        self.restore_bytes_per_second = bytes;
        self
    }

    /// Speaks TLS with these certificates; where there is a `ca`, clients need a certificate from there too. The files are read
    /// again when they change, and by [`ServerHandle::reload_certificates`].
    #[cfg(feature = "tls")]
    #[must_use]
    pub fn tls(mut self, files: TlsFiles) -> Self {
        self.tls = Some(files);
        self
    }

    /// Allows addresses other than loopback without TLS, on which everybody on the way can read and write. False by default.
    #[must_use]
    pub fn insecure(mut self, insecure: bool) -> Self {
        self.insecure = insecure;
        self
    }

    /// Adds a token. With the first one, whoever has none is refused; only health checks and reflection need none.
    #[must_use]
    pub fn token(mut self, token: Token) -> Self {
        self.tokens.push(token);
        self
    }

    /// The most connections there may be; 10,000 by default. More are closed at once.
    #[must_use]
    pub fn max_connections(mut self, connections: usize) -> Self {
        self.connections.total = connections;
        self
    }

    /// The most connections from one IP address; 1,000 by default.
    #[must_use]
    pub fn max_connections_per_peer(mut self, connections: usize) -> Self {
        self.connections.per_peer = connections;
        self
    }

    /// How long a new connection may take until it speaks HTTP/2, TLS included; 5 s by default.
    #[must_use]
    pub fn handshake_timeout(mut self, timeout: Duration) -> Self {
        self.connections.handshake = timeout;
        self
    }

    /// A connection that has been silent for so long is asked whether anybody is there, and closed when it is silent for as
    /// long again; 20 s by default.
    #[must_use]
    pub fn keepalive(mut self, interval: Duration) -> Self {
        self.keepalive = interval;
        self
    }

    /// Serves a page, metrics and health over HTTP on this address, `/`, `/metrics`, `/healthz` and `/readyz`; with the certificates
    /// and tokens of the gRPC port where it has any. On no address by default.
    #[cfg(feature = "admin")]
    #[must_use]
    pub fn admin(mut self, addr: SocketAddr) -> Self {
        self.admin = Some(addr);
        self
    }

    /// How the admin port is protected; by default as the gRPC port is.
    #[cfg(feature = "admin")]
    #[must_use]
    pub fn admin_tls(mut self, tls: AdminTls) -> Self {
        self.admin_tls = Some(tls);
        self
    }

    /// Checks the description and makes the server.
    ///
    /// # Errors
    /// [`ErrorKind::Configuration`](crate::ErrorKind::Configuration), naming what cannot be.
    pub fn build(self) -> Result<Server, Error> {
        let mut names: Vec<&str> = self.groups.iter().map(|group| group.name.as_str()).collect();
        names.sort_unstable();
        if let Some(twice) = names.windows(2).find(|pair| pair[0] == pair[1]) {
            return Err(Error::configuration(format!("group `{}` is there twice; remove one", twice[0])));
        }
        self.groups.iter().try_for_each(Group::check)?;
        let named = [("fleet", Some(&self.fleet)), ("node_id", self.node_id.as_ref())];
        for (what, name) in named.into_iter().chain([("naming_service", Some(&self.naming_service))]) {
            if let Some(Err(why)) = name.map(|name| check_name(name)) {
                return Err(Error::configuration(format!("{what} {why}")));
            }
        }
        if !(1..=1024).contains(&self.weight) {
            return Err(Error::configuration("weight must be from 1 to 1024"));
        }
        if self.threads > MAX_THREADS {
            return Err(Error::configuration(format!("threads must be at most {MAX_THREADS}")));
        }
        if self.lease_ttl < Duration::from_secs(1) {
            return Err(Error::configuration("lease_ttl must be at least 1s"));
        }
        if self.forget_after < self.lease_ttl {
            return Err(Error::configuration("forget_after must be at least lease_ttl"));
        }
        if self.seal_interval < Duration::from_millis(100) {
            return Err(Error::configuration("seal_interval must be at least 100ms"));
        }
        if self.restore_bytes_per_second == 0 {
            return Err(Error::configuration("restore_rate must be more than zero"));
        }
        if self.registry.is_some() && !self.nodes.is_empty() {
            return Err(Error::configuration("a registry and a fixed list of nodes exclude each other"));
        }
        if self.connections.total == 0 || self.connections.per_peer == 0 {
            return Err(Error::configuration("max_connections must be more than zero"));
        }
        if self.connections.handshake.is_zero() || self.keepalive.is_zero() {
            return Err(Error::configuration("handshake_timeout and keepalive must be longer than zero"));
        }
        let handshake = Handshake {
            #[cfg(feature = "tls")]
            tls: self.tls.as_ref().map(|files| reloading(files, b"h2")).transpose()?,
            http2_only: true,
        };
        let node = Node::new(
            self.groups.iter().cloned().map(Cache::new),
            Tokens::new(&self.tokens)?,
            self.connections,
        );
        Ok(Server { options: self, node, handshake })
    }
}

impl Server {
    /// 5 seconds.
    pub const DEFAULT_LEASE_TTL: Duration = Duration::from_secs(5);
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
    /// 256 MiB.
    pub const DEFAULT_RESTORE_BYTES_PER_SECOND: u64 = 256 << 20;

    /// Describes a server.
    pub fn builder() -> ServerBuilder {
        ServerBuilder::default()
    }

    /// A handle by which a server that runs can be looked into.
    pub fn handle(&self) -> ServerHandle {
        ServerHandle {
            node: self.node.clone(),
            #[cfg(feature = "tls")]
            handshake: self.handshake.clone(),
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
        let local = listener.local_addr().map_err(|e| Error::transport("the listener has no address", e))?;
        let registration = self.registration(local)?;
        self.check_private(local)?;
        #[cfg(feature = "admin")]
        let _admin = self.serve_admin().await?;
        let mut persistence = self.persistence(registration.as_ref());
        let _abort_loads = AbortLoads(self.node.clone());
        let _sweeping = AbortOnDropHandle::new(tokio::spawn(sweep(self.node.clone())));
        let (mut health, health_service) = tonic_health::server::health_reporter();
        health.set_serving::<PeanutServer<Node>>().await;
        health.set_serving::<PeanutCacheServer<Node>>().await;
        let router = self.router(health_service)?;

        let stop_serving = self.node.stopping().clone();
        self.node.run_loads_on(&Handle::current());
        let serving = threads::serve(
            self.options.threads,
            listener,
            (self.node.door().clone(), self.handshake.clone()),
            router,
            stop_serving.clone(),
        );
        tokio::pin!(serving);
        let stop_registration = CancellationToken::new();
        let _ticking = self.node.wake().tick();
        let (known, is_known) = watch::channel(false);
        let _following = registration.as_ref().map(|registration| {
            let follow = Invalidations {
                registry: registration.registry.clone(),
                keys: registration.keys.clone(),
                node_id: registration.node.id.clone(),
                node: self.node.clone(),
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
            joined: has_joined.clone(),
        });
        let registration = registration.zip(discovery).map(|(it, discovery)| {
            let run = it.run(discovery, self.node.clone(), joined, stop_registration.clone());
            AbortOnDropHandle::new(tokio::spawn(run))
        });
        tracing::info!("listening on {local}");

        tokio::select! {
            ended = &mut serving => return ended,
            () = shutdown => {}
            never = self.restore(persistence.as_mut(), has_joined, is_known) => match never {},
        }

        tracing::info!("shutting down");
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
                ended = &mut serving => ended,
                never = goodbye => never,
            }
        });
        let finished = finished.await;
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

    /// Whether an address is known to advertise when it listens on this one.
    #[cfg(feature = "cli")]
    pub(crate) fn check_address(&self, listen: SocketAddr) -> Result<(), Error> {
        self.registration(listen).map(drop)
    }

    /// Whether it may listen on these addresses.
    #[cfg(feature = "cli")]
    pub(crate) fn check_ports(&self, listen: SocketAddr) -> Result<(), Error> {
        self.check_private(listen)?;
        #[cfg(feature = "admin")]
        self.options.admin.map_or(Ok(()), |admin| self.admin_handshake(admin).map(drop))?;
        Ok(())
    }

    /// Begins to serve the admin port, where there is one, until the handle is dropped.
    #[cfg(feature = "admin")]
    async fn serve_admin(&self) -> Result<Option<AbortOnDropHandle<()>>, Error> {
        let Some(addr) = self.options.admin else { return Ok(None) };
        let handshake = self.admin_handshake(addr)?;
        let listener = admin::listen(addr).await?;
        if let Ok(addr) = listener.local_addr() {
            tracing::info!("admin on {addr}");
        }
        let serving = admin::serve(self.node.clone(), listener, Door::new(ADMIN_CONNECTIONS), handshake);
        Ok(Some(AbortOnDropHandle::new(tokio::spawn(serving))))
    }

    /// How connections to the admin port begin, if there is to be one on this address.
    #[cfg(feature = "admin")]
    fn admin_handshake(&self, addr: SocketAddr) -> Result<Handshake, Error> {
        #[cfg(feature = "tls")]
        let tls = match (&self.options.tls, self.options.admin_tls) {
            (None, Some(AdminTls::Mutual | AdminTls::Server)) => {
                return Err(Error::configuration("admin_tls needs certificates; set `tls`"));
            }
            (None, _) | (_, Some(AdminTls::Off)) => None,
            (Some(files), Some(AdminTls::Server)) => Some(TlsFiles { ca: None, ..files.clone() }),
            (Some(files), Some(AdminTls::Mutual)) if files.ca.is_none() => {
                return Err(Error::configuration("admin_tls = \"mutual\" needs `tls.ca`"));
            }
            (Some(files), _) => Some(files.clone()),
        };
        let handshake = Handshake {
            #[cfg(feature = "tls")]
            tls: tls.as_ref().map(|files| reloading(files, b"http/1.1")).transpose()?,
            http2_only: false,
        };
        if addr.ip().is_loopback() || handshake.is_tls() || self.options.insecure {
            return Ok(handshake);
        }
        Err(Error::configuration(format!(
            "admin on {addr} without TLS lets everybody there read; set `tls`, or `insecure = true`"
        )))
    }

    /// What others on the network could read and write is to be asked for by name.
    fn check_private(&self, local: SocketAddr) -> Result<(), Error> {
        if local.ip().is_loopback() || self.handshake.is_tls() || self.options.insecure {
            return Ok(());
        }
        Err(Error::configuration(format!(
            "listening on {local} without TLS lets everybody there read and write; set `tls`, or `insecure = true`"
        )))
    }

    fn router(
        &self,
        health: tonic_health::pb::health_server::HealthServer<impl tonic_health::pb::health_server::Health>,
    ) -> Result<Router, Error> {
        let reflection = || {
            tonic_reflection::server::Builder::configure()
                .register_encoded_file_descriptor_set(peanut_proto::FILE_DESCRIPTOR_SET)
                .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        };
        let reflection_v1 = reflection().build_v1().map_err(|e| Error::transport("reflection", e))?;
        let reflection_v1alpha =
            reflection().build_v1alpha().map_err(|e| Error::transport("reflection", e))?;
        Ok(tonic::transport::Server::builder()
            .max_concurrent_streams(MAX_STREAMS)
            .http2_max_header_list_size(MAX_HEADER_BYTES)
            .http2_max_pending_accept_reset_streams(Some(MAX_RESETS))
            .http2_max_local_error_reset_streams(Some(MAX_RESETS))
            .http2_keepalive_interval(Some(self.options.keepalive))
            .http2_keepalive_timeout(Some(self.options.keepalive))
            .add_service(health)
            .add_service(reflection_v1)
            .add_service(reflection_v1alpha)
            .add_service(
                PeanutServer::new(self.node.clone())
                    .max_decoding_message_size(MAX_MESSAGE_BYTES)
                    .max_encoding_message_size(MAX_MESSAGE_BYTES),
            )
            .add_service(AdminServer::new(self.node.clone()))
            .add_service(
                PeanutCacheServer::new(self.node.clone())
                    .max_decoding_message_size(MAX_MESSAGE_BYTES)
                    .max_encoding_message_size(MAX_MESSAGE_BYTES),
            ))
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
        mut known: watch::Receiver<bool>,
    ) -> Infallible {
        if let Some(persistence) = persistence {
            // Both end where there is no registry.
            let _ = known.wait_for(|known| *known).await;
            let has_joined = joined.wait_for(|joined| *joined).await.is_ok();
            persistence.restore(has_joined.then(|| self.node.hear_of_ring(0)));
        }
        std::future::pending().await
    }

    /// What to register, where there is a registry.
    fn registration(&self, local: SocketAddr) -> Result<Option<Registration>, Error> {
        let options = &self.options;
        let registry = match (&options.registry, options.nodes.is_empty()) {
            (Some(registry), _) => registry.clone(),
            (None, false) => Arc::new(LocalRegistry::fixed(&options.fleet, options.nodes.iter())) as _,
            (None, true) => return Ok(None),
        };
        let addr = advertised(options.advertise.as_deref(), local)?;
        if !options.nodes.is_empty() && !options.nodes.contains(&addr) {
            let nodes = options.nodes.join(", ");
            return Err(Error::configuration(format!(
                "`nodes` ({nodes}) does not have this node's `{addr}`"
            )));
        }
        let id = options.node_id.clone().unwrap_or_else(|| addr.clone());
        Ok(Some(Registration {
            registry,
            keys: Keys::new(&options.fleet),
            node: NodeInfo { id, addr, zone: options.zone.clone(), weight: options.weight },
            lease_ttl: options.lease_ttl,
            naming_service: options.naming_service.clone(),
            on_shutdown: options.on_shutdown,
            forget_after: options.forget_after,
            max_ttl: options.groups.iter().map(|g| g.policy.longest()).max().unwrap_or_default(),
        }))
    }
}

#[cfg(feature = "tls")]
fn reloading(files: &TlsFiles, protocol: &'static [u8]) -> Result<Arc<Reloading<ServerConfig>>, Error> {
    let made = Reloading::new(files.clone(), |files| files.server(protocol), Instant::now());
    made.map(Arc::new).map_err(|error| Error::configuration(format!("tls: {error}")))
}

/// How an admin port is protected.
#[cfg(feature = "admin")]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AdminTls {
    /// TLS, and callers need a certificate.
    Mutual,
    /// TLS; callers need no certificate.
    Server,
    /// No TLS: on loopback addresses, or where all is to be insecure.
    Off,
}

#[cfg(feature = "admin")]
impl std::str::FromStr for AdminTls {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        match name {
            "mutual" => Ok(AdminTls::Mutual),
            "server" => Ok(AdminTls::Server),
            "off" => Ok(AdminTls::Off),
            _ => Err(format!("`{name}` is none of mutual, server and off")),
        }
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
            return Err(Error::configuration(why));
        }
        return Ok(local.to_string());
    };
    let host_and_port =
        advertise.rsplit_once(':').and_then(|(host, port)| Some((host, port.parse::<u16>().ok()?)));
    let is_host = |host: &str| {
        !host.is_empty() && host.chars().all(|c| c.is_ascii_alphanumeric() || ".-_:[]".contains(c))
    };
    match host_and_port {
        Some((host, 0)) if is_host(host) => Ok(format!("{host}:{}", local.port())),
        Some((host, _)) if is_host(host) => Ok(advertise.to_owned()),
        _ => Err(Error::configuration(format!("advertise `{advertise}` is not like 10.0.0.5:9999"))),
    }
}
