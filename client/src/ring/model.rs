//! A model of the ownership rule: whatever nodes join, leave, come back with another weight, and whatever
//! is set and read meanwhile, an entry that passes the rule is never older than the last set.
//!
//! The model's nodes keep what they are told for ever and are never told that they lost a key; the only
//! defence is that an entry stamped before `owned_since` is a miss. A second run without the defence
//! must find stale answers: the proof that the model can see them.

use std::collections::HashMap;

use peanut_proto::membership::RingDocument;
use peanut_proto::numbers::RingVersion;

use super::Ring;
use super::tests::node;

const HISTORIES: u64 = 1_500;
const STEPS: usize = 200;
const NODES: u32 = 6;
const KEYS: u64 = 12;

#[derive(Default)]
struct Seen {
    hits: u64,
    misses: u64,
    stale: u64,
}

/// One random history. `defended`: whether gets carry `owned_since`.
fn run(seed: u64, defended: bool, seen: &mut Seen) {
    let mut random = fastrand::Rng::with_seed(seed);
    let mut document = RingDocument::empty(4);
    document = document.with(&node("n0", 1), 0).expect("the first node joins");
    let mut ring = Ring::new(&document);
    // What each node holds: value and stamp by key. And what the origin holds.
    let mut stores: HashMap<String, HashMap<u64, (u64, u64)>> = HashMap::new();
    let mut origin: HashMap<u64, u64> = HashMap::new();
    for step in 0..STEPS {
        let key = random.u64(..KEYS);
        let place = ring.place("g", &key.to_be_bytes()).expect("there is always a node");
        let store = stores.entry(ring.members()[place.owner].id.clone()).or_default();
        match random.u32(..20) {
            0 => {
                let id = format!("n{}", random.u32(..NODES));
                let alone = document.members.len() == 1;
                let next = if random.bool() && !alone {
                    document.without(&id, 0)
                } else {
                    document.with(&node(id, random.u32(1..4)), 0)
                };
                document = next.unwrap_or(document);
                ring = Ring::new(&document);
            }
            1..6 => {
                origin.insert(key, step as u64);
                store.insert(key, (step as u64, ring.version().0));
            }
            _ => {
                let current = origin.get(&key).copied().unwrap_or_default();
                let since = if defended { place.owned_since } else { RingVersion::NONE };
                match store.get(&key).filter(|(_, stamp)| *stamp >= since.0) {
                    Some((value, _)) => {
                        seen.hits += 1;
                        seen.stale += u64::from(*value != current);
                    }
                    None => {
                        seen.misses += 1;
                        store.insert(key, (current, ring.version().0));
                    }
                }
            }
        }
    }
}

fn run_all(defended: bool) -> Seen {
    let mut seen = Seen::default();
    (0..HISTORIES).for_each(|seed| run(seed, defended, &mut seen));
    seen
}

#[test]
fn no_answer_is_stale_and_without_the_rule_many_are() {
    let (with, without) = (run_all(true), run_all(false));
    assert_eq!(with.stale, 0);
    assert!(without.stale > 1_000, "the model sees staleness: {}", without.stale);
    assert!(
        with.hits > without.hits * 8 / 10,
        "the rule is not paid for in hits: {} of {}",
        with.hits,
        without.hits
    );
}
