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
use futures_util::stream::unfold;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, oneshot};
use tokio::time::sleep;
use tokio_util::sync::{CancellationToken, DropGuard};
use tonic::transport::server::Router;

use crate::connections::{Connection, Door, Handshake, Pass};
use crate::error::Error;

/// After a connection could not be accepted, for want of file descriptors say.
const PAUSE: Duration = Duration::from_millis(50);

/// Serves what comes in on `listener` until `stop`, and until every connection has ended then. With no
/// `threads` it serves on the caller's runtime. Dropping the future ends the threads.
pub(crate) async fn serve(
    threads: usize,
    listener: TcpListener,
    (door, handshake): (Arc<Door>, Handshake),
    router: Router,
    stop: CancellationToken,
) -> Result<(), Error> {
    if threads == 0 {
        let (connections, coming) = mpsc::unbounded_channel();
        let incoming = shaken(coming, handshake);
        let serving = router.serve_with_incoming_shutdown(incoming, stop.clone().cancelled_owned());
        tokio::pin!(serving);
        return tokio::select! {
            served = &mut serving => served.map_err(failed),
            () = accept(&listener, &door, &stop, |it| connections.send(it).is_ok()) => {
                drop((listener, connections));
                serving.await.map_err(failed)
            }
        };
    }
    let threads = (0..threads).map(|at| Thread::start(at, router.clone(), handshake.clone(), stop.clone()));
    let threads = threads
        .collect::<io::Result<Vec<_>>>()
        .map_err(|error| Error::transport("cannot start a thread", error))?;
    let mut turns = (0..threads.len()).cycle();
    accept(&listener, &door, &stop, |it| {
        let turn = turns.next().unwrap_or_default();
        threads[turn].connections.send(it).is_ok()
    })
    .await;
    drop(listener);
    for thread in threads {
        drop(thread.connections);
        if let Ok(served) = thread.ended.await {
            served.map_err(failed)?;
        }
    }
    Ok(())
}

fn failed(error: tonic::transport::Error) -> Error {
    Error::transport("serving failed", error)
}

/// A socket that was accepted, and leave to have it.
type Accepted = (std::net::TcpStream, Pass);

/// Accepts connections and gives them away until `stop`, or until nobody takes them.
pub(crate) async fn accept(
    listener: &TcpListener,
    door: &Arc<Door>,
    stop: &CancellationToken,
    mut take: impl FnMut(Accepted) -> bool,
) {
    let mut in_trouble = false;
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = stop.cancelled() => return,
        };
        match accepted.and_then(|(stream, peer)| Ok((stream.into_std()?, peer))) {
            Ok((stream, peer)) => {
                in_trouble = false;
                let Some(pass) = door.let_in(peer.ip()) else {
                    tracing::debug!(%peer, "there are too many connections for one more");
                    continue;
                };
                if !take((stream, pass)) {
                    return;
                }
            }
            Err(error) => {
                // Said once until it is over: there may be no descriptor for seconds.
                if !std::mem::replace(&mut in_trouble, true) {
                    tracing::warn!(%error, "connections cannot be accepted");
                }
                sleep(PAUSE).await;
            }
        }
    }
}

/// Connections on which HTTP/2 has begun.
fn shaken(
    coming: mpsc::UnboundedReceiver<Accepted>,
    handshake: Handshake,
) -> impl futures_util::Stream<Item = io::Result<Connection>> {
    let coming =
        unfold(coming, async |mut coming: mpsc::UnboundedReceiver<_>| Some((coming.recv().await?, coming)));
    let shaken = coming.map(move |(stream, pass)| {
        let handshake = handshake.clone();
        async move { handshake.run(TcpStream::from_std(stream).ok()?, pass).await }
    });
    // The door bounds how many there are.
    shaken.buffer_unordered(usize::MAX).filter_map(async |connection| connection.map(Ok))
}

struct Thread {
    connections: mpsc::UnboundedSender<Accepted>,
    ended: oneshot::Receiver<Result<(), tonic::transport::Error>>,
    _abort: DropGuard,
}

impl Thread {
    fn start(
        number: usize,
        router: Router,
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
                served = router.serve_with_incoming_shutdown(shaken(coming, handshake), stop.cancelled_owned()) => {
                    let _ = ending.send(served);
                }
                () = aborted => {}
            }
        };
        std::thread::Builder::new()
            .name(format!("peanut-{number}"))
            .spawn(move || runtime.block_on(serving))?;
        Ok(Thread { connections, ended, _abort: abort.drop_guard() })
    }
}
