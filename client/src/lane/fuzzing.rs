//! What fuzzers and counts of instructions drive: a lane with operations in flight, and what a node says of
//! them. With the feature
//! `fuzzing` only, and not for applications.

use std::task::Waker;
use std::time::Duration;

use bytes::{Buf as _, Bytes};
use peanut_proto::frame::{AnswerFields, Filled, RequestField, ResponseFrame, ResponseWriter, Write};
use peanut_proto::limits::MAX_VALUE_BYTES;
use peanut_proto::numbers::{FillToken, RingVersion};
use peanut_proto::v1::{OnMiss, Outcome};
use smallvec::SmallVec;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use super::caller::{Caller, Delivery, Limits, ManyCaller};
use super::state::{LaneState, NextFrame};
use super::{Answer, Failure};
use crate::request::{Each, Key, ManyAttempt, Op, Placement, Request};

/// How many callers wait for one answer each, how many for those of many keys together, and of how many. One
/// more takes as many as they come.
const CALLERS: usize = 40;
const MANY: usize = 2;
const KEYS: usize = 5;
const ALL: usize = CALLERS + (MANY + 1) * KEYS;

/// Takes in frames of answers, each behind its length in two bytes, for operations of all kinds.
///
/// # Panics
/// Where a caller has no answer in the end, or more than one, or something that no node may say.
pub fn answers(mut input: &[u8]) {
    let now = Instant::now();
    let mut lane = LaneState::new(Limits { operations: ALL, queued_bytes: 1 << 20 }, None);
    lane.opened(1, 1);
    let keys: Vec<String> = (0..CALLERS / 2).map(|key| format!("k{key}")).collect();
    let mut waiting: Vec<_> = (0..CALLERS).map(|at| push(&mut lane, &keys, at, now)).collect();
    let mut waiting_for_many: Vec<_> = (0..MANY)
        .map(|at| {
            let (sender, receiver) = oneshot::channel();
            push_many(&mut lane, &keys, at, ManyCaller::Together(sender), now);
            receiver
        })
        .collect();
    let (sender, mut each) = mpsc::unbounded_channel();
    push_many(&mut lane, &keys, MANY, ManyCaller::AsTheyCome { sender, first: 1 }, now);
    assert!(matches!(lane.next_frame(1, now, Waker::noop()), NextFrame::Send(_)));
    let mut answered = 0;
    let mut is_broken = false;
    while input.len() > 2 && !is_broken {
        let length = usize::from(input.get_u16()).min(input.len());
        let (frame, rest) = input.split_at(length);
        input = rest;
        let mut deliveries = Vec::new();
        is_broken = lane
            .take_answers(1, &ResponseFrame(Bytes::copy_from_slice(frame)), Duration::ZERO, &mut deliveries)
            .is_err();
        if rest.len() % 3 == 0 {
            lane.expire(now + Duration::from_secs(10), &mut deliveries);
        }
        answered += tell(deliveries);
    }
    let mut deliveries = Vec::new();
    lane.fail_all(&Failure::Broken("over".into()), &mut deliveries);
    answered += tell(deliveries);
    assert_eq!((answered, lane.in_flight()), (ALL, 0), "each has one answer");
    let mut positions: Vec<_> = std::iter::from_fn(|| each.try_recv().ok()).map(|(at, _)| at).collect();
    positions.sort_unstable();
    assert!(positions.into_iter().eq(1..=KEYS));
    assert!(waiting.iter_mut().all(|waiting| waiting.try_recv().is_ok()));
    assert!(
        waiting_for_many
            .iter_mut()
            .all(|waiting| waiting.try_recv().is_ok_and(|answers| answers.len() == KEYS))
    );
}

/// Gets that go through a lane, all of whose way at the client is counted: pushed, sent, answered, delivered.
#[derive(Debug)]
pub struct GetsOfALane {
    lane: LaneState,
    writer: ResponseWriter,
    now: Instant,
}

