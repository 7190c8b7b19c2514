//! Configuration: a flag over a `PEANUT_*` variable over the file over the default.
//!
//! [`Settings`] is all of them, each said once: the same struct reads the file (serde) and the flags and
//! variables (clap). What is wrong is told in one line that begins with the place.

mod group;
mod units;

use std::fmt;
use std::num::NonZeroUsize;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::Parser;
use clap::error::{ContextKind, ContextValue, ErrorKind};
use serde::Deserialize;

pub(crate) use group::Groups;
pub(crate) use units::{Capacity, ListenAddr, Span};

use crate::Server;

macro_rules! settings {
    ($(#[$meta:meta])* struct $name:ident { $($(#[$field_meta:meta])* $field:ident: $type:ty,)* }) => {
        $(#[$meta])*
        pub(crate) struct $name { $($(#[$field_meta])* pub(crate) $field: $type,)* }

        impl $name {
            /// These settings where they are given, else the others.
            fn or(self, other: Self) -> Self {
                $name { $($field: self.$field.or(other.$field),)* }
            }
        }
    };
}

settings! {
    /// Everything that can be set, where it is set.
    #[derive(Clone, Debug, Default, Deserialize, clap::Args)]
    #[serde(deny_unknown_fields)]
    struct Settings {
        /// Address to serve gRPC on [default: 127.0.0.1:9999]
        #[arg(long, env = "PEANUT_LISTEN", value_name = "IP:PORT")]
        listen: Option<ListenAddr>,
        /// Where clients reach this node [default: listen]
        #[arg(long, env = "PEANUT_ADVERTISE", value_name = "HOST:PORT")]
        advertise: Option<String>,
        /// Name of this node, the same after every restart [default: advertise]
        #[arg(long, env = "PEANUT_NODE_ID", value_name = "NAME")]
        node_id: Option<String>,
        /// Name of the fleet to join [default: default]
        #[arg(long, env = "PEANUT_FLEET", value_name = "NAME")]
        fleet: Option<String>,
        /// Failure domain of this node
        #[arg(long, env = "PEANUT_ZONE", value_name = "NAME")]
        zone: Option<String>,
        /// Share of the keys relative to other nodes [default: 1]
        #[arg(long, env = "PEANUT_WEIGHT", value_name = "N")]
        weight: Option<u32>,
        /// The whole fleet as a fixed list of addresses, in place of etcd
        #[arg(long, env = "PEANUT_NODES", value_name = "HOST:PORT", value_delimiter = ',')]
        nodes: Option<Vec<String>>,
        /// Time after which a silent node counts as dead, in whole seconds [default: 5s]
        #[arg(long, env = "PEANUT_LEASE_TTL", value_name = "DURATION")]
        lease_ttl: Option<Span>,
        /// Service name under which grpc resolvers find this node [default: peanutcache]
        #[arg(long, env = "PEANUT_NAMING_SERVICE", value_name = "NAME")]
        naming_service: Option<String>,
        /// Time for calls in flight to finish when the server is stopped [default: 10s]
        #[arg(long, env = "PEANUT_SHUTDOWN_DEADLINE", value_name = "DURATION")]
        shutdown_deadline: Option<Span>,
        /// Whether the node stays in the ring when it is stopped: keep, or leave [default: keep]
        #[arg(long, env = "PEANUT_ON_SHUTDOWN", value_name = "KEEP|LEAVE")]
        on_shutdown: Option<String>,
        /// Time without a lease after which a member is taken out of the ring [default: 2m]
        #[arg(long, env = "PEANUT_FORGET_AFTER", value_name = "DURATION")]
        forget_after: Option<Span>,
        /// Threads that serve connections; loads have others [default: one for each core]
        #[arg(long, env = "PEANUT_THREADS", value_name = "N")]
        threads: Option<NonZeroUsize>,
        /// Folder for what is kept for a warm restart; without one a restart is cold
        #[arg(long, env = "PEANUT_DATA_DIR", value_name = "FOLDER")]
        data_dir: Option<PathBuf>,
        /// How often what was written is made to outlive the machine [default: 10s]
        #[arg(long, env = "PEANUT_SEAL_INTERVAL", value_name = "DURATION")]
        seal_interval: Option<Span>,
        /// Bytes a second that are read from the folder after a start, at most [default: 256MiB]
        #[arg(long, env = "PEANUT_RESTORE_RATE", value_name = "SIZE")]
        restore_rate: Option<Capacity>,
        /// What to log, in RUST_LOG's syntax; RUST_LOG itself wins over the file only [default: info]
        #[arg(long, env = "PEANUT_LOG", value_name = "FILTER")]
        log: Option<String>,
        #[command(flatten)]
        #[serde(default)]
        etcd: EtcdSettings,
        /// A group as an inline TOML table, or a list of them; replaces those of the file
        #[arg(long, env = "PEANUT_GROUP", value_name = "TOML")]
        #[serde(default)]
        group: Option<Groups>,
    }
}

settings! {
    /// The registry.
    #[derive(Clone, Debug, Default, Deserialize, clap::Args)]
    #[serde(deny_unknown_fields)]
    struct EtcdSettings {
        /// etcd's endpoints; without them the node joins no fleet
        #[arg(long = "etcd-endpoints", env = "PEANUT_ETCD_ENDPOINTS", value_name = "URL", value_delimiter = ',')]
        endpoints: Option<Vec<String>>,
        /// Time that one call to etcd may take [default: 2s]
        #[arg(long = "etcd-timeout", env = "PEANUT_ETCD_TIMEOUT", value_name = "DURATION")]
        timeout: Option<Span>,
    }
}

/// A node of the Peanut cache.
///
/// A flag wins over its variable, that over the file, and the file over the default.
#[derive(Debug, Parser)]
#[command(name = "peanut-server", version)]
struct Flags {
    /// File with settings, in TOML
    #[arg(long, env = "PEANUT_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(flatten)]
    settings: Settings,
}

/// A configuration that a server can be run from.
#[derive(Debug)]
pub(crate) struct Config {
    pub(crate) listen: ListenAddr,
    pub(crate) log: String,
    pub(crate) server: Server,
}

/// What to do in place of running.
#[derive(Debug)]
pub(crate) enum Stop {
    /// Print this and end well: help, or the version.
    Say(String),
    /// The configuration cannot be used.
    Refuse(ConfigError),
}

/// What is wrong with the configuration, in one line that begins with the place.
#[derive(Debug)]
pub(crate) struct ConfigError {
    place: String,
    message: String,
}

impl ConfigError {
    fn new(place: impl Into<String>, message: impl fmt::Display) -> Self {
        let message = message.to_string().trim().replace('\n', "; ");
        ConfigError { place: place.into(), message }
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.place, self.message)
    }
}

impl From<ConfigError> for Stop {
    fn from(error: ConfigError) -> Self {
        Stop::Refuse(error)
    }
}

/// Where settings were read from: a file, or a flag with TOML in it.
#[derive(Clone, Debug)]
pub(crate) struct Source {
    name: String,
    text: Arc<str>,
}

impl Source {
    /// `file:line`.
    fn at(&self, span: Option<Range<usize>>) -> String {
        let Some(span) = span else { return self.name.clone() };
        let line = self.text.bytes().take(span.start).filter(|byte| *byte == b'\n').count() + 1;
        format!("{}:{line}", self.name)
    }

    fn error(&self, span: Option<Range<usize>>, message: impl fmt::Display) -> ConfigError {
        ConfigError::new(self.at(span), message)
    }

    fn read<T: for<'de> Deserialize<'de>>(&self) -> Result<T, ConfigError> {
        toml::from_str(&self.text).map_err(|error| self.error(error.span(), error.message()))
    }
}

impl Config {
    /// Reads the command line, the environment and the file.
    pub(crate) fn read(args: impl IntoIterator<Item = String>) -> Result<Self, Stop> {
        let args: Vec<String> = args.into_iter().collect();
        let flags = Flags::try_parse_from(&args).map_err(|error| refuse_flag(&error, &args))?;
        let mut settings = flags.settings;
        if let Some(groups) = &mut settings.group {
            groups.source = Some(Source { name: "--group".to_owned(), text: groups.text.clone() });
        }
        if settings.log.is_none() {
            settings.log = std::env::var("RUST_LOG").ok().filter(|filter| !filter.is_empty());
        }
        if let Some(path) = &flags.config {
            settings = settings.or(read_file(path)?);
        }
        Ok(Config::new(settings)?)
    }

    fn new(settings: Settings) -> Result<Self, ConfigError> {
        let listen = settings.listen.unwrap_or_default();
        let mut builder = Server::builder();
        for group in settings.group.map(Groups::build).transpose()?.unwrap_or_default() {
            builder = builder.group(group);
        }
        if let Some(endpoints) = settings.etcd.endpoints {
            if settings.nodes.is_some() {
                return Err(ConfigError::new(
                    "nodes",
                    "a fixed list and etcd exclude each other; remove one",
                ));
            }
            builder = join(builder, endpoints, settings.etcd.timeout)?;
        }
        macro_rules! set {
            ($($field:ident),*) => { $(if let Some(value) = settings.$field { builder = builder.$field(value); })* };
        }
        set!(advertise, node_id, fleet, zone, weight, nodes, naming_service, data_dir);
        if let Some(Span(ttl)) = settings.lease_ttl {
            builder = builder.lease_ttl(ttl);
        }
        if let Some(Span(deadline)) = settings.shutdown_deadline {
            builder = builder.shutdown_deadline(deadline);
        }
        if let Some(on_shutdown) = settings.on_shutdown {
            let parsed = on_shutdown.parse().map_err(|why: String| ConfigError::new("on_shutdown", why))?;
            builder = builder.on_shutdown(parsed);
        }
        if let Some(Span(time)) = settings.forget_after {
            builder = builder.forget_after(time);
        }
        if let Some(Span(interval)) = settings.seal_interval {
            builder = builder.seal_interval(interval);
        }
        if let Some(Capacity(bytes)) = settings.restore_rate {
            builder = builder.restore_bytes_per_second(bytes as u64);
        }
        let cores = || std::thread::available_parallelism().map_or(1, NonZeroUsize::get);
        builder = builder.threads(settings.threads.map_or_else(cores, NonZeroUsize::get));
        let server = builder.build().map_err(|error| ConfigError::new("configuration", error))?;
        if server.groups() == 0 {
            let mend =
                "there is no group to serve; add a [[group]] to the file given with --config, or --group";
            return Err(ConfigError::new("configuration", mend));
        }
        server.check_address(listen.0).map_err(|error| ConfigError::new("advertise", error))?;
        Ok(Config { listen, log: settings.log.unwrap_or_else(|| "info".to_owned()), server })
    }
}

#[cfg(feature = "etcd")]
fn join(
    builder: crate::ServerBuilder,
    endpoints: Vec<String>,
    timeout: Option<Span>,
) -> Result<crate::ServerBuilder, ConfigError> {
    use crate::registry::EtcdRegistry;
    let timeout = timeout.map_or(EtcdRegistry::DEFAULT_TIMEOUT, |Span(timeout)| timeout);
    let registry =
        EtcdRegistry::new(endpoints, timeout).map_err(|e| ConfigError::new("etcd.endpoints", e))?;
    Ok(builder.registry(registry))
}

#[cfg(not(feature = "etcd"))]
fn join(
    _: crate::ServerBuilder,
    _: Vec<String>,
    _: Option<Span>,
) -> Result<crate::ServerBuilder, ConfigError> {
    Err(ConfigError::new("etcd.endpoints", "this build knows no etcd (feature `etcd`)"))
}

fn read_file(path: &Path) -> Result<Settings, ConfigError> {
    let name = path.display().to_string();
    let text = std::fs::read_to_string(path).map_err(|error| ConfigError::new(&name, error))?;
    let source = Source { name, text: text.into() };
    let mut settings: Settings = source.read()?;
    if let Some(groups) = &mut settings.group {
        groups.source = Some(source);
    }
    Ok(settings)
}

/// One line for what clap refuses, beginning with the variable where the value came from one.
fn refuse_flag(error: &clap::Error, args: &[String]) -> Stop {
    if matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion) {
        return Stop::Say(error.to_string());
    }
    let rendered = error.to_string();
    let said = rendered.lines().next().unwrap_or_default().trim_start_matches("error: ").to_owned();
    let flag = match error.get(ContextKind::InvalidArg) {
        Some(ContextValue::String(arg)) => arg.split_whitespace().next().unwrap_or_default().to_owned(),
        _ => String::new(),
    };
    let given = args.iter().any(|arg| arg.split('=').next() == Some(&flag));
    let command = <Flags as clap::CommandFactory>::command();
    let variable = command.get_arguments().find(|arg| arg.get_long() == flag.strip_prefix("--"));
    let variable = variable.filter(|_| !given).and_then(|arg| arg.get_env()).and_then(|name| name.to_str());
    let place = variable.unwrap_or(if flag.is_empty() { "flags" } else { &flag }).to_owned();
    Stop::Refuse(ConfigError::new(place, said))
}

#[cfg(test)]
mod tests;
