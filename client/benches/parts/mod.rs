//! What the benches measure: rings of equal nodes, and frames of operations like those of an application.

#![allow(dead_code, reason = "each bench uses a part of it")]

use std::hint::black_box;

use peanut_proto::frame::{
    AnswerFields, GetOperation, RequestFrame, RequestWriter, ResponseFrame, ResponseWriter,
};
use peanut_proto::membership::{NodeInfo, RingDocument};
use peanut_proto::numbers::{FillToken, RingVersion};
use peanut_proto::v1::{OnMiss, Outcome};

pub(crate) const KEY: &[u8] = b"user:1234567";

/// The document of a ring of equal nodes.
pub(crate) fn document(nodes: usize, points: u32) -> RingDocument {
    (0..nodes).fold(RingDocument::empty(points), |ring, n| {
        let id = format!("10.0.{}.{}:9999", n / 250, n % 250);
        let node = NodeInfo { addr: id.clone(), id, zone: String::new(), weight: 1 };
        ring.with(&node, 0).expect("a new node")
    })
}

/// Writes a frame of gets.
pub(crate) fn request(writer: &mut RequestWriter, operations: u32) -> RequestFrame {
    for id in 0..operations {
        let get = GetOperation {
            id,
            group: 0,
            key: KEY,
            deadline_ms: 5000,
            owned_since: RingVersion(7),
            failover: false,
            on_miss: OnMiss::Load,
            token: FillToken::NONE,
            near: false,
            traceparent: "",
        };
        writer.get(black_box(&get));
    }
    writer.take()
}

/// Writes a frame of answers with values of 100 bytes.
pub(crate) fn response(writer: &mut ResponseWriter, operations: u32) -> ResponseFrame {
    for id in 0..operations {
        let fields = AnswerFields {
            position: 0,
            id,
            outcome: Outcome::Hit,
            age_ms: 10,
            ttl_ms: 60_000,
            near_ms: 0,
            token: FillToken::NONE,
            value_bytes: 0,
            written: false,
            sequence: 0,
        };
        writer.answer(black_box(&fields), black_box(&[b'v'; 100]));
    }
    writer.take()
}
