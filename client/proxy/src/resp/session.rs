//! What a connection has said of itself.

use std::sync::Arc;

use bytes::Bytes;
use peanut_edge::Failure;
use peanut_edge::budget::Account;
use peanut_edge::connections::{OpenStream, Peer};
use peanut_edge::rights::{Caller, Tokens};

use super::reply::Version;
use crate::core::{Core, account};
use crate::fetch::FIRST_PORTION;

/// The state of one connection.
#[derive(Debug)]
pub(super) struct Session {
    /// Its number, which no other connection of this process has had.
    pub(super) id: i64,
    pub(super) version: Version,
    pub(super) database: usize,
    pub(super) name: Option<Bytes>,
    /// Who it is; `None`: it may ask for nothing yet.
    pub(super) caller: Option<Caller>,
    /// How many keys are fetched for it at once.
    pub(super) portion: usize,
    /// It has begun a transaction, which was refused: nothing that stands in it is run.
    pub(super) is_in_transaction: bool,
    /// It has taken leave, or is not let in any more, and is answered no more.
    pub(super) is_over: bool,
    peer: Peer,
    /// A connection that has been let in stays, also while nothing is asked: clients of Redis expect that.
    stays: Option<OpenStream>,
}

impl Session {
    /// A new connection's.
    pub(super) fn new(id: i64, core: &Core, peer: Peer) -> Self {
        let mut session = Session {
            id,
            version: Version::default(),
            database: 0,
            name: None,
            caller: None,
            portion: FIRST_PORTION,
            is_in_transaction: false,
            is_over: false,
            peer,
            stays: None,
        };
        session.enter(core);
        session
    }

    /// Lets in who needs no secret: where there are no tokens, or by certificate.
    fn enter(&mut self, core: &Core) {
        if core.tokens.are_none() || self.peer.certificate().is_some() {
            self.caller = core.admit(None, &self.peer).ok();
            self.stay();
        }
    }

    /// Lets in who shows a secret. Who shows a wrong one is what it was.
    ///
    /// # Errors
    /// Where nobody has it.
    pub(super) fn log_in(&mut self, core: &Core, secret: &str) -> Result<(), Failure> {
        self.caller = Some(core.admit(Some(secret), &self.peer)?);
        self.stay();
        Ok(())
    }

    fn stay(&mut self) {
        if self.caller.is_some() && self.stays.is_none() {
            self.stays = Some(self.peer.presence().enter());
        }
    }

    /// Looks again who it is, where tokens have changed. Whether it is not known any more.
    pub(super) fn look_again(&mut self, tokens: &Tokens) -> bool {
        let is_lost = self.caller.as_mut().is_some_and(|caller| caller.look_again(tokens).is_err());
        if is_lost {
            self.caller = None;
        }
        is_lost
    }

    /// What it may hold.
    pub(super) fn account(&self) -> Arc<Account> {
        match &self.caller {
            Some(caller) => account(caller, &self.peer),
            None => self.peer.accounts.of(&Arc::from("")),
        }
    }

    /// As it was when the connection began.
    pub(super) fn reset(&mut self, core: &Core) {
        *self = Session::new(self.id, core, self.peer.clone());
    }
}
