//! The Redis protocol against a fleet in this process, over a pair of pipes.

use std::time::Duration;

use peanut_client::Client;
use peanut_edge::Token;
use peanut_edge::rights::Tokens;
use peanut_server::testing::TestFleet;
use peanut_server::{Group, Loaded, LoaderError, loader_fn};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex};
use tokio::task::JoinHandle;

use super::*;
use crate::groups::Groups;

pub(super) struct Fixture {
    _fleet: TestFleet,
    pub(super) shared: Arc<Shared>,
}

impl Fixture {
    pub(super) async fn start() -> Self {
        Fixture::with(&[]).await
    }

    async fn with(tokens: &[Token]) -> Self {
        let scores = loader_fn(|key| async move {
            match &key[..] {
                b"broken" => Err(LoaderError::from("the database\r\n-is on fire")),
                b"Nobody" => Ok(Loaded::not_found()),
                name => Ok(Loaded::found(name.to_vec())),
            }
        });
        let scores = Group::new("scores", scores).ttl(Duration::from_secs(60));
        let pages = Group::without_loader("pages").ttl(Duration::from_secs(60));
        let fleet = TestFleet::start(1, [scores, pages]).await.unwrap();
        let client = Client::builder().registry(fleet.registry()).build().await.unwrap();
        let tokens = Tokens::new(tokens, false).unwrap();
        let core = Arc::new(Core::new(Groups::new(client), tokens, Vec::new()));
        let shared = Shared::new(core, None, vec!["pages".to_owned()]);
        Fixture { _fleet: fleet, shared: Arc::new(shared) }
    }

    fn connect(&self) -> Connected {
        self.connect_as(Peer::of("127.0.0.1:1", false))
    }

    fn connect_as(&self, peer: Peer) -> Connected {
        let (near, far) = duplex(1 << 16);
        let (shared, stop) = (self.shared.clone(), CancellationToken::new());
        let stopping = stop.clone();
        let serving = tokio::spawn(async move { shared.serve(far, peer, &stopping).await });
        Connected { stream: near, stop, serving }
    }
}

struct Connected {
    stream: DuplexStream,
    stop: CancellationToken,
    serving: JoinHandle<()>,
}

impl Connected {
    /// Sends all at once, and expects these answers.
    async fn expect(&mut self, requests: &str, answers: &str) {
        self.stream.write_all(requests.as_bytes()).await.unwrap();
        let mut read = vec![0; answers.len()];
        let what = tokio::time::timeout(Duration::from_secs(20), self.stream.read_exact(&mut read)).await;
        let read = String::from_utf8_lossy(&read);
        assert!(what.is_ok_and(|read| read.is_ok()), "for {requests:?}: {read:?}, and then nothing");
        assert_eq!(read, answers, "for {requests:?}");
    }

    /// What comes until the other side has ended.
    async fn rest(mut self) -> String {
        let mut rest = String::new();
        let read = self.stream.read_to_string(&mut rest);
        tokio::time::timeout(Duration::from_secs(20), read).await.expect("it ends").unwrap();
        self.serving.await.unwrap();
        rest
    }
}

#[tokio::test]
async fn keys_name_groups_or_their_database_does() {
    let fixture = Fixture::start().await;
    let mut it = fixture.connect();
    it.expect("GET scores:Tom\r\n", "$3\r\nTom\r\n").await;
    it.expect("GET scores:Nobody\r\nGET pages:a\r\n", "$-1\r\n$-1\r\n").await;
    it.expect("SELECT 1\r\nSET scores:Tom 1\r\nGET scores:Tom\r\n", "+OK\r\n+OK\r\n$1\r\n1\r\n").await;
    it.expect("SELECT 0\r\nGET scores:Tom\r\nGET pages:scores:Tom\r\n", "+OK\r\n$3\r\nTom\r\n$1\r\n1\r\n")
        .await;
    it.expect(
        "SELECT 2\r\n",
        "-ERR DB index is out of range: the proxy's setting `databases` has a group for each\r\n",
    )
    .await;
    it.stream.write_all(b"GET Tom\r\nGET nothing:Tom\r\nQUIT\r\nPING\r\n").await.unwrap();
    let rest = it.rest().await;
    let lines: Vec<_> = rest.lines().collect();
    assert!(lines[0].starts_with("-ERR the key names no group") && lines[1].starts_with("-ERR "), "{rest}");
    assert_eq!(&lines[2..], ["+OK"], "nothing is answered after a leave");
}