impl GetsOfALane {
    /// A lane that is open.
    #[expect(clippy::new_without_default, reason = "it reads the clock")]
    pub fn new() -> Self {
        let mut lane = LaneState::new(Limits { operations: 1 << 16, queued_bytes: 64 << 20 }, None);
        lane.opened(1, 1);
        GetsOfALane { lane, writer: ResponseWriter::default(), now: Instant::now() }
    }

    /// So many gets, each of another key, in one frame and answered by one.
    ///
    /// # Panics
    /// Where one has no answer.
    pub fn turn(&mut self, gets: u32) {
        let mut waiting = SmallVec::<[oneshot::Receiver<Answer>; 16]>::new();
        for at in 0..gets {
            let key = at.to_le_bytes();
            let deadline = self.now + Duration::from_secs(1);
            let hash = u64::from(at).wrapping_mul(0x9e37_79b9_7f4a_7c15);
            let request = Request {
                group: 0,
                group_name: "g",
                key: &key,
                hash,
                deadline,
                op: Op::LOAD,
                traceparent: "",
            };
            let ask = request.at(Placement::owner(RingVersion(3), RingVersion(2)));
            let (sender, receiver) = oneshot::channel();
            self.lane.push(&ask, Caller { sender, deadline }, self.now);
            waiting.push(receiver);
        }
        let sent = self.lane.next_frame(1, self.now, Waker::noop());
        let NextFrame::Send(frame) = sent else { panic!("a frame was pushed") };
        for field in frame.fields() {
            if let Ok(RequestField::Operation(operation)) = field {
                let answer =
                    AnswerFields { id: operation.id, outcome: Outcome::Hit, ..AnswerFields::default() };
                self.writer.answer(&answer, &[b'v'; 100]);
            }
        }
        let mut deliveries = Vec::new();
        assert!(self.lane.take_answers(1, &self.writer.take(), Duration::ZERO, &mut deliveries).is_ok());
        deliveries.into_iter().for_each(Delivery::tell);
        assert!(waiting.iter_mut().all(|waiting| waiting.try_recv().is_ok()));
    }
}

/// One of the operations of single callers.
fn push(lane: &mut LaneState, keys: &[String], at: usize, now: Instant) -> oneshot::Receiver<Answer> {
    let key = keys[at / 2].as_bytes();
    let outcome = Filled::Value(b"v");
    let op = match at % 8 {
        0 | 1 => Op::LOAD,
        2 => Op::Get { on_miss: OnMiss::Lease, token: FillToken::NONE, near: false },
        3 => Op::Get { on_miss: OnMiss::Peek, token: FillToken::NONE, near: false },
        4 => Op::Write(Write::Set { key, outcome, ttl_ms: 0, token: FillToken(7) }),
        5 => Op::Write(Write::Delete { key, then_set: false, sequence: 0 }),
        _ => Op::LOAD,
    };
    let request = Request {
        group: 0,
        group_name: "g",
        key,
        hash: at as u64 / 2,
        deadline: now + Duration::from_secs(1 + at as u64),
        op,
        traceparent: "",
    };
    let ask = request.at(Placement::owner(RingVersion(3), RingVersion(2)));
    let (sender, receiver) = oneshot::channel();
    let caller = Caller { sender, deadline: ask.request.deadline };
    lane.push(&ask, caller, now);
    receiver
}

fn push_many(lane: &mut LaneState, keys: &[String], at: usize, caller: ManyCaller, now: Instant) {
    let keys = keys[..KEYS].iter().map(|key| (RingVersion(2), Key { bytes: key.as_bytes(), hash: 7 }));
    let keys: Vec<_> = keys.collect();
    let deadline = now + Duration::from_secs(5 + 10 * at as u64);
    let request =
        Request { group: 0, group_name: "g", key: &[], hash: 0, deadline, op: Op::LOAD, traceparent: "" };
    let placement = Placement::owner(RingVersion(3), RingVersion(2));
    lane.push_many(&ManyAttempt { request, placement, each: Each::Get(&keys) }, caller, now);
}

