//! By which names a page may be called.
//!
//! A page of another site can have its own name lead to this port (DNS rebinding); a browser then takes what
//! is here for that site's and lets its scripts read it. What such a page cannot change is the name that the
//! browser sends.

use std::net::IpAddr;
use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::uri::Authority;
use axum::http::{StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use peanut_edge::connections::Handshake;

/// Names that are good, beside IP addresses and `localhost`.
#[derive(Debug)]
pub struct Hosts {
    names: Vec<String>,
    /// For the names in its certificate.
    handshake: Handshake,
}

impl Hosts {
    /// Names that are set, and those in the certificate of this handshake.
    pub fn new(names: &[String], handshake: Handshake) -> Self {
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
pub async fn check_host(State(hosts): State<Arc<Hosts>>, request: Request, next: Next) -> Response {
    let mut asked = request.headers().get_all(header::HOST).iter();
    let host = asked.next().and_then(|host| host.to_str().ok());
    let of_target = request.uri().authority().map(Authority::as_str);
    let is_one = asked.next().is_none();
    let is_allowed = |host: &str| hosts.allow(host);
    if is_one && host.is_some_and(is_allowed) && of_target.is_none_or(is_allowed) {
        return next.run(request).await;
    }
    let why = "this is not the host that was asked for; use an IP address, localhost, a name in the certificate, or one that is set (`admin_hosts`, `--page-hosts`)\n";
    (StatusCode::MISDIRECTED_REQUEST, why).into_response()
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
