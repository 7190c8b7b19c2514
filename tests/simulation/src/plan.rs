//! What goes wrong in a scenario, and when: faults with a beginning and an end, drawn from a seed, that
//! overlap.

use std::ops::Range;
use std::time::Duration;

use fastrand::Rng;
use peanut_client::ring::Ring;
use peanut_proto::intervals::Windows;
use peanut_proto::membership::{DEFAULT_POINTS, NodeInfo, RingDocument};

use super::load::{GROUPS, KEYS};
use super::network::Mended;
use super::registry::{MEMBERS, StoreFault};

/// Nodes and clients of a fleet; the last node is not there at first.
pub(super) const NODES: usize = 4;
/// Nodes that are there from the beginning.
pub(super) const FIRST_NODES: usize = 3;
/// Applications.
pub(super) const CLIENTS: usize = 3;

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
pub enum Folder {
    /// The folder as it was left.
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
        folder: Folder,
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
    /// A process stands still.
    Pause(End),
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
    /// The wall clock of a node jumps, and jumps back at the end.
    Clock {
        /// The node.
        node: usize,
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
    /// A node that comes and goes all the time, which some hear of late, and others sleep through.
    Late,
    /// A registry that loses its data again and again. The owner of a key and a client that reads the key all the time hear
    /// of that late, while another client cannot reach the owner.
    Lost {
        /// Its group.
        group: usize,
        /// The key.
        key: u32,
    },
    /// A key of which one client reads near copies all the time, while its owner starts again, or is cut off from the registry
    /// and from a writer.
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
        let any_key = |random: &mut Rng| (random.usize(..GROUPS.len()), random.u32(..KEYS));
        match random.u8(..9) {
            6 => {
                let (group, key) = any_key(random);
                Theme::Lost { group, key }
            }
            7 | 8 => {
                let (group, key) = any_key(random);
                Theme::Near { group, key }
            }
            0 => Theme::Rings,
            1 => Theme::Stutter,
            2 | 3 => Theme::Late,
            _ => Theme::Everything,
        }
    }

    /// For how long clients ask former owners.
    pub(super) fn hand_over(self) -> Duration {
        Duration::from_millis(if matches!(self, Theme::Rings | Theme::Late) { 500 } else { 3000 })
    }

    /// What writers do for those who have not heard of a change of the ring; more than twice as long as
    /// watches lag.
    pub(super) fn windows(self) -> Windows {
        let recent_writes =
            Duration::from_millis(if self.hand_over() < Duration::from_secs(1) { 2500 } else { 5000 });
        Windows { former_owners: self.hand_over() * 2, recent_writes }
    }

    /// Faults begin within this time.
    pub(super) fn trouble(self) -> Duration {
        Duration::from_secs(if self == Theme::Late { 20 } else { 9 })
    }

    /// How much longer applications pause between reads and between writes. Where one reads much and the
    /// others little, it is the first to see what a change of the ring has left behind.
    pub(super) fn paces(self, random: &mut Rng) -> [(u64, u64); CLIENTS] {
        let others = if self == Theme::Late { (random.u64(4..30), random.u64(2..8)) } else { (1, 1) };
        let mut paces = [others; CLIENTS];
        if self == Theme::Late {
            paces[0] = (1, 30);
        }
        paces
    }

    /// The key to which the first application keeps: what the scenario is about, or one that moves when the last node
    /// comes or goes.
    pub(super) fn only(self, random: &mut Rng) -> Option<(usize, u32)> {
        if let Theme::Lost { group, key } | Theme::Near { group, key } = self {
            return Some((group, key));
        }
        if self != Theme::Late {
            return None;
        }
        let last = |group: usize, key: u32| owner(NODES, group, key) == NODES - 1;
        let keys = (0..GROUPS.len()).flat_map(|group| (0..KEYS).map(move |key| (group, key)));
        let keys: Vec<_> = keys.filter(|(group, key)| last(*group, *key)).collect();
        Some(keys[random.usize(..keys.len())])
    }

    /// The member of the registry by which one watches that starts.
    pub(super) fn member(self, of: End, random: &mut Rng) -> usize {
        match of {
            End::Node(..FIRST_NODES) | End::Client(0) if self == Theme::Late => THEIR_MEMBER,
            _ => random.usize(..MEMBERS),
        }
    }

    /// Whether a client has a near cache.
    pub(super) fn is_near(self, client: usize, random: &mut Rng) -> bool {
        random.bool() || matches!(self, Theme::Near { .. }) && client == 0
    }

