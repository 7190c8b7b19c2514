//! A loader over HTTP: one GET per key.

mod address;
mod freshness;

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use peanut_proto::clock::wall_clock_ms;
use peanut_proto::limits::MAX_VALUE_BYTES;
use reqwest::header::{HeaderValue, LOCATION};
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
/// and 410 are not found, for the group's `negative_ttl` and no longer than the answer says. Anything else is
/// an error that names the status. Redirects are followed within the same scheme, host and port; the value
/// then lives no longer than any answer on the way says, and is not kept where a temporary redirect (302,
/// 303, 307) says nothing.
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
                .redirect(redirect::Policy::none())
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

    /// Asks for a key, and follows redirects. What is found may live as long as every answer on the way says.
    async fn follow(&self, used: &Use<'_, Client>, request: &LoadRequest, deadline: Instant) -> Followed {
        let (first, trace) = (self.address.of(&request.group, &request.key)?, request.traceparent.as_deref());
        let (mut url, mut ttl) = (first.clone(), None);
        for _ in 0..=MOST_REDIRECTS {
            let response = self.ask(used, url.clone(), trace, deadline).await?;
            let said = freshness::lifetime(response.headers(), now());
            let Some(to) = redirect_of(&response) else { return Ok((response, shorter(ttl, said))) };
            url = within_origin(&first, &url, to)?;
            // RFC 9111, 3: such an answer may be reused only where it says so.
            let is_permanent = matches!(response.status().as_u16(), 301 | 308);
            ttl = shorter(ttl, if is_permanent { said } else { said.or(Some(Duration::ZERO)) });
        }
        Err(Unloaded::Refused(LoaderError::of_key("the origin redirects too often")))
    }
}

type Answer = Result<Response, reqwest::Error>;
type Followed = Result<(Response, Option<Duration>), Unloaded>;

/// Why there is no answer.
enum Unloaded {
    /// The origin gave none.
    Unanswered(reqwest::Error),
    /// It leads elsewhere, or the key cannot be asked for.
    Refused(LoaderError),
}

impl From<reqwest::Error> for Unloaded {
    fn from(error: reqwest::Error) -> Self {
        Unloaded::Unanswered(error)
    }
}

impl From<LoaderError> for Unloaded {
    fn from(error: LoaderError) -> Self {
        Unloaded::Refused(error)
    }
}

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
        let (used, deadline) = (self.client.begin(), Instant::now() + self.timeout);
        let loaded = match self.follow(&used, request, deadline).await {
            Ok((response, ttl)) => read(response, ttl).await,
            Err(Unloaded::Refused(error)) => Err(error),
            // Without the URL, in which there may be secrets.
            Err(Unloaded::Unanswered(error)) if error.is_timeout() || Instant::now() >= deadline => {
                used.replace();
                return Err(error.without_url().into());
            }
            Err(Unloaded::Unanswered(error)) => {
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

fn now() -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_millis(wall_clock_ms())
}

/// The shorter of two lifetimes, of which `None` says nothing.
fn shorter(one: Option<Duration>, other: Option<Duration>) -> Option<Duration> {
    one.into_iter().chain(other).min()
}

/// Takes an answer for what it is.
async fn read(response: Response, ttl: Option<Duration>) -> Result<Loaded, LoaderError> {
    match response.status() {
        StatusCode::OK => {}
        StatusCode::NOT_FOUND | StatusCode::GONE => return Ok(Loaded::not_found().ttl(ttl)),
        status => {
            let why = format!("the origin answered {status}");
            // Of these the origin does not say that it is in trouble.
            let of_key = status.is_client_error() && !matches!(status.as_u16(), 408 | 425 | 429);
            return Err(if of_key { LoaderError::of_key(why) } else { why.into() });
        }
    }
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
    error.is_request() && !error.is_connect() && Instant::now() < deadline
}

/// Where a redirect leads; `None` where the answer is none.
fn redirect_of(response: &Response) -> Option<&HeaderValue> {
    let is_redirect = matches!(response.status().as_u16(), 301 | 302 | 303 | 307 | 308);
    response.headers().get(LOCATION).filter(|_| is_redirect)
}

/// The URL that a redirect from `at` leads to, where that is at the origin, so that neither a trace nor a
/// secret of the first URL goes elsewhere.
fn within_origin(first: &Url, at: &Url, to: &HeaderValue) -> Result<Url, LoaderError> {
    let to = std::str::from_utf8(to.as_bytes()).ok().and_then(|to| at.join(to).ok());
    let Some(mut to) = to else {
        return Err(LoaderError::of_key("the origin redirects to what is no URL"));
    };
    if to.origin() != first.origin() {
        let to = to.origin().ascii_serialization();
        let why = format!("the origin redirects to {to}, and only redirects to itself are followed");
        return Err(LoaderError::of_key(why));
    }
    // The login is the first URL's. These fail for URLs without a host only.
    let _ = to.set_username(first.username());
    let _ = to.set_password(first.password());
    Ok(to)
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
