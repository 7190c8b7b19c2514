//! The faults that make a theme: each a pattern that comes again and again.

use std::ops::Range;
use std::time::Duration;

use fastrand::Rng;

use super::{CLIENTS, End, FIRST_NODES, Fault, Folder, NODES, Planned, THEIR_MEMBER, Theme, mended};
use crate::network::Mended;
use crate::registry::StoreFault;

/// What some clients send to some nodes is held, and arrives, again and again.
pub(super) fn stutter(random: &mut Rng) -> Vec<Planned> {
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
pub(super) fn lost(random: &mut Rng, node: usize) -> Vec<Planned> {
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
            let by = ms(random, 20..600);
            let slow = Fault::Slow { from: End::Registry, to, by, one_way: false };
            planned.push(Planned { fault: slow, from: at, until: mended });
        }
        at = mended + ms(random, 200..3000);
    }
    planned
}

/// A node is killed and started again at once, of which a reader hears nothing or as others do; or what it and a reader say
/// comes late, and then what one of them says not at all; or one client and then the registry cannot be reached from it.
pub(super) fn near(random: &mut Rng, node: usize) -> Vec<Planned> {
    let (mut planned, mut at) = (Vec::new(), Duration::from_millis(random.u64(300..1500)));
    let trouble = Theme::Near { group: 0, key: 0 }.trouble();
    let ms = |random: &mut Rng, range: Range<u64>| Duration::from_millis(random.u64(range));
    let (reader, owner) = (End::Client(0), End::Node(node));
    let accent = random.u8(..4);
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
        if accent <= 2 {
            let late = at + ms(random, 400..900);
            let until = late + ms(random, 300..800);
            // Not so slow that the reader asks another node.
            let by = ms(random, 50..95);
            let slow = Fault::Slow { from: owner, to: reader, by, one_way: true };
            planned.push(Planned { fault: slow, from: at, until });
            let back = mended(random);
            let mut cut = |from, to, at| {
                let fault = Fault::Cut { from, to, one_way: true, mended: back };
                planned.push(Planned { fault, from: at, until });
            };
            match random.u8(..6) {
                0 => cut(owner, reader, late),
                1 => cut(reader, owner, late),
                // What is on its way back arrives when the node hears nothing any more, and then nothing does.
                _ => {
                    cut(reader, owner, late);
                    cut(owner, reader, late + by + ms(random, 2..20));
                }
            }
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
pub(super) fn late(random: &mut Rng) -> Vec<Planned> {
    let accent = random.u8(..4);
    let ms = |random: &mut Rng, range: Range<u64>| Duration::from_millis(random.u64(range));
    let (mut planned, mut at, mut came) = (Vec::new(), ms(random, 100..1500), None);
    while at < Theme::Late.trouble() {
        let (fault, long) = match accent {
            0 => (Fault::Pause(End::Client(0)), ms(random, 1200..4000)),
            1 => {
                let who = ((1 << FIRST_NODES) - 1) | (1 << NODES);
                (Fault::WatchLag { who, by: ms(random, 500..900) }, ms(random, 500..1000))
            }
            2 => {
                // A machine with a node and a client on it stands still, and what the registry has to tell
                // them comes late.
                let (at_node, long) = (random.usize(..FIRST_NODES), ms(random, 900..1600));
                let node = End::Node(at_node);
                let (from, to, by) = (End::Registry, node, ms(random, 150..300));
                let lag = Fault::WatchLag { who: (1 << NODES) | (1 << at_node), by: ms(random, 450..600) };
                let until = at + long + ms(random, 600..1200);
                let slow = Fault::Slow { from, to, by, one_way: false };
                planned.extend([slow, lag].map(|fault| Planned { fault, from: at, until }));
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
                let is_drained = random.bool();
                if is_drained {
                    planned.push(Planned { fault: Fault::Drain(NODES - 1), from: moved, until: moved });
                }
                // One that was drained goes on to answer those who have not heard of it.
                let until = if is_drained { moved + ms(random, 600..1500) } else { moved };
                planned.push(Planned { fault: Fault::Visit, from, until });
                None
            }
        };
        at += long + ms(random, 300..4000);
    }
    planned
}
