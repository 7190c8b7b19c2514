//! What a process is told by its signals.

use futures_util::Stream;

/// Yields with each SIGHUP.
///
/// # Errors
/// Where the system does not say so.
#[cfg(unix)]
pub fn hangup() -> std::io::Result<impl Stream<Item = ()>> {
    use tokio::signal::unix::{SignalKind, signal};
    let hangup = signal(SignalKind::hangup())?;
    Ok(futures_util::stream::unfold(hangup, async |mut hangup| Some((hangup.recv().await?, hangup))))
}

/// As on Unix.
///
/// # Errors
/// None.
#[cfg(not(unix))]
pub fn hangup() -> std::io::Result<impl Stream<Item = ()>> {
    Ok(futures_util::stream::pending())
}

/// Completes with the first SIGTERM or ctrl-C.
///
/// # Errors
/// Where the system does not say so.
#[cfg(unix)]
pub fn stop_signal() -> std::io::Result<impl Future<Output = ()>> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    })
}

/// As on Unix.
///
/// # Errors
/// None.
#[cfg(not(unix))]
pub fn stop_signal() -> std::io::Result<impl Future<Output = ()>> {
    Ok(async {
        let _ = tokio::signal::ctrl_c().await;
    })
}
