//! The reader against every cut of what comes, hostile headers, and `redis-protocol`.

use proptest::prelude::*;
use redis_protocol::resp2::decode::decode_bytes;
use redis_protocol::resp2::types::BytesFrame;

use super::*;

/// All requests of what comes in pieces.
fn read(pieces: &[&[u8]], limits: &Limits) -> Result<Vec<Vec<Bytes>>, Malformed> {
    let (mut reader, mut buffer, mut requests) = (Reader::default(), BytesMut::new(), Vec::new());
    for piece in pieces {
        buffer.extend_from_slice(piece);
        while let Some(request) = reader.next(&mut buffer, limits)? {
            requests.push(request);
        }
    }
    Ok(requests)
}

fn strings(requests: &[Vec<Bytes>]) -> Vec<Vec<&[u8]>> {
    requests.iter().map(|request| request.iter().map(|it| &it[..]).collect()).collect()
}

#[test]
fn a_pipeline_is_the_same_however_it_is_cut() {
    let bytes = b"*2\r\n$3\r\nGET\r\n$3\r\na:b\r\n*0\r\n\r\nPING  hi\r\n*-1\r\n*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$4\r\n\r\n\r\n\r\n";
    let whole: Vec<Vec<&[u8]>> =
        vec![vec![b"GET", b"a:b"], vec![b"PING", b"hi"], vec![b"SET", b"k", b"\r\n\r\n"]];
    for cut in 0..=bytes.len() {
        let (before, after) = bytes.split_at(cut);
        let requests = read(&[before, after], &Limits::ADMITTED).unwrap();
        assert_eq!(strings(&requests), whole, "cut at {cut}");
    }
    let bytewise: Vec<&[u8]> = bytes.chunks(1).collect();
    assert_eq!(strings(&read(&bytewise, &Limits::ADMITTED).unwrap()), whole);
}

#[test]
fn what_is_no_request_or_too_long_is_refused_before_it_has_come() {
    let limits = Limits { arguments: 3, argument_bytes: 10, bytes: 30 };
    let refused = |bytes: &[u8]| read(&[bytes], &limits).unwrap_err().message();
    assert_eq!(refused(b"*4\r\n"), "ERR Protocol error: invalid multibulk length");
    assert_eq!(refused(b"*9223372036854775808\r\n"), "ERR Protocol error: invalid multibulk length");
    assert_eq!(refused(b"*x\r\n"), "ERR Protocol error: invalid multibulk length");
    assert_eq!(refused(&[b'*'; 40]), "ERR Protocol error: invalid multibulk length");
    assert_eq!(refused(b"*1\r\n*1\r\n$1\r\na\r\n"), "ERR Protocol error: expected '$', got '*'");
    assert_eq!(refused(b"*1\r\n$11\r\n"), "ERR Protocol error: invalid bulk length");
    assert_eq!(refused(b"*1\r\n$-1\r\n"), "ERR Protocol error: invalid bulk length");
    assert_eq!(refused(b"*1\r\n$1\r\nabc"), "ERR Protocol error: a string is longer than it says");
    assert_eq!(refused(b"*3\r\n$10\r\n0123456789\r\n$10\r\n"), "ERR Protocol error: the request is too long");
    assert_eq!(refused(b"a b c d\n"), "ERR Protocol error: too many words in a line");
    assert_eq!(refused(&vec![b'a'; MAX_LINE_BYTES]), "ERR Protocol error: too big inline request");
}

#[test]
fn an_array_in_an_array_without_end_takes_no_stack() {
    let nested = b"*1\r\n".repeat(1 << 20);
    assert!(read(&[&nested], &Limits::ADMITTED).is_err());
}

proptest! {
    #[test]
    fn requests_are_what_redis_protocol_reads(
        arguments in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..40), 1..9),
        cut in any::<prop::sample::Index>(),
    ) {
        let mut bytes = format!("*{}\r\n", arguments.len()).into_bytes();
        for argument in &arguments {
            bytes.extend(format!("${}\r\n", argument.len()).bytes());
            bytes.extend(argument);
            bytes.extend(b"\r\n");
        }
        let (before, after) = bytes.split_at(cut.index(bytes.len()));
        let requests = read(&[before, after], &Limits::ADMITTED).unwrap();
        prop_assert_eq!(&requests, &vec![arguments.iter().cloned().map(Bytes::from).collect::<Vec<_>>()]);
        let (frame, length) = decode_bytes(&Bytes::from(bytes.clone())).unwrap().unwrap();
        prop_assert_eq!(length, bytes.len());
        let strings = requests[0].iter().cloned().map(BytesFrame::BulkString).collect();
        prop_assert_eq!(frame, BytesFrame::Array(strings));
    }

    #[test]
    fn any_bytes_come_to_an_end(bytes in prop::collection::vec(prop::sample::select(b"*$-0123\r\nab ".to_vec()), 0..200)) {
        let _ = read(&[&bytes], &Limits { arguments: 4, argument_bytes: 8, bytes: 64 });
    }
}
