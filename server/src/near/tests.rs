use std::pin::pin;
use std::task::Poll;

use futures_util::poll;
use peanut_proto::frame::{ResponseField, ResponseWriter};

use super::*;

fn leases() -> NearLeases {
    let leases = NearLeases::new();
    leases.first_start();
    leases
}

/// A lane whose lease stands.
fn lane(leases: &NearLeases) -> Arc<NearLane> {
    let lane = leases.open(Duration::ZERO, ("".into(), None));
    lane.begin();
    lane
}

/// What a lane is told: numbers, and hashes of keys.
fn told(lane: &NearLane) -> Vec<(u64, Vec<u64>)> {
    let mut writer = ResponseWriter::default();
    lane.write(&mut writer);
    let frame = writer.take();
    let fields = frame.fields().map(|field| match field.unwrap() {
        ResponseField::Invalidation { number, keys } => (number, keys.hashes().collect()),
        other => panic!("{other:?}"),
    });
    fields.collect()
}

/// After the last number the numbers begin anew, and none is given that a lane has still.
#[test]
fn lanes_have_numbers_of_their_own_for_ever() {
    let leases = leases();
    let first = lane(&leases);
    leases.next.store(u32::MAX, Ordering::Relaxed);
    let (last, zero, next) = (lane(&leases), lane(&leases), lane(&leases));
    let ids = [&first, &last, &zero, &next].map(|lane| lane.id());
    assert_eq!(ids, [1, u32::MAX, 0, 2].map(LaneId));
    assert!(next.id().is_not_before(last.id()) && !last.id().is_not_before(next.id()));
    assert!(ids.into_iter().all(|id| leases.lane(id).is_some()));
}

#[tokio::test]
async fn a_write_waits_for_those_who_hold_a_copy_and_for_nobody_else() {
    let (leases, copies) = (leases(), Copies::default());
    let (holder, writer) = (lane(&leases), lane(&leases));
    assert!(copies.outdate(&leases, || 7, None).is_none(), "nobody holds anything");
    for lane in [&holder, &writer] {
        assert_eq!(copies.put(&leases, lane, 7, uptime()), Put::New);
    }
    assert!(copies.outdate(&leases, || 8, None).is_none(), "nobody holds that");
    let mut waits = pin!(copies.outdate(&leases, || 7, Some(writer.id())).confirmed(&leases));
    assert_eq!(poll!(&mut waits), Poll::Pending);
    assert_eq!((told(&holder), told(&writer)), (vec![(1, vec![7])], vec![(1, vec![7])]));
    holder.confirm(1);
    waits.await;
    assert!(
        copies.outdate(&leases, || 7, Some(writer.id())).is_none(),
        "its own lane is told before it is answered"
    );
    assert!(!copies.outdate(&leases, || 7, None).is_none(), "another writer waits for that one still");
    writer.confirm(1);
    assert!(copies.outdate(&leases, || 7, None).is_none());
    assert_eq!(leases.metrics.waited.load(Ordering::Relaxed), 1);
}

#[tokio::test]
async fn a_later_write_waits_for_what_an_earlier_one_has_told() {
    let (leases, copies) = (leases(), Copies::default());
    let holder = lane(&leases);
    copies.put(&leases, &holder, 7, uptime());
    let first = copies.outdate(&leases, || 7, None);
    let second = copies.outdate(&leases, || 7, None);
    assert!(!first.is_none() && !second.is_none());
    assert_eq!(told(&holder), [(1, vec![7])], "it is told once");
    // It is given the key anew, and has not confirmed.
    copies.put(&leases, &holder, 7, uptime());
    let third = copies.outdate(&leases, || 7, None);
    assert_eq!(told(&holder), [(2, vec![7])]);
    let mut third = pin!(third.confirmed(&leases));
    holder.confirm(1);
    assert_eq!(poll!(&mut third), Poll::Pending);
    holder.confirm(2);
    third.await;
}

#[tokio::test]
async fn who_does_not_confirm_is_waited_for_until_its_lease_is_over_and_holds_nothing_then() {
    let (leases, copies) = (leases(), Copies::default());
    let (holder, mut frame) = (lane(&leases), ResponseWriter::default());
    copies.put(&leases, &holder, 7, uptime());
    copies.put(&leases, &holder, 8, uptime());
    let begun = uptime();
    copies.outdate(&leases, || 7, None).confirmed(&leases).await;
    assert!(uptime() - begun >= near_lease_at_node() - Duration::from_millis(50));
    assert!(copies.outdate(&leases, || 8, None).is_none(), "its lease is over");
    assert!(!holder.extend(&mut frame), "what has lapsed does not go on");
    assert!(!holder.may_have(uptime()), "nor is it given another at once");
    let anew = leases.reopen(&holder);
    assert!(!anew.may_have(uptime()));
    anew.begin();
    copies.put(&leases, &anew, 9, uptime());
    // What it confirms late is not taken for this.
    anew.confirm(1);
    assert!(!copies.outdate(&leases, || 9, None).is_none());
    assert_eq!(leases.metrics.unconfirmed.load(Ordering::Relaxed), 1);
}

#[tokio::test]
async fn a_clear_waits_for_all_and_later_writes_wait_for_the_clear() {
    let (leases, copies) = (leases(), Copies::default());
    let (one, other) = (lane(&leases), lane(&leases));
    copies.put(&leases, &one, 7, uptime());
    copies.put(&leases, &other, 8, uptime());
    let mut clear = pin!(copies.outdate_all(&leases, None).confirmed(&leases));
    assert_eq!(poll!(&mut clear), Poll::Pending);
    assert_eq!((told(&one), told(&other)), (vec![(1, vec![])], vec![(1, vec![])]));
    assert_eq!(leases.copies(), 0);
    one.confirm(1);
    assert!(!copies.outdate(&leases, || 7, None).is_none() && !copies.unconfirmed(&leases, None).is_none());
    assert_eq!(poll!(&mut clear), Poll::Pending);
    other.confirm(1);
    clear.await;
    assert!(copies.outdate(&leases, || 7, None).is_none() && copies.unconfirmed(&leases, None).is_none());
}

