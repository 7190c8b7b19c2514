//! Instructions of the parts on the way of a get, counted by callgrind: the same on every run, also on a busy
//! machine. gungraun compares each run with the one before. `cargo xtask bench instructions`.

#![allow(
    missing_docs,
    unused_qualifications,
    reason = "gungraun's macros make undocumented items and name them in full"
)]

mod parts;

use std::hint::black_box;

use gungraun::{library_benchmark, library_benchmark_group, main};
use peanut_client::ring::{Ring, key_hash};
use peanut_proto::frame::{RequestFrame, RequestWriter, ResponseFrame, ResponseWriter};

use parts::{KEY, document, request, response};

const OPERATIONS: u32 = 16;

fn ring() -> Ring {
    Ring::new(&document(100, 4096))
}

fn write_request(writer: &mut RequestWriter) -> RequestFrame {
    request(writer, OPERATIONS)
}

fn write_response(writer: &mut ResponseWriter) -> ResponseFrame {
    response(writer, OPERATIONS)
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
