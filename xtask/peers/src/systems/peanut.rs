//! Peanut: one `peanut-server`, with a group of values that are set.

use std::fmt::Write as _;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use peanut_client::{Client, Group, Tls};
use peanut_processes::{Process, free_port};

use super::tls::Certificates;
use super::{Caller, start as start_process};

#[derive(Clone)]
pub(super) struct Peanut {
    group: Group,
}

pub(super) async fn start(binary: &Path, unary: bool, tls: Option<&Certificates>) -> (Process, Peanut) {
    let addr = format!("127.0.0.1:{}", free_port());
    let group = "[[group]]\nname = \"bench\"\nttl = \"1d\"\ncapacity = \"8GiB\"\n";
    let mut config = format!("listen = \"{addr}\"\n{group}loader = {{ kind = \"none\" }}\n");
    if let Some(tls) = tls {
        let _ = write!(config, "[tls]\ncert = {:?}\nkey = {:?}\n", tls.cert(), tls.key());
    }
    let file = std::env::temp_dir().join(format!("peanut-peers-{}-{unary}.toml", std::process::id()));
    std::fs::write(&file, config).expect("the configuration is written");
    let server = start_process("peanut-server", Command::new(binary).arg("--config").arg(&file), &addr).await;
    let _ = std::fs::remove_file(&file);
    // Time enough for a hundred thousand unary calls at once.
    let client =
        Client::builder().nodes([addr]).deadline(Duration::from_secs(60)).operations_per_node(1 << 18);
    let client = if unary { client.unary() } else { client };
    let client = match tls {
        Some(tls) => client.tls(Tls::new(tls.ca())),
        None => client,
    };
    (server, Peanut { group: client.build().await.expect("a client of one node").group("bench") })
}

impl Caller for Peanut {
    async fn get(&mut self, key: &str) -> Option<usize> {
        self.group.get(key).await.ok().flatten().map(|value| value.len())
    }

    async fn get_many(&mut self, keys: &[&str], value_bytes: usize) -> usize {
        let answers = self.group.get_many(keys).await;
        let right = |value: &_| matches!(value, Ok(Some(value)) if bytes::Bytes::len(value) == value_bytes);
        answers.iter().filter(|answer| right(*answer)).count()
    }

    async fn set(&mut self, key: &str, value: &str) -> bool {
        self.group.set(key, value).await.is_ok()
    }

    async fn set_many(&mut self, keys: &[&str], value: &str) -> bool {
        let results = self.group.set_many(keys.iter().map(|key| (key, value))).await;
        let failed = results.into_iter().find_map(Result::err);
        failed.inspect(|error| eprintln!("peanut: {error}")).is_none()
    }
}
