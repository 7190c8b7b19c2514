//! One connection: reads what has come, runs what goes together, and answers in order.

use std::collections::VecDeque;
use std::io;
use std::pin::pin;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::future::poll_immediate;
use peanut_edge::budget::Held;
use peanut_edge::connections::Peer;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::task::unconstrained;
use tokio::time::{Instant, timeout, timeout_at};
use tokio_util::sync::CancellationToken;

use super::Shared;
use super::command::Command;
use super::execute::{Read, run};
use super::pipeline::together;
use super::reply::Reply;
use super::request::{Limits, Malformed, Reader};
use super::session::Session;
use crate::counters::Protocol;
use crate::fetch::MAX_PORTION;

/// Read at once from a socket.
const READ_BYTES: usize = 16 << 10;
/// Bytes of a request that need no room.
const FREE_BYTES: usize = 64 << 10;
/// How long a long request may take, from where it is known to be one to its end.
const REQUEST_WITHIN: Duration = Duration::from_secs(60);
/// How long what has come is read for after a stop.
const COMING_WITHIN: Duration = Duration::from_secs(1);
/// How long, after the last answer, what still comes of a request that was not taken is let go of: a client
/// that sends all of it first would find the connection gone, and the answer with it.
const LET_GO_FOR: Duration = Duration::from_secs(5);
/// Commands that are read ahead of those that run.
const MAX_AHEAD: usize = 1024;
/// Answers are written when they are as long, or when there is nothing more to run.
const WRITE_BYTES: usize = 64 << 10;

/// Serves a connection to its end.
///
/// # Errors
/// As the stream has them.
pub(super) async fn serve(
    shared: &Shared,
    id: i64,
    peer: Peer,
    stream: impl AsyncRead + AsyncWrite + Unpin,
    stop: &CancellationToken,
) -> io::Result<()> {
    let (mut connection, mut late) = (Connection::new(shared, id, peer, stream), None);
    loop {
        let malformed = connection.read_ahead().err();
        let is_idle = connection.ahead.is_empty();
        connection.run().await?;
        if connection.session.is_over {
            break;
        }
        if let Some(malformed) = malformed {
            connection.output.extend_from_slice(format!("-{}\r\n", malformed.message()).as_bytes());
            connection.is_cut_off = true;
            break;
        }
        // More may have come with what was read.
        if !is_idle {
            continue;
        }
        connection.write().await?;
        let read = if stop.is_cancelled() {
            // What had come by then is answered, in the socket too: it would be lost with the connection.
            // What goes on coming is not.
            let until = *late.get_or_insert_with(|| Instant::now() + COMING_WITHIN);
            if Instant::now() > until {
                break;
            }
            poll_immediate(pin!(unconstrained(connection.read_more()))).await.unwrap_or(Ok(false))
        } else {
            stop.run_until_cancelled(connection.read_more()).await.unwrap_or(Ok(true))
        };
        if !read? {
            break;
        }
    }
    connection.write().await?;
    connection.stream.shutdown().await?;
    if connection.is_cut_off {
        let _ = stop.run_until_cancelled(timeout(LET_GO_FOR, connection.let_go())).await;
    }
    Ok(())
}

struct Connection<'a, S> {
    shared: &'a Shared,
    stream: S,
    session: Session,
    reader: Reader,
    /// What has come and is no whole request yet, and the room that it takes where it is long.
    input: BytesMut,
    room: Option<Held>,
    /// By when the request that is being read has to be there in full, where it is long.
    late: Option<Instant>,
    /// Answers that have not been written, and the room that they take.
    output: BytesMut,
    held: Vec<Held>,
    ahead: VecDeque<Read>,
    /// It ends in the middle of a request.
    is_cut_off: bool,
}

impl<'a, S: AsyncRead + AsyncWrite + Unpin> Connection<'a, S> {
    fn new(shared: &'a Shared, id: i64, peer: Peer, stream: S) -> Self {
        Connection {
            shared,
            stream,
            session: Session::new(id, &shared.core, peer),
            reader: Reader::default(),
            input: BytesMut::new(),
            room: None,
            late: None,
            output: BytesMut::new(),
            held: Vec::new(),
            ahead: VecDeque::new(),
            is_cut_off: false,
        }
    }

