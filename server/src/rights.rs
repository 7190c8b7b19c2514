//! Tokens: who may do what to which groups.
//!
//! A token is a secret that a caller shows. Each may have several secrets at a time, so that one can be replaced without a
//! moment at which nobody's is good. Without any token in its configuration a node lets everyone do everything.

use std::collections::BTreeSet;
use std::sync::Arc;

use peanut_proto::v1::ErrorCode;
use subtle::ConstantTimeEq as _;
use tonic::metadata::MetadataMap;

use crate::connections::Peer;
use crate::error::{Error, Failure};

/// Shorter secrets can be guessed.
const SHORTEST_SECRET: usize = 16;

/// A secret that callers show as `authorization: Bearer …`, and what it gives them the right to.
///
/// ```
/// use peanut_server::Token;
///
/// let scores = Token::new("application").secret("0c48bb1f7fd34cf6").read(["scores"]).write(["scores"]);
/// let operators = Token::new("operators").secret("a6c1a9d2f6b84c3e").read(["*"]).admin();
/// # drop((scores, operators));
/// ```
#[derive(Clone)]
pub struct Token {
    name: String,
    secrets: Vec<String>,
    rights: Rights,
}

/// What a caller may do.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Rights {
    read: Groups,
    write: Groups,
    admin: bool,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Groups {
    all: bool,
    named: BTreeSet<String>,
}

impl Groups {
    fn add<S: Into<String>>(&mut self, names: impl IntoIterator<Item = S>) {
        for name in names.into_iter().map(Into::into) {
            if name == "*" {
                self.all = true;
            } else {
                self.named.insert(name);
            }
        }
    }

    fn have(&self, group: &str) -> bool {
        self.all || self.named.contains(group)
    }
}

impl Token {
    /// A token of that name, which is for logs; without secrets or rights yet.
    pub fn new(name: impl Into<String>) -> Self {
        Token { name: name.into(), secrets: Vec::new(), rights: Rights::default() }
    }

    /// Adds a secret of at least 16 bytes. While one is being replaced there are two.
    #[must_use]
    pub fn secret(mut self, secret: impl Into<String>) -> Self {
        self.secrets.push(secret.into());
        self
    }

    /// Gives the right to read these groups; `*` is all of them.
    #[must_use]
    pub fn read<S: Into<String>>(mut self, groups: impl IntoIterator<Item = S>) -> Self {
        self.rights.read.add(groups);
        self
    }

    /// Gives the right to set, delete and clear in these groups, and to fill them; `*` is all of them.
    #[must_use]
    pub fn write<S: Into<String>>(mut self, groups: impl IntoIterator<Item = S>) -> Self {
        self.rights.write.add(groups);
        self
    }

    /// Gives the right to look into the node: its state, metrics, and hot keys.
    #[must_use]
    pub fn admin(mut self) -> Self {
        self.rights.admin = true;
        self
    }
}

/// Without the secrets.
impl std::fmt::Debug for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Token")
            .field("name", &self.name)
            .field("rights", &self.rights)
            .finish_non_exhaustive()
    }
}

impl Rights {
    fn all() -> Self {
        let all = Groups { all: true, named: BTreeSet::new() };
        Rights { read: all.clone(), write: all, admin: true }
    }

    /// Whether it may write anywhere: only such callers are believed what they say of the ring beyond what the node knows.
    pub(crate) fn writes(&self) -> bool {
        self.write.all || !self.write.named.is_empty()
    }

    pub(crate) fn check_read(&self, group: &str) -> Result<(), Failure> {
        if self.read.have(group) { Ok(()) } else { Err(denied("read", group)) }
    }

    pub(crate) fn check_write(&self, group: &str) -> Result<(), Failure> {
        if self.write.have(group) { Ok(()) } else { Err(denied("write to", group)) }
    }

    pub(crate) fn check_admin(&self) -> Result<(), Failure> {
        let why = "the token has no right to look into the node";
        if self.admin { Ok(()) } else { Err(Failure::new(ErrorCode::PermissionDenied, why)) }
    }
}

fn denied(what: &str, group: &str) -> Failure {
    let why = format!("the token has no right to {what} group `{group}`");
    Failure::new(ErrorCode::PermissionDenied, why)
}

/// The tokens of a node.
#[derive(Clone, Debug, Default)]
pub(crate) struct Tokens(Vec<(Token, Arc<Rights>)>);

