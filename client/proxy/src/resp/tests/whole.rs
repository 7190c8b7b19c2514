//! Commands that are done as a whole or not at all, and what one connection can have the proxy hold.

use super::*;

#[tokio::test]
async fn nothing_of_a_transaction_is_run() {
    let fixture = Fixture::start().await;
    let mut it = fixture.connect();
    it.expect("SET pages:a 1\r\n", "+OK\r\n").await;
    let refused = "-ERR MULTI is refused: a fleet of caches has no transactions; send a plain pipeline \
                   (redis-py: pipeline(transaction=False))\r\n";
    let not_run = "-ERR not run: the transaction that it stands in was refused\r\n";
    let aborted = "-EXECABORT Transaction discarded because of previous errors.\r\n";
    it.expect(
        "MULTI\r\nSET pages:a 2\r\nDEL pages:a\r\nGET pages:a\r\nEXEC\r\nGET pages:a\r\n",
        &format!("{refused}{}{aborted}$1\r\n1\r\n", not_run.repeat(3)),
    )
    .await;
    it.expect("multi\r\nSET pages:a 2\r\nDISCARD\r\n", &format!("{refused}{not_run}+OK\r\n")).await;
    it.expect("MULTI\r\nRESET\r\nGET pages:a\r\n", &format!("{refused}+RESET\r\n$1\r\n1\r\n")).await;
    let without = "-ERR EXEC without MULTI\r\n-ERR DISCARD without MULTI\r\n";
    it.expect("EXEC\r\nDISCARD\r\n", without).await;
}

#[tokio::test]
async fn a_command_with_a_key_that_cannot_be_does_nothing() {
    let fixture = Fixture::start().await;
    let mut it = fixture.connect();
    it.expect("SET pages:a 1\r\n", "+OK\r\n").await;
    let long = "k".repeat(1025);
    for wrong in
        [":b".to_owned(), "b".to_owned(), "pa/ges:b".to_owned(), "pages:".to_owned(), format!("pages:{long}")]
    {
        for command in [format!("MSET pages:a 2 {wrong} 2"), format!("DEL pages:a {wrong}")] {
            it.stream.write_all(format!("{command}\r\nECHO done\r\n").as_bytes()).await.unwrap();
            let mut said = String::new();
            let mut read = [0; 400];
            while !said.ends_with("done\r\n") {
                let bytes = it.stream.read(&mut read).await.unwrap();
                said += std::str::from_utf8(&read[..bytes]).unwrap();
            }
            assert!(said.starts_with("-ERR "), "{command}: {said}");
            it.expect("GET pages:a\r\n", "$1\r\n1\r\n").await;
        }
    }
}

#[tokio::test]
async fn long_values_behind_short_ones_take_no_more_than_there_is_room_for() {
    let fixture = Fixture::start().await;
    let peer = Peer::of("127.0.0.1:1", false);
    let _beside = scarce(&peer, 4 << 20);
    let mut it = fixture.connect_as(peer);
    let value = "v".repeat(1 << 20);
    let bulk = format!("${}\r\n{value}\r\n", value.len());
    it.expect(&format!("*3\r\n$3\r\nSET\r\n$9\r\npages:big\r\n{bulk}"), "+OK\r\n").await;
    // The portions are large after that.
    let short: String = (0..100).map(|n| format!(" scores:{n:02}")).collect();
    let answers: String = (0..100).map(|n| format!("$2\r\n{n:02}\r\n")).collect();
    it.expect(&format!("MGET{short}\r\n"), &format!("*100\r\n{answers}")).await;
    let busy = "-BUSY there is no room for so many values now; try again, or ask for fewer keys at once\r\n";
    it.expect(&format!("MGET{}\r\n", " pages:big".repeat(100)), busy).await;
    // In a pipeline each has its turn.
    it.expect(&"GET pages:big\r\n".repeat(20), &bulk.repeat(20)).await;
    it.expect(&format!("EXISTS{}\r\n", " pages:big".repeat(100)), ":100\r\n").await;
}

#[tokio::test]
async fn a_value_waits_for_room_of_its_own_length() {
    let fixture = Fixture::start().await;
    let peer = Peer::of("127.0.0.1:1", false);
    let values = peer.accounts.of(&Arc::from("")).values.clone();
    let mut it = fixture.connect_as(peer.clone());
    let value = "v".repeat(1 << 20);
    let bulk = format!("${}\r\n{value}\r\n", value.len());
    it.expect(&format!("*3\r\n$3\r\nSET\r\n$9\r\npages:big\r\n{bulk}"), "+OK\r\n").await;
    let beside = values.try_take(values.most() - (100 << 10)).unwrap();
    it.stream.write_all(b"GET pages:big\r\n").await.unwrap();
    let mut read = vec![0; bulk.len()];
    let reading = tokio::time::timeout(Duration::from_secs(20), it.stream.read_exact(&mut read));
    let (_, freed) = tokio::join!(reading, async {
        tokio::time::sleep(Duration::from_millis(200)).await;
        drop(beside);
        true
    });
    assert!(freed && String::from_utf8(read).unwrap() == bulk, "it was there when there was room");
}

#[tokio::test]
async fn a_caller_may_become_another_one_behind_a_long_request() {
    let token = |name: &str, secret: &str| Token::new(name).secret(secret).read(["*"]).set(["*"]);
    let tokens = [token("one", "0123456789abcdef"), token("other", "another-secret-of-16")];
    let fixture = Fixture::with(&tokens).await;
    let mut it = fixture.connect();
    it.expect("AUTH 0123456789abcdef\r\n", "+OK\r\n").await;
    let set = |length: usize| {
        format!("*3\r\n$3\r\nSET\r\n$7\r\npages:a\r\n${length}\r\n{}\r\n", "v".repeat(length))
    };
    let asked = format!("{}AUTH another-secret-of-16\r\n{}", set(1 << 20), set(4 << 20));
    it.expect(&asked, "+OK\r\n+OK\r\n+OK\r\n").await;
}

#[tokio::test]
async fn groups_that_no_node_was_asked_for_take_no_place() {
    let fixture = Fixture::start().await;
    let mut it = fixture.connect();
    let long = "k".repeat(1025);
    for n in 0..20 {
        it.stream.write_all(format!("GET junk{n}:{long}\r\n").as_bytes()).await.unwrap();
    }
    it.stream.write_all(b"GET pages:a\r\nQUIT\r\n").await.unwrap();
    let rest = it.rest().await;
    assert!(rest.ends_with("$-1\r\n+OK\r\n"), "{rest}");
    assert_eq!(fixture.shared.core.groups.used(), ["pages"]);
}

#[tokio::test]
async fn quotes_in_lines_and_too_many_names_of_commands_are_refused() {
    let fixture = Fixture::start().await;
    let mut it = fixture.connect();
    it.stream
        .write_all(format!("COMMAND INFO{}\r\nECHO done\r\n", " get".repeat(1000)).as_bytes())
        .await
        .unwrap();
    it.stream.write_all(b"SET pages:a \"x\"\r\n").await.unwrap();
    let rest = it.rest().await;
    let lines: Vec<_> = rest.lines().collect();
    assert!(lines[0].starts_with("-ERR there are ") && lines[2] == "done", "{rest}");
    assert!(lines[3].contains("quotes"), "{rest}");
}