#[tokio::test]
async fn nothing_is_acknowledged_while_leases_of_the_process_before_may_stand() {
    let (leases, copies) = (NearLeases::new(), Copies::default());
    let begun = uptime();
    copies.outdate(&leases, || 7, None).confirmed(&leases).await;
    assert!(uptime() - begun >= near_lease_at_node() - Duration::from_millis(50));
    assert!(copies.outdate(&leases, || 7, None).is_none());
}

#[tokio::test]
async fn a_lane_whose_copies_may_be_outdated_is_told_and_not_waited_for() {
    let (leases, copies) = (leases(), Copies::default());
    let holder = leases.open(Duration::from_secs(2), ("".into(), None));
    holder.begin();
    copies.put(&leases, &holder, 7, uptime());
    assert!(copies.outdate(&leases, || 7, None).is_none());
    assert_eq!(told(&holder), [(1, vec![7])]);
}

#[tokio::test]
async fn copies_are_bounded_and_forgotten_with_their_lane() {
    let (leases, copies) = (leases(), Copies::default());
    let holder = lane(&leases);
    let given = (0..MOST_OF_LANE as u64 + 10)
        .filter(|hash| copies.put(&leases, &holder, *hash, uptime()) == Put::New);
    assert_eq!(given.count(), MOST_OF_LANE);
    assert_eq!(leases.copies(), MOST_OF_LANE);
    // A table has room for at most 16 in the place of 7.
    const { assert!(copies::ENTRY_BYTES * 16 / 7 <= 100) };
    holder.end();
    let over = uptime() + near_lease_at_node() * 2;
    copies.sweep(&leases, over);
    leases.sweep(over);
    assert_eq!((leases.copies(), leases.lanes.lock().len()), (0, 0));
}

#[tokio::test]
async fn one_caller_takes_a_quarter_of_all_copies_at_most_with_however_many_lanes() {
    let (leases, copies) = (leases(), Copies::default());
    let lanes: Vec<_> = (0..5).map(|_| lane(&leases)).collect();
    let hashes = 0..MOST_OF_LANE as u64;
    let take =
        |lane| hashes.clone().filter(|hash| copies.put(&leases, lane, *hash, uptime()) == Put::New).count();
    let taken: Vec<_> = lanes.iter().map(|lane| take(lane)).collect();
    assert_eq!(taken, [MOST_OF_LANE, MOST_OF_LANE, MOST_OF_LANE, MOST_OF_LANE, 0]);
    let other = leases.open(Duration::ZERO, ("other".into(), None));
    other.begin();
    assert_eq!(take(&other), MOST_OF_LANE);
    // What a lane held is given back when its lease has lapsed, and when it has ended.
    let anew = leases.reopen(&lanes[0]);
    anew.begin();
    assert_eq!(take(&anew), MOST_OF_LANE);
    lanes[1].end();
    leases.sweep(uptime() + near_lease_at_node() * 2);
    assert_eq!(take(&lanes[4]), MOST_OF_LANE);
}

#[tokio::test]
async fn what_is_not_given_after_all_is_waited_for_by_nobody() {
    let (leases, copies) = (leases(), Copies::default());
    let holder = lane(&leases);
    copies.put(&leases, &holder, 7, uptime());
    copies.take_back(&leases, &holder, 7);
    assert!(copies.outdate(&leases, || 7, None).is_none() && told(&holder).is_empty());
    assert_eq!(leases.copies(), 0);
    // A write that came in between has told the lane, which confirms.
    copies.put(&leases, &holder, 7, uptime());
    let waits = copies.outdate(&leases, || 7, None);
    copies.take_back(&leases, &holder, 7);
    assert!(!waits.is_none() && !copies.outdate(&leases, || 7, None).is_none());
}

/// Lanes are looked at before tables are, and go on meanwhile.
#[tokio::test]
async fn a_sweep_leaves_what_has_come_since_it_began() {
    let (leases, copies) = (leases(), Copies::default());
    let before = lane(&leases);
    let lapsed = leases.open(Duration::ZERO, ("".into(), None));
    let seen = leases.seen(uptime());
    let after = lane(&leases);
    lapsed.begin();
    for lane in [&before, &lapsed, &after] {
        copies.put(&leases, lane, 7, uptime());
    }
    copies.sweep_by(&leases, &seen);
    assert_eq!((copies.holders(7), leases.copies()), (3, 3));
}

/// Whoever empties a table tells the lanes later; a write that comes in between is not to miss both.
#[test]
fn a_write_during_a_clear_is_told_of_by_one_of_the_two() {
    for _ in 0..2_000 {
        let (leases, copies) = (leases(), Copies::default());
        let holder = lane(&leases);
        for hash in 0..16 {
            copies.put(&leases, &holder, hash << 60, uptime());
        }
        let start = std::sync::Barrier::new(2);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                start.wait();
                copies.outdate_all(&leases, None);
            });
            start.wait();
            for hash in 0..16 {
                let waits = copies.outdate(&leases, || hash << 60, None);
                assert!(!waits.is_none(), "it is acknowledged although the lane has confirmed nothing");
            }
        });
    }
}
