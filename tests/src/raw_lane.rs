//! A lane that is spoken to by hand, frame by frame.

use futures_util::stream::unfold;
use peanut_proto::frame::{GetOperation, RequestFrame, ResponseFrame};
use peanut_proto::numbers::{FillToken, RingVersion};
use peanut_proto::v1::OnMiss;
use peanut_proto::v1::peanut_client::PeanutClient;
use tokio::sync::mpsc;
use tokio::time::timeout;

use tonic::transport::{Channel, Endpoint};
use tonic::{Status, Streaming};

use crate::PATIENCE;

/// A connection to a node.
///
/// # Panics
/// Where nobody listens there.
pub async fn channel(addr: &str) -> Channel {
    let endpoint = Endpoint::from_shared(format!("http://{addr}")).expect("an address");
    endpoint.connect().await.expect("a node that listens")
}

/// Both directions of a lane.
#[derive(Debug)]
pub struct RawLane {
    requests: mpsc::UnboundedSender<RequestFrame>,
    answers: Streaming<ResponseFrame>,
}

impl RawLane {
    /// Asks for a lane on a connection.
    ///
    /// # Panics
    /// Where the node refuses it.
    pub async fn open(channel: &Channel) -> Self {
        let (requests, coming) = mpsc::unbounded_channel();
        let requests_stream = unfold(coming, async |mut coming: mpsc::UnboundedReceiver<_>| {
            Some((coming.recv().await?, coming))
        });
        let mut peanut = PeanutClient::new(channel.clone()).max_encoding_message_size(usize::MAX);
        let answers = peanut.lane(requests_stream).await.expect("a lane").into_inner();
        RawLane { requests, answers }
    }

    /// Sends a frame.
    ///
    /// # Panics
    /// Where the lane has ended.
    pub fn send(&self, frame: RequestFrame) {
        self.requests.send(frame).expect("a lane that is open");
    }

    async fn message(&mut self) -> Result<Option<ResponseFrame>, Status> {
        timeout(PATIENCE, self.answers.message()).await.expect("something from the node")
    }

    /// The next frame of answers.
    ///
    /// # Panics
    /// Where none comes in [`PATIENCE`], or the lane has ended.
    pub async fn next(&mut self) -> ResponseFrame {
        self.message().await.expect("a lane that is open").expect("a frame")
    }

    /// Why the node ends the lane.
    ///
    /// # Panics
    /// Where it answers, or says nothing in [`PATIENCE`].
    pub async fn refusal(&mut self) -> Status {
        self.message().await.expect_err("a refusal")
    }
}

/// A get of a key of the lane's group 0, without a deadline.
pub fn get(id: u32, key: &[u8], on_miss: OnMiss) -> GetOperation<'_> {
    GetOperation {
        id,
        group: 0,
        key,
        deadline_ms: 0,
        owned_since: RingVersion::NONE,
        failover: false,
        on_miss,
        token: FillToken::NONE,
        near: false,
        traceparent: "",
    }
}
