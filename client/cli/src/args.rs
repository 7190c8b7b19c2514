//! The command line.

use std::path::PathBuf;
use std::time::Duration;

use clap::builder::TypedValueParser as _;
use clap::error::ErrorKind;
use clap::{Parser, Subcommand};
use peanut_proto::membership::check_name;

/// The smallest near cache that can be made.
const LEAST_NEAR: u64 = 64 << 10;

/// Look into a Peanut fleet.
///
/// Exit codes: 0 done, 1 not found, 2 failed, with one line on stderr. NO_COLOR is respected.
#[derive(Debug, Parser)]
#[command(name = "peanut", version)]
pub(crate) struct Args {
    /// etcd's endpoints
    #[arg(long, global = true, env = "PEANUT_ETCD_ENDPOINTS", value_name = "URL", value_delimiter = ',')]
    #[arg(default_value = "http://127.0.0.1:2379", visible_alias = "etcd-endpoints")]
    pub(crate) etcd: Vec<String>,
    /// The fleet as a fixed list of addresses, in place of etcd
    #[arg(long, global = true, env = "PEANUT_NODES", value_name = "HOST:PORT", value_delimiter = ',')]
    pub(crate) nodes: Option<Vec<String>>,
    /// Name of the fleet
    #[arg(long, global = true, env = "PEANUT_FLEET", value_name = "NAME", default_value = "default")]
    pub(crate) fleet: String,
    /// How long an operation may take; at most 1s for `stat` and `top`
    #[arg(long, global = true, value_name = "DURATION", default_value = "5s", value_parser = duration)]
    pub(crate) deadline: Duration,
    /// Print JSON
    #[arg(long, global = true)]
    pub(crate) json: bool,
    #[command(flatten, next_help_heading = "Security")]
    pub(crate) security: Security,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// How nodes and etcd are known, and what they are shown.
#[derive(Debug, clap::Args)]
pub(crate) struct Security {
    /// Certificates of the authorities that nodes' must come from; without it there is no TLS
    #[arg(long, global = true, env = "PEANUT_TLS_CA", value_name = "FILE")]
    pub(crate) tls_ca: Option<PathBuf>,
    /// Certificate to show to nodes
    #[arg(long, global = true, env = "PEANUT_TLS_CERT", value_name = "FILE", requires = "tls_key")]
    pub(crate) tls_cert: Option<PathBuf>,
    /// Its key
    #[arg(long, global = true, env = "PEANUT_TLS_KEY", value_name = "FILE", requires = "tls_cert")]
    pub(crate) tls_key: Option<PathBuf>,
    /// Nodes' certificates have their ids as names, rather than their addresses
    #[arg(long, global = true, env = "PEANUT_TLS_BY_ID", requires = "tls_ca")]
    pub(crate) tls_by_id: bool,
    /// File with the secret of a token that the nodes know
    #[arg(long, global = true, env = "PEANUT_TOKEN_FILE", value_name = "FILE")]
    pub(crate) token_file: Option<PathBuf>,
    /// Name to log in to etcd with
    #[arg(
        long,
        global = true,
        env = "PEANUT_ETCD_USER",
        value_name = "NAME",
        requires = "etcd_password_file"
    )]
    pub(crate) etcd_user: Option<String>,
    /// File with the password to log in to etcd with
    #[arg(long, global = true, env = "PEANUT_ETCD_PASSWORD_FILE", value_name = "FILE")]
    pub(crate) etcd_password_file: Option<PathBuf>,
    /// Send the password to an etcd on another machine without TLS too
    #[arg(long, global = true, env = "PEANUT_ETCD_INSECURE")]
    pub(crate) etcd_insecure: bool,
    /// Certificates of the authorities that etcd's must come from
    #[arg(long, global = true, env = "PEANUT_ETCD_CA", value_name = "FILE")]
    pub(crate) etcd_ca: Option<PathBuf>,
    /// Certificate to show to etcd
    #[arg(long, global = true, env = "PEANUT_ETCD_CERT", value_name = "FILE", requires = "etcd_key")]
    pub(crate) etcd_cert: Option<PathBuf>,
    /// Its key
    #[arg(long, global = true, env = "PEANUT_ETCD_KEY", value_name = "FILE", requires = "etcd_cert")]
    pub(crate) etcd_key: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Print the value of a key; exit code 1 where there is none
    Get {
        /// The group
        group: String,
        /// The key
        key: String,
    },
    /// Store a value
    Set {
        /// The group
        group: String,
        /// The key
        key: String,
        /// The value
        value: String,
        /// How long the value stays fresh [default: as the group has it]
        #[arg(long, value_name = "DURATION", value_parser = duration)]
        ttl: Option<Duration>,
    },
    /// Have the fleet forget keys
    Delete {
        /// The group
        group: String,
        /// The keys
        #[arg(required = true)]
        keys: Vec<String>,
    },
    /// Have the fleet forget all keys of a group
    Clear {
        /// The group
        group: String,
    },
    /// Take a node out of the ring while it runs; it hands over what it has, and can be stopped a minute
    /// later
    Drain {
        /// The node's id
        #[arg(env = "PEANUT_NODE_ID")]
        node: String,
        /// How long to wait after that, while its keys are handed over [default: not at all]
        #[arg(long, value_name = "DURATION", value_parser = duration)]
        wait: Option<Duration>,
    },
    /// Take a node that is gone for good out of the ring
    Remove {
        /// The node's id
        node: String,
    },
    /// Read keys from a group and measure: a closed loop, or one of a fixed rate
    Bench(BenchArgs),
    /// Print a line a second of what the fleet does
    Stat {
        /// From one line to the next
        #[arg(long, default_value = "1s", value_name = "DURATION", value_parser = duration)]
        interval: Duration,
        /// Lines to print [default: until it is stopped]
        #[arg(long, value_name = "LINES")]
        count: Option<u64>,
    },
    /// Draw nodes, groups and hot keys on the terminal, anew every second
    Top,
    /// Print the nodes, what they say of themselves, and whether they can be reached
    Nodes,
    /// Ask the nodes whether they serve; exit code 2 where one does not
    Health,
    /// Print the keys that are asked for most
    Hotkeys {
        /// Of this group only
        group: Option<String>,
        /// How many keys to print
        #[arg(long, default_value = "20", value_name = "KEYS")]
        top: usize,
    },
    /// Write a certificate of the fleet's own authority, which is made with the first one
    Certify {
        /// Its name, and that of its files; a node's id where nodes are known by theirs
        name: String,
        /// Host names and IP addresses of a node; none for an application
        hosts: Vec<String>,
        /// Directory for the files; its `ca.key` signs, so keep it from everybody
        #[arg(long, default_value = "certs", value_name = "DIRECTORY")]
        dir: PathBuf,
        /// Days that it is good for
        #[arg(long, default_value = "365", value_name = "DAYS", value_parser = clap::value_parser!(u32).range(1..=3650))]
        days: u32,
    },
    /// Print a script that completes this command in a shell
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
    /// Write the manual pages of this command and of its commands
    Man {
        /// Directory for the files
        dir: PathBuf,
    },
    /// Serve the fleet to programs that speak the Redis protocol, HTTP or plain gRPC, until it is stopped
    Proxy(Box<ProxyArgs>),
    /// Print the members of the ring, or the owner of a key
    Ring {
        /// The group of a key
        #[arg(requires = "key")]
        group: Option<String>,
        /// The key
        key: Option<String>,
    },
}

