//! A loader over HTTP: one GET per key.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use headers::{CacheControl, HeaderMapExt as _};
use peanut_proto::limits::MAX_VALUE_BYTES;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_encode};
use reqwest::{Client, StatusCode, Url, redirect};
use xxhash_rust::xxh3::xxh3_64;

use super::{Loaded, Loader, LoaderError, check_timeout, trace_context};

/// What stays as it is in a path segment (RFC 3986, unreserved).
const SEGMENT: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// Loads a key with `GET` from a URL that `{group}` and `{key}` are put into, percent-encoded.
///
/// 200 is the value; `Cache-Control: s-maxage` or `max-age` is its time to live, and `no-store` keeps it
/// from being kept. 404 and 410 are not found. Anything else is an error that names the status.
/// Connections are kept and used again.
#[derive(Clone, Debug)]
pub struct HttpLoader {
    client: Client,
    url: Arc<str>,
}

impl HttpLoader {
    /// How long one request may take by default; the group's load time-out holds as well.
    pub const DEFAULT_TIMEOUT: Duration = Duration::from_secs(5);

    /// A loader from this URL, for example `http://host/{group}/{key}`. `timeout` bounds each request
    /// from connecting to the last byte.
    ///
    /// # Errors
    /// Where the URL has no `{key}`, is not an http or https URL, the time-out is not from 1 ms to an hour, or the system's
    /// certificates cannot be read.
    pub fn new(url: &str, timeout: Duration) -> Result<Self, LoaderError> {
        if !url.contains("{key}") {
            return Err("the url has no {key} in it".into());
        }
        check_timeout(timeout)?;
        let sample = Url::parse(&fill_in(url, "g", b"k")).map_err(|e| format!("the url: {e}"))?;
        if !matches!(sample.scheme(), "http" | "https") {
            return Err("the url is neither http nor https".into());
        }
        // Where a program has chosen its provider already, that one is used.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let client = Client::builder()
            .timeout(timeout)
            .connect_timeout(timeout.min(Duration::from_secs(2)))
            .redirect(redirect::Policy::limited(5))
            .user_agent(concat!("peanut-server/", env!("CARGO_PKG_VERSION")))
            .build()?;
        Ok(HttpLoader { client, url: url.into() })
    }
}

impl Loader for HttpLoader {
    /// Connects, and is content with any answer: a key that nobody has may well be refused.
    async fn check(&self, group: &str) -> Result<(), LoaderError> {
        let url = fill_in(&self.url, group, b"peanut-check");
        self.client.head(url).send().await.map(drop).map_err(|error| error.without_url().into())
    }

    fn fingerprint(&self) -> u64 {
        xxh3_64(self.url.as_bytes())
    }

    async fn load(&self, group: &str, key: &[u8]) -> Result<Loaded, LoaderError> {
        let mut request = self.client.get(fill_in(&self.url, group, key));
        if let Some(traceparent) = trace_context() {
            request = request.header("traceparent", traceparent);
        }
        // Without the URL, in which there may be secrets.
        let response = request.send().await.map_err(reqwest::Error::without_url)?;
        match response.status() {
            StatusCode::OK => {}
            StatusCode::NOT_FOUND | StatusCode::GONE => return Ok(Loaded::NotFound),
            status => {
                let why = format!("the origin answered {status}");
                // Of these the origin does not say that it is in trouble.
                let of_key = status.is_client_error() && !matches!(status.as_u16(), 408 | 425 | 429);
                return Err(if of_key { LoaderError::of_key(why) } else { why.into() });
            }
        }
        let ttl = response.headers().typed_get::<CacheControl>().and_then(|control| {
            let fresh = control.s_max_age().or(control.max_age());
            if control.no_store() || control.no_cache() { Some(Duration::ZERO) } else { fresh }
        });
        let value = read_body(response).await?;
        Ok(Loaded::Found { value, ttl })
    }
}

/// Reads a body, but no more of it than a value may have.
async fn read_body(mut response: reqwest::Response) -> Result<Bytes, LoaderError> {
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(reqwest::Error::without_url)? {
        if body.len() + chunk.len() > MAX_VALUE_BYTES {
            return Err(
                format!("the origin's answer is over the value limit of {MAX_VALUE_BYTES} bytes").into()
            );
        }
        body.extend_from_slice(&chunk);
    }
    // Without what the vector has grown beyond the body: it would be kept, and not counted.
    Ok(body.into_boxed_slice().into())
}

fn fill_in(url: &str, group: &str, key: &[u8]) -> String {
    // `{key}` last: a key may look like `{group}`, but encoding has no braces in it.
    url.replace("{group}", &percent_encode(group.as_bytes(), SEGMENT).to_string())
        .replace("{key}", &percent_encode(key, SEGMENT).to_string())
}

#[cfg(test)]
mod tests;
