//! What a frame costs: writing and reading requests and responses of one, sixteen and 256 operations.

#![allow(missing_docs, reason = "criterion's macros make undocumented items")]

mod parts;

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use peanut_proto::frame::{RequestWriter, ResponseWriter};

use parts::{request, response};

fn frames(c: &mut Criterion) {
    for operations in [1, 16, 256] {
        let mut group = c.benchmark_group("frame");
        group.throughput(Throughput::Elements(operations.into()));
        let mut writer = RequestWriter::default();
        group.bench_function(BenchmarkId::new("write requests", operations), |b| {
            b.iter(|| request(&mut writer, operations));
        });
        let frame = request(&mut writer, operations);
        group.bench_function(BenchmarkId::new("read requests", operations), |b| {
            b.iter(|| black_box(&frame).fields().map(Result::unwrap).map(black_box).count());
        });
        let mut writer = ResponseWriter::default();
        group.bench_function(BenchmarkId::new("write responses", operations), |b| {
            b.iter(|| response(&mut writer, operations));
        });
        let frame = response(&mut writer, operations);
        group.bench_function(BenchmarkId::new("read responses", operations), |b| {
            b.iter(|| black_box(&frame).fields().map(Result::unwrap).map(black_box).count());
        });
        group.finish();
    }
}

criterion_group!(benches, frames);
criterion_main!(benches);