    /// Reads more bytes; `false`: there will be no more. A long request needs room for it among those of all
    /// callers.
    async fn read_more(&mut self) -> io::Result<bool> {
        let bytes = self.input.len() + READ_BYTES;
        if bytes <= FREE_BYTES {
            self.late = None;
            if self.room.take().is_some() {
                // The buffer of the long request goes with its room: it would be kept for the next requests.
                self.input = BytesMut::from(&self.input[..]);
            }
        } else if self.room.as_ref().is_none_or(|room| room.bytes() < bytes) {
            let incoming = self.session.account().incoming.clone();
            // The caller may have become another one meanwhile.
            drop(self.room.take_if(|room| !room.is_of(&incoming)));
            // As much again, so that it is asked for seldom.
            let more = bytes.next_power_of_two() - self.room.as_ref().map_or(0, Held::bytes);
            let Some(more) = incoming.try_take(more) else {
                self.output.extend_from_slice(b"-BUSY too many long requests are on their way\r\n");
                self.is_cut_off = true;
                return Ok(false);
            };
            self.room = Some(match self.room.take() {
                Some(room) => room.and(more),
                None => more,
            });
        }
        self.input.reserve(READ_BYTES);
        let read = self.stream.read_buf(&mut self.input);
        if self.room.is_none() {
            return Ok(read.await? > 0);
        }
        let late = *self.late.get_or_insert_with(|| Instant::now() + REQUEST_WITHIN);
        let Ok(read) = timeout_at(late, read).await else {
            let said = format!("-ERR the request was not there in full within {REQUEST_WITHIN:?}\r\n");
            self.output.extend_from_slice(said.as_bytes());
            return Ok(false);
        };
        Ok(read? > 0)
    }

    /// Reads to the end, for nothing.
    async fn let_go(&mut self) {
        let mut read = [0; READ_BYTES];
        (self.input, self.room) = (BytesMut::new(), None);
        while self.stream.read(&mut read).await.is_ok_and(|length| length > 0) {}
    }

    /// Takes the requests that have come.
    fn read_ahead(&mut self) -> Result<(), Malformed> {
        while self.ahead.len() < MAX_AHEAD {
            let is_known = self.session.caller.is_some();
            let limits = if is_known { Limits::ADMITTED } else { Limits::STRANGER };
            let Some(arguments) = self.reader.next(&mut self.input, &limits)? else { break };
            self.late = None;
            if is_of_http(&arguments) {
                return Err(Malformed::http());
            }
            self.ahead.push_back(Command::parse(arguments));
            if !is_known {
                // The next may be read under other limits.
                break;
            }
        }
        Ok(())
    }

    /// Runs what has been read.
    async fn run(&mut self) -> io::Result<()> {
        let mut most = MAX_PORTION;
        while !self.ahead.is_empty() && !self.session.is_over {
            let (databases, database) = (&self.shared.databases, self.session.database);
            let commands = self.ahead.iter().map(|read| read.as_ref().ok()).take(most);
            let count = together(commands, |key| databases.key(database, key).ok());
            let commands = self.ahead.iter().take(count).cloned().collect();
            let may_wait = self.held.is_empty();
            let ran = run(self.shared, &mut self.session, commands, may_wait).await;
            if !ran.replies.is_empty() {
                self.answer(ran.replies, ran.held);
                most = MAX_PORTION;
            } else if count == 1 && may_wait {
                self.answer(vec![ran.refusal], ran.held);
                most = MAX_PORTION;
            } else {
                // The first of them did not get all its values. It is run again alone, when the answers
                // before it have been written: then it may have more of them, and may wait for room.
                drop(ran);
                self.write().await?;
                most = 1;
            }
            if self.output.len() >= WRITE_BYTES {
                self.write().await?;
            }
        }
        Ok(())
    }

    /// Answers the first commands that have been read.
    fn answer(&mut self, replies: Vec<Reply>, mut held: Held) {
        self.ahead.drain(..replies.len());
        let errors = replies.iter().filter(|reply| matches!(reply, Reply::Error(_))).count();
        self.shared.core.counters.answered(Protocol::Redis, replies.len(), errors);
        let before = self.output.len();
        for reply in replies {
            reply.write(self.session.version, &mut self.output);
        }
        // Values of keys that were only counted are gone.
        held.shrink_to(self.output.len() - before);
        self.held.extend(Some(held).filter(|held| held.bytes() > 0));
    }

