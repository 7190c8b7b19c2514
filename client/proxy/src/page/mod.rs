//! The fleet's page: what all nodes tell of themselves, and what operators do: look a key up, delete it,
//! clear a group.
//!
//! Who looks needs the right `admin`, and who changes something the right to that too. Changes are a POST of
//! JSON, which a page of another site cannot send here, and leave a line in the audit log.

mod fleet;
mod operate;

use std::sync::Arc;

use axum::extract::{Query, Request, State};
use axum::http::{HeaderMap, Method, header};
use axum::middleware::{Next, from_fn, from_fn_with_state};
use axum::response::{IntoResponse as _, Response};
use axum::routing::{get, post};
use axum::{Extension, Json, Router};
use peanut_edge::connections::Peer;
use peanut_edge::rights::shown;
use peanut_page::{Figures, Hosts, check_host, page};
use serde::Deserialize;

use crate::core::{Core, count};
use crate::counters::Protocol;
use crate::problem::Problem;
pub(crate) use fleet::Fleet;

/// What the page is made from.
#[derive(Clone, Debug)]
struct Page {
    core: Arc<Core>,
    fleet: Arc<Fleet>,
}

/// All that is served, by these names and those that always are good.
pub(crate) fn router(core: Arc<Core>, fleet: Arc<Fleet>, hosts: Arc<Hosts>) -> Router {
    let (counted, page_of_fleet) = (core.clone(), Page { core, fleet });
    Router::new()
        .route("/", get(page))
        .route("/status", get(figures))
        .route("/lookup", post(operate::look_up))
        .route("/delete", post(operate::delete))
        .route("/clear", post(operate::clear))
        .layer(from_fn_with_state(page_of_fleet.clone(), authorize))
        .layer(from_fn(check_origin))
        .layer(from_fn_with_state(hosts, check_host))
        .layer(from_fn_with_state((counted, Protocol::Page), count))
        .route("/healthz", get(async || "ok\n"))
        .with_state(page_of_fleet)
}

/// Lets in who may look into nodes, and tells the others how to show a token.
async fn authorize(
    State(page): State<Page>,
    Extension(peer): Extension<Peer>,
    mut request: Request,
    next: Next,
) -> Result<Response, Problem> {
    let caller = page.core.admit(shown(request.headers()).as_deref(), &peer)?;
    caller.rights().check_admin()?;
    request.extensions_mut().insert(caller);
    Ok(next.run(request).await)
}

/// Whether a request that changes something comes from this page, as far as a browser says where it comes
/// from. Programs say nothing of that, and browsers always do; neither sends JSON from a form.
async fn check_origin(request: Request, next: Next) -> Result<Response, Problem> {
    if matches!(*request.method(), Method::GET | Method::HEAD) || is_from_here(request.headers()) {
        return Ok(next.run(request).await);
    }
    Err(Problem::forbidden("this was not sent by the page itself"))
}

fn is_from_here(headers: &HeaderMap) -> bool {
    let text = |name: &str| headers.get(name).map(|value| value.to_str().unwrap_or("?"));
    let is_same_site = text("sec-fetch-site").is_none_or(|site| site == "same-origin");
    let is_same_host = text("origin")
        .is_none_or(|origin| origin.split_once("://").map(|(_, host)| host) == text(header::HOST.as_str()));
    is_same_site && is_same_host
}

/// Which figures are wanted.
#[derive(Debug, Deserialize)]
struct Wanted {
    /// Of this node alone.
    node: Option<String>,
}

async fn figures(State(page): State<Page>, Query(wanted): Query<Wanted>) -> Response {
    let figures: Figures = page.fleet.figures(wanted.node.as_deref()).await;
    Json(figures).into_response()
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    #[test]
    fn what_a_browser_sends_from_elsewhere_is_told_apart() {
        let from_here = |headers: &[(&'static str, &'static str)]| {
            let headers = headers.iter().map(|(name, value)| {
                (header::HeaderName::from_static(name), HeaderValue::from_static(value))
            });
            is_from_here(&headers.collect())
        };
        let host = ("host", "127.0.0.1:9997");
        assert!(from_here(&[host]), "a program");
        assert!(from_here(&[host, ("origin", "http://127.0.0.1:9997"), ("sec-fetch-site", "same-origin")]));
        assert!(from_here(&[host, ("origin", "https://127.0.0.1:9997")]));
        for elsewhere in [
            ("origin", "http://evil.example"),
            ("origin", "null"),
            ("origin", "http://127.0.0.1:9998"),
            ("sec-fetch-site", "cross-site"),
            ("sec-fetch-site", "same-site"),
            ("sec-fetch-site", "none"),
        ] {
            assert!(!from_here(&[host, elsewhere]), "{elsewhere:?}");
        }
        assert!(!from_here(&[("origin", "http://127.0.0.1:9997")]), "no host");
    }
}