#[derive(Debug, clap::Args)]
pub(crate) struct BenchArgs {
    /// The group to read from; its keys are read as key-0, key-1 and so on
    pub(crate) group: String,
    /// Callers at once; with --rate, the most that may be waiting
    #[arg(long, default_value = "64", value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub(crate) concurrency: u32,
    /// Keys asked for each second, whether or not earlier ones are answered; latency counts from the time
    /// at which a call was due
    #[arg(long, value_name = "PER_SECOND", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) rate: Option<u32>,
    /// Different keys
    #[arg(long, default_value = "10000", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) keys: u32,
    /// Skew of the choice of keys: exponent of Zipf's law; 0 is even
    #[arg(long, default_value = "0")]
    pub(crate) zipf: f64,
    /// Keys of each get_many; 1 is a plain get
    #[arg(long, default_value = "1", value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub(crate) batch: u32,
    /// How long to measure, after a second of warming up
    #[arg(long, default_value = "10s", value_name = "DURATION", value_parser = duration)]
    pub(crate) duration: Duration,
    /// Sets and gets, as in 1:10; only gets by default
    #[arg(long, value_name = "SETS:GETS", default_value = "0:1", value_parser = ratio)]
    pub(crate) ratio: f64,
    /// Bytes of the values that are set
    #[arg(long, default_value = "100", value_name = "BYTES", value_parser = bytes)]
    pub(crate) value_size: u64,
    /// Size of a near cache, which keeps all keys that are read [default: none]
    #[arg(long, value_name = "BYTES", value_parser = near_bytes)]
    pub(crate) near: Option<u64>,
    /// Lanes to each node [default: two where it is the only one, else one]
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..=256).map(usize::from))]
    pub(crate) lanes: Option<usize>,
    /// One unary call for each get, in place of lanes
    #[arg(long)]
    pub(crate) unary: bool,
}

