//! Threads that serve connections.
//!
//! A connection is several tasks that wake one another for every frame. On a runtime of many threads each of
//! these may wake a thread; on a runtime of one thread it is a push onto a queue. So a server may be given
//! threads with a runtime of one thread each, and its connections go round them, as memcached's go round its
//! workers. Loads stay where the server itself runs: a loader that computes or blocks holds up no hits.

use std::io;
use std::sync::Arc;

use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::connections::{ConnectionLimiter, Handshake, Listener, Permitted, Services, accept, serve_grpc};
use crate::error::Error;

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

/// Serves one connection to its end.
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
    serve_grpc(connection, services, stop).await;
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