#[tokio::test]
async fn a_pipeline_is_answered_in_order_and_each_command_sees_those_before() {
    let fixture = Fixture::start().await;
    let mut it = fixture.connect();
    let (mut requests, mut answers) = (String::new(), String::new());
    for n in 0..300 {
        requests +=
            &format!("SET pages:{} {n}\r\nGET pages:{}\r\nMGET scores:{n} pages:{}\r\n", n % 7, n % 7, n % 7);
        let n = n.to_string();
        let bulk = format!("${}\r\n{n}\r\n", n.len());
        answers += &format!("+OK\r\n{bulk}*2\r\n{bulk}{bulk}");
    }
    it.expect(&requests, &answers).await;
}

#[tokio::test]
async fn an_error_is_one_answer_of_one_line() {
    let fixture = Fixture::start().await;
    let mut it = fixture.connect();
    it.stream
        .write_all(b"GET scores:broken\r\nMGET scores:Tom scores:broken\r\nGET scores:Tom\r\nQUIT\r\n")
        .await
        .unwrap();
    let rest = it.rest().await;
    let lines: Vec<_> = rest.lines().collect();
    assert!(lines[0].starts_with("-ERR ") && lines[0].contains("-is on fire"), "{rest}");
    assert!(lines[1].starts_with("-ERR "), "{rest}");
    assert_eq!(&lines[2..], ["$3", "Tom", "+OK"]);
}

#[tokio::test]
async fn what_is_no_request_ends_the_connection_behind_the_answers_before() {
    let fixture = Fixture::start().await;
    let mut it = fixture.connect();
    it.stream.write_all(b"PING\r\n*1\r\n:1\r\nPING\r\n").await.unwrap();
    assert_eq!(it.rest().await, "+PONG\r\n-ERR Protocol error: expected '$', got ':'\r\n");
}

#[tokio::test]
async fn numbers_are_read_as_redis_reads_them() {
    let fixture = Fixture::start().await;
    for frame in
        ["*+1\r\n$4\r\nPING\r\n", "*01\r\n$4\r\nPING\r\n", "*1\r\n$+4\r\nPING\r\n", "*1\r\n$04\r\nPING\r\n"]
    {
        let mut it = fixture.connect();
        it.stream.write_all(frame.as_bytes()).await.unwrap();
        it.stream.shutdown().await.unwrap();
        let rest = it.rest().await;
        assert!(rest.starts_with("-ERR Protocol error: invalid"), "{frame:?}: {rest}");
    }
    let mut it = fixture.connect();
    it.expect("SELECT +1\r\n", "-ERR invalid DB index\r\n").await;
    it.expect("SELECT 01\r\n", "-ERR invalid DB index\r\n").await;
    it.expect("HELLO 03\r\n", "-ERR Protocol version is not an integer or out of range\r\n").await;
    it.expect("MULTI x\r\n", "-ERR wrong number of arguments for 'multi' command\r\n").await;
    it.expect("ECHO a\r\n", "$1\r\na\r\n").await;
    it.expect("AUTH default any\r\n", "+OK\r\n").await;
    it.expect("AUTH other any\r\n", "-ERR AUTH was called, and this proxy has no tokens\r\n").await;
    it.expect("COMMAND INFO get\r\n", "*1\r\n*10\r\n$3\r\nget\r\n:2\r\n").await;
}

/// A client that sends all of a request before it reads would find the connection gone.
#[tokio::test]
async fn the_rest_of_a_request_that_is_not_taken_is_let_go_of() {
    let fixture = Fixture::start().await;
    let mut it = fixture.connect();
    let length = (8 << 20) + 1;
    let head = format!("*3\r\n$3\r\nSET\r\n$7\r\npages:a\r\n${length}\r\n");
    it.stream.write_all(head.as_bytes()).await.unwrap();
    it.stream.write_all(&vec![b'x'; length]).await.unwrap();
    it.stream.shutdown().await.unwrap();
    assert_eq!(it.rest().await, "-ERR Protocol error: invalid bulk length\r\n");
}

