//! An application of a scenario, as a process of its own, which can be killed and stand still: reads and
//! writes, and tells what it did, a line for each operation.

use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use parking_lot::Mutex;
use peanut_client::{Client, Failover, NearCache, NearKeys};
use peanut_proto::clock::uptime;
use peanut_simulation::history::{Kind, Op};
use tokio::task::spawn_blocking;
use tokio::time::sleep;

use super::KEYS;
use crate::http_client;

const READERS: usize = 2;

/// What one application is told.
#[derive(Clone, Debug, Args)]
pub struct Application {
    /// Where it reaches etcd
    #[arg(long)]
    pub etcd: String,
    /// Where a key is at the origin, with `{key}` in its place
    #[arg(long)]
    pub origin: String,
    /// The file to which it adds a line for each operation
    #[arg(long)]
    pub ops: PathBuf,
    /// Which application it is
    #[arg(long)]
    pub number: u32,
    /// How many there are: each writes keys of its own, in the order of the origin's versions
    #[arg(long)]
    pub of: u32,
    /// Writes are done at successors too
    #[arg(long)]
    pub strict: bool,
    /// It keeps near copies
    #[arg(long)]
    pub near: bool,
    /// What is random follows from it
    #[arg(long)]
    pub seed: u64,
}

struct Running {
    settings: Application,
    client: Client,
    ops: Mutex<std::fs::File>,
}

impl Application {
    /// The words of a command line that say all this.
    pub fn words(&self) -> Vec<String> {
        let mut words = vec![
            format!("--etcd={}", self.etcd),
            format!("--origin={}", self.origin),
            format!("--ops={}", self.ops.display()),
            format!("--number={}", self.number),
            format!("--of={}", self.of),
            format!("--seed={}", self.seed),
        ];
        words.extend(self.strict.then(|| "--strict".to_owned()));
        words.extend(self.near.then(|| "--near".to_owned()));
        words
    }

    /// Reads and writes until its standard input ends.
    ///
    /// # Panics
    /// Where it cannot begin.
    pub async fn run(self) {
        let ops = std::fs::OpenOptions::new().create(true).append(true).open(&self.ops);
        let failover = if self.strict { Failover::Strict } else { Failover::Bounded };
        let client = Client::builder().etcd([self.etcd.clone()]).failover(failover);
        let near = NearCache::bytes(1 << 20).keys(NearKeys::All);
        let client = if self.near { client.near_cache(near) } else { client };
        let client = client.build_lazy().expect("the settings are good");
        let mut random = fastrand::Rng::with_seed(self.seed);
        let ops = Mutex::new(ops.expect("the directory is there"));
        let running = Arc::new(Running { settings: self, client, ops });
        for _ in 0..READERS {
            tokio::spawn(running.clone().read(random.fork()));
        }
        tokio::spawn(running.clone().write(random.fork()));
        // Whoever started it has ended by then.
        let _ = spawn_blocking(|| std::io::stdin().read(&mut [0])).await;
    }
}

impl Running {
    /// One write is one line, whole or not there.
    fn add(&self, key: u32, begun: Duration, kind: Kind) {
        let op = Op { key, kind, begun, ended: uptime() };
        let line = serde_json::to_string(&op).expect("an operation can be written") + "\n";
        let _ = self.ops.lock().write_all(line.as_bytes());
    }

    fn at_origin(&self, key: u32) -> String {
        self.settings.origin.replace("{key}", &key.to_string())
    }

    async fn read(self: Arc<Self>, mut random: fastrand::Rng) {
        let origin = http_client();
        loop {
            // A few keys are asked for most, so that their reads meet.
            let key = if random.bool() { random.u32(..KEYS) } else { random.u32(..KEYS / 10) };
            let (begun, group) = (uptime(), self.client.group("g"));
            let value = if random.u8(..4) == 0 {
                let load = || async {
                    let response = origin.get(self.at_origin(key)).send().await?.error_for_status()?;
                    Ok::<_, reqwest::Error>(Some(response.bytes().await?))
                };
                group.get_or_load(key.to_string(), load).await
            } else {
                group.get(key.to_string()).await
            };
            let version =
                value.ok().flatten().and_then(|value| std::str::from_utf8(&value).ok()?.parse().ok());
            self.add(key, begun, version.map_or(Kind::ReadFailed, Kind::Read));
            sleep(Duration::from_micros(random.u64(..15_000))).await;
        }
    }

    /// Writes the keys that are this application's alone, one after the other.
    async fn write(self: Arc<Self>, mut random: fastrand::Rng) {
        let origin = http_client();
        let Application { number, of, .. } = self.settings;
        loop {
            sleep(Duration::from_micros(random.u64(..40_000))).await;
            let any = if random.bool() { random.u32(..KEYS) } else { random.u32(..KEYS / 10) };
            let key = any / of * of + number;
            let group = self.client.group("g");
            let begun_before = random.u8(..4) == 0;
            let ticket = if begun_before { group.begin_write(key.to_string()).await.ok() } else { None };
            let begun = uptime();
            let Ok(response) = origin.post(self.at_origin(key)).send().await else { continue };
            let Some(version) = response.text().await.ok().and_then(|text| text.parse::<u64>().ok()) else {
                continue;
            };
            let value = version.to_string();
            let done = match ticket {
                Some(ticket) => ticket.set(value).await,
                None if random.bool() => group.set(key.to_string(), value).await,
                None => group.delete(key.to_string()).await,
            };
            self.add(
                key,
                begun,
                if done.is_ok() { Kind::Written(version) } else { Kind::WriteFailed(version) },
            );
        }
    }
}

/// What an application has told so far; nothing before it has begun. It may be writing its last line.
pub(super) fn told(ops: &Path) -> Vec<Op> {
    let ops = std::fs::read_to_string(ops).unwrap_or_default();
    let whole = ops.rfind('\n').map_or("", |end| &ops[..end]);
    whole.lines().map(|line| serde_json::from_str(line).expect("a line of an application")).collect()
}
