//! Configuration: a flag over a `PEANUT_*` variable over the file over the default.
//!
//! [`Settings`] is all of them, each said once: the same struct reads the file (serde) and the flags and
//! variables (clap). What is wrong is told in one line that begins with the place.

mod connect;
#[cfg(test)]
mod document;
mod group;
mod log;
mod print;
mod tokens;
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

pub(crate) use connect::Checks;
pub(crate) use group::Groups;
pub(crate) use tokens::{TokenFiles, TokenSettings};
pub(crate) use units::{Capacity, ListenAddr, Span};

use crate::{Error, Server, ServerBuilder};
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
        /// Names by which the admin port may be called, beside localhost, IP addresses, and those in its certificate
        #[arg(long, env = "PEANUT_ADMIN_HOSTS", value_name = "HOST", value_delimiter = ',')]
        admin_hosts: Option<Vec<String>>,
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
        /// Time until a new connection's first call is let in [default: 30s]
        #[arg(long, env = "PEANUT_FIRST_CALL_TIMEOUT", value_name = "DURATION")]
        first_call_timeout: Option<Span>,
        /// Time that a connection may have no stream open [default: 5m]
        #[arg(long, env = "PEANUT_IDLE_TIMEOUT", value_name = "DURATION")]
        idle_timeout: Option<Span>,
        /// Whether the gRPC services are described to callers [default: true]
        #[arg(long, env = "PEANUT_REFLECTION", value_name = "BOOL", num_args = 0..=1, default_missing_value = "true")]
        reflection: Option<bool>,
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
        /// Lists of revoked certificates, one of each authority in `ca`
        #[arg(id = "tls_crl", long = "tls-crl", env = "PEANUT_TLS_CRL", value_name = "FILE")]
        crl: Option<PathBuf>,
    }
}

/// A secret from a file of its own, without the line's end.
#[cfg(feature = "etcd")]
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
    /// With --check-config: try etcd, the groups' origins and the certificates too, and tell each
    #[arg(long, requires = "check_config")]
    connect: bool,
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
    /// Where tokens are read again from.
    pub(crate) tokens: Option<TokenFiles>,
}

/// What to do in place of running.
#[derive(Debug)]
pub(crate) enum Stop {
    /// Print this and end well: help, or the version.
    Say(String),
    /// Try these.
    Connect(Checks),
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
    fn of_file(path: &Path) -> Result<Self, ConfigError> {
        let name = path.display().to_string();
        let text = std::fs::read_to_string(path).map_err(|error| ConfigError::new(&name, error))?;
        Ok(Source { name, text: text.into() })
    }

