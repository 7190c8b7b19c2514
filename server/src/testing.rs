//! A fleet in the process of a test, without etcd, ports to choose or files.

use peanut_proto::membership::{Keys, RingDocument};
use peanut_proto::registry::{KeyRange, LocalRegistry, Registry as _};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::error::Error;
use crate::group::Group;
use crate::server::Server;

/// Nodes on loopback that find one another through a registry of their own: what an application's tests run
/// against.
///
/// They end when this is dropped.
///
/// ```
/// # #[tokio::main] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use peanut_server::testing::TestFleet;
/// use peanut_server::{Group, StaticLoader};
///
/// let scores: StaticLoader = [("Tom", "630")].into_iter().collect();
/// let fleet = TestFleet::start(1, [Group::new("scores", scores), Group::without_loader("pages")]).await?;
/// // let client = peanut_client::Client::builder().registry(fleet.registry()).build().await?;
/// // assert_eq!(client.group("scores").get("Tom").await?.unwrap(), "630");
/// fleet.stop().await?;
/// # Ok(()) }
/// ```
#[derive(Debug)]
pub struct TestFleet {
    registry: LocalRegistry,
    nodes: Vec<Node>,
}

#[derive(Debug)]
struct Node {
    stop: watch::Sender<bool>,
    running: JoinHandle<Result<(), Error>>,
}

impl Drop for Node {
    fn drop(&mut self) {
        self.running.abort();
    }
}

impl TestFleet {
    /// Starts so many nodes, each with all these groups, on the caller's runtime. They are in the ring, and
    /// serve, when this returns. Their ids are `node-0`, `node-1` and so on.
    ///
    /// # Errors
    /// As [`ServerBuilder::build`](crate::ServerBuilder::build), where a group's settings cannot be.
    ///
    /// # Panics
    /// Where there is no port on loopback.
    pub async fn start(nodes: usize, groups: impl IntoIterator<Item = Group>) -> Result<Self, Error> {
        let (registry, groups): (_, Vec<Group>) = (LocalRegistry::new(), groups.into_iter().collect());
        let mut fleet = TestFleet { registry, nodes: Vec::new() };
        for number in 0..nodes {
            let mut server =
                Server::builder().node_id(format!("node-{number}")).registry(fleet.registry.clone());
            for group in &groups {
                server = server.group(group.clone());
            }
            let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port on loopback");
            let (stop, mut stopped) = watch::channel(false);
            let run = server.build()?.run(listener, async move {
                let _ = stopped.wait_for(|stop| *stop).await;
            });
            fleet.nodes.push(Node { stop, running: tokio::spawn(run) });
        }
        fleet.wait_for(nodes).await;
        Ok(fleet)
    }

    /// The registry of the fleet `default`, for `ClientBuilder::registry`.
    pub fn registry(&self) -> LocalRegistry {
        self.registry.clone()
    }

    /// Ends a node by its number, as `kill -9` would: it stays a member of the ring, and clients ask its
    /// successor.
    ///
    /// # Panics
    /// Where there is no such node.
    pub fn kill(&self, node: usize) {
        assert!(
            node < self.nodes.len(),
            "the fleet has {} nodes, and none of number {node}",
            self.nodes.len()
        );
        self.nodes[node].running.abort();
    }

    /// Stops all nodes, as SIGTERM would: calls in flight finish.
    ///
    /// # Errors
    /// Where a node has failed.
    pub async fn stop(mut self) -> Result<(), Error> {
        for node in &self.nodes {
            node.stop.send_replace(true);
        }
        for node in &mut self.nodes {
            // One that was killed has nothing to say.
            if let Ok(stopped) = (&mut node.running).await {
                stopped?;
            }
        }
        Ok(())
    }

    /// Waits until the ring has so many members. A node joins after it has come to hold a lease.
    async fn wait_for(&self, nodes: usize) {
        let key = Keys::new("default").ring();
        let mut changes = self.registry.watch(&[KeyRange::key(&key)]).await.expect("it lives here");
        loop {
            let entry = self.registry.get(&key).await.expect("it lives here");
            let ring = entry.and_then(|entry| RingDocument::decode(&entry.value).ok());
            if ring.map_or(0, |ring| ring.members.len()) >= nodes {
                return;
            }
            let _ = changes.next().await;
        }
    }
}
