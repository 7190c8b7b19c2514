//! Redis, by each of the two usual clients.

use std::process::Command;

use fred::clients::Client as FredClient;
use fred::interfaces::{ClientLike as _, KeysInterface as _};
use fred::types::config::{Config, TcpConfig};
use peanut_tests::{Process, free_port};
use redis::AsyncTypedCommands as _;
use redis::aio::MultiplexedConnection;

use super::{Caller, Data, installed, start as start_process};

/// Starts a Redis that keeps nothing on disk.
pub(super) async fn start() -> Result<(Process, String), String> {
    installed("redis-server")?;
    let port = free_port();
    let mut command = Command::new("redis-server");
    command.args(["--port", &port.to_string(), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]);
    let addr = format!("127.0.0.1:{port}");
    Ok((start_process("redis-server", &mut command, &addr).await, addr))
}

fn right<'a>(values: impl IntoIterator<Item = &'a Option<bytes::Bytes>>) -> usize {
    values.into_iter().flatten().filter(|value| value.len() == Data::VALUE_BYTES).count()
}

/// One multiplexed connection, as redis-rs recommends.
#[derive(Clone)]
pub(super) struct RedisRs(MultiplexedConnection);

impl RedisRs {
    pub(super) async fn connect(addr: &str, data: &Data) -> Self {
        let client = redis::Client::open(format!("redis://{addr}")).expect("a URL");
        let mut connection = client.get_multiplexed_async_connection().await.expect("a connection to Redis");
        for keys in data.keys.chunks(1000) {
            let pairs: Vec<_> = keys.iter().map(|key| (key, &*data.value)).collect();
            connection.mset(&pairs).await.expect("the values are stored");
        }
        RedisRs(connection)
    }
}

impl Caller for RedisRs {
    async fn get(&mut self, key: &str) -> Option<usize> {
        let value: Option<bytes::Bytes> = redis::AsyncCommands::get(&mut self.0, key).await.ok()?;
        value.map(|value| value.len())
    }

    async fn get_many(&mut self, keys: &[&str]) -> usize {
        let values: Option<Vec<Option<bytes::Bytes>>> =
            redis::AsyncCommands::mget(&mut self.0, keys).await.ok();
        right(values.iter().flatten())
    }

    async fn set(&mut self, key: &str, value: &str) -> bool {
        redis::AsyncTypedCommands::set(&mut self.0, key, value).await.is_ok()
    }
}

/// One connection; fred puts commands of many tasks onto it by itself.
#[derive(Clone)]
pub(super) struct Fred(FredClient);

impl Fred {
    pub(super) async fn connect(addr: &str, data: &Data) -> Self {
        let config = Config::from_url(&format!("redis://{addr}")).expect("a URL");
        let client = fred::types::Builder::from_config(config)
            .with_connection_config(|connection| {
                connection.tcp = TcpConfig { nodelay: Some(true), ..TcpConfig::default() };
            })
            .build()
            .expect("a client");
        client.init().await.expect("a connection to Redis");
        for keys in data.keys.chunks(1000) {
            let pairs: Vec<_> = keys.iter().map(|key| (key.as_str(), &*data.value)).collect();
            let () = client.mset(pairs).await.expect("the values are stored");
        }
        Fred(client)
    }
}

impl Caller for Fred {
    async fn get(&mut self, key: &str) -> Option<usize> {
        let value: Option<bytes::Bytes> = self.0.get(key).await.ok()?;
        value.map(|value| value.len())
    }

    async fn get_many(&mut self, keys: &[&str]) -> usize {
        let values: Option<Vec<Option<bytes::Bytes>>> = self.0.mget(keys.to_vec()).await.ok();
        right(values.iter().flatten())
    }

    async fn set(&mut self, key: &str, value: &str) -> bool {
        self.0.set::<(), _, _>(key, value, None, None, false).await.is_ok()
    }
}
