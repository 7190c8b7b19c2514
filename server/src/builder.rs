//! Describes a server: every setting with its meaning, default and bounds.

mod check;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use peanut_proto::registry::Registry;
use peanut_proto::tls::{Reloading, ServerTls, TlsFiles};

use crate::Server;
use crate::budget::Budgets;
use crate::connections::{ConnectionLimits, Handshake};
use crate::error::Error;
use crate::group::Group;
use crate::registration::OnShutdown;
use crate::rights::{Token, Tokens};

/// Describes a [`Server`].
#[derive(Clone, Debug)]
pub struct ServerBuilder {
    pub(crate) groups: Vec<Group>,
    pub(crate) registry: Option<Arc<dyn Registry>>,
    pub(crate) nodes: Vec<String>,
    pub(crate) fleet: String,
    pub(crate) node_id: Option<String>,
    pub(crate) advertise: Option<String>,
    pub(crate) zone: String,
    pub(crate) weight: u32,
    pub(crate) lease_ttl: Duration,
    pub(crate) naming_service: String,
    pub(crate) shutdown_deadline: Duration,
    pub(crate) threads: usize,
    pub(crate) on_shutdown: OnShutdown,
    pub(crate) forget_after: Duration,
    pub(crate) data_dir: Option<PathBuf>,
    pub(crate) seal_interval: Duration,
    pub(crate) restore_rate: u64,
    pub(crate) tls: Option<TlsFiles>,
    pub(crate) insecure: bool,
    pub(crate) tokens: Vec<Token>,
    pub(crate) connections: ConnectionLimits,
    pub(crate) keepalive: Duration,
    pub(crate) reflection: bool,
    pub(crate) admin: Option<SocketAddr>,
    pub(crate) admin_tls: Option<AdminTls>,
    pub(crate) admin_hosts: Vec<String>,
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
            restore_rate: Server::DEFAULT_RESTORE_RATE,
            tls: None,
            insecure: false,
            tokens: Vec::new(),
            connections: ConnectionLimits {
                total: Server::DEFAULT_MAX_CONNECTIONS,
                per_peer: Server::DEFAULT_MAX_CONNECTIONS_PER_PEER,
                handshake: Server::DEFAULT_HANDSHAKE_TIMEOUT,
                first_call: Server::DEFAULT_FIRST_CALL_TIMEOUT,
                idle: Server::DEFAULT_IDLE_TIMEOUT,
                ..ConnectionLimits::default()
            },
            keepalive: Server::DEFAULT_KEEPALIVE,
            reflection: true,
            admin: None,
            admin_tls: None,
            admin_hosts: Vec::new(),
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
    /// node answers every client that finds it.
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

    /// This node's share of the keys relative to the others'; 1 by default, from 1 to 1024.
    #[must_use]
    pub fn weight(mut self, weight: u32) -> Self {
        self.weight = weight;
        self
    }

    /// How long the registry takes a silent node for alive; 5 s by default, whole seconds, from 1 s to an
    /// hour.
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

    /// How long calls in flight may take to finish once the server is told to stop; 10 s by default, at most
    /// a day.
    #[must_use]
    pub fn shutdown_deadline(mut self, deadline: Duration) -> Self {
        self.shutdown_deadline = deadline;
        self
    }

    /// What becomes of the node's place in the ring when the server is told to stop; [`OnShutdown::Keep`] by
    /// default.
    #[must_use]
    pub fn on_shutdown(mut self, on_shutdown: OnShutdown) -> Self {
        self.on_shutdown = on_shutdown;
        self
    }

    /// How long a member of the fleet may have no lease before this node takes it out of the ring; 2 minutes
    /// by default, from
    /// [`lease_ttl`](Self::lease_ttl) to 30 days.
    #[must_use]
    pub fn forget_after(mut self, time: Duration) -> Self {
        self.forget_after = time;
        self
    }

    /// Threads of their own for connections, at most 1024; 0, the default, serves them on the runtime that
    /// runs the server. Loads always run on that one. A runtime with several threads answers small requests
    /// at nearly twice the CPU time of a thread that has its connections to itself.
    #[must_use]
    pub fn threads(mut self, threads: usize) -> Self {
        self.threads = threads;
        self
    }

    /// A directory of this node's own, made where it is missing, from which its entries come back after a
    /// restart. Without one, the default, a restart is cold.
    ///
    /// What is loaded is written there in the background; what a process wrote until a tenth of a second
    /// before it was killed comes back. Bytes are bounded for each [group](Group::disk_capacity_bytes). A
    /// disk that is full or fails leaves the node in memory only, with a warning, and is tried again later.
    #[must_use]
    pub fn data_dir(mut self, directory: impl Into<PathBuf>) -> Self {
        self.data_dir = Some(directory.into());
        self
    }

    /// How often what was written is also made to outlive the machine; 10 s by default, from 100 ms to a day.
    /// Entries that live no longer than this are not written.
    #[must_use]
    pub fn seal_interval(mut self, interval: Duration) -> Self {
        self.seal_interval = interval;
        self
    }

    /// The most bytes a second that are read from [`data_dir`](Self::data_dir) after a start, while the node
    /// already serves; 256 MiB by default, from 1 KiB to 1 TiB.
    #[must_use]
    pub fn restore_rate(mut self, bytes: u64) -> Self {
        self.restore_rate = bytes;
        self
    }

