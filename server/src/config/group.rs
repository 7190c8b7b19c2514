//! `[[group]]`: from what the file says to a [`Group`].

use std::collections::BTreeMap;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Deserializer};
use toml::Spanned;

use super::units::{Capacity, Span};
use crate::group::{Group, Policy};
use crate::loader::{AnyLoader, LoaderError, StaticLoader};
use peanut_edge::documented;
use peanut_edge::settings::{ConfigError, Source};

/// What a capacity in a file is at least: less has lost its unit.
const LEAST_CAPACITY_BYTES: usize = 64 << 10;

/// The groups of one source.
#[derive(Clone, Debug)]
pub(crate) struct Groups {
    pub(super) list: Vec<GroupSettings>,
    /// The text that the spans in `list` refer to.
    pub(super) text: Arc<str>,
    pub(super) source: Option<Source>,
}

documented! {
    /// One group.
    #[derive(Clone, Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    pub(crate) struct GroupSettings {
        /// Its name, by which applications ask for it
        name: Spanned<String>,
        /// Bytes kept in memory, overhead included; at least 64KiB [default: 64MiB]
        capacity: Option<Capacity>,
        /// How long a value stays fresh; from 1ms to max_ttl [default: 10m]
        ttl: Option<Spanned<Span>>,
        /// The longest lifetime that a loader or a client may give a value [default: 7d]
        max_ttl: Option<Span>,
        /// The part by which lifetimes are shortened at random, so that what was loaded together does
        /// not expire together [default: 0.1]
        ttl_jitter: Option<Spanned<f64>>,
        /// How long it is remembered that the origin has no such key [default: 5s]
        negative_ttl: Option<Span>,
        /// How long a node keeps what it loads in the place of an owner that is down [default:
        /// 10s]
        failover_ttl: Option<Span>,
        /// How long a load may take [default: 5s]
        load_timeout: Option<Span>,
        /// How many loads run at once [default: 128]
        max_loads: Option<usize>,
        /// Which entries leave when there is no room: s3-fifo or lru [default: s3-fifo]
        eviction: Option<Spanned<String>>,
        /// Bytes on the disk, where there is a data_dir [default: twice the capacity, at least 64MiB]
        disk_capacity: Option<Capacity>,
        /// Age from which a value that is asked for is loaded again in the background; at least 1ms, and
        /// shorter than max_ttl [default: none]
        refresh_after: Option<Span>,
        /// How long beyond its lifetime a value answers where it cannot be loaded, or not in the caller's
        /// time [default: 0s]
        stale_if_error: Option<Span>,
        /// Whether the origin is left alone for 1 to 30 s when half of at least 20 loads within 10 s have
        /// failed [default: true]
        breaker: Option<bool>,
        /// Where missing values come from: see the next table
        loader: Spanned<LoaderSettings>,
    }
}

documented! {
    /// Where a group's values come from. One struct for all kinds, so that a mistake in it has a line.
    #[derive(Clone, Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    pub(super) struct LoaderSettings {
        /// none, static, http, sql, redis or grpc
        kind: Kind,
        /// static: the keys and their values
        entries: Option<BTreeMap<String, String>>,
        /// http, sql, redis, grpc: where the origin is; ${NAME} in it stands for a variable of the
        /// environment
        url: Option<Spanned<String>>,
        /// sql: the query for one key, with one placeholder: ? or, for PostgreSQL, $1
        query: Option<String>,
        /// sql: the query for many keys, whose rows begin with the key [default: none]
        batch_query: Option<String>,
        /// sql: connections of the node to the database; from 1 to 10000 [default: 8]
        max_connections: Option<u32>,
        /// redis: the key at the origin, with {key} in it [default: {key}]
        key: Option<String>,
        /// http, sql, redis, grpc: how long one request to the origin may take [default: 5s; 2s for sql and
        /// redis]
        timeout: Option<Span>,
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Kind {
    None,
    Static,
    Http,
    Sql,
    Redis,
    Grpc,
}

impl Groups {
    /// The groups, or what is wrong with the first bad one.
    pub(super) fn build(self) -> Result<Vec<Group>, ConfigError> {
        let source = self.source.unwrap_or(Source { name: "group".to_owned(), text: self.text });
        for (at, group) in self.list.iter().enumerate() {
            let name = group.name.get_ref();
            if let Some(first) = self.list[..at].iter().find(|other| other.name.get_ref() == name) {
                let first = source.at(Some(first.name.span()));
                let why = format!("group `{name}` is there already, at {first}; rename or remove one");
                return Err(source.error(Some(group.name.span()), why));
            }
        }
        self.list.into_iter().map(|group| group.build(&source)).collect()
    }
}

impl<'de> Deserialize<'de> for Groups {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        Ok(Groups { list: Vec::deserialize(from)?, text: "".into(), source: None })
    }
}

