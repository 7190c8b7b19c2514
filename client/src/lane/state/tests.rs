//! The lane as data: what is written, who is answered, and what a closing or dying stream leaves behind.

use std::task::{Wake, Waker};
use std::time::Duration;

use peanut_proto::frame::{FRAME_BYTES, Operation as Read, RequestField, ResponseWriter};

use peanut_proto::v1::Outcome;

mod streams;

use super::*;
use crate::request::{Each, Key, Placement, Request};

const LIMITS: Limits = Limits { operations: 100, queued_bytes: 1 << 20 };

struct Flag(std::sync::atomic::AtomicBool);

impl Wake for Flag {
    fn wake(self: Arc<Self>) {
        self.0.store(true, std::sync::atomic::Ordering::SeqCst);
    }
}

struct Fixture {
    lane: LaneState,
    now: Instant,
    woken: Arc<Flag>,
}

fn fixture(limits: Limits) -> Fixture {
    let mut lane = LaneState::new(limits, None);
    lane.opened(9, 1);
    Fixture { lane, now: Instant::now(), woken: Arc::new(Flag(false.into())) }
}

/// An attempt, and the request that it is of, which outlives the test.
fn ask(key: &str, now: Instant) -> Attempt<'_> {
    let request = Box::new(Request {
        group: 3,
        group_name: "scores",
        key: key.as_bytes(),
        // A bad hash: everything must hold when all keys collide.
        hash: 7,
        deadline: now + Duration::from_secs(1),
        op: Op::LOAD,
        traceparent: "",
    });
    Box::leak(request).at(Placement::owner(RingVersion(5), RingVersion(4)))
}