#[tokio::test]
async fn values_have_lifetimes_and_keys_exist_and_are_deleted() {
    let fixture = Fixture::start().await;
    let mut it = fixture.connect();
    it.expect(
        "SET pages:a 1 EX 100\r\nSETEX pages:b 100 2\r\nMSET pages:c 3 pages:d 4\r\n",
        "+OK\r\n+OK\r\n+OK\r\n",
    )
    .await;
    it.expect("EXISTS pages:a pages:b pages:x pages:a\r\n", ":3\r\n").await;
    it.expect("TTL pages:x\r\nPTTL pages:x\r\n", ":-2\r\n:-2\r\n").await;
    it.expect(
        "DEL pages:a pages:b\r\nUNLINK pages:c\r\nMGET pages:a pages:b pages:c pages:d\r\n",
        ":2\r\n:1\r\n*4\r\n$-1\r\n$-1\r\n$-1\r\n$1\r\n4\r\n",
    )
    .await;
    it.stream.write_all(b"SET pages:e 5 PX 50000\r\nTTL pages:e\r\nPTTL pages:e\r\nQUIT\r\n").await.unwrap();
    let rest = it.rest().await;
    let left: Vec<u64> = rest.lines().filter_map(|line| line.strip_prefix(':')?.parse().ok()).collect();
    assert!((20..=50).contains(&left[0]) && (20_000..=50_000).contains(&left[1]), "{rest}");
}

#[tokio::test]
async fn a_connection_speaks_the_version_that_it_chose_and_can_begin_anew() {
    let fixture = Fixture::start().await;
    let mut it = fixture.connect();
    it.expect("GET pages:x\r\n", "$-1\r\n").await;
    it.expect("CLIENT GETNAME\r\nCLIENT SETNAME app\r\nCLIENT GETNAME\r\n", "$-1\r\n+OK\r\n$3\r\napp\r\n")
        .await;
    it.stream.write_all(b"HELLO 3\r\n").await.unwrap();
    let mut hello = [0; 4];
    it.stream.read_exact(&mut hello).await.unwrap();
    assert_eq!(&hello, b"%7\r\n");
    it.stream
        .write_all(b"GET pages:x\r\nRESET\r\nGET pages:x\r\nCLIENT SETINFO LIB-NAME x\r\nQUIT\r\n")
        .await
        .unwrap();
    let rest = it.rest().await;
    assert!(rest.ends_with("_\r\n+RESET\r\n$-1\r\n+OK\r\n+OK\r\n"), "{rest}");
}

#[tokio::test]
async fn long_values_go_through_in_pieces_and_a_pipeline_of_them_is_bounded() {
    let fixture = Fixture::start().await;
    let mut it = fixture.connect();
    let value = "v".repeat(1 << 20);
    for key in 0..4 {
        let set = format!("*3\r\n$3\r\nSET\r\n$7\r\npages:{key}\r\n${}\r\n{value}\r\n", value.len());
        it.expect(&set, "+OK\r\n").await;
    }
    let asked = 100;
    let gets: String = (0..asked).map(|n| format!("GET pages:{}\r\n", n % 4)).collect();
    it.stream.write_all(gets.as_bytes()).await.unwrap();
    let mut read = vec![0; asked * (value.len() + 12)];
    it.stream.read_exact(&mut read).await.unwrap();
    let many: String = (0..asked).map(|n| format!(" pages:{}", n % 4)).collect();
    it.expect(
        &format!("MGET{many}\r\n"),
        "-ERR the answer would have more than 64 MiB; ask for fewer keys at once\r\n",
    )
    .await;
    it.expect("PING\r\n", "+PONG\r\n").await;
}

/// The room for values that a connection has, of which all but `left` bytes are taken by others.
fn scarce(peer: &Peer, left: usize) -> peanut_edge::budget::Held {
    let values = peer.accounts.of(&Arc::from("")).values.clone();
    values.try_take(values.most() - left).unwrap()
}

