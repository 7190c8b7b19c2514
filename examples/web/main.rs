//! A web service with Peanut in front of its database: scores of players, read and written over HTTP.
//!
//! ```sh
//! DATABASE_URL=postgres://127.0.0.1/db ETCD=http://127.0.0.1:2379 cargo run -p peanut-examples --example web
//! curl http://127.0.0.1:3000/scores/Tom
//! ```

mod service;
#[cfg(test)]
mod tests;

use peanut_client::Client;
use service::{Database, Scores};
use tokio::signal::unix::{SignalKind, signal};

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let variable = |name: &str| std::env::var(name).map_err(|_| format!("the variable {name} is not set"));
    let database = Database::connect(&variable("DATABASE_URL")?).await?;
    // It starts also while etcd or the fleet is down: until they are there, each get asks the database.
    let client = Client::builder().etcd(variable("ETCD")?).build_lazy()?;
    let listener = tokio::net::TcpListener::bind("127.0.0.1:3000").await?;
    println!("http://{}/scores/Tom", listener.local_addr()?);
    let scores = Scores::new(database, &client);
    axum::serve(listener, service::router(scores.clone())).with_graceful_shutdown(stopped()).await?;
    scores.finish_writes().await;
    Ok(())
}

/// Waits for ctrl-C, or SIGTERM, by which a deployment stops the service.
async fn stopped() {
    let mut terminated = signal(SignalKind::terminate()).expect("signals can be waited for");
    tokio::select! {
        _ = tokio::signal::ctrl_c() => {}
        _ = terminated.recv() => {}
    }
}
