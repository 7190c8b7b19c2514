//! From a listener to connections that may be had.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use super::{Accepted, ConnectionLimiter, Listener, Permit};

/// After a connection could not be accepted, for want of file descriptors say.
const PAUSE: Duration = Duration::from_millis(50);

/// Without such trouble for so long it is over.
const OVER: Duration = Duration::from_secs(10);

/// A connection that was accepted, and leave to have it.
pub type Permitted = (Accepted, Permit);

/// Accepts connections and gives them away until `stop`, or until nobody takes them.
pub async fn accept(
    listener: &Listener,
    limiter: &Arc<ConnectionLimiter>,
    stop: &CancellationToken,
    mut take: impl FnMut(Permitted) -> bool,
) {
    let mut in_trouble: Option<Instant> = None;
    loop {
        let accepted = tokio::select! {
            biased;
            () = stop.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, peer)) => {
                let Some(permit) = limiter.let_in(peer.ip(), Instant::now()) else {
                    tracing::debug!(%peer, "there are too many connections for one more");
                    continue;
                };
                if !take((stream, permit)) {
                    return;
                }
            }
            Err(error) => {
                // Said once until it is over for a while: there may be no descriptor for seconds, and one now
                // and then.
                let last = in_trouble.replace(Instant::now());
                if last.is_none_or(|last| last.elapsed() > OVER) {
                    tracing::warn!(%error, "connections cannot be accepted");
                }
                sleep(PAUSE).await;
            }
        }
    }
}