/// Tells all who wait; says how many answers they were told.
fn tell(deliveries: Vec<Delivery>) -> usize {
    let check = |answer: &Answer| {
        assert!(answer.as_ref().map_or(0, |reply| reply.value.len()) <= MAX_VALUE_BYTES);
    };
    let told = deliveries.iter().map(|delivery| match delivery {
        Delivery::One { caller, answer, .. } => {
            check(answer);
            usize::from(caller.is_some())
        }
        Delivery::Many { answers, .. } => {
            answers.iter().for_each(check);
            answers.len()
        }
        Delivery::Each { answer, .. } => {
            check(answer);
            1
        }
    });
    let told = told.sum();
    deliveries.into_iter().for_each(Delivery::tell);
    told
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use peanut_proto::frame::Target;
    use peanut_proto::v1::ErrorCode;

    use super::*;

    /// What nodes say, for a fuzzer to begin with.
    fn seeds() -> [(&'static str, Vec<u8>); 4] {
        let piece = |write: &dyn Fn(&mut ResponseWriter)| {
            let mut frame = ResponseWriter::default();
            write(&mut frame);
            let frame = frame.take().0;
            [u16::try_from(frame.len()).unwrap().to_be_bytes().as_slice(), &frame].concat()
        };
        // Even numbers are single operations, odd ones of many keys.
        let answer = |id: u32, outcome| AnswerFields { id: id * 2, outcome, ..AnswerFields::default() };
        let of_many =
            |position, outcome| AnswerFields { id: 1, position, outcome, ..AnswerFields::default() };
        let of = |id, position| Target { id, position };
        let answers = piece(&|frame| {
            frame.ring_version(RingVersion(9));
            frame.answer(&answer(0, Outcome::Hit), b"v");
            frame.answer(&answer(1, Outcome::NotFound), b"");
            frame.answer(&AnswerFields { token: FillToken(5), ..answer(2, Outcome::Fill) }, b"");
            frame.answer(&answer(3, Outcome::Done), b"");
            frame.failure(of(8, 0), ErrorCode::Overloaded, "full");
            frame.failure(of(10, 0), ErrorCode::ShuttingDown, "the node stops");
            frame.pong();
            frame.closing();
        });
        let long = piece(&|frame| {
            frame.answer(&AnswerFields { value_bytes: 4, ..answer(0, Outcome::Loaded) }, b"");
            frame.answer(&answer(0, Outcome::Unspecified), b"va");
            frame.answer(&answer(0, Outcome::Unspecified), b"lu");
        });
        let many = piece(&|frame| {
            frame.answer(&of_many(3, Outcome::Hit), b"v");
            frame.answer(&AnswerFields { value_bytes: 4, ..of_many(0, Outcome::Loaded) }, b"");
            frame.failure(of(1, 1), ErrorCode::Overloaded, "full");
            frame.answer(&of_many(0, Outcome::Unspecified), b"va");
            frame.answer(&of_many(2, Outcome::NotFound), b"");
            frame.answer(&of_many(0, Outcome::Unspecified), b"lu");
            frame.answer(&of_many(4, Outcome::Hit), b"w");
        });
        let stranger = piece(&|frame| frame.answer(&answer(1000, Outcome::Hit), b"v"));
        [("answers", answers), ("long", long), ("many", many), ("stranger", stranger)]
    }

    #[test]
    fn the_corpus_of_answers_passes() {
        let fuzz = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fuzz");
        if !fuzz.is_dir() {
            return; // This is the package, which has no corpus.
        }
        let corpus = fuzz.join("corpus/answers");
        for (name, fresh) in seeds() {
            let path = corpus.join(name);
            if std::env::var_os("PEANUT_REGENERATE").is_some() {
                std::fs::create_dir_all(&corpus).unwrap();
                std::fs::write(path, fresh).unwrap();
            } else {
                assert!(std::fs::read(path).unwrap_or_default() == fresh, "{name} is out of date");
            }
        }
        for file in std::fs::read_dir(&corpus).expect("the corpus is in the repository") {
            answers(&std::fs::read(file.unwrap().path()).unwrap());
        }
    }
}
