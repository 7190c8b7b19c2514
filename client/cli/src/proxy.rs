//! `peanut proxy`.

use std::io::IsTerminal as _;
use std::process::ExitCode;

use futures_util::{Stream, StreamExt as _};
use peanut_client::{Client, TlsFiles};
use peanut_proxy::traces::{Exporter, Settings, SettingsError};
use peanut_proxy::{Listener, Proxy, ProxyBuilder, ProxyHandle, TokenFiles, hangup, stop_signal};
use tokio::net::TcpListener;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, Layer as _};

use crate::args::ProxyArgs;
use crate::failure::Failure;

/// Serves until the process is told to end.
pub(crate) async fn run(client: Client, args: &ProxyArgs) -> Result<ExitCode, Failure> {
    let spans = args.otlp_endpoint.clone().map(|endpoint| {
        let ports = [&args.redis, &args.http, &args.grpc, &args.page];
        let instance = ports.into_iter().flatten().next().map_or("", |first| first);
        Exporter::new(&Settings { endpoint, sample: args.otlp_sample }, "peanut-proxy", instance)
    });
    let refused = |error: SettingsError| Failure::new(format!("--otlp-{}: {error}", error.setting));
    let spans = spans.transpose().map_err(refused)?;
    log(spans.as_ref());
    let connections = args.max_connections as usize;
    let mut proxy = Proxy::builder(client)
        .databases(&args.databases)
        .insecure(args.insecure)
        .max_connections(connections, connections);
    if let Some(group) = &args.default_group {
        proxy = proxy.default_group(group);
    }
    if args.serve_cert.is_some() {
        let (cert, key) = (args.serve_cert.clone(), args.serve_key.clone());
        proxy = proxy.tls(TlsFiles { ca: args.serve_ca.clone(), cert, key, crl: args.serve_crl.clone() });
    }
    let tokens = args.tokens.as_deref().map(TokenFiles::new);
    if let Some(tokens) = &tokens {
        proxy = tokens.first()?.into_iter().fold(proxy, ProxyBuilder::token);
    }
    let mut listening = Vec::new();
    for addr in &args.redis {
        proxy = proxy.redis(listen("the Redis protocol", addr, &mut listening).await?);
    }
    for addr in &args.http {
        proxy = proxy.http(listen("HTTP", addr, &mut listening).await?);
    }
    for addr in &args.grpc {
        proxy = proxy.grpc(listen("gRPC", addr, &mut listening).await?);
    }
    for addr in &args.page {
        proxy = proxy.page(listen("the fleet's page", addr, &mut listening).await?);
    }
    let proxy = proxy.page_hosts(&args.page_hosts).build()?;
    let unheard = |error: std::io::Error| Failure::new(format!("cannot wait for signals: {error}"));
    let (stop, hangup) = (stop_signal().map_err(unheard)?, hangup().map_err(unheard)?);
    listening.iter().for_each(|what| tracing::info!("{what}"));
    let reloading = reload(proxy.handle(), tokens, hangup);
    tokio::select! {
        () = proxy.run(stop) => {}
        () = reloading => {}
    }
    if let Some(spans) = spans {
        // It waits for what other tasks do.
        let _ = tokio::task::spawn_blocking(|| spans.end()).await;
    }
    Ok(ExitCode::SUCCESS)
}

/// Reads tokens again when their files change, and them and the certificates with each SIGHUP.
async fn reload(proxy: ProxyHandle, tokens: Option<TokenFiles>, hangup: impl Stream<Item = ()>) {
    let hangup = hangup.inspect(|()| proxy.reload_certificates());
    match tokens {
        Some(tokens) => tokens.watch(|tokens| proxy.set_tokens(tokens), hangup).await,
        None => hangup.for_each(async |()| {}).await,
    }
}

/// Logs to stderr from now on, and sends spans.
fn log(spans: Option<&Exporter>) {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    let ansi =
        std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    let lines = tracing_subscriber::fmt::layer().with_writer(std::io::stderr).with_ansi(ansi);
    let spans = spans.map(Exporter::layer);
    tracing_subscriber::registry().with(lines.with_filter(filter)).with(spans).init();
}

/// Listens at an address, or at a path, and notes what is to be said of that.
async fn listen(what: &str, addr: &str, listening: &mut Vec<String>) -> Result<Listener, Failure> {
    let refused = |error: std::io::Error| Failure::new(format!("cannot listen on {addr}: {error}"));
    #[cfg(unix)]
    if addr.starts_with('/') {
        remove_left_socket(addr);
        let listener = tokio::net::UnixListener::bind(addr).map_err(refused)?;
        listening.push(format!("{what} on {addr}"));
        return Ok(listener.into());
    }
    let listener = TcpListener::bind(addr).await.map_err(refused)?;
    listening.push(format!("{what} on {}", listener.local_addr().map_err(refused)?));
    Ok(listener.into())
}

/// Removes the socket that an earlier process has left at a path: one that nobody listens on. What is no
/// socket stays, and the address cannot be used.
#[cfg(unix)]
fn remove_left_socket(path: &str) {
    use std::os::unix::fs::FileTypeExt as _;
    let is_socket = std::fs::symlink_metadata(path).is_ok_and(|found| found.file_type().is_socket());
    let refuses = |error: std::io::Error| error.kind() == std::io::ErrorKind::ConnectionRefused;
    if is_socket && std::os::unix::net::UnixStream::connect(path).is_err_and(refuses) {
        let _ = std::fs::remove_file(path);
    }
}
