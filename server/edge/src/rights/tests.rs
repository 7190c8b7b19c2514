//! Who is let in, what that gives, and what becomes of it when tokens change.

use super::*;

fn tokens() -> Tokens {
    let app = Token::new("app").secret("0123456789abcdef").secret("fedcba9876543210");
    let reader = Token::new("reader").secret("rrrrrrrrrrrrrrrr").read(["*"]).admin();
    Tokens::new(&[app.read(["a", "b"]).write(["a"]), reader], true).unwrap()
}

fn admit(tokens: &Tokens, secret: &str) -> Arc<Rights> {
    Caller::admit(tokens, Some(secret), None).unwrap().rights().clone()
}

fn of(token: Token) -> Arc<Rights> {
    admit(&Tokens::new(&[token.secret("0123456789abcdef")], true).unwrap(), "0123456789abcdef")
}

#[test]
fn a_token_gives_its_rights_and_no_others() {
    let tokens = tokens();
    let writes = [Action::Set, Action::Delete, Action::Clear];
    for secret in ["0123456789abcdef", "fedcba9876543210"] {
        let app = admit(&tokens, secret);
        assert_eq!(
            ["a", "b", "c"].map(|group| app.check(Action::Read, group, None).is_ok()),
            [true, true, false]
        );
        assert!(writes.iter().all(|action| app.check(*action, "a", None).is_ok()));
        assert!(writes.iter().all(|action| app.check(*action, "b", None).is_err()));
        assert!(app.check_admin().is_err());
    }
    let reader = admit(&tokens, "rrrrrrrrrrrrrrrr");
    assert!(reader.check(Action::Read, "any", Some(b"k")).is_ok() && reader.check_admin().is_ok());
    assert!(writes.iter().all(|action| reader.check(*action, "any", None).is_err()));
}

#[test]
fn rights_to_keys_are_for_those_keys_whichever_way_they_are_asked_for() {
    let rights =
        of(Token::new("t").read(["scores:user/*", "scores:Tom", "pages"]).set(["*:mine/*", "scores:all"]));
    let group = rights.of_group("scores");
    for (action, key, may) in [
        (Action::Read, &b"user/1"[..], true),
        (Action::Read, b"user/", true),
        (Action::Read, b"user", false),
        (Action::Read, b"USER/1", false),
        (Action::Read, b"Tom", true),
        (Action::Read, b"Tom2", false),
        (Action::Read, b"", false),
        (Action::Set, b"mine/1", true),
        (Action::Set, b"all", true),
        (Action::Set, b"user/1", false),
        (Action::Delete, b"mine/1", false),
        (Action::Clear, b"", false),
    ] {
        assert_eq!(rights.check(action, "scores", Some(key)).is_ok(), may, "{action:?} {key:?}");
        assert_eq!(group.check(action, key).is_ok(), may, "{action:?} {key:?} in the group");
    }
    assert!(rights.check(Action::Read, "scores", None).is_err(), "some keys are not the group");
    assert!(rights.check(Action::Read, "pages", None).is_ok());
    assert!(rights.of_group("other").check(Action::Set, b"mine/x").is_ok());
}

#[test]
fn setting_deleting_and_clearing_are_rights_of_their_own_and_write_is_all_three() {
    let all = [Action::Set, Action::Delete, Action::Clear];
    let token = || Token::new("t");
    for (token, given) in [
        (token().set(["a"]), [true, false, false]),
        (token().delete(["a"]), [false, true, false]),
        (token().clear(["a"]), [false, false, true]),
        (token().write(["a"]), [true, true, true]),
        (token().write(["*"]), [true, true, true]),
    ] {
        let rights = of(token);
        assert_eq!(all.map(|action| rights.check(action, "a", None).is_ok()), given);
        assert_eq!(all.map(|action| rights.of_group("a").check(action, b"k").is_ok()), given);
        assert!(rights.check(Action::Read, "a", None).is_err());
    }
    // Keys cannot be cleared, so the right to write them is not one to clear.
    let keys = of(token().write(["a:k*"]));
    assert_eq!(all.map(|action| keys.of_group("a").check(action, b"k1").is_ok()), [true, true, false]);
}

#[test]
fn whoever_has_none_or_shows_it_to_everybody_is_refused() {
    let tokens = tokens();
    let code = |shown, peer| Caller::admit(&tokens, shown, peer).unwrap_err().code;
    let peer = |addr: &str, is_private| Some(Peer::of(addr, is_private));
    assert_eq!(code(None, None), ErrorCode::Unauthenticated);
    assert_eq!(code(Some("0123456789abcdeF"), None), ErrorCode::Unauthenticated);
    assert_eq!(code(Some(""), None), ErrorCode::Unauthenticated);
    assert_eq!(code(Some("0123456789abcdef"), peer("10.0.0.9:1", false)), ErrorCode::Unauthenticated);
    assert!(Caller::admit(&tokens, Some("0123456789abcdef"), peer("10.0.0.9:1", true)).is_ok());
    assert!(Caller::admit(&tokens, Some("0123456789abcdef"), peer("127.0.0.1:1", false)).is_ok());
    let open = Caller::admit(&Tokens::default(), None, None).unwrap();
    assert!(open.rights().check(Action::Clear, "x", None).is_ok());
}

fn why<T>(made: Result<T, Misconfigured>) -> String {
    made.err().expect("it is refused").to_string()
}

