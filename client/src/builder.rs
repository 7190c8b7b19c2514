//! Describes a client and brings it up.

use std::sync::Arc;
use std::time::Duration;

use peanut_proto::address;
use peanut_proto::bounds::Bounds;
use peanut_proto::discovery::{Discovered, Discovery};
use peanut_proto::fixed::fixed_list;
use peanut_proto::membership::{FleetView, Keys, check_name};
use peanut_proto::registry::Registry;
use tokio::sync::watch;
use tokio::time::timeout;

use crate::addresses::Addresses;
use crate::client::Client;
use crate::config::{Config, DEADLINE, Failover, TraceHook};
use crate::error::{Error, ErrorKind};
use crate::lane::Choice;
use crate::leases::{self, Undecided};
use crate::near::{NearCache, NearCopies};
use crate::routing::{CurrentRouting, Routing};
use crate::tls::Tls;
use crate::token::Token;

/// As many as can be told apart.
const MOST_UNCACHED_LOADS: usize = 1 << 20;
const DAY: Duration = Duration::from_secs(24 * 3600);
const CONNECT_TIMEOUT: Bounds = Bounds::new(Duration::from_millis(1), Duration::from_secs(3600));
const READY_TIMEOUT: Bounds = Bounds::new(Duration::ZERO, DAY);
const HAND_OVER: Bounds = Bounds::new(Duration::ZERO, DAY);
/// As the node handles have it by default.
const LANES_OF_ONE_NODE: usize = 2;
/// More than a machine has memory for.
const MOST_OPERATIONS: usize = 1 << 24;

/// Describes a [`Client`]. One of [`etcd`](Self::etcd), [`nodes`](Self::nodes) and
/// [`registry`](Self::registry) is needed; the last one called holds.
#[derive(Clone, Debug, Default)]
pub struct ClientBuilder {
    source: Source,
    fleet: Option<String>,
    config: Config,
    ready_timeout: Option<Duration>,
    token: Option<Secret>,
    near: Option<NearCache>,
    tls: Option<Tls>,
}

/// What is not shown.
#[derive(Clone)]
struct Secret(String);

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret")
    }
}

#[derive(Clone, Debug, Default)]
enum Source {
    #[default]
    Missing,
    #[cfg(feature = "etcd")]
    Etcd(Vec<String>),
    Nodes(Vec<String>),
    Registry(Arc<dyn Registry>),
}

impl ClientBuilder {
    /// Finds the fleet in etcd at this endpoint, like `http://127.0.0.1:2379`, or at several. For an etcd
    /// with TLS or users pass an
    /// [`EtcdRegistry`](crate::registry::EtcdRegistry) to [`registry`](Self::registry).
    #[cfg(feature = "etcd")]
    #[must_use]
    pub fn etcd(mut self, endpoints: impl Addresses) -> Self {
        self.source = Source::Etcd(endpoints.into_list());
        self
    }

    /// The fleet is this list of addresses, `host:port`, for ever. All clients and nodes must be given the
    /// same list.
    #[must_use]
    pub fn nodes(mut self, addrs: impl Addresses) -> Self {
        self.source = Source::Nodes(addrs.into_list());
        self
    }

    /// Finds the fleet in this registry, for example a
    /// [`LocalRegistry`](peanut_proto::registry::LocalRegistry) that servers in the same process share.
    #[must_use]
    pub fn registry(mut self, registry: impl Registry) -> Self {
        self.source = Source::Registry(Arc::new(registry));
        self
    }

    /// The fleet's name; `default` by default.
    #[must_use]
    pub fn fleet(mut self, fleet: impl Into<String>) -> Self {
        self.fleet = Some(fleet.into());
        self
    }

    /// How long an operation may take, failing over included; 1 s by default, from 1 ms to a day. A node that
    /// is silent for a quarter of it is probed, and left if it is silent for another quarter.
    #[must_use]
    pub fn deadline(mut self, deadline: Duration) -> Self {
        self.config.deadline = deadline;
        self
    }

