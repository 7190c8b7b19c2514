//! memcached. Its client has one operation in flight on a connection, so each task has a connection.

use std::process::Command;

use async_memcached::{AsciiProtocol as _, Client};
use peanut_processes::{Process, free_port};

use super::{Caller, installed, start as start_process};

pub(super) struct Memcached {
    addr: String,
}

pub(super) async fn start() -> Result<(Process, Memcached), String> {
    installed("memcached")?;
    let port = free_port();
    let mut command = Command::new("memcached");
    // `-u` counts only for root, under whom it would not start without.
    command.args(["-l", "127.0.0.1", "-U", "0", "-c", "12000", "-m", "8192", "-u", "nobody"]);
    // Values of a mebibyte with their keys.
    command.args(["-I", "2m"]);
    command.args(["-p", &port.to_string()]);
    let addr = format!("127.0.0.1:{port}");
    let server = start_process("memcached", &mut command, &addr).await;
    Ok((server, Memcached { addr }))
}

impl Memcached {
    pub(super) async fn callers(&self, tasks: usize) -> Vec<Connection> {
        let mut callers = Vec::with_capacity(tasks);
        for _ in 0..tasks {
            callers.push(self.caller().await);
        }
        callers
    }

    async fn caller(&self) -> Connection {
        let client = Client::new(format!("tcp://{}", self.addr)).await;
        Connection(client.expect("a connection to memcached"))
    }
}

pub(super) struct Connection(Client);

impl Caller for Connection {
    async fn get(&mut self, key: &str) -> Option<usize> {
        Some(self.0.get(key).await.ok()??.data?.len())
    }

    async fn get_many(&mut self, keys: &[&str], value_bytes: usize) -> usize {
        // A key that is asked for twice is answered twice.
        let values = self.0.get_multi(keys).await.unwrap_or_default();
        values.iter().filter(|value| value.data.as_ref().map(Vec::len) == Some(value_bytes)).count()
    }

    async fn set(&mut self, key: &str, value: &str) -> bool {
        self.0.set(key, value.as_bytes(), None, None).await.is_ok()
    }

    async fn set_many(&mut self, keys: &[&str], value: &str) -> bool {
        let pairs: Vec<(&str, &[u8])> = keys.iter().map(|key| (*key, value.as_bytes())).collect();
        self.0.set_multi(&pairs, None, None).await.is_ok()
    }
}
