//! The tokens of a node, which can be replaced while it runs.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::RwLock;
use peanut_proto::clock::wall_clock_ms;
use peanut_proto::v1::ErrorCode;
use subtle::ConstantTimeEq as _;
use tonic::metadata::MetadataMap;

use super::audit_log::AuditLog;
use super::scope::Scope;
use super::{Caller, Rights};
use crate::connections::Peer;
use crate::failure::Failure;

/// Shorter secrets can be guessed.
const SHORTEST_SECRET: usize = 16;

/// What makes a caller known to a node, and what it then may do.
///
/// A caller shows one of the token's secrets as `authorization: Bearer …`, or comes with a client certificate
/// that has one of the token's names.
///
/// Groups are named as in `scores`, keys of a group as in `scores:user/*` (those that begin with `user/`) or
/// `scores:Tom`, and `*` stands for every group.
///
/// ```
/// use peanut_edge::Token;
///
/// let scores = Token::new("application").secret("0c48bb1f7fd34cf6").read(["scores"]).write(["scores"]);
/// let importer = Token::new("importer").certificate("importer.example").set(["scores:user/*"]);
/// let operators = Token::new("operators").secret("a6c1a9d2f6b84c3e").read(["*"]).admin();
/// # drop((scores, importer, operators));
/// ```
#[derive(Clone, PartialEq, Eq)]
pub struct Token {
    name: String,
    secrets: Vec<String>,
    certificates: Vec<String>,
    read: Vec<String>,
    write: Vec<String>,
    set: Vec<String>,
    delete: Vec<String>,
    clear: Vec<String>,
    admin: bool,
}

impl Token {
    /// A token of that name, which is for logs; without secrets or rights yet.
    pub fn new(name: impl Into<String>) -> Self {
        Token {
            name: name.into(),
            secrets: Vec::new(),
            certificates: Vec::new(),
            read: Vec::new(),
            write: Vec::new(),
            set: Vec::new(),
            delete: Vec::new(),
            clear: Vec::new(),
            admin: false,
        }
    }

    /// Adds a secret of at least 16 bytes. While one is being replaced there are two.
    #[must_use]
    pub fn secret(mut self, secret: impl Into<String>) -> Self {
        self.secrets.push(secret.into());
        self
    }

    /// Adds a name of client certificates: a DNS name, IP address, URI or e-mail address in their subject
    /// alternative names. The server needs a `ca` for that, since only then it asks for certificates. A
    /// secret that is shown as well goes before it.
    #[must_use]
    pub fn certificate(mut self, name: impl Into<String>) -> Self {
        self.certificates.push(name.into());
        self
    }

    /// Gives the right to read these groups or keys.
    #[must_use]
    pub fn read<S: Into<String>>(mut self, what: impl IntoIterator<Item = S>) -> Self {
        self.read.extend(what.into_iter().map(Into::into));
        self
    }

    /// Gives the rights to set and delete these groups or keys, and to clear the groups that are named
    /// without keys.
    #[must_use]
    pub fn write<S: Into<String>>(mut self, what: impl IntoIterator<Item = S>) -> Self {
        self.write.extend(what.into_iter().map(Into::into));
        self
    }

    /// Gives the right to set these groups or keys, and to fill them by `get_or_load` or hand-over.
    #[must_use]
    pub fn set<S: Into<String>>(mut self, what: impl IntoIterator<Item = S>) -> Self {
        self.set.extend(what.into_iter().map(Into::into));
        self
    }

    /// Gives the right to delete these groups or keys, one by one.
    #[must_use]
    pub fn delete<S: Into<String>>(mut self, what: impl IntoIterator<Item = S>) -> Self {
        self.delete.extend(what.into_iter().map(Into::into));
        self
    }

    /// Gives the right to clear these groups. Keys cannot be named here.
    #[must_use]
    pub fn clear<S: Into<String>>(mut self, groups: impl IntoIterator<Item = S>) -> Self {
        self.clear.extend(groups.into_iter().map(Into::into));
        self
    }

    /// Gives the right to look into the node: its state, metrics, and hot keys.
    #[must_use]
    pub fn admin(mut self) -> Self {
        self.admin = true;
        self
    }