#[tokio::test]
async fn a_pipeline_never_waits_for_room_that_its_own_answers_take() {
    let fixture = Fixture::start().await;
    let peer = Peer::of("127.0.0.1:1", false);
    let _beside = scarce(&peer, 3 << 20);
    let mut it = fixture.connect_as(peer);
    it.expect(&"GET pages:x\r\n".repeat(256), &"$-1\r\n".repeat(256)).await;
}

#[tokio::test]
async fn a_pipeline_of_several_groups_is_answered_with_room_for_one_value() {
    let fixture = Fixture::start().await;
    let peer = Peer::of("127.0.0.1:1", false);
    let _beside = scarce(&peer, 20 << 10);
    let mut it = fixture.connect_as(peer);
    it.expect(&"GET pages:x\r\nGET scores:Tom\r\n".repeat(20), &"$-1\r\n$3\r\nTom\r\n".repeat(20)).await;
    let (asked, answers) = ("TTL pages:x\r\nGET scores:Tom\r\n", ":-2\r\n$3\r\nTom\r\n");
    it.expect(&asked.repeat(20), &answers.repeat(20)).await;
}

#[tokio::test]
async fn what_is_asked_for_its_lifetime_takes_room_while_it_is_fetched_and_no_longer() {
    let fixture = Fixture::start().await;
    let peer = Peer::of("127.0.0.1:1", false);
    let values = peer.accounts.of(&Arc::from("")).values.clone();
    let left = 100 << 10;
    let _beside = scarce(&peer, left);
    let mut it = fixture.connect_as(peer);
    let value = "v".repeat(60 << 10);
    let set = format!(
        "*5\r\n$3\r\nSET\r\n$7\r\npages:a\r\n${}\r\n{value}\r\n$2\r\nPX\r\n$5\r\n59000\r\n",
        value.len()
    );
    it.expect(&set, "+OK\r\n").await;
    it.expect(&"TTL pages:a\r\n".repeat(100), &":59\r\n".repeat(100)).await;
    assert_eq!(values.used(), values.most() - left);

    let _rest = values.try_take(left).unwrap();
    tokio::time::pause();
    let no_room =
        "-BUSY there is no room for so many values now; try again, or ask for fewer keys at once\r\n";
    it.stream.write_all(b"TTL pages:a\r\n").await.unwrap();
    let mut said = vec![0; no_room.len()];
    it.stream.read_exact(&mut said).await.unwrap();
    assert_eq!(String::from_utf8(said).unwrap(), no_room);
}

#[tokio::test]
async fn a_command_may_have_many_keys_with_short_values() {
    let fixture = Fixture::start().await;
    let mut it = fixture.connect();
    let keys: String = (0..5000).map(|n| format!(" scores:{n:04}")).collect();
    let values: String = (0..5000).map(|n| format!("$4\r\n{n:04}\r\n")).collect();
    it.expect(&format!("MGET{keys}\r\n"), &format!("*5000\r\n{values}")).await;
    it.expect(&format!("EXISTS{keys}\r\n"), ":5000\r\n").await;
}

#[tokio::test]
async fn who_finds_no_room_is_told_so_and_not_that_the_answer_is_too_long() {
    let fixture = Fixture::start().await;
    let peer = Peer::of("127.0.0.1:1", false);
    let _beside = scarce(&peer, 100 << 10);
    let mut it = fixture.connect_as(peer);
    let value = "v".repeat(60 << 10);
    for key in 0..4 {
        let set = format!("*3\r\n$3\r\nSET\r\n$7\r\npages:{key}\r\n${}\r\n{value}\r\n", value.len());
        it.expect(&set, "+OK\r\n").await;
    }
    it.expect("GET pages:0\r\n", &format!("${}\r\n{value}\r\n", value.len())).await;
    let many: String = (0..100).map(|n| format!(" pages:{}", n % 4)).collect();
    it.expect(
        &format!("MGET{many}\r\n"),
        "-BUSY there is no room for so many values now; try again, or ask for fewer keys at once\r\n",
    )
    .await;
    it.expect("PING\r\n", "+PONG\r\n").await;
}

