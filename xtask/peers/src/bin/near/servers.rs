//! The servers that are measured, and clients of them.

use std::net::TcpStream;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use peanut_client::{Client, ClientBuilder};
use peanut_processes::{Process, eventually, free_port};
use redis::AsyncConnectionConfig;
use redis::aio::MultiplexedConnection;
use redis::caching::CacheConfig;

/// Starts so many nodes, a fleet that is a fixed list. Gives their addresses too.
pub(crate) async fn peanut(binary: &Path, nodes: usize) -> (Vec<Process>, Vec<String>) {
    peanut_with(binary, nodes, "").await
}

/// As [`peanut`], with more in their configuration.
pub(crate) async fn peanut_with(binary: &Path, nodes: usize, more: &str) -> (Vec<Process>, Vec<String>) {
    let addrs: Vec<String> = (0..nodes).map(|_| format!("127.0.0.1:{}", free_port())).collect();
    let group = |name| {
        format!(
            "[[group]]\nname = \"{name}\"\nttl = \"1d\"\ncapacity = \"1GiB\"\nloader = {{ kind = \"none\" }}\n"
        )
    };
    let file = std::env::temp_dir().join(format!("peanut-near-{}.toml", std::process::id()));
    std::fs::write(&file, group("bench") + &group("hot") + more).expect("the configuration is written");
    let mut servers = Vec::new();
    for addr in &addrs {
        let mut command = Command::new(binary);
        command.arg("--config").arg(&file).args(["--listen", addr, "--nodes", &addrs.join(",")]);
        command.args(["--max-connections-per-peer", "5000"]);
        servers.push(Process::start("peanut-server", &mut command));
    }
    for addr in &addrs {
        eventually("peanut-server to listen", async || TcpStream::connect(addr).ok()).await;
    }
    let _ = std::fs::remove_file(&file);
    (servers, addrs)
}

pub(crate) fn client(addrs: &[String]) -> ClientBuilder {
    Client::builder().nodes(addrs.to_vec()).deadline(Duration::from_secs(20))
}

/// Starts a Redis that keeps nothing on disk.
pub(crate) async fn redis() -> (Process, String) {
    let port = free_port().to_string();
    let mut command = Command::new("redis-server");
    command.args(["--bind", "127.0.0.1", "--port", &port, "--save", "", "--appendonly", "no"]);
    let (server, addr) = (Process::start("redis-server", &mut command), format!("127.0.0.1:{port}"));
    eventually("redis-server to listen", async || TcpStream::connect(&addr).ok()).await;
    (server, addr)
}

/// A connection of redis-rs, with its client-side cache or without.
pub(crate) async fn redis_rs(addr: &str, is_cached: bool) -> MultiplexedConnection {
    let client = redis::Client::open(format!("redis://{addr}/?protocol=resp3")).expect("a URL");
    let config = AsyncConnectionConfig::new();
    let config = if is_cached { config.set_cache_config(CacheConfig::new()) } else { config };
    client.get_multiplexed_async_connection_with_config(&config).await.expect("a connection to Redis")
}

/// The client-side cache of rustis.
pub(crate) async fn rustis(addr: &str) -> std::sync::Arc<rustis::cache::Cache> {
    let client =
        rustis::client::Client::connect(format!("redis://{addr}")).await.expect("a connection to Redis");
    let tracking = rustis::commands::ClientTrackingOptions::default();
    rustis::cache::Cache::new(client, 3600, tracking).await.expect("a cache")
}
