//! `peanut proxy`.

use std::process::ExitCode;

use peanut_client::Client;
use peanut_proxy::Proxy;
use tokio::net::TcpListener;

use crate::args::ProxyArgs;
use crate::failure::Failure;

/// Serves until the process is told to end.
pub(crate) async fn run(client: Client, args: &ProxyArgs) -> Result<ExitCode, Failure> {
    let mut proxy = Proxy::new(client).databases(&args.databases);
    if let Some(group) = &args.default_group {
        proxy = proxy.default_group(group);
    }
    for addr in &args.redis {
        proxy = proxy.redis(listen("the Redis protocol", addr).await?);
    }
    for addr in &args.http {
        proxy = proxy.http(listen("HTTP", addr).await?);
    }
    for addr in &args.grpc {
        proxy = proxy.grpc(listen("gRPC", addr).await?);
    }
    proxy.run(stopped()).await;
    Ok(ExitCode::SUCCESS)
}

async fn listen(what: &str, addr: &str) -> Result<TcpListener, Failure> {
    let listener = TcpListener::bind(addr).await;
    let listener = listener.map_err(|error| Failure::new(format!("cannot listen on {addr}: {error}")))?;
    if let Ok(addr) = listener.local_addr() {
        eprintln!("{what} on {addr}");
    }
    Ok(listener)
}

/// Ready when the process is told to end.
async fn stopped() {
    #[cfg(unix)]
    let terminated = async {
        use tokio::signal::unix::{SignalKind, signal};
        match signal(SignalKind::terminate()) {
            Ok(mut terminated) => drop(terminated.recv().await),
            Err(_) => std::future::pending().await,
        }
    };
    #[cfg(not(unix))]
    let terminated = std::future::pending();
    tokio::select! {
        _ = tokio::signal::ctrl_c() => {}
        () = terminated => {}
    }
}
