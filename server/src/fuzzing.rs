//! What fuzzers drive: the code that runs, from where a stranger's bytes come in. With the feature `fuzzing`
//! only, and not for applications.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Buf as _, Bytes};
use http_body::{Body as _, Frame};
use peanut_proto::frame::{FRAME_BYTES, ResponseField, ResponseFrame};
use peanut_proto::limits::MAX_MESSAGE_BYTES;
use peanut_proto::v1::peanut_server::PeanutServer;
use tonic::body::Body;
use tonic::codegen::{Service as _, http};
use tonic::service::interceptor::InterceptedService;

use crate::connections::Peer;
use crate::node::Node;
use crate::{Group, StaticLoader};
use peanut_edge::bodies::Budgeted;

/// Messages that have come already.
struct Said(std::vec::IntoIter<Bytes>);

impl http_body::Body for Said {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        Poll::Ready(self.0.next().map(|said| Ok(Frame::data(said))))
    }
}

/// Messages of gRPC: each piece of the input is one, behind its length in two bytes.
fn messages(mut input: &[u8]) -> Vec<Bytes> {
    let mut messages = Vec::new();
    while input.len() > 2 {
        let length = usize::from(input.get_u16()).min(input.len());
        let (message, rest) = input.split_at(length);
        let header = [[0].as_slice(), &u32::try_from(length).unwrap_or_default().to_be_bytes()].concat();
        messages.push([header.as_slice(), message].concat().into());
        input = rest;
    }
    messages
}

/// Says these frames on a lane, to a node with a group `s` with keys and a group `g` without a loader, and
/// reads all answers.
///
/// # Panics
/// Where an answer cannot be read, is longer than it may be, or something is held when all is over.
pub async fn lane(input: &[u8]) {
    let static_loader = StaticLoader::from_iter([("Tom", "630"), ("Jack", "589")]);
    let groups = [Group::new("s", static_loader), Group::without_loader("g")];
    let groups = groups.map(|group| group.load_timeout(Duration::from_millis(20)));
    let node = Node::alone(groups);
    let peer = Peer::of("127.0.0.1:1", true);
    let admit = {
        let node = node.clone();
        move |request| node.admit(request)
    };
    let peanut = PeanutServer::new(node.clone()).max_decoding_message_size(MAX_MESSAGE_BYTES);
    let mut service = InterceptedService::new(Budgeted(peanut), admit);
    let mut request = http::Request::new(Body::new(Said(messages(input).into_iter())));
    *request.method_mut() = http::Method::POST;
    *request.uri_mut() = http::Uri::from_static("/peanut.v1.Peanut/Lane");
    request.headers_mut().insert("content-type", http::HeaderValue::from_static("application/grpc"));
    request.extensions_mut().insert(peer.clone());
    let Ok(response) = service.call(request).await;
    let (mut body, mut said) = (response.into_body(), Vec::new());
    loop {
        let frame = std::future::poll_fn(|context| Pin::new(&mut body).poll_frame(context));
        let frame = tokio::select! {
            frame = frame => frame,
            () = tokio::time::sleep(Duration::from_millis(10)) => {
                // As a server does.
                node.caches().for_each(|cache| cache.sweep(1.0));
                continue;
            }
        };
        let Some(frame) = frame else { break };
        if let Ok(data) = frame.expect("an ended lane says why in its trailers").into_data() {
            said.extend_from_slice(&data);
        }
    }
    let mut said = Bytes::from(said);
    while said.has_remaining() {
        said.advance(1);
        let length = said.get_u32() as usize;
        assert!(length < FRAME_BYTES * 3, "a frame of {length} bytes");
        for field in ResponseFrame(said.split_to(length)).fields() {
            let field = field.expect("a node's own answers can be read");
            assert!(!matches!(field, ResponseField::Closing), "the node does not stop");
        }
    }
    drop(body);
    let account = peer.accounts.of(&"".into());
    let held = [&account.operations, &account.values, &account.incoming].map(|budget| budget.used());
    assert_eq!(held, [0; 3], "operations, values and messages that are held still");
}

/// Reads a configuration file as `--check-config` does; what is accepted is printed, and read again.
///
/// # Panics
/// Where a complaint is not one line, or what was printed is not accepted.
#[cfg(feature = "cli")]
pub fn configuration(text: &str) {
    use crate::config::{Config, Stop};

    match Config::print_of(text) {
        Ok(printed) if !printed.contains("<hidden>") => {
            if let Err(refused) = Config::print_of(&printed) {
                panic!("printed and refused: {refused:?}\n{printed}");
            }
        }
        Err(Stop::Refuse(why)) => {
            let why = why.to_string();
            assert!(!why.trim().is_empty() && !why.contains('\n'), "{why:?}");
        }
        Ok(_) | Err(_) => {}
    }
}

#[cfg(test)]
mod tests {
    use std::path::{Path, PathBuf};

    use peanut_proto::frame::{Filled, GetOperation, RequestFrame, RequestWriter, Write, WriteOperation};
    use peanut_proto::numbers::{FillToken, Generation, RingVersion};
    use peanut_proto::v1::{Near, OnMiss};

