//! The processes of a scenario, and what can be done to them: each fault begins and ends by itself, so that
//! several overlap.

use std::path::PathBuf;
use std::process::Command;

use nix::sys::signal::Signal;
use peanut_client::Client;
use peanut_simulation::history::Op;
use tempfile::TempDir;

use super::application::{self, Application};
use super::origin::Origin;
use super::{APPLICATIONS, FAILOVER_TTL, Fault, Scenario};
use crate::{Etcd, Process, Processes, Proxy, ServerProcess, free_port, group_from};

/// Members that a fleet has at most.
const MOST_MEMBERS: usize = 5;

/// A node behind proxies: one that clients come through, and one that it reaches etcd through.
struct Node {
    front: Proxy,
    to_etcd: Proxy,
    server: ServerProcess,
    is_member: bool,
    /// Faults that hold it down, and that have it stand still.
    down: u32,
    paused: u32,
}

impl Node {
    /// Ends its process, if no other fault has.
    async fn go_down(&mut self, is_asked: bool) {
        self.down += 1;
        if self.down == 1 && is_asked && self.paused == 0 {
            self.server.process().signal(Signal::SIGTERM);
            self.server.process().ended().await;
        } else if self.down == 1 {
            self.server.process().kill();
        }
    }
}

/// An application, and the proxy that it reaches etcd through.
struct App {
    to_etcd: Proxy,
    process: Process,
    down: u32,
    paused: u32,
    /// Processes of it so far.
    starts: u64,
}

/// The processes.
pub(super) struct Fleet {
    scenario: Scenario,
    is_strict: bool,
    etcd: Etcd,
    etcd_down: u32,
    pub(super) origin: Origin,
    directory: TempDir,
    nodes: Vec<Node>,
    apps: Vec<App>,
    apps_processes: Processes,
    /// The harness's own client.
    pub(super) client: Client,
}

/// A fault that has begun, and what it is done to.
#[derive(Clone, Copy, Debug)]
pub(super) struct Begun {
    fault: Fault,
    node: usize,
    app: usize,
}

impl Fleet {
    /// Starts etcd, an origin, three nodes, and the applications.
    pub(super) async fn start(scenario: Scenario, is_strict: bool, random: &mut fastrand::Rng) -> Self {
        let etcd = Etcd::start().await;
        let client = Client::builder().etcd([etcd.endpoint()]).build_lazy().expect("the settings are good");
        let mut fleet = Fleet {
            scenario,
            is_strict,
            etcd,
            etcd_down: 0,
            origin: Origin::start().await,
            directory: tempfile::tempdir().expect("a directory"),
            nodes: Vec::new(),
            apps: Vec::new(),
            apps_processes: Processes::default(),
            client,
        };
        for _ in 0..3 {
            fleet.add_node(random).await;
        }
        fleet.client.wait_for_ring(3).await.expect("the client lives");
        for number in 0..APPLICATIONS as usize {
            let to_etcd = Proxy::start(fleet.etcd.port()).await;
            let process = fleet.spawn(number, &to_etcd, 0);
            fleet.apps.push(App { to_etcd, process, down: 0, paused: 0, starts: 1 });
        }
        fleet
    }

    async fn add_node(&mut self, random: &mut fastrand::Rng) {
        let port = free_port();
        let front = Proxy::start_between(self.apps_processes.clone(), port).await;
        let to_etcd = Proxy::start(self.etcd.port()).await;
        let group = format!("ttl = \"1h\"\nfailover_ttl = \"{}ms\"", FAILOVER_TTL.as_millis());
        let data = self.directory.path().join(self.nodes.len().to_string());
        let data = if random.bool() { format!("data_dir = \"{}\"", data.display()) } else { String::new() };
        let config = format!(
            "listen = \"127.0.0.1:{port}\"\nadvertise = \"{}\"\nlease_ttl = \"2s\"\nshutdown_deadline = \"2s\"\n{data}\n\
             [etcd]\nendpoints = [\"{}\"]\n{}",
            front.addr(),
            to_etcd.endpoint(),
            group_from("g", &self.origin.url, &group),
        );
        let binary = self.scenario.server.display().to_string();
        let server = ServerProcess::start_without(self.scenario.sabotage, &binary, &config).await;
        self.nodes.push(Node { front, to_etcd, server, is_member: true, down: 0, paused: 0 });
    }

    /// The file into which an application tells what it does.
    fn ops(&self, app: usize) -> PathBuf {
        self.directory.path().join(format!("ops{app}"))
    }

