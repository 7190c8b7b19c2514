//! Gets with a fill token that is given back: its holder brings nothing, and asks for the value itself.
//!
//! Others wait for what the token is for. So it is either taken over by a load of this node's, or void,
//! whatever the get is answered with; else they would wait for as long as a load may take.

use std::sync::Arc;

use peanut_proto::v1::{ErrorCode, OnMiss, Outcome};
use tokio::time::Instant;

use super::{Answer, Begun, Cache, Get};
use crate::budget::{Account, Budget, OPERATION_BYTES, Reservation};
use crate::store::Origin;
use peanut_edge::Failure;

impl Cache {
    /// Answers a get that gives a token back.
    pub(super) fn give_back(
        self: &Arc<Self>,
        get: &Get,
        account: &Arc<Account>,
        now: Instant,
    ) -> Result<Begun, Failure> {
        if let Some(begun) = self.take_over(get, account, now) {
            return Ok(begun);
        }
        self.flights.void(get.token);
        if self.loader.is_none() && get.on_miss != OnMiss::Peek {
            // There is nobody to load for it; those who wait may be able to.
            return match self.look(get, account, now) {
                Some(hit) => Ok(Begun::Answered(hit)),
                None => self.nothing(get).map(Begun::Answered),
            };
        }
        self.look_or_wait(&get.kept(), account, now)
    }

    /// Loads in the place of the token's holder, where that may be done and has to be.
    fn take_over(self: &Arc<Self>, get: &Get, account: &Arc<Account>, now: Instant) -> Option<Begun> {
        // Only who may fill can have been given a token.
        let may = !self.loader.is_none() && get.may_fill.is_ok() && get.on_miss != OnMiss::Peek;
        if !may || self.fresh(get, now).is_some() {
            return None;
        }
        let operation = account.operations.try_take(OPERATION_BYTES + get.key.len())?;
        let reserved = Reservation::new(account, 0);
        let (pilot, ticket) = self.flights.take_over(&get.key, get.token, reserved)?;
        // Others may be waiting for what it is for, so it does not wait for room itself.
        self.queue(pilot, get.kept(), account.id(), operation);
        let [operation, value] = [&account.operations, &account.values].map(Budget::take_nothing);
        Some(self.wait(ticket, Outcome::Loaded, get, account, [operation, value]))
    }

    /// The answer where there is neither an entry nor anybody to load it.
    pub(super) fn nothing(&self, get: &Get) -> Result<Answer, Failure> {
        if get.origin == Origin::Owner {
            return Ok(Answer::only(Outcome::NotFound));
        }
        let group = &self.group;
        let why = format!("group `{group}` has no loader, and only the key's owner knows whether it has it");
        Err(Failure::new(ErrorCode::NoLoader, why))
    }
}
