//! What becomes of a lane whose stream ends, of what comes late, and of what waits for its frame.

use super::*;

#[tokio::test(start_paused = true)]
async fn when_the_stream_dies_everyone_is_told_and_the_next_stream_begins_anew() {
    let mut f = fixture(LIMITS);
    let (mut sent, _) = (f.get("a"), f.sent());
    let mut queued = f.get("b");
    let mut deliveries = Vec::new();
    f.lane.fail_all(&Failure::Lost("cut".into()), &mut deliveries);
    deliveries.into_iter().for_each(Delivery::tell);
    for lost in [&mut sent, &mut queued] {
        assert_eq!(lost.try_recv().unwrap(), Err(Failure::Lost("cut".into())));
    }
    assert_eq!((f.lane.in_flight(), f.next()), (0, NextFrame::Ended));

    f.get("c");
    f.lane.opened(9, 2);
    assert_eq!(f.next(), NextFrame::Ended, "the old stream is not the lane's any more");
    let waker = Waker::from(f.woken.clone());
    let NextFrame::Send(frame) = f.lane.next_frame(2, f.now, &waker) else { panic!("a frame was expected") };
    assert_eq!(frame.fields().count(), 4, "slot, version and group are told again");
}

/// What the driver of a stream that was left has read is of operations that are gone, and their numbers are
/// others' now.
#[tokio::test(start_paused = true)]
async fn a_stream_that_was_left_has_no_say_in_the_next_one() {
    let mut f = fixture(LIMITS);
    let (_, old) = (f.get("a"), f.sent());
    let mut late = ResponseWriter::default();
    late.answer(&AnswerFields { id: old[0].id, outcome: Outcome::Hit, ..AnswerFields::default() }, b"of a");
    let mut deliveries = Vec::new();
    f.lane.fail_all(&Failure::Lost("left".into()), &mut deliveries);
    f.lane.opened(9, 2);
    let mut other = f.get("b");
    deliveries.clear();
    f.lane.take_answers(1, &late.take(), Duration::ZERO, &mut deliveries).unwrap();
    f.lane.ended(1, &Failure::Lost("of old".into()), &mut deliveries);
    assert!(deliveries.is_empty() && other.try_recv().is_err(), "b has neither a's value nor its failure");
    assert!(matches!(f.lane.tend_near(1, Duration::ZERO), (None, None)));
    f.lane.ended(2, &Failure::Lost("now".into()), &mut deliveries);
    assert_eq!(f.lane.in_flight(), 0);
}

/// The node takes from each operation's time what its frame has waited.
#[tokio::test(start_paused = true)]
async fn an_operation_that_joins_a_frame_that_waits_has_all_of_its_own_time() {
    let mut f = fixture(LIMITS);
    f.get("a");
    f.now += Duration::from_millis(500);
    f.get("b");
    f.now += Duration::from_millis(100);
    let NextFrame::Send(frame) = f.next() else { panic!("a frame was expected") };
    let (mut waited, mut deadlines) = (0, Vec::new());
    for field in frame.fields() {
        match field.unwrap() {
            RequestField::WaitedMs(ms) => waited = ms,
            RequestField::Operation(operation) => deadlines.push(operation.deadline_ms),
            _ => {}
        }
    }
    let left: Vec<_> = deadlines.iter().map(|deadline| deadline - waited).collect();
    assert_eq!((waited, left), (600, vec![400, 900]));
}

#[tokio::test(start_paused = true)]
async fn a_token_is_given_back_where_there_is_room_for_nothing_else() {
    let mut f = fixture(Limits { operations: 1, queued_bytes: 1 << 20 });
    f.get("a");
    f.sent();
    assert!(matches!(f.get("b").try_recv(), Ok(Err(Failure::Full(_)))));
    f.lane.release(1, (3, FillToken(9)), f.now);
    let released = f.sent();
    assert_eq!((released.len(), released[0].token), (1, FillToken(9)));
}
