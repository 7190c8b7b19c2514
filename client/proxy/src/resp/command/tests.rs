use super::*;

fn parse(line: &str) -> Result<Command, String> {
    let arguments = line.split(' ').map(|word| Bytes::from(word.to_owned())).collect();
    Command::parse(arguments).map_err(|refused| match refused {
        Reply::Error(message) => message,
        other => panic!("{other:?}"),
    })
}

fn bytes(text: &'static str) -> Bytes {
    Bytes::from_static(text.as_bytes())
}

#[test]
fn every_command_of_the_table_is_read_and_holds_its_arity() {
    assert!(COMMANDS.is_sorted_by_key(|spec| spec.name));
    for spec in COMMANDS {
        let least = (1..6).find(|count| spec.takes(*count)).unwrap();
        let words = vec![spec.name.to_ascii_uppercase(); 1];
        let numbers = std::iter::repeat_n("1".to_owned(), least - 1);
        let line: Vec<String> = words.into_iter().chain(numbers).collect();
        let read = parse(&line.join(" "));
        let is_known = !read.clone().is_err_and(|why| why.contains("unknown command"));
        assert!(is_known, "{}: {read:?}", spec.name);
        if least > 1 {
            let short = parse(&line[..least - 1].join(" ")).unwrap_err();
            assert_eq!(short, format!("ERR wrong number of arguments for '{}' command", spec.name));
        }
    }
}

#[test]
fn lifetimes_are_seconds_or_milliseconds_above_zero() {
    let set = |ttl| Ok(Command::Set { key: bytes("k"), value: bytes("v"), ttl });
    assert_eq!(parse("SET k v"), set(None));
    assert_eq!(parse("set k v ex 3"), set(Some(Duration::from_secs(3))));
    assert_eq!(parse("SET k v PX 3"), set(Some(Duration::from_millis(3))));
    assert_eq!(parse("SETEX k 3 v"), set(Some(Duration::from_secs(3))));
    assert_eq!(parse("PSETEX k 3 v"), set(Some(Duration::from_millis(3))));
    for (line, why) in [
        ("SET k v EX", "ERR syntax error"),
        ("SET k v EX 1 PX 1", "ERR syntax error"),
        ("SET k v SOON", "ERR syntax error"),
        ("SET k v EX soon", "ERR value is not an integer or out of range"),
        ("SET k v EX +5", "ERR value is not an integer or out of range"),
        ("SET k v PX 05", "ERR value is not an integer or out of range"),
        ("SET k v EX 0", "ERR invalid expire time in 'set' command"),
        ("SETEX k -1 v", "ERR invalid expire time in 'setex' command"),
        ("PSETEX k 9223372036854775808 v", "ERR value is not an integer or out of range"),
    ] {
        assert_eq!(parse(line).unwrap_err(), why, "{line}");
    }
}

#[test]
fn what_a_cache_cannot_keep_is_refused_with_the_reason() {
    for option in ["NX", "XX", "GET", "KEEPTTL", "EXAT 1", "PXAT 1", "nx"] {
        let why = parse(&format!("SET k v {option}")).unwrap_err();
        assert!(why.contains("cannot be kept: "), "{option}: {why}");
    }
    assert!(parse("CLIENT TRACKING ON").unwrap_err().contains("near copies"));
    assert!(parse("INCR k").unwrap_err().starts_with("ERR unknown command 'INCR'"));
    assert!(parse("CLIENT PAUSE 1").is_err() && parse("COMMAND LIST").is_err());
}

#[test]
fn of_a_key_that_is_set_twice_the_last_value_counts() {
    let set = parse("MSET a 1 b 2 a 3").unwrap();
    assert_eq!(set, Command::SetMany(vec![(bytes("a"), bytes("3")), (bytes("b"), bytes("2"))]));
    assert_eq!(parse("MSET a 1 b").unwrap_err(), "ERR wrong number of arguments for 'mset' command");
}

#[test]
fn a_client_says_its_version_its_secret_and_its_name() {
    let hello = parse("HELLO 3 AUTH default secret SETNAME app").unwrap();
    let login = Some(Login { is_default: true, secret: bytes("secret") });
    let expected = Hello { version: Some(Version::Resp3), login, name: Some(bytes("app")) };
    assert_eq!(hello, Command::Hello(expected));
    assert!(!format!("{hello:?}").contains("secret"), "a secret is not for logs");
    assert_eq!(parse("HELLO 4").unwrap_err(), "NOPROTO unsupported protocol version");
    assert!(
        parse("HELLO x").is_err() && parse("HELLO 3 AUTH user").is_err() && parse("HELLO 3 TLS").is_err()
    );
    assert_eq!(parse("AUTH user secret"), parse("AUTH secret"));
    assert!(parse("AUTH a b c").is_err());
    assert_eq!(parse("CLIENT SETNAME app"), Ok(Command::Client(Client::SetName(bytes("app")))));
    assert!(parse("CLIENT SETNAME a\nb").is_err());
}

#[test]
fn a_number_is_written_in_one_way() {
    for (text, expected) in [("0", 0), ("7", 7), ("-1", -1), ("10", 10), ("-9223372036854775808", i64::MIN)] {
        assert_eq!(number(text.as_bytes()), Some(expected), "{text}");
    }
    for text in ["", "-", "+1", "01", "-0", "-01", "1 ", " 1", "1x", "1.0", "9223372036854775808", "\u{664}"]
    {
        assert_eq!(number(text.as_bytes()), None, "{text}");
    }
}
