//! Plain gRPC, for clients that know one address and no ring: `peanut.v1.Peanut`, without lanes, and the service of the
//! original PeanutCache.
//!
//! What only a client with a ring can mean is refused: fill tokens, peeks at former owners, and the place of another node.

use std::sync::Arc;
use std::time::Duration;

use peanut_client::{Detailed, Error, ErrorKind, Group, Source};
use peanut_proto::failure::to_status;
use peanut_proto::frame::{RequestFrame, ResponseFrame};
use peanut_proto::limits::is_traceparent;
use peanut_proto::peanutcachepb;
use peanut_proto::peanutcachepb::peanut_cache_server::PeanutCache;
use peanut_proto::v1::peanut_server::Peanut;
use peanut_proto::v1::{
    DeleteRequest, DeleteResponse, ErrorCode, GetRequest, GetResponse, OnMiss, Outcome, SetRequest,
    SetResponse,
};
use tonic::codegen::BoxStream;
use tonic::metadata::MetadataMap;
use tonic::{Request, Response, Status, Streaming};

use crate::groups::Groups;
use crate::trace;

/// Answers both services.
#[derive(Clone, Debug)]
pub(crate) struct Grpc {
    groups: Arc<Groups>,
}

impl Grpc {
    pub(crate) fn new(groups: Arc<Groups>) -> Self {
        Grpc { groups }
    }

    fn group(&self, name: &str) -> Result<Group, Status> {
        self.groups.named(name.as_bytes()).map_err(refused)
    }

    async fn get_detailed(
        &self,
        metadata: &MetadataMap,
        group: &str,
        key: &[u8],
    ) -> Result<Detailed, Status> {
        let traceparent = metadata.get("traceparent").map(|value| value.as_bytes());
        let traceparent = traceparent.filter(|it| is_traceparent(it));
        let traceparent = traceparent.and_then(|it| String::from_utf8(it.to_vec()).ok());
        let group = self.group(group)?;
        trace::within(traceparent, group.get_detailed(key)).await.map_err(failed)
    }
}

#[tonic::async_trait]
impl Peanut for Grpc {
    async fn get(&self, request: Request<GetRequest>) -> Result<Response<GetResponse>, Status> {
        let (metadata, _, request) = request.into_parts();
        if request.on_miss != OnMiss::Load as i32 || request.token != 0 || request.failover {
            return Err(refused(
                "a proxy loads what is missing; peeks, leases and tokens are for clients with a ring",
            ));
        }
        let got = self.get_detailed(&metadata, &request.group, &request.key).await?;
        let outcome = match got.source {
            Source::Loaded => Outcome::Loaded,
            Source::Coalesced => Outcome::Coalesced,
            Source::Stale => Outcome::Stale,
            _ if got.value.is_none() => Outcome::NotFound,
            _ => Outcome::Hit,
        };
        Ok(Response::new(GetResponse {
            outcome: outcome.into(),
            value: got.value.unwrap_or_default(),
            age_ms: ms(got.age),
            ttl_ms: ms(got.ttl),
            ..GetResponse::default()
        }))
    }

    async fn set(&self, request: Request<SetRequest>) -> Result<Response<SetResponse>, Status> {
        let request = request.into_inner();
        let is_fill =
            request.token != 0 || request.not_found || !request.load_error.is_empty() || request.release;
        if is_fill || request.failover {
            return Err(refused("fill tokens are for clients with a ring"));
        }
        let group = self.group(&request.group)?;
        let set = match request.ttl_ms {
            0 => group.set(request.key, request.value).await,
            ttl => group.set_with_ttl(request.key, request.value, Duration::from_millis(ttl)).await,
        };
        set.map_err(failed)?;
        Ok(Response::new(SetResponse { outcome: Outcome::Done.into(), ..SetResponse::default() }))
    }

    async fn delete(&self, request: Request<DeleteRequest>) -> Result<Response<DeleteResponse>, Status> {
        let request = request.into_inner();
        if request.then_set || request.generation != 0 {
            return Err(refused("fill tokens and generations are for clients with a ring"));
        }
        let group = self.group(&request.group)?;
        let deleted = group.delete_many(&request.keys).await;
        deleted.into_iter().collect::<Result<(), _>>().map_err(failed)?;
        if request.all {
            group.clear().await.map_err(failed)?;
        }
        Ok(Response::new(DeleteResponse::default()))
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
        let (metadata, _, request) = request.into_parts();
        let got = self.get_detailed(&metadata, &request.group, request.key.as_bytes()).await?;
        // This service has no other way to say so.
        let value = got.value.ok_or_else(|| Status::not_found("the group has no such key"))?;
        Ok(Response::new(peanutcachepb::GetResponse { value }))
    }
}

fn ms(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

fn refused(why: &str) -> Status {
    to_status(ErrorCode::InvalidRequest, why)
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
