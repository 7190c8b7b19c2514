//! The registry on etcd, v3.
//!
//! `etcd_client` balances over all endpoints as if each were alive, so this module gives it one endpoint
//! at a time and goes to the next when a call fails. Every call has a time-out. A watch asks for progress
//! while it is quiet, so that a connection which died without a word is noticed.

mod endpoint;
mod secure;
mod watch;

use std::error::Error as _;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use etcd_client::{
    Client, Compare, CompareOp, ConnectOptions, GetOptions, PutOptions, Txn, TxnOp, WatchOptions,
};
use parking_lot::Mutex;
use tokio::time::timeout;

use crate::bounds::Bounds;
use crate::intervals::{REGISTRY_CALL, WATCH_PROGRESS};
use crate::tls::{TlsError, TlsFiles};

use endpoint::{check_endpoint, is_open};
use watch::EtcdChanges;

use super::{Changes, Entry, KeyRange, LeaseId, Page, PageOptions, Registry, RegistryError};

/// Keys of the first page, and of the longest. Where values are long a page has fewer, since it is one
/// message.
const FIRST_PAGE: usize = 128;
const MAX_PAGE: usize = 1024;
/// Longest message with a page. etcd itself takes no value of more than 1.5 MiB by default.
const MAX_PAGE_BYTES: usize = 4 << 20;
/// Longest message of a watch: etcd puts up to 1000 changes into one. Where they are longer, all is read
/// again in pages.
const MAX_CHANGES_BYTES: usize = 32 << 20;
/// Keys that are deleted in one transaction; etcd takes up to 128 operations.
const DELETED_AT_ONCE: usize = 64;

/// A registry in etcd. Clones share the connection.
#[derive(Clone)]
pub struct EtcdRegistry {
    shared: Arc<Shared>,
}

struct Shared {
    options: Options,
    current: Mutex<Current>,
    /// Held by the call that connects for all: each would log in by itself, which costs etcd a password hash.
    connecting: tokio::sync::Mutex<usize>,
    /// Most keys of the next page; 0: one key, without its value.
    page: AtomicUsize,
}

#[derive(Clone)]
struct Options {
    endpoints: Vec<String>,
    timeout: Duration,
    user: Option<(String, String)>,
    /// Whether the password may be sent for everybody to read.
    insecure: bool,
    tls: Option<TlsFiles>,
}

struct Current {
    /// Index of the endpoint in use, or next to be tried.
    endpoint: usize,
    connection: Option<Connection>,
}

#[derive(Clone)]
struct Connection {
    /// Tells the logins of this process apart.
    number: usize,
    client: Client,
}

impl EtcdRegistry {
    /// How long one call may take: nodes that wake wait for [`REGISTRY_PATIENCE`], and writers count on
    /// that.
    ///
    /// [`REGISTRY_PATIENCE`]: crate::intervals::REGISTRY_PATIENCE
    pub const TIMEOUT_BOUNDS: Bounds = Bounds::new(Duration::from_millis(10), REGISTRY_CALL);
    /// How long one call may take by default.
    pub const DEFAULT_TIMEOUT: Duration = REGISTRY_CALL;

    /// A registry on these endpoints (`http://host:port`; the scheme may be left out), each call bounded
    /// by `timeout`. Nothing is connected yet.
    ///
    /// # Errors
    /// Where there is no endpoint, one is not an address, or the time-out is not from 10 ms to 2 s.
    pub fn new<S: Into<String>>(
        endpoints: impl IntoIterator<Item = S>,
        timeout: Duration,
    ) -> Result<Self, RegistryError> {
        let mut endpoints: Vec<String> = endpoints.into_iter().map(Into::into).collect();
        if endpoints.is_empty() {
            return Err(RegistryError::new("no etcd endpoint is given"));
        }
        let refuse = |why| RegistryError::new(format!("the time-out for etcd {why}"));
        Self::TIMEOUT_BOUNDS.check(timeout).map_err(refuse)?;
        for endpoint in &mut endpoints {
            if !endpoint.contains("://") {
                endpoint.insert_str(0, "http://");
            }
            check_endpoint(endpoint)?;
        }
        Ok(EtcdRegistry::with(Options { endpoints, timeout, user: None, insecure: false, tls: None }))
    }

