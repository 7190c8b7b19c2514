//! `peanut get GROUP KEY`.

use std::process::ExitCode;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use peanut_client::Client;
use serde::Serialize;

use crate::NOT_FOUND;
use crate::failure::Failure;
use crate::output::{print_bytes, print_json};

/// `value` where the value is text, else `value_base64`.
#[derive(Serialize)]
struct Output<'a> {
    group: &'a str,
    key: &'a str,
    found: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    value: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    value_base64: Option<String>,
}

pub(crate) async fn run(client: &Client, group: &str, key: &str, json: bool) -> Result<ExitCode, Failure> {
    let value = client.group(group).get(key).await?;
    if json {
        let text = value.as_deref().map(std::str::from_utf8);
        print_json(&Output {
            group,
            key,
            found: value.is_some(),
            value: text.and_then(Result::ok),
            value_base64: text
                .and_then(Result::err)
                .and(value.as_deref())
                .map(|value| STANDARD.encode(value)),
        });
    } else if let Some(value) = &value {
        print_bytes(value);
    }
    Ok(if value.is_some() { ExitCode::SUCCESS } else { ExitCode::from(NOT_FOUND) })
}