    async fn write(&mut self) -> io::Result<()> {
        self.stream.write_all(&self.output).await?;
        self.output.clear();
        self.held.clear();
        if self.output.capacity() > 4 * WRITE_BYTES {
            self.output = BytesMut::new();
        }
        self.stream.flush().await
    }
}

/// Whether a request is a line of HTTP. A web page can have a browser send such requests here, with commands
/// in their bodies. Redis ends a connection at the same words.
fn is_of_http(arguments: &[Bytes]) -> bool {
    let is = |word: &str| arguments.first().is_some_and(|first| first.eq_ignore_ascii_case(word.as_bytes()));
    is("post") || is("host:")
}

#[cfg(test)]
mod tests {
    use tokio::io::duplex;

    use super::super::tests::Fixture;
    use super::*;

    #[tokio::test]
    async fn the_buffer_of_a_long_request_goes_with_its_room() {
        let fixture = Fixture::start().await;
        let (mut near, far) = duplex(1 << 16);
        let peer = Peer::of("127.0.0.1:1", false);
        let mut connection = Connection::new(&fixture.shared, 1, peer, far);
        let value = "v".repeat(4 << 20);
        let long = format!("*3\r\n$3\r\nSET\r\n$7\r\npages:a\r\n${}\r\n{value}\r\n", value.len());
        let writing = tokio::spawn(async move {
            near.write_all(long.as_bytes()).await.unwrap();
            near
        });
        while connection.ahead.is_empty() {
            assert!(connection.read_more().await.unwrap());
            connection.read_ahead().unwrap();
        }
        assert!(connection.room.is_some());
        connection.ahead.clear();
        let mut near = writing.await.unwrap();
        near.write_all(b"GET pages:").await.unwrap();
        assert!(connection.read_more().await.unwrap());
        assert!(connection.room.is_none());
        assert!(connection.input.capacity() <= FREE_BYTES, "{} bytes", connection.input.capacity());
        near.write_all(b"a\r\n").await.unwrap();
        assert!(connection.read_more().await.unwrap());
        connection.read_ahead().unwrap();
        let get = Command::Get(Bytes::from_static(b"pages:a"));
        assert_eq!(connection.ahead.pop_front(), Some(Ok(get)), "what had come is not lost");
    }

    /// A connection of a new fixture, when its time stands still.
    async fn begun(fixture: &Fixture) -> (tokio::io::DuplexStream, Connection<'_, tokio::io::DuplexStream>) {
        let (near, far) = duplex(1 << 20);
        let connection = Connection::new(&fixture.shared, 1, Peer::of("127.0.0.1:1", false), far);
        tokio::time::pause();
        (near, connection)
    }

    const HALF: usize = 100 << 10;

    #[tokio::test]
    async fn a_long_request_that_stops_on_its_way_ends_the_connection() {
        let fixture = Fixture::start().await;
        let (mut near, mut connection) = begun(&fixture).await;
        let half = format!("*3\r\n$3\r\nSET\r\n$7\r\npages:a\r\n${}\r\n{}", 2 * HALF, "v".repeat(HALF));
        near.write_all(half.as_bytes()).await.unwrap();
        let begun = Instant::now();
        while connection.read_more().await.unwrap() {
            connection.read_ahead().unwrap();
        }
        let took = begun.elapsed();
        assert!(took >= REQUEST_WITHIN && took < REQUEST_WITHIN + Duration::from_secs(1), "{took:?}");
        assert_eq!(&connection.output[..], b"-ERR the request was not there in full within 60s\r\n");
    }

    #[tokio::test]
    async fn each_long_request_of_a_connection_has_its_own_time() {
        let fixture = Fixture::start().await;
        let (mut near, mut connection) = begun(&fixture).await;
        let head = format!("*2\r\n$4\r\nECHO\r\n${}\r\n", 2 * HALF);
        let halves = [head + &"v".repeat(HALF), "v".repeat(HALF) + "\r\n"];
        let writing = async {
            for _ in 0..3 {
                for half in &halves {
                    near.write_all(half.as_bytes()).await.unwrap();
                    tokio::time::sleep(REQUEST_WITHIN / 2).await;
                }
            }
        };
        let reading = async {
            while connection.ahead.len() < 3 {
                assert!(connection.read_more().await.unwrap());
                connection.read_ahead().unwrap();
            }
        };
        tokio::join!(writing, reading);
    }
}
