//! How one get finds an answer: the owner first, its successor where the owner cannot be reached, until
//! the deadline.
//!
//! Only failures of the transport move a get to another node. What a node itself says is final: a loader
//! that failed would only be asked again elsewhere. Every attempt after the first draws on a budget, so
//! that a fleet in trouble is not asked twice as much because of it.

use std::sync::Arc;
use std::time::Duration;

use peanut_proto::v1::{GetRequest, GetResponse};
use tokio::time::{Instant, sleep, sleep_until, timeout_at};
use tower::retry::budget::{Budget as _, TpsBudget};

use crate::config::Config;
use crate::error::{Error, ErrorKind};
use crate::node::{Node, Refusal};
use crate::routing::Routing;

/// Attempts that one get makes at most.
const MAX_ATTEMPTS: usize = 6;

/// Retries as a part of all calls (0.2) plus some that are always there (100 each second), counted over
/// ten seconds.
#[derive(Debug)]
pub(crate) struct RetryBudget(TpsBudget);

impl RetryBudget {
    pub(crate) fn new() -> Self {
        RetryBudget(TpsBudget::new(Duration::from_secs(10), 100, 0.2))
    }
}

/// Which node an attempt asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Target {
    Owner,
    Successor,
}

/// The node for attempt `number`: the one in better health of owner and successor, the owner if they are
/// alike, and then the other one in turn.
fn target(number: usize, owner_down: bool, successor_down: Option<bool>) -> Target {
    let begins_with_successor = owner_down && successor_down == Some(false);
    match successor_down {
        Some(_) if begins_with_successor != (number % 2 == 1) => Target::Successor,
        _ => Target::Owner,
    }
}

/// Asks for a key until there is an answer that stands. `routing` is called for each attempt, since the
/// ring may have changed.
pub(crate) async fn get(
    routing: impl Fn() -> Arc<Routing>,
    request: GetRequest,
    deadline: Instant,
    config: &Config,
    budget: &RetryBudget,
) -> Result<Answered, Error> {
    budget.0.deposit();
    let mut last_error = None;
    for number in 0..MAX_ATTEMPTS {
        if number > 0 {
            if !budget.0.withdraw() {
                break;
            }
            // The other node is asked at once; when both have failed there is no hurry.
            if number > 1 {
                let pause = Duration::from_millis(5 << number).mul_f64(0.5 + fastrand::f64() / 2.0);
                sleep(pause.min(deadline.saturating_duration_since(Instant::now()))).await;
            }
        }
        let routing = routing();
        let Some(route) = routing.route(&request.group, &request.key) else {
            last_error = Some(Error::new(ErrorKind::Unavailable, "the fleet has no nodes"));
            continue;
        };
        let try_anyway = routing.mostly_down();
        let down = |node: &Arc<Node>| node.is_down() && !try_anyway;
        let target = target(number, down(route.owner), route.successor.map(down));
        let (node, failover) = match (target, route.successor) {
            (Target::Successor, Some(successor)) => (successor, true),
            _ => (route.owner, false),
        };
        let request = GetRequest {
            ring_version: routing.ring.version(),
            owned_since: if failover { 0 } else { route.owned_since },
            failover,
            ..request.clone()
        };
        match attempt(node, request, deadline, config).await {
            Ok(response) => return Ok(Answered { response, failover, ring_version: routing.ring.version() }),
            Err(Refusal::Final(error)) => return Err(error),
            Err(Refusal::Elsewhere(error)) => {
                tracing::debug!(%error, number, "attempt failed");
                last_error = Some(error);
            }
        }
        if Instant::now() >= deadline {
            break;
        }
    }
    Err(last_error.unwrap_or_else(|| Error::new(ErrorKind::Unavailable, "no attempt was made")))
}

/// An answer, and how it was come by.
#[derive(Debug)]
pub(crate) struct Answered {
    pub(crate) response: GetResponse,
    pub(crate) failover: bool,
    /// Version of the ring by which the node was chosen.
    pub(crate) ring_version: u64,
}

/// Asks one node. Where it is silent, it is probed: a node that answers a probe is busy with a load and is
/// waited for; one that does not is left.
async fn attempt(
    node: &Arc<Node>,
    request: GetRequest,
    deadline: Instant,
    config: &Config,
) -> Result<GetResponse, Refusal> {
    let begun = Instant::now();
    let call = timeout_at(deadline, node.get(request, deadline));
    tokio::pin!(call);
    let mut suspect_at = begun + config.suspect_after();
    loop {
        tokio::select! {
            answer = &mut call => return answer.unwrap_or_else(|_| Err(Refusal::Final(too_late(node, config)))),
            () = sleep_until(suspect_at) => {}
        }
        tokio::select! {
            answer = &mut call => return answer.unwrap_or_else(|_| Err(Refusal::Final(too_late(node, config)))),
            serves = node.probe() => if !serves {
                let silent = begun.elapsed();
                let why = format!("no answer for {silent:.1?}, nor to a probe");
                return Err(Refusal::Elsewhere(Error::at(ErrorKind::Unavailable, node.id(), why)));
            }
        }
        suspect_at = Instant::now() + config.suspect_after();
    }
}

fn too_late(node: &Node, config: &Config) -> Error {
    Error::at(ErrorKind::DeadlineExceeded, node.id(), format!("no answer within {:?}", config.deadline))
}

#[cfg(test)]
mod tests {
    use super::Target::{Owner, Successor};
    use super::*;

    fn order(owner_down: bool, successor_down: Option<bool>) -> Vec<Target> {
        (0..4).map(|number| target(number, owner_down, successor_down)).collect()
    }

    #[test]
    fn the_owner_is_asked_first_unless_only_it_is_down() {
        assert_eq!(order(false, Some(false)), [Owner, Successor, Owner, Successor]);
        assert_eq!(order(false, Some(true)), [Owner, Successor, Owner, Successor]);
        assert_eq!(order(true, Some(true)), [Owner, Successor, Owner, Successor]);
        assert_eq!(order(true, Some(false)), [Successor, Owner, Successor, Owner]);
    }

    #[test]
    fn without_a_successor_the_owner_is_asked_again() {
        assert_eq!(order(true, None), [Owner; 4]);
        assert_eq!(order(false, None), [Owner; 4]);
    }
}
