//! What decides where a get goes and where a write has to be done, as plain data: what is known of nodes and
//! how they answered goes in, the next step comes out. It asks nobody, waits for nothing and reads no clock;
//! `failover.rs` and `write.rs` take the steps.

use std::time::Duration;

use tokio::time::Instant;

use crate::config::Failover;
use crate::refusal::Failed;
use crate::routing::{Handle, Routing};
use peanut_proto::numbers::RingVersion;

/// Attempts that one get makes at most.
const MAX_ATTEMPTS: u32 = 6;

/// In which place a node is asked for a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    Owner,
    Successor,
}

/// What is known of a node that a get may ask.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Standing {
    /// Others are asked in its place, where they are up.
    pub(crate) is_left: bool,
    /// It holds no lease in the registry, and may not have been told of writes.
    pub(crate) is_unleased: bool,
}

/// What a get does after an attempt that failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Then {
    Fail,
    /// Makes another attempt, after a pause, of which it takes between half and all.
    Retry(Duration),
    /// Asks nodes that have the group.
    AskWhereGroupIs,
}

/// The way of one get.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ReadPlan {
    failover: Failover,
    last: Option<Role>,
    attempts: u32,
}

impl ReadPlan {
    pub(crate) fn new(failover: Failover) -> Self {
        ReadPlan { failover, last: None, attempts: 0 }
    }

    /// Whom the next attempt asks: the owner first, then whichever was not asked last; but not one that is
    /// down while the other is up. `Err`: neither may be asked, and this is the one that was to be.
    pub(crate) fn next(&mut self, owner: Standing, successor: Option<Standing>) -> Result<Role, Role> {
        self.attempts += 1;
        let is_left = |standing: Standing| standing.is_left || standing.is_unleased;
        let successor = successor.filter(|_| self.failover != Failover::Off);
        let role = match successor.map(is_left) {
            None => Role::Owner,
            Some(false) if is_left(owner) => Role::Successor,
            Some(true) if !is_left(owner) => Role::Owner,
            Some(_) if self.last == Some(Role::Owner) => Role::Successor,
            Some(_) => Role::Owner,
        };
        self.last = Some(role);
        let asked = if role == Role::Owner { owner } else { successor.unwrap_or(owner) };
        if asked.is_unleased { Err(role) } else { Ok(role) }
    }

    /// The ring version from which on what the node has is good.
    pub(crate) fn good_since(
        &self,
        role: Role,
        owned_since: RingVersion,
        ring_version: RingVersion,
    ) -> RingVersion {
        match role {
            Role::Owner => owned_since,
            // It may have been the successor before, and not have been written to in between.
            Role::Successor if self.failover == Failover::Strict => ring_version,
            Role::Successor => RingVersion::NONE,
        }
    }

    /// What is done after an attempt that failed.
    pub(crate) fn after(&mut self, failed: Failed, owner_is_down: bool) -> Then {
        match failed {
            Failed::Finally => return Then::Fail,
            Failed::NoGroup => return Then::AskWhereGroupIs,
            Failed::OwnerOnly if owner_is_down => return Then::Fail,
            Failed::Again => self.last = None,
            Failed::Elsewhere | Failed::OwnerOnly => {}
        }
        match self.attempts {
            MAX_ATTEMPTS.. => Then::Fail,
            // The other node is asked at once; when both have failed there is no hurry.
            1 => Then::Retry(Duration::ZERO),
            attempts => Then::Retry(Duration::from_millis(5 << attempts)),
        }
    }
}

/// Where one write has to be done, under one ring: at the previous owners first, then at the owner, whose
/// answer counts.
#[derive(Clone, Debug)]
pub(crate) struct WritePlan<N> {
    pub(crate) ring_version: RingVersion,
    /// Who may be asked by clients that have not heard of a change of the ring.
    pub(crate) previous_owners: Vec<N>,
    pub(crate) owner: N,
    pub(crate) owned_since: RingVersion,
    /// Who is asked in the owner's place, and whether it has to have been told, whatever becomes of the
    /// owner.
    pub(crate) successor: Option<(N, Duty)>,
}

/// What a write owes to the owner's successor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Duty {
    /// It is told where the owner is not reached.
    InItsPlace,
    /// It is told in any case, if it can be: it may have copies from an outage that is over, or others may
    /// ask it now.
    Attempt,
    /// The write is not done before it is done there.
    Owed,
}