#[test]
fn tokens_that_are_none_are_refused_and_no_secret_is_shown() {
    let good = || Token::new("t").secret("0123456789abcdef");
    for (bad, reason) in [
        (vec![Token::new("t")], "no secret"),
        (vec![Token::new("").secret("0123456789abcdef")], "needs a name"),
        (vec![Token::new("t").secret("short")], "16 bytes"),
        (vec![Token::new("t").secret("with spaces in the midst")], "spaces"),
        (vec![good().secret("0123456789abcdef")], "twice"),
        (vec![good(), Token::new("u").secret("0123456789abcdef")], "twice"),
        (vec![good(), good()], "two of that name"),
        (vec![good().read([""])], "names no group"),
        (vec![good().read(["scores:"])], "names no key"),
        (vec![good().read([":x*"])], "names no group"),
        (vec![good().set(["sco*"])], "stands alone"),
        (vec![good().delete(["scores:*x"])], "stands at the end"),
        (vec![good().write(["scores:a*b*"])], "stands at the end"),
        (vec![good().clear(["scores:a*"])], "whole group"),
        (vec![Token::new("t").certificate("")], "not a whole name"),
        (vec![Token::new("t").certificate("*.example")], "not a whole name"),
        (vec![Token::new("t").certificate("a.example").certificate("A.example")], "twice"),
    ] {
        let error = why(Tokens::new(&bad, true));
        assert!(error.contains(reason) && !error.contains("0123456789abcdef"), "{error}");
    }
    let shown = format!("{:?} {:?}", tokens(), Caller::admit(&tokens(), Some("0123456789abcdef"), None));
    assert!(!shown.contains("0123456789abcdef"), "{shown}");
}

#[test]
fn a_caller_has_what_the_tokens_of_now_give() {
    let token = |groups: &[&str]| Token::new("t").secret("0123456789abcdef").read(groups.iter().copied());
    let tokens = Tokens::new(&[token(&["a", "b"])], false).unwrap();
    let mut caller = Caller::admit(&tokens, Some("0123456789abcdef"), None).unwrap();
    let reads = |caller: &Caller, group: &str| caller.rights().check(Action::Read, group, None).is_ok();
    assert!(!caller.look_again(&tokens).unwrap() && reads(&caller, "b"));
    // The same again is no change.
    assert!(!tokens.replace(&[token(&["a", "b"])]).unwrap() && tokens.generation() == 0);
    assert!(tokens.replace(&[token(&["a"])]).unwrap());
    assert!(caller.look_again(&tokens).unwrap() && reads(&caller, "a") && !reads(&caller, "b"));
    // What cannot be used changes nothing, and neither does an empty list, which would open the node.
    assert!(why(tokens.replace(&[Token::new("t")])).contains("no secret"));
    assert!(
        why(tokens.replace(&[Token::new("t").certificate("a.example")])).contains("`tls.ca`, --serve-ca")
    );
    assert!(why(tokens.replace(&[])).contains("everyone would be let in"));
    assert!(!caller.look_again(&tokens).unwrap() && reads(&caller, "a"));
    // A new secret lets the old one out.
    assert!(tokens.replace(&[Token::new("t").secret("another-good-secret").read(["a"])]).unwrap());
    assert_eq!(caller.look_again(&tokens).unwrap_err().code, ErrorCode::Unauthenticated);
    assert!(Caller::admit(&tokens, Some("another-good-secret"), None).is_ok());
    // The first token closes a node that was open to everyone.
    let open = Tokens::default();
    let mut stranger = Caller::admit(&open, None, None).unwrap();
    assert!(open.replace(&[token(&["a"])]).unwrap());
    assert_eq!(stranger.look_again(&open).unwrap_err().code, ErrorCode::Unauthenticated);
}

#[test]
fn names_in_a_certificate_give_the_rights_of_all_tokens_that_name_them_until_it_expires() {
    let tokens = Tokens::new(
        &[
            Token::new("app").certificate("app.example").read(["a"]),
            Token::new("importer").certificate("spiffe://fleet/importer").set(["a"]),
            Token::new("secret").secret("0123456789abcdef").admin(),
        ],
        true,
    )
    .unwrap();
    let peer = |names: &[&str], not_after_ms| {
        let peer = Peer::of("10.0.0.9:1", true);
        peer.show_certificate(names, not_after_ms);
        Some(peer)
    };
    let rights =
        |names: &[&str]| Caller::admit(&tokens, None, peer(names, u64::MAX)).map(|it| it.rights().clone());
    let app = rights(&["x", "APP.example"]).unwrap();
    assert!(app.check(Action::Read, "a", None).is_ok() && app.check(Action::Set, "a", None).is_err());
    let both = rights(&["app.example", "spiffe://fleet/importer"]).unwrap();
    assert!(both.check(Action::Read, "a", None).is_ok() && both.check(Action::Set, "a", None).is_ok());
    assert!(both.check_admin().is_err());
    assert_eq!(rights(&["other.example"]).unwrap_err().code, ErrorCode::Unauthenticated);
    let expired = Caller::admit(&tokens, None, peer(&["app.example"], 1)).unwrap_err();
    assert!(expired.message.contains("expired"), "{expired:?}");
    // Who shows a secret is known by that, and a bad one is not made good by a certificate.
    let operator =
        Caller::admit(&tokens, Some("0123456789abcdef"), peer(&["app.example"], u64::MAX)).unwrap();
    assert!(
        operator.rights().check_admin().is_ok() && operator.rights().check(Action::Read, "a", None).is_err()
    );
    assert!(Caller::admit(&tokens, Some("0123456789abcdeX"), peer(&["app.example"], u64::MAX)).is_err());
}