    /// What it sets as a file.
    fn settings(&self) -> Result<Settings, ConfigError> {
        let mut settings: Settings = self.read()?;
        if let Some(groups) = &mut settings.group {
            groups.source = Some(self.clone());
        }
        Ok(settings)
    }

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
        let (matches, flags) = flags(args)?;
        let file = flags.config.as_deref().map(Source::of_file).transpose()?;
        Config::settle(&matches, flags, file)
    }

    /// What this text as a file comes to, as it is printed.
    #[cfg(feature = "fuzzing")]
    pub(crate) fn print_of(text: &str) -> Result<String, Stop> {
        let (matches, flags) = flags(["peanut-server", "--print-config"].map(str::to_owned))?;
        let file = Source { name: "peanut.toml".to_owned(), text: text.into() };
        match Config::settle(&matches, flags, Some(file)) {
            Err(Stop::Say(printed)) => Ok(printed),
            Err(stop) => Err(stop),
            Ok(_) => unreachable!("it is to be printed"),
        }
    }

    fn settle(matches: &clap::ArgMatches, flags: Flags, file: Option<Source>) -> Result<Self, Stop> {
        let mut settings = flags.settings;
        if let Some(groups) = &mut settings.group {
            groups.source = Some(Source { name: "--group".to_owned(), text: groups.text.clone() });
        }
        if settings.log.is_none() {
            settings.log = std::env::var("RUST_LOG").ok().filter(|filter| !filter.is_empty());
        }
        let of_file = file.as_ref().map(Source::settings).transpose()?;
        let printed = flags.print_config.then(|| print::print(matches, file.as_ref()));
        if let Some(of_file) = of_file {
            settings = settings.or(of_file);
        }
        let (mut config, checks) = Config::new(settings, file.as_ref())?;
        config.tokens = flags.config.as_deref().map(TokenFiles::new);
        match printed {
            Some(text) => Err(Stop::Say(text)),
            None if flags.connect => Err(Stop::Connect(checks)),
            None if flags.check_config => Err(Stop::Say("the configuration is good\n".to_owned())),
            None => Ok(config),
        }
    }

    fn new(settings: Settings, source: Option<&Source>) -> Result<(Self, Checks), ConfigError> {
        let listen = settings.listen.unwrap_or_default();
        let mut builder = Server::builder();
        let mut checks = Checks::default();
        for group in settings.group.map(Groups::build).transpose()?.unwrap_or_default() {
            checks.groups.push(group.clone());
            builder = builder.group(group);
        }
        if let Some(endpoints) = settings.etcd.endpoints.clone() {
            if settings.nodes.is_some() {
                return Err(ConfigError::new(
                    "nodes",
                    "a fixed list and etcd exclude each other; remove one",
                ));
            }
            let insecure = settings.insecure.unwrap_or_default();
            builder = join(builder, endpoints, settings.etcd.clone(), insecure, &mut checks)?;
        }
        macro_rules! set {
            ($($field:ident),*) => { $(if let Some(value) = settings.$field { builder = builder.$field(value); })* };
        }
        set!(advertise, node_id, fleet, zone, weight, nodes, naming_service, data_dir);
        set!(insecure, max_connections, max_connections_per_peer, reflection);
        macro_rules! set_times {
            ($($field:ident),*) => { $(if let Some(Span(time)) = settings.$field { builder = builder.$field(time); })* };
        }
        set_times!(handshake_timeout, first_call_timeout, idle_timeout, keepalive);
        set_times!(lease_ttl, shutdown_deadline, forget_after, seal_interval);
        if let Some(ListenAddr(addr)) = settings.admin {
            builder = admin(builder, addr, settings.admin_tls, settings.admin_hosts)?;
        }
        if let Some((list, source)) = settings.token.zip(source) {
            for token in tokens::build(list, source)? {
                builder = builder.token(token);
            }
        }
        builder = secure(builder, settings.tls, &mut checks)?;
        if let Some(on_shutdown) = settings.on_shutdown {
            let parsed = on_shutdown.parse().map_err(|why: String| ConfigError::new("on_shutdown", why))?;
            builder = builder.on_shutdown(parsed);
        }
        if let Some(Capacity(bytes)) = settings.restore_rate {
            builder = builder.restore_bytes_per_second(bytes as u64);
        }
        let cores = || std::thread::available_parallelism().map_or(1, NonZeroUsize::get);
        builder = builder.threads(settings.threads.map_or_else(cores, NonZeroUsize::get));
        let prefix = peanut_proto::membership::Keys::new(&builder.fleet).prefix().to_owned();
        let server = builder.build().map_err(|error| of_server(&error, "configuration"))?;
        if server.groups() == 0 {
            let mend =
                "there is no group to serve; add a [[group]] to the file given with --config, or --group";
            return Err(ConfigError::new("configuration", mend));
        }
        let (id, addr) = server.known_as(listen.0).map_err(|error| of_server(&error, "advertise"))?;
        server.check_ports(listen.0).map_err(|error| of_server(&error, "listen"))?;
        let host = addr.rsplit_once(':').map_or(addr.as_str(), |(host, _)| host).to_owned();
        (checks.prefix, checks.names) = (prefix, vec![host, id]);
        checks.names.dedup();
        let log = settings.log.unwrap_or_else(|| DEFAULT_LOG.to_owned());
        log::check(&log).map_err(|why| ConfigError::new("log", why))?;
        let log_format = settings.log_format.unwrap_or_default();
        Ok((Config { listen, log, log_format, server, tokens: None }, checks))
    }
}

/// What is wrong with the server, with the setting for a place where it is one setting's.
fn of_server(error: &Error, place: &'static str) -> ConfigError {
    let (setting, message) = error.by_setting();
    ConfigError::new(setting.unwrap_or(place), message)
}