    /// How long connecting to a node may take; 500 ms by default, from 1 ms to an hour.
    #[must_use]
    pub fn connect_timeout(mut self, timeout: Duration) -> Self {
        self.config.connect_timeout = timeout;
        self
    }

    /// Lanes to each node, each on a connection of its own, from 1 to 256. By default two if the fleet has
    /// one node, so that one lane fills while the other waits; otherwise one, since the lanes of other nodes
    /// fill meanwhile, and fewer lanes make fuller frames.
    #[must_use]
    pub fn lanes_per_node(mut self, lanes: usize) -> Self {
        self.config.lanes_per_node = Some(lanes);
        self
    }

    /// Operations that may be in flight to one node; 65,536 by default, from one for each lane to 16 million.
    /// Beyond that, and beyond 64 MiB that wait to be sent, operations fail at once with
    /// [`ErrorKind::Overloaded`].
    #[must_use]
    pub fn operations_per_node(mut self, operations: usize) -> Self {
        self.config.operations_per_node = operations;
        self
    }

    /// What becomes of keys whose owner cannot be reached; [`Failover::Bounded`] by default.
    #[must_use]
    pub fn failover(mut self, failover: Failover) -> Self {
        self.config.failover = failover;
        self
    }

    /// For how long after a change of the ring a new owner is filled from the previous one, in place of the
    /// origin; 60 s by default, at most a day; zero: not at all.
    #[must_use]
    pub fn hand_over(mut self, window: Duration) -> Self {
        self.config.hand_over = window;
        self
    }

    /// Shorter windows, which end within a simulated run.
    #[cfg(feature = "simulation")]
    #[must_use]
    pub fn windows(mut self, windows: peanut_proto::intervals::Windows) -> Self {
        self.config.windows = windows;
        self
    }

    /// How many loads of [`get_or_load`](crate::Group::get_or_load) may run at a time where no node can be
    /// asked; 64 by default. Their values are not kept. Zero: such calls fail.
    #[must_use]
    pub fn uncached_loads(mut self, loads: usize) -> Self {
        self.config.uncached_loads = loads.min(MOST_UNCACHED_LOADS);
        self
    }

    /// Speaks TLS to nodes.
    #[must_use]
    pub fn tls(mut self, tls: Tls) -> Self {
        self.tls = Some(tls);
        self
    }

    /// The secret of a token that the nodes know. It is not sent without TLS, except to loopback addresses.
    #[must_use]
    pub fn token(mut self, secret: impl Into<String>) -> Self {
        self.token = Some(Secret(secret.into()));
        self
    }

    /// Keeps copies of hot keys in this process; none by default.
    #[must_use]
    pub fn near_cache(mut self, near: NearCache) -> Self {
        self.near = Some(near);
        self
    }

    /// Asks `context` with every get, within the span of the get, for its W3C trace context (`traceparent`).
    /// It goes to the node, whose span of a load is a part of that trace, and on to loaders over HTTP and
    /// gRPC. With the crates `tracing-opentelemetry` and `opentelemetry_sdk`:
    ///
    /// ```
    /// use std::collections::HashMap;
    ///
    /// use opentelemetry::propagation::TextMapPropagator as _;
    /// use opentelemetry_sdk::propagation::TraceContextPropagator;
    /// use tracing_opentelemetry::OpenTelemetrySpanExt as _;
    ///
    /// let builder = peanut_client::Client::builder().trace_context(|| {
    ///     let mut headers = HashMap::new();
    ///     let context = tracing::Span::current().context();
    ///     TraceContextPropagator::new().inject_context(&context, &mut headers);
    ///     headers.remove("traceparent")
    /// });
    /// ```
    #[must_use]
    pub fn trace_context(mut self, context: impl Fn() -> Option<String> + Send + Sync + 'static) -> Self {
        self.config.trace = Some(TraceHook(Arc::new(context)));
        self
    }

