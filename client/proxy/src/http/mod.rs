//! HTTP: a key is a resource, `/v1/{group}/{key}`, and `POST /v1/{group}` gets many at once.
//!
//! Keys and groups are percent-encoded, and a key may have any bytes; the first slash after the group ends its name.
//! `openapi.json` has it all, and is served as such.

mod batch;
mod entry;
mod path;
mod problem;

use std::sync::Arc;

use axum::Router;
use axum::extract::{Request, State};
use axum::http::{Method, header};
use axum::response::{IntoResponse as _, Response};
use axum::routing::get;

use crate::groups::Groups;
use path::Target;
use problem::Problem;

const OPENAPI: &str = include_str!("openapi.json");

/// All that is served.
pub(crate) fn router(groups: Arc<Groups>) -> Router {
    let openapi = || async { ([(header::CONTENT_TYPE, "application/json")], OPENAPI) };
    Router::new().route("/openapi.json", get(openapi)).fallback(serve).with_state(groups)
}

/// Serves what is not at a fixed path. axum's own paths have to be text, and keys may be any bytes.
async fn serve(State(groups): State<Arc<Groups>>, request: Request) -> Response {
    let served = match Target::of(request.uri().path()) {
        Some(Target::Entry { group, key }) => entry(&groups, &group, &key, request).await,
        Some(Target::Group(group)) => match *request.method() {
            Method::POST => batch::get(&groups, &group, request).await,
            _ => Err(Problem::method_not_allowed("POST")),
        },
        None => Err(Problem::not_found("there is nothing here; see /openapi.json")),
    };
    served.unwrap_or_else(|problem| problem.into_response())
}

async fn entry(groups: &Groups, group: &[u8], key: &[u8], request: Request) -> Result<Response, Problem> {
    let group = groups.named(group).map_err(Problem::bad_request)?;
    match *request.method() {
        Method::GET | Method::HEAD => entry::get(&group, key, request.headers()).await,
        Method::PUT => entry::put(&group, key, request).await,
        Method::DELETE => entry::delete(&group, key, request.headers()).await,
        _ => Err(Problem::method_not_allowed("GET, HEAD, PUT, DELETE")),
    }
}

#[cfg(test)]
mod tests;
