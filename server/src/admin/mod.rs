//! The admin port: what operators and their tools see of a node over HTTP.
//!
//! `/` is a page for people, `/status` what it is made of, `/metrics` for Prometheus, `/healthz` and
//! `/readyz` for the program that starts and stops processes. The last two tell nothing, and need neither a
//! token nor a name; the others are for callers who know the node by one of its names, and where there are
//! tokens by one with the right `admin`. Nothing writes. This is the one place of a node that looks at other
//! nodes, to draw them: what the node answers does not depend on it.

mod metrics;
mod neighbours;
mod status;

use std::net::SocketAddr;
use std::sync::Arc;

use axum::Router;
use axum::extract::{Request, State};
use axum::http::{HeaderValue, Method, StatusCode, header};
use axum::middleware::{Next, from_fn, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use parking_lot::Mutex;
use peanut_page::{Histories, Hosts, check_host, page};
use peanut_proto::v1::ErrorCode;
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use crate::connections::{ConnectionLimiter, Handshake, Listener, Peer, accept, serve_http};
use crate::node::Node;
use crate::rights::{Caller, shown};
use neighbours::Neighbours;

/// What the pages are made from.
#[derive(Clone, Debug)]
struct Admin {
    node: Node,
    histories: Arc<Mutex<Histories>>,
    neighbours: Arc<Neighbours>,
}

/// Serves the admin port until it is dropped, by these names and those that always are good.
pub(crate) async fn serve(
    node: Node,
    listener: Listener,
    limiter: Arc<ConnectionLimiter>,
    handshake: Handshake,
    hosts: Vec<String>,
) {
    let hosts = Arc::new(Hosts::new(&hosts, handshake.clone()));
    let admin = Admin { node: node.clone(), histories: Arc::default(), neighbours: Arc::default() };
    let _watching = AbortOnDropHandle::new(tokio::spawn(limiter.clone().watch(handshake.clone())));
    let _sampling =
        AbortOnDropHandle::new(tokio::spawn(status::sample(admin.histories.clone(), node.clone())));
    let _looking = AbortOnDropHandle::new(tokio::spawn(admin.neighbours.clone().look(node)));
    let router = Router::new()
        .route("/", get(page))
        .route("/status", get(figures))
        .route("/metrics", get(metrics))
        .layer(from_fn_with_state(admin.clone(), authorize))
        .layer(from_fn_with_state(hosts, check_host))
        .route("/healthz", get(async || "ok\n"))
        .route("/readyz", get(ready))
        .layer(from_fn(only_reads))
        .with_state(admin);
    let (mut connections, never) = (JoinSet::new(), CancellationToken::new());
    accept(&listener, &limiter, &never, |(stream, permit)| {
        while connections.try_join_next().is_some() {}
        let (router, handshake, never) = (router.clone(), handshake.clone(), never.clone());
        connections.spawn(async move {
            let Ok(stream) = stream.bind() else { return };
            if let Some(connection) = handshake.run(stream, permit).await {
                serve_http(connection, router, never).await;
            }
        });
        true
    })
    .await;
}

/// Whether a server may have an admin port.
///
/// # Errors
/// None, in a build that has one.
pub(crate) fn check() -> Result<(), crate::Error> {
    Ok(())
}

/// Listens on the admin port.
pub(crate) async fn listen(addr: SocketAddr) -> Result<Listener, crate::Error> {
    let listening = TcpListener::bind(addr).await;
    listening
        .map(Listener::Tcp)
        .map_err(|e| crate::Error::transport(&format!("cannot listen on {addr}, choose another `admin`"), e))
}

/// Lets in who shows a token that may: as `Bearer`, or as the password of whichever user, which is how
/// browsers ask.
async fn authorize(State(admin): State<Admin>, request: Request, next: Next) -> Response {
    let peer = request.extensions().get::<Peer>().cloned();
    let shown = shown(request.headers());
    let caller = Caller::admit(admin.node.tokens(), shown.as_deref(), peer);
    let failure = match caller.and_then(|caller| caller.rights().check_admin()) {
        Ok(()) => return next.run(request).await,
        Err(failure) => failure,
    };
    admin.node.metrics().failed(failure.code);
    if failure.code == ErrorCode::PermissionDenied {
        return (StatusCode::FORBIDDEN, format!("{}\n", failure.message)).into_response();
    }
    let mut response = (StatusCode::UNAUTHORIZED, format!("{}\n", failure.message)).into_response();
    let ask = HeaderValue::from_static("Basic realm=\"peanut: a token as the password\", charset=\"UTF-8\"");
    response.headers_mut().insert(header::WWW_AUTHENTICATE, ask);
    response
}

async fn figures(State(admin): State<Admin>) -> impl IntoResponse {
    axum::Json(status::figures(&admin.node, &admin.histories, &admin.neighbours))
}

async fn metrics(State(admin): State<Admin>) -> Response {
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    ([(header::CONTENT_TYPE, kind)], metrics::text(&admin.node)).into_response()
}

async fn ready(State(admin): State<Admin>) -> (StatusCode, &'static str) {
    if admin.node.is_ready() {
        (StatusCode::OK, "ready\n")
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, "not ready: not in the ring yet, or shutting down\n")
    }
}

/// Nothing here writes, so that a form or script of another site can change nothing.
async fn only_reads(request: Request, next: Next) -> Response {
    if matches!(*request.method(), Method::GET | Method::HEAD) {
        return next.run(request).await;
    }
    (StatusCode::METHOD_NOT_ALLOWED, [(header::ALLOW, "GET, HEAD")], "only GET and HEAD\n").into_response()
}
