//! What goes wrong in a scenario, and when: faults with a beginning and an end, drawn from a seed, that
//! overlap.

mod themes;

use std::time::Duration;

use fastrand::Rng;
use peanut_client::ring::Ring;
use peanut_client::{NearCache, NearKeys};
use peanut_proto::intervals::Windows;
use peanut_proto::membership::{DEFAULT_POINTS, NodeInfo, RingDocument};

use super::network::Mended;
use super::registry::{MEMBERS, StoreFault};
use themes::{late, lost, near, stutter};

/// Nodes and clients of a fleet; the last node is not there at first.
pub(super) const NODES: usize = 4;
/// Nodes that are there from the beginning.
pub(super) const FIRST_NODES: usize = 3;
/// Applications.
pub(super) const CLIENTS: usize = 3;
/// Keys of each group.
pub(super) const KEYS: u32 = 5;
/// The groups: with a loader, with a loader and short lifetimes, without one, and one whose values the
/// application loads.
pub(super) const GROUPS: [&str; 4] = ["loaded", "short", "plain", "app"];

/// One end of a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// A node, by number.
    Node(usize),
    /// A client, by number.
    Client(usize),
    /// A member of the registry.
    Member(usize),
    /// The whole registry.
    Registry,
}

/// What comes back when a node starts again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Directory {
    /// The directory as it was left.
    Same,
    /// An empty one.
    Empty,
    /// A copy from an earlier run.
    Older,
}

/// Something that goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// A node's process is killed, and started again at the end. Without power, nobody hears of it.
    Kill {
        /// The node.
        node: usize,
        /// Whether its machine is gone too.
        power: bool,
        /// What it starts with.
        directory: Directory,
    },
    /// A node is told to stop, and to keep its place or to leave; at the end it is started again.
    Stop {
        /// The node.
        node: usize,
        /// Whether it leaves the ring.
        leaves: bool,
    },
    /// A node that was not there joins; it leaves at the end.
    Visit,
    /// An operator takes a node out of the ring, which runs on; at the end it is killed and started again.
    Drain(usize),
    /// A process stands still.
    Pause(End),
    /// A machine is suspended, and its monotonic clock with it.
    Suspend(End),
    /// An application is killed and started again at the end.
    KillClient(usize),
    /// What one sends to the other does not arrive.
    Cut {
        /// One end.
        from: End,
        /// The other.
        to: End,
        /// Whether what comes back arrives.
        one_way: bool,
        /// What becomes of what was sent meanwhile.
        mended: Mended,
    },
    /// What one sends to the other takes longer.
    Slow {
        /// One end.
        from: End,
        /// The other.
        to: End,
        /// By how much.
        by: Duration,
        /// Whether what comes back takes no longer.
        one_way: bool,
    },
    /// Something is wrong with the registry.
    Store(StoreFault),
    /// Watches of some hosts lag behind by so much.
    WatchLag {
        /// Those whose bit is set: the nodes, then the clients.
        who: u8,
        /// How far.
        by: Duration,
    },
    /// Watches end, as when they were compacted away.
    Compaction,
    /// The registry comes back empty.
    Emptied,
    /// The disk of a node is full, or stands still.
    Disk {
        /// The node.
        node: usize,
        /// Whether it stands still.
        stalls: bool,
    },
    /// The origin fails, or answers late.
    Origin {
        /// Whether it is late.
        is_slow: bool,
    },
    /// No application writes.
    Quiet,
    /// The wall clock of a node or a client jumps, and jumps back at the end.
    Clock {
        /// Whose.
        whose: End,
        /// How far, in milliseconds.
        by_ms: i64,
    },
}

/// A fault and its time.
#[derive(Clone, Copy, Debug)]
pub struct Planned {
    /// What.
    pub fault: Fault,
    /// From when on.
    pub from: Duration,
    /// Until when.
    pub until: Duration,
}

/// The member of the registry by which, in [`Theme::Late`], one client and the nodes watch that are there
/// from the beginning.
const THEIR_MEMBER: usize = 0;

