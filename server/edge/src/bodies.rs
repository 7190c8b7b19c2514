//! What calls hold while their messages are on their way: in, until they have been taken in, and out, until
//! they have been sent.
//!
//! A tower service around a gRPC service that is behind what admits calls. A long message counts from its
//! header on, before any of it is read: a unary call for which there is no room is refused, a lane waits. So
//! of the messages that there is room for each can be read to its end, and however many are begun, they take
//! no more memory than that.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf as _, Bytes};
use futures_util::FutureExt as _;
use http_body::Frame;
use parking_lot::Mutex;
use peanut_proto::failure::to_status;
use peanut_proto::limits::MAX_MESSAGE_BYTES;
use peanut_proto::v1::ErrorCode;
use tokio::time::{Sleep, sleep};
use tonic::Status;
use tonic::body::Body;
use tonic::codegen::{BoxFuture, Service, http};
use tonic::server::NamedService;

use crate::body::holding;
use crate::budget::{Account, Held};

/// Messages up to so many bytes do not count: a connection has no more streams than that matters.
const SHORT_BYTES: usize = 16 << 10;
/// How long a long message may take from its header to its end.
const MESSAGE_WITHIN: Duration = Duration::from_secs(60);
/// The header of a message in gRPC: whether it is compressed, and its length.
const HEADER: usize = 5;
/// The call that is a lane.
const LANE: &str = "/peanut.v1.Peanut/Lane";
/// The call whose message may be a list of millions of short keys, each of which takes this much more when it
/// has been read.
const DELETE: &str = "/peanut.v1.Peanut/Delete";
const BYTES_A_BYTE_OF_KEYS: usize = 16;

/// What an answer holds until it is sent.
#[derive(Clone, Debug)]
pub struct Sending {
    /// Room for it.
    pub held: Arc<Held>,
}

/// A service whose messages count for their callers' accounts: what has admitted a call has put its
/// [`Account`] into the extensions.
#[derive(Clone, Debug)]
pub struct Budgeted<S>(
    /// The service.
    pub S,
);

impl<S: NamedService> NamedService for Budgeted<S> {
    const NAME: &'static str = S::NAME;
}

impl<S> Service<http::Request<Body>> for Budgeted<S>
where
    S: Service<http::Request<Body>, Response = http::Response<Body>>,
    S::Future: Send + 'static,
{
    type Response = http::Response<Body>;
    type Error = S::Error;
    type Future = BoxFuture<http::Response<Body>, S::Error>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.0.poll_ready(context)
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let held = Arc::new(Mutex::new(None));
        let account = request.extensions().get::<Arc<Account>>().cloned();
        let is_lane = request.uri().path() == LANE;
        let bytes_a_byte = if request.uri().path() == DELETE { BYTES_A_BYTE_OF_KEYS } else { 1 };
        let request = match account {
            Some(account) => request
                .map(|body| Body::new(Incoming::new(body, account, is_lane, bytes_a_byte, held.clone()))),
            None => request,
        };
        let answered = self.0.call(request);
        Box::pin(async move {
            let mut response = answered.await?;
            if !is_lane {
                // By now it has been taken in.
                held.lock().take();
            }
            let Some(sending) = response.extensions_mut().remove::<Sending>() else { return Ok(response) };
            Ok(response.map(|body| holding(body, sending.held)))
        })
    }
}

/// The body of a request, whose long messages count.
struct Incoming {
    body: Body,
    account: Arc<Account>,
    /// A lane has message after message, and lets each go when the next is asked for; a unary call has one,
    /// to its end.
    is_lane: bool,
    /// What a byte of a message may take when it has been read.
    bytes_a_byte: usize,
    /// For the message that is being read, or was read last.
    held: Arc<Mutex<Option<Held>>>,
    header: [u8; HEADER],
    /// How much of the header there is.
    header_bytes: usize,
    /// What is missing of the message.
    missing: usize,
    is_long: bool,
    /// The message is long, and nothing is held for it yet.
    is_due: bool,
    /// For room, in turn: on a lane.
    waiting: Option<Pin<Box<dyn Future<Output = Held> + Send>>>,
    late: Option<Pin<Box<Sleep>>>,
    /// What has come and is not passed on yet.
    rest: Bytes,
}

