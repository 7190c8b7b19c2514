//! A proxy with its listeners: what is served where, to whom, and how it ends.

use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use peanut_client::{Client, TlsFiles};
use peanut_edge::Token;
use peanut_edge::budget::Budgets;
use peanut_edge::connections::{
    ConnectionLimiter, ConnectionLimits, Handshake, Listener, Progressing, serve_grpc, serve_http,
};
use peanut_edge::rights::Tokens;
use peanut_page::Hosts;
use peanut_proto::peanutcachepb::peanut_cache_server::PeanutCacheServer;
use peanut_proto::tls::{Reloading, ServerTls};
use peanut_proto::v1::peanut_server::PeanutServer;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tonic::server::NamedService as _;
use tonic_health::ServingStatus;
use tonic_health::server::HealthReporter;

use crate::core::Core;
use crate::counters::Protocol;
use crate::groups::Groups;
use crate::grpc::Grpc;
use crate::listen::{Port, Tasks, services};
use crate::page::Fleet;
use crate::{http, page, resp};

/// What runs is let finish for so long when a proxy is told to stop.
const DRAIN: Duration = Duration::from_secs(10);
/// How often it is looked whether a node can be reached.
const HEALTH: Duration = Duration::from_secs(1);

/// Why a proxy cannot be as it was described.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Error(String);

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Error {}

/// Describes a [`Proxy`].
#[derive(Debug)]
#[must_use]
pub struct ProxyBuilder {
    client: Client,
    default_group: Option<String>,
    databases: Vec<String>,
    redis: Vec<Listener>,
    http: Vec<Listener>,
    grpc: Vec<Listener>,
    page: Vec<Listener>,
    page_hosts: Vec<String>,
    tls: Option<TlsFiles>,
    tokens: Vec<Token>,
    insecure: bool,
    connections: ConnectionLimits,
}

impl ProxyBuilder {
    /// Takes the keys of clients of Redis as keys of this group, in place of `group:key`.
    pub fn default_group(mut self, group: impl Into<String>) -> Self {
        self.default_group = Some(group.into());
        self
    }

    /// Gives clients of Redis these groups as databases 1, 2 and so on, for `SELECT`; none by default.
    pub fn databases<S: Into<String>>(mut self, groups: impl IntoIterator<Item = S>) -> Self {
        self.databases.extend(groups.into_iter().map(Into::into));
        self
    }

    /// Serves the Redis protocol there: on a port, or a Unix socket.
    pub fn redis(mut self, listener: impl Into<Listener>) -> Self {
        self.redis.push(listener.into());
        self
    }

    /// Serves HTTP there: on a port, or a Unix socket.
    pub fn http(mut self, listener: impl Into<Listener>) -> Self {
        self.http.push(listener.into());
        self
    }

    /// Serves gRPC there: on a port, or a Unix socket.
    pub fn grpc(mut self, listener: impl Into<Listener>) -> Self {
        self.grpc.push(listener.into());
        self
    }

    /// Serves the page of the fleet there, for operators: on a port, or a Unix socket. Where there are
    /// tokens, who looks needs the right `admin`.
    pub fn page(mut self, listener: impl Into<Listener>) -> Self {
        self.page.push(listener.into());
        self
    }

    /// Names by which the page may be called, beside localhost, IP addresses, and those in the proxy's
    /// certificate.
    pub fn page_hosts<S: Into<String>>(mut self, names: impl IntoIterator<Item = S>) -> Self {
        self.page_hosts.extend(names.into_iter().map(Into::into));
        self
    }

    /// Speaks TLS on every port, with these files, which are read again when they change. With a `ca`,
    /// callers need a certificate of one of its authorities.
    pub fn tls(mut self, files: TlsFiles) -> Self {
        self.tls = Some(files);
        self
    }

    /// Lets in callers that have this token; without one, everybody.
    pub fn token(mut self, token: Token) -> Self {
        self.tokens.push(token);
        self
    }

    /// Whether it may listen beyond loopback without TLS; not by default.
    pub fn insecure(mut self, insecure: bool) -> Self {
        self.insecure = insecure;
        self
    }

    /// Connections to each port, in all and from one address; 10,000 and 10,000 by default.
    pub fn max_connections(mut self, total: usize, per_peer: usize) -> Self {
        (self.connections.total, self.connections.per_peer) = (total, per_peer);
        self
    }