#[derive(Debug, clap::Args)]
#[command(group(clap::ArgGroup::new("listeners").required(true).multiple(true).args(["redis", "http", "grpc", "page"])))]
pub(crate) struct ProxyArgs {
    /// Where to listen for clients of Redis; a path is that of a Unix socket
    #[arg(long, env = "PEANUT_PROXY_REDIS", value_name = "HOST:PORT or /PATH", value_delimiter = ',')]
    pub(crate) redis: Vec<String>,
    /// Where to listen for HTTP, likewise
    #[arg(long, env = "PEANUT_PROXY_HTTP", value_name = "HOST:PORT or /PATH", value_delimiter = ',')]
    pub(crate) http: Vec<String>,
    /// Where to listen for gRPC, likewise
    #[arg(long, env = "PEANUT_PROXY_GRPC", value_name = "HOST:PORT or /PATH", value_delimiter = ',')]
    pub(crate) grpc: Vec<String>,
    /// Where to listen for browsers of operators, likewise: the page of the fleet
    #[arg(long, env = "PEANUT_PROXY_PAGE", value_name = "HOST:PORT or /PATH", value_delimiter = ',')]
    pub(crate) page: Vec<String>,
    /// Names by which the page may be called, beside localhost, IP addresses, and those in the certificate
    #[arg(long, env = "PEANUT_PROXY_PAGE_HOSTS", value_name = "HOST", value_delimiter = ',')]
    pub(crate) page_hosts: Vec<String>,
    /// TOML file with the tokens of callers, as in the configuration of a node; read again when it changes
    #[arg(long, env = "PEANUT_PROXY_TOKENS", value_name = "FILE")]
    pub(crate) tokens: Option<PathBuf>,
    /// Certificate to show to callers; with it, every port speaks TLS
    #[arg(long, env = "PEANUT_PROXY_CERT", value_name = "FILE", requires = "serve_key")]
    pub(crate) serve_cert: Option<PathBuf>,
    /// Its key
    #[arg(long, env = "PEANUT_PROXY_KEY", value_name = "FILE", requires = "serve_cert")]
    pub(crate) serve_key: Option<PathBuf>,
    /// Certificates of the authorities that callers' must come from [default: callers need none]
    #[arg(long, env = "PEANUT_PROXY_CA", value_name = "FILE", requires = "serve_cert")]
    pub(crate) serve_ca: Option<PathBuf>,
    /// Lists of certificates that those authorities have revoked
    #[arg(long, env = "PEANUT_PROXY_CRL", value_name = "FILE", requires = "serve_ca")]
    pub(crate) serve_crl: Option<PathBuf>,
    /// Listen beyond loopback without TLS too
    #[arg(long, env = "PEANUT_PROXY_INSECURE")]
    pub(crate) insecure: bool,
    /// Connections to each port
    #[arg(long, env = "PEANUT_PROXY_MAX_CONNECTIONS", value_name = "CONNECTIONS", default_value = "10000")]
    #[arg(value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) max_connections: u32,
    /// The group that keys of clients of Redis are of [default: keys are group:key]
    #[arg(long, env = "PEANUT_PROXY_DEFAULT_GROUP", value_name = "GROUP")]
    pub(crate) default_group: Option<String>,
    /// The groups that are databases 1, 2 and so on of clients of Redis
    #[arg(long, env = "PEANUT_PROXY_DATABASES", value_name = "GROUP", value_delimiter = ',')]
    pub(crate) databases: Vec<String>,
    /// OpenTelemetry collector that spans of gets are sent to, over gRPC, like http://localhost:4317
    #[arg(long, env = "PEANUT_PROXY_OTLP_ENDPOINT", value_name = "URL")]
    pub(crate) otlp_endpoint: Option<String>,
    /// Share of gets that are sent, from 0 to 1, where no caller has decided
    #[arg(
        long,
        env = "PEANUT_PROXY_OTLP_SAMPLE",
        value_name = "SHARE",
        default_value = "0.01",
        requires = "otlp_endpoint"
    )]
    pub(crate) otlp_sample: f64,
    /// Size of a near cache of hot keys; 0: none
    #[arg(long, env = "PEANUT_PROXY_NEAR", value_name = "BYTES", default_value = "64MiB", value_parser = bytes)]
    pub(crate) near: u64,
    /// Groups of which it keeps every key that is read, not hot ones alone
    #[arg(long, env = "PEANUT_PROXY_NEAR_GROUPS", value_name = "GROUP", value_delimiter = ',')]
    #[arg(value_parser = group_name)]
    pub(crate) near_groups: Vec<String>,
}

