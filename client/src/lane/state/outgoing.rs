//! The frames of a lane on their way out: what is written goes into the next one, which is taken when the
//! transport is ready for it.

use std::task::Waker;

use peanut_proto::frame::{
    FRAME_BYTES, GetManyOperation, GetOperation, RequestFrame, RequestWriter, Write, WriteOperation,
};
use peanut_proto::numbers::RingVersion;
use peanut_proto::v1::{Near, OnMiss};
use tokio::time::Instant;

use super::LaneState;
use crate::request::{Attempt, Each, ManyAttempt, Op, Request};

/// What there is to send.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::lane) enum NextFrame {
    Send(RequestFrame),
    Later,
    /// The stream is not the lane's any more.
    Ended,
}

impl LaneState {
    pub(super) fn write(&mut self, id: u32, ask: &Attempt<'_>, now: Instant) {
        let value_bytes = match ask.request.op {
            Op::Write(write) => write.value_bytes(),
            Op::Get { .. } => 0,
        };
        self.make_ready(ask.request, ask.placement.ring_version, value_bytes, now);
        let deadline_ms = deadline_ms(ask.request.deadline, *self.frame_begun.get_or_insert(now));
        let (group, failover) = (ask.request.group, ask.placement.failover);
        match ask.request.op {
            Op::Get { on_miss, token, near } => {
                let (key, owned_since) = (ask.request.key, ask.placement.owned_since);
                self.frame.get(&GetOperation {
                    id,
                    group,
                    key,
                    deadline_ms,
                    owned_since,
                    failover,
                    on_miss,
                    token,
                    near,
                    traceparent: ask.request.traceparent,
                });
            }
            Op::Write(write) => {
                self.frame.write(&WriteOperation { id, group, deadline_ms, failover, write });
            }
        }
    }

    pub(super) fn write_many(&mut self, id: u32, ask: &ManyAttempt<'_>, now: Instant) {
        let request = &ask.request;
        let value_bytes = match ask.each {
            Each::Get(_) => 0,
            Each::Write(writes) => writes.iter().map(Write::value_bytes).max().unwrap_or(0),
        };
        self.make_ready(request, ask.placement.ring_version, value_bytes, now);
        let deadline_ms = deadline_ms(request.deadline, *self.frame_begun.get_or_insert(now));
        match ask.each {
            Each::Get(keys) => {
                let on_miss = match request.op {
                    Op::Get { on_miss, .. } => on_miss,
                    Op::Write(_) => OnMiss::Load,
                };
                let get = GetManyOperation {
                    id,
                    group: request.group,
                    deadline_ms,
                    owned_since: ask.placement.owned_since,
                    on_miss,
                    traceparent: request.traceparent,
                };
                self.frame.get_many(&get, keys.iter().map(|(_, key)| key.bytes));
            }
            Each::Write(writes) => {
                self.frame.write_many((id, request.group, deadline_ms), writes.iter());
            }
        }
    }

    /// Has the frame say what the next operation goes by.
    pub(super) fn make_ready(
        &mut self,
        request: &Request<'_>,
        by: RingVersion,
        value_bytes: usize,
        now: Instant,
    ) {
        // A ring version holds for its whole frame, and a long value has one to itself.
        if self.frame.len() >= FRAME_BYTES
            || (value_bytes >= FRAME_BYTES && !self.frame.is_empty())
            || (self.told_version != by && !self.frame.is_empty())
        {
            self.close_frame(now);
        }
        if self.told_version != by {
            self.told_version = by;
            self.frame.ring_version(by);
        }
        let group = request.group as usize;
        if group >= self.told_groups.len() {
            self.told_groups.resize(group + 1, false);
        }
        if !std::mem::replace(&mut self.told_groups[group], true) {
            let near = self.near.as_ref().map_or(Near::Off, |near| near.of_group(request.group_name));
            self.frame.group(request.group, request.group_name, near);
        }
    }

    fn close_frame(&mut self, now: Instant) {
        let begun = self.frame_begun.take().unwrap_or(now);
        self.full_bytes += self.frame.len();
        self.full.push_back((self.frame.take(), begun));
    }

    /// The next frame to send on stream `epoch`, or how the stream stands; `writer` is woken when there is
    /// more.
    pub(in crate::lane) fn next_frame(&mut self, epoch: u64, now: Instant, writer: &Waker) -> NextFrame {
        if self.open != Some(epoch) {
            return NextFrame::Ended;
        }
        let (frame, begun) = match self.full.pop_front() {
            Some((frame, begun)) => {
                self.full_bytes -= frame.0.len();
                (frame, begun)
            }
            None if self.frame.is_empty() && self.draining => return NextFrame::Ended,
            None if self.frame.is_empty() => {
                self.writer = Some(writer.clone());
                return NextFrame::Later;
            }
            None => (self.frame.take(), self.frame_begun.take().unwrap_or(now)),
        };
        self.frames_sent += 1;
        let waited_ms = u32::try_from(now.saturating_duration_since(begun).as_millis()).unwrap_or(u32::MAX);
        if waited_ms == 0 && self.opening.is_none() {
            return NextFrame::Send(frame);
        }
        let mut longer = RequestWriter::default();
        if let Some(opening) = self.opening.take() {
            longer.append(&opening);
        }
        longer.waited_ms(waited_ms);
        longer.append(&frame);
        NextFrame::Send(longer.take())
    }
}

/// Milliseconds from when a frame was begun until a deadline: at least one, since zero would be no deadline.
/// The frame says for how long it has waited, which is since then.
fn deadline_ms(deadline: Instant, begun: Instant) -> u32 {
    u32::try_from(deadline.saturating_duration_since(begun).as_millis()).unwrap_or(u32::MAX).max(1)
}
