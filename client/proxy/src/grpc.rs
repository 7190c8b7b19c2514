//! Plain gRPC, for clients that know one address and no ring: `peanut.v1.Peanut`, without lanes, and the
//! service of the original PeanutCache.
//!
//! What only a client with a ring can mean is refused: fill tokens, peeks at previous owners, and the place
//! of another node.

use std::sync::Arc;
use std::time::Duration;

use peanut_client::{Detailed, Error, ErrorKind, Group, Source};
use peanut_edge::Failure;
use peanut_edge::bodies::Sending;
use peanut_edge::budget::Account;
use peanut_edge::connections::Peer;
use peanut_edge::rights::{Action, Caller};
use peanut_proto::clock::milliseconds;
use peanut_proto::failure::to_status;
use peanut_proto::frame::{RequestFrame, ResponseFrame};
use peanut_proto::peanutcachepb;
use peanut_proto::peanutcachepb::peanut_cache_server::PeanutCache;
use peanut_proto::v1::peanut_server::Peanut;
use peanut_proto::v1::{
    DeleteRequest, DeleteResponse, ErrorCode, GetRequest, GetResponse, OnMiss, Outcome, SetRequest,
    SetResponse,
};
use tonic::codegen::BoxStream;
use tonic::{Code, Request, Response, Status, Streaming};

use crate::core::{Core, account};
use crate::counters::Protocol;
use crate::fetch::{Shortage, get_detailed};
use crate::trace::{traceparent, within};

/// Answers both services.
#[derive(Clone, Debug)]
pub(crate) struct Grpc {
    core: Arc<Core>,
}

/// A call: who makes it, and what it asks.
struct Call<T> {
    caller: Caller,
    account: Arc<Account>,
    traceparent: Option<String>,
    request: T,
}

impl Grpc {
    pub(crate) fn new(core: Arc<Core>) -> Self {
        Grpc { core }
    }

    /// Lets a call in by its metadata, with what its caller may do and hold.
    ///
    /// # Errors
    /// Where its caller is not known, or it came by no connection.
    pub(crate) fn admit(&self, mut request: Request<()>) -> Result<Request<()>, Status> {
        let peer = request.extensions().get::<Peer>().cloned().ok_or_else(not_admitted)?;
        let caller = self.core.tokens.admit(request.metadata(), Some(peer.clone()));
        let caller = caller.map_err(|failure| {
            self.core.counters.answered(Protocol::Grpc, 1, 1);
            told(failure)
        })?;
        peer.presence().admitted();
        request.extensions_mut().insert(account(&caller, &peer));
        request.extensions_mut().insert(caller);
        Ok(request)
    }

    fn call<T>(&self, request: Request<T>) -> Result<Call<T>, Status> {
        let (metadata, mut extensions, request) = request.into_parts();
        let caller = extensions.remove::<Caller>().ok_or_else(not_admitted)?;
        let account = extensions.remove::<Arc<Account>>().ok_or_else(not_admitted)?;
        Ok(Call { caller, account, traceparent: traceparent(metadata.as_ref()), request })
    }

    /// Counts a call by what it came to.
    fn counted<T>(&self, answer: Result<Response<T>, Status>) -> Result<Response<T>, Status> {
        let is_error = answer.as_ref().is_err_and(|status| status.code() != Code::NotFound);
        self.core.counters.answered(Protocol::Grpc, 1, usize::from(is_error));
        answer
    }

    fn group(&self, name: &str) -> Result<Group, Status> {
        self.core.groups.named(name.as_bytes()).map_err(|why| refused(&why))
    }

    /// What there is of a key, and the room that it takes until it has been sent.
    async fn get_detailed<T>(
        &self,
        call: &Call<T>,
        group: &str,
        key: &[u8],
    ) -> Result<(Detailed, Sending), Status> {
        call.caller.rights().check(Action::Read, group, Some(key)).map_err(told)?;
        let group = self.group(group)?;
        let fetched = get_detailed(&self.core.groups, &group, key, &call.account);
        let (got, held) = within(call.traceparent.clone(), fetched).await.map_err(no_room)?;
        Ok((got.map_err(failed)?, Sending { held: Arc::new(held) }))
    }
}

#[tonic::async_trait]
impl Peanut for Grpc {
    async fn get(&self, request: Request<GetRequest>) -> Result<Response<GetResponse>, Status> {
        self.counted(self.get_one(request).await)
    }

    async fn set(&self, request: Request<SetRequest>) -> Result<Response<SetResponse>, Status> {
        self.counted(self.set_one(request).await)
    }

    async fn delete(&self, request: Request<DeleteRequest>) -> Result<Response<DeleteResponse>, Status> {
        self.counted(self.delete_some(request).await)
    }

    async fn lane(
        &self,
        _: Request<Streaming<RequestFrame>>,
    ) -> Result<Response<BoxStream<ResponseFrame>>, Status> {
        Err(Status::unimplemented("a proxy has no lanes: a client that speaks them asks the nodes"))
    }
}

#[tonic::async_trait]
impl PeanutCache for Grpc {
    async fn get(
        &self,
        request: Request<peanutcachepb::GetRequest>,
    ) -> Result<Response<peanutcachepb::GetResponse>, Status> {
        self.counted(self.get_of_the_original(request).await)
    }
}

