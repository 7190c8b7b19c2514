//! Rights: who may do what to which groups and keys.
//!
//! A caller is known by a secret that it shows or by the names in its certificate. Both belong to a
//! [`Token`], and tokens can change while the node runs: [`Tokens`] counts its changes, so that a lane can
//! tell with one load whether what it knows of its caller still holds. A node without any token lets everyone
//! do everything.

mod audit_log;
#[cfg(feature = "files")]
pub mod file;
mod scope;
mod tokens;

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use peanut_proto::audit::TARGET;
use peanut_proto::v1::ErrorCode;
use tonic::codegen::http::HeaderMap;
use tonic::codegen::http::header::AUTHORIZATION;

use crate::connections::Peer;
use crate::failure::Failure;
use audit_log::AuditLog;
pub use scope::Keys;
use scope::Scope;
pub use tokens::{Misconfigured, Token, Tokens};

/// What a caller wants to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Get a key.
    Read,
    /// Set a key, or fill it.
    Set,
    /// Delete a key.
    Delete,
    /// Clear a group.
    Clear,
    /// Look into the node.
    Admin,
}

impl Action {
    /// As logs have it.
    pub fn name(self) -> &'static str {
        match self {
            Action::Read => "read",
            Action::Set => "set",
            Action::Delete => "delete",
            Action::Clear => "clear",
            Action::Admin => "admin",
        }
    }
}

/// What a caller may do.
#[derive(Clone, Debug)]
pub struct Rights {
    /// Of the token, for logs.
    name: Arc<str>,
    read: Scope,
    set: Scope,
    delete: Scope,
    clear: Scope,
    admin: bool,
    audit_log: Arc<AuditLog>,
}

/// What a caller may do in one group: looked up once, asked for each key.
#[derive(Clone, Debug)]
pub struct GroupRights {
    rights: Arc<Rights>,
    group: Arc<str>,
    read: Keys,
    set: Keys,
    delete: Keys,
    clear: Keys,
}

impl Rights {
    fn all() -> Self {
        let everything = Scope::everything();
        Rights {
            name: "".into(),
            read: everything.clone(),
            set: everything.clone(),
            delete: everything.clone(),
            clear: everything,
            admin: true,
            audit_log: Arc::default(),
        }
    }

    /// Adds what others may do.
    fn extend(&mut self, other: &Rights) {
        self.name = format!("{}, {}", self.name, other.name).into();
        self.read.extend(&other.read);
        self.set.extend(&other.set);
        self.delete.extend(&other.delete);
        self.clear.extend(&other.clear);
        self.admin |= other.admin;
    }

    /// The name of the caller's token; empty where the node has no tokens.
    pub fn token(&self) -> &Arc<str> {
        &self.name
    }

    fn scope(&self, action: Action) -> Option<&Scope> {
        match action {
            Action::Read => Some(&self.read),
            Action::Set => Some(&self.set),
            Action::Delete => Some(&self.delete),
            Action::Clear => Some(&self.clear),
            Action::Admin => None,
        }
    }

    /// Checks one action, on a key of a group, or on all of the group where there is no key. A refusal is
    /// logged.
    ///
    /// # Errors
    /// [`ErrorCode::PermissionDenied`] where the caller has no right to it.
    pub fn check(&self, action: Action, group: &str, key: Option<&[u8]>) -> Result<(), Failure> {
        if self.may(action, group, key) { Ok(()) } else { Err(self.refuse(action, group)) }
    }

    /// As [`check`](Self::check), where a caller without the right is told less, and not refused.
    pub fn may(&self, action: Action, group: &str, key: Option<&[u8]>) -> bool {
        match self.scope(action) {
            None => self.admin,
            Some(scope) => key.map_or_else(|| scope.has_all(group), |key| scope.has(group, key)),
        }
    }

    /// Checks the right to look into the node.
    ///
    /// # Errors
    /// As [`check`](Self::check).
    pub fn check_admin(&self) -> Result<(), Failure> {
        self.check(Action::Admin, "", None)
    }

    /// What the caller may do in this group.
    pub fn of_group(self: &Arc<Self>, group: &str) -> GroupRights {
        GroupRights {
            rights: self.clone(),
            group: group.into(),
            read: self.read.keys(group),
            set: self.set.keys(group),
            delete: self.delete.keys(group),
            clear: self.clear.keys(group),
        }
    }

    fn refuse(&self, action: Action, group: &str) -> Failure {
        self.audit_log.refused(&self.name, action.name(), group, None);
        let why = if action == Action::Admin {
            "the token has no right to look into the node".to_owned()
        } else {
            let what = action.name();
            format!("the token has no right to {what} in group `{group}`")
        };
        Failure::new(ErrorCode::PermissionDenied, why)
    }
}