/// A group that is added to nodes, or removed from them, as they start again.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rollout {
    group: usize,
    adds: bool,
    /// After how many starts of each node.
    at: [u32; NODES],
}

impl Rollout {
    /// Whether a node has a group at its start of this number, from one on. The first node always has.
    pub(super) fn has(&self, group: usize, node: usize, start: u32) -> bool {
        node == 0 || group != self.group || (start > self.at[node]) == self.adds
    }
}

/// What a scenario is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Theme {
    /// Everything, with windows longer than any fault.
    Everything,
    /// Rings that come and go, with windows shorter than faults; nobody is cut off from the registry for as
    /// long.
    Rings,
    /// Connections from clients that stutter: what they send is held again and again, and arrives late.
    Stutter,
    /// A node that comes and goes all the time, which some hear of late, and others sleep through. One client
    /// reads a key all the time that moves with it.
    Late {
        /// Its group.
        group: usize,
        /// The key.
        key: u32,
    },
    /// A registry that loses its data again and again. The owner of a key and a client that reads the key all
    /// the time hear of that late, while another client cannot reach the owner.
    Lost {
        /// Its group.
        group: usize,
        /// The key.
        key: u32,
    },
    /// A key of which one client reads near copies all the time, while its owner starts again, or is cut off
    /// from the registry and from a writer.
    Near {
        /// Its group.
        group: usize,
        /// The key.
        key: u32,
    },
}

impl Theme {
    /// One of them.
    pub(super) fn any(random: &mut Rng) -> Self {
        match random.u8(..11) {
            6 | 10 => {
                let (group, key) = lasting(random);
                Theme::Lost { group, key }
            }
            7 | 8 => {
                let (group, key) = (random.usize(..GROUPS.len()), random.u32(..KEYS));
                Theme::Near { group, key }
            }
            0 => Theme::Rings,
            1 => Theme::Stutter,
            2 | 3 | 9 => {
                let (group, key) = moving(random);
                Theme::Late { group, key }
            }
            _ => Theme::Everything,
        }
    }

    /// For how long clients ask previous owners.
    pub(super) fn hand_over(self) -> Duration {
        Duration::from_millis(if matches!(self, Theme::Rings | Theme::Late { .. }) { 500 } else { 3000 })
    }

    /// What writers do for those who have not heard of a change of the ring; more than twice as long as
    /// watches lag.
    pub(super) fn windows(self) -> Windows {
        let recent_writes =
            Duration::from_millis(if self.hand_over() < Duration::from_secs(1) { 2500 } else { 5000 });
        Windows { previous_owners: self.hand_over() * 2, recent_writes }
    }

    /// Faults begin within this time.
    pub(super) fn trouble(self) -> Duration {
        Duration::from_secs(if matches!(self, Theme::Late { .. }) { 20 } else { 9 })
    }

    /// How much longer applications pause between reads and between writes. Where one reads much and the
    /// others little, it is the first to see what a change of the ring has left behind.
    pub(super) fn paces(self, random: &mut Rng) -> [(u64, u64); CLIENTS] {
        let (first, others) = match self {
            Theme::Late { .. } => ((1, 30), (random.u64(4..30), random.u64(4..40))),
            Theme::Near { .. } => ((1, 3), (1, random.u64(1..5))),
            _ => ((1, 1), (1, 1)),
        };
        let mut paces = [others; CLIENTS];
        paces[0] = first;
        paces
    }

    /// The key that the scenario is about: the first application keeps to it.
    pub(super) fn only(self) -> Option<(usize, u32)> {
        match self {
            Theme::Lost { group, key } | Theme::Near { group, key } | Theme::Late { group, key } => {
                Some((group, key))
            }
            Theme::Everything | Theme::Rings | Theme::Stutter => None,
        }
    }

    /// The member of the registry by which one watches that starts.
    pub(super) fn member(self, of: End, random: &mut Rng) -> usize {
        match of {
            End::Node(..FIRST_NODES) | End::Client(0) if matches!(self, Theme::Late { .. }) => THEIR_MEMBER,
            _ => random.usize(..MEMBERS),
        }
    }

