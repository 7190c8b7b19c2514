//! What a ring document may be: what [`check`](RingDocument::check) refuses, and how one that has grown too
//! long is made to
//! [`fit`](RingDocument::fit).
//!
//! A user that may write the ring stands above all nodes, but a slip or a tool gone wrong must not take a
//! fleet down: a document beyond these bounds is read by nobody, and nodes write the last good one again.

use crate::numbers::RingVersion;

use super::{Earlier, HASH, MOST_EARLIER, Member, RecordError, RingDocument, check_name};

/// Most members of a ring.
pub const MAX_MEMBERS: usize = 1024;
/// Longest document that is written, in bytes. etcd takes no more than 1.5 MiB by default.
pub const MAX_DOCUMENT_BYTES: usize = 1 << 20;

const MAX_POINTS: u32 = 65_536;
const MAX_WEIGHT: u32 = 1_024;
/// A ring of so many points takes 128 MB, and a second to build.
pub(super) const MAX_TOTAL_POINTS: u64 = 8 << 20;
/// Longest address or zone, in bytes.
const MAX_ADDRESS_BYTES: usize = 256;
/// Versions are counted. What is beyond this was not, and would leave no room for the next one.
const MAX_VERSION: u64 = 1 << 53;
/// Changes of the ring that a process may have missed. A version further ahead was not counted either.
const MAX_MISSED: u64 = 1 << 20;

impl RingDocument {
    /// Checks that a ring can be built from the document. A writer of one does this first: what breaks
    /// a rule here would be read by nobody.
    ///
    /// # Errors
    /// The rule that is broken.
    pub fn check(&self) -> Result<(), RecordError> {
        let refuse = |why: String| Err(RecordError::new(format!("ring document: {why}")));
        if self.hash != HASH {
            return refuse(format!("hash `{}` is not known to this build, only `{HASH}`", self.hash));
        }
        if self.points == 0 || self.points > MAX_POINTS {
            return refuse(format!("{} points are not within 1 to {MAX_POINTS}", self.points));
        }
        if self.version > RingVersion(MAX_VERSION) {
            return refuse(format!("version {} is more than {MAX_VERSION}", self.version));
        }
        if self.earlier.len() > MOST_EARLIER {
            return refuse(format!("{} earlier rings are more than {MOST_EARLIER}", self.earlier.len()));
        }
        self.check_members(&self.members, self.version).or_else(refuse)?;
        for Earlier { version, members, .. } in &self.earlier {
            if *version >= self.version {
                return refuse(format!("earlier version {version} is not before {}", self.version));
            }
            self.check_members(members, *version).or_else(refuse)?;
        }
        for gone in &self.departed {
            check_node(&gone.id, gone.weight).or_else(refuse)?;
            if gone.left > self.version {
                return refuse(format!("`{}` left at version {}, which is to come", gone.id, gone.left));
            }
        }
        if let Some(twice) = self.departed.windows(2).find(|pair| pair[0].id == pair[1].id) {
            return refuse(format!("departed node `{}` is listed twice", twice[0].id));
        }
        let total = self.total_points();
        if total > MAX_TOTAL_POINTS {
            let why = format!("{total} points (weights times points) are more than {MAX_TOTAL_POINTS}");
            return refuse(format!("{why}; give nodes smaller weights"));
        }
        Ok(())
    }

    fn check_members(&self, members: &[Member], version: RingVersion) -> Result<(), String> {
        if members.len() > MAX_MEMBERS {
            let why = format!("{} members are more than {MAX_MEMBERS}", members.len());
            return Err(format!("{why}; `peanut remove` takes out those that are gone"));
        }
        for member in members {
            check_node(&member.id, member.weight)?;
            if member.addr.len() > MAX_ADDRESS_BYTES || member.zone.len() > MAX_ADDRESS_BYTES {
                return Err(format!("address or zone of `{}` is longer than 256 bytes", member.id));
            }
            if member.since > version {
                return Err(format!("`{}` joined at version {}, which is to come", member.id, member.since));
            }
        }
        if let Some(twice) = members.windows(2).find(|pair| pair[0].id == pair[1].id) {
            return Err(format!("member `{}` is listed twice", twice[0].id));
        }
        let points: u64 = members.iter().map(|member| self.points_of(member.weight)).sum();
        if points > MAX_TOTAL_POINTS {
            return Err(format!(
                "{points} points are more than {MAX_TOTAL_POINTS}; give nodes smaller weights"
            ));
        }
        Ok(())
    }

    fn points_of(&self, weight: u32) -> u64 {
        u64::from(weight) * u64::from(self.points)
    }

    /// Points of members and departed nodes.
    pub(super) fn total_points(&self) -> u64 {
        let departed = self.departed.iter().map(|gone| gone.weight);
        let weights = self.members.iter().map(|member| member.weight).chain(departed);
        weights.map(|weight| self.points_of(weight)).sum()
    }

    /// Whether `held`'s holder can have missed all changes up to this document. Else its version was not
    /// counted.
    pub fn follows(&self, held: &RingDocument) -> bool {
        held.version == RingVersion::NONE || self.version <= held.version.plus(MAX_MISSED)
    }

    /// Makes a document that has grown too long shorter than `max_bytes`, as far as it goes, and leaves room
    /// for its points.
    ///
    /// First it forgets who the members were before, the oldest first; then who has departed. What a departed
    /// node had owned then counts as owned only since it left, by whomever: entries from before that are
    /// loaded again, and none is shown that should not be.
    pub fn fit(&mut self, max_bytes: usize) {
        while self.encode().len() > max_bytes && self.earlier.pop().is_some() {}
        while !self.departed.is_empty()
            && (self.encode().len() > max_bytes || self.total_points() > MAX_TOTAL_POINTS)
        {
            self.forget_oldest(self.departed.len().div_ceil(8));
        }
    }

