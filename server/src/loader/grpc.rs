//! A loader over gRPC: a service `peanut.loader.v1.Loader` that its user writes in any language.

use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use peanut_proto::limits::MAX_MESSAGE_BYTES;
use peanut_proto::loader_v1::load_result::Result as Answer;
use peanut_proto::loader_v1::loader_client::LoaderClient;
use peanut_proto::loader_v1::{Found, LoadRequest};
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request};
use xxhash_rust::xxh3::xxh3_64;

use super::{Loaded, Loader, LoaderError, check_timeout, trace_context};

/// Keys in one call at most.
const MOST_KEYS: usize = 100;

/// Loads keys by `peanut.loader.v1.Loader/Load`.
#[derive(Clone, Debug)]
pub struct GrpcLoader {
    channel: Channel,
    timeout: Duration,
    fingerprint: u64,
}

impl GrpcLoader {
    /// How long one call may take by default.
    pub const DEFAULT_TIMEOUT: Duration = Duration::from_secs(5);

    /// A loader from the service at `url`, like `http://127.0.0.1:7000` or `https://loader.example:443`, whose certificate
    /// is checked against the system's. Connects with the first load, and again when the connection is lost.
    ///
    /// # Errors
    /// Where the URL is neither http nor https, or the time-out is not from 1 ms to an hour. Must be called within a runtime.
    pub fn new(url: &str, timeout: Duration) -> Result<Self, LoaderError> {
        check_timeout(timeout)?;
        let endpoint = Endpoint::from_shared(url.to_owned()).map_err(|e| format!("the url: {e}"))?;
        let endpoint = match endpoint.uri().scheme_str() {
            Some("http") => endpoint,
            Some("https") => {
                let tls = tonic::transport::ClientTlsConfig::new().with_native_roots();
                endpoint.tls_config(tls).map_err(|e| format!("the url: {e}"))?
            }
            _ => return Err("the url is neither http nor https".into()),
        };
        let channel = endpoint.connect_timeout(timeout.min(Duration::from_secs(2))).connect_lazy();
        Ok(GrpcLoader { channel, timeout, fingerprint: xxh3_64(url.as_bytes()) })
    }

    fn ask<'a>(
        &'a self,
        group: &'a str,
        keys: &'a [Bytes],
    ) -> BoxFuture<'a, Result<Vec<Result<Loaded, LoaderError>>, LoaderError>> {
        Box::pin(async move {
            let mut request = Request::new(LoadRequest { group: group.to_owned(), keys: keys.to_vec() });
            request.set_timeout(self.timeout);
            if let Some(traceparent) = trace_context().and_then(|trace| trace.parse().ok()) {
                request.metadata_mut().insert("traceparent", traceparent);
            }
            // As many values as there are keys, each as long as it may be, would be too much; what does not fit is an error.
            let client =
                LoaderClient::new(self.channel.clone()).max_decoding_message_size(4 * MAX_MESSAGE_BYTES);
            let asked = tokio::time::timeout(self.timeout, client.clone().load(request)).await;
            let response = match asked {
                Ok(Ok(response)) => response.into_inner(),
                // Together they are too long.
                Ok(Err(status)) if status.code() == Code::OutOfRange && keys.len() > 1 => {
                    let (first, second) = keys.split_at(keys.len() / 2);
                    return Ok([self.ask(group, first).await?, self.ask(group, second).await?].concat());
                }
                Ok(Err(status)) => {
                    let said = status.message();
                    return Err(format!("the loader service answered {:?}: {said}", status.code()).into());
                }
                Err(_) => {
                    return Err(format!("the loader service did not answer within {:?}", self.timeout).into());
                }
            };
            let results = response.results.into_iter().map(|result| match result.result {
                Some(Answer::Found(Found { value, ttl_ms })) => {
                    // A copy, so that a small value does not keep the whole message.
                    let value = Bytes::copy_from_slice(&value);
                    Ok(Loaded::Found { value, ttl: ttl_ms.map(Duration::from_millis) })
                }
                Some(Answer::NotFound(_)) => Ok(Loaded::NotFound),
                Some(Answer::Error(why)) => Err(LoaderError::of_key(why)),
                None => Err("the loader service left a result empty".into()),
            });
            Ok(results.collect())
        })
    }
}

impl Loader for GrpcLoader {
    /// Asks for nothing: a service that is there knows the call.
    async fn check(&self, group: &str) -> Result<(), LoaderError> {
        self.ask(group, &[]).await.map(drop)
    }

    fn fingerprint(&self) -> u64 {
        self.fingerprint
    }

    fn most_keys(&self) -> usize {
        MOST_KEYS
    }

    async fn load(&self, group: &str, key: &[u8]) -> Result<Loaded, LoaderError> {
        let mut results = self.load_many(group, &[Bytes::copy_from_slice(key)]).await;
        results.pop().unwrap_or_else(|| Err("the loader service answered nothing".into()))
    }

    async fn load_many(&self, group: &str, keys: &[Bytes]) -> Vec<Result<Loaded, LoaderError>> {
        self.ask(group, keys).await.unwrap_or_else(|error| vec![Err(error); keys.len()])
    }
}
