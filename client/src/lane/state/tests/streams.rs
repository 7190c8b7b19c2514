//! What becomes of a lane whose stream ends, and of what comes late.

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
