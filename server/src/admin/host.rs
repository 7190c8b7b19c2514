//! By which names the admin port may be called.
//!
//! A page of another site can have its own name lead to this port (DNS rebinding); a browser then takes what
//! is here for that site's and lets its scripts read it. What such a page cannot change is the name that the
//! browser sends.

use std::net::IpAddr;

use axum::extract::{Request, State};
use axum::http::uri::Authority;
use axum::http::{Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use super::Admin;
use crate::connections::Handshake;

/// Names that are good, beside IP addresses and `localhost`.
#[derive(Debug)]
pub(super) struct Hosts {
    names: Vec<String>,
    /// For the names in its certificate.
    handshake: Handshake,
}

impl Hosts {
    pub(super) fn new(names: &[String], handshake: Handshake) -> Self {
        Hosts {
            names: names.iter().map(|name| name.trim_end_matches('.').to_ascii_lowercase()).collect(),
            handshake,
        }
    }

    /// Whether this is what a browser of an operator's would send.
    fn allow(&self, authority: &str) -> bool {
        let Ok(authority) = authority.parse::<Authority>() else { return false };
        if authority.as_str().contains('@') {
            return false;
        }
        let host = authority.host().trim_end_matches('.').to_ascii_lowercase();
        let bare = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(&host);
        bare.parse::<IpAddr>().is_ok()
            || host == "localhost"
            || self.names.contains(&host)
            || self.is_certified(&host)
    }

    fn is_certified(&self, host: &str) -> bool {
        let now = tokio::time::Instant::now();
        self.handshake.tls.as_ref().is_some_and(|tls| tls.current(now).own().names_host(host))
    }
}

/// Lets through what asks for a host that this is: one `Host`, and the target's host too where the target is
/// a whole URL.
pub(super) async fn check_host(State(admin): State<Admin>, request: Request, next: Next) -> Response {
    let mut hosts = request.headers().get_all(header::HOST).iter();
    let host = hosts.next().and_then(|host| host.to_str().ok());
    let of_target = request.uri().authority().map(Authority::as_str);
    let is_one = hosts.next().is_none();
    let is_allowed = |host: &str| admin.hosts.allow(host);
    if is_one && host.is_some_and(is_allowed) && of_target.is_none_or(is_allowed) {
        return next.run(request).await;
    }
    let why = "this is not the host that was asked for; use an IP address, localhost, a name in the certificate, or one of `admin_hosts`\n";
    (StatusCode::MISDIRECTED_REQUEST, why).into_response()
}

/// Nothing here writes, so that a form or script of another site can change nothing.
pub(super) async fn only_reads(request: Request, next: Next) -> Response {
    if matches!(*request.method(), Method::GET | Method::HEAD) {
        return next.run(request).await;
    }
    (StatusCode::METHOD_NOT_ALLOWED, [(header::ALLOW, "GET, HEAD")], "only GET and HEAD\n").into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_localhost_and_names_that_are_set_are_good_and_no_others() {
        let hosts = Hosts::new(&["ops.example".to_owned()], Handshake::plain());
        for good in [
            "127.0.0.1:9998",
            "10.0.0.5",
            "[::1]:9998",
            "[fd00::5]",
            "localhost",
            "LocalHost:1",
            "localhost.:1",
            "ops.example",
            "OPS.example.:443",
        ] {
            assert!(hosts.allow(good), "{good}");
        }
        for bad in [
            "",
            ":80",
            "evil.example",
            "ops.example.evil.example",
            "a.ops.example",
            "127.0.0.1.evil.example",
            "127.0.0.1@evil.example",
            "localhost@evil.example",
            "evil.example@127.0.0.1",
            "localhost.evil.example",
            "evil.example:127.0.0.1",
            "127.1",
            "0x7f000001",
            "2130706433",
            "[::1",
            "::1",
            "local host",
            "localhost, evil.example",
        ] {
            assert!(!hosts.allow(bad), "{bad}");
        }
    }
}