#[cfg(feature = "etcd")]
fn join(
    builder: ServerBuilder,
    endpoints: Vec<String>,
    etcd: EtcdSettings,
    insecure: bool,
    checks: &mut Checks,
) -> Result<ServerBuilder, ConfigError> {
    use crate::registry::EtcdRegistry;
    let timeout = etcd.timeout.map_or(EtcdRegistry::DEFAULT_TIMEOUT, |Span(timeout)| timeout);
    EtcdRegistry::TIMEOUT_BOUNDS.check(timeout).map_err(|why| ConfigError::new("etcd.timeout", why))?;
    let mut registry =
        EtcdRegistry::new(endpoints, timeout).map_err(|e| ConfigError::new("etcd.endpoints", e))?;
    let mut login = None;
    match (etcd.user, etcd.password_file) {
        (None, None) => {}
        (Some(user), Some(file)) => {
            if let Some(open) = registry.open_endpoint().filter(|_| !insecure) {
                let why = format!(
                    "the password would go to {open} for everybody to read; use https://, or set `insecure = true`"
                );
                return Err(ConfigError::new("etcd.password_file", why));
            }
            let password = read_secret(&file)?;
            registry = registry.user(&user, &password);
            if insecure {
                registry = registry.insecure();
            }
            login = Some((user, password));
        }
        _ => return Err(ConfigError::new("etcd.user", "it needs `password_file`, and the other way round")),
    }
    #[cfg(feature = "tls")]
    {
        let files = TlsFiles { ca: etcd.ca, cert: etcd.cert, key: etcd.key, crl: None };
        let is_https = |endpoint: &String| endpoint.starts_with("https://");
        if registry.endpoints().iter().any(is_https) || files != TlsFiles::default() {
            if !registry.endpoints().iter().all(is_https) {
                let why = "with certificates every endpoint begins with https://";
                return Err(ConfigError::new("etcd.endpoints", why));
            }
            files.client(b"h2").map_err(|error| ConfigError::new("etcd", error))?;
            checks.certificates.push(("etcd", files.clone()));
            registry = registry.tls(files);
        }
    }
    for endpoint in registry.endpoints() {
        let alone =
            EtcdRegistry::new([endpoint], timeout).map_err(|e| ConfigError::new("etcd.endpoints", e))?;
        let alone = match &login {
            Some((user, password)) if insecure => alone.user(user, password).insecure(),
            Some((user, password)) => alone.user(user, password),
            None => alone,
        };
        #[cfg(feature = "tls")]
        let alone = match checks.certificates.iter().find(|(section, _)| *section == "etcd") {
            Some((_, files)) => alone.tls(files.clone()),
            None => alone,
        };
        checks.etcd.push(alone);
    }
    Ok(builder.registry(registry))
}

#[cfg(not(feature = "etcd"))]
fn join(
    _: ServerBuilder,
    _: Vec<String>,
    _: EtcdSettings,
    _: bool,
    _: &mut Checks,
) -> Result<ServerBuilder, ConfigError> {
    Err(ConfigError::new("etcd.endpoints", "this build knows no etcd (feature `etcd`)"))
}

#[cfg(feature = "admin")]
fn admin(
    builder: ServerBuilder,
    addr: SocketAddr,
    tls: Option<String>,
    hosts: Option<Vec<String>>,
) -> Result<ServerBuilder, ConfigError> {
    let builder = builder.admin(addr).admin_hosts(hosts.unwrap_or_default());
    let Some(tls) = tls else { return Ok(builder) };
    Ok(builder.admin_tls(tls.parse().map_err(|why: String| ConfigError::new("admin_tls", why))?))
}

#[cfg(not(feature = "admin"))]
fn admin(
    _: ServerBuilder,
    _: SocketAddr,
    _: Option<String>,
    _: Option<Vec<String>>,
) -> Result<ServerBuilder, ConfigError> {
    Err(ConfigError::new("admin", "this build has no admin port (feature `admin`)"))
}

#[cfg(feature = "tls")]
fn secure(
    builder: ServerBuilder,
    tls: TlsSettings,
    checks: &mut Checks,
) -> Result<ServerBuilder, ConfigError> {
    let files = TlsFiles { ca: tls.ca, cert: tls.cert, key: tls.key, crl: tls.crl };
    if files == TlsFiles::default() {
        return Ok(builder);
    }
    checks.certificates.push(("tls", files.clone()));
    Ok(builder.tls(files))
}

#[cfg(not(feature = "tls"))]
fn secure(builder: ServerBuilder, tls: TlsSettings, _: &mut Checks) -> Result<ServerBuilder, ConfigError> {
    if tls.crl.is_some() || tls.ca.is_some() || tls.cert.is_some() || tls.key.is_some() {
        return Err(ConfigError::new("tls", "this build knows no TLS (feature `tls`)"));
    }
    Ok(builder)
}

/// The command line and the environment, as clap has them and as they are meant.
fn flags(args: impl IntoIterator<Item = String>) -> Result<(clap::ArgMatches, Flags), Stop> {
    let args: Vec<String> = args.into_iter().collect();
    let command = <Flags as clap::CommandFactory>::command();
    let matches = command.try_get_matches_from(&args).map_err(|error| refuse_flag(&error, &args))?;
    let flags = <Flags as clap::FromArgMatches>::from_arg_matches(&matches)
        .map_err(|error| refuse_flag(&error, &args))?;
    Ok((matches, flags))
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