impl GroupRights {
    /// Whether the caller may be given a lease to fill this key; `Err`: why not. That is no refusal, since
    /// the node then loads by itself.
    ///
    /// # Errors
    /// Where it may not set the key.
    pub fn may_fill(&self, key: &[u8]) -> Result<(), Failure> {
        let why = || Failure::new(ErrorCode::PermissionDenied, "the token has no right to set this key");
        self.set.have(key).then_some(()).ok_or_else(why)
    }

    /// Checks whether the caller may give back a lease to fill some key of the group.
    ///
    /// # Errors
    /// As [`Rights::check`].
    pub fn check_release(&self) -> Result<(), Failure> {
        if self.set == Keys::None { Err(self.rights.refuse(Action::Set, &self.group)) } else { Ok(()) }
    }

    /// Checks one action on one key; a clear is of the whole group.
    ///
    /// # Errors
    /// As [`Rights::check`].
    pub fn check(&self, action: Action, key: &[u8]) -> Result<(), Failure> {
        let may = match action {
            Action::Read => self.read.have(key),
            Action::Set => self.set.have(key),
            Action::Delete => self.delete.have(key),
            Action::Clear => self.clear == Keys::All,
            Action::Admin => false,
        };
        if may { Ok(()) } else { Err(self.rights.refuse(action, &self.group)) }
    }
}

/// The token in an `authorization` header.
fn bearer(value: &str) -> Option<&str> {
    of_scheme(value, "Bearer")
}

/// What is shown under a scheme, whose name is in any letters (RFC 9110, 11.1).
fn of_scheme<'a>(value: &'a str, scheme: &str) -> Option<&'a str> {
    let (named, shown) = value.split_once(' ')?;
    named.eq_ignore_ascii_case(scheme).then(|| shown.trim_start_matches(' '))
}

/// The secret that a caller over HTTP shows: as `Bearer`, or as the password of any user.
pub fn shown(headers: &HeaderMap) -> Option<String> {
    let value = headers.get(AUTHORIZATION)?.to_str().ok()?;
    if let Some(token) = bearer(value) {
        return Some(token.to_owned());
    }
    let decoded = String::from_utf8(STANDARD.decode(of_scheme(value, "Basic")?).ok()?).ok()?;
    decoded.split_once(':').map(|(_, password)| password.to_owned())
}

/// A caller that was let in: what it showed, and what that gave it when it was last looked at.
#[derive(Clone)]
pub struct Caller {
    shown: Option<Arc<str>>,
    peer: Option<Peer>,
    generation: u64,
    rights: Arc<Rights>,
}

impl Caller {
    /// Admits a caller that shows this secret, or has a certificate with a name that is known.
    ///
    /// # Errors
    /// [`ErrorCode::Unauthenticated`] where neither is good.
    pub fn admit(tokens: &Tokens, shown: Option<&str>, peer: Option<Peer>) -> Result<Self, Failure> {
        // Before the rights: a change meanwhile is seen the next time.
        let generation = tokens.generation();
        let rights = tokens.rights_of(shown, peer.as_ref())?;
        Ok(Caller { shown: shown.map(Into::into), peer, generation, rights })
    }

    /// The address that it calls from, where it came by a connection.
    pub fn ip(&self) -> Option<IpAddr> {
        self.peer.as_ref().map(Peer::ip)
    }

    /// What it may do, as of when it was last looked at.
    pub fn rights(&self) -> &Arc<Rights> {
        &self.rights
    }

    /// Writes a line into the audit log: it has done this to a group, or to a key of it, or has not for an
    /// error.
    pub fn acted(&self, action: Action, group: &str, key: Option<&[u8]>, error: Option<&impl fmt::Display>) {
        let key = key.map(|key| key.escape_ascii().to_string());
        let peer = self.peer.as_ref().map(|peer| tracing::field::display(peer.ip()));
        let (token, action) = (&*self.rights.name, action.name());
        let error = error.map(tracing::field::display);
        tracing::info!(target: TARGET, token, peer, action, group, key, error, "an operator has acted");
    }

    /// Whether it is an operator: somebody with a token who may look into the node.
    pub fn is_operator(&self) -> bool {
        self.rights.admin && !self.rights.name.is_empty()
    }

    /// Writes a line into the audit log where an operator has written a key, or all of a group: the first,
    /// and then one in ten seconds.
    pub fn wrote(&self, action: Action, group: &str, key: Option<&[u8]>) {
        if self.is_operator() {
            let Rights { name, audit_log, .. } = &*self.rights;
            audit_log.wrote(name, action.name(), group, key, self.ip());
        }
    }

    /// Looks again where the tokens have changed since, and says whether they have.
    ///
    /// # Errors
    /// As [`admit`](Self::admit): what let it in is not good any more.
    pub fn look_again(&mut self, tokens: &Tokens) -> Result<bool, Failure> {
        if self.generation == tokens.generation() {
            return Ok(false);
        }
        *self = Caller::admit(tokens, self.shown.as_deref(), self.peer.take())?;
        Ok(true)
    }
}

/// Without the secret.
impl fmt::Debug for Caller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Caller")
            .field("peer", &self.peer)
            .field("rights", &self.rights)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
