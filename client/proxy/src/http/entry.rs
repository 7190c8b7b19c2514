//! One key: `GET`, `HEAD`, `PUT`, `DELETE`.

use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, to_bytes};
use axum::extract::Request;
use axum::http::header::{self, HeaderMap, HeaderName, HeaderValue};
use axum::http::{Method, StatusCode, Uri};
use axum::response::{IntoResponse as _, Response};
use bytes::Bytes;
use http_body::Body as _;
use http_body_util::Full;
use peanut_client::{Detailed, Group};
use peanut_edge::budget::{Budget, Held};
use peanut_edge::holding;
use peanut_proto::limits::MAX_VALUE_BYTES;
use tokio::time::timeout;
use xxhash_rust::xxh3::xxh3_128;

use super::Asked;
use crate::core::account;
use crate::fetch::{get_detailed, room};
use crate::problem::Problem;
use crate::trace::{traceparent, within};

/// How long the body of a request may take.
const BODY_WITHIN: Duration = Duration::from_secs(60);

/// The value, or 304 where the caller has it, or 404. `HEAD` is served as `GET`, and the server leaves out
/// the body.
pub(super) async fn get(group: &Group, key: &[u8], asked: Asked) -> Result<Response, Problem> {
    let account = account(&asked.caller, &asked.peer);
    let fetched = get_detailed(&asked.core.groups, group, key, &account);
    let (got, held) = within(traceparent(asked.request.headers()), fetched).await?;
    let got = got?;
    let headers = asked.request.headers();
    let Some(value) = &got.value else {
        let mut response = Problem::not_found("the group has no such key").into_response();
        fresh(&mut response, &got);
        return Ok(response);
    };
    let tag = entity_tag(value);
    let known = headers.get_all(header::IF_NONE_MATCH).iter();
    let is_known = known.filter_map(|known| known.to_str().ok()).any(|known| is_among(&tag, known));
    let body = || Body::new(holding(tonic::body::Body::new(Full::new(value.clone())), held));
    let mut response = match (is_known, asked.request.method() == Method::HEAD) {
        (true, false) => StatusCode::NOT_MODIFIED.into_response(),
        // The server leaves the body out, and says how long it is.
        (true, true) => (StatusCode::NOT_MODIFIED, body()).into_response(),
        (false, _) => ([(header::CONTENT_TYPE, "application/octet-stream")], body()).into_response(),
    };
    response.headers_mut().insert(header::ETAG, header_value(tag));
    fresh(&mut response, &got);
    Ok(response)
}

/// Stores the body, for the group's lifetime or for `?ttl=` seconds.
pub(super) async fn put(group: &Group, key: &[u8], asked: Asked) -> Result<Response, Problem> {
    unconditional(asked.request.headers(), &[header::IF_MATCH, header::IF_NONE_MATCH])?;
    if asked.request.headers().contains_key(header::CONTENT_RANGE) {
        return Err(Problem::bad_request("a PUT stores a whole value: there is no content-range"));
    }
    let ttl = lifetime(asked.request.uri())?;
    let incoming = account(&asked.caller, &asked.peer).incoming.clone();
    let (value, _held) = body(asked.request, MAX_VALUE_BYTES, &incoming).await?;
    let done = match ttl {
        None => group.set(key, value).await,
        Some(ttl) => group.set_with_ttl(key, value, ttl).await,
    };
    asked.core.groups.heed(group, [&done]);
    done?;
    Ok(StatusCode::NO_CONTENT.into_response())
}

/// Has the fleet forget the key.
pub(super) async fn delete(group: &Group, key: &[u8], asked: Asked) -> Result<Response, Problem> {
    unconditional(asked.request.headers(), &[header::IF_MATCH, header::IF_NONE_MATCH])?;
    let done = group.delete(key).await;
    asked.core.groups.heed(group, [&done]);
    done?;
    Ok(StatusCode::NO_CONTENT.into_response())
}

