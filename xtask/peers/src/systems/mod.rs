//! The systems that are measured: each a server process of its own, and a client in this process.

mod groupcache;
mod memcached;
mod peanut;
mod redis;
mod rustis;
mod tls;

use std::fmt;
use std::net::TcpStream;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use clap::ValueEnum;
use peanut_processes::{Process, eventually, resident_bytes};
use serde::{Deserialize, Serialize};
use tokio::task::JoinSet;

use self::tls::Certificates;
use crate::measure::{Sample, Work, measure};

pub(crate) use groupcache::{NODE, groupcache_node};

/// One who calls, again and again: what a task of an application holds.
pub(crate) trait Caller: Send + 'static {
    /// Bytes of the value of a key; `None` where there is none or the call failed.
    fn get(&mut self, key: &str) -> impl Future<Output = Option<usize>> + Send;

    /// How many of the keys have a value of so many bytes.
    fn get_many(&mut self, keys: &[&str], value_bytes: usize) -> impl Future<Output = usize> + Send;

    /// Whether a value was stored.
    fn set(&mut self, key: &str, value: &str) -> impl Future<Output = bool> + Send;

    /// Whether the value was stored under all keys.
    fn set_many(&mut self, keys: &[&str], value: &str) -> impl Future<Output = bool> + Send;
}

/// What is stored in every system.
#[derive(Debug)]
pub(crate) struct Data {
    /// Keys of one value.
    pub(crate) small: (Arc<[String]>, Arc<str>),
    /// Keys of a large value, if any.
    pub(crate) large: (Arc<[String]>, Arc<str>),
}

impl Data {
    const KEYS: usize = 100_000;
    const LARGE_KEYS: usize = 64;
    const LARGE_BYTES: usize = 1 << 20;
    /// What all values together may take.
    const BYTES: usize = 256 << 20;

    pub(crate) fn new(value_bytes: usize, has_large: bool) -> Self {
        let keys = Data::KEYS.min(Data::BYTES / value_bytes);
        let large = if has_large { Data::LARGE_KEYS } else { 0 };
        Data {
            small: ((0..keys).map(|n| format!("key-{n}")).collect(), "v".repeat(value_bytes).into()),
            large: ((0..large).map(|n| format!("large-{n}")).collect(), "v".repeat(Data::LARGE_BYTES).into()),
        }
    }

    /// Nothing: who measures stores what there is to be.
    pub(crate) fn none() -> Self {
        Data { small: (Arc::from([]), "".into()), large: (Arc::from([]), "".into()) }
    }
}

