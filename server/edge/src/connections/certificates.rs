//! Certificates of connections that stand: verified again when the time comes, or the files of authorities
//! and revocations change.

use std::sync::Arc;

use peanut_proto::clock::wall_clock_ms;
use peanut_proto::tls::{Chain, Reloading, ServerTls};
use tokio::time::Instant;

/// The certificate that a peer has shown.
#[derive(Clone, Debug)]
pub struct PeerCertificate {
    /// As [`Certificate::names`](peanut_proto::certificate::Certificate::names).
    pub names: Vec<String>,
    /// When it expires, in milliseconds since 1970.
    pub not_after_ms: u64,
    /// It, and those between it and its authority.
    pub(super) chain: Chain,
}

/// What connections were verified with last.
#[derive(Debug, Default)]
pub(super) struct Verified(Option<Arc<ServerTls>>);

impl Verified {
    /// Those of the connections whose certificate would not be accepted now.
    pub(super) fn look<'a, T>(
        &mut self,
        tls: Option<&Reloading<ServerTls>>,
        all: &'a [T],
        certificate_of: impl Fn(&T) -> Option<&PeerCertificate>,
        now: Instant,
    ) -> Vec<&'a T> {
        let Some(tls) = tls.map(|tls| tls.current(now)) else { return Vec::new() };
        let is_new = self.0.as_ref().is_none_or(|last| !Arc::ptr_eq(last, &tls));
        let clock = wall_clock_ms();
        let is_refused = |connection: &&T| {
            let Some(certificate) = certificate_of(connection) else { return false };
            if !is_new && clock <= certificate.not_after_ms {
                return false;
            }
            let verified = tls.verify(&certificate.chain);
            if let Err(why) = &verified {
                tracing::warn!(names = ?certificate.names, %why, "a connection ends with its certificate");
            }
            verified.is_err()
        };
        let refused = all.iter().filter(is_refused).collect();
        self.0 = Some(tls);
        refused
    }
}