/// The body of a request, which has so many bytes at most, and the room that it takes.
pub(super) async fn body(
    request: Request,
    most: usize,
    incoming: &Arc<Budget>,
) -> Result<(Bytes, Held), Problem> {
    let announced = request.body().size_hint().upper().unwrap_or(most as u64);
    let length = usize::try_from(announced).unwrap_or(usize::MAX);
    let too_long = || Problem::too_long(format!("the body could not be read, or has more than {most} bytes"));
    if length > most {
        return Err(too_long());
    }
    let held =
        room(incoming, length).await.ok_or_else(|| Problem::busy("too many bodies are on their way"))?;
    let read = timeout(BODY_WITHIN, to_bytes(request.into_body(), most)).await;
    let late = |_| Problem::late(format!("the body was not there in full within {BODY_WITHIN:?}"));
    let body = read.map_err(late)?.map_err(|_| too_long())?;
    Ok((body, held))
}

/// A strong validator: equal for equal values.
fn entity_tag(value: &[u8]) -> String {
    format!("\"{:032x}\"", xxh3_128(value))
}

/// Whether a list of validators, compared weakly (RFC 9110, 13.1.2), has this one.
fn is_among(tag: &str, list: &str) -> bool {
    list.split(',').map(str::trim).any(|one| one == "*" || one.strip_prefix("W/").unwrap_or(one) == tag)
}

/// Says how old an answer is, and for how long it may be kept: until the entry of the cache is not fresh any
/// more.
fn fresh(response: &mut Response, got: &Detailed) {
    // Rounded so that nobody keeps it for longer.
    let (age, lifetime) = (got.age.as_millis().div_ceil(1000), (got.age + got.ttl).as_secs());
    let kept =
        if got.ttl < Duration::from_secs(1) { "no-cache".to_owned() } else { format!("max-age={lifetime}") };
    let headers = response.headers_mut();
    headers.insert(header::AGE, header_value(age.to_string()));
    headers.insert(header::CACHE_CONTROL, header_value(kept));
}

fn header_value(text: String) -> HeaderValue {
    HeaderValue::from_str(&text).expect("digits and letters")
}

/// Refuses a write that depends on what there is: a cache may drop an entry at any time, so that decides
/// nothing.
fn unconditional(headers: &HeaderMap, conditions: &[HeaderName]) -> Result<(), Problem> {
    match conditions.iter().find(|name| headers.contains_key(*name)) {
        None => Ok(()),
        Some(name) => {
            let why = "a cache may drop an entry at any time, so whether there is one decides nothing";
            Err(Problem::bad_request(format!("{name} cannot be kept by a write: {why}")))
        }
    }
}

/// What `?ttl=` says, in seconds.
fn lifetime(uri: &Uri) -> Result<Option<Duration>, Problem> {
    let Some(query) = uri.query() else { return Ok(None) };
    let seconds = query.strip_prefix("ttl=").and_then(|seconds| seconds.parse().ok());
    let ttl = seconds.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
    let wrong = || Problem::bad_request("the query is ttl=, with a number of seconds from 0.001 up");
    ttl.filter(|ttl| *ttl >= Duration::from_millis(1)).map(Some).ok_or_else(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn validators_are_equal_for_equal_values_and_compared_weakly() {
        let tag = entity_tag(b"630");
        assert_eq!(tag, entity_tag(b"630"));
        assert_ne!(tag, entity_tag(b"631"));
        for list in [tag.clone(), format!("W/{tag}"), format!("\"x\", {tag}"), "*".to_owned()] {
            assert!(is_among(&tag, &list), "{list}");
        }
        for list in ["", "\"x\"", "x, y", tag.trim_matches('"')] {
            assert!(!is_among(&tag, list), "{list}");
        }
    }

    #[test]
    fn a_lifetime_is_a_number_of_seconds() {
        let of = |query: &str| lifetime(&format!("/v1/g/k{query}").parse().unwrap()).map_err(|_| ());
        assert_eq!((of(""), of("?")), (Ok(None), Err(())), "it may be part of a key");
        assert_eq!(of("?ttl=1.5"), Ok(Some(Duration::from_millis(1500))));
        for wrong in ["?ttl=", "?ttl=x", "?ttl=0", "?ttl=-1", "?ttl=1e30", "?ttl=NaN", "?TTL=1", "?a=b"] {
            assert_eq!(of(wrong), Err(()), "{wrong}");
        }
    }
}
