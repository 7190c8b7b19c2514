//! Operations as unary calls, one by one: for nodes that know no lanes.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use peanut_proto::failure;
use peanut_proto::frame::{Filled, Write};
use peanut_proto::limits::MAX_MESSAGE_BYTES;
use peanut_proto::numbers::{FillToken, Generation, RingVersion};
use peanut_proto::v1::peanut_client::PeanutClient;
use peanut_proto::v1::{
    DeleteRequest, DeleteResponse, ErrorCode, GetRequest, Outcome, SetRequest, SetResponse,
};
use tokio::runtime::Handle;
use tokio::time::{Instant, sleep_until, timeout_at};
use tonic::{Code, Status};

use crate::error::{Error, ErrorKind};
use crate::health::Signal;
use crate::lane::{Lease, Reply};
use crate::monitor::{Monitor, Probed, reason};
use crate::refusal::Refusal;
use crate::request::{Attempt, Op, Placement};

/// By how much the deadline that a server is told lies after the caller's own.
const DEADLINE_SLACK: Duration = Duration::from_millis(100);

/// Asks a node. Where it is silent it is probed: a node that answers a probe is busy with a load and is
/// waited for; one that does not is left.
pub(crate) async fn get(node: &Arc<Monitor>, ask: &Attempt<'_>) -> Result<Reply, Refusal> {
    let config = node.config();
    let begun = Instant::now();
    let call = timeout_at(ask.request.deadline, call(node, ask));
    tokio::pin!(call);
    let mut suspect_at = begun + config.suspect_after();
    loop {
        tokio::select! {
            biased;
            answer = &mut call => return answer.unwrap_or_else(|_| Err(Refusal::Final(node.too_late()))),
            () = sleep_until(suspect_at) => {}
        }
        tokio::select! {
            biased;
            answer = &mut call => return answer.unwrap_or_else(|_| Err(Refusal::Final(node.too_late()))),
            probed = node.probe() => if probed == Probed::Silent {
                node.saw(Signal::ProbeFailed);
                let why = format!("no answer for {:.1?}, nor to a probe", begun.elapsed());
                return Err(Refusal::Elsewhere(Error::at(ErrorKind::Unavailable, node.id(), why)));
            }
        }
        suspect_at = Instant::now() + config.suspect_after();
    }
}

async fn call(node: &Arc<Monitor>, ask: &Attempt<'_>) -> Result<Reply, Refusal> {
    let Some(channel) = node.channel() else {
        return Err(Refusal::Elsewhere(Error::at(ErrorKind::Unavailable, node.id(), &*node.out_of_reach())));
    };
    let Op::Get { on_miss, token, .. } = ask.request.op else {
        return Err(Refusal::Final(Error::at(ErrorKind::Protocol, node.id(), "a write is no get")));
    };
    let mut request = node.request(GetRequest {
        group: ask.request.group_name.to_owned(),
        key: Bytes::copy_from_slice(ask.request.key),
        on_miss: on_miss.into(),
        token: token.0,
        ring_version: ask.placement.ring_version.0,
        owned_since: ask.placement.owned_since.0,
        failover: ask.placement.failover,
    });
    if let Ok(traceparent) = ask.request.traceparent.parse()
        && !ask.request.traceparent.is_empty()
    {
        request.metadata_mut().insert("traceparent", traceparent);
    }
    // The server need not go on for long after this side has stopped waiting.
    request.set_timeout(ask.request.deadline.saturating_duration_since(Instant::now()) + DEADLINE_SLACK);
    let mut client = PeanutClient::new(channel).max_decoding_message_size(MAX_MESSAGE_BYTES);
    match client.get(request).await {
        Ok(response) => {
            node.saw(Signal::Answered);
            let response = response.into_inner();
            let token = FillToken(response.token);
            let lease = token.is_some().then(|| Arc::new(lease(node, ask.request.group_name, token)));
            Ok(Reply {
                lease,
                outcome: response.outcome(),
                age: Duration::from_millis(response.age_ms),
                ttl: Duration::from_millis(response.ttl_ms),
                token,
                written: response.written,
                sequence: 0,
                value: response.value,
                ring_version: RingVersion(response.ring_version),
            })
        }
        Err(status) => Err(refused(node, status, ask.request.deadline)),
    }
}

/// A lease that is given back by a call of its own.
fn lease(node: &Arc<Monitor>, group: &str, token: FillToken) -> Lease {
    let (node, group) = (Arc::downgrade(node), group.to_owned());
    Lease::new(move || {
        let (Some(node), Ok(runtime)) = (node.upgrade(), Handle::try_current()) else { return };
        let release =
            SetRequest { group: group.clone(), token: token.0, release: true, ..SetRequest::default() };
        runtime.spawn(async move {
            let Some(channel) = node.channel() else { return };
            let mut request = node.request(release);
            request.set_timeout(node.config().deadline);
            // Else it runs out.
            let _ = PeanutClient::new(channel).set(request).await;
        });
    })
}

/// Has a node write.
pub(crate) async fn write(node: &Arc<Monitor>, ask: &Attempt<'_>) -> Result<Reply, Refusal> {
    let written = timeout_at(ask.request.deadline, call_write(node, ask)).await;
    written.unwrap_or_else(|_| Err(Refusal::Final(node.too_late())))
}