impl FromStr for Groups {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        #[derive(Deserialize)]
        struct Wrapped {
            group: Vec<GroupSettings>,
        }
        let list = text.trim();
        let document =
            if list.starts_with('[') { format!("group={list}") } else { format!("group=[{list}]") };
        let wrapped: Wrapped = toml::from_str(&document).map_err(|error| error.message().to_owned())?;
        Ok(Groups { list: wrapped.group, text: document.into(), source: None })
    }
}

impl GroupSettings {
    fn build(self, source: &Source) -> Result<Group, ConfigError> {
        let default = Policy::default();
        let span = |given: Option<Span>, default| given.map_or(default, |Span(duration)| duration);
        let name = self.name.span();
        let (ttl_at, jitter_at) =
            (self.ttl.as_ref().map(Spanned::span), self.ttl_jitter.as_ref().map(Spanned::span));
        let max_ttl = span(self.max_ttl, default.max_ttl);
        let eviction = match &self.eviction {
            None => default.eviction,
            Some(name) => name
                .get_ref()
                .parse()
                .map_err(|why| source.error(Some(name.span()), format!("eviction: {why}")))?,
        };
        if let Some(Capacity(bytes @ 1..LEAST_CAPACITY_BYTES)) = self.capacity {
            let why = format!("capacity of {bytes} bytes is below 64KiB; is its unit missing, as in 64MiB?");
            return Err(source.error(Some(name), why));
        }
        let policy = Policy {
            capacity_bytes: self.capacity.map_or(default.capacity_bytes, |Capacity(bytes)| bytes),
            ttl: span(self.ttl.map(Spanned::into_inner), default.ttl.min(max_ttl)),
            max_ttl,
            ttl_jitter: self.ttl_jitter.map_or(default.ttl_jitter, Spanned::into_inner),
            negative_ttl: span(self.negative_ttl, default.negative_ttl),
            failover_ttl: span(self.failover_ttl, default.failover_ttl),
            load_timeout: span(self.load_timeout, default.load_timeout),
            max_loads: self.max_loads.unwrap_or(default.max_loads),
            eviction,
            disk_capacity_bytes: self.disk_capacity.map(|Capacity(bytes)| bytes as u64),
            refresh_after: self.refresh_after.map(|Span(after)| after),
            stale_if_error: span(self.stale_if_error, default.stale_if_error),
            breaker: self.breaker.unwrap_or(default.breaker),
        };
        if policy.ttl > policy.max_ttl {
            return Err(source.error(ttl_at, "ttl is longer than max_ttl; shorten it or raise max_ttl"));
        }
        let loader_at = self.loader.span();
        let loader = self.loader.into_inner().build().map_err(|why| source.error(Some(loader_at), why))?;
        let group = Group::with_policy(self.name.into_inner(), loader, policy);
        let at = jitter_at.filter(|_| !(0.0..=1.0).contains(&group.policy.ttl_jitter)).unwrap_or(name);
        group.check().map_err(|why| source.error(Some(at), why))?;
        Ok(group)
    }
}

impl LoaderSettings {
    fn build(self) -> Result<AnyLoader, LoaderError> {
        let kind = self.kind;
        // Each field with the kinds that know it, and whether they need it.
        let outside = matches!(kind, Kind::Http | Kind::Sql | Kind::Redis | Kind::Grpc);
        let given = [
            ("entries", self.entries.is_some(), kind == Kind::Static, true),
            ("url", self.url.is_some(), outside, true),
            ("query", self.query.is_some(), kind == Kind::Sql, true),
            ("batch_query", self.batch_query.is_some(), kind == Kind::Sql, false),
            ("max_connections", self.max_connections.is_some(), kind == Kind::Sql, false),
            ("key", self.key.is_some(), kind == Kind::Redis, false),
            ("timeout", self.timeout.is_some(), outside, false),
        ];
        let name = format!("{kind:?}").to_lowercase();
        for (field, given, known, needed) in given {
            if given && !known {
                return Err(format!("a loader of kind `{name}` has no `{field}`; remove it").into());
            }
            if !given && known && needed {
                return Err(format!("a loader of kind `{name}` needs `{field}`").into());
            }
        }
        let url =
            fill_in(&self.url.map(Spanned::into_inner).unwrap_or_default(), |name| std::env::var(name).ok())?;
        let timeout = self.timeout.map(|Span(timeout)| timeout);
        match kind {
            Kind::None => Ok(AnyLoader::none()),
            Kind::Static => {
                let loader: StaticLoader = self.entries.into_iter().flatten().collect();
                Ok(AnyLoader::new(loader))
            }
            Kind::Http => http(&url, timeout),
            Kind::Sql => {
                sql(&url, &self.query.unwrap_or_default(), self.batch_query, self.max_connections, timeout)
            }
            Kind::Redis => redis(&url, self.key.as_deref().unwrap_or("{key}"), timeout),
            Kind::Grpc => grpc(&url, timeout),
        }
    }
}

