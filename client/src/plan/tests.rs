use super::*;
use crate::routing::tests::{Name, routing};

const UP: Standing = Standing { is_left: false, is_unleased: false };
const DOWN: Standing = Standing { is_left: true, is_unleased: false };

/// Whom the first four attempts ask.
fn order(failover: Failover, owner: Standing, successor: Option<Standing>) -> Vec<Result<Role, Role>> {
    let mut plan = ReadPlan::new(failover);
    (0..4).map(|_| plan.next(owner, successor)).collect()
}

const OWNER: Result<Role, Role> = Ok(Role::Owner);
const SUCCESSOR: Result<Role, Role> = Ok(Role::Successor);

#[test]
fn the_owner_is_asked_first_and_then_by_turns() {
    for both in [UP, DOWN] {
        let asked = order(Failover::Bounded, both, Some(both));
        assert_eq!(asked, [OWNER, SUCCESSOR, OWNER, SUCCESSOR]);
    }
}

#[test]
fn one_that_is_down_is_not_asked_while_the_other_is_up() {
    assert_eq!(order(Failover::Bounded, DOWN, Some(UP)), [SUCCESSOR; 4]);
    assert_eq!(order(Failover::Bounded, UP, Some(DOWN)), [OWNER; 4]);
    let mut plan = ReadPlan::new(Failover::Bounded);
    assert_eq!(plan.next(UP, Some(UP)), OWNER);
    assert_eq!(plan.next(DOWN, Some(UP)), SUCCESSOR, "the owner went down meanwhile");
}

#[test]
fn without_a_successor_the_owner_is_asked_again() {
    assert_eq!(order(Failover::Bounded, DOWN, None), [OWNER; 4]);
    assert_eq!(order(Failover::Off, DOWN, Some(UP)), [OWNER; 4]);
}

#[test]
fn no_node_without_a_lease_is_asked_however_few_are_left() {
    // Most of the fleet looks down, so that none is left for that.
    let unleased = Standing { is_left: false, is_unleased: true };
    for failover in [Failover::Strict, Failover::Bounded] {
        assert_eq!(order(failover, unleased, Some(UP)), [SUCCESSOR; 4]);
        let asked = order(failover, unleased, Some(unleased));
        assert_eq!(asked[..2], [Err(Role::Owner), Err(Role::Successor)]);
    }
    assert_eq!(order(Failover::Off, unleased, Some(UP)), [Err(Role::Owner); 4]);
}

#[test]
fn only_what_is_not_final_is_tried_again_and_not_for_ever() {
    let mut plan = ReadPlan::new(Failover::Bounded);
    let mut pauses = Vec::new();
    loop {
        let _ = plan.next(UP, Some(UP));
        match plan.after(Failed::Elsewhere, false) {
            Then::Retry(pause) => pauses.push(pause.as_millis()),
            then => break assert_eq!(then, Then::Fail),
        }
    }
    assert_eq!(pauses, [0, 20, 40, 80, 160]);
    let after = |failed, owner_is_down| {
        let mut plan = ReadPlan::new(Failover::Bounded);
        let _ = plan.next(UP, Some(UP));
        plan.after(failed, owner_is_down)
    };
    assert_eq!(after(Failed::Finally, false), Then::Fail);
    assert_eq!(after(Failed::NoGroup, false), Then::AskWhereGroupIs);
    assert_eq!(after(Failed::OwnerOnly, true), Then::Fail);
    assert_eq!(after(Failed::OwnerOnly, false), Then::Retry(Duration::ZERO));
}

#[test]
fn a_lane_that_is_lost_is_no_reason_to_ask_another_node() {
    let mut plan = ReadPlan::new(Failover::Bounded);
    assert_eq!(plan.next(UP, Some(UP)), OWNER);
    plan.after(Failed::Again, false);
    assert_eq!(plan.next(UP, Some(UP)), OWNER);
}

#[test]
fn what_a_successor_had_from_earlier_is_good_for_bounded_clients_only() {
    let good_since =
        |failover, role| ReadPlan::new(failover).good_since(role, RingVersion(3), RingVersion(9));
    assert_eq!(good_since(Failover::Strict, Role::Owner), RingVersion(3));
    assert_eq!(good_since(Failover::Strict, Role::Successor), RingVersion(9));
    assert_eq!(good_since(Failover::Bounded, Role::Successor), RingVersion::NONE);
}

