//! Frames as released versions wrote them, read by this one: what is on the wire never changes its meaning.
//!
//! `proto/testdata/frames.txt` has a line for each: a name, and the bytes in hexadecimal digits. Lines are
//! added and never changed.

use std::fmt::Write as _;
use std::path::Path;

use super::*;
use crate::numbers::{FillToken, Generation, RingVersion};
use crate::v1::{ErrorCode, Near, OnMiss, Outcome};

/// A request frame of each kind, by name.
#[expect(clippy::too_many_lines, reason = "a list")]
fn requests() -> Vec<(&'static str, RequestFrame)> {
    let frame = |write: &dyn Fn(&mut RequestWriter)| {
        let mut writer = RequestWriter::default();
        write(&mut writer);
        writer.take()
    };
    let get = GetOperation {
        id: 7,
        group: 2,
        key: b"Tom",
        deadline_ms: 950,
        owned_since: RingVersion(41),
        failover: false,
        on_miss: OnMiss::Load,
        token: FillToken::NONE,
        near: false,
        traceparent: "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
    };
    let written = |write| WriteOperation { id: 9, group: 2, deadline_ms: 900, failover: true, write };
    vec![
        (
            "request-open",
            frame(&|to| {
                to.open(0x1234_5678_9abc_def0, 0);
                to.ring_version(RingVersion(42));
                to.group(2, "scores", Near::Off);
                to.waited_ms(3);
                to.get(&GetOperation { ..get });
                to.ping();
            }),
        ),
        (
            "request-lease",
            frame(&|to| to.get(&GetOperation { on_miss: OnMiss::Lease, failover: true, ..get })),
        ),
        (
            "request-peek",
            frame(&|to| to.get(&GetOperation { on_miss: OnMiss::Peek, token: FillToken(99), ..get })),
        ),
        (
            "request-set",
            frame(&|to| {
                let (key, outcome) = (&b"Tom"[..], Filled::Value(b"630"));
                to.write(&written(Write::Set { key, outcome, ttl_ms: 60_000, token: FillToken(77) }));
                for (outcome, token) in
                    [(Filled::NotFound, FillToken(78)), (Filled::Failed("no"), FillToken(79))]
                {
                    to.write(&written(Write::Set { key, outcome, ttl_ms: 0, token }));
                }
            }),
        ),
        (
            "request-replace",
            frame(&|to| {
                let (key, value, ttl_ms, sequence) = (&b"Tom"[..], &b"630"[..], 60_000, 12);
                to.write(&written(Write::ReplaceOrForget { key, value, ttl_ms, sequence }));
                to.write(&written(Write::Replace { key, value, ttl_ms, sequence }));
            }),
        ),
        (
            "request-many",
            frame(&|to| {
                let owned_since = RingVersion(41);
                let many = GetManyOperation {
                    id: 7,
                    group: 2,
                    deadline_ms: 950,
                    owned_since,
                    on_miss: OnMiss::Load,
                    traceparent: "",
                };
                to.get_many(&many, [&b"Tom"[..], b"Jack"].into_iter());
            }),
        ),
        (
            "request-write-many",
            frame(&|to| {
                let (key, value, ttl_ms, sequence) = (&b"Tom"[..], &b"630"[..], 60_000, 12);
                let replace = Write::Replace { key, value, ttl_ms, sequence };
                let delete = Write::Delete { key: b"Jack", then_set: true, sequence: 0 };
                to.write_many((9, 2, 900), [replace, delete].iter());
            }),
        ),
        (
            "request-near",
            frame(&|to| {
                to.open(0x1234_5678_9abc_def0, 2_000);
                to.group(2, "scores", Near::All);
                to.get(&GetOperation { near: true, traceparent: "", ..get });
                to.near_renewal(3);
                to.near_confirmed(2);
            }),
        ),
        (
            "request-delete",
            frame(&|to| {
                to.write(&written(Write::Delete { key: b"Tom", then_set: false, sequence: 0 }));
                to.write(&written(Write::Delete { key: b"Tom", then_set: true, sequence: 12 }));
                to.write(&written(Write::Clear { generation: Generation(1_764_000_000_000) }));
                to.write(&written(Write::Release { token: FillToken(77) }));
            }),
        ),
    ]
}

/// A frame of answers of each kind, by name.
fn responses() -> Vec<(&'static str, ResponseFrame)> {
    let frame = |write: &dyn Fn(&mut ResponseWriter)| {
        let mut writer = ResponseWriter::default();
        write(&mut writer);
        writer.take()
    };
    let answer =
        AnswerFields { id: 7, outcome: Outcome::Hit, age_ms: 1500, ttl_ms: 8500, ..AnswerFields::default() };
    vec![
        (
            "response-hit",
            frame(&|to| {
                to.ring_version(RingVersion(43));
                to.answer(&answer, b"630");
                to.answer(&AnswerFields { outcome: Outcome::NotFound, ..answer }, b"");
                to.pong();
            }),
        ),
        (
            "response-fill",
            frame(&|to| {
                let fields =
                    AnswerFields { outcome: Outcome::Fill, token: FillToken(77), written: true, ..answer };
                to.answer(&fields, b"");
                to.answer(&AnswerFields { outcome: Outcome::Done, sequence: 12, ..answer }, b"");
            }),
        ),
        (
            "response-failure",
            frame(&|to| {
                to.failure(Target { id: 7, position: 0 }, ErrorCode::LoaderFailed, "no such table");
            }),
        ),
        (
            "response-near",
            frame(&|to| {
                to.answer(&AnswerFields { near_ms: 10_000, ..answer }, b"630");
                to.invalidation(2, &[0x1234_5678_9abc_def0, 7]);
                to.invalidation(3, &[]);
                to.near_renewed(4, false);
                to.near_renewed(5, true);
            }),
        ),
        ("response-closing", frame(&ResponseWriter::closing)),
    ]
}

fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

fn bytes(text: &str) -> bytes::Bytes {
    let digits: Vec<u8> = text.bytes().collect();
    let byte = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap();
    digits.chunks(2).map(byte).collect::<Vec<u8>>().into()
}

#[test]
fn frames_of_released_versions_mean_what_they_meant() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/frames.txt");
    let mut corpus = std::fs::read_to_string(&path).unwrap_or_default();
    let now: Vec<(&str, bytes::Bytes)> = requests()
        .into_iter()
        .map(|(name, frame)| (name, frame.0))
        .chain(responses().into_iter().map(|(name, frame)| (name, frame.0)))
        .collect();
    if std::env::var_os("PEANUT_WRITE_CORPUS").is_some() {
        for (name, frame) in &now {
            let _ = writeln!(corpus, "{name} {}", hexadecimal(frame));
        }
        std::fs::write(&path, &corpus).unwrap();
    }
    let mut read = 0;
    for line in corpus.lines() {
        let (name, then) = line.split_once(' ').unwrap();
        let (_, now) = now.iter().find(|(of, _)| *of == name).expect("a frame of each kind is written still");
        // How it is written may change, what is read may not.
        let fields = |frame: bytes::Bytes| -> Vec<String> {
            if name.starts_with("request") {
                RequestFrame(frame).fields().map(|field| format!("{:?}", field.unwrap())).collect()
            } else {
                ResponseFrame(frame).fields().map(|field| format!("{:?}", field.unwrap())).collect()
            }
        };
        assert_eq!(fields(bytes(then)), fields(now.clone()), "{name}");
        read += 1;
    }
    assert!(read >= 9, "{read} frames");
}