impl Tokens {
    pub(crate) fn new(tokens: &[Token]) -> Result<Self, Error> {
        let mut secrets = BTreeSet::new();
        for Token { name, secrets: own, .. } in tokens {
            let refuse = |why: &str| Err(Error::configuration(format!("token `{name}`: {why}")));
            if own.is_empty() {
                return refuse("it has no secret");
            }
            if own.iter().any(|secret| secret.len() < SHORTEST_SECRET) {
                return refuse("a secret has fewer than 16 bytes");
            }
            if own.iter().any(|secret| secret.contains(|c: char| !c.is_ascii_graphic())) {
                return refuse("a secret has spaces or characters beyond ASCII");
            }
            if !own.iter().all(|secret| secrets.insert(secret)) {
                return refuse("one of its secrets is there twice");
            }
        }
        let rights = |token: &Token| (token.clone(), Arc::new(token.rights.clone()));
        Ok(Tokens(tokens.iter().map(rights).collect()))
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// What a call may do, by its metadata.
    pub(crate) fn rights(&self, metadata: &MetadataMap, peer: Option<Peer>) -> Result<Arc<Rights>, Failure> {
        let header = metadata.get("authorization").map(|value| value.to_str().unwrap_or_default());
        self.rights_of(header.and_then(|value| value.strip_prefix("Bearer ")), peer)
    }

    /// What whoever shows this secret may do.
    pub(crate) fn rights_of(&self, shown: Option<&str>, peer: Option<Peer>) -> Result<Arc<Rights>, Failure> {
        let refuse = |why| Err(Failure::new(ErrorCode::Unauthenticated, why));
        if self.is_empty() {
            return Ok(Arc::new(Rights::all()));
        }
        let Some(shown) = shown else {
            return refuse("this node wants a token: metadata `authorization: Bearer …`");
        };
        if peer.is_some_and(|peer| !peer.is_private && !peer.addr.ip().is_loopback()) {
            return refuse("a token came over a connection that others can read; replace it, and use TLS");
        }
        // All are compared, so that the time tells nothing.
        let mut found = None;
        for (token, rights) in &self.0 {
            for secret in &token.secrets {
                if bool::from(secret.as_bytes().ct_eq(shown.as_bytes())) {
                    found = Some(rights);
                }
            }
        }
        match found {
            Some(rights) => Ok(rights.clone()),
            None => refuse("the token is not known here"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tokens() -> Tokens {
        let app = Token::new("app").secret("0123456789abcdef").secret("fedcba9876543210");
        let reader = Token::new("reader").secret("rrrrrrrrrrrrrrrr").read(["*"]).admin();
        Tokens::new(&[app.read(["a", "b"]).write(["a"]), reader]).unwrap()
    }

    #[test]
    fn a_token_gives_its_rights_and_no_others() {
        let tokens = tokens();
        for secret in ["0123456789abcdef", "fedcba9876543210"] {
            let app = tokens.rights_of(Some(secret), None).unwrap();
            assert!(
                app.check_read("a").is_ok() && app.check_read("b").is_ok() && app.check_read("c").is_err()
            );
            assert!(app.check_write("a").is_ok() && app.check_write("b").is_err());
            assert!(app.check_admin().is_err());
        }
        let reader = tokens.rights_of(Some("rrrrrrrrrrrrrrrr"), None).unwrap();
        assert!(reader.check_read("any").is_ok() && reader.check_write("any").is_err());
        assert!(reader.check_admin().is_ok());
    }

    #[test]
    fn whoever_has_none_or_shows_it_to_everybody_is_refused() {
        let tokens = tokens();
        let code = |shown, peer| tokens.rights_of(shown, peer).unwrap_err().code;
        let account = crate::budget::Budgets::new().account();
        let peer = |addr: &str, is_private| {
            Some(Peer { addr: addr.parse().unwrap(), is_private, account: account.clone() })
        };
        assert_eq!(code(None, None), ErrorCode::Unauthenticated);
        assert_eq!(code(Some("0123456789abcdeF"), None), ErrorCode::Unauthenticated);
        assert_eq!(code(Some(""), None), ErrorCode::Unauthenticated);
        assert_eq!(code(Some("0123456789abcdef"), peer("10.0.0.9:1", false)), ErrorCode::Unauthenticated);
        assert!(tokens.rights_of(Some("0123456789abcdef"), peer("10.0.0.9:1", true)).is_ok());
        assert!(tokens.rights_of(Some("0123456789abcdef"), peer("127.0.0.1:1", false)).is_ok());
        assert!(Tokens::default().rights_of(None, None).unwrap().check_write("x").is_ok());
    }

    #[test]
    fn secrets_that_are_none_are_refused_and_none_is_shown() {
        for (bad, why) in [
            (Token::new("t"), "no secret"),
            (Token::new("t").secret("short"), "16 bytes"),
            (Token::new("t").secret("with spaces in the midst"), "spaces"),
            (Token::new("t").secret("0123456789abcdef").secret("0123456789abcdef"), "twice"),
        ] {
            let error = Tokens::new(&[bad]).unwrap_err().to_string();
            assert!(error.contains(why) && !error.contains("0123456789abcdef"), "{error}");
        }
        assert!(!format!("{:?}", tokens()).contains("0123456789abcdef"));
    }
}
