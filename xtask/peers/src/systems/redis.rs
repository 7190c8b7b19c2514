//! Redis, by each of the two usual clients; [`super::rustis`] has a third.

use std::process::Command;

use fred::clients::Client as FredClient;
use fred::interfaces::{ClientLike as _, KeysInterface as _};
use fred::types::config::{Config, TcpConfig, TlsConfig, TlsConnector};
use peanut_processes::{Process, free_port};
use redis::aio::MultiplexedConnection;
use redis::{AsyncTypedCommands as _, TlsCertificates};

use super::tls::Certificates;
use super::{Caller, installed, start as start_process};

/// Starts a Redis that keeps nothing on disk.
pub(super) async fn start(tls: Option<&Certificates>) -> Result<(Process, String), String> {
    installed("redis-server")?;
    let port = free_port().to_string();
    let mut command = Command::new("redis-server");
    command.args(["--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]);
    match tls {
        None => command.args(["--port", &port]),
        Some(tls) => {
            command.args(["--port", "0", "--tls-port", &port, "--tls-auth-clients", "no"]);
            command.arg("--tls-cert-file").arg(tls.cert()).arg("--tls-key-file").arg(tls.key());
            command.arg("--tls-ca-cert-file").arg(tls.ca())
        }
    };
    let addr = format!("127.0.0.1:{port}");
    Ok((start_process("redis-server", &mut command, &addr).await, addr))
}

fn right<'a>(values: impl IntoIterator<Item = &'a Option<bytes::Bytes>>, value_bytes: usize) -> usize {
    values.into_iter().flatten().filter(|value| value.len() == value_bytes).count()
}

/// One multiplexed connection, as redis-rs recommends.
#[derive(Clone)]
pub(super) struct RedisRs(MultiplexedConnection);

impl RedisRs {
    pub(super) async fn connect(addr: &str, tls: Option<&Certificates>) -> Self {
        let client = match tls {
            None => redis::Client::open(format!("redis://{addr}")),
            Some(tls) => {
                let root_cert = Some(std::fs::read(tls.ca()).expect("the authority's certificate"));
                let tls = TlsCertificates { client_tls: None, root_cert };
                redis::Client::build_with_tls(format!("rediss://{addr}"), tls)
            }
        };
        let connection = client.expect("a URL").get_multiplexed_async_connection().await;
        RedisRs(connection.expect("a connection to Redis"))
    }
}

impl Caller for RedisRs {
    async fn get(&mut self, key: &str) -> Option<usize> {
        let value: Option<bytes::Bytes> = redis::AsyncCommands::get(&mut self.0, key).await.ok()?;
        value.map(|value| value.len())
    }

    async fn get_many(&mut self, keys: &[&str], value_bytes: usize) -> usize {
        let values: Option<Vec<Option<bytes::Bytes>>> =
            redis::AsyncCommands::mget(&mut self.0, keys).await.ok();
        right(values.iter().flatten(), value_bytes)
    }

    async fn set(&mut self, key: &str, value: &str) -> bool {
        redis::AsyncTypedCommands::set(&mut self.0, key, value).await.is_ok()
    }

    async fn set_many(&mut self, keys: &[&str], value: &str) -> bool {
        let pairs: Vec<(&str, &str)> = keys.iter().map(|key| (*key, value)).collect();
        self.0.mset(&pairs).await.is_ok()
    }
}

/// One connection; fred puts commands of many tasks onto it by itself.
#[derive(Clone)]
pub(super) struct Fred(FredClient);

impl Fred {
    pub(super) async fn connect(addr: &str, tls: Option<&Certificates>) -> Self {
        let mut config = Config::from_url(&format!("redis://{addr}")).expect("a URL");
        let connector = |tls: &Certificates| TlsConnector::from((*tls.client_config()).clone());
        config.tls = tls.map(connector).map(TlsConfig::from);
        let client = fred::types::Builder::from_config(config)
            .with_connection_config(|connection| {
                connection.tcp = TcpConfig { nodelay: Some(true), ..TcpConfig::default() };
            })
            .build()
            .expect("a client");
        client.init().await.expect("a connection to Redis");
        Fred(client)
    }
}

impl Caller for Fred {
    async fn get(&mut self, key: &str) -> Option<usize> {
        let value: Option<bytes::Bytes> = self.0.get(key).await.ok()?;
        value.map(|value| value.len())
    }

    async fn get_many(&mut self, keys: &[&str], value_bytes: usize) -> usize {
        let values: Option<Vec<Option<bytes::Bytes>>> = self.0.mget(keys.to_vec()).await.ok();
        right(values.iter().flatten(), value_bytes)
    }

    async fn set(&mut self, key: &str, value: &str) -> bool {
        self.0.set::<(), _, _>(key, value, None, None, false).await.is_ok()
    }

    async fn set_many(&mut self, keys: &[&str], value: &str) -> bool {
        let pairs: Vec<(&str, &str)> = keys.iter().map(|key| (*key, value)).collect();
        self.0.mset(pairs).await.is_ok()
    }
}