    /// Makes a unary call of every get, as other gRPC clients do, in place of lanes: each costs several times
    /// as much, hot keys share nothing, and there are no near copies. For comparison.
    #[doc(hidden)]
    #[must_use]
    pub fn unary(mut self) -> Self {
        self.config.unary = true;
        self
    }

    /// How long [`build`](Self::build) waits for a ring with nodes in it; 5 s by default, at most a day.
    #[must_use]
    pub fn ready_timeout(mut self, timeout: Duration) -> Self {
        self.ready_timeout = Some(timeout);
        self
    }

    /// What cannot be, whatever the fleet is like.
    fn check(&self) -> Result<(), String> {
        let Config { deadline, connect_timeout, hand_over, .. } = self.config;
        for (setting, value, bounds) in [
            ("deadline", deadline, DEADLINE),
            ("connect_timeout", connect_timeout, CONNECT_TIMEOUT),
            ("hand_over", hand_over, HAND_OVER),
            ("ready_timeout", self.ready_timeout.unwrap_or_default(), READY_TIMEOUT),
        ] {
            bounds.check(value).map_err(|why| format!("{setting}: {why}"))?;
        }
        if let Some(near) = &self.near {
            near.check()?;
        }
        let lanes = self.config.lanes_per_node.unwrap_or(LANES_OF_ONE_NODE);
        if !(1..=Choice::MOST_LANES).contains(&lanes) {
            return Err(format!("lanes_per_node: must be from 1 to {}", Choice::MOST_LANES));
        }
        if !(lanes..=MOST_OPERATIONS).contains(&self.config.operations_per_node) {
            let why = format!("must be from {lanes}, one for each lane, to {MOST_OPERATIONS}");
            return Err(format!("operations_per_node: {why}"));
        }
        if let Source::Nodes(addrs) = &self.source {
            for (at, addr) in addrs.iter().enumerate() {
                address::check(addr).map_err(|why| format!("nodes: {why}"))?;
                if addrs[..at].contains(addr) {
                    return Err(format!("nodes: `{addr}` is there twice; remove one"));
                }
            }
        }
        Ok(())
    }

    /// Makes the client and waits until it knows a ring with at least one node.
    ///
    /// # Errors
    /// [`ErrorKind::Configuration`] where nothing says how to find the fleet, or it cannot be;
    /// [`ErrorKind::Unavailable`] where the registry did not answer in time, or the fleet has no nodes.
    pub async fn build(self) -> Result<Client, Error> {
        let ready_timeout = self.ready_timeout.unwrap_or(Duration::from_secs(5));
        let fleet = self.fleet.clone().unwrap_or_else(|| DEFAULT_FLEET.to_owned());
        let found = self.discover()?;
        let mut discovered = found.discovery.subscribe();
        let ready = timeout(ready_timeout, discovered.wait_for(|d| !d.view.ring.members.is_empty())).await;
        let ready = ready.ok().and_then(Result::ok).map(|discovered| discovered.view.clone());
        let Some(view) = ready else {
            return Err(not_ready(&fleet, ready_timeout, &found.discovery.subscribe()));
        };
        // A large ring takes up to a second to build, too long for a thread that carries calls.
        let config = found.config.clone();
        let ring = view.ring.clone();
        let build = move || Routing::of(&ring, None, &config);
        let cannot = |e| Error::caused_by(ErrorKind::Unavailable, None, "the ring could not be built", e);
        let routing = peanut_proto::machine::blocking(build).await.map_err(cannot)?;
        // Before anybody can ask the nodes. What is not known by then the client finds out in the background.
        leases::tell(&view, routing.nodes(), found.left_in.as_deref(), Undecided::default()).await;
        Ok(found.client(&fleet, routing))
    }

