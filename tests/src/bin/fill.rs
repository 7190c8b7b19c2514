//! Fills a store and prints what its process takes when it is left alone, as JSON: `fill SETS CAPACITY_BYTES
//! VALUE_BYTES`, where the length of values is a number, or `mixed`: log-normal from 10 bytes to 64 KiB.

use std::time::Duration;

use peanut_proto::numbers::RingVersion;
use peanut_server::store::{Entry, Eviction, Origin, Store};
use peanut_tests::resident_bytes;
use serde_json::json;
use tokio::time::Instant;

#[global_allocator]
static ALLOCATOR: peanut_server::command::Allocator = peanut_server::command::Allocator;

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [sets, capacity, length] = &args[..] else { panic!("usage: fill SETS CAPACITY_BYTES VALUE_BYTES") };
    let sets: u64 = sets.parse().expect("SETS is a number");
    let capacity: usize = capacity.parse().expect("CAPACITY_BYTES is a number");
    let (now, mut random) = (Instant::now(), fastrand::Rng::with_seed(7));
    let store = Store::new(capacity, Eviction::default(), now);
    let bytes = vec![0x5a; 64 << 10];
    let before = resident_bytes("self");
    for _ in 0..sets {
        let length = length.parse().unwrap_or_else(|_| log_normal(&mut random));
        let key = random.u64(..sets).to_string();
        let entry = Entry {
            value: Some(bytes[..length].to_vec().into()),
            loaded: now,
            expires: now + Duration::from_secs(3600),
            stamp: RingVersion::NONE,
            origin: Origin::Owner,
        };
        store.insert(format!("{key:0>16}").as_bytes(), &entry);
    }
    // What was freed last, the allocator gives back within ten seconds.
    tokio::time::sleep(Duration::from_secs(12)).await;
    let resident = resident_bytes("self");
    println!(
        "{}",
        json!({
            "sets": sets,
            "capacity_bytes": capacity,
            "used_bytes": store.used_bytes(),
            "entries": store.len(),
            "resident_bytes": resident,
            "resident_before_bytes": before,
        })
    );
}

/// A length with a median of 400 bytes; about one in three hundred is at the upper bound.
fn log_normal(random: &mut fastrand::Rng) -> usize {
    // Box and Muller's way to a normal distribution.
    let (a, b) = (1.0 - random.f64(), random.f64());
    let normal = (-2.0 * a.ln()).sqrt() * (std::f64::consts::TAU * b).cos();
    let length = (400_f64.ln() + 1.85 * normal).exp();
    (length as usize).clamp(10, 64 << 10)
}
