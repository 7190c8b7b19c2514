//! The clocks that are not tokio's: the wall clock, which only documents and files need, and the time since
//! the machine started, which goes on while it is suspended. Everything else goes by tokio's monotonic clock.

use std::time::Duration;

/// Milliseconds since 1970.
#[expect(clippy::disallowed_methods, reason = "the one place that reads the wall clock")]
pub fn wall_clock_ms() -> u64 {
    if let Some(machine) = crate::machine::simulated() {
        return machine.wall_clock_ms();
    }
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.map_or(0, milliseconds)
}

/// Time since the machine started, where the system tells including that in which it was suspended:
/// `CLOCK_BOOTTIME` on Linux, which `CLOCK_MONOTONIC` and so tokio's clock lag behind after a suspended
/// virtual machine goes on. Elsewhere the monotonic clock.
pub fn uptime() -> Duration {
    if let Some(machine) = crate::machine::simulated() {
        return machine.uptime();
    }
    #[cfg(any(target_os = "linux", target_os = "android"))]
    if let Ok(time) = nix::time::clock_gettime(nix::time::ClockId::CLOCK_BOOTTIME) {
        return Duration::from(time);
    }
    monotonic()
}

/// How long the machine has been suspended since it started: what [`uptime`] counts and tokio's clock does
/// not.
pub fn suspended() -> Duration {
    if let Some(machine) = crate::machine::simulated() {
        return machine.suspended();
    }
    #[cfg(any(target_os = "linux", target_os = "android"))]
    {
        use nix::time::{ClockId, clock_gettime};
        let difference = || {
            let monotonic = Duration::from(clock_gettime(ClockId::CLOCK_MONOTONIC).ok()?);
            Some(Duration::from(clock_gettime(ClockId::CLOCK_BOOTTIME).ok()?).saturating_sub(monotonic))
        };
        // A thread may lose its turn between the two clocks.
        (0..3).filter_map(|_| difference()).min().unwrap_or_default()
    }
    #[cfg(not(any(target_os = "linux", target_os = "android")))]
    Duration::ZERO
}

/// As [`uptime`], in nanoseconds.
pub fn uptime_nanos() -> u64 {
    #[cfg(any(target_os = "linux", target_os = "android"))]
    if !crate::machine::is_simulated()
        && let Ok(time) = nix::time::clock_gettime(nix::time::ClockId::CLOCK_BOOTTIME)
    {
        return (time.tv_sec() as u64).wrapping_mul(1_000_000_000).wrapping_add(time.tv_nsec() as u64);
    }
    nanoseconds(uptime())
}

/// A length of time in whole milliseconds, as far as a number has room.
pub fn milliseconds(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// A length of time in nanoseconds, as far as a number has room.
pub fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

#[expect(clippy::disallowed_methods, reason = "where the system has no clock that counts suspension")]
fn monotonic() -> Duration {
    static FIRST: std::sync::OnceLock<std::time::Instant> = std::sync::OnceLock::new();
    FIRST.get_or_init(std::time::Instant::now).elapsed()
}
