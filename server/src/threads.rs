//! Threads that serve connections.
//!
//! A connection is several tasks that wake one another for every frame. On a runtime of many threads each of
//! these may wake a thread; on a runtime of one thread it is a push onto a queue. So a server may be given
//! threads with a runtime of one thread each, and its connections go round them, as memcached's go round its
//! workers. Loads stay where the server itself runs: a loader that computes or blocks holds up no hits.

use std::io;
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream::unfold;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, oneshot};
use tokio::time::sleep;
use tokio_util::sync::{CancellationToken, DropGuard};
use tonic::transport::server::{Router, TcpIncoming};

use crate::error::Error;

/// After a connection could not be accepted, for want of file descriptors say.
const PAUSE: Duration = Duration::from_millis(50);

/// Serves what comes in on `listener` until `stop`, and until every connection has ended then. With no
/// `threads` it serves on the caller's runtime. Dropping the future ends the threads.
pub(crate) async fn serve(
    threads: usize,
    listener: TcpListener,
    router: Router,
    stop: CancellationToken,
) -> Result<(), Error> {
    let mut incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
    let failed = |error| Error::transport("serving failed", error);
    if threads == 0 {
        return router.serve_with_incoming_shutdown(incoming, stop.cancelled_owned()).await.map_err(failed);
    }
    let threads = (0..threads).map(|number| Thread::start(number, router.clone(), stop.clone()));
    let threads = threads
        .collect::<io::Result<Vec<_>>>()
        .map_err(|error| Error::transport("cannot start a thread", error))?;
    for thread in (0..threads.len()).cycle() {
        let connection = tokio::select! {
            connection = incoming.next() => connection,
            () = stop.cancelled() => break,
        };
        match connection.map(|connection| connection.and_then(TcpStream::into_std)) {
            Some(Ok(connection)) => {
                // A thread that has ended tells why below.
                if threads[thread].connections.send(connection).is_err() {
                    break;
                }
            }
            Some(Err(error)) => {
                tracing::warn!(%error, "a connection was not accepted");
                sleep(PAUSE).await;
            }
            None => break,
        }
    }
    drop(incoming);
    for thread in threads {
        if let Ok(served) = thread.ended.await {
            served.map_err(failed)?;
        }
    }
    Ok(())
}

struct Thread {
    connections: mpsc::UnboundedSender<std::net::TcpStream>,
    ended: oneshot::Receiver<Result<(), tonic::transport::Error>>,
    _abort: DropGuard,
}

impl Thread {
    fn start(number: usize, router: Router, stop: CancellationToken) -> io::Result<Self> {
        let (connections, coming) = mpsc::unbounded_channel();
        let (ending, ended) = oneshot::channel();
        let abort = CancellationToken::new();
        let aborted = abort.clone().cancelled_owned();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let incoming = unfold(coming, async |mut coming: mpsc::UnboundedReceiver<_>| {
            let connection: std::net::TcpStream = coming.recv().await?;
            Some((TcpStream::from_std(connection), coming))
        });
        let serving = async move {
            tokio::select! {
                served = router.serve_with_incoming_shutdown(incoming, stop.cancelled_owned()) => {
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
