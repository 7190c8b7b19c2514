//! Processes that tests and measurements start, and what the system tells of them.
//!
//! A crate of its own that depends on none of Peanut's: what measures a client must not be why that is built
//! with the features of tests.

mod process;

use std::collections::BTreeSet;
use std::sync::Mutex;
use std::time::{Duration, Instant};

pub use process::Process;

/// Longer than anything that works takes on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// The time, for bounds that tests state.
#[expect(clippy::disallowed_methods, reason = "tests of whole fleets run in real time")]
pub fn now() -> Instant {
    Instant::now()
}

/// Waits until `check` gives a value.
///
/// # Panics
/// Where it has given none for [`PATIENCE`]; `what` says what was waited for.
pub async fn eventually<T>(what: &str, mut check: impl AsyncFnMut() -> Option<T>) -> T {
    let begun = now();
    loop {
        if let Some(value) = check().await {
            return value;
        }
        assert!(begun.elapsed() < PATIENCE, "waited {PATIENCE:?} for {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// CPU time of a process by its number, or of this one as `self`, in steps of 10 ms; zero where the system
/// has no /proc.
pub fn cpu_time(process: &str) -> Duration {
    // utime and stime are fields 14 and 15, counted in hundredths of a second on every Linux.
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).unwrap_or_default();
    let after_name = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
    let ticks = after_name.split_whitespace().skip(11).take(2);
    Duration::from_millis(ticks.filter_map(|field| field.parse::<u64>().ok()).sum::<u64>() * 10)
}

/// Resident memory of a process by its number, or of this one as `self`; zero where the system has no /proc.
pub fn resident_bytes(process: &str) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap_or_default();
    line.split_whitespace().next().and_then(|kib| kib.parse::<u64>().ok()).unwrap_or_default() * 1024
}

/// A port that was free a moment ago, outside the range from which the system takes ports for outgoing
/// connections.
pub fn free_port() -> u16 {
    // What has been given away may not be listened on yet.
    static GIVEN: Mutex<BTreeSet<u16>> = Mutex::new(BTreeSet::new());
    let mut given = GIVEN.lock().unwrap_or_else(|e| e.into_inner());
    for _ in 0..1000 {
        let port = fastrand::u16(20_000..32_000);
        if given.insert(port) && std::net::TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
    panic!("no free port in 1000 tries");
}
