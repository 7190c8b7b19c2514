//! Who may do what: keys, single rights, names in certificates; and what becomes of it when tokens and
//! certificates change while connections stand.

use std::path::Path;
use std::time::Duration;

use peanut_client::{Client, ClientBuilder, Tls};
use peanut_tests::{Authority, Certificate, ServerProcess, eventually, free_port, token_in};
use tonic_reflection::pb::v1::ServerReflectionRequest;
use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;

use crate::{SCORES, SERVER};

const LONG: Duration = Duration::from_secs(5);

fn node_of(addr: &str) -> String {
    format!("listen = \"{addr}\"\nnodes = [\"{addr}\"]\n")
}

fn free_addr() -> String {
    format!("127.0.0.1:{}", free_port())
}

fn of(addr: &str, unary: bool) -> ClientBuilder {
    let builder = Client::builder().nodes([addr]).deadline(LONG);
    if unary { builder.unary() } else { builder }
}

/// What a call came to, in one word.
fn said<T>(answer: Result<T, peanut_client::Error>) -> String {
    answer.map_or_else(|error| format!("{:?}", error.kind()), |_| "ok".to_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn rights_are_for_keys_and_setting_deleting_and_clearing_are_told_apart() {
    let (secrets, addr) = (tempfile::tempdir().unwrap(), free_addr());
    let token = |name, rights| token_in(secrets.path(), name, rights);
    let tokens = [
        token("users", "read = [\"scores:user/*\"]\nwrite = [\"scores:user/*\"]"),
        token("setter", "read = [\"*\"]\nset = [\"scores\"]"),
        token("deleter", "read = [\"*\"]\ndelete = [\"scores\"]"),
        token("clearer", "read = [\"*\"]\nclear = [\"scores\"]"),
    ]
    .concat();
    let _server = ServerProcess::start_with(SERVER, &format!("{}{tokens}{SCORES}", node_of(&addr))).await;
    for unary in [false, true] {
        let group = async |who: &str| {
            let client = of(&addr, unary).token(format!("secret-of-the-{who}"));
            client.build().await.unwrap().group("scores")
        };
        for (who, [read, set, delete, clear], [read_own, set_own, delete_own]) in [
            ("users", [false, false, false, false], [true, true, true]),
            ("setter", [true, true, false, false], [true, true, false]),
            ("deleter", [true, false, true, false], [true, false, true]),
            ("clearer", [true, false, false, true], [true, false, false]),
        ] {
            let group = group(who).await;
            let expect = |may: bool| if may { "ok" } else { "PermissionDenied" };
            assert_eq!(said(group.get("Tom").await), expect(read), "{who}");
            assert_eq!(said(group.set("Tom", "1").await), expect(set), "{who}");
            assert_eq!(said(group.delete("Tom").await), expect(delete), "{who}");
            assert_eq!(said(group.clear().await), expect(clear), "{who}");
            assert_eq!(said(group.get("user/1").await), expect(read_own), "{who}");
            assert_eq!(said(group.set("user/1", "1").await), expect(set_own), "{who}");
            assert_eq!(said(group.delete("user/1").await), expect(delete_own), "{who}");
        }
        // Many keys at once have many answers.
        let answers = group("users").await.get_many(["user/1", "Tom", "user/2", "user"]).await;
        let said: Vec<_> = answers.into_iter().map(said).collect();
        assert_eq!(said, ["ok", "PermissionDenied", "ok", "PermissionDenied"]);
        // Filling a key is setting it: who may not has it loaded.
        let mine = async || Ok::<_, std::io::Error>(Some("mine"));
        assert_eq!(group("deleter").await.get_or_load("Jack", mine).await.unwrap().unwrap(), "589");
        let other = async || Ok::<_, std::io::Error>(Some("mine"));
        group("clearer").await.clear().await.unwrap();
        assert_eq!(group("setter").await.get_or_load("Jack", other).await.unwrap().unwrap(), "mine");
        group("deleter").await.delete("Jack").await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn open_lanes_lose_what_is_taken_from_their_tokens_and_get_what_is_given() {
    let (secrets, addr) = (tempfile::tempdir().unwrap(), free_addr());
    let token = |name, rights| token_in(secrets.path(), name, rights);
    let keeper = token("keeper", "read = [\"*\"]\nwrite = [\"*\"]");
    let config = |app: &str| format!("{}{keeper}{app}{SCORES}", node_of(&addr));
    let app = |rights| token("app", rights);
    let mut server =
        ServerProcess::start_with(SERVER, &config(&app("read = [\"*\"]\nwrite = [\"*\"]"))).await;
    let group = async |who: &str, unary| {
        let client = of(&addr, unary).token(format!("secret-of-the-{who}"));
        client.build().await.unwrap().group("scores")
    };
    let groups = [group("app", false).await, group("app", true).await];
    let bystander = group("keeper", false).await;
    let all_say = async |what: &str, get: &str, set: &str| {
        for group in &groups {
            eventually(what, async || {
                let now = (said(group.get("Tom").await), said(group.set("Tom", "1").await));
                bystander.get("Jack").await.expect("others are left alone");
                (now == (get.to_owned(), set.to_owned())).then_some(())
            })
            .await;
        }
    };
    all_say("all rights", "ok", "ok").await;
    server.configure(&config(&app("read = [\"*\"]")));
    all_say("the right to write to be gone", "ok", "PermissionDenied").await;
    server.configure(&config(&app("read = [\"scores:user/*\"]\nset = [\"scores:Tom\"]")));
    all_say("the right to read to be gone, and one key's to be there", "PermissionDenied", "ok").await;
    // What cannot be used changes nothing, and is told with its place.
    server.configure(&config("[[token]]\nname = \"app\"\nsecret_files = 7\n"));
    let line = server.process().wait_for_line("tokens cannot be used; the last good ones stay").await;
    assert!(line.contains("peanut.toml:"), "{line}");
    all_say("as before", "PermissionDenied", "ok").await;
    // Neither does a file without any token, which would let everyone do everything.
    server.configure(&format!("{}{SCORES}", node_of(&addr)));
    server.process().wait_for_line("everyone would be let in").await;
    all_say("as before", "PermissionDenied", "ok").await;
    server.configure(&config(&app("read = [\"*\"]")));
    all_say("the right to read", "ok", "PermissionDenied").await;
    // Another secret in the same file.
    std::fs::write(secrets.path().join("app"), "another-secret-of-the-app").unwrap();
    all_say("the old secret to be none", "Unauthenticated", "Unauthenticated").await;
    let anew = of(&addr, false).token("another-secret-of-the-app").build().await.unwrap().group("scores");
    assert_eq!(said(anew.get("Tom").await), "ok");
    // A secret whose file is gone is gone.
    std::fs::remove_file(secrets.path().join("app")).unwrap();
    eventually("the secret to be gone", async || {
        (said(anew.get("Tom").await) == "Unauthenticated").then_some(())
    })
    .await;
    // The token is taken away as a whole, and comes back.
    server.configure(&config(""));
    all_say("the token to be none", "Unauthenticated", "Unauthenticated").await;
    server.configure(&config(&app("read = [\"*\"]")));
    all_say("the token to be back", "ok", "PermissionDenied").await;
    bystander.set("Jack", "1").await.unwrap();
    let log = server.process().log().join("\n");
    assert!(!log.contains("secret-of-the"), "a secret is in the log: {log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hangup_reads_tokens_at_once() {
    let (secrets, addr) = (tempfile::tempdir().unwrap(), free_addr());
    let token = |rights| token_in(secrets.path(), "app", rights);
    let mut server =
        ServerProcess::start_with(SERVER, &format!("{}{}{SCORES}", node_of(&addr), token("read = [\"*\"]")))
            .await;
    let group = of(&addr, false).token("secret-of-the-app").build().await.unwrap().group("scores");
    assert_eq!(said(group.get("Tom").await), "ok");
    server.configure(&format!("{}{}{SCORES}", node_of(&addr), token("read = [\"other\"]")));
    server.process().signal(nix::sys::signal::Signal::SIGHUP);
    server.process().wait_for_line("tokens were read again").await;
    assert_eq!(said(group.get("Tom").await), "PermissionDenied");
}

#[tokio::test(flavor = "multi_thread")]
async fn refusals_are_logged_by_the_tokens_name_and_not_once_for_each() {
    let (secrets, addr) = (tempfile::tempdir().unwrap(), free_addr());
    let tokens = token_in(secrets.path(), "reader", "read = [\"scores\"]");
    let mut server = ServerProcess::start_with(SERVER, &format!("{}{tokens}{SCORES}", node_of(&addr))).await;
    let reader = of(&addr, false).token("secret-of-the-reader").build().await.unwrap().group("scores");
    for _ in 0..200 {
        assert_eq!(said(reader.set("Tom", "1").await), "PermissionDenied");
    }
    let thief = of(&addr, false).token("secret-of-a-thief").build().await.unwrap().group("scores");
    for _ in 0..20 {
        assert_eq!(said(thief.get("Tom").await), "Unauthenticated");
    }
    let line = server.process().wait_for_line("refused: the token has no right to it").await;
    assert!(["reader", "set", "scores"].iter().all(|word| line.contains(word)), "{line}");
    server.process().wait_for_line("refused: the token is not known here").await;
    let log = server.process().log();
    // 200 refusals take less than ten seconds on any machine, or a few times as long on a very slow one.
    assert!(log.iter().filter(|line| line.contains("refused: ")).count() < 20, "{log:?}");
    assert!(!log.join("").contains("secret-of-"), "a secret is in the log");
}

fn mutual(authority: &Authority, certificate: &Certificate, crl: Option<&Path>) -> String {
    let crl = crl.map(|path| format!("crl = \"{}\"\n", path.display())).unwrap_or_default();
    format!(
        "[tls]\nca = \"{}\"\ncert = \"{}\"\nkey = \"{}\"\n{crl}",
        authority.ca().display(),
        certificate.cert.display(),
        certificate.key.display()
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn the_name_in_a_certificate_is_as_good_as_a_token_until_it_is_revoked_or_expires() {
    let (authority, addr) = (Authority::new(), free_addr());
    let node_cert = authority.issue("node", &["127.0.0.1"]);
    let app = authority.issue("app", &["app.example"]);
    let reader = authority.issue("reader", &["reader.example"]);
    let stranger = authority.issue("stranger", &["stranger.example"]);
    let short = authority.issue_for("short", &["app.example"], Duration::from_secs(4));
    let crl = authority.revoke(&[]);
    let tokens = "[[token]]\nname = \"app\"\ncertificates = [\"app.example\"]\nread = [\"*\"]\nwrite = [\"scores\"]\n\
                  [[token]]\nname = \"reader\"\ncertificates = [\"Reader.Example\"]\nread = [\"*\"]\n";
    let config = format!("{}{}{tokens}{SCORES}", node_of(&addr), mutual(&authority, &node_cert, Some(&crl)));
    let mut server = ServerProcess::start_with(SERVER, &config).await;
    let group = async |certificate: &Certificate, unary| {
        let tls = Tls::new(authority.ca()).certificate(&certificate.cert, &certificate.key);
        of(&addr, unary).deadline(Duration::from_secs(1)).tls(tls).build().await.unwrap().group("scores")
    };
    for unary in [false, true] {
        let mortal = group(&short, unary).await;
        let first = said(mortal.get("Tom").await);
        // A machine may take longer to come here than the certificate is good for.
        assert!(first == "ok" || unary || first == "Unavailable", "{first}");
        let app = group(&app, unary).await;
        assert_eq!(said(app.set("Tom", "1").await), "ok");
        let reader = group(&reader, unary).await;
        assert_eq!(
            (said(reader.get("Tom").await), said(reader.delete("Tom").await)),
            ("ok".into(), "PermissionDenied".into())
        );
        assert_eq!(said(group(&stranger, unary).await.get("Tom").await), "Unauthenticated");
        eventually("the certificate to expire", async || {
            (said(mortal.get("Tom").await) == "Unavailable").then_some(())
        })
        .await;
        assert_eq!(said(app.get("Tom").await), "ok", "others are left alone");
    }
    server.process().wait_for_line("a connection ends with its certificate").await;
    // Once for each connection, and not for those that come again with a session of before.
    let ended = server.process().log().iter().filter(|line| line.contains("a connection ends with")).count();
    assert!(ended <= 6, "{ended}");
    let groups = [group(&app, false).await, group(&app, true).await];
    for group in &groups {
        assert_eq!(said(group.get("Tom").await), "ok");
    }
    let bystander = group(&reader, false).await;
    authority.revoke(&["app"]);
    for group in &groups {
        eventually("the certificate to be revoked", async || {
            bystander.get("Tom").await.expect("others are left alone");
            (said(group.get("Tom").await) == "Unavailable").then_some(())
        })
        .await;
    }
}

async fn reflect(addr: &str, token: Option<&str>, bytes: usize) -> Result<(), tonic::Status> {
    let endpoint = tonic::transport::Endpoint::from_shared(format!("http://{addr}")).unwrap();
    let mut client = ServerReflectionClient::new(endpoint.connect().await.unwrap());
    let ask = ServerReflectionRequest {
        host: "x".repeat(bytes),
        message_request: Some(MessageRequest::ListServices(String::new())),
    };
    let mut request = tonic::Request::new(futures_util::stream::iter([ask]));
    if let Some(token) = token {
        request.metadata_mut().insert("authorization", format!("Bearer {token}").parse().unwrap());
    }
    let mut answers = client.server_reflection_info(request).await?.into_inner();
    answers.message().await?.map(drop).ok_or_else(|| tonic::Status::unknown("nothing"))
}

#[tokio::test(flavor = "multi_thread")]
async fn reflection_wants_a_token_where_there_are_some_short_messages_and_to_be_on() {
    let secrets = tempfile::tempdir().unwrap();
    let tokens = token_in(secrets.path(), "app", "read = [\"scores\"]");
    let [open, closed, off] = [free_addr(), free_addr(), free_addr()];
    let _servers = [
        ServerProcess::start_with(SERVER, &format!("{}{SCORES}", node_of(&open))).await,
        ServerProcess::start_with(SERVER, &format!("{}{tokens}{SCORES}", node_of(&closed))).await,
        ServerProcess::start_with(SERVER, &format!("reflection = false\n{}{SCORES}", node_of(&off))).await,
    ];
    let code = async |addr: &str, token: Option<&str>, bytes| {
        reflect(addr, token, bytes).await.map_err(|it| it.code())
    };
    assert_eq!(code(&open, None, 1).await, Ok(()));
    assert!(code(&open, None, 64 << 10).await.is_err(), "a message that is too long ends the stream");
    assert_eq!(code(&closed, None, 1).await, Err(tonic::Code::Unauthenticated));
    assert_eq!(code(&closed, Some("secret-of-the-app"), 1).await, Ok(()));
    assert_eq!(code(&off, None, 1).await, Err(tonic::Code::Unimplemented));
}
