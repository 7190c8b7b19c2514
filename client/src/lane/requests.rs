//! The stream of requests that tonic sends: the lane's queue itself.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures_util::Stream;
use peanut_proto::frame::RequestFrame;
use tokio::time::Instant;

use super::Shared;
use super::state::NextFrame;

/// What is sent on one opening of a lane.
pub(super) struct Requests {
    pub(super) shared: Arc<Shared>,
    pub(super) epoch: u64,
}

impl Stream for Requests {
    type Item = RequestFrame;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<RequestFrame>> {
        let next = self.shared.state.lock().next_frame(self.epoch, Instant::now(), context.waker());
        match next {
            NextFrame::Send(frame) => Poll::Ready(Some(frame)),
            NextFrame::Later => Poll::Pending,
            NextFrame::Ended => Poll::Ready(None),
        }
    }
}
