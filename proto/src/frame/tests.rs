//! The hand-written codec against prost, both ways, and against nonsense.

use bytes::Bytes;
use proptest::prelude::*;
use prost::Message;

use super::*;
use crate::numbers::{FillToken, Generation, RingVersion};
use crate::v1;
use crate::v1::OnMiss;
use crate::v1::operation::Kind;
use crate::v1::{ErrorCode, Near, Outcome};

/// The messages as prost would have them, to hold the hand-written codec against.
#[derive(Clone, PartialEq, Message)]
struct LaneRequest {
    #[prost(message, optional, tag = "1")]
    open: Option<v1::LaneOpen>,
    #[prost(uint64, tag = "2")]
    ring_version: u64,
    #[prost(message, repeated, tag = "3")]
    groups: Vec<v1::GroupName>,
    #[prost(uint32, tag = "4")]
    waited_ms: u32,
    #[prost(message, repeated, tag = "5")]
    operations: Vec<v1::Operation>,
    #[prost(bool, tag = "6")]
    ping: bool,
    #[prost(message, repeated, tag = "7")]
    get_many: Vec<v1::GetMany>,
    #[prost(message, repeated, tag = "8")]
    write_many: Vec<v1::WriteMany>,
    #[prost(uint64, tag = "9")]
    near_renewal: u64,
    #[prost(uint64, tag = "10")]
    near_confirmed: u64,
}

#[derive(Clone, PartialEq, Message)]
struct LaneResponse {
    #[prost(uint64, tag = "1")]
    ring_version: u64,
    #[prost(message, repeated, tag = "2")]
    answers: Vec<v1::Answer>,
    #[prost(message, repeated, tag = "3")]
    invalidations: Vec<v1::Invalidation>,
    #[prost(bool, tag = "4")]
    closing: bool,
    #[prost(bool, tag = "5")]
    pong: bool,
    #[prost(message, optional, tag = "6")]
    near_renewed: Option<v1::NearRenewed>,
}

fn operations() -> impl Strategy<Value = Vec<v1::Operation>> {
    let key = prop::collection::vec(any::<u8>(), 0..200);
    let get = (
        any::<u32>(),
        any::<u32>(),
        key.clone(),
        any::<u32>(),
        any::<u64>(),
        any::<bool>(),
        0..3i32,
        any::<u64>(),
        "|[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-01",
    );
    let get =
        get.prop_map(|(id, group, key, deadline_ms, owned_since, failover, on_miss, token, traceparent)| {
            v1::Operation {
                id,
                group,
                key: key.into(),
                deadline_ms,
                owned_since,
                failover,
                on_miss,
                token,
                traceparent,
                ..v1::Operation::default()
            }
        });
    let value = prop::collection::vec(any::<u8>(), 0..300);
    let write =
        (any::<u32>(), 1..5i32, key, any::<bool>(), value, any::<u64>(), any::<u64>(), 0..3u8, "\\PC{1,40}");
    let write = write.prop_map(|(id, kind, key, failover, value, number, token, filled, message)| {
        let base = v1::Operation { id, kind, group: 3, deadline_ms: 7, failover, ..v1::Operation::default() };
        match (base.kind(), filled) {
            (Kind::Clear, _) => v1::Operation { generation: number, ..base },
            (Kind::Delete, filled) => {
                let on_miss = if filled == 0 { OnMiss::Lease } else { OnMiss::Load }.into();
                v1::Operation { key: key.into(), on_miss, generation: number, ..base }
            }
            (Kind::Release, _) => v1::Operation { token, ..base },
            (_, 0) if failover && number > 0 => {
                let on_miss = if token % 2 == 0 { OnMiss::Lease } else { OnMiss::Load }.into();
                v1::Operation {
                    key: key.into(),
                    value: value.into(),
                    ttl_ms: 5,
                    generation: number,
                    on_miss,
                    ..base
                }
            }
            (_, 0) => v1::Operation { key: key.into(), value: value.into(), ttl_ms: number, token, ..base },
            (_, 1) => v1::Operation { key: key.into(), not_found: true, ttl_ms: number, token, ..base },
            (_, _) => v1::Operation { key: key.into(), load_error: message, ttl_ms: number, token, ..base },
        }
    });
    let one = prop_oneof![get, write];
    prop::collection::vec(one, 0..20)
}

