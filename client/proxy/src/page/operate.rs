//! What operators do with keys and groups. All of it is POST, also a look: keys do not belong into addresses,
//! which are logged.

use std::borrow::Cow;

use axum::extract::State;
use axum::response::{IntoResponse as _, Response};
use axum::{Extension, Json};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use peanut_client::{Group, Holding, KeyRole};
use peanut_edge::rights::{Action, Caller};
use peanut_proto::clock::milliseconds;
use serde::{Deserialize, Serialize};

use super::Page;
use crate::problem::Problem;

/// Bytes of a value that are shown.
const SHOWN_BYTES: usize = 4096;

/// A key of a group.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Target {
    group: String,
    /// The key, where it is text.
    key: Option<String>,
    /// The key in base64, where it is not.
    key_base64: Option<String>,
}

/// A group.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Whole {
    group: String,
}

/// What is known of a key.
#[derive(Debug, Serialize)]
struct Found {
    holdings: Vec<Held>,
    /// The first of the value that the owner has; not there where the caller may not read it.
    value: Option<Shown>,
}

#[derive(Debug, Serialize)]
struct Held {
    node: String,
    role: &'static str,
    error: Option<String>,
    entry: Option<Entry>,
}

#[derive(Debug, Serialize)]
struct Entry {
    /// Bytes of the value; nothing: that the origin has no such key.
    size: Option<usize>,
    age_ms: u64,
    ttl_ms: u64,
}

#[derive(Debug, Serialize)]
struct Shown {
    /// As text, or where it is none in base64.
    text: String,
    is_base64: bool,
    is_whole: bool,
}

impl Target {
    fn key(&self) -> Result<Cow<'_, [u8]>, Problem> {
        match (&self.key, &self.key_base64) {
            (Some(key), None) => Ok(key.as_bytes().into()),
            (None, Some(key)) => {
                let key = STANDARD.decode(key);
                Ok(key.map_err(|error| Problem::bad_request(format!("key_base64: {error}")))?.into())
            }
            _ => Err(Problem::bad_request("a target has either a `key` or a `key_base64`")),
        }
    }
}

impl Page {
    /// A group that a node has: a client keeps each name that it was asked for.
    async fn group(&self, name: &str) -> Result<Group, Problem> {
        if !self.fleet.has_group(name).await {
            return Err(Problem::not_found(format!("no node that answers has a group `{name}`")));
        }
        self.core.groups.named(name.as_bytes()).map_err(Problem::bad_request)
    }
}

/// Who holds a key, and the value where the caller may read it.
pub(super) async fn look_up(
    State(page): State<Page>,
    Extension(caller): Extension<Caller>,
    Json(target): Json<Target>,
) -> Result<Response, Problem> {
    let key = target.key()?;
    let group = page.group(&target.group).await?;
    let holdings = group.inspect(&key).await?;
    let may_read = caller.rights().may(Action::Read, group.name(), Some(&key));
    let owner = holdings.iter().find(|holding| holding.role == KeyRole::Owner);
    let value = owner.and_then(|owner| owner.entry.as_ref().ok()?.as_ref()?.value.as_ref());
    let value = value.filter(|_| may_read).map(|value| shown(value));
    Ok(Json(Found { value, holdings: holdings.iter().map(held).collect() }).into_response())
}

fn held(holding: &Holding) -> Held {
    let entry = holding.entry.as_ref().ok().and_then(Option::as_ref).map(|entry| Entry {
        size: entry.value.as_ref().map(|value| value.len()),
        age_ms: milliseconds(entry.age),
        ttl_ms: milliseconds(entry.ttl),
    });
    let role = match holding.role {
        KeyRole::Owner => "owner",
        KeyRole::Successor => "successor",
        _ => "previous owner",
    };
    let error = holding.entry.as_ref().err().map(|error| format!("{error:#}"));
    Held { node: holding.node.clone(), role, error, entry }
}

fn shown(value: &[u8]) -> Shown {
    let part = &value[..value.len().min(SHOWN_BYTES)];
    let is_whole = part.len() == value.len();
    // A character that is cut in two is no reason to show all in base64.
    match std::str::from_utf8(part) {
        Ok(text) => Shown { text: text.to_owned(), is_base64: false, is_whole },
        Err(error) if !is_whole && error.error_len().is_none() => {
            let text = String::from_utf8_lossy(&part[..error.valid_up_to()]).into_owned();
            Shown { text, is_base64: false, is_whole }
        }
        Err(_) => Shown { text: STANDARD.encode(part), is_base64: true, is_whole },
    }
}

/// Deletes a key.
pub(super) async fn delete(
    State(page): State<Page>,
    Extension(caller): Extension<Caller>,
    Json(target): Json<Target>,
) -> Result<Response, Problem> {
    let key = target.key()?;
    let group = page.group(&target.group).await?;
    caller.rights().check(Action::Delete, group.name(), Some(&key))?;
    let done = group.delete(&key).await;
    caller.acted(Action::Delete, group.name(), Some(&key), done.as_ref().err());
    done?;
    Ok(Json(()).into_response())
}

/// Clears a group.
pub(super) async fn clear(
    State(page): State<Page>,
    Extension(caller): Extension<Caller>,
    Json(whole): Json<Whole>,
) -> Result<Response, Problem> {
    let group = page.group(&whole.group).await?;
    caller.rights().check(Action::Clear, group.name(), None)?;
    let done = group.clear().await;
    caller.acted(Action::Clear, group.name(), None, done.as_ref().err());
    done?;
    Ok(Json(()).into_response())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_shown_as_text_where_they_are_and_never_whole_where_they_are_long() {
        let text = shown("Grüße".as_bytes());
        assert_eq!((&*text.text, text.is_base64, text.is_whole), ("Grüße", false, true));
        let binary = shown(&[0xff, 0]);
        assert_eq!((&*binary.text, binary.is_base64), ("/wA=", true));
        let long = shown("ü".repeat(SHOWN_BYTES).as_bytes());
        assert_eq!((long.text.len(), long.is_base64, long.is_whole), (SHOWN_BYTES, false, false));
        let cut = shown(format!("a{}", "ü".repeat(SHOWN_BYTES)).as_bytes());
        assert_eq!((cut.text.len(), cut.is_base64, cut.is_whole), (SHOWN_BYTES - 1, false, false));
    }

    #[test]
    fn a_target_has_one_key() {
        let key = |json: &str| {
            serde_json::from_str::<Target>(json).map(|target| target.key().map(Cow::into_owned).ok())
        };
        assert_eq!(key(r#"{"group":"g","key":"k"}"#).unwrap(), Some(b"k".to_vec()));
        assert_eq!(key(r#"{"group":"g","key_base64":"/wA="}"#).unwrap(), Some(vec![0xff, 0]));
        assert_eq!(key(r#"{"group":"g"}"#).unwrap(), None);
        assert_eq!(key(r#"{"group":"g","key":"k","key_base64":"aw=="}"#).unwrap(), None);
        assert_eq!(key(r#"{"group":"g","key_base64":"?"}"#).unwrap(), None);
        assert!(key(r#"{"group":"g","key":"k","x":1}"#).is_err());
    }
}
