//! Hosts that run by turns in one thread, under one virtual time.
//!
//! Each host has a runtime of one thread with a paused clock, so that dropping the runtime is `kill -9` and
//! not running it is `SIGSTOP`. All run for the same short time one after the other, which is as long as the
//! fastest message takes: nothing that one does can matter to another before both have got there.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

use fastrand::Rng;
use peanut_proto::machine::{self, Connecting, Disk, Machine};
use peanut_proto::sabotage::{Mechanism, without};
use tokio::runtime::{Builder, Runtime};
use tokio::task::JoinHandle;
use tokio::time::{Instant, advance, sleep_until};

use super::network::{HostId, MIN_LATENCY, Network};

/// The wall clock when a simulation begins, in milliseconds since 1970.
const BEGIN_MS: u64 = 1_800_000_000_000;

/// At which rates clocks of hosts go, in thousandths: they differ by a little less than leases allow for.
pub(super) const RATES: [u32; 3] = [955, 1000, 1045];

thread_local! {
    static CURRENT: RefCell<Option<Rc<HostMachine>>> = const { RefCell::new(None) };
}

/// The host that runs on this thread, and the time of the world, for logs.
pub fn current() -> Option<(usize, Duration)> {
    CURRENT.with_borrow(|host| host.as_ref().map(|host| (host.host, host.time())))
}

/// The time of the world, as no clock of a host has it.
pub(super) fn time() -> Duration {
    current().map_or(Duration::ZERO, |(_, time)| time)
}

/// Has a host's machine, or none, stand in for the thread's.
fn enter(host: Option<&Host>) {
    CURRENT.set(host.map(|host| host.machine.clone()));
    machine::simulate(host.map(|host| -> Rc<dyn Machine> { host.machine.clone() }));
}

/// All hosts, and the time.
pub(super) struct World {
    /// How hosts reach one another.
    pub(super) network: Network,
    now: Duration,
    hosts: Vec<Host>,
    random: Rng,
}

struct Host {
    machine: Rc<HostMachine>,
    running: Option<Running>,
    is_paused: bool,
    /// When it was suspended, if it is.
    suspended_at: Option<Duration>,
}

/// A process.
struct Running {
    runtime: Runtime,
    main: JoinHandle<()>,
}

/// What a host is to its process.
struct HostMachine {
    host: HostId,
    network: Network,
    /// Of the runtime's clock: an instant, and the world's time then.
    base: Cell<Option<(Instant, Duration)>>,
    /// How long it has been suspended, which the runtime's clock does not count.
    suspended: Cell<Duration>,
    /// How long the machine had been up when the world began, and how fast its clock goes, in thousandths.
    up_since: Duration,
    rate: Cell<u32>,
    /// Milliseconds by which the wall clock is wrong.
    wrong_by_ms: Cell<i64>,
    disk: Cell<Disk>,
}

impl HostMachine {
    fn time(&self) -> Duration {
        self.base.get().map_or(Duration::ZERO, |(base, time)| time + (Instant::now() - base))
    }
}

impl Machine for HostMachine {
    fn wall_clock_ms(&self) -> u64 {
        (BEGIN_MS + self.time().as_millis() as u64).saturating_add_signed(self.wrong_by_ms.get())
    }

    fn uptime(&self) -> Duration {
        let unseen = self.suspended.get() - Machine::suspended(self);
        self.up_since + (self.time() - unseen) * self.rate.get() / 1000
    }

    fn suspended(&self) -> Duration {
        if without(Mechanism::Suspension) { Duration::ZERO } else { self.suspended.get() }
    }

    fn connect(&self, addr: &str) -> Connecting {
        self.network.connect(self.host, addr)
    }

    fn disk(&self) -> Disk {
        self.disk.get()
    }
}

impl World {
    /// A world without hosts.
    pub(super) fn new(network: Network, random: Rng) -> Self {
        World { network, now: Duration::ZERO, hosts: Vec::new(), random }
    }

    /// How long it has been there.
    pub(super) fn now(&self) -> Duration {
        self.now
    }

