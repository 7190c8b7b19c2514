//! What all ports of a proxy share: the groups of its fleet, and who may use them.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::middleware::Next;
use axum::response::Response;
use peanut_edge::Failure;
use peanut_edge::budget::Account;
use peanut_edge::connections::{ConnectionLimiter, Peer};
use peanut_edge::rights::{Caller, Tokens};

use crate::counters::{Counters, Protocol};
use crate::groups::Groups;

/// Of one proxy.
#[derive(Debug)]
pub(crate) struct Core {
    pub(crate) groups: Groups,
    pub(crate) tokens: Tokens,
    pub(crate) counters: Counters,
    /// Of each port.
    pub(crate) limiters: Vec<(Protocol, Arc<ConnectionLimiter>)>,
}

impl Core {
    pub(crate) fn new(
        groups: Groups,
        tokens: Tokens,
        limiters: Vec<(Protocol, Arc<ConnectionLimiter>)>,
    ) -> Self {
        Core { groups, tokens, counters: Counters::default(), limiters }
    }

    /// Lets in a caller that shows this secret, or comes with a certificate that is known.
    ///
    /// # Errors
    /// Where it is not known.
    pub(crate) fn admit(&self, shown: Option<&str>, peer: &Peer) -> Result<Caller, Failure> {
        let caller = Caller::admit(&self.tokens, shown, Some(peer.clone()))?;
        peer.presence().admitted();
        Ok(caller)
    }
}

/// What a caller may hold on this connection.
pub(crate) fn account(caller: &Caller, peer: &Peer) -> Arc<Account> {
    peer.accounts.of(caller.rights().token())
}

/// Counts a request over HTTP.
pub(crate) async fn count(
    State((core, of)): State<(Arc<Core>, Protocol)>,
    request: Request,
    next: Next,
) -> Response {
    let response = next.run(request).await;
    let status = response.status();
    // That there is no such key is no error.
    let is_error = status.as_u16() >= 400 && status != StatusCode::NOT_FOUND;
    core.counters.answered(of, 1, usize::from(is_error));
    response
}
