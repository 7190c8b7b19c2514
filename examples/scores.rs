//! The program of the original PeanutCache's README: a group of scores, and four callers who want Tom's at
//! the same time. The table is asked once.

use std::time::Duration;

use peanut_client::Client;
use peanut_client::registry::LocalRegistry;
use peanut_server::{Group, Loaded, Server, loader_fn};
use tokio::net::TcpListener;

const SCORES: [(&str, &str); 3] = [("Tom", "630"), ("Jack", "589"), ("Sam", "567")];

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let loader = loader_fn(|key| async move {
        println!("  [slow database] looking for {}", String::from_utf8_lossy(&key));
        tokio::time::sleep(Duration::from_millis(200)).await;
        Ok(Loaded::from(SCORES.iter().find(|(name, _)| name.as_bytes() == key).map(|(_, score)| *score)))
    });

    let registry = LocalRegistry::new();
    let server = Server::builder().group(Group::new("scores", loader)).registry(registry.clone()).build()?;
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let serving = tokio::spawn(server.run(listener, std::future::pending()));

    let client = Client::builder().registry(registry).build().await?;
    let scores = client.group("scores");

    println!("four callers want Tom's score:");
    let (a, b, c, d) =
        tokio::try_join!(scores.get("Tom"), scores.get("Tom"), scores.get("Tom"), scores.get("Tom"))?;
    for (caller, score) in (1..).zip([a, b, c, d].into_iter().flatten()) {
        println!("  caller {caller}: {}", String::from_utf8_lossy(&score));
    }
    println!("then others, and someone who is not there:");
    for name in ["Jack", "Sam", "Tom", "Nobody"] {
        match scores.get(name).await? {
            Some(score) => println!("  {name}: {}", String::from_utf8_lossy(&score)),
            None => println!("  {name}: not found"),
        }
    }
    let stats = client.stats();
    println!(
        "loaded: {}, shared a load: {}, hits: {}, not found: {}",
        stats.loaded, stats.coalesced, stats.hits, stats.not_found
    );
    serving.abort();
    Ok(())
}
