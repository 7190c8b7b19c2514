//! What is an endpoint of etcd.

use crate::address;
use crate::registry::RegistryError;

pub(super) fn check_endpoint(endpoint: &str) -> Result<(), RegistryError> {
    if endpoint.contains('@') {
        let shown = host_and_port(endpoint);
        let why = "it is not logged in by; give user and password as settings of their own";
        return Err(RegistryError::new(format!("etcd endpoint `{shown}` has a user before it: {why}")));
    }
    let rest = endpoint.split_once("://").filter(|(scheme, _)| matches!(*scheme, "http" | "https"));
    match rest.map(|(_, rest)| address::check(host_and_port(rest))) {
        Some(Ok(())) => Ok(()),
        _ => {
            // There may be a secret before it.
            let shown = host_and_port(endpoint);
            Err(RegistryError::new(format!("etcd endpoint `{shown}` is not like http://127.0.0.1:2379")))
        }
    }
}

/// What is left of an address without a user before it and slashes after it.
pub(super) fn host_and_port(rest: &str) -> &str {
    let rest = rest.trim_end_matches('/');
    rest.rsplit_once('@').map_or(rest, |(_, rest)| rest)
}

/// Whether others can read what is said there: it is on another machine, and speaks no TLS.
pub(super) fn is_open(endpoint: &str) -> bool {
    let taken = endpoint.strip_prefix("http://").map(|rest| address::host_and_port(host_and_port(rest)));
    taken.is_some_and(|taken| !taken.is_ok_and(|(host, _)| address::is_loopback(host)))
}