/// Puts variables of the environment in the place of each `${NAME}`, so that secrets need not stand in the
/// file.
fn fill_in(text: &str, variable: impl Fn(&str) -> Option<String>) -> Result<String, LoaderError> {
    let mut filled = String::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once("${") {
        let Some((name, later)) = after.split_once('}') else {
            return Err("a `${` in the url has no end".into());
        };
        if name.is_empty() || name.contains(|c: char| !(c.is_ascii_alphanumeric() || c == '_')) {
            return Err(format!("`${{{name}}}` in the url is not the name of a variable").into());
        }
        let Some(value) = variable(name).filter(|value| !value.is_empty()) else {
            return Err(format!("the url names the variable {name}, which is not set or empty").into());
        };
        if value.contains(|c: char| c.is_control() || c.is_whitespace()) {
            return Err(
                format!("the variable {name}, which the url names, has spaces or line ends in it").into()
            );
        }
        filled.push_str(before);
        filled.push_str(&value);
        rest = later;
    }
    Ok(filled + rest)
}

#[cfg(feature = "http")]
fn http(url: &str, timeout: Option<Duration>) -> Result<AnyLoader, LoaderError> {
    use crate::loader::HttpLoader;
    let timeout = timeout.unwrap_or(HttpLoader::DEFAULT_TIMEOUT);
    Ok(AnyLoader::new(HttpLoader::new(url, timeout)?))
}

#[cfg(not(feature = "http"))]
fn http(_: &str, _: Option<Duration>) -> Result<AnyLoader, LoaderError> {
    Err("this build has no loader of kind `http` (feature `http`)".into())
}

#[cfg(feature = "sql")]
fn sql(
    url: &str,
    query: &str,
    batch_query: Option<String>,
    max_connections: Option<u32>,
    timeout: Option<Duration>,
) -> Result<AnyLoader, LoaderError> {
    use crate::loader::{SqlLoader, SqlOptions};
    let default = SqlOptions::default();
    let options = SqlOptions {
        batch_query,
        max_connections: max_connections.unwrap_or(default.max_connections),
        timeout: timeout.unwrap_or(default.timeout),
    };
    Ok(AnyLoader::new(SqlLoader::with_options(url, query, options)?))
}

#[cfg(not(feature = "sql"))]
fn sql(
    _: &str,
    _: &str,
    _: Option<String>,
    _: Option<u32>,
    _: Option<Duration>,
) -> Result<AnyLoader, LoaderError> {
    Err("this build has no loader of kind `sql` (features `sqlite`, `postgres`, `mysql`)".into())
}

#[cfg(feature = "redis")]
fn redis(url: &str, key: &str, timeout: Option<Duration>) -> Result<AnyLoader, LoaderError> {
    use crate::loader::RedisLoader;
    let timeout = timeout.unwrap_or(RedisLoader::DEFAULT_TIMEOUT);
    Ok(AnyLoader::new(RedisLoader::new(url, key, timeout)?))
}

#[cfg(not(feature = "redis"))]
fn redis(_: &str, _: &str, _: Option<Duration>) -> Result<AnyLoader, LoaderError> {
    Err("this build has no loader of kind `redis` (feature `redis`)".into())
}

#[cfg(feature = "grpc")]
fn grpc(url: &str, timeout: Option<Duration>) -> Result<AnyLoader, LoaderError> {
    use crate::loader::GrpcLoader;
    let timeout = timeout.unwrap_or(GrpcLoader::DEFAULT_TIMEOUT);
    Ok(AnyLoader::new(GrpcLoader::new(url, timeout)?))
}

#[cfg(not(feature = "grpc"))]
fn grpc(_: &str, _: Option<Duration>) -> Result<AnyLoader, LoaderError> {
    Err("this build has no loader of kind `grpc` (feature `grpc`)".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_are_filled_in_and_missing_ones_are_named() {
        let variable = |name: &str| match name {
            "PASSWORD" => Some("s3cret".to_owned()),
            "EMPTY" => Some(String::new()),
            "LINES" => Some("s3cret\n".to_owned()),
            _ => None,
        };
        let fill_in = |text| fill_in(text, variable).map_err(|error| error.to_string());
        assert_eq!(
            fill_in("postgres://me:${PASSWORD}@h/${PASSWORD}").unwrap(),
            "postgres://me:s3cret@h/s3cret"
        );
        assert_eq!(fill_in("http://h/{group}/{key}").unwrap(), "http://h/{group}/{key}");
        assert!(fill_in("${OTHER}").unwrap_err().contains("OTHER"));
        assert!(fill_in("${PASSWORD").unwrap_err().contains("no end"));
        assert!(fill_in("${EMPTY}").unwrap_err().contains("or empty"));
        assert!(fill_in("${LINES}").unwrap_err().contains("line ends"));
        for bad in ["${}", "${A B}", "${A${B}}", "${PASSWORD:-x}"] {
            assert!(fill_in(bad).unwrap_err().contains("not the name of a variable"), "{bad}");
        }
    }
}