#[tokio::test]
async fn a_long_answer_does_not_depend_on_what_stands_behind_its_command() {
    let fixture = Fixture::start().await;
    let mut it = fixture.connect();
    let value = "v".repeat(1 << 20);
    let bulk = format!("${}\r\n{value}\r\n", value.len());
    it.expect(&format!("*3\r\n$3\r\nSET\r\n$7\r\npages:a\r\n{bulk}"), "+OK\r\n").await;
    let mget = format!("MGET{}\r\n", " pages:a".repeat(20));
    it.stream.write_all(format!("{mget}PING\r\nGET scores:Tom\r\n{mget}QUIT\r\n").as_bytes()).await.unwrap();
    let rest = it.rest().await;
    let array = format!("*20\r\n{}", bulk.repeat(20));
    assert!(rest == format!("{array}+PONG\r\n$3\r\nTom\r\n{array}+OK\r\n"), "{} bytes", rest.len());
}

#[tokio::test]
async fn what_a_web_page_sends_ends_the_connection_before_anything_of_it_is_run() {
    let fixture = Fixture::start().await;
    let smuggled = "SET pages:a 1\r\n";
    for request in [
        format!("POST / HTTP/1.1\r\n{smuggled}"),
        format!("get / HTTP/1.1\r\nhOST: 127.0.0.1:6379\r\n{smuggled}"),
        format!("*1\r\n$4\r\npost\r\n{smuggled}"),
    ] {
        let mut it = fixture.connect();
        it.stream.write_all(request.as_bytes()).await.unwrap();
        let said = it.rest().await;
        let last = said.lines().last().unwrap();
        assert!(last.starts_with("-ERR Protocol error: ") && last.contains("HTTP"), "{request:?}: {said}");
    }
    fixture.connect().expect("GET pages:a\r\n", "$-1\r\n").await;
}

#[tokio::test]
async fn names_that_no_node_serves_take_no_place() {
    let fixture = Fixture::start().await;
    let mut it = fixture.connect();
    for command in ["GET typo1:a", "MGET typo2:a typo3:a", "TTL typo4:a", "SET typo5:a 1", "DEL typo6:a"] {
        it.stream.write_all(format!("{command}\r\n").as_bytes()).await.unwrap();
    }
    it.stream.write_all(b"GET pages:a\r\nQUIT\r\n").await.unwrap();
    let rest = it.rest().await;
    let lines: Vec<_> = rest.lines().collect();
    assert!(lines[..5].iter().all(|line| line.starts_with("-ERR ")), "{rest}");
    assert_eq!(lines[5..], ["$-1", "+OK"]);
    assert_eq!(fixture.shared.core.groups.used(), ["pages"]);
}

#[tokio::test]
async fn a_long_request_for_which_there_is_no_room_is_refused_and_a_short_one_is_not() {
    let fixture = Fixture::start().await;
    let peer = Peer::of("127.0.0.1:1", false);
    let incoming = peer.accounts.of(&Arc::from("")).incoming.clone();
    let held = incoming.try_take(incoming.most()).unwrap();
    let mut it = fixture.connect_as(peer);
    it.expect("SET pages:a 1\r\nGET pages:a\r\n", "+OK\r\n$1\r\n1\r\n").await;
    let value = "v".repeat(1 << 20);
    let set = format!("*3\r\n$3\r\nSET\r\n$7\r\npages:b\r\n${}\r\n{value}\r\n", value.len());
    // It stops reading.
    let _ = it.stream.write_all(set.as_bytes()).await;
    let said = it.rest().await;
    assert!(said.starts_with("-BUSY "), "{said}");
    drop(held);
    let mut it = fixture.connect();
    it.expect(&set, "+OK\r\n").await;
}

#[tokio::test]
async fn a_stop_answers_what_has_been_asked() {
    let fixture = Fixture::start().await;
    let mut it = fixture.connect();
    it.expect("PING\r\n", "+PONG\r\n").await;
    it.stop.cancel();
    assert_eq!(it.rest().await, "");

    // More than is read at once, which still stands in the socket when the stop comes.
    let it = fixture.connect();
    let Connected { mut stream, stop, serving } = it;
    stream.write_all("ECHO 0123456789\r\n".repeat(3_500).as_bytes()).await.unwrap();
    stop.cancel();
    let mut said = String::new();
    stream.read_to_string(&mut said).await.unwrap();
    serving.await.unwrap();
    assert_eq!(said, "$10\r\n0123456789\r\n".repeat(3_500));
}

