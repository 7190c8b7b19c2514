//! `peanut.v1.Peanut`: one call, one key; and the way in for lanes.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use peanut_proto::clock::milliseconds;
use peanut_proto::frame::{RequestFrame, ResponseFrame};
use peanut_proto::limits::is_traceparent;
use peanut_proto::numbers::{FillToken, Generation, RingVersion};
use peanut_proto::v1::peanut_server::Peanut;
use peanut_proto::v1::{
    DeleteRequest, DeleteResponse, ErrorCode, GetRequest, GetResponse, OnMiss, Outcome, SetRequest,
    SetResponse,
};
use tokio::task::yield_now;
use tokio::time::Instant;
use tonic::codegen::BoxStream;
use tonic::{Request, Response, Status, Streaming};

use super::lane::Answers;
use crate::budget::{Account, Accounts, Held};
use crate::cache::{Answer, Begun, Cache, Condition, Delete, Fetched, Get, Set};
use crate::connections::Peer;
use crate::node::{Node, ring_unknown};
use crate::rights::Action;
use crate::store::Origin;
use crate::validity::Validity;
use peanut_edge::Failure;
use peanut_edge::bodies::Sending;

/// Keys that are deleted before others have their turn.
const KEYS_AT_A_TIME: usize = 1_024;
/// Deletes of one call that are waited for together, each of which takes some 200 bytes.
const WAITED_FOR_TOGETHER: usize = 65_536;

#[tonic::async_trait]
impl Peanut for Node {
    async fn get(&self, request: Request<GetRequest>) -> Result<Response<GetResponse>, Status> {
        self.get_one(request).await.map_err(|why| self.refuse(why))
    }

    async fn set(&self, request: Request<SetRequest>) -> Result<Response<SetResponse>, Status> {
        self.set_one(request).await.map(Response::new).map_err(|why| self.refuse(why))
    }

    async fn delete(&self, request: Request<DeleteRequest>) -> Result<Response<DeleteResponse>, Status> {
        self.delete_some(request).await.map(Response::new).map_err(|why| self.refuse(why))
    }

    async fn lane(
        &self,
        request: Request<Streaming<RequestFrame>>,
    ) -> Result<Response<BoxStream<ResponseFrame>>, Status> {
        let caller = self.caller(&request).map_err(|why| self.refuse(why))?.clone();
        let account = self.account(&request).map_err(|why| self.refuse(why))?;
        let wakes = self.wake().awake().await;
        let too_many = || {
            let why = format!("this connection has {} lanes", Accounts::MAX_LANES);
            self.refuse(Failure::new(ErrorCode::Overloaded, why))
        };
        let peer = request.extensions().get::<Peer>();
        let open = peer.map(|peer| peer.accounts.open_lane().ok_or_else(too_many)).transpose()?;
        let answers = Answers::new(self.clone(), caller, account, open, wakes, request.into_inner());
        Ok(Response::new(Box::pin(answers)))
    }
}

impl Node {
    async fn get_one(&self, request: Request<GetRequest>) -> Result<Response<GetResponse>, Failure> {
        let (rights, account) = (self.rights(&request)?, self.account(&request)?);
        let traceparent = request.metadata().get("traceparent").map(|value| value.as_bytes());
        let traceparent = traceparent.filter(|it| is_traceparent(it)).map(Bytes::copy_from_slice);
        let request = request.into_inner();
        rights.check(Action::Read, &request.group, Some(&request.key))?;
        self.wake().awake().await;
        let cache = self.cache(&request.group)?;
        let (by, owned_since) = (RingVersion(request.ring_version), RingVersion(request.owned_since));
        if owned_since > by {
            let why = "a key cannot have been owned since a later ring than the caller's";
            return Err(Failure::new(ErrorCode::InvalidRequest, why));
        }
        // A previous owner that does not know yet that it is one may be written to still.
        let is_peek = request.on_miss == OnMiss::Peek as i32;
        let claimed = if is_peek { by } else { owned_since };
        if !self.ring().look_for(claimed).await {
            return Err(ring_unknown(claimed));
        }
        self.ring().knows(by);
        let get = Get {
            stamp: self.ring().stamp(by),
            validity: self.ring().validity(by, owned_since),
            traceparent: traceparent.unwrap_or_default(),
            may_fill: rights.of_group(cache.name()).may_fill(&request.key),
            may_hand_over: self.ring().knows_writes_since(owned_since),
            ..read(request)?
        };
        let (answer, held) = answer_with_room(cache, &get, &account).await?;
        let mut response = Response::new(GetResponse {
            outcome: answer.outcome.into(),
            value: answer.value.into_bytes(),
            ring_version: self.ring().told().0,
            age_ms: milliseconds(answer.age),
            ttl_ms: milliseconds(answer.ttl),
            near_ms: 0,
            token: answer.token.0,
            written: answer.written,
        });
        response.extensions_mut().insert(Sending { held: Arc::new(held) });
        Ok(response)
    }