    fn spawn(&self, number: usize, to_etcd: &Proxy, starts: u64) -> Process {
        let application = Application {
            etcd: to_etcd.endpoint(),
            origin: self.origin.url.clone(),
            ops: self.ops(number),
            number: number as u32,
            of: APPLICATIONS,
            strict: self.is_strict,
            near: self.scenario.is_near && number.is_multiple_of(2),
            seed: self.scenario.seed * 1000 + number as u64 * 100 + starts,
        };
        let mut command = Command::new(&self.scenario.program);
        command.arg("application").args(application.words());
        let process = Process::start_with_stdin("application", &mut command);
        self.apps_processes.add(process.id());
        process
    }

    /// Begins a fault; `None` where it cannot be now.
    pub(super) async fn begin(&mut self, fault: Fault, random: &mut fastrand::Rng) -> Option<Begun> {
        let members: Vec<_> = (0..self.nodes.len()).filter(|at| self.nodes[*at].is_member).collect();
        let (node, app) = (members[random.usize(..members.len())], random.usize(..self.apps.len()));
        let stalls = random.bool();
        let it = &mut self.nodes[node];
        match fault {
            Fault::Nothing => {}
            Fault::Join if members.len() < MOST_MEMBERS => self.add_node(random).await,
            Fault::Join => return None,
            Fault::Drain if members.len() > 2 => {
                let id = it.front.addr().to_string();
                self.nodes[node].is_member = self.client.drain(&id).await.is_err();
            }
            Fault::Drain => return None,
            Fault::Restart | Fault::Kill => it.go_down(fault == Fault::Restart).await,
            Fault::Sleep => {
                it.paused += 1;
                if it.down == 0 && it.paused == 1 {
                    it.server.process().signal(Signal::SIGSTOP);
                }
            }
            Fault::EtcdRestart => {
                self.etcd_down += 1;
                self.etcd.stop();
            }
            Fault::CutNode if stalls => it.front.stall(),
            Fault::CutNode => it.front.cut(),
            Fault::CutNodeFromEtcd if stalls => it.to_etcd.stall(),
            Fault::CutNodeFromEtcd => it.to_etcd.cut(),
            Fault::CutClientFromEtcd if stalls => self.apps[app].to_etcd.stall(),
            Fault::CutClientFromEtcd => self.apps[app].to_etcd.cut(),
            Fault::CutLink => {
                let process = self.apps[app].process.id();
                if stalls {
                    it.front.stall_from(process);
                } else {
                    it.front.cut_from(process);
                }
            }
            Fault::KillClient => {
                self.apps[app].down += 1;
                self.apps[app].process.kill();
            }
            Fault::SleepClient => {
                let app = &mut self.apps[app];
                app.paused += 1;
                if app.down == 0 && app.paused == 1 {
                    app.process.signal(Signal::SIGSTOP);
                }
            }
        }
        Some(Begun { fault, node, app })
    }

    /// Ends a fault.
    pub(super) async fn end(&mut self, Begun { fault, node, app }: Begun) {
        let process = self.apps[app].process.id();
        let it = &mut self.nodes[node];
        match fault {
            Fault::Nothing | Fault::Join | Fault::Drain => {}
            Fault::Restart | Fault::Kill => {
                it.down -= 1;
                if it.down == 0 {
                    it.server.start_again().await;
                    if it.paused > 0 {
                        it.server.process().signal(Signal::SIGSTOP);
                    }
                }
            }
            Fault::Sleep => {
                it.paused -= 1;
                if it.down == 0 && it.paused == 0 {
                    it.server.process().signal(Signal::SIGCONT);
                }
            }
            Fault::EtcdRestart => {
                self.etcd_down -= 1;
                if self.etcd_down == 0 {
                    self.etcd.start_again().await;
                }
            }
            Fault::CutNode => it.front.mend(),
            Fault::CutNodeFromEtcd => it.to_etcd.mend(),
            Fault::CutClientFromEtcd => self.apps[app].to_etcd.mend(),
            Fault::CutLink => it.front.mend_from(process),
            Fault::KillClient => {
                self.apps[app].down -= 1;
                if self.apps[app].down == 0 {
                    let starts = self.apps[app].starts;
                    let started = self.spawn(app, &self.apps[app].to_etcd, starts);
                    let app = &mut self.apps[app];
                    (app.process, app.starts) = (started, starts + 1);
                    if app.paused > 0 {
                        app.process.signal(Signal::SIGSTOP);
                    }
                }
            }
            Fault::SleepClient => {
                let app = &mut self.apps[app];
                app.paused -= 1;
                if app.down == 0 && app.paused == 0 {
                    app.process.signal(Signal::SIGCONT);
                }
            }
        }
    }

    /// What the applications have told so far.
    pub(super) fn told(&self) -> Vec<Op> {
        (0..self.apps.len()).flat_map(|app| application::told(&self.ops(app))).collect()
    }

    /// Ends all applications.
    pub(super) fn stop_applications(&mut self) {
        self.apps.iter_mut().for_each(|app| app.process.kill());
    }
}
