//! A real etcd of one member, which can be stopped and started again with its data.

use std::process::Command;
use std::time::Duration;

use nix::sys::signal::Signal;
use peanut_proto::registry::{EtcdRegistry, Registry as _};
use tempfile::TempDir;

use crate::{Process, eventually, free_port};

/// An etcd server of the test's own.
#[derive(Debug)]
pub struct Etcd {
    port: u16,
    peer_port: u16,
    data: TempDir,
    process: Option<Process>,
}

impl Etcd {
    /// Starts an empty etcd and waits until it answers.
    ///
    /// # Panics
    /// Where there is no etcd on the path, or it does not come up.
    pub async fn start() -> Self {
        let data = tempfile::tempdir().expect("a folder for etcd's data");
        let mut etcd = Etcd { port: free_port(), peer_port: free_port(), data, process: None };
        etcd.start_again().await;
        etcd
    }

    /// Starts it again on the same ports with the same data.
    pub async fn start_again(&mut self) {
        let (client, peer) =
            (format!("http://127.0.0.1:{}", self.port), format!("http://127.0.0.1:{}", self.peer_port));
        let mut command = Command::new("etcd");
        command
            .args(["--name", "test", "--log-level", "warn"])
            .arg("--data-dir")
            .arg(self.data.path())
            .args(["--listen-client-urls", &client, "--advertise-client-urls", &client])
            .args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer])
            .args(["--initial-cluster", &format!("test={peer}")])
            // The tests' clocks matter, not the disk's.
            .args(["--unsafe-no-fsync"]);
        self.process = Some(Process::start("etcd", &mut command));
        let registry = self.registry();
        eventually("etcd to answer", async || registry.load("/").await.ok()).await;
    }

    /// Ends it at once, as kill -9 does. Its data stay.
    pub fn stop(&mut self) {
        self.process = None;
    }

    /// Ends it and forgets its data.
    ///
    /// # Panics
    /// Where there is no place for new data.
    pub fn wipe(&mut self) {
        self.stop();
        self.data = tempfile::tempdir().expect("a folder for etcd's data");
    }

    /// Freezes it; it accepts connections and answers nothing.
    pub fn freeze(&self) {
        self.process.iter().for_each(|process| process.signal(Signal::SIGSTOP));
    }

    /// Lets it go on.
    pub fn thaw(&self) {
        self.process.iter().for_each(|process| process.signal(Signal::SIGCONT));
    }

    /// Its endpoint.
    pub fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// Its port.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// A registry on it.
    ///
    /// # Panics
    /// Never; the endpoint is good.
    pub fn registry(&self) -> EtcdRegistry {
        EtcdRegistry::new([self.endpoint()], Duration::from_secs(2)).expect("a good endpoint")
    }

    /// Forgets all revisions before the latest, and defragments nothing.
    ///
    /// # Panics
    /// Where etcd refuses.
    pub async fn compact(&self) {
        let revision = self.registry().load("/").await.expect("etcd answers").revision;
        self.call("/v3/kv/compaction", &format!(r#"{{"revision":"{revision}","physical":true}}"#)).await;
    }

    /// Ends every lease, as if all had run out.
    ///
    /// # Panics
    /// Where etcd refuses.
    pub async fn revoke_all_leases(&self) {
        let listed: serde_json::Value =
            serde_json::from_str(&self.call("/v3/lease/leases", "{}").await).expect("etcd speaks JSON");
        for lease in listed["leases"].as_array().into_iter().flatten() {
            let id = lease["ID"].as_str().expect("a lease has an id");
            self.call("/v3/lease/revoke", &format!(r#"{{"ID":"{id}"}}"#)).await;
        }
    }

    async fn call(&self, path: &str, body: &str) -> String {
        let url = format!("{}{path}", self.endpoint());
        let response = http_client().post(url).body(body.to_owned()).send().await.expect("etcd answers");
        assert!(response.status().is_success(), "{path}: {}", response.status());
        response.text().await.expect("etcd answers in full")
    }
}

/// reqwest wants a TLS provider even where no TLS is spoken; the server's own loader brings it.
fn http_client() -> reqwest::Client {
    let _ = peanut_server::HttpLoader::new("http://unused/{key}", Duration::from_secs(1));
    reqwest::Client::new()
}
