//! Peanut: one `peanut-server`, the group's values from a table.

use std::fmt::Write as _;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use peanut_client::{Client, Group};
use peanut_tests::{Process, free_port};

use super::{Caller, Data, start as start_process};

#[derive(Clone)]
pub(super) struct Peanut {
    group: Group,
}

pub(super) async fn start(binary: &Path, unary: bool, data: &Data) -> (Process, Peanut) {
    let addr = format!("127.0.0.1:{}", free_port());
    let mut config = format!(
        "listen = \"{addr}\"\n[[group]]\nname = \"bench\"\nttl = \"1d\"\n\
         [group.loader]\nkind = \"static\"\n[group.loader.entries]\n"
    );
    for key in data.keys.iter() {
        let _ = writeln!(config, "{key} = \"{}\"", data.value);
    }
    let file = std::env::temp_dir().join(format!("peanut-peers-{}-{unary}.toml", std::process::id()));
    std::fs::write(&file, config).expect("the configuration is written");
    let server = start_process("peanut-server", Command::new(binary).arg("--config").arg(&file), &addr).await;
    let _ = std::fs::remove_file(&file);
    // Time enough for a hundred thousand unary calls at once.
    let client =
        Client::builder().nodes([addr]).deadline(Duration::from_secs(60)).operations_per_node(1 << 18);
    let client = if unary { client.unary() } else { client };
    let group = client.build().await.expect("a client of one node").group("bench");
    for keys in data.keys.chunks(1000) {
        let answers = group.get_many(keys).await;
        assert!(answers.iter().all(|answer| matches!(answer, Ok(Some(_)))), "every key is loaded");
    }
    (server, Peanut { group })
}

impl Caller for Peanut {
    async fn get(&mut self, key: &str) -> Option<usize> {
        self.group.get(key).await.ok().flatten().map(|value| value.len())
    }

    async fn get_many(&mut self, keys: &[&str]) -> usize {
        let answers = self.group.get_many(keys).await;
        let right =
            |value: &_| matches!(value, Ok(Some(value)) if bytes::Bytes::len(value) == Data::VALUE_BYTES);
        answers.iter().filter(|answer| right(*answer)).count()
    }

    async fn set(&mut self, key: &str, value: &str) -> bool {
        self.group.set(key, value.to_owned()).await.is_ok()
    }
}
