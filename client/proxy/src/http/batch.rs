//! Many keys of a group: `POST /v1/{group}`.

use axum::body::{Body, HttpBody as _};
use axum::response::{IntoResponse as _, Response};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use peanut_edge::holding;
use peanut_edge::rights::Action;
use serde::{Deserialize, Serialize};

use super::Asked;
use super::entry::body;
use crate::core::account;
use crate::fetch::{FIRST_PORTION, Fetch, Shortage, room};
use crate::groups::as_text;
use crate::problem::{self, Problem};
use crate::trace::{traceparent, within};

const MAX_KEYS: usize = 10_000;
/// Of a request: that many keys of a good length.
const MAX_BODY_BYTES: usize = 4 << 20;
/// Bytes of values in an answer, about.
const MAX_VALUES_BYTES: usize = 32 << 20;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Wanted {
    keys: Vec<Key>,
}

/// Text, or bytes as `{"base64": "…"}`.
#[derive(Clone, Deserialize, Serialize)]
#[serde(untagged)]
enum Key {
    Text(String),
    Bytes { base64: String },
}

impl Key {
    fn bytes(&self) -> Result<Bytes, Problem> {
        match self {
            Key::Text(text) => Ok(Bytes::copy_from_slice(text.as_bytes())),
            Key::Bytes { base64 } => {
                let wrong = |error| Problem::bad_request(format!("`{base64}` is not base64: {error}"));
                STANDARD.decode(base64).map(Bytes::from).map_err(wrong)
            }
        }
    }
}

#[derive(Serialize)]
struct Answers {
    values: Vec<Answer>,
}

/// What a key came to. A value is text where it can be, else it is in `value_base64`; where there is none it
/// is null.
#[derive(Serialize)]
struct Answer {
    key: Key,
    #[serde(flatten)]
    outcome: Outcome,
}

#[derive(Serialize)]
#[serde(rename_all = "snake_case")]
enum Outcome {
    Value(Option<String>),
    ValueBase64(String),
    Error(problem::Body),
}

/// The values of the keys in the body, in their order, each with an error of its own where there is one.
pub(super) async fn get(name: &[u8], asked: Asked) -> Result<Response, Problem> {
    let Asked { core, caller, peer, request } = asked;
    let name = as_text(name).map_err(Problem::bad_request)?;
    let trace = traceparent(request.headers());
    let account = account(&caller, &peer);
    let (body, _held) = body(request, MAX_BODY_BYTES, &account.incoming).await?;
    let wanted: Wanted = serde_json::from_slice(&body)
        .map_err(|error| Problem::bad_request(format!("the body is not as in /openapi.json: {error}")))?;
    if wanted.keys.len() > MAX_KEYS {
        return Err(Problem::too_long(format!("there are more than {MAX_KEYS} keys")));
    }
    let keys: Vec<Bytes> = wanted.keys.iter().map(Key::bytes).collect::<Result<_, _>>()?;
    let may_read = |key: &Bytes| caller.rights().check(Action::Read, name, Some(key));
    keys.iter().try_for_each(may_read)?;
    if keys.is_empty() {
        return Ok(axum::Json(Answers { values: Vec::new() }).into_response());
    }
    let group = core.groups.named(name.as_bytes()).map_err(Problem::bad_request)?;
    let values_of = account.values.clone();
    let fetch = Fetch::new(FIRST_PORTION, MAX_VALUES_BYTES, account, true);
    let got = within(trace, fetch.get(&core.groups, &group, &keys)).await;
    let shortage = fetch.shortage();
    let outcome = |got| match got {
        None => Outcome::Error(Problem::from(shortage).into_body()),
        Some(Err(error)) => Outcome::Error(Problem::from(error).into_body()),
        Some(Ok(None)) => Outcome::Value(None),
        Some(Ok(Some(value))) => match String::from_utf8(Vec::from(value)) {
            Ok(text) => Outcome::Value(Some(text)),
            Err(error) => Outcome::ValueBase64(STANDARD.encode(error.as_bytes())),
        },
    };
    let answer = |(key, got)| Answer { key, outcome: outcome(got) };
    let values = wanted.keys.into_iter().zip(got).map(answer).collect();
    let response = axum::Json(Answers { values }).into_response();
    // JSON may be longer than what is in it.
    let written = usize::try_from(response.body().size_hint().lower()).unwrap_or(usize::MAX);
    if written > values_of.most() {
        return Err(Shortage::TooLong.into());
    }
    let held = fetch.into_held();
    let held = match values_of.try_take(written.saturating_sub(held.bytes())) {
        Some(more) => held.and(more),
        None => {
            // Who holds some and waits for more would wait for others who do.
            drop(held);
            room(&values_of, written).await.ok_or(Shortage::NoRoom)?
        }
    };
    Ok(response.map(|body| Body::new(holding(tonic::body::Body::new(body), held))))
}
