//! Configuration: a flag over a `PEANUT_*` variable over the file over the default.
//!
//! [`Settings`] is all of them, each said once: the same struct reads the file (serde) and the flags and
//! variables (clap). What is wrong is told in one line that begins with the place.

mod group;
mod print;
mod units;

use std::fmt;
use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::Parser;
use clap::error::{ContextKind, ContextValue, ErrorKind};
use serde::Deserialize;

pub(crate) use group::Groups;
pub(crate) use units::{Capacity, ListenAddr, Span};

use crate::{Server, ServerBuilder, Token};
#[cfg(feature = "tls")]
use peanut_proto::tls::TlsFiles;

/// What is logged by default.
const DEFAULT_LOG: &str = "info";

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
        /// Address for the admin page, metrics and health, over HTTP, like 127.0.0.1:9998 [default: none]
        #[arg(long, env = "PEANUT_ADMIN", value_name = "IP:PORT")]
        admin: Option<ListenAddr>,
        /// How the admin port is protected: mutual, server or off [default: as gRPC is]
        #[arg(long, env = "PEANUT_ADMIN_TLS", value_name = "MUTUAL|SERVER|OFF")]
        admin_tls: Option<String>,
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
        /// Allow addresses other than loopback without TLS
        #[arg(long, env = "PEANUT_INSECURE", value_name = "BOOL", num_args = 0..=1, default_missing_value = "true")]
        insecure: Option<bool>,
        /// Most connections there may be [default: 10000]
        #[arg(long, env = "PEANUT_MAX_CONNECTIONS", value_name = "N")]
        max_connections: Option<usize>,
        /// Most connections from one IP address [default: 1000]
        #[arg(long, env = "PEANUT_MAX_CONNECTIONS_PER_PEER", value_name = "N")]
        max_connections_per_peer: Option<usize>,
        /// Time until a new connection speaks HTTP/2 [default: 5s]
        #[arg(long, env = "PEANUT_HANDSHAKE_TIMEOUT", value_name = "DURATION")]
        handshake_timeout: Option<Span>,
        /// Silence after which a connection is asked whether anybody is there [default: 20s]
        #[arg(long, env = "PEANUT_KEEPALIVE", value_name = "DURATION")]
        keepalive: Option<Span>,
        /// What to log, in RUST_LOG's syntax; RUST_LOG itself wins over the file only [default: info]
        #[arg(long, env = "PEANUT_LOG", value_name = "FILTER")]
        log: Option<String>,
        /// How to log: text, pretty (several lines for each), or json [default: text]
        #[arg(long, env = "PEANUT_LOG_FORMAT", value_name = "FORMAT")]
        log_format: Option<LogFormat>,
        #[command(flatten)]
        #[serde(default)]
        etcd: EtcdSettings,
        #[command(flatten)]
        #[serde(default)]
        tls: TlsSettings,
        /// Who may do what; in the file only
        #[arg(skip)]
        #[serde(default)]
        token: Option<Vec<TokenSettings>>,
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
        /// Name to log in with
        #[arg(long = "etcd-user", env = "PEANUT_ETCD_USER", value_name = "NAME")]
        user: Option<String>,
        /// File with the password to log in with
        #[arg(long = "etcd-password-file", env = "PEANUT_ETCD_PASSWORD_FILE", value_name = "FILE")]
        password_file: Option<PathBuf>,
        /// Certificates of the authorities that etcd's must come from; endpoints begin with https:// then
        #[arg(id = "etcd_ca", long = "etcd-ca", env = "PEANUT_ETCD_CA", value_name = "FILE")]
        ca: Option<PathBuf>,
        /// Certificate to show to etcd
        #[arg(id = "etcd_cert", long = "etcd-cert", env = "PEANUT_ETCD_CERT", value_name = "FILE")]
        cert: Option<PathBuf>,
        /// Its key
        #[arg(id = "etcd_key", long = "etcd-key", env = "PEANUT_ETCD_KEY", value_name = "FILE")]
        key: Option<PathBuf>,
    }
}