impl Grpc {
    async fn get_one(&self, request: Request<GetRequest>) -> Result<Response<GetResponse>, Status> {
        let call = self.call(request)?;
        let request = &call.request;
        if request.on_miss != OnMiss::Load as i32 || request.token != 0 || request.failover {
            return Err(refused(
                "a proxy loads what is missing; peeks, leases and tokens are for clients with a ring",
            ));
        }
        let (got, sending) = self.get_detailed(&call, &request.group, &request.key).await?;
        let outcome = match got.source {
            Source::Loaded => Outcome::Loaded,
            Source::Coalesced => Outcome::Coalesced,
            Source::Stale => Outcome::Stale,
            _ if got.value.is_none() => Outcome::NotFound,
            _ => Outcome::Hit,
        };
        let response = GetResponse {
            outcome: outcome.into(),
            value: got.value.unwrap_or_default(),
            age_ms: milliseconds(got.age),
            ttl_ms: milliseconds(got.ttl),
            ..GetResponse::default()
        };
        Ok(sent(response, sending))
    }

    async fn set_one(&self, request: Request<SetRequest>) -> Result<Response<SetResponse>, Status> {
        let Call { caller, request, .. } = self.call(request)?;
        let is_fill =
            request.token != 0 || request.not_found || !request.load_error.is_empty() || request.release;
        if is_fill || request.failover {
            return Err(refused("fill tokens are for clients with a ring"));
        }
        caller.rights().check(Action::Set, &request.group, Some(&request.key)).map_err(told)?;
        let group = self.group(&request.group)?;
        let set = match request.ttl_ms {
            0 => group.set(request.key, request.value).await,
            ttl => group.set_with_ttl(request.key, request.value, Duration::from_millis(ttl)).await,
        };
        self.core.groups.heed(&group, [&set]);
        set.map_err(failed)?;
        Ok(Response::new(SetResponse { outcome: Outcome::Done.into(), ..SetResponse::default() }))
    }

    async fn delete_some(&self, request: Request<DeleteRequest>) -> Result<Response<DeleteResponse>, Status> {
        let Call { caller, request, .. } = self.call(request)?;
        if request.then_set || request.generation != 0 {
            return Err(refused("fill tokens and generations are for clients with a ring"));
        }
        let of_group = caller.rights().of_group(&request.group);
        request.keys.iter().try_for_each(|key| of_group.check(Action::Delete, key)).map_err(told)?;
        if request.all {
            of_group.check(Action::Clear, &[]).map_err(told)?;
        }
        if request.keys.is_empty() && !request.all {
            return Ok(Response::new(DeleteResponse::default()));
        }
        let group = self.group(&request.group)?;
        let deleted = group.delete_many(&request.keys).await;
        self.core.groups.heed(&group, &deleted);
        deleted.into_iter().collect::<Result<(), _>>().map_err(failed)?;
        if request.all {
            let cleared = group.clear().await;
            self.core.groups.heed(&group, [&cleared]);
            caller.acted(Action::Clear, group.name(), None, cleared.as_ref().err());
            cleared.map_err(failed)?;
        }
        Ok(Response::new(DeleteResponse::default()))
    }

    async fn get_of_the_original(
        &self,
        request: Request<peanutcachepb::GetRequest>,
    ) -> Result<Response<peanutcachepb::GetResponse>, Status> {
        let call = self.call(request)?;
        let peanutcachepb::GetRequest { group, key } = &call.request;
        let (got, sending) = self.get_detailed(&call, group, key.as_bytes()).await?;
        // This service has no other way to say so.
        let value = got.value.ok_or_else(|| Status::not_found("the group has no such key"))?;
        Ok(sent(peanutcachepb::GetResponse { value }, sending))
    }
}

/// An answer with the room that it takes.
fn sent<T>(response: T, sending: Sending) -> Response<T> {
    let mut response = Response::new(response);
    response.extensions_mut().insert(sending);
    response
}

fn not_admitted() -> Status {
    Status::unauthenticated("the call was not admitted")
}

fn refused(why: &str) -> Status {
    to_status(ErrorCode::InvalidRequest, why)
}

fn no_room(_: Shortage) -> Status {
    to_status(ErrorCode::Overloaded, "others hold the room for values")
}

fn told(failure: Failure) -> Status {
    to_status(failure.code, &*failure.message)
}

/// As a node would have said it.
fn failed(error: Error) -> Status {
    let code = match error.kind() {
        ErrorKind::InvalidArgument => ErrorCode::InvalidRequest,
        ErrorKind::UnknownGroup => ErrorCode::UnknownGroup,
        ErrorKind::Loader => ErrorCode::LoaderFailed,
        ErrorKind::TooLarge => ErrorCode::ValueTooLarge,
        ErrorKind::Overloaded => ErrorCode::Overloaded,
        ErrorKind::DeadlineExceeded => ErrorCode::DeadlinePassed,
        ErrorKind::PermissionDenied => ErrorCode::PermissionDenied,
        ErrorKind::Unavailable => return Status::unavailable(format!("{error:#}")),
        _ => ErrorCode::InternalError,
    };
    to_status(code, format!("{error:#}"))
}
