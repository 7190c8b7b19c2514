//! What no server can be: every setting with its bounds. A value that is let through here does no harm later.

use std::path::Path;
use std::time::Duration;

use peanut_proto::address;
use peanut_proto::bounds::Bounds;
use peanut_proto::membership::check_name;

use super::ServerBuilder;
use crate::admin;
use crate::error::Error;
use crate::group::Group;

const MAX_THREADS: usize = 1024;
const MAX_WEIGHT: u32 = 1024;
/// More than one machine has descriptors for.
const MAX_CONNECTIONS: usize = 10_000_000;
/// Bytes a second that are read after a start.
const RESTORE_RATE: std::ops::RangeInclusive<u64> = 1 << 10..=1 << 40;

const fn millis(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

const fn hours(hours: u64) -> Duration {
    Duration::from_secs(hours * 3600)
}

const LEASE_TTL: Bounds = Bounds::new(millis(1000), hours(1));
const FORGET_AFTER: Bounds = Bounds::new(millis(1000), hours(30 * 24));
const SHUTDOWN_DEADLINE: Bounds = Bounds::new(Duration::ZERO, hours(24));
const SEAL_INTERVAL: Bounds = Bounds::new(millis(100), hours(24));
const HANDSHAKE_TIMEOUT: Bounds = Bounds::new(millis(10), hours(1));
const FIRST_CALL_TIMEOUT: Bounds = Bounds::SECOND_TO_DAY;
const IDLE_TIMEOUT: Bounds = Bounds::new(millis(1000), hours(30 * 24));
const KEEPALIVE: Bounds = Bounds::new(millis(100), hours(24));

impl ServerBuilder {
    /// Checks everything that needs no certificate to be read.
    pub(super) fn check(&self) -> Result<(), Error> {
        self.check_groups()?;
        self.check_names()?;
        for (setting, value, bounds) in [
            ("lease_ttl", self.lease_ttl, LEASE_TTL),
            ("forget_after", self.forget_after, FORGET_AFTER),
            ("shutdown_deadline", self.shutdown_deadline, SHUTDOWN_DEADLINE),
            ("seal_interval", self.seal_interval, SEAL_INTERVAL),
            ("handshake_timeout", self.connections.handshake, HANDSHAKE_TIMEOUT),
            ("first_call_timeout", self.connections.first_call, FIRST_CALL_TIMEOUT),
            ("idle_timeout", self.connections.idle, IDLE_TIMEOUT),
            ("keepalive", self.keepalive, KEEPALIVE),
        ] {
            bounds.check(value).map_err(|why| Error::of_setting(setting, why))?;
        }
        if self.forget_after < self.lease_ttl {
            return Err(Error::of_setting("forget_after", "must be at least lease_ttl"));
        }
        if !(1..=MAX_WEIGHT).contains(&self.weight) {
            return Err(Error::of_setting("weight", format!("must be from 1 to {MAX_WEIGHT}")));
        }
        if self.threads > MAX_THREADS {
            return Err(Error::of_setting("threads", format!("must be at most {MAX_THREADS}")));
        }
        for (setting, connections) in [
            ("max_connections", self.connections.total),
            ("max_connections_per_peer", self.connections.per_peer),
        ] {
            if !(1..=MAX_CONNECTIONS).contains(&connections) {
                return Err(Error::of_setting(setting, format!("must be from 1 to {MAX_CONNECTIONS}")));
            }
        }
        if !RESTORE_RATE.contains(&self.restore_rate) {
            return Err(Error::of_setting("restore_rate", "must be from 1KiB to 1TiB a second"));
        }
        if let Some(directory) = &self.data_dir {
            check_directory(directory).map_err(|why| Error::of_setting("data_dir", why))?;
        }
        Ok(())
    }

    fn check_groups(&self) -> Result<(), Error> {
        let mut names: Vec<&str> = self.groups.iter().map(|group| group.name.as_str()).collect();
        names.sort_unstable();
        if let Some(twice) = names.windows(2).find(|pair| pair[0] == pair[1]) {
            return Err(Error::configuration(format!("group `{}` is there twice; remove one", twice[0])));
        }
        self.groups.iter().try_for_each(Group::check)?;
        let capacities = self.groups.iter().map(|group| group.policy.capacity_bytes as u64);
        let capacity = capacities.fold(0, u64::saturating_add);
        if let Some(memory) = crate::memory::total_bytes().filter(|memory| capacity > *memory) {
            let why = format!(
                "the groups' capacities come to {} MiB, and there are {} MiB of memory; lower them",
                capacity >> 20,
                memory >> 20
            );
            return Err(Error::of_setting("capacity", why));
        }
        Ok(())
    }

    /// Names and addresses.
    fn check_names(&self) -> Result<(), Error> {
        let named = [
            ("fleet", Some(&self.fleet)),
            ("node_id", self.node_id.as_ref()),
            ("naming_service", Some(&self.naming_service)),
            ("zone", Some(&self.zone).filter(|zone| !zone.is_empty())),
        ];
        for (setting, name) in named {
            if let Some(Err(why)) = name.map(|name| check_name(name)) {
                return Err(Error::of_setting(setting, why));
            }
        }
        if let Some(advertise) = &self.advertise {
            address::host_and_port(advertise).map_err(|why| Error::of_setting("advertise", why))?;
        }
        if self.registry.is_some() && !self.nodes.is_empty() {
            let why = "a registry and a fixed list of nodes exclude each other";
            return Err(Error::of_setting("nodes", why));
        }
        for (at, node) in self.nodes.iter().enumerate() {
            address::check(node).map_err(|why| Error::of_setting("nodes", why))?;
            if self.nodes[..at].contains(node) {
                return Err(Error::of_setting("nodes", format!("`{node}` is there twice; remove one")));
            }
        }
        if self.admin.is_some() {
            admin::check()?;
        }
        for host in &self.admin_hosts {
            let is_host = address::check(&format!("{host}:1")).is_ok() && !host.contains(':');
            if !is_host {
                let why = format!(
                    "`{host}` is not the name of a host; write it like peanut.example, without a port"
                );
                return Err(Error::of_setting("admin_hosts", why));
            }
        }
        Ok(())
    }
}

/// Whether a directory can be made there and written to. Nothing is left there.
fn check_directory(path: &Path) -> Result<(), String> {
    let refuse = |path: &Path, why: &dyn std::fmt::Display| Err(format!("{}: {why}", path.display()));
    let is_there = |path: &&Path| path.as_os_str().is_empty() || path.symlink_metadata().is_ok();
    let Some(nearest) = path.ancestors().find(is_there) else { return Ok(()) };
    let nearest = if nearest.as_os_str().is_empty() { Path::new(".") } else { nearest };
    match nearest.metadata() {
        Err(error) => return refuse(nearest, &error),
        Ok(metadata) if !metadata.is_dir() => return refuse(nearest, &"it is not a directory"),
        Ok(_) => {}
    }
    let probe = nearest.join(format!(".peanut-{:016x}", fastrand::u64(..)));
    match std::fs::OpenOptions::new().write(true).create_new(true).open(&probe) {
        Ok(_) => {
            let _ = std::fs::remove_file(&probe);
            Ok(())
        }
        // A full disk is one that a node lives with.
        Err(error) if error.kind() == std::io::ErrorKind::StorageFull => Ok(()),
        Err(error) => refuse(nearest, &format_args!("it cannot be written to: {error}")),
    }
}

#[cfg(test)]
mod tests;
