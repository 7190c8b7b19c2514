//! Every setting of a node, each said once.

use std::num::NonZeroUsize;
use std::path::PathBuf;

use serde::Deserialize;

use super::LogFormat;
use super::group::Groups;
use super::units::{Capacity, ListenAddr, Span};
use peanut_edge::rights::file::TokenSettings;

macro_rules! settings {
    ($(#[$meta:meta])* struct $name:ident { $($(#[$field_meta:meta])* $field:ident: $type:ty,)* }) => {
        $(#[$meta])*
        pub(crate) struct $name { $($(#[$field_meta])* pub(crate) $field: $type,)* }

        impl $name {
            /// These settings where they are given, else the others.
            pub(super) fn or(self, other: Self) -> Self {
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
        /// Names by which the admin port may be called, beside localhost, IP addresses, and those in its
        /// certificate
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
        /// Directory for what is kept for a warm restart; without one a restart is cold
        #[arg(long, env = "PEANUT_DATA_DIR", value_name = "DIRECTORY")]
        data_dir: Option<PathBuf>,
        /// How often data in `data_dir` is synced to disk (fsync), so that it survives a crash of the machine
        /// [default: 10s]
        #[arg(long, env = "PEANUT_SEAL_INTERVAL", value_name = "DURATION")]
        seal_interval: Option<Span>,
        /// Bytes a second that are read from the directory after a start, at most [default: 256MiB]
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
        #[command(flatten)]
        #[serde(default)]
        otlp: OtlpSettings,
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

settings! {
    /// Where spans go.
    #[derive(Clone, Debug, Default, Deserialize, clap::Args)]
    #[serde(deny_unknown_fields)]
    struct OtlpSettings {
        /// OpenTelemetry collector that spans of loads are sent to, over gRPC, like http://localhost:4317
        #[arg(id = "otlp_endpoint", long = "otlp-endpoint", env = "PEANUT_OTLP_ENDPOINT", value_name = "URL")]
        endpoint: Option<String>,
        /// Share of loads that are sent, from 0 to 1, where no caller has decided [default: 0.01]
        #[arg(id = "otlp_sample", long = "otlp-sample", env = "PEANUT_OTLP_SAMPLE", value_name = "SHARE")]
        sample: Option<f64>,
    }
}
