//! The systems that are measured: each a server process of its own, and a client in this process.

mod groupcache;
mod memcached;
mod peanut;
mod redis;

use std::fmt;
use std::net::TcpStream;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use clap::ValueEnum;
use peanut_tests::{Process, eventually};
use serde::{Deserialize, Serialize};

use crate::measure::{Sample, Work, measure};

pub(crate) use groupcache::{NODE, groupcache_node};

/// One who calls, again and again: what a task of an application holds.
pub(crate) trait Caller: Send + 'static {
    /// Bytes of the value of a key; `None` where there is none or the call failed.
    fn get(&mut self, key: &str) -> impl Future<Output = Option<usize>> + Send;

    /// How many of the keys have a value of [`Data::VALUE_BYTES`].
    fn get_many(&mut self, keys: &[&str]) -> impl Future<Output = usize> + Send;

    /// Whether a value was stored.
    fn set(&mut self, key: &str, value: &str) -> impl Future<Output = bool> + Send;
}

/// What is stored in every system.
#[derive(Debug)]
pub(crate) struct Data {
    pub(crate) keys: Arc<[String]>,
    pub(crate) value: Arc<str>,
}

impl Data {
    const KEYS: usize = 100_000;
    pub(crate) const VALUE_BYTES: usize = 100;

    pub(crate) fn new() -> Self {
        Data {
            keys: (0..Data::KEYS).map(|n| format!("key-{n}")).collect(),
            value: "v".repeat(Data::VALUE_BYTES).into(),
        }
    }
}

/// Systems by the names that the report has for them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Name {
    /// Peanut, over lanes
    Peanut,
    /// Peanut, one unary call for each get
    PeanutUnary,
    /// Redis by the crate redis, one multiplexed connection
    RedisRs,
    /// Redis by the crate fred, one connection
    Fred,
    /// memcached by the crate async-memcached, a connection for each task
    Memcached,
    /// The crate groupcache: keys that another process owns, without a hot cache
    Groupcache,
}

impl Name {
    pub(crate) const ALL: [Name; 6] =
        [Name::Peanut, Name::PeanutUnary, Name::RedisRs, Name::Fred, Name::Memcached, Name::Groupcache];

    /// Whether values can be set; the crate groupcache has none that it has not loaded.
    pub(crate) fn stores(self) -> bool {
        self != Name::Groupcache
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.to_possible_value().expect("no name is hidden").get_name())
    }
}

/// A system that runs and has the data.
pub(crate) struct System {
    name: Name,
    server: Process,
    client: Client,
}

enum Client {
    Peanut(peanut::Peanut),
    RedisRs(redis::RedisRs),
    Fred(redis::Fred),
    Memcached(memcached::Memcached),
    Groupcache(groupcache::Remote),
}

impl System {
    /// Starts the server of a system and stores the data there, or tells why it cannot be done.
    pub(crate) async fn start(name: Name, peanut_server: &Path, data: &Data) -> Result<Self, String> {
        let (server, client) = match name {
            Name::Peanut | Name::PeanutUnary => {
                let unary = name == Name::PeanutUnary;
                let (server, client) = peanut::start(peanut_server, unary, data).await;
                (server, Client::Peanut(client))
            }
            Name::RedisRs => {
                let (server, addr) = redis::start().await?;
                (server, Client::RedisRs(redis::RedisRs::connect(&addr, data).await))
            }
            Name::Fred => {
                let (server, addr) = redis::start().await?;
                (server, Client::Fred(redis::Fred::connect(&addr, data).await))
            }
            Name::Memcached => {
                let (server, client) = memcached::start(data).await?;
                (server, Client::Memcached(client))
            }
            Name::Groupcache => {
                let (server, client) = groupcache::start(data).await;
                (server, Client::Groupcache(client))
            }
        };
        Ok(System { name, server, client })
    }

    pub(crate) fn name(&self) -> Name {
        self.name
    }

    pub(crate) async fn measure(&self, work: Work, tasks: u32, time: Duration, data: &Data) -> Sample {
        let server = &self.server.id().to_string();
        let keys = (&data.keys, &data.value);
        let tasks = tasks as usize;
        match &self.client {
            Client::Peanut(client) => measure(vec![client.clone(); tasks], work, keys, time, server).await,
            Client::RedisRs(client) => measure(vec![client.clone(); tasks], work, keys, time, server).await,
            Client::Fred(client) => measure(vec![client.clone(); tasks], work, keys, time, server).await,
            Client::Memcached(client) => measure(client.callers(tasks).await, work, keys, time, server).await,
            Client::Groupcache(client) => {
                let keys = (client.keys(), &data.value);
                measure(vec![client.clone(); tasks], work, keys, time, server).await
            }
        }
    }
}

/// Starts a server that listens at `addr`, and waits until it does.
async fn start(name: &str, command: &mut Command, addr: &str) -> Process {
    let server = Process::start(name, command);
    eventually(&format!("{name} to listen"), async || TcpStream::connect(addr).ok()).await;
    server
}

/// Refuses where a program is not there.
fn installed(program: &str) -> Result<(), String> {
    let quiet = Command::new(program).arg("--version").output();
    quiet.map(drop).map_err(|_| format!("{program} is not installed (`--install` does it)"))
}
