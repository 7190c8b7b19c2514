//! What a fleet does, told by what an application or an operator sees of it. One file per kind of
//! behaviour; real processes and real etcd throughout.

#![allow(clippy::unwrap_used, reason = "a test that cannot unwrap has failed")]

mod admin;
mod batches;
mod blocks;
mod cancelled;
mod cli;
mod configuration;
mod connect;
mod databases;
mod documents;
mod etcd_outage;
mod failover;
mod get_many;
mod get_or_load;
mod hand_over;
mod history;
mod hostile;
mod identity;
mod lanes;
mod limits;
mod loaders;
mod membership;
mod memory;
mod monitoring;
mod near;
mod observe;
mod one_load;
mod origins;
mod page;
mod production;
mod proxied;
mod registry;
mod rights;
mod ring_told;
mod runtimes;
mod secure;
mod shutdown;
mod soak;
mod told_late;
mod traces;
mod typed;
mod walk;
mod warm_restart;
mod wire;
mod write_many;
mod writes;

use std::time::Duration;

use peanut_client::{Client, ClientBuilder};
use peanut_tests::{Etcd, ServerProcess};

/// The deadline of a client that waits for the lease of a node that stands still to end: a node is suspected
/// after a quarter of it.
const PATIENT: Duration = Duration::from_secs(12);
const SERVER: &str = env!("CARGO_BIN_EXE_peanut-server-under-test");
const PEANUT: &str = env!("CARGO_BIN_EXE_peanut-under-test");
const SCORES: &str = r#"
[[group]]
name = "scores"
[group.loader]
kind = "static"
entries = { Tom = "630", Jack = "589", Sam = "567" }
"#;

/// A fleet of that many nodes with these groups, all registered.
async fn fleet(nodes: usize, groups: &str) -> (Etcd, Vec<ServerProcess>) {
    let etcd = Etcd::start().await;
    let mut servers = Vec::new();
    for _ in 0..nodes {
        servers.push(ServerProcess::start(SERVER, &etcd.endpoint(), groups).await);
    }
    for server in &mut servers {
        server.registered().await;
    }
    (etcd, servers)
}

fn client_of(etcd: &Etcd) -> ClientBuilder {
    Client::builder().etcd([etcd.endpoint()])
}

/// A client that knows a ring with that many nodes.
async fn client(etcd: &Etcd, nodes: usize) -> Client {
    let patient = client_of(etcd).deadline(Duration::from_secs(5));
    let client = patient.build().await.expect("the fleet is there");
    peanut_tests::eventually("the ring to be whole", async || (client.nodes().len() == nodes).then_some(()))
        .await;
    client
}
