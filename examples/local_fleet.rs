//! Several nodes in one process, found through a registry that lives there too: for embedding, and for
//! tests that want a fleet without etcd.

use peanut_client::Client;
use peanut_client::registry::LocalRegistry;
use peanut_server::{Group, Loaded, Server, loader_fn};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinSet;

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let registry = LocalRegistry::new();
    let stop = watch::Sender::new(false);
    let mut nodes = JoinSet::new();
    for name in ["ada", "bob", "cleo"] {
        let loader = loader_fn(move |key| async move {
            Ok(Loaded::found(format!("{} by way of {name}", String::from_utf8_lossy(&key))))
        });
        let server = Server::builder()
            .node_id(name)
            .group(Group::new("greetings", loader))
            .registry(registry.clone())
            .build()?;
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let mut stop = stop.subscribe();
        nodes.spawn(server.run(listener, async move {
            let _ = stop.wait_for(|stop| *stop).await;
        }));
    }

    let client = Client::builder().registry(registry).build().await?;
    client.wait_for_ring(3).await?;
    for node in client.nodes() {
        println!("{:5} at {} owns {:4.1} % of the keys", node.id, node.addr, node.share * 100.0);
    }
    let greetings = client.group("greetings");
    let keys = ["hello", "good morning", "good night", "welcome", "goodbye"];
    for (key, greeting) in keys.iter().zip(greetings.get_many(keys).await) {
        println!("{key}: {}", String::from_utf8_lossy(&greeting?.unwrap_or_default()));
    }

    // Every node says goodbye to the registry and finishes what it has in hand.
    stop.send_replace(true);
    while let Some(stopped) = nodes.join_next().await {
        stopped??;
    }
    println!("all nodes stopped");
    Ok(())
}