/// An attempt that differs in something.
fn with<'a>(mut ask: Attempt<'a>, change: impl FnOnce(&mut Attempt<'a>)) -> Attempt<'a> {
    change(&mut ask);
    ask
}

/// An attempt of a request that differs in something.
fn of_another<'a>(ask: Attempt<'a>, change: impl FnOnce(&mut Request<'a>)) -> Attempt<'a> {
    let mut request = Box::new(*ask.request);
    change(&mut request);
    Attempt { request: Box::leak(request), ..ask }
}

fn caller(sender: oneshot::Sender<Answer>, ask: &Attempt<'_>) -> Caller {
    Caller { sender, deadline: ask.request.deadline }
}

impl Fixture {
    fn push(&mut self, ask: &Attempt<'_>) -> oneshot::Receiver<Answer> {
        let (sender, receiver) = oneshot::channel();
        self.lane.push(ask, caller(sender, ask), self.now);
        receiver
    }

    fn get(&mut self, key: &str) -> oneshot::Receiver<Answer> {
        let ask = ask(key, self.now);
        self.push(&ask)
    }

    fn next(&mut self) -> NextFrame {
        let waker = Waker::from(self.woken.clone());
        self.lane.next_frame(1, self.now, &waker)
    }

    /// The operations of the next frame.
    fn sent(&mut self) -> Vec<Read> {
        let NextFrame::Send(frame) = self.next() else { panic!("a frame was expected") };
        let operations = frame.fields().filter_map(|field| match field.unwrap() {
            RequestField::Operation(operation) => Some(operation),
            _ => None,
        });
        operations.collect()
    }

    fn answer(&mut self, write: impl FnOnce(&mut ResponseWriter)) -> Result<(), FrameError> {
        let (mut writer, mut deliveries) = (ResponseWriter::default(), Vec::new());
        write(&mut writer);
        let epoch = self.lane.open.unwrap_or_default();
        let taken = self.lane.take_answers(epoch, &writer.take(), Duration::ZERO, &mut deliveries);
        deliveries.into_iter().for_each(Delivery::tell);
        taken
    }

    fn hit(&mut self, id: u32, value: &[u8]) -> Result<(), FrameError> {
        self.answer(|frame| {
            frame.answer(&AnswerFields { id, outcome: Outcome::Hit, ..AnswerFields::default() }, value)
        })
    }
}

fn value(receiver: &mut oneshot::Receiver<Answer>) -> Bytes {
    receiver.try_recv().unwrap().unwrap().value
}

#[tokio::test(start_paused = true)]
async fn a_get_joins_none_that_has_much_less_time() {
    let mut fixture = fixture(LIMITS);
    let now = fixture.now;
    let within = |ms| of_another(ask("Tom", now), |it| it.deadline = now + Duration::from_millis(ms));
    let _hurried = fixture.push(&within(1000));
    let _about_as_long = fixture.push(&within(1100));
    assert_eq!(fixture.lane.in_flight(), 1);
    let _patient = fixture.push(&within(9000));
    assert_eq!(fixture.lane.in_flight(), 2);
}

#[tokio::test(start_paused = true)]
async fn what_is_waiting_goes_into_one_frame_and_answers_come_in_any_order() {
    let mut f = fixture(LIMITS);
    let (mut a, mut b) = (f.get("a"), f.get("b"));
    let NextFrame::Send(frame) = f.next() else { panic!("a frame was expected") };
    let fields: Vec<_> = frame.fields().map(Result::unwrap).collect();
    assert_eq!(
        fields[..3],
        [
            RequestField::Open { client_id: 9, near_staleness_ms: 0 },
            RequestField::RingVersion(RingVersion(5)),
            RequestField::Group(3, "scores", Near::Off)
        ]
    );
    let RequestField::Operation(first) = &fields[3] else { panic!("an operation was expected") };
    assert_eq!((&first.key[..], first.deadline_ms, first.owned_since.0), (&b"a"[..], 1000, 4));
    let RequestField::Operation(second) = &fields[4] else { panic!("an operation was expected") };
    assert_eq!(f.next(), NextFrame::Later);

    f.hit(second.id, b"value of b").unwrap();
    f.hit(first.id, b"value of a").unwrap();
    assert_eq!((value(&mut a), value(&mut b)), ("value of a".into(), "value of b".into()));
    assert_eq!(f.lane.in_flight(), 0);

    // Group and version are known from now on.
    f.get("c");
    let NextFrame::Send(frame) = f.next() else { panic!("a frame was expected") };
    assert_eq!(frame.fields().count(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_sleeping_writer_is_woken_once() {
    let mut f = fixture(LIMITS);
    assert_eq!(f.next(), NextFrame::Later);
    let (sender, _receiver) = oneshot::channel();
    let get = ask("a", f.now);
    let woken = f.lane.push(&get, caller(sender, &get), f.now);
    woken.expect("the writer sleeps").wake();
    assert!(f.woken.0.load(std::sync::atomic::Ordering::SeqCst));
    let (sender, _receiver) = oneshot::channel();
    let get = ask("b", f.now);
    assert!(f.lane.push(&get, caller(sender, &get), f.now).is_none());
    assert_eq!(f.sent().len(), 2);
}

#[tokio::test(start_paused = true)]
async fn identical_gets_share_an_operation_and_different_ones_do_not() {
    let mut f = fixture(LIMITS);
    let (mut one, mut same) = (f.get("a"), f.get("a"));
    let now = f.now;
    for different in [
        ask("b", now),
        of_another(ask("a", now), |it| it.group = 4),
        with(ask("a", now), |ask| ask.placement.failover = true),
        with(ask("a", now), |ask| ask.placement.owned_since = RingVersion(5)),
    ] {
        f.push(&different);
    }
    assert_eq!(f.lane.in_flight(), 5);
    let id = f.sent()[0].id;
    f.hit(id, b"v").unwrap();
    assert_eq!((value(&mut one), value(&mut same)), ("v".into(), "v".into()));
    // A get after the answer is a new one.
    let (mut first, mut second) = (f.get("a"), f.get("a"));
    let id = f.sent()[0].id;
    f.answer(|frame| {
        frame.answer(&AnswerFields { id, outcome: Outcome::Loaded, ..AnswerFields::default() }, b"v");
    })
    .unwrap();
    assert_eq!(first.try_recv().unwrap().unwrap().outcome, Outcome::Loaded);
    assert_eq!(second.try_recv().unwrap().unwrap().outcome, Outcome::Coalesced, "a load is counted once");
}

/// Somebody may have written, and know that it is done, between the sending of the first and the asking of
/// the second.
#[tokio::test(start_paused = true)]
async fn a_get_that_is_on_its_way_is_not_joined() {
    let mut f = fixture(LIMITS);
    let mut before = f.get("a");
    let first = f.sent()[0].id;
    let (mut after, mut with_it) = (f.get("a"), f.get("a"));
    assert_eq!(f.lane.in_flight(), 2);
    let second = f.sent()[0].id;
    f.hit(first, b"old").unwrap();
    f.hit(second, b"new").unwrap();
    assert_eq!(
        (value(&mut before), value(&mut after), value(&mut with_it)),
        ("old".into(), "new".into(), "new".into())
    );
}

#[tokio::test(start_paused = true)]
async fn a_late_answer_finds_no_stranger_in_its_place() {
    let mut f = fixture(LIMITS);
    let mut late = f.get("a");
    let id = f.sent()[0].id;
    f.now += Duration::from_secs(1);
    let mut deliveries = Vec::new();
    f.lane.expire(f.now, &mut deliveries);
    deliveries.into_iter().for_each(Delivery::tell);
    assert_eq!(late.try_recv().unwrap(), Err(Failure::Late));

    let mut after = f.get("a");
    let again = f.sent()[0].id;
    assert_ne!(again, id, "the node may have dropped the first one");
    f.hit(id, b"old").unwrap();
    assert!(after.try_recv().is_err());
    f.hit(again, b"new").unwrap();
    assert_eq!(value(&mut after), "new");
}

#[tokio::test(start_paused = true)]
async fn each_caller_has_a_deadline_of_its_own() {
    let mut f = fixture(LIMITS);
    let now = f.now;
    let mut hasty = f.push(&of_another(ask("a", now), |it| it.deadline = now + Duration::from_millis(900)));
    let mut patient = f.get("a");
    let mut deliveries = Vec::new();
    f.lane.expire(now + Duration::from_millis(900), &mut deliveries);
    deliveries.into_iter().for_each(Delivery::tell);
    assert_eq!(hasty.try_recv().unwrap(), Err(Failure::Late));
    let id = f.sent()[0].id;
    f.hit(id, b"v").unwrap();
    assert_eq!(value(&mut patient), "v");
}

#[tokio::test(start_paused = true)]
async fn beyond_the_limits_an_operation_is_refused_at_once() {
    let mut f = fixture(Limits { operations: 2, queued_bytes: 1 << 20 });
    f.get("a");
    f.get("b");
    let get = ask("c", f.now);
    assert!(matches!(f.push(&get).try_recv(), Ok(Err(Failure::Full(_)))));
    assert!(f.push(&ask("a", f.now)).try_recv().is_err(), "joining costs nothing");

    let mut f = fixture(Limits { operations: 100, queued_bytes: 50 });
    let long = "k".repeat(100);
    f.get(&long);
    let get = ask("c", f.now);
    assert!(matches!(f.push(&get).try_recv(), Ok(Err(Failure::Full(_)))));
    f.sent();
    assert!(f.push(&get).try_recv().is_err(), "it waits for its answer");
}

#[tokio::test(start_paused = true)]
async fn a_value_in_pieces_is_put_together_and_others_come_between() {
    let mut f = fixture(LIMITS);
    let (mut long, mut short) = (f.get("long"), f.get("short"));
    let ids: Vec<u32> = f.sent().iter().map(|operation| operation.id).collect();
    let piece = |id, part: &'static [u8]| {
        move |frame: &mut ResponseWriter| {
            frame.answer(&AnswerFields { id, ..AnswerFields::default() }, part);
        }
    };
    f.answer(|frame| {
        let first =
            AnswerFields { id: ids[0], outcome: Outcome::Loaded, value_bytes: 6, ..AnswerFields::default() };
        frame.answer(&first, b"");
    })
    .unwrap();
    f.answer(piece(ids[0], b"abc")).unwrap();
    f.hit(ids[1], b"s").unwrap();
    assert_eq!(value(&mut short), "s");
    assert!(long.try_recv().is_err());
    f.answer(piece(ids[0], b"def")).unwrap();
    let reply = long.try_recv().unwrap().unwrap();
    assert_eq!((reply.outcome, reply.value), (Outcome::Loaded, "abcdef".into()));
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_cannot_be_is_refused() {
    let mut f = fixture(LIMITS);
    assert_eq!(f.hit(9, b"v"), Err(FrameError::UNKNOWN_ID));
    f.get("a");
    let id = f.sent()[0].id;
    let endless =
        AnswerFields { id, outcome: Outcome::Hit, value_bytes: u64::MAX, ..AnswerFields::default() };
    assert_eq!(f.answer(|frame| frame.answer(&endless, b"")), Err(FrameError::TOO_LONG));
}

#[tokio::test(start_paused = true)]
async fn a_frame_that_has_waited_says_for_how_long() {
    let mut f = fixture(LIMITS);
    f.get("a");
    f.now += Duration::from_millis(30);
    let NextFrame::Send(frame) = f.next() else { panic!("a frame was expected") };
    assert!(frame.fields().any(|field| field == Ok(RequestField::WaitedMs(30))));
}

#[tokio::test(start_paused = true)]
async fn frames_are_bounded_and_a_ring_version_holds_for_a_whole_one() {
    let mut f = fixture(Limits { operations: 10_000, queued_bytes: 64 << 20 });
    let long = "k".repeat(1000);
    for n in 0..200 {
        f.get(&format!("{n}{long}"));
    }
    let frames: Vec<usize> = std::iter::from_fn(|| match f.next() {
        NextFrame::Send(frame) => Some(frame.0.len()),
        _ => None,
    })
    .collect();
    assert!(frames.len() >= 3 && frames.iter().all(|bytes| *bytes < FRAME_BYTES + 2048), "{frames:?}");

    f.get("a");
    f.push(&with(ask("b", f.now), |ask| ask.placement.ring_version = RingVersion(6)));
    assert_eq!((f.sent().len(), f.sent().len()), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn a_closing_lane_takes_nothing_more_and_ends_when_it_has_sent_all() {
    let mut f = fixture(LIMITS);
    let mut before = f.get("a");
    let id = f.sent()[0].id;
    f.answer(ResponseWriter::closing).unwrap();
    let refused = f.push(&ask("b", f.now)).try_recv();
    assert!(matches!(refused, Ok(Err(Failure::Said(ErrorCode::ShuttingDown, _)))));
    assert_eq!(f.next(), NextFrame::Ended);
    f.hit(id, b"v").unwrap();
    assert_eq!(value(&mut before), "v", "what was in flight is answered");
}

impl Fixture {
    /// Asks for keys as one operation; its number, and the answers.
    fn get_many(&mut self, keys: &[&str]) -> (u32, oneshot::Receiver<Vec<Answer>>) {
        let keys: Vec<_> =
            keys.iter().map(|key| (RingVersion(4), Key { bytes: key.as_bytes(), hash: 7 })).collect();
        let Attempt { request: &request, placement } = ask("", self.now);
        let (sender, receiver) = oneshot::channel();
        let ask = ManyAttempt { request, placement, each: Each::Get(&keys) };
        self.lane.push_many(&ask, ManyCaller::Together(sender), self.now);
        let sent = match self.next() {
            NextFrame::Send(frame) => RequestFrame::clone(&frame),
            _ => return (0, receiver),
        };
        let id = sent.fields().find_map(|field| match field.unwrap() {
            RequestField::Operation(operation) => Some(operation.id),
            _ => None,
        });
        (id.unwrap(), receiver)
    }

    fn hit_of_many(&mut self, id: u32, position: u32, value: &[u8]) -> Result<(), FrameError> {
        let fields = AnswerFields { id, position, outcome: Outcome::Hit, ..AnswerFields::default() };
        self.answer(|frame| frame.answer(&fields, value))
    }
}

#[tokio::test(start_paused = true)]
async fn many_keys_are_one_operation_whose_answers_come_in_any_order_and_in_pieces() {
    let mut f = fixture(LIMITS);
    let (id, mut many) = f.get_many(&["a", "b", "c"]);
    let mut single = f.get("a");
    assert_eq!(f.lane.in_flight(), 4, "each key counts");
    let single_id = f.sent()[0].id;
    let piece = AnswerFields { id, value_bytes: 4, outcome: Outcome::Loaded, ..AnswerFields::default() };
    f.answer(|frame| {
        frame.answer(&piece, b"ab");
        frame.failure(Target { id, position: 1 }, ErrorCode::LoaderFailed, "no");
    })
    .unwrap();
    f.hit_of_many(id, 2, b"c").unwrap();
    assert!(many.try_recv().is_err(), "a piece is missing");
    f.answer(|frame| frame.answer(&AnswerFields { id, ..AnswerFields::default() }, b"cd")).unwrap();
    let answers = many.try_recv().unwrap();
    let values = answers.iter().map(|answer| answer.as_ref().map(|reply| reply.value.clone()));
    let no = Failure::Said(ErrorCode::LoaderFailed, "no".into());
    assert_eq!(values.collect::<Vec<_>>(), [Ok("abcd".into()), Err(&no), Ok("c".into())]);
    f.hit(single_id, b"a").unwrap();
    assert_eq!((value(&mut single), f.lane.in_flight()), ("a".into(), 0));
}

#[tokio::test(start_paused = true)]
async fn of_many_keys_those_that_are_not_answered_by_the_deadline_are_late_and_find_no_stranger() {
    let mut f = fixture(LIMITS);
    let (id, mut many) = f.get_many(&["a", "b"]);
    f.hit_of_many(id, 1, b"b").unwrap();
    let mut deliveries = Vec::new();
    f.lane.expire(f.now + Duration::from_secs(2), &mut deliveries);
    deliveries.into_iter().for_each(Delivery::tell);
    let answers = many.try_recv().unwrap();
    assert_eq!(answers[0], Err(Failure::Late));
    assert_eq!(answers[1].as_ref().unwrap().value, "b");
    let (other, mut others) = f.get_many(&["c"]);
    assert_ne!(other, id, "the place is taken until the node has said all");
    f.hit_of_many(id, 0, b"a").unwrap();
    f.hit_of_many(other, 0, b"c").unwrap();
    assert_eq!((others.try_recv().unwrap().len(), f.lane.in_flight()), (1, 0));
    assert!(f.hit_of_many(id, 0, b"a").is_err(), "it is over");
}

#[tokio::test(start_paused = true)]
async fn an_answer_to_a_key_that_was_not_asked_for_or_a_second_one_breaks_the_lane() {
    for position in [0, 2, u32::MAX] {
        let mut f = fixture(LIMITS);
        let (id, mut many) = f.get_many(&["a", "b"]);
        f.hit_of_many(id, 0, b"a").unwrap();
        assert!(f.hit_of_many(id, position, b"x").is_err());
        let mut deliveries = Vec::new();
        f.lane.fail_all(&Failure::Broken("of that".into()), &mut deliveries);
        deliveries.into_iter().for_each(Delivery::tell);
        let answers = many.try_recv().unwrap();
        assert_eq!((answers[0].is_ok(), &answers[1]), (true, &Err(Failure::Broken("of that".into()))));
    }
}

#[tokio::test(start_paused = true)]
async fn where_there_is_no_room_all_of_many_keys_are_refused_and_one_call_may_be_larger_than_the_room() {
    let mut f = fixture(Limits { operations: 2, queued_bytes: 1 << 20 });
    let (id, mut first) = f.get_many(&["a", "b", "c"]);
    let (_, mut second) = f.get_many(&["d"]);
    assert!(matches!(second.try_recv().unwrap()[..], [Err(Failure::Full(_))]));
    (0..3).for_each(|position| f.hit_of_many(id, position, b"v").unwrap());
    assert!(first.try_recv().unwrap().iter().all(Result::is_ok));
}

#[tokio::test(start_paused = true)]
async fn answers_that_are_taken_as_they_come_are_told_at_once_and_each_once() {
    let mut f = fixture(LIMITS);
    let keys: Vec<_> =
        ["a", "b", "c"].iter().map(|key| (RingVersion(4), Key { bytes: key.as_bytes(), hash: 7 })).collect();
    let Attempt { request: &request, placement } = ask("", f.now);
    let (sender, mut receiver) = tokio::sync::mpsc::unbounded_channel();
    let caller = ManyCaller::AsTheyCome { sender, first: 10 };
    f.lane.push_many(&ManyAttempt { request, placement, each: Each::Get(&keys) }, caller, f.now);
    let id = f.sent()[0].id;
    f.hit_of_many(id, 1, b"b").unwrap();
    let (position, answer) = receiver.try_recv().unwrap();
    assert_eq!((position, answer.unwrap().value), (11, "b".into()), "the others are not waited for");
    let mut deliveries = Vec::new();
    f.lane.expire(f.now + Duration::from_secs(2), &mut deliveries);
    deliveries.into_iter().for_each(Delivery::tell);
    let late: Vec<_> = std::iter::from_fn(|| receiver.try_recv().ok()).collect();
    assert_eq!(late, [(10, Err(Failure::Late)), (12, Err(Failure::Late))]);
    // What is late may be a fill token, which has to be given back.
    let mut deliveries = Vec::new();
    let token = AnswerFields { id, outcome: Outcome::Fill, token: FillToken(7), ..AnswerFields::default() };
    let mut frame = ResponseWriter::default();
    frame.answer(&token, b"");
    f.lane.take_answers(1, &frame.take(), Duration::ZERO, &mut deliveries).unwrap();
    let [Delivery::One { caller: None, answer: Ok(reply), .. }] = &deliveries[..] else {
        panic!("{deliveries:?}")
    };
    assert_eq!(reply.token, FillToken(7));
    f.hit_of_many(id, 2, b"c").unwrap();
    assert_eq!(f.lane.in_flight(), 0);
}
