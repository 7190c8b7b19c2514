//! Configuration: a flag over a `PEANUT_*` variable over the file over the default.
//!
//! [`Settings`] is all of them, each said once: the same struct reads the file (serde) and the flags and
//! variables (clap). What is wrong is told in one line that begins with the place.

mod connect;
#[cfg(test)]
mod document;
mod generate;
mod group;
mod log;
mod print;
mod settings;
mod units;

use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::path::PathBuf;

use clap::Parser;
use clap::error::{ContextKind, ContextValue, ErrorKind};
use serde::Deserialize;

pub(crate) use connect::Checks;
use generate::Generate;
pub(crate) use group::Groups;
use settings::{EtcdSettings, OtlpSettings, Settings, TlsSettings};
pub(crate) use units::{Capacity, ListenAddr, Span};

use crate::{Error, Server, ServerBuilder};
use peanut_edge::rights::file::{self as tokens, TokenFiles};
use peanut_edge::settings::{ConfigError, Source};
use peanut_edge::traces;
use peanut_proto::tls::TlsFiles;

/// What is logged by default.
const DEFAULT_LOG: &str = "info";

/// A secret from a file of its own, without the line's end.
#[cfg(feature = "etcd")]
fn read_secret(file: &std::path::Path) -> Result<String, ConfigError> {
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
    /// Print the manual page, or a script that completes this command in a shell, and end
    #[arg(long, value_name = "WHAT")]
    generate: Option<Generate>,
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
    /// Where spans go, and the name of the node there.
    pub(crate) otlp: Option<(traces::Settings, String)>,
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

impl From<ConfigError> for Stop {
    fn from(error: ConfigError) -> Self {
        Stop::Refuse(error)
    }
}

/// What a source sets as a file.
fn settings_of(source: &Source) -> Result<Settings, ConfigError> {
    let mut settings: Settings = source.read()?;
    if let Some(groups) = &mut settings.group {
        groups.source = Some(source.clone());
    }
    Ok(settings)
}

impl Config {
    /// Reads the command line, the environment and the file.
    pub(crate) fn read(args: impl IntoIterator<Item = String>) -> Result<Self, Stop> {
        let (matches, flags) = flags(args)?;
        if let Some(what) = flags.generate {
            return Err(Stop::Say(what.text()));
        }
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
        let of_file = file.as_ref().map(settings_of).transpose()?;
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
            builder = builder.restore_rate(bytes as u64);
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
        let otlp = spans(settings.otlp)?.map(|spans| (spans, id.clone()));
        (checks.prefix, checks.names) = (prefix, names(&addr, id));
        let log = settings.log.unwrap_or_else(|| DEFAULT_LOG.to_owned());
        log::check(&log).map_err(|why| ConfigError::new("log", why))?;
        let log_format = settings.log_format.unwrap_or_default();
        Ok((Config { listen, log, log_format, otlp, server, tokens: None }, checks))
    }
}

/// The names that the node's certificate may have to have: the host at which it is reached, and its id.
fn names(addr: &str, id: String) -> Vec<String> {
    let host = addr.rsplit_once(':').map_or(addr, |(host, _)| host).to_owned();
    let mut names = vec![host, id];
    names.dedup();
    names
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
    for endpoint in registry.endpoints() {
        let alone =
            EtcdRegistry::new([endpoint], timeout).map_err(|e| ConfigError::new("etcd.endpoints", e))?;
        let alone = match &login {
            Some((user, password)) if insecure => alone.user(user, password).insecure(),
            Some((user, password)) => alone.user(user, password),
            None => alone,
        };
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

fn spans(otlp: OtlpSettings) -> Result<Option<traces::Settings>, ConfigError> {
    let Some(endpoint) = otlp.endpoint else {
        let why = "it needs `endpoint`";
        return if otlp.sample.is_some() { Err(ConfigError::new("otlp.sample", why)) } else { Ok(None) };
    };
    let sample = otlp.sample.unwrap_or(traces::Settings::DEFAULT_SAMPLE);
    let settings = traces::Settings { endpoint, sample };
    settings.check().map_err(|error| ConfigError::new(format!("otlp.{}", error.setting), error))?;
    Ok(Some(settings))
}

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
    // The first paragraph, in which possible values and missing flags have lines of their own; then comes the
    // usage.
    let said = rendered.split("\n\n").next().unwrap_or_default().trim_start_matches("error: ");
    let said = said.split_whitespace().collect::<Vec<_>>().join(" ");
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