    /// Makes the client without waiting for the fleet: an application can start before its cache. Until the
    /// fleet is found, calls wait for it up to their deadlines, and then fail with [`ErrorKind::Unavailable`]
    /// and what the registry says.
    ///
    /// # Errors
    /// [`ErrorKind::Configuration`] as [`build`](Self::build). Must be called within a runtime.
    pub fn build_lazy(self) -> Result<Client, Error> {
        let fleet = self.fleet.clone().unwrap_or_else(|| DEFAULT_FLEET.to_owned());
        let found = self.discover()?;
        let nobody = FleetView::new(found.keys.clone());
        let routing = Routing::of(&nobody.ring, None, &found.config);
        Ok(found.client(&fleet, routing))
    }

    /// Checks the description and begins to look for the fleet.
    fn discover(mut self) -> Result<Found, Error> {
        let fleet = self.fleet.clone().unwrap_or_else(|| DEFAULT_FLEET.to_owned());
        let fleet = fleet.as_str();
        check_name(fleet).map_err(|why| Error::new(ErrorKind::Configuration, format!("fleet name {why}")))?;
        self.check().map_err(|why| Error::new(ErrorKind::Configuration, why))?;
        if let Some(Secret(secret)) = &self.token {
            let bad = || {
                Error::new(
                    ErrorKind::Configuration,
                    "the token has characters that no secret can have: a line end, a space, or one beyond ASCII",
                )
            };
            self.config.token = Some(Token::new(secret).ok_or_else(bad)?);
        }
        self.config.near = self.near.take().map(NearCopies::new).map(Arc::new);
        self.config.tls = self.tls.take().map(Tls::build).transpose()?;
        let is_shared = !matches!(self.source, Source::Nodes(_));
        // The names in a fixed list are the clients' alone.
        self.config.fleet = is_shared.then(|| fleet.into());
        let registry: Arc<dyn Registry> = match self.source {
            Source::Missing => {
                let why = "nothing says how to find the fleet; call etcd, nodes or registry";
                return Err(Error::new(ErrorKind::Configuration, why));
            }
            #[cfg(feature = "etcd")]
            Source::Etcd(endpoints) => {
                use peanut_proto::registry::{EtcdRegistry, RegistryError};
                let registry = EtcdRegistry::new(endpoints, EtcdRegistry::DEFAULT_TIMEOUT);
                let unusable = |error: RegistryError| Error::new(ErrorKind::Configuration, error.to_string());
                Arc::new(registry.map_err(unusable)?)
            }
            Source::Nodes(addrs) if addrs.is_empty() => {
                return Err(Error::new(ErrorKind::Configuration, "the list of nodes is empty"));
            }
            Source::Nodes(addrs) => Arc::new(fixed_list(fleet, addrs)),
            Source::Registry(registry) => registry,
        };
        let keys = Keys::new(fleet);
        // What is written into a fixed list reaches nobody.
        let left_in = is_shared.then(|| registry.clone());
        let discovery = Discovery::start(registry, keys.clone());
        Ok(Found { config: self.config, discovery, left_in, keys })
    }
}

const DEFAULT_FLEET: &str = "default";

/// A client that is about to be.
struct Found {
    config: Config,
    discovery: Discovery,
    left_in: Option<Arc<dyn Registry>>,
    keys: Keys,
}

impl Found {
    fn client(self, fleet: &str, routing: Routing) -> Client {
        let Found { config, discovery, left_in, keys } = self;
        let routing = Arc::new(CurrentRouting::new(routing));
        Client::new(config, routing, fleet, (left_in, keys), discovery)
    }
}

