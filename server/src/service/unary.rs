//! `peanut.v1.Peanut`: one call, one key; and the way in for lanes.

use std::time::Duration;

use bytes::Bytes;
use peanut_proto::frame::{RequestFrame, ResponseFrame};
use peanut_proto::limits::is_traceparent;
use peanut_proto::v1::peanut_server::Peanut;
use peanut_proto::v1::{
    DeleteRequest, DeleteResponse, ErrorCode, GetRequest, GetResponse, OnMiss, SetRequest, SetResponse,
};
use tokio::time::Instant;
use tonic::codegen::BoxStream;
use tonic::{Request, Response, Status, Streaming};

use super::lane::Answers;
use super::{Node, whole_ms};
use crate::cache::{Fetched, Get, Set};
use crate::error::Failure;
use crate::store::Origin;

#[tonic::async_trait]
impl Peanut for Node {
    async fn get(&self, request: Request<GetRequest>) -> Result<Response<GetResponse>, Status> {
        self.get_one(request).await.map(Response::new).map_err(|why| self.refuse(why))
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
        let rights = self.rights(&request).map_err(|why| self.refuse(why))?;
        let wakes = self.wake().awake().await;
        Ok(Response::new(Box::pin(Answers::new(self.clone(), rights, wakes, request.into_inner()))))
    }
}

impl Node {
    async fn get_one(&self, request: Request<GetRequest>) -> Result<GetResponse, Failure> {
        let rights = self.rights(&request)?;
        let traceparent = request.metadata().get("traceparent").map(|value| value.as_bytes());
        let traceparent = traceparent.filter(|it| is_traceparent(it)).map(Bytes::copy_from_slice);
        let request = request.into_inner();
        rights.check_read(&request.group)?;
        self.wake().awake().await;
        let heard = self.believed(request.ring_version, &rights);
        let ring_version = self.hear_of_ring(heard);
        let cache = self.cache(&request.group)?;
        let get = Get {
            ring_version: heard,
            traceparent: traceparent.unwrap_or_default(),
            may_fill: rights.check_write(cache.name()),
            ..read(request)?
        };
        let begun = cache.begin(&get, Instant::now())?;
        let answer = begun.answer().await?;
        Ok(GetResponse {
            outcome: answer.outcome.into(),
            value: answer.value.into_bytes(),
            ring_version,
            age_ms: whole_ms(answer.age),
            ttl_ms: whole_ms(answer.ttl),
            near_ms: 0,
            token: answer.token,
        })
    }

    async fn set_one(&self, request: Request<SetRequest>) -> Result<SetResponse, Failure> {
        let rights = self.rights(&request)?;
        let request = request.into_inner();
        rights.check_write(&request.group)?;
        self.wake().awake().await;
        let ring_version = self.hear_of_ring(request.ring_version);
        let cache = self.cache(&request.group)?;
        let set = Set {
            key: request.key,
            fetched: Fetched::new(request.value, request.not_found, request.load_error),
            ttl: (request.ttl_ms > 0).then(|| Duration::from_millis(request.ttl_ms)),
            ring_version: request.ring_version,
            origin: Origin::of(request.failover),
            token: request.token,
        };
        let answer = cache.set(set, Instant::now())?.answer().await?;
        Ok(SetResponse { outcome: answer.outcome.into(), ring_version })
    }

    async fn delete_some(&self, request: Request<DeleteRequest>) -> Result<DeleteResponse, Failure> {
        let rights = self.rights(&request)?;
        let request = request.into_inner();
        rights.check_write(&request.group)?;
        self.wake().awake().await;
        let ring_version = self.hear_of_ring(request.ring_version);
        let cache = self.cache(&request.group)?;
        // All are forgotten before the first is waited for.
        let keys = request.keys.iter().map(|key| cache.delete(key));
        let mut begun = keys.collect::<Result<Vec<_>, _>>()?;
        if request.all || request.generation > 0 {
            begun.push(cache.clear(request.generation));
        }
        for begun in begun {
            begun.answer().await?;
        }
        Ok(DeleteResponse { ring_version })
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
        origin: Origin::of(request.failover),
        token: request.token,
        traceparent: Bytes::new(),
        may_fill: Ok(()),
        deadline: None,
    })
}
