//! A loader of one's own, with a time to live that depends on the value, and an error that callers see.

use std::time::Duration;

use peanut_client::registry::LocalRegistry;
use peanut_client::{Client, ErrorKind};
use peanut_server::{Group, LoadRequest, Loaded, Loader, LoaderError, Server};
use tokio::net::TcpListener;

/// Counts the primes below a number: slow enough to be worth keeping.
struct Primes;

impl Loader for Primes {
    async fn load(&self, request: &LoadRequest) -> Result<Loaded, LoaderError> {
        let below: u32 = request.text()?.parse()?;
        if below > 1_000_000 {
            return Err("that would take too long".into());
        }
        // Work that blocks belongs on a thread that may block.
        let count = tokio::task::spawn_blocking(move || (2..below).filter(|n| is_prime(*n)).count()).await?;
        // What took long to find is kept for longer.
        let ttl = Duration::from_secs(60 + u64::from(below / 100));
        Ok(Loaded::found(count.to_string()).ttl(ttl))
    }
}

fn is_prime(n: u32) -> bool {
    (2..).take_while(|d| d * d <= n).all(|d| !n.is_multiple_of(d))
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let registry = LocalRegistry::new();
    let group = Group::new("primes below", Primes).capacity_bytes(1 << 20);
    let server = Server::builder().group(group).registry(registry.clone()).build()?;
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let serving = tokio::spawn(server.run(listener, std::future::pending()));

    let client = Client::builder().registry(registry).build().await?;
    let primes = client.group("primes below");
    for below in ["100", "100000", "100000", "a dozen", "2000000"] {
        match primes.get(below).await {
            Ok(Some(count)) => println!("primes below {below}: {}", String::from_utf8_lossy(&count)),
            Ok(None) => println!("primes below {below}: not found"),
            Err(error) if error.kind() == ErrorKind::Loader => println!("primes below {below}: {error}"),
            Err(error) => return Err(error.into()),
        }
    }
    println!("loads: {}, hits: {}", client.stats().loaded, client.stats().hits);
    serving.abort();
    Ok(())
}