/// What to do in place of running.
pub(crate) enum Stop {
    Say(String),
    Refuse(String),
}

impl Args {
    pub(crate) fn read() -> Result<Self, Stop> {
        Args::try_parse().map_err(|error| match error.kind() {
            ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => Stop::Say(error.to_string()),
            ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
                Stop::Refuse("no command is given; see `peanut --help`".to_owned())
            }
            _ => {
                // The first paragraph in one line; the rest is usage.
                let said = error.to_string();
                let first = said.split("\n\n").next().unwrap_or_default().trim_start_matches("error: ");
                let words: Vec<&str> = first.split_whitespace().collect();
                Stop::Refuse(format!("{}; see `{} --help`", words.join(" "), command_of(&said)))
            }
        })
    }
}

/// The command that a message's usage is of, like `peanut bench`.
fn command_of(said: &str) -> String {
    let usage = said.split("Usage: ").nth(1).unwrap_or("peanut");
    let words = usage.split_whitespace().take_while(|word| word.chars().all(|c| c.is_ascii_lowercase()));
    words.collect::<Vec<_>>().join(" ")
}

/// The part of sets among all.
fn ratio(text: &str) -> Result<f64, String> {
    let parsed = text.split_once(':').and_then(|(sets, gets)| {
        let (sets, gets): (u32, u32) = (sets.parse().ok()?, gets.parse().ok()?);
        Some(f64::from(sets) / (f64::from(sets) + f64::from(gets)))
    });
    parsed.filter(|part| part.is_finite()).ok_or_else(|| "give sets and gets, like 1:10".to_owned())
}

/// Like `5s` or `1m 30s`; a plain number is of seconds.
fn duration(text: &str) -> Result<Duration, String> {
    let seconds = text.parse().ok().and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
    let duration = seconds.or_else(|| humantime::parse_duration(text).ok());
    duration
        .filter(|duration| !duration.is_zero())
        .ok_or_else(|| "give a duration above 0, like 5s or 250ms (a plain number is of seconds)".to_owned())
}

/// Like `64MiB`; a plain number is of bytes.
fn bytes(text: &str) -> Result<u64, String> {
    let size: Result<bytesize::ByteSize, _> = text.parse();
    size.map(|size| size.as_u64())
        .map_err(|_| "give a size, like 64MiB (a plain number is of bytes)".to_owned())
}

fn near_bytes(text: &str) -> Result<u64, String> {
    let enough = |bytes: &u64| *bytes >= LEAST_NEAR;
    bytes(text).and_then(|bytes| Some(bytes).filter(enough).ok_or_else(|| "give 64KiB or more".to_owned()))
}

fn group_name(text: &str) -> Result<String, String> {
    check_name(text).map(|()| text.to_owned()).map_err(|why| format!("a group's name {why}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_and_sizes_have_units_or_are_plain_numbers() {
        let ms = |text: &str| duration(text).map(|it| it.as_millis()).map_err(|_| ());
        assert_eq!((ms("5"), ms("0.5"), ms("1.5s")), (Ok(5000), Ok(500), Ok(1500)));
        assert_eq!(
            (ms("5s"), ms("250ms"), ms("1m 30s"), ms("1h")),
            (Ok(5000), Ok(250), Ok(90_000), Ok(3_600_000))
        );
        for wrong in ["", "0", "0s", "-1", "5 parsecs", "NaN", "1e40", "s"] {
            assert_eq!(ms(wrong), Err(()), "{wrong}");
        }
        assert_eq!((bytes("0"), bytes("67108864"), bytes("64MiB")), (Ok(0), Ok(64 << 20), Ok(64 << 20)));
        assert!(bytes("64 near").is_err() && bytes("-1").is_err() && bytes("").is_err());
        assert_eq!((near_bytes("64KiB"), near_bytes("65535").is_err()), (Ok(65_536), true));
    }

    #[test]
    fn the_command_line_is_well_formed() {
        <Args as clap::CommandFactory>::command().debug_assert();
    }
}