fn not_ready(fleet: &str, waited: Duration, discovered: &watch::Receiver<Discovered>) -> Error {
    let at = Keys::new(fleet).ring();
    match &discovered.borrow().trouble {
        Some(trouble) => {
            let why = format!("fleet `{fleet}` was not found within {waited:?}");
            Error::caused_by(ErrorKind::Unavailable, None, why, trouble.clone())
        }
        None => Error::new(
            ErrorKind::Unavailable,
            format!(
                "fleet `{fleet}` has no nodes after {waited:?}: nobody has written `{at}` in this registry"
            ),
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_can_be_built_in_a_task() {
        fn is_send(_: &impl Send) {}
        is_send(&ClientBuilder::default().build());
    }

    /// The first call may come before the fleet is followed in the background.
    #[tokio::test]
    async fn a_client_that_is_built_asks_no_node_for_which_a_hint_waits() {
        use peanut_proto::membership::{NodeInfo, RingDocument};
        use peanut_proto::registry::{LocalRegistry, Registry as _};

        let (registry, keys) = (LocalRegistry::new(), Keys::new(DEFAULT_FLEET));
        let node =
            |id: &str| NodeInfo { id: id.into(), addr: format!("{id}:1"), zone: String::new(), weight: 1 };
        let ring = RingDocument::empty(8);
        let ring = ["a", "b", "c"].iter().fold(ring, |ring, id| ring.with(&node(id), 0).expect("a new one"));
        registry.put(&keys.ring(), ring.encode(), None).await.unwrap();
        registry.put(&format!("{}g/x", keys.hints_for("b")), vec![], None).await.unwrap();
        let client = Client::builder().registry(registry).build().await.unwrap();
        let routing = client.routing();
        let unleased: Vec<_> =
            routing.nodes().iter().filter(|node| node.is_unleased()).map(|it| it.id()).collect();
        assert_eq!(unleased, ["b"], "a write was acknowledged that it may not know of");
    }

    #[tokio::test]
    async fn what_cannot_be_is_refused_by_name() {
        let builder = || Client::builder().nodes(["127.0.0.1:9"]);
        let (zero, ever) = (Duration::ZERO, Duration::MAX);
        for (builder, setting) in [
            (builder().deadline(zero), "deadline: "),
            (builder().deadline(Duration::from_nanos(1)), "deadline: "),
            (builder().deadline(ever), "deadline: "),
            (builder().connect_timeout(zero), "connect_timeout: "),
            (builder().connect_timeout(ever), "connect_timeout: "),
            (builder().ready_timeout(ever), "ready_timeout: "),
            (builder().hand_over(ever), "hand_over: "),
            (builder().lanes_per_node(0), "lanes_per_node: "),
            (builder().lanes_per_node(257), "lanes_per_node: "),
            (builder().operations_per_node(0), "operations_per_node: "),
            (builder().operations_per_node(7).lanes_per_node(8), "operations_per_node: "),
            (builder().operations_per_node(usize::MAX), "operations_per_node: "),
            (builder().nodes(["127.0.0.1"]), "nodes: "),
            (builder().nodes(["fd00::1:9999"]), "nodes: "),
            (builder().nodes(["0.0.0.0:1"]), "nodes: "),
            (builder().nodes(["[::]:1"]), "nodes: "),
            (builder().nodes(["a:0"]), "nodes: "),
            (builder().nodes(["a b:1"]), "nodes: "),
            (builder().nodes(["http://a:1"]), "nodes: "),
            (builder().nodes(["a:1", "a:1"]), "nodes: "),
            (builder().nodes([""; 0]), "the list of nodes is empty"),
            (builder().fleet("a/b"), "fleet name "),
            (builder().token("with\nline"), "the token "),
        ] {
            let error = builder.build().await.expect_err("it is refused");
            assert_eq!(error.kind(), ErrorKind::Configuration);
            assert!(error.to_string().starts_with(setting), "{setting}: {error}");
        }
        let least = builder().deadline(Duration::from_millis(1)).operations_per_node(2).hand_over(zero);
        assert!(least.build().await.is_ok());
        let most = builder()
            .deadline(DAY)
            .connect_timeout(Duration::from_secs(3600))
            .hand_over(DAY)
            .ready_timeout(DAY);
        assert!(most.operations_per_node(MOST_OPERATIONS).lanes_per_node(256).build().await.is_ok());
    }
}