    /// Logs in with name and password, and again when etcd no longer takes the token that it gave. The
    /// password is not sent to another machine without TLS.
    #[must_use]
    pub fn user(self, name: impl Into<String>, password: impl Into<String>) -> Self {
        let user = Some((name.into(), password.into()));
        EtcdRegistry::with(Options { user, ..self.shared.options.clone() })
    }

    /// Sends the password without TLS to other machines too, so that everybody on the way can read it.
    #[must_use]
    pub fn insecure(self) -> Self {
        EtcdRegistry::with(Options { insecure: true, ..self.shared.options.clone() })
    }

    /// The first endpoint on another machine without TLS, where everybody on the way can read what is said.
    pub fn open_endpoint(&self) -> Option<&str> {
        self.endpoints().iter().map(String::as_str).find(|endpoint| is_open(endpoint))
    }

    /// Speaks TLS, to endpoints that begin with `https://`: etcd's certificate must come from `ca`, and
    /// `cert` is shown where it is given. The files are read for each connection.
    #[must_use]
    pub fn tls(self, files: TlsFiles) -> Self {
        EtcdRegistry::with(Options { tls: Some(files), ..self.shared.options.clone() })
    }

    fn with(options: Options) -> Self {
        // Processes that start together should not all meet at the first endpoint.
        let endpoint = fastrand::usize(..options.endpoints.len());
        let current = Mutex::new(Current { endpoint, connection: None });
        let (connecting, page) = (tokio::sync::Mutex::new(0), AtomicUsize::new(FIRST_PAGE));
        EtcdRegistry { shared: Arc::new(Shared { options, current, connecting, page }) }
    }

    /// The endpoints, as they are called.
    pub fn endpoints(&self) -> &[String] {
        &self.shared.options.endpoints
    }

    /// Runs a transaction, and says whether what it compares was so.
    async fn transact(&self, what: &str, txn: Txn) -> Result<bool, RegistryError> {
        let done = self.call(what, |mut client| {
            let txn = txn.clone();
            async move { client.txn(txn).await }
        });
        done.await.map(|response| response.succeeded())
    }

    /// Runs one call on the current endpoint. Where that does not answer, the next call goes to the next
    /// endpoint; what it refuses another would refuse as well. A login that etcd no longer takes, because it
    /// has expired or roles were changed meanwhile, is done again once.
    async fn call<R, F>(&self, what: &str, call: impl Fn(Client) -> F) -> Result<R, RegistryError>
    where
        F: Future<Output = Result<R, etcd_client::Error>>,
    {
        let Options { endpoints, timeout: limit, .. } = &self.shared.options;
        let asked = AtomicUsize::new(self.shared.current.lock().endpoint);
        let attempt = async {
            let first = self.connected(None, &asked).await?;
            match call(first.client).await {
                Err(error) if is_an_old_login(&error) => {
                    let again = self.connected(Some(first.number), &asked).await?;
                    call(again.client).await.map_err(Trouble::Etcd)
                }
                done => done.map_err(Trouble::Etcd),
            }
        };
        let attempted = timeout(*limit, attempt).await;
        let at = asked.load(Ordering::Relaxed);
        let endpoint = &endpoints[at];
        let error = match attempted {
            Ok(Ok(result)) => return Ok(result),
            Ok(Err(Trouble::Etcd(error))) => {
                let told = RegistryError::new(format!("etcd at {endpoint}: {what}: {}", reason(&error)));
                if is_too_large(&error) {
                    return Err(told.too_large());
                }
                if is_a_refusal(&error) {
                    return Err(told);
                }
                told
            }
            Ok(Err(Trouble::Open)) => RegistryError::new(format!(
                "etcd at {endpoint}: the password would go there for everybody to read; use https://"
            )),
            Ok(Err(Trouble::NoAuthority)) => RegistryError::new(format!(
                "etcd at {endpoint}: no authority is named that its certificate must come from (`ca`, --etcd-ca)"
            )),
            Ok(Err(Trouble::Tls(error))) => {
                RegistryError::new(format!("etcd at {endpoint}: the certificate files for it"))
                    .with_source(error)
            }
            Err(_) => RegistryError::new(format!("etcd at {endpoint}: {what}: no answer within {limit:?}")),
        };
        self.leave(at);
        Err(error)
    }

