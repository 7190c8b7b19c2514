//! How many reads are stale: one process writes a key again and again, and puts down which version was
//! acknowledged last; another reads the key by its near copies, and counts the reads that show less than what
//! was put down before they began.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use clap::ValueEnum;
use peanut_client::{Group, NearCache, NearKeys};
use peanut_processes::now;
use redis::AsyncCommands as _;
use redis::aio::MultiplexedConnection;
use serde::{Deserialize, Serialize};
use tokio::task::yield_now;

use super::servers;

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum System {
    Peanut,
    PeanutBounded,
    RedisRs,
    Rustis,
    Moka,
}

impl System {
    pub(crate) const ALL: [System; 5] =
        [System::Peanut, System::PeanutBounded, System::RedisRs, System::Rustis, System::Moka];

    fn name(self) -> &'static str {
        match self {
            System::Peanut => "Peanut, near copies",
            System::PeanutBounded => "Peanut, `max_staleness` of 1 s",
            System::RedisRs => "redis-rs, client-side cache",
            System::Rustis => "rustis, client-side cache",
            System::Moka => "moka with a TTL of 1 s, before Redis",
        }
    }
}

/// The version that was acknowledged last, in a file that both processes have.
struct Acknowledged(File);

impl Acknowledged {
    fn set(&self, version: u64) {
        self.0.write_all_at(&version.to_ne_bytes(), 0).expect("it is written");
    }

    fn get(&self) -> u64 {
        let mut bytes = [0; 8];
        self.0.read_exact_at(&mut bytes, 0).expect("it is read");
        u64::from_ne_bytes(bytes)
    }
}

/// Says that the writer has ended.
const ENDED: u64 = u64::MAX;

#[derive(Debug, Default, Deserialize, Serialize)]
struct Reads {
    reads: u64,
    stale: u64,
    absent: u64,
    longest_ms: f64,
}

enum Writer {
    Peanut(Group),
    Redis(MultiplexedConnection),
}

pub(crate) async fn run(binary: &Path, writes: u64, systems: &[System]) {
    println!(
        "| | writes | writes/s | reads/s | stale reads | of a million | longest |\n|---|--:|--:|--:|--:|--:|--:|"
    );
    for system in systems {
        let (nodes, addrs) = servers::peanut(binary, 1).await;
        let (redis, redis_addr) = servers::redis().await;
        let directory = if Path::new("/dev/shm").is_dir() { "/dev/shm".into() } else { std::env::temp_dir() };
        let path = directory.join(format!("peanut-stale-{}", std::process::id()));
        let acknowledged = Acknowledged(File::create(&path).expect("a file"));
        acknowledged.set(0);
        let is_peanut = matches!(system, System::Peanut | System::PeanutBounded);
        let (addr, mut writer) = if is_peanut {
            let client = servers::client(&addrs).build().await.expect("a client");
            (addrs[0].clone(), Writer::Peanut(client.group("bench")))
        } else {
            (redis_addr.clone(), Writer::Redis(servers::redis_rs(&redis_addr, false).await))
        };
        write(&mut writer, 0).await;
        let name = system.to_possible_value().expect("it has a name").get_name().to_owned();
        let mut reader = Command::new(std::env::current_exe().expect("this program"));
        reader
            .arg("--peanut-server")
            .arg(binary)
            .args(["reader", "--system", &name, "--addr", &addr, "--file"]);
        let reader = reader.arg(&path).stdout(std::process::Stdio::piped()).spawn().expect("a reader");
        tokio::time::sleep(Duration::from_millis(500)).await;
        let begun = now();
        for version in 1..=writes {
            write(&mut writer, version).await;
            acknowledged.set(version);
        }
        let took = begun.elapsed().as_secs_f64();
        acknowledged.set(ENDED);
        let output = reader.wait_with_output().expect("what it has read");
        let read: Reads = serde_json::from_slice(&output.stdout).expect("counts");
        println!(
            "| {} | {writes} | {:.0} | {:.0} | {} | {:.1} | {:.2} ms |",
            system.name(),
            writes as f64 / took,
            read.reads as f64 / took,
            read.stale,
            read.stale as f64 * 1e6 / read.reads as f64,
            read.longest_ms
        );
        let _ = std::fs::remove_file(&path);
        drop((nodes, redis));
    }
}

async fn write(writer: &mut Writer, version: u64) {
    match writer {
        Writer::Peanut(group) => group.set("k", version.to_string()).await.expect("it is set"),
        Writer::Redis(connection) => {
            let _: () = connection.set("k", version).await.expect("it is set");
        }
    }
}

enum Reader {
    Peanut(Group),
    RedisRs(MultiplexedConnection),
    Rustis(Arc<rustis::cache::Cache>),
    Moka(moka::sync::Cache<&'static str, u64>, MultiplexedConnection),
}

impl Reader {
    async fn new(system: System, addr: &str) -> Self {
        match system {
            System::Peanut | System::PeanutBounded => {
                let near = NearCache::bytes(1 << 20).keys(NearKeys::All);
                let is_bounded = system == System::PeanutBounded;
                let near = if is_bounded { near.max_staleness(Duration::from_secs(1)) } else { near };
                let client = servers::client(&[addr.to_owned()]).near_cache(near).build().await;
                Reader::Peanut(client.expect("a client").group("bench"))
            }
            System::RedisRs => Reader::RedisRs(servers::redis_rs(addr, true).await),
            System::Rustis => Reader::Rustis(servers::rustis(addr).await),
            System::Moka => {
                let cache = moka::sync::Cache::builder().time_to_live(Duration::from_secs(1)).build();
                Reader::Moka(cache, servers::redis_rs(addr, false).await)
            }
        }
    }

    async fn get(&mut self) -> Option<u64> {
        match self {
            Reader::Peanut(group) => {
                let value = group.get("k").await.expect("it is read")?;
                std::str::from_utf8(&value).ok()?.parse().ok()
            }
            Reader::RedisRs(connection) => connection.get("k").await.expect("it is read"),
            Reader::Rustis(cache) => cache.get::<Option<u64>>("k").await.expect("it is read"),
            Reader::Moka(cache, connection) => match cache.get("k") {
                Some(version) => Some(version),
                None => {
                    let version: Option<u64> = connection.get("k").await.expect("it is read");
                    version.inspect(|version| cache.insert("k", *version))
                }
            },
        }
    }
}

/// Reads until the writer has ended.
pub(crate) async fn read(system: System, addr: &str, path: &Path) {
    let acknowledged = Acknowledged(File::open(path).expect("the writer's file"));
    let mut reader = Reader::new(system, addr).await;
    let (mut reads, mut since): (Reads, Option<std::time::Instant>) = (Reads::default(), None);
    loop {
        let at_least = acknowledged.get();
        if at_least == ENDED {
            break;
        }
        match reader.get().await {
            Some(version) if version < at_least => {
                reads.stale += 1;
                let since = *since.get_or_insert_with(now);
                reads.longest_ms = reads.longest_ms.max(since.elapsed().as_secs_f64() * 1e3);
            }
            Some(_) => since = None,
            None => reads.absent += 1,
        }
        reads.reads += 1;
        if reads.reads % 16 == 0 {
            yield_now().await;
        }
    }
    println!("{}", serde_json::to_string(&reads).expect("numbers"));
}
