//! The ring document: who the members of a fleet are, under which version.
//!
//! It is one JSON value under one etcd key and changes only by compare-and-swap, so two holders of the
//! same version hold the same ring. Everything here is a pure function from document to document;
//! reading, writing and retrying belong to [`crate::registry`] and its users.
//!
//! Membership is not health: a node that is down stays a member. See [`Liveness`] for the other half.

mod bounds;
mod keys;
mod notices;
mod records;
mod view;

pub use bounds::{MAX_DOCUMENT_BYTES, MAX_MEMBERS};
pub use keys::{Key, Keys, MAX_NAME_BYTES, check_name};
pub use notices::{Notice, PartialGroup, SharedAddress};
pub use records::{Group, Hint, LiveGroup, Liveness, NamingRecord, RecordError};
pub use view::FleetView;

use std::collections::{HashMap, HashSet};

use serde::{Deserialize, Serialize};

use crate::numbers::RingVersion;

/// The document format that this build reads and writes.
pub const FORMAT: u32 = 1;
/// The one hash function that rings of format 1 use.
pub const HASH: &str = "xxh3-64";
/// Points per unit of weight in a new ring. Of 100 equal nodes the largest then has 3 to 5 % over the
/// mean, depending on their names; with 1024 points it would be 6 to 10 %.
pub const DEFAULT_POINTS: u32 = 4096;

/// How long it is remembered who the members were, and in how many documents at most.
const EARLIER_MS: u64 = 600_000;
const MOST_EARLIER: usize = 16;
/// For how long at least it is known that an operator has taken a node out.
const DRAINED_MS: u64 = 3_600_000;

/// Who the members of a fleet are, and who they were.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RingDocument {
    /// Format of the document; [`FORMAT`].
    pub format: u32,
    /// Raised by one with every change. 0 is the empty ring that nobody has written yet.
    pub version: RingVersion,
    /// Name of the hash function; [`HASH`].
    pub hash: String,
    /// Points per unit of weight.
    pub points: u32,
    /// The members, in order of id.
    pub members: Vec<Member>,
    /// PreviousOwner members, in order of id, for as long as an entry written in their time may still live.
    /// A member whose weight was lowered is here too, with the weight it had.
    #[serde(default)]
    pub departed: Vec<Departed>,
    /// Who the members were before, the latest first, for as long as some may still go by that.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub earlier: Vec<Earlier>,
}

/// The members of a document that was replaced.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Earlier {
    /// Its version.
    pub version: RingVersion,
    /// Wall-clock time at which it was replaced, in milliseconds since 1970.
    pub replaced_ms: u64,
    /// Its members.
    pub members: Vec<Member>,
}

/// A member of the ring.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// Stable name of the node; its points are hashes of `"<id>#<n>"`.
    pub id: String,
    /// Where clients reach it, `host:port`.
    pub addr: String,
    /// Failure domain, empty where none was given.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub zone: String,
    /// Its share relative to the others.
    #[serde(default = "one")]
    pub weight: u32,
    /// Ring version at which it joined, or last gained weight.
    pub since: RingVersion,
    /// Wall-clock time of `since`, in milliseconds since 1970.
    #[serde(default)]
    pub since_ms: u64,
}

/// A former member, or the greater weight that a member once had.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Departed {
    /// Name of the node.
    pub id: String,
    /// The weight it left with.
    pub weight: u32,
    /// Ring version at which it had joined.
    pub since: RingVersion,
    /// First ring version without it.
    pub left: RingVersion,
    /// Wall-clock time of `left`, in milliseconds since 1970.
    #[serde(default)]
    pub left_ms: u64,
    /// An operator took it out: it does not join again by itself while it runs.
    #[serde(default, skip_serializing_if = "is_false")]
    pub drained: bool,
}

/// What a node says of itself when it joins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeInfo {
    /// Stable name of the node.
    pub id: String,
    /// Where clients reach it, `host:port`.
    pub addr: String,
    /// Failure domain; may be empty.
    pub zone: String,
    /// Its share relative to the others; at least 1.
    pub weight: u32,
}

fn one() -> u32 {
    1
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "as serde calls it")]
fn is_false(flag: &bool) -> bool {
    !flag
}

