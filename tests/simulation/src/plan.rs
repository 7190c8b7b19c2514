//! What goes wrong in a scenario, and when: faults with a beginning and an end, drawn from a seed, that overlap.

use std::time::Duration;

use fastrand::Rng;

use super::network::Mended;
use super::registry::{MEMBERS, StoreFault};

/// Nodes and clients of a fleet; the last node is not there at first.
pub(super) const NODES: usize = 4;
/// Nodes that are there from the beginning.
pub(super) const FIRST_NODES: usize = 3;
/// Applications.
pub(super) const CLIENTS: usize = 3;

/// Faults begin within this time.
pub(super) const TROUBLE: Duration = Duration::from_millis(9_000);

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
        /// Those whose bit, by their number, is set.
        hosts: u64,
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

/// What a scenario is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Theme {
    /// Everything, with windows longer than any fault.
    Everything,
    /// Rings that come and go, with windows shorter than faults; nobody is cut off from the registry for as long.
    Rings,
    /// Connections from clients that stutter: what they send is held again and again, and arrives late.
    Stutter,
}

impl Theme {
    /// One of them.
    pub(super) fn any(random: &mut Rng) -> Self {
        match random.u8(..4) {
            0 => Theme::Rings,
            1 => Theme::Stutter,
            _ => Theme::Everything,
        }
    }

    /// For how long clients ask former owners, after which they have a window as long again.
    pub(super) fn hand_over(self) -> Duration {
        Duration::from_millis(if self == Theme::Rings { 500 } else { 3000 })
    }

    fn suits(self, fault: &Fault) -> bool {
        match fault {
            Fault::Cut { to: End::Registry | End::Member(_), .. }
            | Fault::Slow { from: End::Registry, .. }
            | Fault::WatchLag { .. }
            | Fault::Store(_)
            | Fault::Emptied => self != Theme::Rings,
            _ => true,
        }
    }
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
            let from = Duration::from_micros(random.u64(..TROUBLE.as_micros() as u64));
            let long = if random.u8(..4) == 0 { 4000 } else { 1500 };
            let until = from + Duration::from_millis(random.u64(50..long));
            Planned { fault, from, until }
        })
        .collect();
    if theme == Theme::Stutter {
        planned.extend(stutter(random));
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
        20..21 => Fault::WatchLag { hosts: random.u64(..), by: Duration::from_millis(random.u64(1..600)) },
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
    while at < TROUBLE {
        let until = at + Duration::from_millis(random.u64(30..700));
        let fault = Fault::Cut { from, to, one_way: true, mended: Mended::Late };
        planned.push(Planned { fault, from: at, until });
        at = until + Duration::from_millis(random.u64(3..60));
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