    /// Forgets so many departed nodes.
    fn forget_oldest(&mut self, count: usize) {
        let mut left: Vec<RingVersion> = self.departed.iter().map(|gone| gone.left).collect();
        left.sort_unstable();
        let Some(until) = left.get(count.max(1) - 1).copied() else { return };
        self.departed.retain(|gone| gone.left > until);
        self.owned_since(until);
    }
}

fn check_node(id: &str, weight: u32) -> Result<(), String> {
    check_name(id).map_err(|why| format!("node id {:?} {why}", id.chars().take(64).collect::<String>()))?;
    if weight == 0 || weight > MAX_WEIGHT {
        return Err(format!("weight {weight} of `{id}` is not within 1 to {MAX_WEIGHT}"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::{Departed, NodeInfo};
    use super::*;

    fn node(id: &str) -> NodeInfo {
        NodeInfo { id: id.into(), addr: format!("{id}:1"), zone: String::new(), weight: 1 }
    }

    fn ring(members: usize) -> RingDocument {
        let mut ring = RingDocument::empty(8);
        for n in 0..members {
            ring = ring.with(&node(&format!("n{n:05}")), 0).unwrap();
            ring.earlier.clear();
        }
        ring
    }

    fn refused(edit: impl FnOnce(&mut RingDocument), names: &str) {
        let mut ring = ring(2).with(&node("n"), 0).unwrap().without("n", 0).unwrap();
        ring.check().unwrap();
        edit(&mut ring);
        let error = RingDocument::decode(&ring.encode()).unwrap_err();
        assert!(error.to_string().contains(names) && !error.is_newer_format(), "{error}");
        assert!(error.to_string().len() <= 300);
    }

    #[test]
    fn what_would_take_a_fleet_down_is_refused_by_name() {
        refused(|r| r.version = RingVersion(u64::MAX), "version");
        refused(|r| r.members[0].since = RingVersion(99), "to come");
        refused(|r| r.departed[0].left = RingVersion(u64::MAX), "to come");
        refused(|r| r.members[0].weight = u32::MAX, "weight");
        refused(|r| r.departed[0].weight = 0, "weight");
        refused(|r| r.members[0].addr = "x".repeat(300_000), "longer");
        refused(|r| r.members[0].id = "x".repeat(300_000), "longer");
        refused(|r| r.earlier[0].members[0].weight = u32::MAX, "weight");
        refused(|r| r.earlier[0].version = RingVersion(99), "earlier");
        refused(|r| r.earlier[0].members[1].id = r.earlier[0].members[0].id.clone(), "twice");
        refused(|r| r.earlier = vec![r.earlier[0].clone(); 17], "earlier");
        refused(|r| r.departed.push(r.departed[0].clone()), "twice");
        let bogus = |n| Member { id: format!("bogus-{n}"), ..ring(1).members[0].clone() };
        refused(|r| r.members = (0..10_000).map(bogus).collect(), "10000 members are more than 1024");
        ring(MAX_MEMBERS).check().unwrap();
    }

    #[test]
    fn a_version_that_was_not_counted_follows_nothing() {
        let held = ring(3);
        let at = |version| RingDocument { version, ..held.clone() };
        assert!(
            at(RingVersion(4)).follows(&held)
                && at(RingVersion(1_000_000)).follows(&held)
                && at(RingVersion(1)).follows(&held)
        );
        assert!(!at(RingVersion(1 << 52)).follows(&held));
        assert!(
            at(RingVersion(1 << 52)).follows(&RingDocument::empty(8)),
            "who knows nothing has to believe something"
        );
    }

    #[test]
    fn a_document_that_is_too_long_forgets_who_was_before_and_shows_nothing_old_for_it() {
        let mut ring = ring(600);
        for n in 0..16 {
            ring = ring.with(&node(&format!("late{n}")), 1).unwrap();
        }
        let whole = ring.encode().len();
        assert_eq!(ring.earlier.len(), 16);
        let mut shorter = ring.clone();
        shorter.fit(whole / 2);
        assert!(shorter.encode().len() <= whole / 2 && (1..16).contains(&shorter.earlier.len()));
        assert_eq!((&shorter.members, shorter.earlier[0].version.plus(1)), (&ring.members, ring.version));

        let gone = |n: u64| Departed {
            id: format!("gone{n:05}"),
            weight: 1,
            since: RingVersion::NONE,
            left: RingVersion(1 + n % 500),
            left_ms: 0,
            drained: false,
        };
        ring.departed = (0..20_000).map(gone).collect();
        ring.fit(MAX_DOCUMENT_BYTES);
        assert!(ring.encode().len() <= MAX_DOCUMENT_BYTES && ring.departed.len() > 5_000);
        let forgotten = 1
            + (0..500)
                .rfind(|left| ring.departed.iter().all(|gone| gone.left != RingVersion(left + 1)))
                .unwrap();
        assert!(ring.departed.iter().all(|gone| gone.left > RingVersion(forgotten)));
        assert!(
            ring.members.iter().all(|member| member.since >= RingVersion(forgotten)),
            "else an old entry could be shown"
        );
        ring.check().unwrap();

        // More points than there may be are the departed ones' to give up as well.
        ring.points = 4096;
        ring.fit(MAX_DOCUMENT_BYTES);
        ring.check().unwrap();
        ring.fit(10);
        assert_eq!((ring.members.len(), ring.departed.len()), (616, 0), "members are never given up");
    }
}
