//! HTTP: a key is a resource, `/v1/{group}/{key}`, and `POST /v1/{group}` gets many at once.
//!
//! Keys and groups are percent-encoded, and a key may have any bytes; the first slash after the group ends
//! its name. `openapi.json` has it all, and is served as such; beside it are `/healthz`, `/readyz` and
//! `/metrics`. Where the proxy has tokens, a caller shows one as `Bearer`, or as the password of any user.

mod batch;
mod entry;
mod path;
mod rest;

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::{HeaderMap, Method, StatusCode, header};
use axum::middleware::{from_fn, from_fn_with_state};
use axum::response::{IntoResponse as _, Response};
use axum::routing::get;
use axum::{Extension, Router};
use peanut_client::Group;
use peanut_edge::connections::Peer;
use peanut_edge::rights::{Action, Caller, shown};

use crate::core::{Core, count};
use crate::counters::Protocol;
use crate::groups::as_text;
use crate::metrics::text;
use crate::problem::Problem;
use path::{Target, is_encoded};

const OPENAPI: &str = include_str!("openapi.json");

/// All that is served.
pub(crate) fn router(core: Arc<Core>) -> Router {
    let openapi = || async { ([(header::CONTENT_TYPE, "application/json")], OPENAPI) };
    Router::new()
        .route("/openapi.json", get(openapi))
        .route("/healthz", get(async || "ok\n"))
        .route("/readyz", get(ready))
        .route("/metrics", get(metrics))
        .fallback(serve)
        .layer(from_fn(rest::read_all))
        .layer(from_fn_with_state((core.clone(), Protocol::Http), count))
        .with_state(core)
}

/// Whether a node can be asked.
async fn ready(State(core): State<Arc<Core>>) -> (StatusCode, &'static str) {
    if core.groups.are_reachable() {
        (StatusCode::OK, "ready\n")
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, "not ready: no node can be reached\n")
    }
}

/// For Prometheus, where there are tokens one with the right `admin`.
async fn metrics(
    State(core): State<Arc<Core>>,
    Extension(peer): Extension<Peer>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    core.admit(shown(&headers).as_deref(), &peer)?.rights().check_admin()?;
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    Ok(([(header::CONTENT_TYPE, kind)], text(&core)).into_response())
}

/// A request, and who asks.
struct Asked {
    core: Arc<Core>,
    caller: Caller,
    peer: Peer,
    request: Request,
}

/// Serves what is not at a fixed path. axum's own paths have to be text, and keys may be any bytes.
async fn serve(
    State(core): State<Arc<Core>>,
    Extension(peer): Extension<Peer>,
    request: Request,
) -> Response {
    let caller = core.admit(shown(request.headers()).as_deref(), &peer);
    let served = match (Target::of(request.uri().path()), caller) {
        (None, _) => Err(Problem::not_found("there is nothing here; see /openapi.json")),
        (_, Err(failure)) => Err(Problem::from(failure)),
        (Some(target), Ok(caller)) => Asked { core, caller, peer, request }.serve(target).await,
    };
    served.unwrap_or_else(|problem| problem.into_response())
}

impl Asked {
    async fn serve(self, target: Target) -> Result<Response, Problem> {
        let (method, uri) = (self.request.method().clone(), self.request.uri());
        // Part of a key may stand behind a question mark that should have been encoded.
        if method != Method::PUT && uri.query().is_some() {
            let why = "there is no query but ?ttl= of a PUT; a question mark in a key is written %3F";
            return Err(Problem::bad_request(why));
        }
        if !is_encoded(uri.path()) {
            return Err(Problem::bad_request("a percent sign in a group or key is written %25"));
        }
        match (target, method) {
            (Target::Entry { group, key }, Method::GET | Method::HEAD) => {
                let group = self.group(&group, Action::Read, &key)?;
                entry::get(&group, &key, self).await
            }
            (Target::Entry { group, key }, Method::PUT) => {
                let group = self.group(&group, Action::Set, &key)?;
                entry::put(&group, &key, self).await
            }
            (Target::Entry { group, key }, Method::DELETE) => {
                let group = self.group(&group, Action::Delete, &key)?;
                entry::delete(&group, &key, self).await
            }
            (Target::Entry { .. }, _) => Err(Problem::method_not_allowed("GET, HEAD, PUT, DELETE")),
            (Target::Group(group), Method::POST) => batch::get(&group, self).await,
            (Target::Group(_), _) => Err(Problem::method_not_allowed("POST")),
        }
    }

    /// A group, if the caller may do this to a key of it.
    fn group(&self, name: &[u8], action: Action, key: &[u8]) -> Result<Group, Problem> {
        let text = as_text(name).map_err(Problem::bad_request)?;
        self.caller.rights().check(action, text, Some(key))?;
        self.core.groups.named(name).map_err(Problem::bad_request)
    }
}

#[cfg(test)]
mod tests;