    /// Checks the description and makes the proxy.
    ///
    /// # Errors
    /// What cannot be: certificates or tokens that cannot be used, a port beyond loopback without TLS, no
    /// port at all.
    pub fn build(self) -> Result<Proxy, Error> {
        let asks_for_certificates = self.tls.as_ref().is_some_and(|files| files.ca.is_some());
        let tokens =
            Tokens::new(&self.tokens, asks_for_certificates).map_err(|why| Error(why.to_string()))?;
        let open = Opening {
            tls: self.tls,
            insecure: self.insecure,
            connections: self.connections,
            budgets: Budgets::new(),
        };
        let (redis, http, grpc, page) = (
            open.ports(self.redis, b"")?,
            open.ports(self.http, b"http/1.1")?,
            open.ports(self.grpc, b"h2")?,
            open.ports(self.page, b"http/1.1")?,
        );
        let all = [
            (Protocol::Redis, &redis),
            (Protocol::Http, &http),
            (Protocol::Grpc, &grpc),
            (Protocol::Page, &page),
        ];
        if all.iter().all(|(_, ports)| ports.is_empty()) {
            return Err(Error(
                "it listens nowhere: give an address for the Redis protocol, HTTP, gRPC or the page"
                    .to_owned(),
            ));
        }
        let limiters =
            all.into_iter().flat_map(|(of, ports)| ports.iter().map(move |it| (of, it.limiter.clone())));
        let limiters = limiters.collect();
        let fleet = Arc::new(Fleet::new(self.client.clone()));
        let core = Arc::new(Core::new(Groups::new(self.client), tokens, limiters));
        let resp = Arc::new(resp::Shared::new(core.clone(), self.default_group, self.databases));
        Ok(Proxy { core, resp, fleet, redis, http, grpc, page, page_hosts: self.page_hosts })
    }
}

/// How ports are opened.
struct Opening {
    tls: Option<TlsFiles>,
    insecure: bool,
    connections: ConnectionLimits,
    budgets: Budgets,
}

impl Opening {
    /// Ports on which `protocol` is spoken within TLS; empty: one that has no name there.
    fn ports(&self, listeners: Vec<Listener>, protocol: &'static [u8]) -> Result<Vec<Port>, Error> {
        if listeners.is_empty() {
            return Ok(Vec::new());
        }
        let reloading = |files| Handshake::reloading(files, protocol);
        let tls = self.tls.as_ref().map(reloading).transpose().map_err(|why| Error(format!("tls: {why}")))?;
        let handshake = Handshake { tls, http2_only: protocol == b"h2", budgets: self.budgets.clone() };
        let port = |listener| {
            check(&listener, &handshake, self.insecure)?;
            let limiter = ConnectionLimiter::new(self.connections);
            Ok(Port { listener, limiter, handshake: handshake.clone() })
        };
        listeners.into_iter().map(port).collect()
    }
}

/// Whether a listener may be open to whoever reaches it.
fn check(listener: &Listener, handshake: &Handshake, insecure: bool) -> Result<(), Error> {
    let addr = listener.local_addr().map_err(|error| Error(format!("a listener has no address: {error}")))?;
    if addr.ip().is_loopback() || handshake.is_tls() || insecure {
        return Ok(());
    }
    let mend = "give a certificate (`tls`, --serve-cert), or allow it (`insecure`, --insecure)";
    Err(Error(format!("{addr} without TLS lets everybody there read and write what is in the cache; {mend}")))
}

/// Serves a fleet to programs that have no client of it.
///
/// ```no_run
/// # async fn f() -> Result<(), Box<dyn std::error::Error>> {
/// use peanut_client::{Client, NearCache};
/// use peanut_proxy::{Proxy, trace_context};
/// use tokio::net::TcpListener;
///
/// let client = Client::builder().etcd("http://127.0.0.1:2379").near_cache(NearCache::bytes(64 << 20));
/// let proxy = Proxy::builder(client.trace_context(trace_context).build().await?)
///     .redis(TcpListener::bind("127.0.0.1:6379").await?)
///     .http(TcpListener::bind("127.0.0.1:8080").await?)
///     .build()?;
/// let stop = async { tokio::signal::ctrl_c().await.expect("it can be waited for") };
/// proxy.run(stop).await;
/// # Ok(()) }
/// ```
#[derive(Debug)]
pub struct Proxy {
    core: Arc<Core>,
    resp: Arc<resp::Shared>,
    fleet: Arc<Fleet>,
    redis: Vec<Port>,
    http: Vec<Port>,
    grpc: Vec<Port>,
    page: Vec<Port>,
    page_hosts: Vec<String>,
}

