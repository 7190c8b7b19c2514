//! `peanut.v1.Peanut`: one call, one key; and the way in for lanes.

use peanut_proto::frame::{RequestFrame, ResponseFrame};
use peanut_proto::v1::peanut_server::Peanut;
use peanut_proto::v1::{ErrorCode, GetRequest, GetResponse, OnMiss};
use tokio::time::Instant;
use tonic::codegen::BoxStream;
use tonic::{Request, Response, Status, Streaming};

use super::lane::Answers;
use super::{Node, whole_ms};
use crate::cache::Get;
use crate::error::Failure;
use crate::store::Origin;

#[tonic::async_trait]
impl Peanut for Node {
    async fn get(&self, request: Request<GetRequest>) -> Result<Response<GetResponse>, Status> {
        let request = request.into_inner();
        let ring_version = self.hear_of_ring(request.ring_version);
        let cache = self.cache(&request.group)?;
        let begun = cache.begin(&read(request)?, Instant::now())?;
        let answer = begun.answer().await?;
        Ok(Response::new(GetResponse {
            outcome: answer.outcome.into(),
            value: answer.value.into_bytes(),
            ring_version,
            age_ms: whole_ms(answer.age),
            ttl_ms: whole_ms(answer.ttl),
            near_ms: 0,
            token: 0,
        }))
    }

    async fn lane(
        &self,
        request: Request<Streaming<RequestFrame>>,
    ) -> Result<Response<BoxStream<ResponseFrame>>, Status> {
        Ok(Response::new(Box::pin(Answers::new(self.clone(), request.into_inner()))))
    }
}

fn read(request: GetRequest) -> Result<Get, Failure> {
    let on_miss = OnMiss::try_from(request.on_miss).map_err(|_| {
        Failure::new(ErrorCode::InvalidRequest, format!("unknown on_miss {}", request.on_miss))
    })?;
    Ok(Get {
        key: request.key,
        on_miss,
        ring_version: request.ring_version,
        owned_since: request.owned_since,
        origin: if request.failover { Origin::Failover } else { Origin::Owner },
    })
}
