//! How much memory there is for the process.

/// Bytes of the machine's memory, or of the process's control group where that has less; `None` where the
/// system does not tell.
pub(crate) fn total_bytes() -> Option<u64> {
    let read = |path: &str| std::fs::read_to_string(path).ok();
    let of_machine = read("/proc/meminfo").and_then(|text| total(&text));
    // Inside a container the root is the container's own group.
    let of_group = ["/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"];
    let of_group = of_group.iter().filter_map(|path| read(path)?.trim().parse().ok());
    of_group.chain(of_machine).min()
}

fn total(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_machines_memory_is_read() {
        assert_eq!(total("MemFree: 3 kB\nMemTotal:       16000 kB\n"), Some(16_384_000));
        assert_eq!((total(""), total("MemTotal: many")), (None, None));
    }
}
