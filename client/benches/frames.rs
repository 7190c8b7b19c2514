//! What a frame costs: writing and reading requests and responses of one, sixteen and 256 operations.

#![allow(missing_docs, reason = "criterion's macros make undocumented items")]

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use peanut_proto::frame::{
    AnswerFields, GetOperation, RequestFrame, RequestWriter, ResponseFrame, ResponseWriter,
};
use peanut_proto::v1::Outcome;

const KEY: &[u8] = b"user:1234567";
const VALUE: &[u8] = &[b'v'; 100];

fn request(writer: &mut RequestWriter, operations: u32) -> RequestFrame {
    for id in 0..operations {
        let get = GetOperation { id, group: 0, key: KEY, deadline_ms: 5000, owned_since: 7, failover: false };
        writer.get(black_box(&get));
    }
    writer.take()
}

fn response(writer: &mut ResponseWriter, operations: u32) -> ResponseFrame {
    for id in 0..operations {
        let fields = AnswerFields { id, outcome: Outcome::Hit, age_ms: 10, ttl_ms: 60_000, value_bytes: 0 };
        writer.answer(black_box(&fields), black_box(VALUE));
    }
    writer.take()
}

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
