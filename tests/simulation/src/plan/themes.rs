//! The faults that make a theme: each a pattern that comes again and again.

use std::ops::Range;
use std::time::Duration;

use fastrand::Rng;
use peanut_proto::intervals::Windows;

use super::{
    CLIENTS, Directory, End, FIRST_NODES, Fault, NODES, Planned, THEIR_MEMBER, Theme, mended, stand_still,
};
use crate::network::Mended;
use crate::registry::StoreFault;

/// What some clients send to some nodes is held, and arrives, again and again.
pub(super) fn stutter(random: &mut Rng, trouble: Duration) -> Vec<Planned> {
    let (mut planned, mut at) = (Vec::new(), ms(random, 0..3000));
    let (from, to) = (End::Client(random.usize(..CLIENTS)), End::Node(random.usize(..FIRST_NODES)));
    while at < trouble {
        let until = at + ms(random, 30..700);
        let fault = Fault::Cut { from, to, one_way: true, mended: Mended::Late };
        planned.push(Planned { fault, from: at, until });
        at = until + ms(random, 3..60);
    }
    planned
}

/// The registry loses its data again and again, of which a node and one client hear late, while another
/// client cannot reach that node.
pub(super) fn lost(random: &mut Rng, trouble: Duration, node: usize) -> Vec<Planned> {
    let (mut planned, mut at) = (Vec::new(), ms(random, 100..1500));
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
            let by = ms(random, 20..600);
            let slow = Fault::Slow { from: End::Registry, to, by, one_way: false };
            planned.push(Planned { fault: slow, from: at, until: mended });
        }
        at = mended + ms(random, 200..3000);
    }
    planned
}

/// One of three patterns that near copies have to go through, of a node and a client that reads from it.
pub(super) fn near(random: &mut Rng, trouble: Duration, node: usize) -> Vec<Planned> {
    let (mut planned, mut at) = (Vec::new(), ms(random, 300..1500));
    let pattern = match random.u8(..4) {
        0 => restart,
        1 | 2 => late_answers,
        _ => out_of_reach,
    };
    while at < trouble {
        at = pattern(random, node, at, &mut planned);
    }
    planned
}

const READER: End = End::Client(0);

/// The node is killed and started again at once, of which the reader hears as others do, or nothing. When the
/// next comes.
fn restart(random: &mut Rng, node: usize, at: Duration, planned: &mut Vec<Planned>) -> Duration {
    let (is_unheard, killed) = (random.u8(..4) > 0, at + ms(random, 1..30));
    if is_unheard {
        let (one_way, mended) = (random.bool(), mended(random));
        let fault = Fault::Cut { from: End::Node(node), to: READER, one_way, mended };
        planned.push(Planned { fault, from: at, until: killed + ms(random, 200..600) });
    }
    let power = !is_unheard && random.bool();
    let fault = Fault::Kill { node, power, directory: Directory::Same };
    planned.push(Planned { fault, from: killed, until: killed + ms(random, 1..60) });
    killed + ms(random, 600..1500)
}

/// What the node says to the reader comes late, and then what one of them says, or both, not at all. When the
/// next comes.
fn late_answers(random: &mut Rng, node: usize, at: Duration, planned: &mut Vec<Planned>) -> Duration {
    let owner = End::Node(node);
    let late = at + ms(random, 400..900);
    let until = late + ms(random, 300..800);
    // Not so slow that the reader asks another node.
    let by = if random.u8(..3) == 0 { Duration::ZERO } else { ms(random, 50..95) };
    let slow = Fault::Slow { from: owner, to: READER, by, one_way: true };
    planned.push(Planned { fault: slow, from: at, until });
    let mended = mended(random);
    let mut cut = |from, to, at| {
        planned.push(Planned { fault: Fault::Cut { from, to, one_way: true, mended }, from: at, until });
    };
    match random.u8(..6) {
        0 => cut(owner, READER, late),
        1 => cut(READER, owner, late),
        // What is on its way back arrives when the node hears nothing any more, and then nothing does.
        _ => {
            cut(READER, owner, late);
            cut(owner, READER, late + by + ms(random, 2..20));
        }
    }
    until + ms(random, 200..700)
}

