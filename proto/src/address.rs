//! Addresses that others are to reach a node by: `host:port`.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Longest name of a host, in bytes, and longest label of one (RFC 1035, 2.3.4).
const MAX_HOST_BYTES: usize = 253;
const MAX_LABEL_BYTES: usize = 63;

/// Takes an address apart: a name or an IP address, in brackets where it is IPv6, and a port.
///
/// # Errors
/// Why nobody can be reached there: it has no port, IPv6 is without brackets, the host is not a name of one,
/// or it is an address that stands for all of a machine's (`0.0.0.0`) or for many machines.
pub fn host_and_port(addr: &str) -> Result<(&str, u16), String> {
    let like = "write it like 10.0.0.5:9999, [fd00::5]:9999 or node-1.example:9999";
    if addr.parse::<Ipv6Addr>().is_ok() {
        return Err(format!(
            "`{addr}` is IPv6 without brackets, whose port cannot be told from the rest; {like}"
        ));
    }
    let Some((host, port)) = addr.rsplit_once(':') else {
        return Err(format!("`{addr}` has no port; {like}"));
    };
    let port = match port.parse::<u16>() {
        Ok(parsed) if port.bytes().all(|byte| byte.is_ascii_digit()) => parsed,
        _ => return Err(format!("`{addr}` has no port from 0 to 65535; {like}")),
    };
    let ip = match host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
        Some(inside) => match inside.parse::<Ipv6Addr>() {
            Ok(ip) => Some(IpAddr::from(ip)),
            Err(_) => return Err(format!("`{addr}` has no IPv6 address in its brackets; {like}")),
        },
        None => host.parse::<Ipv4Addr>().ok().map(IpAddr::from),
    };
    match ip {
        Some(ip) if ip.is_unspecified() => Err(format!(
            "`{addr}` stands for every address of a machine, and others cannot reach it by that; {like}"
        )),
        Some(ip) if ip.is_multicast() || ip == IpAddr::from(Ipv4Addr::BROADCAST) => {
            Err(format!("`{addr}` is an address of many machines; {like}"))
        }
        Some(_) => Ok((host, port)),
        None if is_name(host) => Ok((host, port)),
        None => Err(format!("`{addr}` is not the name or address of a host; {like}")),
    }
}

/// As [`host_and_port`], with a port that can be connected to.
///
/// # Errors
/// As [`host_and_port`], and where the port is 0.
pub fn check(addr: &str) -> Result<(), String> {
    match host_and_port(addr)? {
        (_, 0) => Err(format!("`{addr}` has port 0, which nobody can connect to")),
        _ => Ok(()),
    }
}

/// Whether a host is this machine, by its name or address.
pub fn is_loopback(host: &str) -> bool {
    let bare = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(host);
    bare.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
        || host.trim_end_matches('.').eq_ignore_ascii_case("localhost")
}

/// Whether that may be the name of a host. Underscores are in no name of DNS and in many of containers.
pub fn is_name(host: &str) -> bool {
    let host = host.strip_suffix('.').unwrap_or(host);
    let is_label = |label: &str| {
        (1..=MAX_LABEL_BYTES).contains(&label.len())
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    // What ends in a number is meant to be IPv4.
    let is_number = |label: &str| label.bytes().all(|byte| byte.is_ascii_digit());
    host.len() <= MAX_HOST_BYTES
        && host.split('.').all(is_label)
        && !host.rsplit('.').next().is_some_and(is_number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_that_others_can_reach_are_taken_apart() {
        for (addr, host, port) in [
            ("10.0.0.5:9999", "10.0.0.5", 9999),
            ("[fd00::1]:1", "[fd00::1]", 1),
            ("node-1:65535", "node-1", 65535),
            ("peanut_1.fleet.example.:9", "peanut_1.fleet.example.", 9),
            ("localhost:0", "localhost", 0),
            ("1.example:1", "1.example", 1),
        ] {
            assert_eq!(host_and_port(addr), Ok((host, port)));
            assert_eq!(check(addr).is_ok(), port != 0);
        }
    }

    #[test]
    fn those_that_nobody_can_reach_are_told() {
        for (addr, why) in [
            ("", "no port"),
            ("host", "no port"),
            ("host:", "no port"),
            ("host:x", "no port"),
            ("host:+1", "no port"),
            ("host:65536", "no port"),
            (":1", "not the name"),
            ("fd00::1:9999", "without brackets"),
            ("fd00::1", "without brackets"),
            ("::", "without brackets"),
            ("[fd00::1]", "no port"),
            ("[fd00::1%eth0]:1", "in its brackets"),
            ("[10.0.0.1]:1", "in its brackets"),
            ("[node]:1", "in its brackets"),
            ("a:b:1", "not the name"),
            ("0.0.0.0:1", "every address"),
            ("[::]:1", "every address"),
            ("224.0.0.1:1", "many machines"),
            ("[ff02::1]:1", "many machines"),
            ("255.255.255.255:1", "many machines"),
            ("10.0.0.300:1", "not the name"),
            ("10.0.0:1", "not the name"),
            ("-a.example:1", "not the name"),
            ("a..b:1", "not the name"),
            ("a b:1", "not the name"),
            ("a/b:1", "not the name"),
            ("user@host:1", "not the name"),
            ("http://host:1", "not the name"),
            ("bücher:1", "not the name"),
            (&format!("{}:1", "a".repeat(64)), "not the name"),
            (&format!("{}a:1", "a.".repeat(127)), "not the name"),
        ] {
            let error = check(addr).unwrap_err();
            assert!(error.contains(why), "{addr}: {error}");
        }
    }
}
