//! The server: groups behind gRPC services on a listener that the caller owns, registered for as long as
//! it runs.

mod handle;
mod run;
mod services;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use peanut_proto::address;
use peanut_proto::fixed::fixed_list;
use peanut_proto::intervals::LEASE_TTL;
use peanut_proto::membership::{Keys, LiveGroup, NodeInfo};
use tokio::net::TcpListener;

use crate::budget::Budgets;
use crate::builder::ServerBuilder;
use crate::connections::{Handshake, Listener};
use crate::error::Error;
use crate::persistence::{Directories, PersistenceOptions};
use crate::registration::Registration;
use crate::rights::Tokens;
use crate::seen_ring::SeenRing;
pub use handle::ServerHandle;
pub use run::PreparedServer;

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
    tokens: Tokens,
    budgets: Budgets,
    handshake: Handshake,
    admin_handshake: Handshake,
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
    pub const DEFAULT_RESTORE_RATE: u64 = 256 << 20;

    pub(crate) fn new(
        options: ServerBuilder,
        tokens: Tokens,
        budgets: Budgets,
        handshake: Handshake,
        admin_handshake: Handshake,
    ) -> Self {
        Server { options, tokens, budgets, handshake, admin_handshake }
    }

    /// Describes a server.
    pub fn builder() -> ServerBuilder {
        ServerBuilder::default()
    }

    /// Serves on `listener` until `shutdown` completes; then says so to health checks and the registry,
    /// finishes the calls in flight within the deadline, and returns.
    ///
    /// # Errors
    /// [`ErrorKind::Configuration`](crate::ErrorKind::Configuration) where no address is known to
    /// advertise, or the fixed list of nodes does not have it;
    /// [`ErrorKind::Transport`](crate::ErrorKind::Transport) where the listener fails;
    /// [`ErrorKind::Replaced`](crate::ErrorKind::Replaced) where another process has been started as this
    /// node.
    pub async fn run(self, listener: TcpListener, shutdown: impl Future<Output = ()>) -> Result<(), Error> {
        self.prepare(listener).await?.run(shutdown).await
    }

    /// Takes the data directory and begins to follow the registry. Nothing is accepted before what this gives
    /// is [run](PreparedServer::run). For those who want a [`ServerHandle`].
    ///
    /// # Errors
    /// As [`run`](Self::run).
    pub async fn prepare(self, listener: TcpListener) -> Result<PreparedServer, Error> {
        self.prepare_on(Listener::Tcp(listener)).await
    }

    /// As [`run`](Self::run), on a simulated machine, of which there is none in a build without the feature
    /// `simulation`.
    ///
    /// # Errors
    /// As `run`.
    #[doc(hidden)]
    pub async fn run_simulated(
        self,
        listener: peanut_proto::machine::SimulatedListener,
        shutdown: impl Future<Output = ()>,
    ) -> Result<(), Error> {
        let prepared = self.prepare_on(Listener::Simulated(parking_lot::Mutex::new(listener))).await?;
        prepared.run(shutdown).await
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

    fn check_admin(&self, addr: SocketAddr) -> Result<(), Error> {
        self.check_private(addr, &self.admin_handshake, ("admin", "admin on"), "read")
    }

    /// Takes the data directory, where there is one.
    fn directories(&self, registration: Option<&Registration>) -> Option<Directories> {
        let ServerBuilder { data_dir, seal_interval, restore_rate, fleet, nodes, groups, .. } = &self.options;
        let options = PersistenceOptions {
            data_dir: data_dir.clone()?,
            seal_interval: *seal_interval,
            restore_rate: *restore_rate,
        };
        // A fixed list has no versions, so with another list everything may be outdated.
        let id = registration.map_or("", |registration| &registration.node.id);
        let identity = format!("{fleet}\0{id}\0{}", nodes.join(","));
        Some(Directories::take(options, &identity, groups))
    }

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
            seen: SeenRing::default(),
        }))
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
