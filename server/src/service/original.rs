//! `peanutcachepb.PeanutCache`, the service of the original PeanutCache. Its clients have a ring of their
//! own or none, so their gets carry no versions.

use std::sync::Arc;

use bytes::Bytes;
use peanut_proto::numbers::{FillToken, RingVersion};
use peanut_proto::peanutcachepb::peanut_cache_server::PeanutCache;
use peanut_proto::peanutcachepb::{GetRequest, GetResponse};
use peanut_proto::v1::{OnMiss, Outcome};
use tonic::{Request, Response, Status};

use super::unary::answer_with_room;
use crate::budget::{Account, Held};
use crate::cache::{Answer, Get};
use crate::node::Node;
use crate::rights::Action;
use crate::store::Origin;
use crate::validity::Validity;
use peanut_edge::Failure;
use peanut_edge::bodies::Sending;

#[tonic::async_trait]
impl PeanutCache for Node {
    async fn get(&self, request: Request<GetRequest>) -> Result<Response<GetResponse>, Status> {
        let account = self.account(&request).map_err(|why| self.refuse(why))?;
        let answered = self.get_of_the_original(request, &account).await;
        let (answer, held) = answered.map_err(|why| self.refuse(why))?;
        if answer.outcome == Outcome::NotFound {
            // This service has no other way to say so.
            return Err(Status::not_found("the group has no such key"));
        }
        let mut response = Response::new(GetResponse { value: answer.value.into_bytes() });
        response.extensions_mut().insert(Sending { held: Arc::new(held) });
        Ok(response)
    }
}

impl Node {
    async fn get_of_the_original(
        &self,
        request: Request<GetRequest>,
        account: &Arc<Account>,
    ) -> Result<(Answer, Held), Failure> {
        let rights = self.rights(&request)?;
        let GetRequest { group, key } = request.into_inner();
        rights.check(Action::Read, &group, Some(key.as_bytes()))?;
        self.wake().awake().await;
        let get = Get {
            key: Bytes::from(key.into_bytes()),
            on_miss: OnMiss::Load,
            stamp: self.ring().stamp(RingVersion::NONE),
            validity: Validity::default(),
            origin: Origin::Owner,
            token: FillToken::NONE,
            traceparent: Bytes::new(),
            may_fill: Ok(()),
            deadline: None,
            may_hand_over: false,
        };
        answer_with_room(self.cache(&group)?, &get, account).await
    }
}
