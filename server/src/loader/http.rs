//! A loader over HTTP: one GET per key.

mod address;
mod freshness;

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use peanut_proto::clock::wall_clock_ms;
use peanut_proto::limits::MAX_VALUE_BYTES;
use reqwest::{Client, ClientBuilder, Response, StatusCode, Url, redirect};
use tokio::time::Instant;
use xxhash_rust::xxh3::xxh3_64;

use self::address::Address;
use super::reconnect::{Reconnect, Use};
use super::{LoadRequest, Loaded, Loader, LoaderError, check_timeout};

/// Most redirects of one load.
const MOST_REDIRECTS: usize = 5;

/// Loads a key with `GET` from a URL that `{group}` and `{key}` are put into, percent-encoded. The keys `.`
/// and `..` are refused where they would stand in the path.
///
/// 200 is the value. It lives as long as RFC 9111 says for a shared cache (`s-maxage`, `max-age`, `Expires`,
/// less `Age`; not at all with `no-store`, `private`, `no-cache` or `Vary: *`), and as long as the group says
/// where the answer says nothing. The group's `stale_if_error` holds for every value that may be kept. 404
/// and 410 are not found. Anything else is an error that names the status. Redirects are followed within the
/// same scheme, host and port.
///
/// Connections are kept and used again. A load whose connection breaks before an answer has come is done once
/// more, on a new one. After a load that had no answer in time the others' connections are new; over HTTP/2 a
/// silent one is noticed by pings before.
#[derive(Clone, Debug)]
pub struct HttpLoader {
    client: Arc<Reconnect<Client>>,
    /// Keeps no connection.
    once: Client,
    address: Address,
    timeout: Duration,
    fingerprint: u64,
}

impl HttpLoader {
    /// How long one request may take by default; the group's load time-out holds as well.
    pub const DEFAULT_TIMEOUT: Duration = Duration::from_secs(5);

    /// A loader from this URL, for example `http://host/{group}/{key}`. `timeout` bounds each load
    /// from connecting to the last byte.
    ///
    /// # Errors
    /// Where the URL has no `{key}` in its path or query, is not an http or https URL, the time-out is not
    /// from 1 ms to an hour, or the system's certificates cannot be read.
    pub fn new(url: &str, timeout: Duration) -> Result<Self, LoaderError> {
        HttpLoader::with(url, timeout, Client::builder)
    }

    fn with(
        url: &str,
        timeout: Duration,
        builder: impl Fn() -> ClientBuilder + Send + Sync + 'static,
    ) -> Result<Self, LoaderError> {
        check_timeout(timeout)?;
        let address = Address::new(url)?;
        // Where a program has chosen its provider already, that one is used.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let common = move || {
            builder()
                .connect_timeout(timeout.min(Duration::from_secs(2)))
                .redirect(redirect::Policy::custom(within_origin))
                .referer(false)
                .http2_keep_alive_interval(timeout / 3)
                .http2_keep_alive_timeout(timeout / 3)
                .user_agent(concat!("peanut-server/", env!("CARGO_PKG_VERSION")))
        };
        let (client, once) = (common().build()?, common().pool_max_idle_per_host(0).build()?);
        let client = Arc::new(Reconnect::new(client, move || common().build().ok()));
        Ok(HttpLoader { client, once, address, timeout, fingerprint: xxh3_64(url.as_bytes()) })
    }

    /// Asks for a URL: once more, where a connection breaks that had been idle.
    async fn ask(&self, used: &Use<'_, Client>, url: Url, trace: Option<&str>, deadline: Instant) -> Answer {
        let mut answer = send(used.connection(), url.clone(), trace, deadline).await;
        if used.may_repeat() && answer.as_ref().is_err_and(|error| has_broken(error, deadline)) {
            answer = send(&self.once, url, trace, deadline).await;
        }
        answer
    }
}

type Answer = Result<Response, reqwest::Error>;

