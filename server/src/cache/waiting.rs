//! Operations that wait: for room, for a flight, for the registry, or for the disk.

use std::sync::Arc;

use peanut_proto::numbers::{Generation, RingVersion};
use peanut_proto::v1::{ErrorCode, Outcome};
use tokio::time::{Instant, timeout_at};

use super::{Answer, Begun, Cache, Get};
use crate::budget::{Account, Held};
use crate::flight::{Landed, Ticket};
use crate::journal::WriteNumber;
use crate::near::{LaneId, Unconfirmed};
use peanut_edge::Failure;

/// An operation that waits.
#[derive(Debug)]
pub(crate) enum Waiting {
    /// A get, for a flight.
    Flight {
        ticket: Ticket,
        outcome: Outcome,
        cache: Arc<Cache>,
        get: Box<Get>,
        account: Arc<Account>,
        held: [Held; 2],
    },
    /// A get, until there is room for the value that it asks for.
    Room { cache: Arc<Cache>, get: Box<Get>, account: Arc<Account>, operation: Held },
    /// A clear, until the registry has told of it, or has not in time.
    Registry { cache: Arc<Cache>, generation: Generation, under: RingVersion, by: Option<LaneId> },
    /// A write, until it would outlive the process, and nobody holds a near copy of what was before.
    Write {
        cache: Arc<Cache>,
        number: Option<WriteNumber>,
        copies: Unconfirmed,
        answer: Result<Answer, Failure>,
    },
}

impl Waiting {
    /// Whether it is a write, which waits for the disk, the registry, or those who hold near copies.
    pub(crate) fn is_write(&self) -> bool {
        matches!(self, Waiting::Write { .. } | Waiting::Registry { .. })
    }

    pub(crate) async fn answer(self) -> Result<Answer, Failure> {
        let since = Instant::now();
        let (cache, answer, waited_for) = match self {
            Waiting::Write { cache, number, copies, answer } => {
                if let Some((journal, number)) = cache.journal().zip(number) {
                    journal.settled(number).await;
                }
                cache.confirmed(copies).await;
                return answer;
            }
            Waiting::Registry { cache, generation, under, by } => {
                return Box::pin(cache.clear_when_told(generation, (under, by))).await;
            }
            Waiting::Room { cache, get, account, operation } => {
                let answer = cache.when_there_is_room(&get, &account, operation).await;
                (cache, answer, Outcome::Loaded)
            }
            Waiting::Flight { ticket, outcome, cache, get, account, held } => {
                let answer = cache.landed(ticket, outcome, &get, &account, held).await;
                (cache, answer, outcome)
            }
        };
        // That there is no such key was found out by a load.
        let counted = |answer: &Answer| match answer.outcome {
            Outcome::NotFound => waited_for,
            outcome => outcome,
        };
        cache.metrics.waited(answer.as_ref().ok().map(counted), since.elapsed());
        answer
    }
}

impl Cache {
    /// Waits for room, and for the flight then.
    async fn when_there_is_room(
        self: &Arc<Self>,
        get: &Get,
        account: &Arc<Account>,
        operation: Held,
    ) -> Result<Answer, Failure> {
        let until = get.deadline.unwrap_or_else(|| Instant::now() + self.policy.load_timeout);
        let Ok(value) = timeout_at(until, account.values.take_estimated(|| self.expected_bytes())).await
        else {
            let why = "there was no room in time for the values that this connection waits for";
            return self.stale(get).ok_or_else(|| Failure::new(ErrorCode::Overloaded, why));
        };
        let now = Instant::now();
        if let Some(hit) = self.look(get, account, now) {
            return Ok(hit);
        }
        match self.board(get, account, [operation, value], now)? {
            Begun::Answered(answer) => Ok(answer),
            Begun::Waiting(Waiting::Flight { ticket, outcome, get, held, .. }) => {
                self.landed(ticket, outcome, &get, account, held).await
            }
            Begun::Waiting(other) => Box::pin(other.answer()).await,
        }
    }

    /// Until when a caller waits for a load who could be answered with what is stale.
    fn patience(&self, get: &Get) -> Option<Instant> {
        let deadline = get.deadline.filter(|_| !self.policy.stale_if_error.is_zero())?;
        let now = Instant::now();
        // The answer has to travel still.
        Some(now + deadline.saturating_duration_since(now).mul_f64(0.8))
    }

    /// What a flight comes to, for as long as its caller waits: `None` where that ends before. The flight
    /// goes on for others.
    async fn landed_in_time(&self, ticket: Ticket, get: &Get) -> Option<Option<Landed>> {
        let landed = ticket.landed();
        tokio::pin!(landed);
        if let Some(until) = self.patience(get) {
            match timeout_at(until, &mut landed).await {
                Ok(landed) => return Some(landed),
                // This caller has something to go by.
                Err(_) if self.stale(get).is_some() => return None,
                Err(_) => {}
            }
        }
        match get.deadline {
            // What it waits with is wanted by others then.
            Some(deadline) => timeout_at(deadline, landed).await.ok(),
            None => Some(landed.await),
        }
    }

    pub(super) fn wait(
        self: &Arc<Self>,
        ticket: Ticket,
        outcome: Outcome,
        get: &Get,
        account: &Arc<Account>,
        held: [Held; 2],
    ) -> Begun {
        let (cache, get, account) = (self.clone(), Box::new(get.kept()), account.clone());
        Begun::Waiting(Waiting::Flight { ticket, outcome, cache, get, account, held })
    }

    /// Waits for a flight, and for those after it where it came to nothing.
    async fn landed(
        self: &Arc<Self>,
        mut ticket: Ticket,
        mut outcome: Outcome,
        get: &Get,
        account: &Arc<Account>,
        held: [Held; 2],
    ) -> Result<Answer, Failure> {
        let mut _held = Some(held);
        loop {
            self.launch();
            let landed = self.landed_in_time(ticket, get).await;
            match landed {
                None => return self.stale(get).ok_or_else(too_late),
                Some(Some(Ok(entry))) => return Ok(self.answer(outcome, &entry, Instant::now())),
                Some(Some(Err(failure))) => {
                    let may_be_stale = matches!(
                        failure.code,
                        ErrorCode::LoaderFailed | ErrorCode::LoadTimedOut | ErrorCode::Overloaded
                    );
                    return self.stale(get).filter(|_| may_be_stale).ok_or(failure);
                }
                // A caller that has stopped waiting is to lead nothing.
                Some(None) if get.deadline.is_some_and(|deadline| deadline <= Instant::now()) => {
                    return Err(too_late());
                }
                Some(None) => {
                    _held = None;
                    match self.look_or_wait(get, account, Instant::now())? {
                        Begun::Waiting(Waiting::Flight {
                            ticket: next, outcome: now, held: anew, ..
                        }) => {
                            (ticket, outcome, _held) = (next, now, Some(anew));
                        }
                        Begun::Waiting(other) => return Box::pin(other.answer()).await,
                        Begun::Answered(answer) => return Ok(answer),
                    }
                }
            }
        }
    }
}

fn too_late() -> Failure {
    Failure::new(ErrorCode::DeadlinePassed, "the deadline passed while a load was waited for")
}