/// Has a system store the data.
async fn store(caller: &mut impl Caller, data: &Data) {
    for ((keys, value), at_once) in [(&data.small, 1000), (&data.large, 4)] {
        for keys in keys.chunks(at_once) {
            let keys: Vec<&str> = keys.iter().map(String::as_str).collect();
            assert!(caller.set_many(&keys, value).await, "the values are stored");
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
    /// Redis by the crate rustis, one multiplexed connection
    Rustis,
    /// memcached by the crate async-memcached, a connection for each task
    Memcached,
    /// The crate groupcache: keys that another process owns, without a hot cache
    Groupcache,
}

impl Name {
    pub(crate) const ALL: [Name; 7] = [
        Name::Peanut,
        Name::PeanutUnary,
        Name::RedisRs,
        Name::Fred,
        Name::Rustis,
        Name::Memcached,
        Name::Groupcache,
    ];

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
    Rustis(rustis::Rustis),
    Memcached(memcached::Memcached),
    Groupcache(groupcache::Remote),
}

impl System {
    /// Starts the server of a system and stores the data there, or tells why it cannot be done.
    pub(crate) async fn start(
        name: Name,
        peanut_server: &Path,
        has_tls: bool,
        data: &Data,
    ) -> Result<Self, String> {
        let tls = if has_tls { Some(Certificates::new()?) } else { None };
        let tls = tls.as_ref();
        let (server, client) = match name {
            Name::Peanut | Name::PeanutUnary => {
                let (server, client) = peanut::start(peanut_server, name == Name::PeanutUnary, tls).await;
                store(&mut client.clone(), data).await;
                (server, Client::Peanut(client))
            }
            Name::RedisRs => {
                let (server, addr) = redis::start(tls).await?;
                let client = redis::RedisRs::connect(&addr, tls).await;
                store(&mut client.clone(), data).await;
                (server, Client::RedisRs(client))
            }
            Name::Fred => {
                let (server, addr) = redis::start(tls).await?;
                let client = redis::Fred::connect(&addr, tls).await;
                store(&mut client.clone(), data).await;
                (server, Client::Fred(client))
            }
            Name::Rustis => {
                let (server, addr) = redis::start(tls).await?;
                let client = rustis::Rustis::connect(&addr, tls).await;
                store(&mut client.clone(), data).await;
                (server, Client::Rustis(client))
            }
            Name::Memcached | Name::Groupcache if has_tls => {
                return Err("its client has no TLS, or is not asked for it here".to_owned());
            }
            Name::Memcached => {
                let (server, client) = memcached::start().await?;
                for caller in &mut client.callers(1).await {
                    store(caller, data).await;
                }
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
        let data = if work == Work::Large { &data.large } else { &data.small };
        let tasks = tasks as usize;
        match &self.client {
            Client::Peanut(client) => measure(vec![client.clone(); tasks], work, data, time, server).await,
            Client::RedisRs(client) => measure(vec![client.clone(); tasks], work, data, time, server).await,
            Client::Fred(client) => measure(vec![client.clone(); tasks], work, data, time, server).await,
            Client::Rustis(client) => measure(vec![client.clone(); tasks], work, data, time, server).await,
            Client::Memcached(client) => measure(client.callers(tasks).await, work, data, time, server).await,
            Client::Groupcache(client) => {
                let data = (client.keys().clone(), data.1.clone());
                measure(vec![client.clone(); tasks], work, &data, time, server).await
            }
        }
    }

    /// Stores so many entries of a key of 16 bytes and a value of 100, and gives the memory that each takes;
    /// `None` where the system has not kept all of them.
    pub(crate) async fn bytes_per_entry(&self, entries: u64) -> Option<f64> {
        match &self.client {
            Client::Peanut(client) => self.fill(vec![client.clone(); FILLERS], entries).await,
            Client::RedisRs(client) => self.fill(vec![client.clone(); FILLERS], entries).await,
            Client::Fred(client) => self.fill(vec![client.clone(); FILLERS], entries).await,
            Client::Rustis(client) => self.fill(vec![client.clone(); FILLERS], entries).await,
            Client::Memcached(client) => self.fill(client.callers(FILLERS).await, entries).await,
            Client::Groupcache(_) => None,
        }
    }

    async fn fill<C: Caller>(&self, callers: Vec<C>, entries: u64) -> Option<f64> {
        const AT_ONCE: u64 = 1000;
        let server = &self.server.id().to_string();
        let before = resident_bytes(server);
        let value: Arc<str> = "v".repeat(100).into();
        let key = |number: u64| format!("{number:016}");
        let mut tasks = JoinSet::new();
        for (caller, first) in callers.into_iter().zip(0..) {
            let (mut caller, value) = (caller, value.clone());
            tasks.spawn(async move {
                let mut is_stored = true;
                for from in (first * AT_ONCE..entries).step_by(FILLERS * AT_ONCE as usize) {
                    let keys: Vec<String> = (from..entries.min(from + AT_ONCE)).map(key).collect();
                    let keys: Vec<&str> = keys.iter().map(String::as_str).collect();
                    is_stored &= caller.set_many(&keys, &value).await;
                }
                (is_stored, caller)
            });
        }
        let (mut is_kept, mut last) = (true, None);
        while let Some(done) = tasks.join_next().await {
            let (is_stored, caller) = done.ok()?;
            is_kept &= is_stored;
            last = Some(caller);
        }
        let after = resident_bytes(server);
        // One in a thousand stands for all: a system may have evicted some.
        let mut caller = last?;
        for number in (0..entries).step_by(1000) {
            is_kept &= caller.get(&key(number)).await == Some(value.len());
        }
        is_kept.then(|| (after - before) as f64 / entries as f64)
    }
}

/// Tasks that fill a system.
const FILLERS: usize = 4;

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