    use super::*;

    const FUZZ: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fuzz");

    fn corpus(target: &str) -> PathBuf {
        Path::new(FUZZ).join("corpus").join(target)
    }

    /// Whether this is the package, which has no corpus.
    fn is_package() -> bool {
        !Path::new(FUZZ).is_dir()
    }

    fn each(target: &str) -> impl Iterator<Item = Vec<u8>> {
        let mut files: Vec<_> = std::fs::read_dir(corpus(target))
            .expect("the corpus is in the repository")
            .map(|entry| entry.expect("it can be listed").path())
            .collect();
        files.sort();
        assert!(!files.is_empty());
        files.into_iter().map(|file| std::fs::read(file).expect("it can be read"))
    }

    fn piece(frame: &RequestFrame) -> Vec<u8> {
        [u16::try_from(frame.0.len()).unwrap().to_be_bytes().as_slice(), &frame.0].concat()
    }

    fn get(id: u32, group: u32, key: &[u8], on_miss: OnMiss) -> GetOperation<'_> {
        let (deadline_ms, owned_since, failover, token, traceparent) = (id * 10, 0, false, 0, "");
        GetOperation {
            id,
            group,
            key,
            deadline_ms,
            owned_since: RingVersion(owned_since),
            failover,
            on_miss,
            token: FillToken(token),
            near: false,
            traceparent,
        }
    }

    /// What clients say, for a fuzzer to begin with.
    fn seeds() -> Vec<(&'static str, Vec<u8>)> {
        let named = |more: &dyn Fn(&mut RequestWriter)| {
            let mut frame = RequestWriter::default();
            frame.open(7, 0);
            frame.ring_version(RingVersion(1));
            frame.group(0, "s", Near::Off);
            frame.group(1, "g", Near::All);
            more(&mut frame);
            piece(&frame.take())
        };
        let write = |id, group, write| WriteOperation { id, group, deadline_ms: 0, failover: false, write };
        let set = |outcome| Write::Set { key: b"k", outcome, ttl_ms: 5, token: FillToken(9) };
        let gets = named(&|frame| {
            for (id, on_miss) in [OnMiss::Load, OnMiss::Peek, OnMiss::Lease].into_iter().enumerate() {
                frame.get(&get(id as u32, 0, b"Tom", on_miss));
                frame.get(&get(id as u32 + 10, 1, b"k", on_miss));
                frame.get(&GetOperation { failover: true, ..get(id as u32 + 20, 1, b"k", on_miss) });
            }
        });
        let writes = named(&|frame| {
            frame.write(&write(1, 1, set(Filled::Value(b"v"))));
            frame.write(&write(2, 1, set(Filled::NotFound)));
            frame.write(&write(3, 1, set(Filled::Failed("no"))));
            frame.write(&write(4, 1, Write::Delete { key: b"k", then_set: true, sequence: 3 }));
            frame.write(&write(5, 0, Write::Clear { generation: Generation(2) }));
            frame.write(&write(6, 1, Write::Release { token: FillToken(9) }));
            frame.ping();
            frame.waited_ms(3);
        });
        let again = {
            let mut frame = RequestWriter::default();
            frame.get(&get(1, 1, b"k", OnMiss::Lease));
            frame.get(&get(2, 1, b"k", OnMiss::Lease));
            piece(&frame.take())
        };
        let claims = named(&|frame| {
            frame.ring_version(RingVersion(u64::MAX));
            frame.get(&GetOperation {
                owned_since: RingVersion(5),
                token: FillToken(3),
                ..get(1, 0, b"Tom", OnMiss::Load)
            });
        });
        let near = named(&|frame| {
            frame.near_renewal(1);
            frame.get(&get(1, 1, b"k", OnMiss::Load));
            frame.get(&GetOperation { near: true, ..get(2, 1, b"k", OnMiss::Lease) });
            frame.write(&write(3, 1, set(Filled::Value(b"v"))));
            frame.near_confirmed(1);
            frame.near_renewal(2);
        });
        vec![
            ("near", near),
            ("leases", [gets.clone(), again].concat()),
            ("gets", gets),
            ("writes", writes),
            ("claims", claims),
            ("torn", vec![0, 9, 42, 200, 1, 8]),
        ]
    }

    #[tokio::test(start_paused = true)]
    async fn the_corpus_of_lanes_passes() {
        if is_package() {
            return;
        }
        for (name, fresh) in seeds() {
            let path = corpus("lane").join(name);
            if std::env::var_os("PEANUT_REGENERATE").is_some() {
                std::fs::create_dir_all(corpus("lane")).unwrap();
                std::fs::write(path, fresh).unwrap();
            } else {
                assert!(std::fs::read(path).unwrap_or_default() == fresh, "{name} is out of date");
            }
        }
        for input in each("lane") {
            lane(&input).await;
        }
    }

    #[cfg(feature = "cli")]
    #[tokio::test]
    async fn the_corpus_of_configurations_passes() {
        if is_package() {
            return;
        }
        for input in each("configuration") {
            configuration(&String::from_utf8_lossy(&input));
        }
    }
}
