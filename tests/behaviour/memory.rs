//! Capacity bounds the process: what a store takes as the system counts it.

use std::process::Command;

use serde_json::Value;

/// Fills a store in a process of its own.
fn fill(sets: u64, capacity_bytes: u64, value_bytes: &str) -> Value {
    let numbers = [sets.to_string(), capacity_bytes.to_string(), value_bytes.to_owned()];
    let output = Command::new(env!("CARGO_BIN_EXE_fill")).args(numbers).output().expect("it runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).expect("it prints JSON")
}

#[test]
fn values_of_mixed_sizes_take_no_more_than_capacity_allows() {
    const CAPACITY: u64 = 64 << 20;
    let filled = fill(300_000, CAPACITY, "mixed");
    let (used, resident) =
        (filled["used_bytes"].as_u64().unwrap(), filled["resident_bytes"].as_u64().unwrap());
    assert!(used > CAPACITY * 9 / 10 && used <= CAPACITY, "{used} bytes are in use");
    let most = CAPACITY * 115 / 100 + (64 << 20);
    assert!(resident <= most, "{resident} bytes are resident of at most {most}");
}

#[test]
fn a_small_entry_takes_at_most_96_bytes_beside_key_and_value() {
    const KEY_AND_VALUE: u64 = 16 + 32;
    let filled = fill(1_000_000, 64 << 20, "32");
    let entries = filled["entries"].as_u64().unwrap();
    assert!(entries > 400_000, "{entries} entries fit");
    let taken =
        filled["resident_bytes"].as_u64().unwrap() - filled["resident_before_bytes"].as_u64().unwrap();
    let overhead = taken as f64 / entries as f64 - KEY_AND_VALUE as f64;
    assert!(overhead <= 96.0, "{overhead:.1} bytes beside key and value");
}