impl RingDocument {
    /// The ring before anyone has joined.
    pub fn empty(points: u32) -> Self {
        RingDocument {
            format: FORMAT,
            version: RingVersion::NONE,
            hash: HASH.to_owned(),
            points,
            members: Vec::new(),
            departed: Vec::new(),
            earlier: Vec::new(),
        }
    }

    /// A ring of equal members that never changes: version 1, ids equal to addresses.
    pub fn fixed<S: Into<String>>(addrs: impl IntoIterator<Item = S>) -> Self {
        let mut ring = RingDocument::empty(DEFAULT_POINTS);
        for addr in addrs {
            let addr = addr.into();
            let node = NodeInfo { id: addr.clone(), addr, zone: String::new(), weight: 1 };
            ring = ring.with(&node, 0).unwrap_or(ring);
        }
        ring.version = RingVersion(1);
        ring.earlier.clear();
        ring.members.iter_mut().for_each(|member| member.since = RingVersion(1));
        ring
    }

    /// The member of that id.
    pub fn member(&self, id: &str) -> Option<&Member> {
        self.members.iter().find(|member| member.id == id)
    }

    /// The next document, in which `node` is a member as it says; `None` where it already is.
    ///
    /// A new address or zone leaves ownership as it is. More weight makes the node new (`since`), since
    /// it gains segments; less weight leaves a departed record, since others gain them.
    pub fn with(&self, node: &NodeInfo, now_ms: u64) -> Option<Self> {
        let mut next = self.clone();
        next.version = next.version.plus(1);
        let mut member = Member {
            id: node.id.clone(),
            addr: node.addr.clone(),
            zone: node.zone.clone(),
            weight: node.weight,
            since: next.version,
            since_ms: now_ms,
        };
        match next.members.binary_search_by(|m| m.id.cmp(&node.id)) {
            Ok(at) => {
                let old = next.members[at].clone();
                if node.weight <= old.weight {
                    member.since = old.since;
                    member.since_ms = old.since_ms;
                }
                if member == old {
                    return None;
                }
                if node.weight < old.weight {
                    next.depart(&old, now_ms);
                }
                next.members[at] = member;
            }
            Err(at) => next.members.insert(at, member),
        }
        next.departed.retain(|gone| gone.id != node.id || gone.weight > node.weight);
        next.remember(self, now_ms);
        Some(next)
    }

    /// The next document, in which the node of that id is not a member; `None` where it is not one.
    pub fn without(&self, id: &str, now_ms: u64) -> Option<Self> {
        let at = self.members.iter().position(|member| member.id == id)?;
        let mut next = self.clone();
        next.version = next.version.plus(1);
        let member = next.members.remove(at);
        next.depart(&member, now_ms);
        next.remember(self, now_ms);
        Some(next)
    }

    /// Takes down who the members were in the document that this one replaces.
    fn remember(&mut self, replaced: &Self, now_ms: u64) {
        if !replaced.members.is_empty() {
            let members = replaced.members.clone();
            self.earlier.insert(0, Earlier { version: replaced.version, replaced_ms: now_ms, members });
        }
        self.earlier.retain(|earlier| earlier.replaced_ms.saturating_add(EARLIER_MS) > now_ms);
        self.earlier.truncate(MOST_EARLIER);
    }

    /// As [`without`](Self::without), for a node that is not to join again by itself.
    pub fn drained(&self, id: &str, now_ms: u64) -> Option<Self> {
        let mut next = self.without(id, now_ms)?;
        next.departed.iter_mut().filter(|gone| gone.id == id).for_each(|gone| gone.drained = true);
        Some(next)
    }