    fn rights(&self, audit_log: &Arc<AuditLog>) -> Result<Rights, String> {
        let mut rights = Rights {
            name: self.name.as_str().into(),
            read: Scope::default(),
            set: Scope::default(),
            delete: Scope::default(),
            clear: Scope::default(),
            admin: self.admin,
            audit_log: audit_log.clone(),
        };
        for (what, entries, scope) in [
            ("read", &self.read, &mut rights.read),
            ("set", &self.set, &mut rights.set),
            ("delete", &self.delete, &mut rights.delete),
            ("clear", &self.clear, &mut rights.clear),
        ] {
            for entry in entries {
                if what == "clear" && entry.contains(':') {
                    return Err(format!("clear: `{entry}` names keys, and a clear is of a whole group"));
                }
                scope.add(entry).map_err(|why| format!("{what}: {why}"))?;
            }
        }
        for entry in &self.write {
            let refuse = |why| format!("write: {why}");
            rights.set.add(entry).map_err(refuse)?;
            rights.delete.add(entry).map_err(refuse)?;
            if !entry.contains(':') {
                rights.clear.add(entry).map_err(refuse)?;
            }
        }
        Ok(rights)
    }
}

/// Without the secrets.
impl std::fmt::Debug for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Token")
            .field("name", &self.name)
            .field("certificates", &self.certificates)
            .field("read", &self.read)
            .field("write", &self.write)
            .field("set", &self.set)
            .field("delete", &self.delete)
            .field("clear", &self.clear)
            .field("admin", &self.admin)
            .finish_non_exhaustive()
    }
}

/// Why tokens cannot be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Misconfigured {
    /// The setting that it is about, where it is one of its own.
    pub setting: Option<&'static str>,
    /// What is wrong.
    pub message: String,
}

impl Misconfigured {
    fn new(message: impl Into<String>) -> Self {
        Misconfigured { setting: None, message: message.into() }
    }
}

impl std::fmt::Display for Misconfigured {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if let Some(setting) = self.setting {
            write!(f, "{setting}: ")?;
        }
        f.write_str(&self.message)
    }
}

impl std::error::Error for Misconfigured {}

/// The tokens in force, and how often they have changed.
#[derive(Debug, Default)]
pub struct Tokens {
    generation: AtomicU64,
    table: RwLock<Arc<Table>>,
    asks_for_certificates: bool,
    audit_log: Arc<AuditLog>,
}

/// Tokens with what each of them gives.
#[derive(Debug, Default)]
struct Table(Vec<(Token, Arc<Rights>)>);

impl Table {
    fn new(
        tokens: &[Token],
        asks_for_certificates: bool,
        audit_log: &Arc<AuditLog>,
    ) -> Result<Self, Misconfigured> {
        let mut secrets = BTreeSet::new();
        let mut names = BTreeSet::new();
        let mut certificates = BTreeSet::new();
        let mut table = Vec::new();
        for token in tokens {
            let refuse = |why: &str| Err(Misconfigured::new(format!("token `{}`: {why}", token.name)));
            if token.name.is_empty() || token.name.chars().any(char::is_control) {
                return refuse("it needs a name, without control characters, for logs");
            }
            if !names.insert(&token.name) {
                return refuse("there are two of that name; rename or remove one");
            }
            if token.secrets.is_empty() && token.certificates.is_empty() {
                return refuse("it has no secret, and no name of a certificate");
            }
            if !asks_for_certificates && !token.certificates.is_empty() {
                let why = "a token by certificate needs authorities for those of clients (`tls.ca`, --serve-ca): without, no client shows one";
                return Err(Misconfigured { setting: Some("token"), ..Misconfigured::new(why) });
            }
            if token.secrets.iter().any(|secret| secret.len() < SHORTEST_SECRET) {
                return refuse("a secret has fewer than 16 bytes");
            }
            if token.secrets.iter().any(|secret| secret.contains(|c: char| !c.is_ascii_graphic())) {
                return refuse("a secret has spaces or characters beyond ASCII");
            }
            if !token.secrets.iter().all(|secret| secrets.insert(secret)) {
                return refuse("one of its secrets is there twice");
            }
            let is_name = |name: &String| {
                !name.is_empty() && !name.contains('*') && name.chars().all(|c| c.is_ascii_graphic())
            };
            if let Some(name) = token.certificates.iter().find(|name| !is_name(name)) {
                return refuse(&format!("`{name}` is not a whole name that a client's certificate can have"));
            }
            if !token.certificates.iter().all(|name| certificates.insert(name.to_ascii_lowercase())) {
                return refuse("one of its certificates' names is there twice");
            }
            match token.rights(audit_log) {
                Ok(rights) => table.push((token.clone(), Arc::new(rights))),
                Err(why) => return refuse(&why),
            }
        }
        Ok(Table(table))
    }

