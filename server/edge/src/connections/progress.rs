//! Writes that fail where they make no progress: a peer that does not read would hold what its answers take
//! for ever.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Sleep, sleep};

/// How long a write may wait before its next byte is taken.
const PROGRESS_WITHIN: Duration = Duration::from_secs(60);

/// A connection whose writes fail with [`TimedOut`](io::ErrorKind::TimedOut) where nothing can be written for
/// a minute. Its reads take as long as they take.
#[derive(Debug)]
pub struct Progressing<S> {
    io: S,
    /// Runs while a write waits.
    late: Option<Pin<Box<Sleep>>>,
}

impl<S> Progressing<S> {
    /// This connection, with the bound.
    pub fn new(io: S) -> Self {
        Progressing { io, late: None }
    }

    /// What a write came to, or that it has waited for too long.
    fn bound<T>(&mut self, context: &mut Context<'_>, written: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if written.is_ready() {
            self.late = None;
            return written;
        }
        let late = self.late.get_or_insert_with(|| Box::pin(sleep(PROGRESS_WITHIN)));
        ready!(late.as_mut().poll(context));
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Progressing<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(context, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Progressing<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.io).poll_write(context, bytes);
        self.bound(context, written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.io).poll_write_vectored(context, slices);
        self.bound(context, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.io).poll_flush(context);
        self.bound(context, flushed)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let shut = Pin::new(&mut self.io).poll_shutdown(context);
        self.bound(context, shut)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, duplex};
    use tokio::time::Instant;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_write_that_nobody_reads_ends_in_time() {
        let (_near, far) = duplex(10);
        let begun = Instant::now();
        let error = Progressing::new(far).write_all(&[0; 100]).await.unwrap_err();
        assert_eq!((error.kind(), begun.elapsed()), (io::ErrorKind::TimedOut, PROGRESS_WITHIN));
    }

    #[tokio::test(start_paused = true)]
    async fn a_write_to_a_slow_reader_takes_its_time() {
        let (mut near, far) = duplex(10);
        let reading = tokio::spawn(async move {
            let (mut part, mut read) = ([0; 10], 0);
            while read < 100 {
                sleep(PROGRESS_WITHIN / 2).await;
                read += near.read(&mut part).await.unwrap();
            }
        });
        let begun = Instant::now();
        Progressing::new(far).write_all(&[0; 100]).await.unwrap();
        assert!(begun.elapsed() > 3 * PROGRESS_WITHIN);
        reading.await.unwrap();
    }
}
