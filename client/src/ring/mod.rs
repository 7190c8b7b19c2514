//! The ring: which node owns which key, and since when.
//!
//! Consistent hashing after Karger et al. (1997) as ketama made it common: each node has points on a
//! circle of 64-bit hashes, and a key belongs to the first point clockwise from its hash. Keys hash as
//! xxh3-64 of group, a zero byte, key; points as xxh3-64 of `<id>#<n>`. Placement is wire protocol:
//! `testdata/` holds vectors that must never change.
//!
//! A ring is built from one [`RingDocument`] and never changes; it does no I/O and reads no clock.

pub use peanut_proto::key::key_hash;
pub use peanut_proto::membership::{Member, RingDocument};
pub use peanut_proto::numbers::RingVersion;
use xxhash_rust::xxh3::xxh3_64;

/// An immutable ring.
///
/// Look-up takes the top bits of the hash as an index into the sorted points and walks from there, one
/// or two steps on average, whatever the number of nodes. Memory is 16 bytes per point and 4 to 8 for the
/// index.
#[derive(Clone, Debug)]
pub struct Ring {
    version: RingVersion,
    members: Vec<Member>,
    /// In order of hash, points of departed nodes included.
    points: Vec<Point>,
    /// For each value of the top bits, the first point at or after the beginning of its arc.
    index: Vec<u32>,
    /// How far a hash is shifted to give its top bits.
    shift: u32,
    /// Of each member the version since when it is one, of each departed node that at which it left.
    versions: Vec<RingVersion>,
}

#[derive(Clone, Copy, Debug)]
struct Point {
    hash: u64,
    /// Index of the member that owns the arc ending here. For a departed node's point that is the next
    /// member clockwise.
    owner: u32,
    /// Index into `versions`.
    owned_since: u32,
}

/// Where a key lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Index of the owner among [`Ring::members`].
    pub owner: usize,
    /// Index of the next distinct member clockwise; `None` in a ring of one.
    pub successor: Option<usize>,
    /// Ring version at which the owner came to own the key. What the owner wrote before that may have
    /// missed a write at another owner.
    pub owned_since: RingVersion,
}

impl Ring {
    /// Builds the ring of a document. Takes about 120 ns per point: 50 ms for 100 nodes of 4096 points, 2 ms
    /// for three.
    pub fn new(document: &RingDocument) -> Self {
        let (points, versions) = own(document);
        let bits = points.len().next_power_of_two().trailing_zeros().max(1);
        let shift = 64 - bits;
        let members = document.members.clone();
        let index = index(&points, bits);
        Ring { version: document.version, members, points, index, shift, versions }
    }

    /// Version of the document it was built from. Equal versions mean equal rings.
    pub fn version(&self) -> RingVersion {
        self.version
    }

    /// The members, in order of id.
    pub fn members(&self) -> &[Member] {
        &self.members
    }

    /// Where a key lives; `None` in an empty ring.
    pub fn place(&self, group: &str, key: &[u8]) -> Option<Place> {
        self.place_hash(key_hash(group, key))
    }

    /// Where a key of that hash lives; `None` in an empty ring.
    pub fn place_hash(&self, hash: u64) -> Option<Place> {
        let top = usize::try_from(hash >> self.shift).ok()?;
        let mut at = *self.index.get(top)? as usize;
        while self.points.get(at).is_some_and(|point| point.hash < hash) {
            at += 1;
        }
        let point = self.points.get(at).or(self.points.first())?;
        let (before, after) = self.points.split_at(at.min(self.points.len()));
        // In a ring of one the search would go all the way round.
        let others = if self.members.len() > 1 { after.iter().chain(before) } else { [].iter().chain(&[]) };
        let successor = others.into_iter().find(|other| other.owner != point.owner);
        Some(Place {
            owner: point.owner as usize,
            successor: successor.map(|other| other.owner as usize),
            owned_since: self.versions[point.owned_since as usize],
        })
    }