    /// Whether a fault goes with the others: a reader that hears nothing of the registry, and a node that has lost its lease,
    /// go on with one another.
    fn suits(self, fault: &Fault) -> bool {
        match fault {
            Fault::Cut { to: End::Registry | End::Member(_), .. }
            | Fault::Slow { from: End::Registry, .. }
            | Fault::WatchLag { .. }
            | Fault::Store(_)
            | Fault::Emptied => !matches!(self, Theme::Rings | Theme::Late | Theme::Near { .. }),
            _ => true,
        }
    }
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
    match theme {
        Theme::Stutter => planned.extend(stutter(random)),
        Theme::Late => planned.extend(late(random)),
        Theme::Lost { group, key } => planned.extend(lost(random, owner(FIRST_NODES, group, key))),
        Theme::Near { group, key } => planned.extend(near(random, owner(FIRST_NODES, group, key))),
        Theme::Everything | Theme::Rings => {}
    }
    planned.sort_by_key(|planned| planned.from);
    planned
}

fn fault(random: &mut Rng) -> Fault {
    let node = random.usize(..NODES);
    match random.u8(..26) {
        0..3 => Fault::Kill { node, power: random.bool(), folder: folder(random) },
        3..5 => Fault::Stop { node, leaves: false },
        5..7 => Fault::Stop { node, leaves: true },
        7..9 => Fault::Visit,
        9..11 => Fault::Pause(End::Node(node)),
        11..12 => Fault::Pause(End::Client(random.usize(..CLIENTS))),
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
            Fault::Cut { from, to, one_way: random.bool(), mended: mended(random) }
        }
        17..18 => {
            let from = if random.bool() { End::Client(random.usize(..CLIENTS)) } else { End::Registry };
            Fault::Slow { from, to: End::Node(node), by: Duration::from_millis(random.u64(1..300)) }
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
        _ => Fault::Clock { node, by_ms: random.i64(-20_000..20_000) },
    }
}

/// What some clients send to some nodes is held, and arrives, again and again.
fn stutter(random: &mut Rng) -> Vec<Planned> {
    let (mut planned, mut at) = (Vec::new(), Duration::from_millis(random.u64(..3000)));
    let (from, to) = (End::Client(random.usize(..CLIENTS)), End::Node(random.usize(..FIRST_NODES)));
    while at < Theme::Stutter.trouble() {
        let until = at + Duration::from_millis(random.u64(30..700));
        let fault = Fault::Cut { from, to, one_way: true, mended: Mended::Late };
        planned.push(Planned { fault, from: at, until });
        at = until + Duration::from_millis(random.u64(3..60));
    }
    planned
}

/// The registry loses its data again and again, of which a node and one client hear late, while another client cannot reach
/// that node.
fn lost(random: &mut Rng, node: usize) -> Vec<Planned> {
    let (mut planned, mut at) = (Vec::new(), Duration::from_millis(random.u64(100..1500)));
    let ms = |random: &mut Rng, range: Range<u64>| Duration::from_millis(random.u64(range));
    let trouble = Theme::Lost { group: 0, key: 0 }.trouble();
    while at < trouble {
        let node = if random.u8(..4) == 0 { random.usize(..FIRST_NODES) } else { node };
        let (from, to) = (End::Client(1), End::Node(node));
        let cut = Fault::Cut { from, to, one_way: random.bool(), mended: mended(random) };
        let mut emptied = at + ms(random, 300..900);
        let mended = emptied + ms(random, 300..2000);
        planned.push(Planned { fault: cut, from: at, until: mended });
        // Between two looks of a writer that waits for what it has stored to be read, or longer.
        while emptied < mended {
            let comes_back = emptied + if random.bool() { ms(random, 1..25) } else { ms(random, 5..300) };
            planned.push(Planned { fault: Fault::Emptied, from: emptied, until: comes_back });
            emptied = comes_back + ms(random, 100..1200);
        }
        for to in [End::Node(node), End::Client(0)] {
            let slow = Fault::Slow { from: End::Registry, to, by: ms(random, 20..600) };
            planned.push(Planned { fault: slow, from: at, until: mended });
        }
        at = mended + ms(random, 200..3000);
    }
    planned
}

