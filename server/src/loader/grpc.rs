//! A loader over gRPC: a service `peanut.loader.v1.Loader` that its user writes in any language.

use std::error::Error as _;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use peanut_proto::limits::MAX_MESSAGE_BYTES;
use peanut_proto::loader_v1::load_result::Result as Answer;
use peanut_proto::loader_v1::loader_client::LoaderClient;
use peanut_proto::loader_v1::{self, Found, LoadResponse};
use tokio::time::{Instant, timeout_at};
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status};
use xxhash_rust::xxh3::xxh3_64;

use super::reconnect::Reconnect;
use super::{LoadRequest, Loaded, Loader, LoaderError, check_timeout, last_begin, no_time_for, with_causes};

/// Keys in one call at most.
const MOST_KEYS: usize = 100;
/// Bytes of one answer at most.
const MOST_MESSAGE_BYTES: usize = 4 * MAX_MESSAGE_BYTES;

/// Loads keys by `peanut.loader.v1.Loader/Load`.
///
/// All loads share one connection. A silent one is noticed by pings while a call waits on it, and one on
/// which a call has waited for all of its time is not used by later calls. A call whose connection breaks is
/// made once more on a new one, if the service had answered on the old one.
///
/// A status other than OK is every key's error. Where several keys were asked for and it may be about one of
/// them (`INVALID_ARGUMENT`, `NOT_FOUND`, `FAILED_PRECONDITION`, `OUT_OF_RANGE`, `DATA_LOSS`), or their
/// values are too long together, halves of them are asked for again.
#[derive(Clone, Debug)]
pub struct GrpcLoader {
    channel: Arc<Reconnect<Channel>>,
    timeout: Duration,
    fingerprint: u64,
}

impl GrpcLoader {
    /// How long one call may take by default.
    pub const DEFAULT_TIMEOUT: Duration = Duration::from_secs(5);

    /// A loader from the service at `url`, like `http://127.0.0.1:7000` or `https://loader.example:443`,
    /// whose certificate is checked against the system's. Connects with the first load, and again when the
    /// connection is lost.
    ///
    /// # Errors
    /// Where the URL is neither http nor https, or the time-out is not from 1 ms to an hour. Must be called
    /// within a runtime.
    pub fn new(url: &str, timeout: Duration) -> Result<Self, LoaderError> {
        check_timeout(timeout)?;
        let endpoint = Endpoint::from_shared(url.to_owned()).map_err(|e| format!("`url`: {e}"))?;
        let endpoint = match endpoint.uri().scheme_str() {
            Some("http") => endpoint,
            Some("https") => {
                let tls = tonic::transport::ClientTlsConfig::new().with_native_roots();
                endpoint.tls_config(tls).map_err(|e| format!("`url`: {e}"))?
            }
            _ => return Err("`url` is neither http nor https".into()),
        };
        let endpoint = endpoint
            .connect_timeout(timeout.min(Duration::from_secs(2)))
            // Two pings in the time of a call: servers take more for an attack.
            .http2_keep_alive_interval(timeout / 3)
            .keep_alive_timeout(timeout / 3);
        let channel = Reconnect::new(endpoint.connect_lazy(), move || Some(endpoint.connect_lazy()));
        Ok(GrpcLoader { channel: Arc::new(channel), timeout, fingerprint: xxh3_64(url.as_bytes()) })
    }

