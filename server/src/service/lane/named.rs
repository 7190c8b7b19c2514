//! A group that a lane has named, and what its caller may do there.

use std::sync::Arc;

use bytes::Bytes;
use peanut_proto::frame::{FrameError, Operation};
use peanut_proto::membership::check_name;
use peanut_proto::numbers::FillToken;
use peanut_proto::v1::operation::Kind;
use peanut_proto::v1::{ErrorCode, Near, OnMiss};

use super::{Answers, MANY_LEASES, UNKNOWN_GROUPS};
use crate::cache::Cache;
use crate::rights::{Action, GroupRights};
use peanut_edge::Failure;

/// A group that the client has named, and what it may do there.
#[derive(Clone)]
pub(super) struct Named {
    pub(super) cache: Arc<Cache>,
    pub(super) rights: GroupRights,
    /// Of which keys the client keeps near copies.
    pub(super) near: Near,
}

/// An operation that was let in.
pub(super) struct Admitted {
    pub(super) cache: Arc<Cache>,
    /// Whether its caller may be given a fill token.
    pub(super) may_fill: Result<(), Failure>,
    /// What of it the audit log is to have.
    pub(super) audited: Audited,
}

/// What an operator does, and to which key.
pub(super) type Audited = Option<(Action, Bytes)>;

impl Named {
    /// Whether the client is to keep what a get is answered: of a key that many ask for, and where it reads a
    /// copy already. What is answered in another's place is not kept.
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
    fn check(&self, operation: &Operation) -> Result<Result<(), Failure>, Failure> {
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

impl Answers {
    /// Lets an operation in, if its caller may do this to its group.
    pub(super) fn admit(&self, operation: &Operation) -> Result<Admitted, Failure> {
        let named = self.group(operation.group)?;
        let may_fill = named.check(operation)?;
        let action = match operation.kind {
            _ if !self.caller.is_operator() => None,
            Kind::Get | Kind::Release => None,
            Kind::Delete if operation.on_miss != OnMiss::Lease => Some(Action::Delete),
            Kind::Set | Kind::Delete => Some(Action::Set),
            Kind::Clear => Some(Action::Clear),
        };
        let audited = action.map(|action| (action, operation.key.clone()));
        Ok(Admitted { cache: named.cache.clone(), may_fill, audited })
    }

    /// An operator has done that to a group.
    pub(super) fn audit(&self, audited: Audited, cache: &Cache) {
        if let Some((action, key)) = audited {
            self.caller.wrote(action, cache.name(), (action != Action::Clear).then_some(&*key));
        }
    }

    pub(super) fn name_group(&mut self, number: u32, name: &str, near: Near) -> Result<(), FrameError> {
        check_name(name).map_err(|_| FrameError::BAD_GROUP)?;
        let named = self.node.cache(name).map(|cache| Named {
            cache: cache.clone(),
            rights: self.caller.rights().of_group(name),
            near,
        });
        if near != Near::Off && named.is_ok() {
            self.near.begin(self.node.near(), &self.caller);
        }
        // As many numbers as the node has groups, and some beside, and apart from them some of which it has
        // none: names that a lane gives again and again take nothing, and no room from those that it has.
        let is_known = named.is_ok();
        let most = if is_known { self.node.caches().count() + UNKNOWN_GROUPS } else { UNKNOWN_GROUPS };
        let alike = || self.groups.values().filter(|other| other.is_ok() == is_known).count();
        if !self.groups.contains_key(&number) && alike() >= most {
            self.unknown_groups += 1;
            return Ok(());
        }
        self.groups.insert(number, named);
        Ok(())
    }

    fn group(&self, number: u32) -> Result<&Named, Failure> {
        match self.groups.get(&number) {
            Some(named) => named.as_ref().map_err(Clone::clone),
            None if self.unknown_groups > 0 => Err(Failure::new(
                ErrorCode::UnknownGroup,
                "this node has no such group, nor many others of this lane",
            )),
            None => {
                let why = format!("group number {number} has not been named");
                Err(Failure::new(ErrorCode::InvalidRequest, why))
            }
        }
    }

    /// Keeps a lease, to give it up with the lane. Those that have been written away, or are over, are
    /// dropped now and then.
    pub(super) fn remember_lease(&mut self, token: FillToken, cache: Arc<Cache>) {
        self.leases.insert(token, cache);
        if self.leases.len() > self.many_leases {
            self.leases.retain(|token, cache| cache.is_leased(*token));
            self.many_leases = MANY_LEASES.max(self.leases.len() * 2);
        }
    }
}