fn answers() -> impl Strategy<Value = Vec<v1::Answer>> {
    let value = prop::collection::vec(any::<u8>(), 0..300);
    let one = (
        any::<u32>(),
        0..10i32,
        value,
        any::<u64>(),
        any::<u64>(),
        any::<u64>(),
        any::<u64>(),
        any::<Option<String>>(),
        any::<u32>(),
    );
    let one =
        one.prop_map(|(id, outcome, value, age_ms, ttl_ms, token, value_bytes, error, key)| match error {
            None => v1::Answer {
                id,
                outcome,
                value: value.into(),
                age_ms,
                ttl_ms,
                near_ms: key,
                token,
                value_bytes,
                key,
                written: key % 2 == 1,
                sequence: token,
                ..v1::Answer::default()
            },
            Some(message) => {
                let error = v1::Error { code: ErrorCode::LoaderFailed.into(), message };
                v1::Answer {
                    id,
                    outcome: Outcome::Failed.into(),
                    error: Some(error),
                    key,
                    ..v1::Answer::default()
                }
            }
        });
    prop::collection::vec(one, 0..20)
}

/// `None`: it is a get.
fn write_of(o: &v1::Operation) -> Option<Write<'_>> {
    let outcome = match (&*o.load_error, o.not_found) {
        ("", false) => Filled::Value(&o.value),
        ("", true) => Filled::NotFound,
        (message, _) => Filled::Failed(message),
    };
    Some(match o.kind() {
        Kind::Get => return None,
        Kind::Set if o.generation != 0 => {
            let (key, value, ttl_ms, sequence) = (&o.key, &o.value, o.ttl_ms, o.generation);
            match o.on_miss() {
                OnMiss::Lease => Write::Replace { key, value, ttl_ms, sequence },
                _ => Write::ReplaceOrForget { key, value, ttl_ms, sequence },
            }
        }
        Kind::Set => Write::Set { key: &o.key, outcome, ttl_ms: o.ttl_ms, token: FillToken(o.token) },
        Kind::Delete => {
            let then_set = o.on_miss() == OnMiss::Lease;
            Write::Delete { key: &o.key, then_set, sequence: o.generation }
        }
        Kind::Clear => Write::Clear { generation: Generation(o.generation) },
        Kind::Release => Write::Release { token: FillToken(o.token) },
    })
}

/// What a server reads.
fn read_of(o: v1::Operation) -> Operation {
    let (kind, on_miss) = (o.kind(), o.on_miss());
    let rare = Rare {
        value: o.value,
        ttl_ms: o.ttl_ms,
        not_found: o.not_found,
        load_error: o.load_error,
        raised: o.generation,
        traceparent: o.traceparent.into(),
    };
    Operation {
        id: o.id,
        position: 0,
        kind,
        group: o.group,
        key: o.key,
        deadline_ms: o.deadline_ms,
        on_miss,
        owned_since: RingVersion(o.owned_since),
        failover: o.failover,
        token: FillToken(o.token),
        rare: (rare != Rare::default()).then(|| Box::new(rare)),
    }
}

/// Fields of a frame of operations of many keys: as one reads them at once, and with pauses.
fn read_both_ways(frame: &RequestFrame) -> Vec<RequestField<'_>> {
    let mut fields: Vec<_> = frame.fields().map(Result::unwrap).collect();
    // As others write it, the ping stands first.
    fields.sort_by_key(|field| matches!(field, RequestField::Ping));
    let mut reader = frame.clone().into_reader();
    let read = (0..fields.len()).filter(|_| {
        let may_be = reader.is_at_operation();
        let is_operation = matches!(reader.next_field(), Some(Ok(RequestField::Operation(_))));
        assert!(may_be || !is_operation);
        is_operation
    });
    assert_eq!(read.count(), fields.len() - 1);
    fields
}