    /// Those of these nodes that are no members, although this document does not say that they have left
    /// since that version, one after the other: each change of a ring takes out one.
    pub fn vanished<'n>(&self, nodes: impl IntoIterator<Item = &'n str>, since: RingVersion) -> Vec<&'n str> {
        let departed = self.departed.iter().filter(|gone| gone.left > since);
        let left: HashMap<_, _> = departed.map(|gone| (gone.id.as_str(), gone.left)).collect();
        let mut accounted = HashSet::new();
        let mut has_left = |id: &str| left.get(id).is_some_and(|left| accounted.insert(*left));
        nodes.into_iter().filter(|id| self.member(id).is_none() && !has_left(id)).collect()
    }

    /// The members that are none of these nodes, although this document does not say that they have joined
    /// since that version, one after the other.
    pub fn appeared(&self, nodes: &HashSet<&str>, since: RingVersion) -> Vec<&str> {
        let mut accounted = HashSet::new();
        let mut has_joined = |member: &Member| member.since > since && accounted.insert(member.since);
        let others = self.members.iter().filter(|member| !nodes.contains(member.id.as_str()));
        others.filter(|member| !has_joined(member)).map(|member| member.id.as_str()).collect()
    }

    /// Whether the node of that id was taken out by an operator.
    pub fn is_drained(&self, id: &str) -> bool {
        self.member(id).is_none() && self.departed.iter().any(|gone| gone.id == id && gone.drained)
    }

    /// The documents that were replaced after `since_ms`, the latest first: who the members were, but not who
    /// had left before. No more of them than have as many points together as one document may have.
    pub fn recent(&self, since_ms: u64) -> impl Iterator<Item = Self> {
        let recent = self.earlier.iter().filter(move |earlier| earlier.replaced_ms > since_ms);
        let documents = recent.map(|earlier| RingDocument {
            version: earlier.version,
            members: earlier.members.clone(),
            departed: Vec::new(),
            earlier: Vec::new(),
            ..self.clone()
        });
        let mut points = 0;
        documents.take_while(move |document| {
            points += document.total_points();
            points <= bounds::MAX_TOTAL_POINTS
        })
    }

    /// Forgets departed records older than `lifetime_ms`, the longest time that an entry can live, as far as
    /// one node knows: another may have groups whose entries live longer, or another clock. So what such a
    /// node had owned counts as owned only since it left. A record of a node that an operator took out stays
    /// for an hour at least, and keeps it out. The version stays, since no owner changes.
    pub fn forget_departed(&mut self, now_ms: u64, lifetime_ms: u64) {
        let is_over = |gone: &Departed| {
            let lifetime_ms = if gone.drained { lifetime_ms.max(DRAINED_MS) } else { lifetime_ms };
            gone.left_ms.saturating_add(lifetime_ms) <= now_ms
        };
        let until = self.departed.iter().filter(|gone| is_over(gone)).map(|gone| gone.left).max();
        self.departed.retain(|gone| !is_over(gone));
        self.owned_since(until.unwrap_or_default());
    }

    /// What members have owned for longer they own since that version.
    fn owned_since(&mut self, version: RingVersion) {
        self.members.iter_mut().for_each(|member| member.since = member.since.max(version));
    }

    /// Records that `member` leaves, or shrinks, at this document's version.
    fn depart(&mut self, member: &Member, now_ms: u64) {
        let mut record = Departed {
            id: member.id.clone(),
            weight: member.weight,
            since: member.since,
            left: self.version,
            left_ms: now_ms,
            drained: false,
        };
        match self.departed.binary_search_by(|gone| gone.id.cmp(&member.id)) {
            Ok(at) => {
                // An older record of greater weight covers this one's points, and keeps covering them.
                record.weight = record.weight.max(self.departed[at].weight);
                record.since = record.since.min(self.departed[at].since);
                self.departed[at] = record;
            }
            Err(at) => self.departed.insert(at, record),
        }
    }

    /// A number that equal rings share and different ones hardly ever do.
    pub fn fingerprint(&self) -> u32 {
        // The lower half is as good as any.
        xxhash_rust::xxh3::xxh3_64(&self.encode()) as u32
    }

    /// Writes the document as it stands in etcd.
    pub fn encode(&self) -> Vec<u8> {
        records::encode(self)
    }

    /// Reads a document and checks that a ring can be built from it.
    ///
    /// # Errors
    /// Where it is not such a document, is of a format or hash that this build does not know, or breaks
    /// a rule (a name twice, no weight, more points than any fleet needs).
    pub fn decode(bytes: &[u8]) -> Result<Self, RecordError> {
        let mut ring: RingDocument = records::decode(bytes)?;
        ring.members.sort_by(|a, b| a.id.cmp(&b.id));
        ring.departed.sort_by(|a, b| a.id.cmp(&b.id));
        ring.earlier.iter_mut().for_each(|earlier| earlier.members.sort_by(|a, b| a.id.cmp(&b.id)));
        ring.check()?;
        Ok(ring)
    }
}

#[cfg(test)]
mod tests;