    /// The part of all hashes that each member owns, in the order of [`members`](Self::members).
    pub fn shares(&self) -> Vec<f64> {
        let mut arcs = vec![0_u128; self.members.len()];
        let mut from = self.points.last().map_or(0, |last| last.hash);
        for point in &self.points {
            arcs[point.owner as usize] += u128::from(point.hash.wrapping_sub(from));
            from = point.hash;
        }
        if let [only] = &mut arcs[..] {
            *only = 1 << 64;
        }
        arcs.into_iter().map(|arc| arc as f64 / 2_f64.powi(64)).collect()
    }

    /// Memory that the ring takes, in bytes, without the members' names.
    pub fn memory_bytes(&self) -> usize {
        size_of_val(&self.points[..]) + size_of_val(&self.index[..]) + size_of_val(&self.versions[..])
    }
}

/// For each value of so many top bits, the first of the sorted points at or after the beginning of its arc.
fn index(points: &[Point], bits: u32) -> Vec<u32> {
    let mut at = 0;
    let first = |top: u64| {
        while points.get(at).is_some_and(|point| point.hash >> (64 - bits) < top) {
            at += 1;
        }
        u32::try_from(at).expect("documents have fewer points than that")
    };
    (0..1_u64 << bits).map(first).collect()
}

/// A node that has points: a member, by its index, or a departed one, by the version at which it left.
struct Holder<'a> {
    id: &'a str,
    node: Result<u32, RingVersion>,
}

/// All points of members and departed nodes, clockwise, each with the index of its holder. Where two
/// nodes' points meet, the smaller id is first, and so owns.
fn place_points<'a>(document: &'a RingDocument) -> (Vec<(u64, u32)>, Vec<Holder<'a>>) {
    let mut points = Vec::new();
    let mut holders = Vec::new();
    let (mut name, mut number) = (String::new(), itoa::Buffer::new());
    let mut add = |id: &'a str, from: u32, weight: u32, node| {
        let holder = u32::try_from(holders.len()).expect("fewer nodes than points");
        holders.push(Holder { id, node });
        name.clear();
        name.push_str(id);
        name.push('#');
        let prefix = name.len();
        for n in from * document.points..weight * document.points {
            name.truncate(prefix);
            name.push_str(number.format(n));
            points.push((xxh3_64(name.as_bytes()), holder));
        }
    };
    for (at, member) in (0..).zip(&document.members) {
        add(&member.id, 0, member.weight, Ok(at));
    }
    for gone in &document.departed {
        // Where the node is back with less weight, only the points that it has not got back count.
        let back = document.member(&gone.id).map_or(0, |member| member.weight);
        add(&gone.id, back, gone.weight.max(back), Err(gone.left));
    }
    let id = |holder: u32| holders[holder as usize].id;
    points.sort_unstable_by(|a, b| a.0.cmp(&b.0).then_with(|| id(a.1).cmp(id(b.1))));
    (points, holders)
}

/// Gives each point the member that owns its arc and the version since when: from the point clockwise to
/// the first member's, `owned_since` is that member's `since` or the latest departure passed on the way.
/// Versions are given by the holder whose they are.
fn own(document: &RingDocument) -> (Vec<Point>, Vec<RingVersion>) {
    let (placed, holders) = place_points(document);
    let version = |holder: &Holder<'_>| match holder.node {
        Ok(member) => document.members[member as usize].since,
        Err(left) => left,
    };
    let versions: Vec<_> = holders.iter().map(version).collect();
    let holder = |at: usize| placed[at].1;
    // Backwards, beginning at a member's point, so that what lies clockwise is always known.
    let Some(start) = (0..placed.len()).rfind(|at| holders[holder(*at) as usize].node.is_ok()) else {
        return (Vec::new(), Vec::new());
    };
    let mut points: Vec<Point> =
        placed.iter().map(|(hash, _)| Point { hash: *hash, owner: 0, owned_since: 0 }).collect();
    let (mut owner, mut since) = (0, 0);
    for at in (0..=start).rev().chain((start + 1..placed.len()).rev()) {
        let holder = holder(at);
        match holders[holder as usize].node {
            Ok(member) => (owner, since) = (member, holder),
            Err(left) if left > versions[since as usize] => since = holder,
            Err(_) => {}
        }
        points[at].owner = owner;
        points[at].owned_since = since;
    }
    (points, versions)
}

#[cfg(test)]
mod model;
#[cfg(test)]
mod tests;