    /// The weight with which a node starts, which may be another each time. Where a scenario is about a key,
    /// its owner is known beforehand.
    pub(super) fn weight(self, random: &mut Rng) -> u32 {
        if self.only().is_none() && random.u8(..4) == 0 { random.u32(2..4) } else { 1 }
    }

    /// A change of the groups that is rolled out while the scenario runs, if there is one.
    pub(super) fn rollout(self, random: &mut Rng) -> Option<Rollout> {
        let is_rolled = self.only().is_none() && random.u8(..4) == 0;
        is_rolled.then(|| Rollout {
            group: random.usize(..GROUPS.len()),
            adds: random.bool(),
            at: std::array::from_fn(|_| random.u32(..3)),
        })
    }

    /// The near cache of a client, if it has one.
    pub(super) fn near_cache(
        self,
        client: usize,
        staleness: Option<Duration>,
        random: &mut Rng,
    ) -> Option<NearCache> {
        let is_reader = self.is_near_reader(client);
        if !random.bool() && !is_reader {
            return None;
        }
        let is_hot = random.u8(..3) == 0 && !is_reader;
        let near = NearCache::bytes(1 << 20).keys(if is_hot { NearKeys::Hot } else { NearKeys::All });
        Some(match staleness {
            Some(staleness) => near.max_staleness(staleness),
            None => near,
        })
    }

    /// Whether a client is the one that reads near copies all the time.
    fn is_near_reader(self, client: usize) -> bool {
        matches!(self, Theme::Near { .. }) && client == 0
    }

    /// By how much near copies of each client may be outdated, where writes do not wait for it.
    pub(super) fn staleness(self, random: &mut Rng) -> [Option<Duration>; CLIENTS] {
        std::array::from_fn(|client| {
            let is_reader = self.is_near_reader(client);
            (random.u8(..6) == 0 && !is_reader).then(|| Duration::from_millis(random.u64(20..1500)))
        })
    }

    /// Whether a fault goes with the others: a reader that hears nothing of the registry, and a node that has
    /// lost its lease, go on with one another.
    fn suits(self, fault: &Fault) -> bool {
        match fault {
            Fault::Cut { to: End::Registry | End::Member(_), .. }
            | Fault::Cut { from: End::Registry | End::Member(_), .. }
            | Fault::Slow { from: End::Registry, .. }
            | Fault::WatchLag { .. }
            | Fault::Store(_)
            | Fault::Emptied => !matches!(self, Theme::Rings | Theme::Late { .. } | Theme::Near { .. }),
            _ => true,
        }
    }
}

/// A key that moves when the last node comes or goes, of a group whose values are loaded again and again, or
/// by applications: they show most of what a change of the ring has left behind.
fn moving(random: &mut Rng) -> (usize, u32) {
    let groups = (0..GROUPS.len()).filter(|group| matches!(GROUPS[*group], "short" | "app"));
    let keys = groups.flat_map(|group| (0..KEYS).map(move |key| (group, key)));
    let keys: Vec<_> = keys.filter(|(group, key)| owner(NODES, *group, *key) == NODES - 1).collect();
    keys[random.usize(..keys.len())]
}

/// A key of a group whose values live for as long as a scenario takes.
fn lasting(random: &mut Rng) -> (usize, u32) {
    let groups: Vec<_> = (0..GROUPS.len()).filter(|group| GROUPS[*group] != "short").collect();
    (groups[random.usize(..groups.len())], random.u32(..KEYS))
}

/// The node that owns a key of a group among so many.
fn owner(nodes: usize, group: usize, key: u32) -> usize {
    let node =
        |at: usize| NodeInfo { id: format!("n{at}"), addr: String::new(), zone: String::new(), weight: 1 };
    let document = (0..nodes)
        .fold(RingDocument::empty(DEFAULT_POINTS), |ring, at| ring.with(&node(at), 0).expect("a new node"));
    // Nodes are ten at most, so members are in the order of their numbers.
    let place = Ring::new(&document).place(GROUPS[group], key.to_string().as_bytes());
    place.expect("there are nodes").owner
}