    /// The connection to the current endpoint, which is written down as `asked`; a new one where there is
    /// none, or only the one of this number.
    async fn connected(&self, but: Option<usize>, asked: &AtomicUsize) -> Result<Connection, Trouble> {
        let present = || {
            let current = self.shared.current.lock();
            asked.store(current.endpoint, Ordering::Relaxed);
            let connection = current.connection.as_ref().filter(|it| Some(it.number) != but);
            connection.cloned().ok_or(current.endpoint)
        };
        if let Ok(connection) = present() {
            return Ok(connection);
        }
        let mut logins = self.shared.connecting.lock().await;
        let at = match present() {
            Ok(connection) => return Ok(connection),
            Err(at) => at,
        };
        *logins += 1;
        let connection = Connection { number: *logins, client: self.connect(at).await? };
        let mut current = self.shared.current.lock();
        if current.endpoint == at {
            current.connection = Some(connection.clone());
        }
        Ok(connection)
    }

    /// Connects to endpoint `at`, and logs in.
    async fn connect(&self, at: usize) -> Result<Client, Trouble> {
        let options = &self.shared.options;
        if options.user.is_some() && !options.insecure && is_open(&options.endpoints[at]) {
            return Err(Trouble::Open);
        }
        let mut connect = ConnectOptions::new()
            .with_connect_timeout(options.timeout)
            .with_keep_alive(WATCH_PROGRESS, options.timeout)
            .with_keep_alive_while_idle(true)
            // Else a watch on a member that has lost its peers stands still, although progress is answered.
            .with_require_leader(true);
        if let Some((name, password)) = &options.user {
            connect = connect.with_user(name, password).with_auto_token_refresh(true);
        }
        if options.tls.is_none() && options.endpoints[at].starts_with("https://") {
            return Err(Trouble::NoAuthority);
        }
        if let Some(files) = &options.tls {
            connect = secure::secure(connect, files).map_err(Trouble::Tls)?;
        }
        Client::connect([&options.endpoints[at]], Some(connect)).await.map_err(Trouble::Etcd)
    }

    /// Gives up the connection to endpoint `at`; the next call goes to the one after it.
    fn leave(&self, at: usize) {
        let mut current = self.shared.current.lock();
        if current.endpoint == at {
            *current = Current { endpoint: (at + 1) % self.shared.options.endpoints.len(), connection: None };
        }
    }
}

/// Why a call could not be made.
enum Trouble {
    Etcd(etcd_client::Error),
    /// The password may not be sent there.
    Open,
    /// Its certificate would be nobody's.
    NoAuthority,
    Tls(TlsError),
}

/// Whether etcd itself refuses what it was asked for, and every member would. An endpoint that does not
/// answer, has no leader, or too much to do is left.
fn is_a_refusal(error: &etcd_client::Error) -> bool {
    use tonic::Code;
    let etcd_client::Error::GRpcStatus(status) = error else { return false };
    let is_full = status.code() == Code::ResourceExhausted && status.message().contains("space exceeded");
    let refusals = [
        Code::AlreadyExists,
        Code::FailedPrecondition,
        Code::InvalidArgument,
        Code::NotFound,
        Code::OutOfRange,
        Code::PermissionDenied,
    ];
    is_full || refusals.contains(&status.code())
}

/// A token that has expired, or was given before users or roles were changed.
fn is_an_old_login(error: &etcd_client::Error) -> bool {
    let etcd_client::Error::GRpcStatus(status) = error else { return false };
    status.code() == tonic::Code::Unauthenticated
        || status.message().contains("revision of auth store is old")
        || status.message().contains("invalid auth token")
}

