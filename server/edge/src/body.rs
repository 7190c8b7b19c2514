//! The body of an answer with something that lasts as long as it: until all of it has been sent, or dropped.
//!
//! That is longer than the body itself: what speaks HTTP takes a body's chunks, however long, and drops it
//! then, while they wait for the peer to take them. So the chunks hold it, too.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Frame, SizeHint};
use tonic::Status;
use tonic::body::Body;

struct Holding<T> {
    body: Body,
    held: Arc<T>,
}

/// A chunk of such a body.
struct Chunk<T> {
    bytes: Bytes,
    _held: Arc<T>,
}

impl<T> AsRef<[u8]> for Chunk<T> {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

/// The same body, which lets go of what it holds when it and the last of its chunks are dropped.
pub fn holding<T: Send + Sync + 'static>(body: Body, held: T) -> Body {
    Body::new(Holding { body, held: Arc::new(held) })
}

impl<T: Send + Sync + 'static> http_body::Body for Holding<T> {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let frame = Pin::new(&mut self.body).poll_frame(context);
        let held = |bytes| Bytes::from_owner(Chunk { bytes, _held: self.held.clone() });
        frame.map_ok(|frame| frame.map_data(held))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A body of two chunks.
    struct Two(u8);

    impl http_body::Body for Two {
        type Data = Bytes;
        type Error = Status;

        fn poll_frame(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
            self.0 += 1;
            Poll::Ready((self.0 <= 2).then(|| Ok(Frame::data(Bytes::from_static(b"all")))))
        }
    }

    #[test]
    fn what_is_held_is_let_go_of_when_the_last_chunk_is() {
        let (held, mut chunks) = (Arc::new(()), Vec::new());
        let mut body = holding(Body::new(Two(0)), held.clone());
        let mut context = Context::from_waker(std::task::Waker::noop());
        while let Poll::Ready(Some(frame)) = http_body::Body::poll_frame(Pin::new(&mut body), &mut context) {
            chunks.extend(frame.unwrap().into_data());
        }
        drop(body);
        assert_eq!((Arc::strong_count(&held), chunks.concat()), (2, b"allall".to_vec()));
        chunks.pop();
        assert_eq!(Arc::strong_count(&held), 2, "one is on its way still");
        chunks.clear();
        assert_eq!(Arc::strong_count(&held), 1);
    }
}
