//! A real etcd of one member, which can be stopped and started again with its data.

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use nix::sys::signal::Signal;
use peanut_proto::registry::{EtcdRegistry, Registry as _};
use peanut_proto::tls::TlsFiles;
use tempfile::TempDir;

use crate::{Certificate, Process, eventually, free_port};

/// An etcd server of the test's own.
#[derive(Debug)]
pub struct Etcd {
    port: u16,
    peer_port: u16,
    data: TempDir,
    process: Option<Process>,
    tls: Option<(PathBuf, Certificate)>,
    token_ttl: Option<u32>,
}

impl Etcd {
    /// Starts an empty etcd and waits until it answers.
    ///
    /// # Panics
    /// Where there is no etcd on the path, or it does not come up.
    pub async fn start() -> Self {
        Etcd::start_with(None, None).await
    }

    /// Starts an empty etcd: with TLS, where a certificate with its authority is given, to clients with
    /// certificates from there only; and with logins that expire after so many seconds of not being used.
    ///
    /// # Panics
    /// As [`start`](Self::start).
    pub async fn start_with(tls: Option<(PathBuf, Certificate)>, token_ttl: Option<u32>) -> Self {
        let data = tempfile::tempdir().expect("a directory for etcd's data");
        let (port, peer_port) = (free_port(), free_port());
        let mut etcd = Etcd { port, peer_port, data, process: None, tls, token_ttl };
        etcd.start_again().await;
        etcd
    }

    /// Starts it again on the same ports with the same data.
    pub async fn start_again(&mut self) {
        let (client, peer) = (self.endpoint(), format!("http://127.0.0.1:{}", self.peer_port));
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
        if let Some((ca, certificate)) = &self.tls {
            command.arg("--client-cert-auth").arg("--trusted-ca-file").arg(ca);
            command.arg("--cert-file").arg(&certificate.cert).arg("--key-file").arg(&certificate.key);
        }
        if let Some(seconds) = self.token_ttl {
            command.arg(format!("--auth-token-ttl={seconds}"));
        }
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
        self.data = tempfile::tempdir().expect("a directory for etcd's data");
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
        let scheme = if self.tls.is_some() { "https" } else { "http" };
        format!("{scheme}://127.0.0.1:{}", self.port)
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
        let registry = EtcdRegistry::new([self.endpoint()], Duration::from_secs(2)).expect("a good endpoint");
        match &self.tls {
            None => registry,
            Some((ca, Certificate { cert, key })) => registry.tls(TlsFiles {
                ca: Some(ca.clone()),
                cert: Some(cert.clone()),
                key: Some(key.clone()),
                crl: None,
            }),
        }
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

/// A client for HTTP. reqwest wants a TLS provider even where no TLS is spoken; the server's own loader
/// brings it.
pub fn http_client() -> reqwest::Client {
    let _ = peanut_server::HttpLoader::new("http://unused/{key}", Duration::from_secs(1));
    reqwest::Client::new()
}
