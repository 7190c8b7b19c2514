//! Instructions of the parts on the way of a get, counted by callgrind: the same on every run, also on a busy
//! machine. gungraun compares each run with the one before. `cargo xtask bench instructions`.

#![allow(
    missing_docs,
    unused_qualifications,
    reason = "gungraun's macros make undocumented items and name them in full"
)]

use std::hint::black_box;

use gungraun::{library_benchmark, library_benchmark_group, main};
use peanut_client::ring::{Ring, key_hash};
use peanut_proto::frame::{
    AnswerFields, GetOperation, RequestFrame, RequestWriter, ResponseFrame, ResponseWriter,
};
use peanut_proto::membership::{NodeInfo, RingDocument};
use peanut_proto::v1::Outcome;

const KEY: &[u8] = b"user:1234567";
const OPERATIONS: u32 = 16;

fn ring() -> Ring {
    let document = (0..100).fold(RingDocument::empty(4096), |ring, n| {
        let id = format!("10.0.0.{n}:9999");
        let node = NodeInfo { addr: id.clone(), id, zone: String::new(), weight: 1 };
        ring.with(&node, 0).expect("a new node")
    });
    Ring::new(&document)
}

fn write_request(writer: &mut RequestWriter) -> RequestFrame {
    for id in 0..OPERATIONS {
        let get = GetOperation { id, group: 0, key: KEY, deadline_ms: 5000, owned_since: 7, failover: false };
        writer.get(black_box(&get));
    }
    writer.take()
}

fn write_response(writer: &mut ResponseWriter) -> ResponseFrame {
    for id in 0..OPERATIONS {
        let fields = AnswerFields { id, outcome: Outcome::Hit, age_ms: 10, ttl_ms: 60_000, value_bytes: 0 };
        writer.answer(black_box(&fields), black_box(&[b'v'; 100]));
    }
    writer.take()
}

/// A writer that has its buffer.
fn request_writer() -> RequestWriter {
    let mut writer = RequestWriter::default();
    write_request(&mut writer);
    writer
}

fn response_writer() -> ResponseWriter {
    let mut writer = ResponseWriter::default();
    write_response(&mut writer);
    writer
}

#[library_benchmark]
#[bench::hundred_nodes(ring())]
fn look_up(ring: Ring) -> Ring {
    black_box(ring.place_hash(key_hash(black_box("scores"), black_box(KEY))));
    ring
}

#[library_benchmark]
#[bench::of_16(request_writer())]
fn requests_written(mut writer: RequestWriter) -> (RequestFrame, RequestWriter) {
    (write_request(&mut writer), writer)
}

#[library_benchmark]
#[bench::of_16(write_request(&mut request_writer()))]
fn requests_read(frame: RequestFrame) -> RequestFrame {
    black_box(frame.fields().map(Result::unwrap).map(black_box).count());
    frame
}

#[library_benchmark]
#[bench::of_16(response_writer())]
fn responses_written(mut writer: ResponseWriter) -> (ResponseFrame, ResponseWriter) {
    (write_response(&mut writer), writer)
}

#[library_benchmark]
#[bench::of_16(write_response(&mut response_writer()))]
fn responses_read(frame: ResponseFrame) -> ResponseFrame {
    black_box(frame.fields().map(Result::unwrap).map(black_box).count());
    frame
}

library_benchmark_group!(
    name = way_of_a_get,
    benchmarks = [look_up, requests_written, requests_read, responses_written, responses_read]
);
main!(library_benchmark_groups = way_of_a_get);