/// Whether etcd refused a request because of its length: what it says itself, and what its gRPC server says.
fn is_too_large(error: &etcd_client::Error) -> bool {
    let etcd_client::Error::GRpcStatus(status) = error else { return false };
    status.message().contains("request is too large") || status.message().contains("larger than max")
}

/// Whether an answer is longer than the message that this side takes.
fn is_too_long_to_read(error: &etcd_client::Error) -> bool {
    let etcd_client::Error::GRpcStatus(status) = error else { return false };
    status.message().contains("message length too large")
}

/// The options that read a range.
fn range_of(range: &KeyRange, limit: usize, revision: i64, keys_only: bool) -> GetOptions {
    let options =
        GetOptions::new().with_limit(i64::try_from(limit).unwrap_or(i64::MAX)).with_revision(revision);
    let options =
        if range.to().is_empty() { options.with_from_key() } else { options.with_range(range.to()) };
    if keys_only { options.with_keys_only() } else { options }
}

/// The innermost message: tonic and hyper wrap "connection refused" in several others, and
/// `etcd_client` tells no sources.
fn reason(error: &etcd_client::Error) -> String {
    let mut innermost: &dyn std::error::Error = match error {
        etcd_client::Error::GRpcStatus(status) => match status.source() {
            Some(source) => source,
            None => return format!("{} ({:?})", status.message(), status.code()),
        },
        etcd_client::Error::TransportError(transport) => transport,
        other => other,
    };
    while let Some(source) = innermost.source() {
        innermost = source;
    }
    innermost.to_string()
}

impl fmt::Debug for EtcdRegistry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EtcdRegistry")
            .field("endpoints", &self.shared.options.endpoints)
            .finish_non_exhaustive()
    }
}

#[async_trait]
impl Registry for EtcdRegistry {
    async fn page(&self, range: &KeyRange, options: PageOptions) -> Result<Page, RegistryError> {
        let wanted = if options.limit == 0 { MAX_PAGE } else { options.limit };
        let mut size = self.shared.page.load(Ordering::Relaxed);
        let (response, limit) = loop {
            let limit = wanted.min(size);
            // A single value that is too long is left out: of this page only.
            let keys_only = options.keys_only || size == 0;
            let get = range_of(range, limit.max(1), options.revision, keys_only);
            let read = self.call("read", |client| {
                let get = get.clone();
                async move {
                    let mut kv = client.kv_client().max_decoding_message_size(MAX_PAGE_BYTES);
                    match kv.get(range.from(), Some(get)).await {
                        Err(error) if is_too_long_to_read(&error) => Ok(None),
                        read => read.map(Some),
                    }
                }
            });
            match read.await? {
                Some(response) => break (response, size),
                None => {
                    size = limit / 2;
                    self.shared.page.store(size.max(1), Ordering::Relaxed);
                }
            }
        };
        let bytes: usize = response.kvs().iter().map(|kv| kv.value().len()).sum();
        if bytes < MAX_PAGE_BYTES / 8 {
            self.shared.page.store((limit.max(1) * 2).min(MAX_PAGE), Ordering::Relaxed);
        }
        let last = response.kvs().last().filter(|_| response.more());
        let next = last.map(|last| range.after(last.key()));
        // Nobody who keeps to the layout writes a key that is not text.
        let entries = response.kvs().iter().filter_map(|kv| {
            let key = std::str::from_utf8(kv.key()).ok()?.to_owned();
            Some(Entry { key, value: kv.value().to_vec(), revision: kv.mod_revision() })
        });
        let read_at = response.header().map_or(0, |header| header.revision());
        let revision = if options.revision > 0 { options.revision } else { read_at };
        Ok(Page { revision, entries: entries.collect(), next })
    }

    async fn count(&self, range: &KeyRange) -> Result<u64, RegistryError> {
        let get = range_of(range, 0, 0, true).with_count_only();
        let counted = self.call("count", |mut client| {
            let get = get.clone();
            async move { client.get(range.from(), Some(get)).await }
        });
        counted.await.map(|response| u64::try_from(response.count()).unwrap_or(0))
    }