/// A node is killed and started again at once, of which a reader hears nothing or as others do; or what it and a reader say
/// comes late, and then what one of them says not at all; or one client and then the registry cannot be reached from it.
fn near(random: &mut Rng, node: usize) -> Vec<Planned> {
    let (mut planned, mut at) = (Vec::new(), Duration::from_millis(random.u64(300..1500)));
    let trouble = Theme::Near { group: 0, key: 0 }.trouble();
    let ms = |random: &mut Rng, range: Range<u64>| Duration::from_millis(random.u64(range));
    let (reader, owner) = (End::Client(0), End::Node(node));
    let accent = random.u8(..3);
    while at < trouble {
        if accent == 0 {
            let (is_unheard, killed) = (random.u8(..4) > 0, at + ms(random, 1..30));
            if is_unheard {
                let (one_way, mended) = (random.bool(), mended(random));
                let fault = Fault::Cut { from: owner, to: reader, one_way, mended };
                planned.push(Planned { fault, from: at, until: killed + ms(random, 200..600) });
            }
            let power = !is_unheard && random.bool();
            let fault = Fault::Kill { node, power, folder: Folder::Same };
            planned.push(Planned { fault, from: killed, until: killed + ms(random, 1..60) });
            at = killed + ms(random, 600..1500);
            continue;
        }
        if accent == 1 {
            let late = at + ms(random, 400..900);
            let until = late + ms(random, 300..800);
            let fault = Fault::Slow { from: owner, to: reader, by: ms(random, 60..250) };
            planned.push(Planned { fault, from: at, until });
            // What is on its way back arrives when the node hears nothing any more.
            let (from, to, one_way) =
                if random.u8(..3) == 0 { (owner, reader, random.bool()) } else { (reader, owner, true) };
            let cut = Fault::Cut { from, to, one_way, mended: mended(random) };
            planned.push(Planned { fault: cut, from: late, until });
            at = until + ms(random, 200..700);
            continue;
        }
        let until = at + ms(random, 2200..4000);
        let (one_way, back) = (random.bool(), mended(random));
        let cut = |from, to| Fault::Cut { from, to, one_way, mended: back };
        let of_client = cut(End::Client(1), owner);
        planned.push(Planned { fault: of_client, from: at, until });
        let from = at + ms(random, 200..900);
        let of_registry = Fault::Cut { from: owner, to: End::Registry, one_way: false, mended: back };
        planned.push(Planned { fault: of_registry, from, until: until.min(from + ms(random, 1200..2600)) });
        at = until + ms(random, 300..1500);
    }
    planned
}

/// A node visits again and again. Shortly before it comes or goes, one client begins to sleep, or a node with
/// it, or it and the nodes that are there lag behind, or they are left by their member of the registry, while
/// other clients write.
fn late(random: &mut Rng) -> Vec<Planned> {
    let accent = random.u8(..4);
    let ms = |random: &mut Rng, range: Range<u64>| Duration::from_millis(random.u64(range));
    let (mut planned, mut at, mut came) = (Vec::new(), ms(random, 100..1500), None);
    while at < Theme::Late.trouble() {
        let (fault, long) = match accent {
            0 => (Fault::Pause(End::Client(0)), ms(random, 1200..4000)),
            1 => {
                let who = ((1 << FIRST_NODES) - 1) | (1 << NODES);
                (Fault::WatchLag { who, by: ms(random, 300..600) }, ms(random, 500..1000))
            }
            2 => {
                // A machine with a node and a client on it stands still, and what the registry has to tell
                // them comes late.
                let (at_node, long) = (random.usize(..FIRST_NODES), ms(random, 900..1600));
                let node = End::Node(at_node);
                let (from, to, by) = (End::Registry, node, ms(random, 150..300));
                let lag = Fault::WatchLag { who: (1 << NODES) | (1 << at_node), by: ms(random, 450..600) };
                let until = at + long + ms(random, 600..1200);
                planned.extend([Fault::Slow { from, to, by }, lag].map(|fault| Planned {
                    fault,
                    from: at,
                    until,
                }));
                let woken = at + long + ms(random, 1..60);
                planned.push(Planned { fault: Fault::Pause(End::Client(0)), from: at, until: woken });
                (Fault::Pause(node), long)
            }
            _ => {
                // Hints are stored for a node that could read them elsewhere.
                let from = at + ms(random, 500..1500);
                let until = from + ms(random, 500..2000);
                let (writer, node) = (End::Client(1), End::Node(random.usize(..FIRST_NODES)));
                let fault =
                    Fault::Cut { from: writer, to: node, one_way: random.bool(), mended: mended(random) };
                planned.push(Planned { fault, from, until });
                (Fault::Store(StoreFault::Alone(THEIR_MEMBER)), ms(random, 1500..12_000))
            }
        };
        planned.push(Planned { fault, from: at, until: at + long });
        let moved = at + ms(random, 20..200);
        came = match came {
            None => Some(moved),
            Some(from) => {
                planned.push(Planned { fault: Fault::Visit, from, until: moved });
                None
            }
        };
        at += long + ms(random, 300..4000);
    }
    planned
}

fn mended(random: &mut Rng) -> Mended {
    if random.bool() { Mended::Late } else { Mended::Reset }
}

fn folder(random: &mut Rng) -> Folder {
    match random.u8(..4) {
        0 => Folder::Empty,
        1 => Folder::Older,
        _ => Folder::Same,
    }
}