    fn ask<'a>(
        &'a self,
        requests: &'a [LoadRequest],
        until: Instant,
    ) -> BoxFuture<'a, Vec<Result<Loaded, LoaderError>>> {
        Box::pin(async move {
            let Some(first) = requests.first() else { return Vec::new() };
            let response = match self.call(&first.group, requests).await {
                Ok(response) => response,
                Err(Failed::Status(status)) if requests.len() > 1 && may_be_of_a_key(&status) => {
                    if Instant::now() >= until {
                        return vec![Err(no_time_for(status.message())); requests.len()];
                    }
                    let (first, second) = requests.split_at(requests.len() / 2);
                    return [self.ask(first, until).await, self.ask(second, until).await].concat();
                }
                Err(failed) => return vec![Err(self.told(&failed)); requests.len()],
            };
            if response.results.len() != requests.len() {
                let (asked, answered) = (requests.len(), response.results.len());
                let why = format!("the loader service was asked for {asked} keys and answered {answered}");
                return vec![Err(why.into()); requests.len()];
            }
            let results = response.results.into_iter().map(|result| match result.result {
                Some(Answer::Found(Found { value, ttl_ms })) => {
                    // A copy, so that a small value does not keep the whole message.
                    let value = Bytes::copy_from_slice(&value);
                    Ok(Loaded::found(value).ttl(ttl_ms.map(Duration::from_millis)))
                }
                Some(Answer::NotFound(_)) => Ok(Loaded::not_found()),
                Some(Answer::Error(why)) => Err(LoaderError::of_key(why)),
                None => Err(LoaderError::of_key("the loader service left a result empty")),
            });
            results.collect()
        })
    }

    /// Makes one call: once more, where the connection breaks on which the service had answered before.
    async fn call(&self, group: &str, requests: &[LoadRequest]) -> Result<LoadResponse, Failed> {
        let keys: Vec<Bytes> = requests.iter().map(|request| request.key.clone()).collect();
        let trace = requests.first().and_then(|request| request.traceparent.as_deref());
        let deadline = Instant::now() + self.timeout;
        let mut is_second = false;
        loop {
            let mut request =
                Request::new(loader_v1::LoadRequest { group: group.to_owned(), keys: keys.clone() });
            request.set_timeout(deadline.saturating_duration_since(Instant::now()));
            if let Some(traceparent) = trace.and_then(|trace| trace.parse().ok()) {
                request.metadata_mut().insert("traceparent", traceparent);
            }
            let used = self.channel.begin();
            // As many values as there are keys, each as long as it may be, would be too much; what does not
            // fit is asked for in halves.
            let mut client =
                LoaderClient::new(used.connection().clone()).max_decoding_message_size(MOST_MESSAGE_BYTES);
            let answer = timeout_at(deadline, client.load(request)).await;
            match answer {
                Ok(Ok(response)) => {
                    used.answered();
                    return Ok(response.into_inner());
                }
                // The service itself said so.
                Ok(Err(status)) if status.source().is_none() => {
                    used.answered();
                    return Err(Failed::Status(status));
                }
                Ok(Err(status)) => {
                    let may_repeat = used.may_repeat() && !is_second;
                    used.replace();
                    if Instant::now() >= deadline {
                        return Err(Failed::Late);
                    }
                    if !may_repeat {
                        return Err(Failed::Connection(status));
                    }
                    is_second = true;
                }
                Err(_) => {
                    used.replace();
                    return Err(Failed::Late);
                }
            }
        }
    }

    fn told(&self, failed: &Failed) -> LoaderError {
        match failed {
            Failed::Status(status) => {
                let why = format!("the loader service answered {:?}: {}", status.code(), status.message());
                if may_be_of_a_key(status) { LoaderError::of_key(why) } else { why.into() }
            }
            Failed::Connection(status) => {
                let why = with_causes(status.message().to_owned(), status);
                format!("the loader service could not be asked: {why}").into()
            }
            Failed::Late => format!("the loader service did not answer within {:?}", self.timeout).into(),
        }
    }
}

/// Why there is no response.
enum Failed {
    Status(Status),
    Connection(Status),
    Late,
}

/// Whether a status may be about one key of several, or about their values together: they are too long for
/// the service's limit or for ours.
fn may_be_of_a_key(status: &Status) -> bool {
    match status.code() {
        Code::InvalidArgument
        | Code::NotFound
        | Code::FailedPrecondition
        | Code::OutOfRange
        | Code::DataLoss => true,
        // What gRPC says of messages that are too long, in most languages; and what services say that are
        // asked too much.
        Code::ResourceExhausted => status.message().contains("larger than"),
        _ => false,
    }
}

impl Loader for GrpcLoader {
    /// Asks for nothing: a service that is there knows the call.
    async fn check(&self, group: &str) -> Result<(), LoaderError> {
        self.call(group, &[]).await.map(drop).map_err(|failed| self.told(&failed))
    }

    fn fingerprint(&self) -> u64 {
        self.fingerprint
    }

    fn max_batch_size(&self) -> usize {
        MOST_KEYS
    }

    async fn load(&self, request: &LoadRequest) -> Result<Loaded, LoaderError> {
        let mut results = self.ask(std::slice::from_ref(request), request.deadline).await;
        results.pop().unwrap_or_else(|| Err("the loader service answered nothing".into()))
    }

    async fn load_many(&self, requests: &[LoadRequest]) -> Vec<Result<Loaded, LoaderError>> {
        self.ask(requests, last_begin(requests)).await
    }
}