settings! {
    /// Certificates.
    #[derive(Clone, Debug, Default, Deserialize, clap::Args)]
    #[serde(deny_unknown_fields)]
    struct TlsSettings {
        /// This node's certificate, in PEM, and those up to its authority
        #[arg(id = "tls_cert", long = "tls-cert", env = "PEANUT_TLS_CERT", value_name = "FILE")]
        cert: Option<PathBuf>,
        /// Its key
        #[arg(id = "tls_key", long = "tls-key", env = "PEANUT_TLS_KEY", value_name = "FILE")]
        key: Option<PathBuf>,
        /// Certificates of the authorities that clients' must come from; without it clients need none
        #[arg(id = "tls_ca", long = "tls-ca", env = "PEANUT_TLS_CA", value_name = "FILE")]
        ca: Option<PathBuf>,
    }
}

/// One token.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct TokenSettings {
    name: String,
    /// Each with one secret in it.
    secret_files: Vec<PathBuf>,
    #[serde(default)]
    read: Vec<String>,
    #[serde(default)]
    write: Vec<String>,
    #[serde(default)]
    admin: bool,
}

impl TokenSettings {
    fn build(self) -> Result<Token, ConfigError> {
        let token = Token::new(&self.name).read(self.read).write(self.write);
        let mut token = if self.admin { token.admin() } else { token };
        for file in &self.secret_files {
            token = token.secret(read_secret(file)?);
        }
        Ok(token)
    }
}

/// A secret from a file of its own, without the line's end.
fn read_secret(file: &Path) -> Result<String, ConfigError> {
    let text = std::fs::read_to_string(file);
    let text = text.map_err(|error| ConfigError::new(file.display().to_string(), error))?;
    Ok(text.trim_end().to_owned())
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
    /// Check the configuration, files and certificates included, and end
    #[arg(long)]
    check_config: bool,
    /// Print what every setting comes to, and where from, and end
    #[arg(long)]
    print_config: bool,
    #[command(flatten)]
    settings: Settings,
}

/// How log lines look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub(crate) enum LogFormat {
    #[default]
    Text,
    Pretty,
    Json,
}

/// A configuration that a server can be run from.
#[derive(Debug)]
pub(crate) struct Config {
    pub(crate) listen: ListenAddr,
    pub(crate) log: String,
    pub(crate) log_format: LogFormat,
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
        let command = <Flags as clap::CommandFactory>::command();
        let matches = command.try_get_matches_from(&args).map_err(|error| refuse_flag(&error, &args))?;
        let flags = <Flags as clap::FromArgMatches>::from_arg_matches(&matches)
            .map_err(|error| refuse_flag(&error, &args))?;
        let mut settings = flags.settings;
        if let Some(groups) = &mut settings.group {
            groups.source = Some(Source { name: "--group".to_owned(), text: groups.text.clone() });
        }
        if settings.log.is_none() {
            settings.log = std::env::var("RUST_LOG").ok().filter(|filter| !filter.is_empty());
        }
        let file = flags.config.as_deref().map(read_file).transpose()?;
        let printed = flags.print_config.then(|| print::print(&matches, file.as_ref()));
        if let Some((file, _)) = file {
            settings = settings.or(file);
        }
        let config = Config::new(settings)?;
        match printed {
            Some(text) => Err(Stop::Say(text)),
            None if flags.check_config => Err(Stop::Say("the configuration is good\n".to_owned())),
            None => Ok(config),
        }
    }

    fn new(settings: Settings) -> Result<Self, ConfigError> {
        let listen = settings.listen.unwrap_or_default();
        let mut builder = Server::builder();
        for group in settings.group.map(Groups::build).transpose()?.unwrap_or_default() {
            builder = builder.group(group);
        }
        if let Some(endpoints) = settings.etcd.endpoints.clone() {
            if settings.nodes.is_some() {
                return Err(ConfigError::new(
                    "nodes",
                    "a fixed list and etcd exclude each other; remove one",
                ));
            }
            builder = join(builder, endpoints, settings.etcd.clone())?;
        }
        macro_rules! set {
            ($($field:ident),*) => { $(if let Some(value) = settings.$field { builder = builder.$field(value); })* };
        }
        set!(advertise, node_id, fleet, zone, weight, nodes, naming_service, data_dir);
        set!(insecure, max_connections, max_connections_per_peer);
        if let Some(Span(timeout)) = settings.handshake_timeout {
            builder = builder.handshake_timeout(timeout);
        }
        if let Some(ListenAddr(addr)) = settings.admin {
            builder = admin(builder, addr, settings.admin_tls)?;
        }
        if let Some(Span(interval)) = settings.keepalive {
            builder = builder.keepalive(interval);
        }
        for token in settings.token.unwrap_or_default() {
            builder = builder.token(token.build()?);
        }
        builder = secure(builder, settings.tls)?;
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
        server.check_ports(listen.0).map_err(|error| ConfigError::new("listen", error))?;
        let log = settings.log.unwrap_or_else(|| DEFAULT_LOG.to_owned());
        tracing_subscriber::EnvFilter::try_new(&log)
            .map_err(|error| ConfigError::new("log", format!("`{log}`: {error}")))?;
        Ok(Config { listen, log, log_format: settings.log_format.unwrap_or_default(), server })
    }
}