const NO_AUTH: &str = "-NOAUTH Authentication required.\r\n";

#[tokio::test]
async fn a_caller_says_who_it_is_and_may_do_what_its_token_allows() {
    let token = Token::new("app").secret("0123456789abcdef").read(["scores", "pages:a*"]).set(["pages:a*"]);
    let fixture = Fixture::with(&[token]).await;
    let mut it = fixture.connect();
    it.expect("PING\r\nGET scores:Tom\r\n", &format!("{NO_AUTH}{NO_AUTH}")).await;
    it.stream.write_all(b"AUTH wrong\r\nHELLO 3\r\n").await.unwrap();
    let mut answers = [0; 400];
    let mut said = String::new();
    while said.matches("\r\n").count() < 2 {
        let read = it.stream.read(&mut answers).await.unwrap();
        said += std::str::from_utf8(&answers[..read]).unwrap();
    }
    let lines: Vec<_> = said.lines().collect();
    assert!(lines[0].starts_with("-WRONGPASS ") && lines[1].starts_with("-NOAUTH "), "{said}");
    assert!(!said.contains("0123456789abcdef"));
    it.expect(
        "AUTH default 0123456789abcdef\r\nGET scores:Tom\r\nSET pages:ab 1\r\n",
        "+OK\r\n$3\r\nTom\r\n+OK\r\n",
    )
    .await;
    for refused in
        ["GET pages:b", "SET pages:b 1", "SET scores:Tom 1", "DEL pages:ab", "MGET pages:ab pages:b"]
    {
        it.stream.write_all(format!("{refused}\r\nECHO done\r\n").as_bytes()).await.unwrap();
        let mut said = String::new();
        while !said.ends_with("done\r\n") {
            let read = it.stream.read(&mut answers).await.unwrap();
            said += std::str::from_utf8(&answers[..read]).unwrap();
        }
        assert!(said.starts_with("-NOPERM "), "{refused}: {said}");
    }
    it.expect("RESET\r\nGET scores:Tom\r\n", &format!("+RESET\r\n{NO_AUTH}")).await;
}

#[tokio::test]
async fn a_stranger_is_read_little_of() {
    let token = Token::new("app").secret("0123456789abcdef").read(["*"]);
    let fixture = Fixture::with(&[token]).await;
    let mut it = fixture.connect();
    it.stream.write_all(b"*2\r\n$4\r\nAUTH\r\n$1000000\r\n").await.unwrap();
    assert_eq!(it.rest().await, "-ERR Protocol error: invalid bulk length\r\n");
}

#[tokio::test]
async fn tokens_that_change_count_for_connections_that_stand() {
    let token = |secret: &str| Token::new("app").secret(secret).read(["*"]);
    let fixture = Fixture::with(&[token("0123456789abcdef")]).await;
    let mut it = fixture.connect();
    it.expect("AUTH 0123456789abcdef\r\nGET scores:Tom\r\n", "+OK\r\n$3\r\nTom\r\n").await;
    fixture.shared.core.tokens.replace(&[token("another-secret-of-16")]).unwrap();
    // It is told once and ends: clients log in when they connect.
    it.stream.write_all(b"GET scores:Tom\r\n").await.unwrap();
    assert_eq!(it.rest().await, NO_AUTH);
    let mut it = fixture.connect();
    it.expect("AUTH another-secret-of-16\r\nGET scores:Tom\r\n", "+OK\r\n$3\r\nTom\r\n").await;
    // Who logs in again, as some clients do when secrets change, stays.
    fixture.shared.core.tokens.replace(&[token("a-third-secret-of-16")]).unwrap();
    it.expect("AUTH a-third-secret-of-16\r\nGET scores:Tom\r\n", "+OK\r\n$3\r\nTom\r\n").await;
}

mod whole;