/// Another client and then the registry cannot be reached from the node. When the next comes.
fn out_of_reach(random: &mut Rng, node: usize, at: Duration, planned: &mut Vec<Planned>) -> Duration {
    let owner = End::Node(node);
    let until = at + ms(random, 2200..4000);
    let (one_way, mended) = (random.bool(), mended(random));
    let of_client = Fault::Cut { from: End::Client(1), to: owner, one_way, mended };
    planned.push(Planned { fault: of_client, from: at, until });
    let from = at + ms(random, 200..900);
    let of_registry = Fault::Cut { from: owner, to: End::Registry, one_way: false, mended };
    planned.push(Planned { fault: of_registry, from, until: until.min(from + ms(random, 1200..2600)) });
    if random.bool() {
        // The reader hears late that the node holds no lease any more, by less than writers wait.
        let lag = Fault::WatchLag { who: 1 << NODES, by: ms(random, 100..240) };
        planned.push(Planned { fault: lag, from: at, until });
    }
    until + ms(random, 300..1500)
}

/// How some hear late that a key has moved.
#[derive(Clone, Copy, PartialEq)]
enum Lateness {
    /// The reader sleeps.
    Asleep,
    /// The reader sleeps, and what moves the key is that its owner is taken out of the ring, and runs on.
    /// Nobody writes the key for as long as that owner is told of writes.
    AsleepWhileDrained,
    /// Watches of the reader and of nodes lag.
    Lag,
    /// A machine with a node and the reader on it stands still.
    Machine,
    /// As before, and the key does not move.
    MachineOfOwner,
    /// The member of the registry by which they watch has lost its peers.
    Alone,
    /// Nobody hears of it late. It moves to the node that visits, which alone is told of writes.
    Nobody,
}

impl Lateness {
    /// One of them. `lasts`: values of the key are there for longer than a reader sleeps or a node visits.
    fn any(random: &mut Rng, lasts: bool) -> Self {
        match random.u8(..10) {
            1..4 if lasts => Lateness::AsleepWhileDrained,
            0..4 => Lateness::Asleep,
            4 | 5 => Lateness::Lag,
            6 => Lateness::Machine,
            7 => Lateness::MachineOfOwner,
            8 if lasts => Lateness::Nobody,
            _ => Lateness::Alone,
        }
    }
}

/// A node visits again and again, or the owner of a key is taken out of the ring and joins again, of which
/// some hear late, while other clients write; or the owner and a reader sleep, and hear of the writes late.
pub(super) fn late(random: &mut Rng, theme: Theme, owner: usize, lasts: bool) -> Vec<Planned> {
    let lateness = Lateness::any(random, lasts);
    let windows = theme.windows();
    let (mut planned, mut at, mut came) = (Vec::new(), ms(random, 100..1500), None);
    while at < theme.trouble() {
        let (fault, long) = match lateness {
            Lateness::Asleep => asleep(random, at, 1200..4000, &mut planned),
            Lateness::AsleepWhileDrained => {
                at += windows.recent_writes;
                asleep(random, at, 2000..4000, &mut planned)
            }
            Lateness::Lag => {
                let who = ((1 << FIRST_NODES) - 1) | (1 << NODES);
                // By less than writers tell previous owners, by the fastest clock.
                (Fault::WatchLag { who, by: ms(random, 600..920) }, ms(random, 500..1400))
            }
            Lateness::Machine => {
                let at_node = if random.u8(..3) > 0 { owner } else { random.usize(..FIRST_NODES) };
                machine(random, at, at_node, (900..1600, 450..600), &mut planned)
            }
            // For longer than a lease, and until writers have been told that theirs are done.
            Lateness::MachineOfOwner => machine(random, at, owner, (1200..2000, 900..1240), &mut planned),
            Lateness::Alone => alone(random, at, &mut planned),
            Lateness::Nobody => {
                let quiet = windows.recent_writes + windows.previous_owners;
                (Fault::Quiet, quiet + ms(random, 500..900))
            }
        };
        planned.push(Planned { fault, from: at, until: at + long });
        let moved = at + ms(random, 20..200);
        came = match came {
            None if lateness == Lateness::MachineOfOwner => None,
            None if lateness == Lateness::AsleepWhileDrained => {
                drain(random, windows, owner, (moved, at + long), &mut planned);
                None
            }
            None if lateness == Lateness::Nobody => {
                at = visit(random, windows, (at, at + long), &mut planned) - long;
                None
            }
            None => Some(moved),
            Some(from) => {
                leave(random, from, moved, long, &mut planned);
                None
            }
        };
        at += long + ms(random, 300..2000);
    }
    planned
}

