//! Deleting at nodes that answer in the place of others: the successor of a node that cannot be reached, and,
//! while a configuration is rolled out, the nodes that have a group, in the place of one that has not.

use std::pin::Pin;
use std::sync::Arc;

use futures_util::future::{join, join_all};
use peanut_proto::numbers::RingVersion;
use tokio::time::{Instant, timeout};

use super::OneNode;
use crate::error::Error;
use crate::failover;
use crate::lane::Reply;
use crate::node::Node;
use crate::plan::Part;
use crate::refusal::Refusal;
use crate::request::Placement;

/// In a box, since it is a part of itself.
type Deleting<'a> = Pin<Box<dyn Future<Output = Result<bool, Refusal>> + Send + 'a>>;

impl OneNode<'_> {
    /// Deletes at the successor, or where that does not have the group at the nodes that have it, as far as
    /// they can be reached: what they have by then goes by itself, after `failover_ttl`. Gives why one of
    /// them did not.
    pub(super) async fn try_to_delete_at(self, successor: &Arc<Node>) -> Option<Error> {
        let other = self.without_token();
        let tried = if successor.is_down() { None } else { Some(other.try_in_its_place(successor).await) };
        let is_elsewhere = match &tried {
            Some(Ok(())) => false,
            Some(Err(Refusal::NoGroup(_))) => true,
            // Others may reach it.
            Some(Err(_)) | None => {
                other.client.view().has_group(successor.id(), other.request.group_name) == Some(false)
            }
        };
        if !is_elsewhere {
            return tried?.err().map(Refusal::into_error);
        }
        let nodes = failover::nodes_with_group(other.client, &other.request);
        let nodes = nodes.iter().filter(|node| !node.is_down());
        let tried = Box::pin(join_all(nodes.map(|node| other.try_in_its_place(node)))).await;
        tried.into_iter().find_map(Result::err).map(Refusal::into_error)
    }

    /// Tells the successor too, since a get of this client has gone to it while the owner was written at.
    /// Gives the owner's reply.
    pub(super) fn tell_too<'a>(
        &'a self,
        successor: &'a Arc<Node>,
        reply: Reply,
    ) -> Pin<Box<dyn Future<Output = Reply> + Send + 'a>> {
        Box::pin(async move {
            drop(self.try_to_delete_at(successor).await);
            reply
        })
    }

    /// Asks a node once.
    async fn try_in_its_place(&self, node: &Arc<Node>) -> Result<(), Refusal> {
        let ask = self.request.at(Placement::in_its_place(self.routing.ring.version()));
        let written = node.write(&ask, Instant::now()).await.and_then(|reply| self.heed(node, reply));
        written.map(drop).inspect_err(|refusal| {
            tracing::debug!(node = node.id(), ?refusal, "a node did not delete in another's place");
        })
    }

    /// Deletes at all nodes that have the group, each of which may be asked in the place of one that has not.
    /// Others are told as far as they can be reached: one may have been started with the group since the
    /// registry was last heard, or be asked by an earlier ring. Whether there is one that has it.
    pub(super) fn delete_where_group_is(&self) -> Deleting<'_> {
        Box::pin(async move {
            let other = self.without_token();
            let nodes = failover::nodes_with_group(other.client, &other.request);
            let told = nodes.iter().map(|node| other.deliver(Part::OneOfAll, node, None, RingVersion::NONE));
            let mut others = other.routing.all_nodes(other.begun);
            others.retain(|node| nodes.iter().all(|known| known.id() != node.id()) && !node.is_down());
            let patience = other.client.config.suspect_after();
            let tried = others.iter().map(|node| timeout(patience, other.try_in_its_place(node)));
            let (told, tried) = join(join_all(told), join_all(tried)).await;
            let mut has_group = tried.iter().any(|tried| matches!(tried, Ok(Ok(()))));
            for told in told {
                match told {
                    Ok(_) => has_group = true,
                    // It has been started without the group since.
                    Err(Refusal::NoGroup(_)) => {}
                    Err(refusal) => return Err(refusal),
                }
            }
            Ok(has_group)
        })
    }
}