#[cfg(feature = "etcd")]
fn join(
    builder: ServerBuilder,
    endpoints: Vec<String>,
    etcd: EtcdSettings,
) -> Result<ServerBuilder, ConfigError> {
    use crate::registry::EtcdRegistry;
    let timeout = etcd.timeout.map_or(EtcdRegistry::DEFAULT_TIMEOUT, |Span(timeout)| timeout);
    let mut registry =
        EtcdRegistry::new(endpoints, timeout).map_err(|e| ConfigError::new("etcd.endpoints", e))?;
    match (etcd.user, etcd.password_file) {
        (None, None) => {}
        (Some(user), Some(file)) => registry = registry.user(user, read_secret(&file)?),
        _ => return Err(ConfigError::new("etcd.user", "it needs `password_file`, and the other way round")),
    }
    #[cfg(feature = "tls")]
    {
        let files = TlsFiles { ca: etcd.ca, cert: etcd.cert, key: etcd.key };
        let is_https = |endpoint: &String| endpoint.starts_with("https://");
        if registry.endpoints().iter().any(is_https) || files != TlsFiles::default() {
            if !registry.endpoints().iter().all(is_https) {
                let why = "with certificates every endpoint begins with https://";
                return Err(ConfigError::new("etcd.endpoints", why));
            }
            files.client(b"h2").map_err(|error| ConfigError::new("etcd", error))?;
            registry = registry.tls(files);
        }
    }
    Ok(builder.registry(registry))
}

#[cfg(not(feature = "etcd"))]
fn join(_: ServerBuilder, _: Vec<String>, _: EtcdSettings) -> Result<ServerBuilder, ConfigError> {
    Err(ConfigError::new("etcd.endpoints", "this build knows no etcd (feature `etcd`)"))
}

#[cfg(feature = "admin")]
fn admin(
    builder: ServerBuilder,
    addr: SocketAddr,
    tls: Option<String>,
) -> Result<ServerBuilder, ConfigError> {
    let builder = builder.admin(addr);
    let Some(tls) = tls else { return Ok(builder) };
    Ok(builder.admin_tls(tls.parse().map_err(|why: String| ConfigError::new("admin_tls", why))?))
}

#[cfg(not(feature = "admin"))]
fn admin(_: ServerBuilder, _: SocketAddr, _: Option<String>) -> Result<ServerBuilder, ConfigError> {
    Err(ConfigError::new("admin", "this build has no admin port (feature `admin`)"))
}

#[cfg(feature = "tls")]
fn secure(builder: ServerBuilder, tls: TlsSettings) -> Result<ServerBuilder, ConfigError> {
    let files = TlsFiles { ca: tls.ca, cert: tls.cert, key: tls.key };
    Ok(if files == TlsFiles::default() { builder } else { builder.tls(files) })
}

#[cfg(not(feature = "tls"))]
fn secure(builder: ServerBuilder, tls: TlsSettings) -> Result<ServerBuilder, ConfigError> {
    if tls.ca.is_some() || tls.cert.is_some() || tls.key.is_some() {
        return Err(ConfigError::new("tls", "this build knows no TLS (feature `tls`)"));
    }
    Ok(builder)
}

/// The settings of a file, and the file.
fn read_file(path: &Path) -> Result<(Settings, Source), ConfigError> {
    let name = path.display().to_string();
    let text = std::fs::read_to_string(path).map_err(|error| ConfigError::new(&name, error))?;
    let source = Source { name, text: text.into() };
    let mut settings: Settings = source.read()?;
    if let Some(groups) = &mut settings.group {
        groups.source = Some(source.clone());
    }
    Ok((settings, source))
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
