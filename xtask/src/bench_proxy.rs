//! `bench proxy`: the same client, `redis-benchmark`, against a proxy in front of a node and against Redis,
//! by turns.

use std::io::{BufRead as _, BufReader};
use std::net::TcpListener;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use crate::install;
use crate::run::{Cargo, Failed, built};

const ROUNDS: usize = 5;
const KEYS: &str = "10000";
const VALUE: &str =
    "0123456789012345678901234567890123456789012345678901234567890123456789012345678901234567890123456789";

/// What is measured: a name, the requests, how many stand in a pipeline, and the command.
const WORKS: [(&str, &str, &str, &[&str]); 4] = [
    ("set", "100000", "1", &["SET", "pages:__rand_int__", VALUE]),
    ("get", "200000", "1", &["GET", "pages:__rand_int__"]),
    ("set, 16 in a pipeline", "400000", "16", &["SET", "pages:__rand_int__", VALUE]),
    ("get, 16 in a pipeline", "1000000", "16", &["GET", "pages:__rand_int__"]),
];

/// Measures and prints a table of medians and ratios.
pub(crate) fn run() -> Result<(), Failed> {
    install::redis()?;
    let build =
        ["build", "--release", "-p", "peanut-server", "--features", "peanut-server/full", "-p", "peanut-cli"];
    Cargo::new(&build).run("building")?;
    let [redis_port, node, hot, all, none] = [(); 5].map(|()| free_port());
    let _redis = {
        let mut redis = Command::new("redis-server");
        redis.args(["--port", &redis_port, "--save", "", "--appendonly", "no", "--loglevel", "warning"]);
        Running::start(&mut redis, None)?
    };
    let addr = format!("127.0.0.1:{node}");
    let mut server = built("release/peanut-server")?;
    server.args([
        "--listen",
        &addr,
        "--nodes",
        &addr,
        "--group",
        "{ name = 'pages', loader = { kind = 'none' } }",
    ]);
    let _node = Running::start(&mut server, Some("listening on"))?;
    let proxy = |port: &str, near: &[&str]| {
        let mut proxy = built("release/peanut")?;
        proxy.args(["--nodes", &addr, "proxy", "--redis", &format!("127.0.0.1:{port}")]).args(near);
        Running::start(&mut proxy, Some("the Redis protocol on"))
    };
    let _hot = proxy(&hot, &[])?;
    let _all = proxy(&all, &["--near-groups", "pages"])?;
    let _none = proxy(&none, &["--near", "0"])?;
    std::thread::sleep(Duration::from_millis(500));
    println!(
        "64 connections, values of 100 bytes, {KEYS} keys; requests a second, medians of {ROUNDS} rounds\n"
    );
    println!("| | Redis | proxy | ratio | with all near copies | ratio | without any | ratio |");
    println!("|---|--:|--:|--:|--:|--:|--:|--:|");
    for (name, requests, pipeline, command) in WORKS {
        let mut rates = [(); 4].map(|()| Vec::new());
        for _ in 0..ROUNDS {
            for (port, rates) in [&redis_port, &hot, &all, &none].into_iter().zip(&mut rates) {
                rates.push(measure(port, requests, pipeline, command)?);
            }
        }
        let [redis, proxies @ ..] = rates.map(median);
        let proxies = proxies.map(|rate| format!("{rate:.0} | {:.2}", rate / redis)).join(" | ");
        println!("| {name} | {redis:.0} | {proxies} |");
    }
    Ok(())
}

/// Requests a second.
fn measure(port: &str, requests: &str, pipeline: &str, command: &[&str]) -> Result<f64, Failed> {
    let mut benchmark = Command::new("redis-benchmark");
    benchmark
        .args(["-p", port, "-c", "64", "-n", requests, "-P", pipeline, "-r", KEYS, "--csv"])
        .args(command);
    let run = benchmark.output().map_err(|error| Failed(format!("redis-benchmark: {error}")))?;
    let text = String::from_utf8_lossy(&run.stdout).into_owned();
    let rate = text.lines().last().and_then(|line| line.rsplit("\",\"").nth(6)?.parse().ok());
    rate.ok_or_else(|| Failed(format!("redis-benchmark said {text}{}", String::from_utf8_lossy(&run.stderr))))
}

fn median(mut rates: Vec<f64>) -> f64 {
    rates.sort_by(f64::total_cmp);
    rates[rates.len() / 2]
}

fn free_port() -> String {
    let port = TcpListener::bind("127.0.0.1:0").and_then(|it| it.local_addr());
    port.map_or(0, |addr| addr.port()).to_string()
}

/// A process that ends with this handle.
struct Running(Child);

impl Running {
    /// Starts it and waits for a line on stderr.
    fn start(command: &mut Command, line: Option<&str>) -> Result<Self, Failed> {
        let name = command.get_program().to_string_lossy().into_owned();
        let started = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn();
        let mut child = started.map_err(|error| Failed(format!("{name}: {error}")))?;
        let mut lines =
            BufReader::new(child.stderr.take().expect("it is piped")).lines().map_while(Result::ok);
        if let Some(line) = line
            && !lines.any(|it| it.contains(line))
        {
            return Err(Failed(format!("{name} has ended before it said `{line}`")));
        }
        std::thread::spawn(move || lines.for_each(drop));
        Ok(Running(child))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
