//! What a certificate says of itself: its names, and when it is good.

use std::fmt;

use std::fmt::Write as _;
use std::net::IpAddr;

/// Why certificates cannot be used, with the file's name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsError(String);

impl TlsError {
    pub(crate) fn new(message: String) -> Self {
        TlsError(message)
    }
}

impl fmt::Display for TlsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for TlsError {}

/// What was read from a certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Certificate {
    /// Subject alternative names: DNS names in lower case, IP addresses, URIs and e-mail addresses.
    pub names: Vec<String>,
    /// Good from then on, in milliseconds since 1970.
    pub not_before_ms: u64,
    /// Good until then, in milliseconds since 1970.
    pub not_after_ms: u64,
    /// Whether it may issue others.
    pub is_authority: bool,
}

impl Certificate {
    /// Whether it names this host, a name or an IP address. `*.fleet.example` names each host one label
    /// below; a star names nobody where fewer than two labels follow it, as in rustls-webpki and NSS.
    pub fn names_host(&self, host: &str) -> bool {
        let host =
            host.trim_start_matches('[').trim_end_matches(']').trim_end_matches('.').to_ascii_lowercase();
        let ip: Option<IpAddr> = host.parse().ok();
        self.names.iter().any(|name| {
            if let Some(ip) = ip {
                return name.parse() == Ok(ip);
            }
            let below = name.strip_prefix("*.").zip(host.split_once('.'));
            *name == host || below.is_some_and(|(domain, (_, rest))| domain == rest && domain.contains('.'))
        })
    }
}

/// A length of time in words, for people who wait for a certificate to expire.
pub fn in_words(ms: u64) -> String {
    let mut text = String::new();
    let _ = match ms / 1000 {
        seconds if seconds < 2 * 3600 => write!(text, "{} minutes", seconds / 60),
        seconds if seconds < 2 * 24 * 3600 => write!(text, "{} hours", seconds / 3600),
        seconds => write!(text, "{} days", seconds / (24 * 3600)),
    };
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_are_known_by_whole_names_one_label_below_a_star_and_addresses_in_every_spelling() {
        let names = ["node.example", "*.fleet.example", "*.peanut", "10.0.0.1", "fd00::1"]
            .map(str::to_owned)
            .to_vec();
        let certificate = Certificate { names, not_before_ms: 0, not_after_ms: 1, is_authority: false };
        for host in ["node.example", "NODE.example.", "a.fleet.example", "10.0.0.1", "[fd00::1]", "fd00:0::1"]
        {
            assert!(certificate.names_host(host), "{host}");
        }
        for host in [
            "",
            "example",
            "a.node.example",
            "fleet.example",
            "a.b.fleet.example",
            "10.0.0.2",
            "fd00::2",
            "*.fleet.example.org",
            "peanut-0.peanut",
        ] {
            assert!(!certificate.names_host(host), "{host}");
        }
    }
}
