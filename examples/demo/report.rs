//! What the demo prints.

use std::io::{IsTerminal as _, Write as _};
use std::time::Duration;

use peanut_client::Client;

/// What a stretch of reading came to.
pub(crate) struct Phase {
    pub(crate) time: Duration,
    pub(crate) reads: u64,
    pub(crate) loads: u64,
    pub(crate) hits: u64,
    pub(crate) errors: u64,
}

impl Phase {
    pub(crate) fn print(&self) {
        let rate = self.reads as f64 / self.time.as_secs_f64();
        let ratio = 100.0 * self.hits as f64 / self.reads.max(1) as f64;
        let Phase { reads, loads, errors, .. } = self;
        say(&format!(
            "{reads} reads, {rate:.0} a second; {loads} loads, hit ratio {ratio:.1} %, {errors} errors"
        ));
    }
}

pub(crate) fn heading(text: &str) {
    println!("\n{text}");
}

pub(crate) fn say(text: &str) {
    println!("  {text}");
}

pub(crate) fn print_ring(client: &Client) {
    let nodes = client.nodes();
    say(&format!("ring version {}:", client.ring().version()));
    for node in nodes {
        let health = if node.up { "up" } else { "down" };
        say(&format!("  {:21} {:5.1} % of the keys  {health}", node.id, node.share * 100.0));
    }
}

/// A line that is written over on a terminal, and now and then elsewhere.
#[derive(Default)]
pub(crate) struct Progress {
    shown: u32,
}

impl Progress {
    pub(crate) fn show(&mut self, elapsed: Duration, of: Duration, rate: f64, errors: u64) {
        let line = format!(
            "  {:4.1} s of {} s  {rate:8.0} reads/s  {errors} errors",
            elapsed.as_secs_f64(),
            of.as_secs()
        );
        let mut stderr = std::io::stderr().lock();
        if stderr.is_terminal() {
            let _ = write!(stderr, "\r{line}");
        } else if self.shown % 8 == 7 {
            let _ = writeln!(stderr, "{line}");
        }
        self.shown += 1;
    }

    pub(crate) fn clear(self) {
        let mut stderr = std::io::stderr().lock();
        if stderr.is_terminal() {
            let _ = write!(stderr, "\r{:60}\r", "");
        }
    }
}