    async fn watch(&self, ranges: &[KeyRange]) -> Result<Box<dyn Changes>, RegistryError> {
        let Some((first, others)) = ranges.split_first() else {
            return Err(RegistryError::new("nothing is to be watched"));
        };
        let watch = |range: &KeyRange| {
            let options = WatchOptions::new();
            if range.to().is_empty() { options.with_from_key() } else { options.with_range(range.to()) }
        };
        let stream = self.call("watch", |client| async move {
            let mut client = client.watch_client().max_decoding_message_size(MAX_CHANGES_BYTES);
            let mut stream = client.watch(first.from(), Some(watch(first))).await?;
            for other in others {
                stream.watch(other.from(), Some(watch(other))).await?;
            }
            EtcdChanges::begun(stream, ranges.len()).await
        });
        Ok(Box::new(stream.await?))
    }

    async fn put(&self, key: &str, value: Vec<u8>, lease: Option<LeaseId>) -> Result<(), RegistryError> {
        let written = self.call("write", |mut client| {
            let (value, options) = (value.clone(), lease.map(|lease| PutOptions::new().with_lease(lease.0)));
            async move { client.put(key, value, options).await }
        });
        written.await.map(drop)
    }

    async fn swap(&self, key: &str, expected: i64, value: Vec<u8>) -> Result<bool, RegistryError> {
        let stands = Compare::mod_revision(key, CompareOp::Equal, expected);
        let txn = Txn::new().when([stands]).and_then([TxnOp::put(key, value, None)]);
        self.transact("compare and swap", txn).await
    }

    async fn delete_if(&self, key: &str, expected: i64) -> Result<bool, RegistryError> {
        let stands = Compare::mod_revision(key, CompareOp::Equal, expected);
        let txn = Txn::new().when([stands]).and_then([TxnOp::delete(key, None)]);
        self.transact("compare and delete", txn).await
    }

    async fn delete_all_if(&self, stale: &[(String, i64)]) -> Result<(), RegistryError> {
        for some in stale.chunks(DELETED_AT_ONCE) {
            let each = some.iter().map(|(key, expected)| {
                let stands = Compare::mod_revision(key.as_str(), CompareOp::Equal, *expected);
                TxnOp::txn(Txn::new().when([stands]).and_then([TxnOp::delete(key.as_str(), None)]))
            });
            let txn = Txn::new().and_then(each.collect::<Vec<_>>());
            self.transact("compare and delete", txn).await?;
        }
        Ok(())
    }

    async fn delete(&self, key: &str) -> Result<(), RegistryError> {
        self.call("delete", |mut client| async move { client.delete(key, None).await }).await.map(drop)
    }

    async fn grant(&self, ttl: Duration) -> Result<LeaseId, RegistryError> {
        let seconds = i64::try_from(ttl.as_millis().div_ceil(1000)).unwrap_or(i64::MAX);
        self.call("grant a lease", |mut client| async move { client.lease_grant(seconds, None).await })
            .await
            .map(|lease| LeaseId(lease.id()))
    }

    async fn renew(&self, lease: LeaseId) -> Result<bool, RegistryError> {
        let renewal = self.call("renew the lease", |mut client| async move {
            // It returns with the first reply; one with nothing left to live is this error.
            match client.lease_keep_alive(lease.0).await {
                Ok(_replied) => Ok(true),
                Err(etcd_client::Error::LeaseKeepAliveError(_)) => Ok(false),
                Err(error) => Err(error),
            }
        });
        renewal.await
    }

    async fn revoke(&self, lease: LeaseId) -> Result<(), RegistryError> {
        let revoked = self.call("revoke the lease", |mut client| async move {
            match client.lease_revoke(lease.0).await {
                Err(etcd_client::Error::GRpcStatus(status)) if status.code() == tonic::Code::NotFound => {
                    Ok(())
                }
                other => other.map(drop),
            }
        });
        revoked.await
    }
}

#[cfg(test)]
mod tests;
