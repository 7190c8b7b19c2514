//! Gets of a group from the near cache.

use bytes::Bytes;
use tokio::runtime::Handle;
use tokio::time::Instant;

use super::{Detailed, Group, Source};
use crate::failover;
use crate::near::{Copy, Found};
use crate::request::{Op, Request};

impl Group {
    /// The near copy of a key, where there is one that may be read. `Err`: whether there is one that has
    /// lapsed, which the node is to be told.
    pub(super) fn near_copy(&self, key: &[u8], hash: u64) -> Result<Option<Bytes>, bool> {
        self.read_near(key, hash, |copy, _| copy.value())
    }

    /// As [`near_copy`](Self::near_copy), and how it was come by.
    pub(super) fn near_copy_detailed(&self, key: &[u8], hash: u64) -> Result<Detailed, bool> {
        let (value, about) = self.read_near(key, hash, |copy, now| (copy.value(), copy.about(now)))?;
        let node = (*about.node).to_owned();
        Ok(Detailed { value, source: Source::Near, age: about.age, ttl: about.ttl, node, failover: false })
    }

    #[inline]
    fn read_near<T>(&self, key: &[u8], hash: u64, read: impl FnOnce(&Copy, u64) -> T) -> Result<T, bool> {
        let Some(near) = &self.near else { return Err(false) };
        match near.find(self.number, hash, key, read) {
            Found::Copy { read, is_to_renew } => {
                if is_to_renew {
                    self.renew(key, hash);
                }
                self.tally.near();
                Ok(read)
            }
            Found::Lapsed => Err(true),
            Found::Nothing => Err(false),
        }
    }

    /// Asks for a key in the background, whose copy is read and about to end.
    #[cold]
    fn renew(&self, key: &[u8], hash: u64) {
        let (group, key) = (self.clone(), Box::<[u8]>::from(key));
        let renewing = async move {
            let now = Instant::now();
            let request = Request { op: Op::RENEW, ..group.request_of(&key, hash, now) };
            if let Err(error) = failover::get(&group.client, &request, now).await {
                tracing::debug!(
                    group = group.name(),
                    error = format_args!("{error:#}"),
                    "a near copy was not renewed"
                );
            }
            if let Some(near) = &group.near {
                near.not_renewed(hash);
            }
        };
        match (Handle::try_current(), &self.near) {
            (Ok(runtime), _) => drop(runtime.spawn(renewing)),
            (Err(_), Some(near)) => near.not_renewed(hash),
            (Err(_), None) => {}
        }
    }

    /// This client writes a key: what was asked for before is not kept, nor read.
    pub(super) fn wrote(&self, hash: u64) {
        if let Some(near) = &self.near {
            near.wrote(hash);
        }
    }

    /// This client writes all keys.
    pub(super) fn wrote_all(&self) {
        if let Some(near) = &self.near {
            near.wrote_all();
        }
    }
}