    /// All are compared, so that the time tells nothing.
    fn of_secret(&self, shown: &str) -> Option<Arc<Rights>> {
        let mut found = None;
        for (token, rights) in &self.0 {
            for secret in &token.secrets {
                if bool::from(secret.as_bytes().ct_eq(shown.as_bytes())) {
                    found = Some(rights);
                }
            }
        }
        found.cloned()
    }

    /// What all tokens together give that have one of these names.
    fn of_names(&self, names: &[String]) -> Option<Arc<Rights>> {
        let has = |token: &Token| {
            token.certificates.iter().any(|known| names.iter().any(|name| name.eq_ignore_ascii_case(known)))
        };
        let mut found = self.0.iter().filter(|(token, _)| has(token)).map(|(_, rights)| rights);
        let first = found.next()?;
        let others: Vec<_> = found.collect();
        if others.is_empty() {
            return Some(first.clone());
        }
        let mut sum = Rights::clone(first);
        others.into_iter().for_each(|other| sum.extend(other));
        Some(Arc::new(sum))
    }
}

impl Tokens {
    /// Tokens of a server that does or does not ask its callers for certificates.
    ///
    /// # Errors
    /// Where one of them cannot be used.
    pub fn new(tokens: &[Token], asks_for_certificates: bool) -> Result<Self, Misconfigured> {
        let audit_log = Arc::default();
        let table = Table::new(tokens, asks_for_certificates, &audit_log)?;
        let table = RwLock::new(Arc::new(table));
        Ok(Tokens { generation: AtomicU64::new(0), table, asks_for_certificates, audit_log })
    }

    /// Whether there are none, so that everyone is let in.
    pub fn are_none(&self) -> bool {
        self.table.read().0.is_empty()
    }

    /// Grows with each change.
    pub fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    /// Puts others in the place of these, and says whether they differ.
    ///
    /// # Errors
    /// Where they cannot be used, or are none where there are some: a node does not open itself to everyone
    /// while it runs.
    pub fn replace(&self, tokens: &[Token]) -> Result<bool, Misconfigured> {
        let new = Table::new(tokens, self.asks_for_certificates, &self.audit_log)?;
        let mut table = self.table.write();
        if new.0.is_empty() && !table.0.is_empty() {
            let why = "the last token cannot be taken away while the node runs: everyone would be let in; restart it for that";
            return Err(Misconfigured::new(why));
        }
        if table.0.iter().map(|(token, _)| token).eq(tokens) {
            return Ok(false);
        }
        *table = Arc::new(new);
        self.generation.fetch_add(1, Ordering::Release);
        Ok(true)
    }

    /// Lets a call in by its metadata.
    ///
    /// # Errors
    /// As [`Caller::admit`].
    pub fn admit(&self, metadata: &MetadataMap, peer: Option<Peer>) -> Result<Caller, Failure> {
        let header = metadata.get("authorization").map(|value| value.to_str().unwrap_or_default());
        Caller::admit(self, header.and_then(super::bearer), peer)
    }

    /// What a caller that shows this secret, or comes from there, may do.
    pub(super) fn rights_of(&self, shown: Option<&str>, peer: Option<&Peer>) -> Result<Arc<Rights>, Failure> {
        let table = self.table.read().clone();
        if table.0.is_empty() {
            return Ok(Arc::new(Rights::all()));
        }
        let refuse = |why: &str| {
            self.audit_log.refused("", why, "", peer.map(|peer| peer.addr.ip()));
            Err(Failure::new(ErrorCode::Unauthenticated, why))
        };
        let Some(shown) = shown else {
            let Some(certificate) = peer.and_then(Peer::certificate) else {
                return refuse("this node wants a token: metadata `authorization: Bearer …`");
            };
            if certificate.not_after_ms < wall_clock_ms() {
                return refuse("the certificate has expired");
            }
            return match table.of_names(&certificate.names) {
                Some(rights) => Ok(rights),
                None => refuse("this node wants a token, or a certificate with a name that it knows"),
            };
        };
        if peer.is_some_and(|peer| !peer.is_private && !peer.addr.ip().is_loopback()) {
            return refuse("a token came over a connection that others can read; replace it, and use TLS");
        }
        match table.of_secret(shown) {
            Some(rights) => Ok(rights),
            None => refuse("the token is not known here"),
        }
    }
}