    /// Speaks TLS with these certificates; where there is a `ca`, clients need a certificate from there too.
    /// The files are read again when they change, and by
    /// [`reload_certificates`](crate::ServerHandle::reload_certificates).
    #[must_use]
    pub fn tls(mut self, files: TlsFiles) -> Self {
        self.tls = Some(files);
        self
    }

    /// Allows addresses other than loopback without TLS, on which everybody on the way can read and write.
    /// False by default.
    #[must_use]
    pub fn insecure(mut self, insecure: bool) -> Self {
        self.insecure = insecure;
        self
    }

    /// Adds a token. With the first one, a caller without one is refused; only health checks need none.
    #[must_use]
    pub fn token(mut self, token: Token) -> Self {
        self.tokens.push(token);
        self
    }

    /// The most connections there may be; 10,000 by default, at most 10 million. For one more a connection
    /// without an admitted call is closed, where there is one that is older than 5 s; else the new one is.
    #[must_use]
    pub fn max_connections(mut self, connections: usize) -> Self {
        self.connections.total = connections;
        self
    }

    /// The most connections from one IP address, likewise; 1,000 by default.
    #[must_use]
    pub fn max_connections_per_peer(mut self, connections: usize) -> Self {
        self.connections.per_peer = connections;
        self
    }

    /// How long a new connection may take until it speaks HTTP/2, TLS included; 5 s by default, from 10 ms to
    /// an hour.
    #[must_use]
    pub fn handshake_timeout(mut self, timeout: Duration) -> Self {
        self.connections.handshake = timeout;
        self
    }

    /// How long a new connection may take until its first call is let in, health checks not being such calls;
    /// 30 s by default, from 1 s to a day. What still runs on it then has 10 s to end.
    #[must_use]
    pub fn first_call_timeout(mut self, timeout: Duration) -> Self {
        self.connections.first_call = timeout;
        self
    }

    /// How long a connection may have no stream open; 5 minutes by default, from 1 s to 30 days. An open lane
    /// is a stream. Clients are told to connect again (GOAWAY), and lose no call.
    #[must_use]
    pub fn idle_timeout(mut self, timeout: Duration) -> Self {
        self.connections.idle = timeout;
        self
    }

    /// Whether gRPC reflection is served; true by default. If the node has tokens, callers need one for it.
    #[must_use]
    pub fn reflection(mut self, on: bool) -> Self {
        self.reflection = on;
        self
    }

    /// A connection that has been silent for so long is asked whether anybody is there, and closed when it is
    /// silent for as long again; 20 s by default, from 100 ms to a day.
    #[must_use]
    pub fn keepalive(mut self, interval: Duration) -> Self {
        self.keepalive = interval;
        self
    }

    /// Serves a page, metrics and health over HTTP on this address, `/`, `/metrics`, `/healthz` and
    /// `/readyz`; with the certificates and tokens of the gRPC port where it has any. On no address by
    /// default.
    #[must_use]
    pub fn admin(mut self, addr: SocketAddr) -> Self {
        self.admin = Some(addr);
        self
    }

    /// Names by which browsers may call the admin port, beside `localhost`, IP addresses, and the names in
    /// its certificate. A page of another site that has its own name lead here reads nothing (DNS rebinding).
    /// Health needs no name.
    #[must_use]
    pub fn admin_hosts<S: Into<String>>(mut self, hosts: impl IntoIterator<Item = S>) -> Self {
        self.admin_hosts = hosts.into_iter().map(Into::into).collect();
        self
    }

    /// How the admin port is protected; by default as the gRPC port is.
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
        self.check()?;
        let asks_for_certificates = self.tls.as_ref().is_some_and(|files| files.ca.is_some());
        let tokens = Tokens::new(&self.tokens, asks_for_certificates)?;
        let budgets = Budgets::new();
        let handshake = Handshake {
            tls: self.tls.as_ref().map(|files| reloading(files, b"h2")).transpose()?,
            http2_only: true,
            budgets: budgets.clone(),
        };
        let admin_handshake = self.admin_handshake(&budgets)?;
        Ok(Server::new(self, tokens, budgets, handshake, admin_handshake))
    }

    /// How connections to the admin port begin.
    fn admin_handshake(&self, budgets: &Budgets) -> Result<Handshake, Error> {
        let tls = match (&self.tls, self.admin_tls) {
            (None, Some(AdminTls::Mutual | AdminTls::Server)) => {
                return Err(Error::configuration("admin_tls needs certificates; set `tls`"));
            }
            (None, _) | (_, Some(AdminTls::Off)) => None,
            (Some(files), Some(AdminTls::Server)) => Some(TlsFiles { ca: None, crl: None, ..files.clone() }),
            (Some(files), Some(AdminTls::Mutual)) if files.ca.is_none() => {
                return Err(Error::configuration("admin_tls = \"mutual\" needs `tls.ca`"));
            }
            (Some(files), _) => Some(files.clone()),
        };
        Ok(Handshake {
            tls: tls.as_ref().map(|files| reloading(files, b"http/1.1")).transpose()?,
            http2_only: false,
            budgets: budgets.clone(),
        })
    }
}

fn reloading(files: &TlsFiles, protocol: &'static [u8]) -> Result<Arc<Reloading<ServerTls>>, Error> {
    Handshake::reloading(files, protocol).map_err(|why| Error::configuration(format!("tls: {why}")))
}

/// How an admin port is protected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AdminTls {
    /// TLS, and callers need a certificate.
    Mutual,
    /// TLS; callers need no certificate.
    Server,
    /// No TLS: on loopback addresses, or where all is to be insecure.
    Off,
}

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
