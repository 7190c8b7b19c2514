//! The fleet: processes joined by etcd, or nodes in this process.

use std::net::TcpListener as StdListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use peanut_client::Client;
use peanut_client::registry::LocalRegistry;
use peanut_server::{Group, Server, SqlLoader};
use tokio::net::TcpStream;
use tokio::runtime::Runtime;
use tokio::time::{Instant, sleep};

use crate::database::{Database, GROUP, QUERY};
use crate::{PATIENCE, Result};

pub(crate) enum Fleet {
    Processes {
        _etcd: Owned,
        endpoint: String,
        server: PathBuf,
        config: PathBuf,
        nodes: Vec<(String, Owned)>,
    },
    InProcess {
        missing: &'static str,
        registry: LocalRegistry,
        url: String,
        nodes: Vec<(String, Option<Runtime>)>,
    },
}

/// A process that ends with this value.
pub(crate) struct Owned(Child);

impl Drop for Owned {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn start(command: &mut Command) -> Result<Owned> {
    let quiet = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    Ok(Owned(quiet.spawn().map_err(|e| format!("cannot start {quiet:?}: {e}"))?))
}

fn free_addr() -> Result<String> {
    Ok(StdListener::bind("127.0.0.1:0")?.local_addr()?.to_string())
}

async fn until_listening(addr: &str) -> Result<()> {
    let begun = Instant::now();
    while TcpStream::connect(addr).await.is_err() {
        if begun.elapsed() > PATIENCE {
            return Err(format!("nobody listens on {addr} after {PATIENCE:?}").into());
        }
        sleep(Duration::from_millis(20)).await;
    }
    Ok(())
}

/// `peanut-server` beside this program's directory, where cargo puts it.
fn server_binary() -> Option<PathBuf> {
    let mine = std::env::current_exe().ok()?;
    let server = mine.parent()?.parent()?.join("peanut-server");
    server.exists().then_some(server)
}

impl Fleet {
    /// Starts what nodes need, processes or not as `wanted` says (`--processes`, `--in-process`), or as
    /// it can be.
    pub(crate) async fn start(directory: &Path, database: &Database, wanted: Option<&str>) -> Result<Self> {
        let has_etcd =
            Command::new("etcd").arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
        let missing = match server_binary() {
            _ if wanted == Some("--in-process") => "as was asked for",
            None => "peanut-server is not built beside the demo",
            Some(_) if !has_etcd.is_ok_and(|version| version.success()) => "etcd is not installed",
            Some(server) => return Fleet::start_processes(directory, database, server).await,
        };
        if wanted == Some("--processes") {
            return Err(missing.into());
        }
        Ok(Fleet::InProcess {
            missing,
            registry: LocalRegistry::new(),
            url: database.url.clone(),
            nodes: Vec::new(),
        })
    }

    async fn start_processes(directory: &Path, database: &Database, server: PathBuf) -> Result<Self> {
        let (addr, peer) = (free_addr()?, format!("http://{}", free_addr()?));
        let endpoint = format!("http://{addr}");
        let mut command = Command::new("etcd");
        command
            .args(["--name", "demo", "--data-dir"])
            .arg(directory.join("etcd"))
            .args(["--listen-client-urls", &endpoint, "--advertise-client-urls", &endpoint])
            .args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer])
            .args(["--initial-cluster", &format!("demo={peer}")]);
        let etcd = start(&mut command)?;
        until_listening(&addr).await?;
        let config = directory.join("peanut.toml");
        let url = &database.url;
        std::fs::write(
            &config,
            format!(
                "[etcd]\nendpoints = [\"{endpoint}\"]\n\n[[group]]\nname = \"{GROUP}\"\ncapacity = \"64MiB\"\n\
                 [group.loader]\nkind = \"sql\"\nurl = \"{url}\"\nquery = \"{QUERY}\"\n"
            ),
        )?;
        Ok(Fleet::Processes { _etcd: etcd, endpoint, server, config, nodes: Vec::new() })
    }

    pub(crate) fn describe(&self) -> String {
        match self {
            Fleet::Processes { endpoint, .. } => {
                format!("nodes are peanut-server processes, joined by etcd at {endpoint}")
            }
            Fleet::InProcess { missing, .. } => {
                format!("nodes run inside this process, joined by the embedded registry ({missing})")
            }
        }
    }

    /// Starts one more node and returns when it listens.
    pub(crate) async fn add_node(&mut self) -> Result<()> {
        let addr = free_addr()?;
        match self {
            Fleet::Processes { server, config, nodes, .. } => {
                let node =
                    start(Command::new(&*server).arg("--config").arg(&*config).args(["--listen", &addr]))?;
                nodes.push((addr.clone(), node));
            }
            Fleet::InProcess { registry, url, nodes, .. } => {
                let group = Group::new(GROUP, SqlLoader::new(url, QUERY).map_err(|e| e.to_string())?);
                let server = Server::builder().group(group).registry(registry.clone()).build()?;
                let runtime =
                    tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
                let listener = StdListener::bind(&addr)?;
                listener.set_nonblocking(true)?;
                runtime.spawn(async move {
                    let listener = tokio::net::TcpListener::from_std(listener).expect("it is not blocking");
                    server.run(listener, std::future::pending()).await.expect("the node runs");
                });
                nodes.push((addr.clone(), Some(runtime)));
            }
        }
        until_listening(&addr).await
    }

    pub(crate) async fn client(&self) -> Result<Client> {
        let builder = Client::builder();
        let builder = match self {
            Fleet::Processes { endpoint, .. } => builder.etcd([endpoint]),
            Fleet::InProcess { registry, .. } => builder.registry(registry.clone()),
        };
        Ok(builder.build().await?)
    }

    /// Ends a node at once, as kill -9 does, and tells which it was.
    pub(crate) fn kill_node(&mut self, at: usize) -> String {
        match self {
            Fleet::Processes { nodes, .. } => nodes.remove(at).0,
            Fleet::InProcess { nodes, .. } => {
                let (addr, runtime) = nodes.remove(at);
                // Its tasks are dropped where they are, their sockets with them.
                runtime.into_iter().for_each(Runtime::shutdown_background);
                addr
            }
        }
    }

    /// Tells every node to stop and waits until it has.
    pub(crate) async fn stop(mut self) {
        let Fleet::Processes { nodes, .. } = &mut self else { return };
        for (_, node) in &*nodes {
            let pid = i32::try_from(node.0.id()).map(Pid::from_raw);
            let _ = pid.map(|pid| kill(pid, Signal::SIGTERM));
        }
        let begun = Instant::now();
        while begun.elapsed() < PATIENCE && nodes.iter_mut().any(|(_, n)| matches!(n.0.try_wait(), Ok(None)))
        {
            sleep(Duration::from_millis(20)).await;
        }
    }
}

impl Drop for Fleet {
    fn drop(&mut self) {
        // A runtime must not be dropped inside another, so these are only told to end.
        if let Fleet::InProcess { nodes, .. } = self {
            nodes.drain(..).filter_map(|(_, runtime)| runtime).for_each(Runtime::shutdown_background);
        }
    }
}
