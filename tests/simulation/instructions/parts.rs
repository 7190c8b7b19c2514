//! The parts on the way of a get, each run so many times.

use std::hint::black_box;
use std::time::Duration;

use peanut_client::fuzzing::GetsOfALane;
use peanut_client::ring::{Ring, key_hash};
use peanut_proto::frame::{GetManyOperation, RequestFrame, RequestWriter, ResponseWriter};
use peanut_proto::numbers::RingVersion;
use peanut_proto::v1::OnMiss;
use peanut_server::store::{Entry, Eviction, Origin, Store, Value};
use tokio::time::Instant;

/// What the client's benches measure by the clock is counted here.
#[path = "../../../client/benches/parts/mod.rs"]
mod measured;

use measured::{KEY, document, request, response};

const VALUE: &[u8] = &[b'v'; 100];
/// Operations of a frame, and keys of an operation of many.
const OF_A_FRAME: u32 = 16;
const OF_MANY: u32 = 100;
/// Turns of what is done one by one: many, since what comes before them is not always the same.
const ALONE: u32 = 1_000;

/// A part: its name, for how many operations one turn of it counts, and the turn.
pub(crate) type Part = (&'static str, u32, fn(u32));

pub(crate) const PARTS: [Part; 9] = [
    ("route", ALONE, route),
    ("request written", OF_A_FRAME, requests_written),
    ("request read", OF_A_FRAME, requests_read),
    ("request of many keys written", OF_MANY, many_written),
    ("request of many keys read", OF_MANY, many_read),
    ("answer written", OF_A_FRAME, answers_written),
    ("answer read", OF_A_FRAME, answers_read),
    ("lane: pushed, sent and taken", OF_A_FRAME, lane),
    ("store: hit", ALONE, hit),
];

fn route(times: u32) {
    let ring = Ring::new(&document(100, 1024));
    for _ in 0..times * ALONE {
        black_box(ring.place_hash(key_hash(black_box("scores"), black_box(KEY))));
    }
}

fn requests_of_many(writer: &mut RequestWriter) -> RequestFrame {
    let owned_since = RingVersion(7);
    let get = GetManyOperation {
        id: 1,
        group: 0,
        deadline_ms: 5000,
        owned_since,
        on_miss: OnMiss::Load,
        traceparent: "",
    };
    writer.get_many(black_box(&get), (0..OF_MANY).map(|_| black_box(KEY)));
    writer.take()
}

fn requests_written(times: u32) {
    let mut writer = RequestWriter::default();
    (0..times).for_each(|_| drop(black_box(request(&mut writer, OF_A_FRAME))));
}

fn requests_read(times: u32) {
    let frame = request(&mut RequestWriter::default(), OF_A_FRAME);
    read(&frame, times);
}

fn many_written(times: u32) {
    let mut writer = RequestWriter::default();
    (0..times).for_each(|_| drop(black_box(requests_of_many(&mut writer))));
}

fn many_read(times: u32) {
    let frame = requests_of_many(&mut RequestWriter::default());
    read(&frame, times);
}

fn read(frame: &RequestFrame, times: u32) {
    for _ in 0..times {
        let mut reader = black_box(frame).clone().into_reader();
        while let Some(field) = reader.next_field() {
            let _ = black_box(field);
        }
    }
}

fn answers_written(times: u32) {
    let mut writer = ResponseWriter::default();
    (0..times).for_each(|_| drop(black_box(response(&mut writer, OF_A_FRAME))));
}

fn answers_read(times: u32) {
    let frame = response(&mut ResponseWriter::default(), OF_A_FRAME);
    for _ in 0..times {
        black_box(black_box(&frame).fields().map(black_box).count());
    }
}

fn lane(times: u32) {
    let mut lane = GetsOfALane::new();
    (0..times).for_each(|_| lane.turn(OF_A_FRAME));
}

fn hit(times: u32) {
    let now = Instant::now();
    let store = Store::new(64 << 20, Eviction::S3Fifo, now);
    let entry = Entry {
        value: Some(Value::from(VALUE)),
        loaded: now,
        expires: now + Duration::from_secs(3600),
        stamp: RingVersion(1),
        origin: Origin::Owner,
    };
    store.insert(KEY, &entry);
    for _ in 0..times * ALONE {
        black_box(store.get(black_box(KEY), Origin::Owner, RingVersion(1), now));
    }
}