    /// Makes a host, which runs nothing yet.
    pub(super) fn add_host(&mut self) -> HostId {
        let host = self.hosts.len();
        let machine = HostMachine {
            host,
            network: self.network.clone(),
            base: Cell::new(None),
            suspended: Cell::default(),
            up_since: Duration::from_secs(self.random.u64(..1_000_000)),
            rate: Cell::new(RATES[self.random.usize(..RATES.len())]),
            wrong_by_ms: Cell::new(0),
            disk: Cell::default(),
        };
        self.hosts.push(Host {
            machine: Rc::new(machine),
            running: None,
            is_paused: false,
            suspended_at: None,
        });
        host
    }

    /// Runs a process on a host that has none.
    ///
    /// # Panics
    /// Where it has one.
    pub(super) fn start<F>(&mut self, host: HostId, main: impl FnOnce() -> F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        self.network.power_on(host);
        let now = self.now;
        let host = &mut self.hosts[host];
        assert!(host.running.is_none(), "it runs already");
        let mut builder = Builder::new_current_thread();
        builder.enable_time().start_paused(true);
        // What tokio draws, in whose turn it is say, is else another each time.
        #[cfg(tokio_unstable)]
        builder.rng_seed(tokio::runtime::RngSeed::from_bytes(&fastrand::u64(..).to_le_bytes()));
        let runtime = builder.build();
        let runtime = runtime.expect("a runtime takes memory only");
        enter(Some(host));
        let main = {
            let _entered = runtime.enter();
            host.machine.base.set(Some((Instant::now(), now)));
            runtime.spawn(main())
        };
        enter(None);
        host.running = Some(Running { runtime, main });
        (host.is_paused, host.suspended_at) = (false, None);
    }

    /// Ends the process of a host without a word to it.
    pub(super) fn kill(&mut self, host: HostId) {
        let host = &mut self.hosts[host];
        self.network.set_time(self.now);
        if host.running.is_some() {
            self.network.end_process(host.machine.host);
        }
        enter(Some(host));
        host.running = None;
        enter(None);
    }

    /// Whether a host has a process that has not ended.
    pub(super) fn is_running(&self, host: HostId) -> bool {
        self.hosts[host].running.is_some()
    }

    /// Stops a host's process, or lets it go on.
    pub(super) fn pause(&mut self, host: HostId, is_paused: bool) {
        self.hosts[host].is_paused = is_paused;
    }

    /// Suspends a host, whose monotonic clock stands still with it, or lets it go on.
    pub(super) fn suspend(&mut self, host: HostId, is_suspended: bool) {
        let host = &mut self.hosts[host];
        if is_suspended {
            host.suspended_at.get_or_insert(self.now);
        } else if let Some(since) = host.suspended_at.take()
            && let Some((instant, time)) = host.machine.base.get()
        {
            let long = self.now - since;
            host.machine.base.set(Some((instant, time + long)));
            host.machine.suspended.set(host.machine.suspended.get() + long);
        }
    }

    /// Has the clock of a host go at this rate, in thousandths, before it runs.
    pub(super) fn set_rate(&mut self, host: HostId, rate: u32) {
        self.hosts[host].machine.rate.set(rate);
    }

    /// Says how a host's disk is.
    pub(super) fn set_disk(&mut self, host: HostId, disk: Disk) {
        self.hosts[host].machine.disk.set(disk);
    }

    /// Sets a host's wall clock, by so many milliseconds.
    pub(super) fn set_clock(&mut self, host: HostId, by_ms: i64) {
        let wrong_by_ms = &self.hosts[host].machine.wrong_by_ms;
        wrong_by_ms.set(wrong_by_ms.get() + by_ms);
    }

    /// Runs all hosts for the shortest time.
    pub(super) fn step(&mut self) {
        let until = self.now + MIN_LATENCY;
        for host in &mut self.hosts {
            let Some(running) = &host.running else { continue };
            if host.is_paused || host.suspended_at.is_some() {
                continue;
            }
            enter(Some(host));
            self.network.set_time(self.now);
            let (base, base_time) = host.machine.base.get().expect("it runs");
            running.runtime.block_on(async {
                let behind = (base + (self.now - base_time)).saturating_duration_since(Instant::now());
                if behind > Duration::ZERO {
                    advance(behind).await;
                }
                sleep_until(base + (until - base_time)).await;
            });
            if running.main.is_finished() {
                host.running = None;
            }
            enter(None);
        }
        self.now = until;
        self.network.deliver(until);
    }
}

impl Drop for World {
    fn drop(&mut self) {
        for host in 0..self.hosts.len() {
            self.kill(host);
        }
    }
}
