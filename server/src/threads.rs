//! Threads that serve connections.
//!
//! A connection is several tasks that wake one another for every frame. On a runtime of many threads each of
//! these may wake a thread; on a runtime of one thread it is a push onto a queue. So a server may be given
//! threads with a runtime of one thread each, and its connections go round them, as memcached's go round its
//! workers. Loads stay where the server itself runs: a loader that computes or blocks holds up no hits.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream::{once, pending};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};
use tokio_util::sync::{CancellationToken, DropGuard};
use tonic::transport::server::Router;
use tower::layer::util::{Identity, Stack};

use crate::connections::{Accepted, ConnectionLimiter, CountStreams, Handshake, Listener, Permit, Presence};
use crate::error::Error;

/// After a connection could not be accepted, for want of file descriptors say.
const PAUSE: Duration = Duration::from_millis(50);

/// Without such trouble for so long it is over.
const OVER: Duration = Duration::from_secs(10);

/// All services, with the streams of each connection counted.
pub(crate) type Services = Router<Stack<CountStreams, Identity>>;

/// Serves what comes in on `listener` until `stop`, and until every connection has ended then. With no
/// `threads` it serves on the caller's runtime. Dropping the future ends the threads.
pub(crate) async fn serve(
    threads: usize,
    listener: Listener,
    (limiter, handshake): (Arc<ConnectionLimiter>, Handshake),
    services: Services,
    stop: CancellationToken,
) -> Result<(), Error> {
    if threads == 0 {
        let (connections, coming) = mpsc::unbounded_channel();
        let serving = serve_all(coming, services, handshake, stop.clone());
        tokio::pin!(serving);
        tokio::select! {
            biased;
            () = &mut serving => {}
            () = accept(&listener, &limiter, &stop, |it| connections.send(it).is_ok()) => {
                drop((listener, connections));
                serving.await;
            }
        };
        return Ok(());
    }
    let threads = (0..threads).map(|at| Thread::start(at, services.clone(), handshake.clone(), stop.clone()));
    let threads = threads
        .collect::<io::Result<Vec<_>>>()
        .map_err(|error| Error::transport("cannot start a thread", error))?;
    let mut turns = (0..threads.len()).cycle();
    accept(&listener, &limiter, &stop, |it| {
        let turn = turns.next().unwrap_or_default();
        threads[turn].connections.send(it).is_ok()
    })
    .await;
    drop(listener);
    for thread in threads {
        drop(thread.connections);
        // It has ended where nobody says so.
        let _ = thread.ended.await;
    }
    Ok(())
}

/// A connection that was accepted, and leave to have it.
type Permitted = (Accepted, Permit);

/// Accepts connections and gives them away until `stop`, or until nobody takes them.
pub(crate) async fn accept(
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

/// Serves connections as they come, until nobody sends any more and all have ended.
async fn serve_all(
    mut coming: mpsc::UnboundedReceiver<Permitted>,
    services: Services,
    handshake: Handshake,
    stop: CancellationToken,
) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            biased;
            Some(_) = connections.join_next() => {}
            accepted = coming.recv() => {
                let Some(accepted) = accepted else { break };
                connections.spawn(serve_one(accepted, services.clone(), handshake.clone(), stop.clone()));
            }
        }
    }
    while connections.join_next().await.is_some() {}
}

/// Serves one connection to its end. When it is to retire, or all are to stop, its client is told so
/// (GOAWAY), and what it asks until it has heard that is answered.
async fn serve_one(
    (stream, permit): Permitted,
    services: Services,
    handshake: Handshake,
    stop: CancellationToken,
) {
    let Ok(stream) = stream.bind() else { return };
    let Some(Some(connection)) = stop.run_until_cancelled(handshake.run(stream, permit)).await else {
        return;
    };
    let presence = connection.peer().presence().clone();
    // tonic serves it in a task of its own, which ends with this one.
    let _cut = CutOnDrop(presence.clone());
    let ending = async {
        tokio::select! {
            biased;
            () = stop.cancelled() => {}
            () = presence.retiring().cancelled() => {}
        }
    };
    let alone = once(std::future::ready(Ok::<_, io::Error>(connection))).chain(pending());
    if let Err(error) = services.serve_with_incoming_shutdown(alone, ending).await {
        tracing::debug!(%error, "a connection could not be served");
    }
}

/// Cuts a connection off with the task that serves it.
struct CutOnDrop(Arc<Presence>);

impl Drop for CutOnDrop {
    fn drop(&mut self) {
        self.0.cut_off();
    }
}

struct Thread {
    connections: mpsc::UnboundedSender<Permitted>,
    ended: oneshot::Receiver<()>,
    _abort: DropGuard,
}

impl Thread {
    fn start(
        number: usize,
        services: Services,
        handshake: Handshake,
        stop: CancellationToken,
    ) -> io::Result<Self> {
        let (connections, coming) = mpsc::unbounded_channel();
        let (ending, ended) = oneshot::channel();
        let abort = CancellationToken::new();
        let aborted = abort.clone().cancelled_owned();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let serving = async move {
            tokio::select! {
                biased;
                () = aborted => {}
                () = serve_all(coming, services, handshake, stop) => {
                    let _ = ending.send(());
                }
            }
        };
        std::thread::Builder::new()
            .name(format!("peanut-{number}"))
            .spawn(move || runtime.block_on(serving))?;
        Ok(Thread { connections, ended, _abort: abort.drop_guard() })
    }
}
