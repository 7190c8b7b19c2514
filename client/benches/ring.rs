//! What a ring costs: look-up, building, and (printed once) memory and balance per number of points.

#![allow(missing_docs, reason = "criterion's macros make undocumented items")]

mod parts;

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use peanut_client::ring::{Ring, key_hash};

use parts::document;

fn ring(c: &mut Criterion) {
    println!("100 equal nodes: points, bytes, largest share over the mean");
    for points in [50, 160, 1024, 4096] {
        let ring = Ring::new(&document(100, points));
        let largest = ring.shares().into_iter().fold(0.0, f64::max) * 100.0;
        println!("{points:>5} {:>10} {largest:.3}", ring.memory_bytes());
    }
    let mut build = c.benchmark_group("build");
    build.sample_size(20);
    for points in [160, 1024, 4096] {
        let document = document(100, points);
        build.bench_with_input(BenchmarkId::new("100 nodes", points), &document, |b, document| {
            b.iter(|| Ring::new(black_box(document)));
        });
    }
    build.finish();
    let mut look_up = c.benchmark_group("look up");
    for (nodes, points) in [(3, 1024), (100, 160), (100, 1024), (100, 4096)] {
        let ring = Ring::new(&document(nodes, points));
        let mut hash = 0_u64;
        look_up.bench_function(BenchmarkId::new(format!("{nodes} nodes"), points), |b| {
            b.iter(|| {
                hash = hash.wrapping_add(0x9e37_79b9_7f4a_7c15);
                ring.place_hash(black_box(hash))
            });
        });
    }
    look_up.finish();
    c.bench_function("hash a 16-byte key", |b| {
        b.iter(|| key_hash(black_box("scores"), black_box(b"0123456789abcdef")))
    });
}

criterion_group!(benches, ring);
criterion_main!(benches);