impl Loader for HttpLoader {
    /// Connects, and is content with any answer: a key that nobody has may well be refused.
    async fn check(&self, group: &str) -> Result<(), LoaderError> {
        let url = self.address.of(group, b"peanut-check")?;
        let answer = self.once.head(url).timeout(self.timeout).send().await;
        answer.map(drop).map_err(|error| error.without_url().into())
    }

    fn fingerprint(&self) -> u64 {
        self.fingerprint
    }

    async fn load(&self, request: &LoadRequest) -> Result<Loaded, LoaderError> {
        let (url, trace) = (self.address.of(&request.group, &request.key)?, request.traceparent.as_deref());
        let (used, deadline) = (self.client.begin(), Instant::now() + self.timeout);
        let loaded = match self.ask(&used, url, trace, deadline).await {
            Ok(response) => read(response).await,
            // Without the URL, in which there may be secrets.
            Err(error) if error.is_redirect() => Err(LoaderError::of_key(error.without_url())),
            Err(error) if error.is_timeout() || Instant::now() >= deadline => {
                used.replace();
                return Err(error.without_url().into());
            }
            Err(error) => {
                used.failed();
                return Err(error.without_url().into());
            }
        };
        if Instant::now() < deadline {
            used.answered();
        } else {
            used.replace();
        }
        loaded
    }
}

/// Takes an answer for what it is.
async fn read(response: Response) -> Result<Loaded, LoaderError> {
    match response.status() {
        StatusCode::OK => {}
        StatusCode::NOT_FOUND | StatusCode::GONE => return Ok(Loaded::not_found()),
        status => {
            let why = format!("the origin answered {status}");
            // Of these the origin does not say that it is in trouble.
            let of_key = status.is_client_error() && !matches!(status.as_u16(), 408 | 425 | 429);
            return Err(if of_key { LoaderError::of_key(why) } else { why.into() });
        }
    }
    let now = SystemTime::UNIX_EPOCH + Duration::from_millis(wall_clock_ms());
    let ttl = freshness::lifetime(response.headers(), now);
    Ok(Loaded::found(read_body(response).await?).ttl(ttl))
}

async fn send(client: &Client, url: Url, trace: Option<&str>, deadline: Instant) -> Answer {
    let mut request = client.get(url).timeout(deadline.saturating_duration_since(Instant::now()));
    if let Some(traceparent) = trace {
        request = request.header("traceparent", traceparent);
    }
    request.send().await
}

/// Whether a connection that there was has ended, or did not answer pings, before there was an answer.
fn has_broken(error: &reqwest::Error, deadline: Instant) -> bool {
    error.is_request() && !error.is_connect() && !error.is_redirect() && Instant::now() < deadline
}

/// Follows what stays at the origin, so that neither a trace nor a secret of the URL goes elsewhere.
fn within_origin(attempt: redirect::Attempt<'_>) -> redirect::Action {
    let (to, from) = (attempt.url().origin(), attempt.previous().first().map(Url::origin));
    if attempt.previous().len() > MOST_REDIRECTS {
        attempt.error("the origin redirects too often")
    } else if from.is_some_and(|from| from == to) {
        attempt.follow()
    } else {
        let to = to.ascii_serialization();
        attempt.error(format!("the origin redirects to {to}, and only redirects to itself are followed"))
    }
}

/// Reads a body, but no more of it than a value may have.
async fn read_body(mut response: Response) -> Result<Bytes, LoaderError> {
    // As long as it says that it is, so that it need not be copied while it grows.
    let length = response.content_length().and_then(|length| usize::try_from(length).ok());
    let mut body = Vec::with_capacity(length.unwrap_or(0).min(MAX_VALUE_BYTES));
    while let Some(chunk) = response.chunk().await.map_err(reqwest::Error::without_url)? {
        if body.len() + chunk.len() > MAX_VALUE_BYTES {
            let why = format!("the origin's answer is over the value limit of {MAX_VALUE_BYTES} bytes");
            return Err(LoaderError::of_key(why));
        }
        body.extend_from_slice(&chunk);
    }
    // Without what the vector has grown beyond the body: it would be kept, and not counted.
    Ok(body.into_boxed_slice().into())
}

#[cfg(test)]
mod tests;
