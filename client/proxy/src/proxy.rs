//! A proxy with its listeners: what is served where, and how it ends.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use peanut_client::Client;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::groups::Groups;
use crate::grpc::Grpc;
use crate::listen;
use crate::{http, resp};

/// What runs is let finish for so long when a proxy is told to stop.
const DRAIN: Duration = Duration::from_secs(10);

/// Serves a fleet to programs that have no client of it.
///
/// ```no_run
/// # async fn f() -> Result<(), Box<dyn std::error::Error>> {
/// use peanut_client::{Client, NearCache};
/// use peanut_proxy::{Proxy, trace_context};
/// use tokio::net::TcpListener;
///
/// let client = Client::builder().etcd("http://127.0.0.1:2379").near_cache(NearCache::bytes(64 << 20));
/// let proxy = Proxy::new(client.trace_context(trace_context).build().await?)
///     .redis(TcpListener::bind("127.0.0.1:6379").await?)
///     .http(TcpListener::bind("127.0.0.1:8080").await?);
/// let stop = async { tokio::signal::ctrl_c().await.expect("it can be waited for") };
/// proxy.run(stop).await;
/// # Ok(()) }
/// ```
#[derive(Debug)]
pub struct Proxy {
    client: Client,
    default_group: Option<String>,
    databases: Vec<String>,
    redis: Vec<TcpListener>,
    http: Vec<TcpListener>,
    grpc: Vec<TcpListener>,
}

impl Proxy {
    /// A proxy of the fleet of this client, which listens nowhere yet.
    pub fn new(client: Client) -> Self {
        Proxy {
            client,
            default_group: None,
            databases: Vec::new(),
            redis: Vec::new(),
            http: Vec::new(),
            grpc: Vec::new(),
        }
    }

    /// Takes the keys of clients of Redis as keys of this group, in place of `group:key`.
    #[must_use]
    pub fn default_group(mut self, group: impl Into<String>) -> Self {
        self.default_group = Some(group.into());
        self
    }

    /// Gives clients of Redis these groups as databases 1, 2 and so on, for `SELECT`; none by default.
    #[must_use]
    pub fn databases<S: Into<String>>(mut self, groups: impl IntoIterator<Item = S>) -> Self {
        self.databases.extend(groups.into_iter().map(Into::into));
        self
    }

    /// Serves the Redis protocol there.
    #[must_use]
    pub fn redis(mut self, listener: TcpListener) -> Self {
        self.redis.push(listener);
        self
    }

    /// Serves HTTP there.
    #[must_use]
    pub fn http(mut self, listener: TcpListener) -> Self {
        self.http.push(listener);
        self
    }

    /// Serves gRPC there.
    #[must_use]
    pub fn grpc(mut self, listener: TcpListener) -> Self {
        self.grpc.push(listener);
        self
    }

    /// Serves until `stop` is ready, and then what runs, for up to ten seconds.
    pub async fn run(self, stop: impl Future<Output = ()>) {
        let groups = Arc::new(Groups::new(self.client));
        let (stopping, tasks) = (CancellationToken::new(), TaskTracker::new());
        let redis = Arc::new(resp::Shared::new(groups.clone(), self.default_group, self.databases));
        for listener in self.redis {
            let (redis, stopping) = (redis.clone(), stopping.clone());
            tasks.spawn(listen::accept(listener, stopping.clone(), tasks.clone(), move |stream| {
                let (redis, stopping) = (redis.clone(), stopping.clone());
                async move { redis.serve(stream, &stopping).await }
            }));
        }
        let router = http::router(groups.clone());
        for listener in self.http {
            let (router, stopping) = (router.clone(), stopping.clone());
            tasks.spawn(listen::accept(listener, stopping.clone(), tasks.clone(), move |stream| {
                listen::serve_http(stream, router.clone(), stopping.clone())
            }));
        }
        for listener in self.grpc {
            let (grpc, stopping) = (Grpc::new(groups.clone()), stopping.clone());
            tasks.spawn(async move {
                if let Err(error) = listen::serve_grpc(listener, grpc, stopping).await {
                    tracing::error!(%error, "gRPC is not served any more");
                }
            });
        }
        tasks.close();
        stop.await;
        stopping.cancel();
        if tokio::time::timeout(DRAIN, tasks.wait()).await.is_err() {
            tracing::warn!("what still runs after {DRAIN:?} is cut off");
        }
    }
}