#[test]
fn a_write_is_owed_where_readers_may_ask() {
    let now = Instant::now();
    let before = routing(&["a", "b", "c"], None, now);
    let after = routing(&["a", "b", "c", "d"], Some(&before), now);
    let plan = |failover, hash, was_left: bool| {
        WritePlan::new(&after, hash, failover, now, |_: &Name| was_left).expect("there are nodes")
    };
    let mut moved = 0;
    for hash in (0..u64::MAX).step_by(usize::MAX / 97) {
        let (owner, was) = (after.route(hash).unwrap(), before.route(hash).unwrap());
        let bounded = plan(Failover::Bounded, hash, false);
        assert_eq!((&bounded.owner, bounded.ring_version), (owner.owner, after.ring.version()));
        let has_moved = was.owner != owner.owner;
        assert_eq!(bounded.previous_owners, if has_moved { vec![was.owner.clone()] } else { vec![] });
        assert_eq!(bounded.is_for_owner_alone(), !has_moved);
        assert_eq!(bounded.successor.map(|(_, duty)| duty), Some(Duty::InItsPlace));
        assert!(!plan(Failover::Bounded, hash, true).is_for_owner_alone(), "the successor was asked lately");
        assert_eq!(plan(Failover::Off, hash, true).successor.map(|(_, duty)| duty), Some(Duty::Attempt));
        let strict = plan(Failover::Strict, hash, true);
        assert!(!strict.is_for_owner_alone());
        let (successor, duty) = strict.successor.expect("there are more nodes");
        assert_eq!((&successor, duty), (owner.successor.unwrap(), Duty::Owed));
        // Whoever was asked before, in whichever place, is told, or is told anyway.
        for asked in [was.owner, was.successor.unwrap()] {
            assert!(strict.previous_owners.contains(asked) || *asked == strict.owner || *asked == successor);
        }
        moved += usize::from(has_moved);
    }
    assert!((10..40).contains(&moved), "{moved} of 97");
    let nobody = routing(&[], None, now);
    assert!(WritePlan::new(&nobody, 1, Failover::Bounded, now, |_: &Name| false).is_none());
}

const REACHED: Reach = Reach { is_down: false, is_mostly_down: false, is_leased: true, has_registry: true };

/// The steps at a node that answers none of them, with the last.
fn steps(part: Part, failed: Failed, reach: Reach) -> (u32, Step) {
    let (mut delivery, mut asked) = (Delivery::new(part), 0);
    let mut step = delivery.begin(reach);
    while step == Step::Attempt {
        asked += 1;
        step = delivery.after(Err(failed), reach);
    }
    (asked, step)
}

#[test]
fn a_node_that_cannot_be_reached_is_asked_twice_and_then_has_a_hint() {
    for part in [Part::Answers, Part::PreviousOwner, Part::OneOfAll] {
        assert_eq!(steps(part, Failed::Elsewhere, REACHED), (2, Step::StoreHint));
        let down = Reach { is_down: true, ..REACHED };
        assert_eq!(steps(part, Failed::Elsewhere, down), (0, Step::StoreHint));
        let alone = Reach { is_mostly_down: true, ..down };
        assert_eq!(steps(part, Failed::Elsewhere, alone), (2, Step::StoreHint), "the fault may be here");
        let fixed = Reach { has_registry: false, ..REACHED };
        assert_eq!(steps(part, Failed::Again, fixed), (2, Step::Fail));
    }
    assert_eq!(Delivery::new(Part::Answers).after(Ok(()), REACHED), Step::Done);
}

#[test]
fn a_previous_owner_without_a_lease_learns_of_the_ring_before_it_answers() {
    let gone = Reach { is_leased: false, ..REACHED };
    assert_eq!(steps(Part::PreviousOwner, Failed::Elsewhere, gone), (2, Step::Done));
    let down = Reach { is_down: true, is_mostly_down: true, ..gone };
    assert_eq!(steps(Part::PreviousOwner, Failed::Elsewhere, down), (0, Step::Done));
    assert_eq!(steps(Part::Answers, Failed::Elsewhere, gone), (2, Step::StoreHint), "an owner does not");
}

#[test]
fn what_a_node_says_is_final_but_for_a_group_that_it_does_not_have() {
    assert_eq!(steps(Part::Answers, Failed::Finally, REACHED), (1, Step::Fail));
    // Readers ask others in its place, as previous owner too.
    assert_eq!(steps(Part::Answers, Failed::NoGroup, REACHED), (1, Step::DeleteWhereGroupIs));
    assert_eq!(steps(Part::PreviousOwner, Failed::NoGroup, REACHED), (1, Step::DeleteWhereGroupIs));
    assert_eq!(steps(Part::OneOfAll, Failed::NoGroup, REACHED), (1, Step::Fail));
}