impl Proxy {
    /// Describes a proxy of the fleet of this client, which listens nowhere yet.
    pub fn builder(client: Client) -> ProxyBuilder {
        ProxyBuilder {
            client,
            default_group: None,
            databases: Vec::new(),
            redis: Vec::new(),
            http: Vec::new(),
            grpc: Vec::new(),
            page: Vec::new(),
            page_hosts: Vec::new(),
            tls: None,
            tokens: Vec::new(),
            insecure: false,
            connections: ConnectionLimits { total: 10_000, per_peer: 10_000, ..ConnectionLimits::default() },
        }
    }

    /// A handle by which it can be changed while it runs.
    pub fn handle(&self) -> ProxyHandle {
        // The ports of a protocol have their certificates in common.
        let of = |ports: &Vec<Port>| ports.first()?.handshake.tls.clone();
        let reloading =
            [&self.redis, &self.http, &self.grpc, &self.page].into_iter().filter_map(of).collect();
        ProxyHandle { core: self.core.clone(), reloading }
    }

    /// Serves until `stop` is ready, and then what runs, for up to ten seconds.
    pub async fn run(self, stop: impl Future<Output = ()>) {
        let (stopping, tasks) = (CancellationToken::new(), Tasks::default());
        let _cut = tasks.cut_on_drop();
        let grpc = Grpc::new(self.core.clone());
        let (health, health_service) = tonic_health::server::health_reporter();
        set_health(&health, self.core.groups.are_reachable()).await;
        tasks.spawn(keep_health(self.core.clone(), health, stopping.clone()));
        let services =
            services(&grpc, health_service).expect("the descriptions of the services are part of the build");
        let router = http::router(self.core.clone());
        for port in self.redis {
            let (resp, stop) = (self.resp.clone(), stopping.clone());
            tasks.spawn(port.serve(stopping.clone(), tasks.clone(), move |connection| {
                let (resp, stop, peer) = (resp.clone(), stop.clone(), connection.peer().clone());
                async move { resp.serve(Progressing::new(connection), peer, &stop).await }
            }));
        }
        for port in self.http {
            let (router, stop) = (router.clone(), stopping.clone());
            tasks.spawn(port.serve(stopping.clone(), tasks.clone(), move |connection| {
                serve_http(connection, router.clone(), stop.clone())
            }));
        }
        for port in self.grpc {
            let (services, stop) = (services.clone(), stopping.clone());
            tasks.spawn(port.serve(stopping.clone(), tasks.clone(), move |connection| {
                serve_grpc(connection, services.clone(), stop.clone())
            }));
        }
        if !self.page.is_empty() {
            tasks.spawn(self.fleet.clone().watch(stopping.clone()));
        }
        for port in self.page {
            let hosts = Arc::new(Hosts::new(&self.page_hosts, port.handshake.clone()));
            let router = page::router(self.core.clone(), self.fleet.clone(), hosts);
            let stop = stopping.clone();
            tasks.spawn(port.serve(stopping.clone(), tasks.clone(), move |connection| {
                serve_http(connection, router.clone(), stop.clone())
            }));
        }
        stop.await;
        stopping.cancel();
        if tokio::time::timeout(DRAIN, tasks.ended()).await.is_err() {
            tracing::warn!("what still runs after {DRAIN:?} is cut off");
        }
    }
}

/// Has the gRPC ports say whether the proxy serves.
async fn set_health(health: &HealthReporter, serves: bool) {
    let status = if serves { ServingStatus::Serving } else { ServingStatus::NotServing };
    for service in ["", PeanutServer::<Grpc>::NAME, PeanutCacheServer::<Grpc>::NAME] {
        health.set_service_status(service, status).await;
    }
}

/// A proxy serves while it can reach a node, until it is told to stop.
async fn keep_health(core: Arc<Core>, health: HealthReporter, stop: CancellationToken) {
    while stop.run_until_cancelled(sleep(HEALTH)).await.is_some() {
        set_health(&health, core.groups.are_reachable()).await;
    }
    set_health(&health, false).await;
}

/// Changes a proxy while it runs.
#[derive(Clone, Debug)]
pub struct ProxyHandle {
    core: Arc<Core>,
    reloading: Vec<Arc<Reloading<ServerTls>>>,
}

impl ProxyHandle {
    /// Reads the certificates again, for new connections. Where they cannot be used, the last good ones stay,
    /// with a warning. They are also read again by themselves, within a second of a change.
    pub fn reload_certificates(&self) {
        self.reloading.iter().for_each(|tls| tls.reload());
    }

    /// Puts other tokens in the place of those there are, and says whether they differ.
    ///
    /// # Errors
    /// Where they cannot be used, or are none where there are some.
    pub fn set_tokens(&self, tokens: &[Token]) -> Result<bool, Error> {
        self.core.tokens.replace(tokens).map_err(|why| Error(why.to_string()))
    }
}