    async fn set_one(&self, request: Request<SetRequest>) -> Result<SetResponse, Failure> {
        let caller = self.caller(&request)?.clone();
        let rights = caller.rights();
        let request = request.into_inner();
        if request.release {
            rights.of_group(&request.group).check_release()?;
        } else {
            rights.check(Action::Set, &request.group, Some(&request.key))?;
        }
        self.wake().awake().await;
        let cache = self.cache(&request.group)?;
        let (by, token) = (RingVersion(request.ring_version), FillToken(request.token));
        if !self.ring().look_for(by).await {
            return Err(ring_unknown(by));
        }
        let response =
            |outcome: Outcome| SetResponse { outcome: outcome.into(), ring_version: self.ring().told().0 };
        if request.release {
            return Ok(response(cache.release(token).answer().await?.outcome));
        }
        let key = request.key.clone();
        let set = Set {
            key: request.key,
            fetched: Fetched::new(request.value, request.not_found, request.load_error),
            ttl: (request.ttl_ms > 0).then(|| Duration::from_millis(request.ttl_ms)),
            stamp: by.min(self.ring().stamp(by)),
            origin: Origin::of(request.failover),
            under: self.ring().heard_of(by),
            token,
            condition: Condition::Always,
            by: None,
        };
        let begun = cache.set(set, Instant::now())?;
        caller.wrote(Action::Set, cache.name(), Some(&key));
        Ok(response(begun.answer().await?.outcome))
    }

    async fn delete_some(&self, request: Request<DeleteRequest>) -> Result<DeleteResponse, Failure> {
        let (caller, account) = (self.caller(&request)?.clone(), self.account(&request)?);
        let (rights, request) = (caller.rights(), request.into_inner());
        let of_group = rights.of_group(&request.group);
        let action = if request.then_set { Action::Set } else { Action::Delete };
        request.keys.iter().try_for_each(|key| of_group.check(action, key))?;
        if request.then_set && request.keys.len() != 1 {
            return Err(Failure::new(ErrorCode::InvalidRequest, "one key is set at a time"));
        }
        // Nothing at all is how a client asks whether it may clear.
        if request.all || request.generation > 0 || request.keys.is_empty() {
            of_group.check(Action::Clear, &[])?;
        }
        self.wake().awake().await;
        let by = RingVersion(request.ring_version);
        if request.then_set && !self.ring().look_for(by).await {
            return Err(ring_unknown(by));
        }
        self.ring().knows(by);
        let cache = self.cache(&request.group)?;
        if let Some(key) = request.keys.first() {
            caller.wrote(action, cache.name(), Some(key));
        }
        if request.all || request.generation > 0 {
            caller.wrote(Action::Clear, cache.name(), None);
        }
        let (under, now) = (self.ring().heard_of(by), Instant::now());
        let stamp = by.min(self.ring().stamp(by));
        let (mut token, mut sequence) = (FillToken::NONE, 0);
        // All are forgotten before the first is waited for, or as many as may wait.
        let mut begun = Vec::new();
        for some in request.keys.chunks(KEYS_AT_A_TIME) {
            for key in some {
                let then_set = request.then_set.then_some(&account);
                let delete = Delete { key, under, stamp, then_set, sequence: request.sequence, by: None };
                match cache.delete(delete, now)? {
                    Begun::Answered(answer) => (token, sequence) = (answer.token, answer.sequence),
                    Begun::Waiting(waiting) => begun.push(waiting),
                }
            }
            yield_now().await;
            if begun.len() >= WAITED_FOR_TOGETHER {
                for waiting in begun.drain(..) {
                    waiting.answer().await?;
                }
            }
        }
        if request.all || request.generation > 0 {
            begun.extend(cache.clear(Generation(request.generation), under, None).waiting());
        }
        for waiting in begun {
            let answer = waiting.answer().await?;
            (token, sequence) = (answer.token.max(token), answer.sequence);
        }
        Ok(DeleteResponse { ring_version: self.ring().told().0, token: token.0, sequence })
    }
}

/// An answer, and room for its value: what is encoded is a copy, which lives until it has been sent. Where
/// there is no room it is waited for without the value, which may be gone from the store meanwhile.
pub(super) async fn answer_with_room(
    cache: &Arc<Cache>,
    get: &Get,
    account: &Arc<Account>,
) -> Result<(Answer, Held), Failure> {
    let length = {
        let answer = cache.begin(get, account, Instant::now())?.answer().await?;
        if let Some(held) = account.values.try_take(answer.value.len()) {
            return Ok((answer, held));
        }
        answer.value.len()
    };
    let held = account.values.take(length).await;
    let answer = cache.begin(get, account, Instant::now())?.answer().await?;
    if answer.value.len() > held.bytes() {
        let why = "there was no room for the value, which has become longer meanwhile";
        return Err(Failure::new(ErrorCode::Overloaded, why));
    }
    Ok((answer, held))
}

fn read(request: GetRequest) -> Result<Get, Failure> {
    let on_miss = OnMiss::try_from(request.on_miss).map_err(|_| {
        Failure::new(ErrorCode::InvalidRequest, format!("unknown on_miss {}", request.on_miss))
    })?;
    Ok(Get {
        key: request.key,
        on_miss,
        stamp: RingVersion(request.ring_version),
        validity: Validity::since(RingVersion(request.owned_since)),
        origin: Origin::of(request.failover),
        token: FillToken(request.token),
        traceparent: Bytes::new(),
        may_fill: Ok(()),
        deadline: None,
        may_hand_over: false,
    })
}