impl<N: Handle> WritePlan<N> {
    /// `None` where there are no nodes. `was_left`: whether others were asked in the owner's place lately.
    pub(crate) fn new(
        routing: &Routing<N>,
        hash: u64,
        failover: Failover,
        begun: Instant,
        was_left: impl Fn(&N) -> bool,
    ) -> Option<Self> {
        let route = routing.route(hash)?;
        let is_strict = failover == Failover::Strict;
        let duty = match failover {
            Failover::Strict => Duty::Owed,
            Failover::Bounded | Failover::Off if was_left(route.owner) => Duty::Attempt,
            Failover::Bounded | Failover::Off => Duty::InItsPlace,
        };
        Some(WritePlan {
            ring_version: routing.ring.version(),
            previous_owners: routing.previous_owners(hash, is_strict, begun).into_iter().cloned().collect(),
            owner: route.owner.clone(),
            owned_since: route.owned_since,
            successor: route.successor.map(|successor| (successor.clone(), duty)),
        })
    }

    /// Whether the owner is the only one that has to be told, as long as it can be reached.
    pub(crate) fn is_for_owner_alone(&self) -> bool {
        let is_told = self.successor.as_ref().is_some_and(|(_, duty)| *duty != Duty::InItsPlace);
        self.previous_owners.is_empty() && !is_told
    }
}

/// Which part a node has in a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Part {
    /// It answers for the key: the owner, or its successor with [`Duty::Owed`].
    Answers,
    /// It answered for the key once.
    PreviousOwner,
    /// It is one of all, and may have something of the group.
    OneOfAll,
}

/// What is known of a node that a write has to be done at.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Reach {
    pub(crate) is_down: bool,
    /// Most of the fleet looks down: the fault is probably on this side, and nodes are asked all the same.
    pub(crate) is_mostly_down: bool,
    /// It holds a lease: others may be able to ask it.
    pub(crate) is_leased: bool,
    /// There is a registry, where it reads hints before it answers again.
    pub(crate) has_registry: bool,
}

impl Reach {
    fn is_useless(self) -> bool {
        self.is_down && !self.is_mostly_down
    }
}

/// What comes next at a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    Attempt,
    /// It will read of it before it answers again.
    StoreHint,
    /// It has nothing of the group, and readers ask nodes that have.
    DeleteWhereGroupIs,
    Done,
    Fail,
}

/// How one write comes to be done at one node.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Delivery {
    part: Part,
    asked: u32,
}

impl Delivery {
    /// A node is asked so often; the second time on a new lane, in case the first was lost.
    const ATTEMPTS: u32 = 2;

    pub(crate) fn new(part: Part) -> Self {
        Delivery { part, asked: 0 }
    }

    /// The first step.
    pub(crate) fn begin(&mut self, reach: Reach) -> Step {
        let is_over = self.part == Part::PreviousOwner && reach.is_down && !reach.is_leased;
        if is_over || reach.is_useless() { self.without_it(reach) } else { self.ask() }
    }

    /// The step after the node was asked.
    pub(crate) fn after(&mut self, asked: Result<(), Failed>, reach: Reach) -> Step {
        match asked {
            Ok(()) => Step::Done,
            Err(Failed::Elsewhere | Failed::Again)
                if self.asked < Delivery::ATTEMPTS && !reach.is_useless() =>
            {
                self.ask()
            }
            Err(Failed::Elsewhere | Failed::Again) => self.without_it(reach),
            Err(Failed::NoGroup) if self.part == Part::OneOfAll => Step::Fail,
            Err(Failed::NoGroup) => Step::DeleteWhereGroupIs,
            Err(Failed::Finally | Failed::OwnerOnly) => Step::Fail,
        }
    }

    fn ask(&mut self) -> Step {
        self.asked += 1;
        Step::Attempt
    }

    fn without_it(&self, reach: Reach) -> Step {
        match self.part {
            // It learns of the ring before it answers again.
            Part::PreviousOwner if !reach.is_leased => Step::Done,
            _ if !reach.has_registry => Step::Fail,
            _ => Step::StoreHint,
        }
    }
}

#[cfg(test)]
mod tests;