proptest! {
    #[test]
    fn requests_are_what_generated_code_reads_and_writes(
        operations in operations(), version in any::<u64>(), name in "\\PC{0,40}", waited_ms in any::<u32>(),
        client_id in any::<u64>(), near_staleness_ms in any::<u32>(), near in 0..3i32, renewal in 1..u64::MAX,
    ) {
        let near = Near::try_from(near).unwrap();
        let mut writer = RequestWriter::default();
        writer.open(client_id, near_staleness_ms);
        writer.ring_version(RingVersion(version));
        writer.group(7, &name, near);
        writer.waited_ms(waited_ms);
        for o in &operations {
            let Some(write) = write_of(o) else {
                writer.get(&GetOperation {
                    id: o.id, group: o.group, key: &o.key, deadline_ms: o.deadline_ms,
                    owned_since: RingVersion(o.owned_since), failover: o.failover, on_miss: o.on_miss(), token: FillToken(o.token),
                    near: o.generation != 0, traceparent: &o.traceparent,
                });
                continue;
            };
            let (id, group, deadline_ms, failover) = (o.id, o.group, o.deadline_ms, o.failover);
            writer.write(&WriteOperation { id, group, deadline_ms, failover, write });
        }
        writer.ping();
        writer.near_renewal(renewal);
        writer.near_confirmed(renewal);
        let read = LaneRequest::decode(writer.take().0).unwrap();
        prop_assert_eq!(&read, &LaneRequest {
            open: Some(v1::LaneOpen { client_id, near_staleness_ms }),
            ring_version: version,
            groups: vec![v1::GroupName { number: 7, name: name.clone(), near: near.into() }],
            operations: operations.clone(),
            waited_ms,
            ping: true,
            get_many: vec![],
            write_many: vec![],
            near_renewal: renewal,
            near_confirmed: renewal,
        });

        let whole = LaneRequest { operations: operations.clone(), ..read };
        let frame = RequestFrame(whole.encode_to_vec().into());
        let mut fields = frame.fields().map(Result::unwrap);
        prop_assert_eq!(fields.next(), Some(RequestField::Open { client_id, near_staleness_ms }));
        if version != 0 {
            prop_assert_eq!(fields.next(), Some(RequestField::RingVersion(RingVersion(version))));
        }
        prop_assert_eq!(fields.next(), Some(RequestField::Group(7, &name, near)));
        if waited_ms != 0 {
            prop_assert_eq!(fields.next(), Some(RequestField::WaitedMs(waited_ms)));
        }
        for o in operations {
            prop_assert_eq!(fields.next(), Some(RequestField::Operation(read_of(o))));
        }
        prop_assert_eq!(fields.next(), Some(RequestField::Ping));
        prop_assert_eq!(fields.next(), Some(RequestField::NearRenewal(renewal)));
        prop_assert_eq!(fields.next(), Some(RequestField::NearConfirmed(renewal)));
        prop_assert_eq!(fields.next(), None);
        drop(fields);
        // With pauses the same.
        let mut reader = frame.clone().into_reader();
        for field in frame.fields() {
            let is_operation = reader.is_at_operation();
            prop_assert_eq!(is_operation, matches!(field, Ok(RequestField::Operation(_))));
            prop_assert_eq!(reader.next_field(), Some(field));
        }
        prop_assert_eq!(reader.next_field(), None);
    }

    #[test]
    fn gets_of_many_keys_are_what_generated_code_reads_and_writes_and_an_operation_for_each(
        gets in prop::collection::vec((any::<u32>(), any::<u32>(), any::<u32>(), any::<u64>(), "|[0-9a-f]{9}", 0..3i32,
            prop::collection::vec(prop::collection::vec(any::<u8>(), 0..200), 0..9)), 0..4),
    ) {
        let gets: Vec<_> = gets.into_iter().map(|(id, group, deadline_ms, owned_since, traceparent, on_miss, keys)| {
            let keys = keys.into_iter().map(Bytes::from).collect();
            v1::GetMany { id, group, deadline_ms, owned_since, traceparent, keys, on_miss }
        }).collect();
        let mut writer = RequestWriter::default();
        for get in &gets {
            let v1::GetMany { id, group, deadline_ms, owned_since, ref traceparent, .. } = *get;
            let (owned_since, on_miss) = (RingVersion(owned_since), get.on_miss());
            let many = GetManyOperation { id, group, deadline_ms, owned_since, on_miss, traceparent };
            writer.get_many(&many, get.keys.iter().map(|key| &key[..]));
        }
        writer.ping();
        let written = writer.take();
        let read = LaneRequest::decode(written.0.clone()).unwrap();
        prop_assert_eq!(&read.get_many, &gets);
        let expected: Vec<_> = gets.iter().flat_map(|get| (0..).zip(&get.keys).map(|(position, key)| {
            let traceparent = Bytes::from(get.traceparent.clone());
            let rare = Rare { traceparent, ..Rare::default() };
            Operation {
                id: get.id, position, kind: Kind::Get, group: get.group, key: key.clone(), deadline_ms: get.deadline_ms,
                on_miss: get.on_miss(), owned_since: RingVersion(get.owned_since), failover: false,
                token: FillToken::NONE, rare: (rare != Rare::default()).then(|| Box::new(rare)),
            }
        })).map(RequestField::Operation).chain([RequestField::Ping]).collect();
        let theirs = RequestFrame(read.encode_to_vec().into());
        for frame in [written, theirs] {
            prop_assert_eq!(&read_both_ways(&frame), &expected);
        }
    }

    #[test]
    fn writes_of_many_keys_are_what_generated_code_reads_and_writes_and_an_operation_for_each(
        all in prop::collection::vec((any::<u32>(), any::<u32>(), any::<u32>(), operations()), 0..4),
    ) {
        let all: Vec<_> = all.into_iter().map(|(id, group, deadline_ms, writes)| {
            let bare = |write| v1::Operation { id: 0, group: 0, deadline_ms: 0, failover: false, ..write };
            let writes = writes.into_iter().filter(|one| one.kind() != Kind::Get).map(bare).collect();
            v1::WriteMany { id, group, deadline_ms, writes }
        }).collect();
        let mut writer = RequestWriter::default();
        for many in &all {
            let writes: Vec<_> = many.writes.iter().filter_map(write_of).collect();
            writer.write_many((many.id, many.group, many.deadline_ms), writes.iter());
        }
        writer.ping();
        let written = writer.take();
        let read = LaneRequest::decode(written.0.clone()).unwrap();
        prop_assert_eq!(&read.write_many, &all);
        let expected: Vec<_> = all.iter().flat_map(|many| (0..).zip(&many.writes).map(|(position, write)| {
            let (id, group, deadline_ms) = (many.id, many.group, many.deadline_ms);
            Operation { id, group, deadline_ms, position, ..read_of(write.clone()) }
        })).map(RequestField::Operation).chain([RequestField::Ping]).collect();
        let theirs = RequestFrame(read.encode_to_vec().into());
        for frame in [written, theirs] {
            prop_assert_eq!(&read_both_ways(&frame), &expected);
        }
    }

    #[test]
    fn responses_are_what_generated_code_reads_and_writes(
        answers in answers(), version in 1..u64::MAX, number in any::<u64>(), is_new in any::<bool>(),
        keys in prop::collection::vec(prop::collection::vec(any::<u64>(), 0..9), 0..4),
    ) {
        let mut writer = ResponseWriter::default();
        writer.ring_version(RingVersion(version));
        for a in &answers {
            match &a.error {
                Some(error) => writer.failure(Target { id: a.id, position: a.key }, ErrorCode::LoaderFailed, &error.message),
                None => writer.answer(
                    &AnswerFields {
                        id: a.id, position: a.key, outcome: a.outcome(), age_ms: a.age_ms, ttl_ms: a.ttl_ms, near_ms: a.near_ms, token: FillToken(a.token),
                        value_bytes: a.value_bytes, written: a.written, sequence: a.sequence,
                    },
                    &a.value,
                ),
            }
        }
        keys.iter().for_each(|keys| writer.invalidation(number, keys));
        writer.closing();
        writer.pong();
        writer.near_renewed(number, is_new);
        let invalidations = keys.iter().map(|keys| v1::Invalidation { number, keys: keys.clone() }).collect();
        let near_renewed = Some(v1::NearRenewed { number, is_new });
        let expected = LaneResponse {
            ring_version: version, answers: answers.clone(), invalidations, closing: true, pong: true, near_renewed,
        };
        prop_assert_eq!(LaneResponse::decode(writer.take().0).unwrap(), expected.clone());

        let frame = ResponseFrame(expected.encode_to_vec().into());
        let mut fields = frame.fields().map(Result::unwrap);
        prop_assert_eq!(fields.next(), Some(ResponseField::RingVersion(RingVersion(version))));
        for a in answers {
            let expected = match &a.error {
                Some(error) => ResponseField::Failure {
                    to: Target { id: a.id, position: a.key }, code: ErrorCode::LoaderFailed, message: &error.message,
                },
                None => ResponseField::Answer(
                    AnswerFields {
                        id: a.id, position: a.key, outcome: a.outcome(), age_ms: a.age_ms, ttl_ms: a.ttl_ms, near_ms: a.near_ms, token: FillToken(a.token),
                        value_bytes: a.value_bytes, written: a.written, sequence: a.sequence,
                    },
                    a.value.clone(),
                ),
            };
            prop_assert_eq!(fields.next(), Some(expected));
        }
        for expected in keys {
            let Some(ResponseField::Invalidation { number: read, keys }) = fields.next() else { panic!("no invalidation") };
            prop_assert_eq!((read, keys.is_all()), (number, expected.is_empty()));
            prop_assert_eq!(keys.hashes().collect::<Vec<_>>(), expected);
        }
        prop_assert_eq!(fields.next(), Some(ResponseField::Closing));
        prop_assert_eq!(fields.next(), Some(ResponseField::Pong));
        prop_assert_eq!(fields.next(), Some(ResponseField::NearRenewed { number, is_new }));
        prop_assert_eq!(fields.next(), None);
    }

    #[test]
    fn nonsense_is_refused_and_ends(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let bytes = Bytes::from(bytes);
        let frame = RequestFrame(bytes.clone());
        let mut reader = frame.clone().into_reader();
        for field in frame.fields() {
            assert_eq!(reader.next_field(), Some(field));
        }
        assert_eq!(reader.next_field(), None);
        for field in ResponseFrame(bytes).fields() {
            let _ = field;
        }
    }
}

#[test]
fn a_value_is_a_slice_of_its_frame() {
    let mut writer = ResponseWriter::default();
    writer.answer(&AnswerFields { id: 1, outcome: Outcome::Hit, ..AnswerFields::default() }, b"value");
    let frame = writer.take();
    let Some(Ok(ResponseField::Answer(_, value))) = frame.fields().next() else {
        panic!("an answer was written")
    };
    assert!(frame.0.as_ptr_range().contains(&value.as_ptr()));
}
