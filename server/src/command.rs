//! The binary's body: read the configuration, listen, run, and end with an exit code that says how it
//! went.

use std::io::IsTerminal as _;
use std::process::ExitCode;

use futures_util::{Stream, StreamExt as _};
use tokio::net::TcpListener;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, Layer as _};

/// The allocator of the binary: the system's where jemalloc cannot be built.
#[cfg(target_env = "msvc")]
pub use std::alloc::System as Allocator;
/// The allocator of the binary: one that gives back to the system what large values took.
#[cfg(not(target_env = "msvc"))]
pub use tikv_jemallocator::Jemalloc as Allocator;

use crate::ServerHandle;
use peanut_edge::rights::file::TokenFiles;
use peanut_edge::signals::{hangup, stop_signal};
use peanut_edge::traces::Exporter;

use crate::config::{Config, LogFormat, Stop};
use crate::error::{Error, ErrorKind};

/// Exit code for a configuration that cannot be used (`EX_CONFIG` of sysexits.h).
pub const EXIT_CONFIG: u8 = 78;
/// Exit code for anything else that keeps the server from running.
pub const EXIT_FAILURE: u8 = 1;

/// Runs `peanut-server` with the process's arguments and environment until SIGTERM or ctrl-C.
///
/// Exit codes: 0 after a stop that was asked for, [`EXIT_CONFIG`] or [`EXIT_FAILURE`] with one line on
/// stderr.
pub fn main() -> ExitCode {
    // Loaders may need the runtime already when they are made.
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return fail(EXIT_FAILURE, &format!("no runtime: {error}")),
    };
    let _guard = runtime.enter();
    let config = match Config::read(std::env::args()) {
        Ok(config) => config,
        Err(Stop::Say(text)) => {
            print!("{text}");
            return ExitCode::SUCCESS;
        }
        Err(Stop::Connect(checks)) => {
            let all_is_well = runtime.block_on(checks.run(|line| println!("{line}")));
            runtime.shutdown_background();
            return if all_is_well { ExitCode::SUCCESS } else { ExitCode::from(EXIT_CONFIG) };
        }
        Err(Stop::Refuse(error)) => return fail(EXIT_CONFIG, &error.to_string()),
    };
    let spans = config.otlp.as_ref().map(|(to, node)| Exporter::new(to, "peanut-server", node)).transpose();
    let spans = match spans {
        Ok(spans) => spans,
        Err(error) => return fail(EXIT_CONFIG, &format!("otlp: {error}")),
    };
    if let Err(error) = log(&config.log, config.log_format, spans.as_ref()) {
        return fail(EXIT_CONFIG, &error);
    }
    let result = runtime.block_on(run(config));
    spans.into_iter().for_each(Exporter::end);
    runtime.shutdown_background();
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if error.kind() == ErrorKind::Configuration => fail(EXIT_CONFIG, &format!("{error:#}")),
        Err(error) => fail(EXIT_FAILURE, &format!("{error:#}")),
    }
}

/// Logs to stderr from now on, and sends spans.
fn log(filter: &str, format: LogFormat, spans: Option<&Exporter>) -> Result<(), String> {
    let filter = EnvFilter::try_new(filter).map_err(|error| format!("log: `{filter}`: {error}"))?;
    let no_color = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    let ansi = std::io::stderr().is_terminal() && !no_color;
    let lines = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
    let lines = match format {
        LogFormat::Text => lines.with_ansi(ansi).boxed(),
        LogFormat::Pretty => lines.with_ansi(ansi).pretty().boxed(),
        LogFormat::Json => lines.json().flatten_event(true).boxed(),
    };
    let spans = spans.map(Exporter::layer);
    tracing_subscriber::registry().with(lines.with_filter(filter)).with(spans).init();
    Ok(())
}

fn fail(code: u8, why: &str) -> ExitCode {
    eprintln!("peanut-server: {why}");
    ExitCode::from(code)
}

async fn run(config: Config) -> Result<(), Error> {
    let listen = config.listen.0;
    let listener = TcpListener::bind(listen)
        .await
        .map_err(|e| Error::transport(&format!("cannot listen on {listen}, choose another `listen`"), e))?;
    let stop = stop_signal().map_err(|e| Error::transport("cannot wait for signals", e))?;
    let hangup = hangup().map_err(|e| Error::transport("cannot wait for signals", e))?;
    let server = config.server.prepare(listener).await?;
    let reload = reload(server.handle(), config.tokens, hangup);
    let _reloading = tokio_util::task::AbortOnDropHandle::new(tokio::spawn(reload));
    server.run(stop).await
}

/// Reads tokens again when their files change, and them and the certificates with each SIGHUP.
async fn reload(server: ServerHandle, tokens: Option<TokenFiles>, hangup: impl Stream<Item = ()>) {
    let hangup = hangup.inspect(|()| server.reload_certificates());
    match tokens {
        Some(tokens) => tokens.watch(|tokens| server.set_tokens(tokens), hangup).await,
        None => hangup.for_each(async |()| {}).await,
    }
}
