//! How each fault begins and ends.

use std::time::Duration;

use peanut_proto::machine::Disk;

use super::{Fleet, Stands, marks};
use crate::network::{HostId, Network};
use crate::plan::{Directory, End, FIRST_NODES, Fault, NODES};
use crate::registry::StoreFault;

impl Fleet {
    /// Begins a fault.
    pub(super) fn begin(&mut self, fault: Fault) {
        match fault {
            Fault::Kill { node, power, directory } => {
                let it = &mut self.nodes[node];
                it.down += 1;
                if power {
                    self.world.network.power_off(it.host);
                }
                it.stop = None;
                self.world.kill(it.host);
                self.swap_directory(node, directory);
            }
            Fault::Stop { node, leaves } => {
                let node = &mut self.nodes[node];
                node.down += 1;
                if leaves {
                    // It is told when it starts.
                    node.leaves = true;
                }
                if let Some(stop) = &node.stop {
                    stop.send_replace(true);
                }
            }
            Fault::Visit => {
                let last = NODES - 1;
                if !self.world.is_running(self.nodes[last].host) && self.nodes[last].down == 0 {
                    self.nodes[last].leaves = true;
                    self.start_node(last);
                }
            }
            Fault::Drain(node) => self.store.drain(format!("n{node}")),
            Fault::Pause(end) => self.pause(end, 1),
            Fault::Suspend(end) => self.suspend(end, 1),
            Fault::KillClient(app) => {
                self.apps[app].down += 1;
                self.world.kill(self.apps[app].host);
            }
            Fault::Cut { from, to, one_way, .. } => self.each_link(from, to, one_way, Network::cut),
            Fault::Slow { from, to, by, one_way } => {
                self.each_link(from, to, one_way, |network, from, to| network.slow_down(from, to, by));
            }
            Fault::Store(fault) => self.store.fault(fault, true),
            Fault::WatchLag { who, by } => {
                let hosts =
                    self.nodes.iter().map(|node| node.host).chain(self.apps.iter().map(|app| app.host));
                let lagging = hosts.enumerate().filter(|(at, _)| who >> at & 1 == 1);
                self.store.set_watch_lag(lagging.fold(0, |hosts, (_, host)| hosts | 1 << host), by);
            }
            Fault::Compaction => self.store.end_watches(),
            Fault::Emptied => self.store.fault(StoreFault::Down, true),
            Fault::Clock { whose, by_ms } => self.set_clock(whose, by_ms),
            Fault::Origin { is_slow } => self.load.trouble_origin(is_slow, 1),
            Fault::Quiet => self.load.quiet(1),
            Fault::Disk { node, stalls } => {
                let disk = if stalls { Disk::Stalled } else { Disk::Full };
                self.world.set_disk(self.nodes[node].host, disk);
            }
        }
    }

    /// Ends a fault. Gives how much later it is to be tried again, where it cannot end yet.
    pub(super) fn finish(&mut self, fault: Fault) -> Option<Duration> {
        match fault {
            Fault::Kill { node, .. } | Fault::Stop { node, .. } => {
                let it = &mut self.nodes[node];
                if it.stop.is_some()
                    && self.world.is_running(it.host)
                    && it.stands.paused + it.stands.suspended == 0
                    && it.down == 1
                {
                    // It has not ended yet.
                    return Some(Duration::from_millis(20));
                }
                it.down -= 1;
                if it.down == 0 {
                    self.start_again(node);
                }
            }
            Fault::Visit => {
                let last = &self.nodes[NODES - 1];
                if let Some(stop) = &last.stop {
                    stop.send_replace(true);
                }
            }
            Fault::Drain(node) => {
                if node < FIRST_NODES && self.nodes[node].down == 0 {
                    self.start_again(node);
                }
            }
            Fault::Pause(end) => self.pause(end, -1),
            Fault::Suspend(end) => self.suspend(end, -1),
            Fault::KillClient(app) => {
                self.apps[app].down -= 1;
                if self.apps[app].down == 0 {
                    self.start_app(app);
                }
            }
            Fault::Cut { from, to, one_way, mended } => {
                self.each_link(from, to, one_way, |network, from, to| network.mend(from, to, mended));
            }
            Fault::Slow { from, to, one_way, .. } => {
                self.each_link(from, to, one_way, |network, from, to| {
                    network.slow_down(from, to, Duration::ZERO);
                });
            }
            Fault::Store(fault) => self.store.fault(fault, false),
            Fault::WatchLag { .. } => self.store.set_watch_lag(0, Duration::ZERO),
            Fault::Compaction => {}
            Fault::Emptied => {
                self.store.empty();
                self.store.fault(StoreFault::Down, false);
            }
            Fault::Clock { whose, by_ms } => self.set_clock(whose, -by_ms),
            Fault::Origin { is_slow } => self.load.trouble_origin(is_slow, -1),
            Fault::Quiet => self.load.quiet(-1),
            Fault::Disk { node, .. } => self.world.set_disk(self.nodes[node].host, Disk::Good),
        }
        None
    }