/// The owner of the key is taken out of the ring, and starts again after the reader has woken. Nobody writes
/// for as long as it is told of writes.
fn drain(
    random: &mut Rng,
    windows: Windows,
    owner: usize,
    (moved, woken): (Duration, Duration),
    planned: &mut Vec<Planned>,
) {
    let until = woken + ms(random, 100..600);
    planned.push(Planned { fault: Fault::Drain(owner), from: moved, until });
    let from = moved.saturating_sub(windows.recent_writes);
    let until = moved + windows.previous_owners + ms(random, 50..300);
    planned.push(Planned { fault: Fault::Quiet, from, until });
}

/// A node visits while nobody writes, and goes while nobody writes again: what is written in between is told
/// to none but that node. When all have heard that it has gone.
fn visit(
    random: &mut Rng,
    windows: Windows,
    (quiet, written): (Duration, Duration),
    planned: &mut Vec<Planned>,
) -> Duration {
    let from = quiet + windows.recent_writes + ms(random, 100..200);
    let quiet = written + ms(random, 300..900);
    let until = quiet + windows.recent_writes + ms(random, 100..200);
    planned.push(Planned { fault: Fault::Visit, from, until });
    let heard = until + ms(random, 200..600);
    planned.push(Planned { fault: Fault::Quiet, from: quiet, until: heard });
    heard
}

/// The node that visits goes again, or is taken out of the ring and goes on to answer those who have not
/// heard of that, for about as long as they do not.
fn leave(random: &mut Rng, from: Duration, moved: Duration, long: Duration, planned: &mut Vec<Planned>) {
    let until = if random.bool() {
        planned.push(Planned { fault: Fault::Drain(NODES - 1), from: moved, until: moved });
        moved + ms(random, 600..(long.as_millis() as u64).max(1500))
    } else {
        moved
    };
    planned.push(Planned { fault: Fault::Visit, from, until });
}

/// A machine with a node and a client on it stands still for so many milliseconds, and what the registry has
/// to tell them comes late by so many.
fn machine(
    random: &mut Rng,
    at: Duration,
    at_node: usize,
    (long, lag): (Range<u64>, Range<u64>),
    planned: &mut Vec<Planned>,
) -> (Fault, Duration) {
    let long = ms(random, long);
    let node = End::Node(at_node);
    let (from, to, by) = (End::Registry, node, ms(random, 150..300));
    let lag = Fault::WatchLag { who: (1 << NODES) | (1 << at_node), by: ms(random, lag) };
    let until = at + long + ms(random, 600..1200);
    let slow = Fault::Slow { from, to, by, one_way: false };
    planned.extend([slow, lag].map(|fault| Planned { fault, from: at, until }));
    let woken = at + long + ms(random, 1..60);
    let fault = stand_still(random, End::Client(0));
    planned.push(Planned { fault, from: at, until: woken });
    (stand_still(random, node), long)
}

/// A member of the registry loses its peers, and a client cannot reach a node for a while: hints are
/// stored for one that could read them elsewhere.
fn alone(random: &mut Rng, at: Duration, planned: &mut Vec<Planned>) -> (Fault, Duration) {
    let from = at + ms(random, 500..1500);
    let until = from + ms(random, 500..2000);
    let (writer, node) = (End::Client(1), End::Node(random.usize(..FIRST_NODES)));
    let fault = Fault::Cut { from: writer, to: node, one_way: random.bool(), mended: mended(random) };
    planned.push(Planned { fault, from, until });
    (Fault::Store(StoreFault::Alone(THEIR_MEMBER)), ms(random, 1500..12_000))
}

/// A reader that sleeps. What the registry has to tell it may come late, so that it asks as if nothing had
/// changed when it wakes.
fn asleep(random: &mut Rng, at: Duration, long: Range<u64>, planned: &mut Vec<Planned>) -> (Fault, Duration) {
    let long = ms(random, long);
    if random.bool() {
        let lag = Fault::WatchLag { who: 1 << NODES, by: ms(random, 300..600) };
        planned.push(Planned { fault: lag, from: at, until: at + long + ms(random, 600..1200) });
    }
    (stand_still(random, End::Client(0)), long)
}

fn ms(random: &mut Rng, range: Range<u64>) -> Duration {
    Duration::from_millis(random.u64(range))
}