impl Incoming {
    fn new(
        body: Body,
        account: Arc<Account>,
        is_lane: bool,
        bytes_a_byte: usize,
        held: Arc<Mutex<Option<Held>>>,
    ) -> Self {
        Incoming {
            body,
            account,
            is_lane,
            bytes_a_byte,
            held,
            header: [0; HEADER],
            header_bytes: 0,
            missing: 0,
            is_long: false,
            is_due: false,
            waiting: None,
            late: None,
            rest: Bytes::new(),
        }
    }

    /// Takes room for a long message whose header has been read.
    fn poll_room(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Status>> {
        let incoming = &self.account.incoming;
        let bytes = self.missing.min(MAX_MESSAGE_BYTES).saturating_mul(self.bytes_a_byte);
        // So that one at a time can always be read.
        let bytes = bytes.min(incoming.most());
        let held = if self.is_lane {
            let waiting = self.waiting.get_or_insert_with(|| {
                let incoming = incoming.clone();
                async move { incoming.take(bytes).await }.boxed()
            });
            ready!(waiting.poll_unpin(context))
        } else if let Some(held) = incoming.try_take(bytes) {
            held
        } else {
            let why = "too many bytes of requests of this connection, or of the node, are on their way";
            return Poll::Ready(Err(to_status(ErrorCode::Overloaded, why)));
        };
        *self.held.lock() = Some(held);
        (self.is_due, self.waiting) = (false, None);
        self.late = Some(Box::pin(sleep(MESSAGE_WITHIN)));
        Poll::Ready(Ok(()))
    }

    /// How much of `rest` may be passed on: up to the end of a long message, or to where one begins.
    fn walk(&mut self) -> usize {
        let mut at = 0;
        while at < self.rest.len() {
            if self.missing > 0 {
                let part = self.missing.min(self.rest.len() - at);
                (at, self.missing) = (at + part, self.missing - part);
                if self.missing == 0 && self.is_long {
                    break;
                }
                continue;
            }
            self.header[self.header_bytes] = self.rest[at];
            (at, self.header_bytes) = (at + 1, self.header_bytes + 1);
            if self.header_bytes == HEADER {
                let mut length = &self.header[1..];
                (self.missing, self.header_bytes) = (length.get_u32() as usize, 0);
                self.is_long = self.missing.saturating_mul(self.bytes_a_byte) > SHORT_BYTES;
                self.is_due = self.is_long;
                if self.is_due {
                    break;
                }
            }
        }
        at
    }
}

impl http_body::Body for Incoming {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let this = &mut *self;
        if this.is_due {
            if let Err(refused) = ready!(this.poll_room(context)) {
                return Poll::Ready(Some(Err(refused)));
            }
        } else if this.missing == 0 && this.is_long {
            (this.is_long, this.late) = (false, None);
            if this.is_lane {
                this.held.lock().take();
            }
        }
        if let Some(late) = &mut this.late
            && late.poll_unpin(context).is_ready()
        {
            let why = format!("a message was not there in full within {MESSAGE_WITHIN:?}");
            return Poll::Ready(Some(Err(Status::deadline_exceeded(why))));
        }
        while this.rest.is_empty() {
            let Some(frame) = ready!(Pin::new(&mut this.body).poll_frame(context)) else {
                return Poll::Ready(None);
            };
            match frame.map(Frame::into_data) {
                Ok(Ok(data)) => this.rest = data,
                Ok(Err(other)) => return Poll::Ready(Some(Ok(other))),
                Err(status) => return Poll::Ready(Some(Err(status))),
            }
        }
        let part = this.walk();
        Poll::Ready(Some(Ok(Frame::data(this.rest.split_to(part)))))
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty() && self.body.is_end_stream()
    }
}
