//! The crate groupcache: this process and another are peers, and this one asks for keys of the other.
//!
//! Its hot cache, a copy in the caller's own memory, is off: what is compared is a get over the network.

use std::net::SocketAddr;
use std::process::{Command, ExitCode};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::join_all;
use groupcache::moka::future::Cache;
use groupcache::{Groupcache, ValueLoader};
use peanut_processes::{Process, free_port};
use tonic::transport::Endpoint;

use super::{Caller, Data, start as start_process};

/// The word by which this program is told to be the other peer.
pub(crate) const NODE: &str = "groupcache-node";

/// Loads a value of so many bytes for every key.
struct Loader(usize);

#[async_trait::async_trait]
impl ValueLoader for Loader {
    type Value = Bytes;

    async fn load(&self, _: &str) -> Result<Bytes, Box<dyn std::error::Error + Send + Sync>> {
        Ok(vec![b'v'; self.0].into())
    }
}

/// The other peer: serves until it is killed.
pub(crate) async fn groupcache_node(mut words: impl Iterator<Item = String>) -> ExitCode {
    let Some(Ok(addr)) = words.next().map(|addr| addr.parse::<SocketAddr>()) else {
        return ExitCode::FAILURE;
    };
    let Some(Ok(value_bytes)) = words.next().map(|bytes| bytes.parse()) else { return ExitCode::FAILURE };
    let cache = Groupcache::builder(addr.into(), Loader(value_bytes)).build();
    let served =
        tonic::transport::Server::builder().tcp_nodelay(true).add_service(cache.grpc_service()).serve(addr);
    if served.await.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

#[derive(Clone)]
pub(super) struct Remote {
    cache: Groupcache<Bytes>,
    keys: Arc<[String]>,
}

pub(super) async fn start(data: &Data) -> (Process, Remote) {
    let addr = SocketAddr::from(([127, 0, 0, 1], free_port()));
    let mut command = Command::new(std::env::current_exe().expect("the path of this program"));
    let (keys, value) = &data.small;
    command.args([NODE, &addr.to_string(), &value.len().to_string()]);
    let server = start_process("groupcache", &mut command, &addr.to_string()).await;
    let me = SocketAddr::from(([127, 0, 0, 1], free_port()));
    // A value loaded here is empty, which shows whose a key is.
    let cache = Groupcache::builder(me.into(), Loader(0))
        .hot_cache(Cache::new(0))
        .grpc_endpoint_builder(Box::new(|endpoint: Endpoint| {
            endpoint.tcp_nodelay(true).timeout(Duration::from_secs(60))
        }))
        .build();
    cache.add_peer(addr.into()).await.expect("the other peer");
    let (most, mut keys) = (keys.len(), Vec::new());
    for number in 0.. {
        if keys.len() == most {
            break;
        }
        let key = format!("key-{number}");
        if cache.get(&key).await.is_ok_and(|value| !value.is_empty()) {
            keys.push(key);
        }
    }
    (server, Remote { cache, keys: keys.into() })
}

impl Remote {
    /// Keys that the other peer owns.
    pub(super) fn keys(&self) -> &Arc<[String]> {
        &self.keys
    }
}

impl Caller for Remote {
    async fn get(&mut self, key: &str) -> Option<usize> {
        self.cache.get(key).await.ok().map(|value| value.len())
    }

    /// It has no call for many keys; an application asks for all at once.
    async fn get_many(&mut self, keys: &[&str], value_bytes: usize) -> usize {
        let answers = join_all(keys.iter().map(|key| self.cache.get(key))).await;
        answers.iter().flatten().filter(|value| value.len() == value_bytes).count()
    }

    async fn set(&mut self, _: &str, _: &str) -> bool {
        false
    }

    async fn set_many(&mut self, _: &[&str], _: &str) -> bool {
        false
    }
}
