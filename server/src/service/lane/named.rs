//! A group that a lane has named, and what its caller may do there.

use std::sync::Arc;

use peanut_proto::frame::Operation;
use peanut_proto::v1::operation::Kind;
use peanut_proto::v1::{Near, OnMiss};

use crate::cache::Cache;
use crate::error::Failure;
use crate::rights::{Action, GroupRights};

/// A group that the client has named, and what it may do there.
#[derive(Clone)]
pub(super) struct Named {
    pub(super) cache: Arc<Cache>,
    pub(super) rights: GroupRights,
    /// Of which keys the client keeps near copies.
    pub(super) near: Near,
}

impl Named {
    /// Whether the client is to keep what a get is answered: of a key that many ask for, and where it reads a copy
    /// already. What is answered in another's place is not kept.
    pub(super) fn is_kept(&self, get: &Operation) -> bool {
        if get.failover || get.on_miss == OnMiss::Peek || get.token.is_some() {
            return false;
        }
        match self.near {
            Near::Off => false,
            Near::All => true,
            Near::Hot => {
                get.rare.as_ref().is_some_and(|rare| rare.raised != 0) || self.cache.is_hot(&get.key)
            }
        }
    }

    /// Whether the caller may do this. Gives whether it may be given a fill token, where it asks for one.
    pub(super) fn check(&self, operation: &Operation) -> Result<Result<(), Failure>, Failure> {
        let (rights, key) = (&self.rights, &operation.key);
        match operation.kind {
            Kind::Get => rights.check(Action::Read, key),
            Kind::Set => rights.check(Action::Set, key),
            Kind::Delete if operation.on_miss == OnMiss::Lease => rights.check(Action::Set, key),
            Kind::Delete => rights.check(Action::Delete, key),
            Kind::Clear => rights.check(Action::Clear, key),
            Kind::Release => rights.check_release(),
        }?;
        let may_fill = operation.on_miss == OnMiss::Lease || operation.token.is_some();
        Ok(if may_fill { rights.may_fill(key) } else { Ok(()) })
    }
}