    /// Ends a node's process, if it runs, and starts another, unless it is one that only visits.
    fn start_again(&mut self, node: usize) {
        let it = &mut self.nodes[node];
        if self.world.is_running(it.host) {
            it.stop = None;
            self.world.kill(it.host);
        }
        it.leaves = false;
        if node < FIRST_NODES {
            self.start_node(node);
        }
    }

    /// The host of a node or a client, and why it stands still.
    fn stands(&mut self, end: End) -> Option<(HostId, &mut Stands)> {
        match end {
            End::Node(node) => Some((self.nodes[node].host, &mut self.nodes[node].stands)),
            End::Client(app) => Some((self.apps[app].host, &mut self.apps[app].stands)),
            End::Member(_) | End::Registry => None,
        }
    }

    fn pause(&mut self, end: End, by: i32) {
        let Some((host, Stands { paused, .. })) = self.stands(end) else { return };
        *paused = paused.saturating_add_signed(by);
        let is_paused = *paused > 0;
        self.world.pause(host, is_paused);
    }

    fn suspend(&mut self, end: End, by: i32) {
        let Some((host, Stands { suspended, .. })) = self.stands(end) else { return };
        *suspended = suspended.saturating_add_signed(by);
        let is_suspended = *suspended > 0;
        self.world.suspend(host, is_suspended);
    }

    fn set_clock(&mut self, whose: End, by_ms: i64) {
        if let Some((host, _)) = self.stands(whose) {
            self.world.set_clock(host, by_ms);
        }
    }

    pub(super) fn each_link(
        &self,
        from: End,
        to: End,
        one_way: bool,
        each: impl Fn(&Network, HostId, HostId),
    ) {
        let hosts = |end| match end {
            End::Node(node) => vec![self.nodes[node].host],
            End::Client(app) => vec![self.apps[app].host],
            End::Member(member) => vec![self.members[member]],
            End::Registry => self.members.to_vec(),
        };
        for from in hosts(from) {
            for to in hosts(to) {
                each(&self.world.network, from, to);
                if !one_way {
                    each(&self.world.network, to, from);
                }
            }
        }
    }

    pub(super) fn swap_directory(&mut self, node: usize, directory: Directory) {
        if !self.is_warm {
            return;
        }
        let present = self.copy_directory(node);
        self.copies += 1;
        let empty = self.directory.path().join(format!("empty{}", self.copies));
        let node = &mut self.nodes[node];
        let older = std::mem::replace(&mut node.copy, present);
        match (directory, older) {
            (Directory::Empty, _) => node.directory = empty,
            // Of an earlier run that has made its mark: what was on the disk earlier under the same mark is
            // not told from what is there.
            (Directory::Older, Some((starts, older)))
                if starts < node.starts && marks(&older) != marks(&node.directory) =>
            {
                node.directory = older;
            }
            _ => {}
        }
    }
}