async fn call_write(node: &Arc<Monitor>, ask: &Attempt<'_>) -> Result<Reply, Refusal> {
    let (Some(channel), Op::Write(write)) = (node.channel(), ask.request.op) else {
        return Err(Refusal::Elsewhere(Error::at(
            ErrorKind::Unavailable,
            node.id(),
            "it cannot be written to",
        )));
    };
    let mut client = PeanutClient::new(channel).max_encoding_message_size(MAX_MESSAGE_BYTES);
    let timeout = ask.request.deadline.saturating_duration_since(Instant::now()) + DEADLINE_SLACK;
    let written = match message(ask, write) {
        Message::Set(request) => {
            let mut request = node.request(request);
            request.set_timeout(timeout);
            client.set(request).await.map(|answer| {
                let SetResponse { outcome, ring_version } = answer.into_inner();
                let outcome = Outcome::try_from(outcome).unwrap_or_default();
                (outcome, ring_version, FillToken::NONE, 0)
            })
        }
        Message::Delete(request) => {
            let mut request = node.request(request);
            request.set_timeout(timeout);
            client.delete(request).await.map(|answer| {
                let DeleteResponse { ring_version, token, sequence } = answer.into_inner();
                (Outcome::Done, ring_version, FillToken(token), sequence)
            })
        }
    };
    match written {
        Ok((outcome, ring_version, token, sequence)) => {
            node.saw(Signal::Answered);
            let lease = token.is_some().then(|| Arc::new(lease(node, ask.request.group_name, token)));
            let ring_version = RingVersion(ring_version);
            Ok(Reply { token, sequence, lease, ring_version, ..Reply::of_write(outcome) })
        }
        Err(status) => Err(refused(node, status, ask.request.deadline)),
    }
}

/// A write as a message of its own.
enum Message {
    Set(SetRequest),
    Delete(DeleteRequest),
}

fn message(ask: &Attempt<'_>, write: Write<'_>) -> Message {
    let group = ask.request.group_name.to_owned();
    let Placement { ring_version: RingVersion(ring_version), owned_since, failover } = ask.placement;
    let forget = DeleteRequest { group: group.clone(), ring_version, ..DeleteRequest::default() };
    match write {
        Write::Set { key, outcome, ttl_ms, token } => Message::Set(SetRequest {
            group,
            key: Bytes::copy_from_slice(key),
            ttl_ms,
            ring_version,
            owned_since: owned_since.0,
            token: token.0,
            failover,
            ..of(outcome)
        }),
        // The value follows under the token.
        Write::Replace { key, .. } => Message::Delete(DeleteRequest {
            keys: vec![Bytes::copy_from_slice(key)],
            then_set: true,
            ..forget
        }),
        Write::ReplaceOrForget { key, sequence, .. } => {
            let keys = vec![Bytes::copy_from_slice(key)];
            Message::Delete(DeleteRequest { keys, then_set: true, sequence, ..forget })
        }
        Write::Delete { key, then_set, sequence } => Message::Delete(DeleteRequest {
            keys: vec![Bytes::copy_from_slice(key)],
            then_set,
            sequence,
            ..forget
        }),
        Write::Clear { generation } => {
            let all = generation == Generation::NONE;
            Message::Delete(DeleteRequest { generation: generation.0, all, ..forget })
        }
        Write::Release { token } => {
            Message::Set(SetRequest { group, token: token.0, release: true, ..SetRequest::default() })
        }
    }
}

/// What a set brings.
fn of(outcome: Filled<'_>) -> SetRequest {
    match outcome {
        Filled::Value(value) => SetRequest { value: Bytes::copy_from_slice(value), ..SetRequest::default() },
        Filled::NotFound => SetRequest { not_found: true, ..SetRequest::default() },
        Filled::Failed(message) => SetRequest { load_error: message.to_owned(), ..SetRequest::default() },
    }
}

/// Asks a node whether this client may write to a group: it is told to forget no keys.
pub(crate) async fn may_write(node: &Arc<Monitor>, group: &str, deadline: Instant) -> Result<(), Refusal> {
    let Some(channel) = node.channel() else {
        return Err(Refusal::Elsewhere(Error::at(ErrorKind::Unavailable, node.id(), &*node.out_of_reach())));
    };
    let nothing = DeleteRequest { group: group.to_owned(), ..DeleteRequest::default() };
    let mut client = PeanutClient::new(channel);
    match timeout_at(deadline, client.delete(node.request(nothing))).await {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(status)) => Err(refused(node, status, deadline)),
        Err(_) => Err(Refusal::Final(node.too_late())),
    }
}

/// Tells the node's own refusals from the transport's failures.
pub(crate) fn refused(node: &Arc<Monitor>, status: Status, deadline: Instant) -> Refusal {
    if let Some(code) = failure::from_status(&status) {
        // Another process is at the address.
        node.saw(if code == ErrorCode::WrongNode { Signal::NotConnected } else { Signal::Answered });
        return node.said(code, status.message(), deadline);
    }
    let message = reason(&status);
    let error = |kind| Error::at(kind, node.id(), message);
    match status.code() {
        // How tonic refuses a message that is too long, on either side.
        Code::OutOfRange => Refusal::Final(error(ErrorKind::TooLarge)),
        Code::DeadlineExceeded => Refusal::Final(error(ErrorKind::DeadlineExceeded)),
        // Whatever it looks like, a call that ends after its deadline was ended by it.
        _ if Instant::now() >= deadline => Refusal::Final(error(ErrorKind::DeadlineExceeded)),
        // A transport that is gone, or that leads to some other server, arrives as any of the others.
        _ => {
            node.lost(&status);
            Refusal::Elsewhere(error(ErrorKind::Unavailable))
        }
    }
}