/// So many faults.
pub(super) fn faults(random: &mut Rng, theme: Theme, count: usize) -> Vec<Planned> {
    let mut planned: Vec<_> = (0..count)
        .map(|_| {
            let fault = loop {
                let fault = fault(random);
                if theme.suits(&fault) {
                    break fault;
                }
            };
            let from = Duration::from_micros(random.u64(..theme.trouble().as_micros() as u64));
            let long = if random.u8(..4) == 0 { 4000 } else { 1500 };
            let until = from + Duration::from_millis(random.u64(50..long));
            Planned { fault, from, until }
        })
        .collect();
    let trouble = theme.trouble();
    let first_owner = |group, key| owner(FIRST_NODES, group, key);
    match theme {
        Theme::Stutter => planned.extend(stutter(random, trouble)),
        Theme::Late { group, key } => {
            let lasts = GROUPS[group] != "short";
            planned.extend(late(random, theme, first_owner(group, key), lasts));
        }
        Theme::Lost { group, key } => planned.extend(lost(random, trouble, first_owner(group, key))),
        Theme::Near { group, key } => planned.extend(near(random, trouble, first_owner(group, key))),
        Theme::Everything | Theme::Rings => {}
    }
    planned.sort_by_key(|planned| planned.from);
    planned
}

fn fault(random: &mut Rng) -> Fault {
    let node = random.usize(..NODES);
    match random.u8(..28) {
        0..3 => Fault::Kill { node, power: random.bool(), directory: directory(random) },
        3..5 => Fault::Stop { node, leaves: false },
        5..7 => Fault::Stop { node, leaves: true },
        7..8 => Fault::Visit,
        8..9 => Fault::Drain(node),
        9..11 => stand_still(random, End::Node(node)),
        11..12 => {
            let client = End::Client(random.usize(..CLIENTS));
            stand_still(random, client)
        }
        12..13 => Fault::KillClient(random.usize(..CLIENTS)),
        13..15 => Fault::Cut {
            from: End::Client(random.usize(..CLIENTS)),
            to: End::Node(node),
            one_way: random.bool(),
            mended: mended(random),
        },
        15..17 => {
            let from = if random.bool() { End::Client(random.usize(..CLIENTS)) } else { End::Node(node) };
            let to = if random.bool() { End::Registry } else { End::Member(random.usize(..MEMBERS)) };
            let one_way = random.bool();
            // What the registry was asked arrives, and its answer does not.
            let (from, to) = if one_way && random.bool() { (to, from) } else { (from, to) };
            Fault::Cut { from, to, one_way, mended: mended(random) }
        }
        17..18 => {
            let from = if random.bool() { End::Client(random.usize(..CLIENTS)) } else { End::Registry };
            let by = Duration::from_millis(random.u64(1..300));
            Fault::Slow { from, to: End::Node(node), by, one_way: false }
        }
        18..20 => Fault::Store(match random.u8(..4) {
            0 => StoreFault::Down,
            1 => StoreFault::Full,
            _ => StoreFault::Alone(random.usize(..MEMBERS)),
        }),
        20..21 => Fault::WatchLag { who: random.u8(..), by: Duration::from_millis(random.u64(1..600)) },
        21..22 => Fault::Compaction,
        22..23 => Fault::Emptied,
        23..25 => Fault::Disk { node, stalls: random.bool() },
        25..27 => Fault::Origin { is_slow: random.bool() },
        _ => {
            let whose = if random.bool() { End::Node(node) } else { End::Client(random.usize(..CLIENTS)) };
            let far = if random.bool() { 20_000 } else { 200_000 };
            Fault::Clock { whose, by_ms: random.i64(-far..far) }
        }
    }
}

/// One whose process is stopped, or whose machine is suspended.
fn stand_still(random: &mut Rng, end: End) -> Fault {
    if random.bool() { Fault::Pause(end) } else { Fault::Suspend(end) }
}

fn mended(random: &mut Rng) -> Mended {
    if random.bool() { Mended::Late } else { Mended::Reset }
}

fn directory(random: &mut Rng) -> Directory {
    match random.u8(..4) {
        0 => Directory::Empty,
        1 => Directory::Older,
        _ => Directory::Same,
    }
}
