//! Who is let in: certificates, tokens, and an etcd that wants to know its users.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use etcd_client::PermissionType;
use nix::sys::signal::Signal;
use peanut_client::registry::{EtcdRegistry, Registry as _};
use peanut_client::{Client, ClientBuilder, ErrorKind, Tls};
use peanut_proto::tls::TlsFiles;
use peanut_tests::{Authority, Certificate, Etcd, ServerProcess, eventually, free_port, token_in};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::walk::repository;
use crate::{SCORES, SERVER};

const LONG: Duration = Duration::from_secs(5);

/// The lines of a node's configuration that say which certificates it uses.
pub(crate) fn tls_of(section: &str, ca: &Path, certificate: &Certificate) -> String {
    let Certificate { cert, key } = certificate;
    format!(
        "[{section}]\nca = \"{}\"\ncert = \"{}\"\nkey = \"{}\"\n",
        ca.display(),
        cert.display(),
        key.display()
    )
}

fn files(authority: &Authority, certificate: &Certificate) -> TlsFiles {
    let Certificate { cert, key } = certificate.clone();
    TlsFiles { ca: Some(authority.ca()), cert: Some(cert), key: Some(key), crl: None }
}

fn tls(authority: &Authority, certificate: &Certificate) -> Tls {
    Tls::new(authority.ca()).certificate(&certificate.cert, &certificate.key)
}

/// A node alone, with these settings before its group.
async fn node(settings: &str) -> ServerProcess {
    let port = free_port();
    let settings = format!("listen = \"127.0.0.1:{port}\"\nnodes = [\"127.0.0.1:{port}\"]\n{settings}\n");
    ServerProcess::start_with(SERVER, &format!("{settings}{SCORES}")).await
}

fn of(server: &ServerProcess) -> ClientBuilder {
    Client::builder().nodes([server.addr()]).deadline(LONG)
}

async fn kind(client: ClientBuilder) -> ErrorKind {
    let client = client.deadline(Duration::from_secs(1)).build().await.unwrap();
    client.group("scores").get("Tom").await.unwrap_err().kind()
}

#[tokio::test(flavor = "multi_thread")]
async fn with_mutual_tls_only_who_has_a_certificate_is_let_in_and_nodes_are_known_by_theirs() {
    let (authority, foreign) = (Authority::new(), Authority::new());
    let [node_cert, app] = [("node-1", &["127.0.0.1", "node-1"][..]), ("app", &[])]
        .map(|(name, hosts)| authority.issue(name, hosts));
    let port = free_port();
    let config = format!(
        "listen = \"127.0.0.1:{port}\"\nnodes = [\"127.0.0.1:{port}\"]\n{}{SCORES}",
        tls_of("tls", &authority.ca(), &node_cert)
    );
    let server = ServerProcess::start_with(SERVER, &config).await;
    let client = of(&server).tls(tls(&authority, &app)).build().await.unwrap();
    assert_eq!(client.group("scores").get("Tom").await.unwrap().unwrap(), "630");
    client.group("scores").set("Tom", "1").await.unwrap();
    client.probe().await;
    assert!(client.nodes()[0].up, "probes go the same way");
    let unary = of(&server).tls(tls(&authority, &app)).unary().build().await.unwrap();
    assert_eq!(unary.group("scores").get("Tom").await.unwrap().unwrap(), "1");

    let stranger = foreign.issue("app", &[]);
    for (who, client) in [
        ("no TLS at all", of(&server)),
        ("no certificate", of(&server).tls(Tls::new(authority.ca()))),
        (
            "a certificate of another authority",
            of(&server).tls(Tls::new(authority.ca()).certificate(&stranger.cert, &stranger.key)),
        ),
        ("trust in another authority", of(&server).tls(tls(&foreign, &app))),
        ("a node that is to have its id", of(&server).tls(tls(&authority, &app).known_by_id())),
        ("a node of another name", of(&server).tls(tls(&authority, &app).known_by("node-2"))),
    ] {
        assert_eq!(kind(client).await, ErrorKind::Unavailable, "{who}");
    }
    let by_name = of(&server).tls(tls(&authority, &app).known_by("node-1")).build().await.unwrap();
    assert_eq!(by_name.group("scores").get("Tom").await.unwrap().unwrap(), "1");
}

/// The serial number of the certificate that a server shows.
async fn shown(addr: &str, files: TlsFiles) -> Vec<u8> {
    let connector = TlsConnector::from(Arc::new(files.client(b"h2").unwrap()));
    let stream = TcpStream::connect(addr).await.unwrap();
    let name = rustls::pki_types::ServerName::try_from("127.0.0.1").unwrap();
    let stream = connector.connect(name, stream).await.unwrap();
    stream.get_ref().1.peer_certificates().unwrap()[0].to_vec()
}

#[tokio::test(flavor = "multi_thread")]
async fn certificates_are_replaced_under_load_without_a_failed_call() {
    let authority = Authority::new();
    let [first, app] = ["node", "app"].map(|name| authority.issue(name, &["127.0.0.1"]));
    let mut server = {
        let port = free_port();
        let config = format!(
            "listen = \"127.0.0.1:{port}\"\nnodes = [\"127.0.0.1:{port}\"]\n{}{SCORES}",
            tls_of("tls", &authority.ca(), &first)
        );
        ServerProcess::start_with(SERVER, &config).await
    };
    let client = of(&server).tls(tls(&authority, &app)).build().await.unwrap();
    let stop = Arc::new(AtomicBool::new(false));
    let gets = Arc::new(AtomicU64::new(0));
    let load = tokio::spawn({
        let (stop, gets, group) = (stop.clone(), gets.clone(), client.group("scores"));
        async move {
            while !stop.load(Ordering::Relaxed) {
                group.get("Tom").await.unwrap();
                gets.fetch_add(1, Ordering::Relaxed);
            }
        }
    });
    let addr = server.addr().to_owned();
    let before = shown(&addr, files(&authority, &app)).await;
    // By itself when the files change.
    authority.issue("node", &["127.0.0.1"]);
    let second = eventually("the new certificate", async || {
        Some(shown(&addr, files(&authority, &app)).await).filter(|now| *now != before)
    })
    .await;
    // And at once with SIGHUP.
    authority.issue("node", &["127.0.0.1"]);
    server.process().signal(Signal::SIGHUP);
    eventually("the third certificate", async || {
        Some(shown(&addr, files(&authority, &app)).await).filter(|now| *now != second)
    })
    .await;
    // What cannot be used changes nothing.
    let third = shown(&addr, files(&authority, &app)).await;
    std::fs::write(&first.cert, "no certificate").unwrap();
    server.process().signal(Signal::SIGHUP);
    let line = server.process().wait_for_line("the last good ones stay").await;
    assert!(line.contains("node.pem"), "{line}");
    assert_eq!(shown(&addr, files(&authority, &app)).await, third);
    // A client whose own certificate is replaced goes on.
    authority.issue("app", &["127.0.0.1"]);
    let so_far = gets.load(Ordering::Relaxed);
    eventually("more gets", async || (gets.load(Ordering::Relaxed) > so_far + 100).then_some(())).await;
    stop.store(true, Ordering::Relaxed);
    load.await.expect("no get has failed");
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_give_rights_to_groups_and_two_secrets_are_good_at_a_time() {
    let secrets = tempfile::tempdir().unwrap();
    let secret = |name: &str, secret: &str| {
        let path = secrets.path().join(name);
        std::fs::write(&path, format!("{secret}\n")).unwrap();
        path.display().to_string()
    };
    let (old, new) = (secret("old", "old-secret-of-the-app"), secret("new", "new-secret-of-the-app"));
    let reader = secret("reader", "secret-of-a-reader");
    let other = secret("other", "secret-of-another-group");
    let server = node(&format!(
        "[[token]]\nname = \"app\"\nsecret_files = [\"{old}\", \"{new}\"]\nread = [\"*\"]\nwrite = [\"scores\"]\n\
         [[token]]\nname = \"reader\"\nsecret_files = [\"{reader}\"]\nread = [\"scores\"]\n\
         [[token]]\nname = \"other\"\nsecret_files = [\"{other}\"]\nread = [\"elsewhere\"]\nwrite = [\"elsewhere\"]\n"
    ))
    .await;
    for unary in [false, true] {
        let client = |token: &str| {
            let builder = of(&server).token(token);
            if unary { builder.unary() } else { builder }
        };
        for secret in ["old-secret-of-the-app", "new-secret-of-the-app"] {
            let scores = client(secret).build().await.unwrap().group("scores");
            scores.set("Tom", "1").await.unwrap();
            assert_eq!(scores.get("Tom").await.unwrap().unwrap(), "1");
            scores.delete("Tom").await.unwrap();
        }
        let scores = client("secret-of-a-reader").build().await.unwrap().group("scores");
        assert_eq!(scores.get("Tom").await.unwrap().unwrap(), "630");
        let denied = [
            scores.set("Tom", "1").await.unwrap_err(),
            scores.delete("Tom").await.unwrap_err(),
            scores.clear().await.unwrap_err(),
        ];
        for error in denied {
            assert_eq!(error.kind(), ErrorKind::PermissionDenied, "{error}");
            assert!(!error.is_retryable());
        }
        assert_eq!(scores.get("Tom").await.unwrap().unwrap(), "630", "nothing has changed");
        // Without the right to write nobody fills: the node loads by itself.
        let mine = async || Ok::<_, std::io::Error>(Some("mine"));
        assert_eq!(scores.get_or_load("Jack", mine).await.unwrap().unwrap(), "589");
        assert_eq!(kind(client("secret-of-another-group")).await, ErrorKind::PermissionDenied);
        assert_eq!(kind(client("old-secret-of-the-apq")).await, ErrorKind::Unauthenticated);
        let without = if unary { of(&server).unary() } else { of(&server) };
        assert_eq!(kind(without).await, ErrorKind::Unauthenticated);
    }
    // Health needs none.
    let client = of(&server).build().await.unwrap();
    client.probe().await;
    assert!(client.nodes()[0].up);
}

/// A node in a fleet with etcd, a writer's and a reader's token.
async fn fleet_with_tokens() -> (Etcd, ServerProcess, tempfile::TempDir) {
    let (etcd, secrets) = (Etcd::start().await, tempfile::tempdir().unwrap());
    let token = |name, rights| token_in(secrets.path(), name, rights);
    let config = format!(
        "listen = \"127.0.0.1:{}\"\n[etcd]\nendpoints = [\"{}\"]\n{}{}{SCORES}",
        free_port(),
        etcd.endpoint(),
        token("writer", "read = [\"*\"]\nwrite = [\"*\"]"),
        token("reader", "read = [\"*\"]")
    );
    let mut server = ServerProcess::start_with(SERVER, &config).await;
    server.registered().await;
    (etcd, server, secrets)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_changes_nothing_by_way_of_the_registry_either() {
    let (etcd, mut server, _secrets) = fleet_with_tokens().await;
    let client = async |who: &str| {
        let client = Client::builder().etcd([etcd.endpoint()]).token(format!("secret-of-the-{who}"));
        client.deadline(LONG).build().await.unwrap()
    };
    let (writer, reader) = (client("writer").await, client("reader").await);
    writer.group("scores").set("Tom", "1").await.unwrap();
    let denied = reader.group("scores").clear().await.unwrap_err();
    assert_eq!(denied.kind(), ErrorKind::PermissionDenied);
    assert_eq!(reader.group("scores").get("Tom").await.unwrap().unwrap(), "1");
    writer.group("scores").clear().await.unwrap();
    assert_eq!(reader.group("scores").get("Tom").await.unwrap().unwrap(), "630");
    // With the only node down there is nobody to ask.
    server.process().kill();
    assert_eq!(reader.group("scores").clear().await.unwrap_err().kind(), ErrorKind::Unavailable);
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_is_believed_what_they_say_of_the_ring() {
    let (etcd, server, _secrets) = fleet_with_tokens().await;
    let channel = tonic::transport::Endpoint::from_shared(format!("http://{}", server.addr())).unwrap();
    let mut raw = peanut_proto::v1::peanut_client::PeanutClient::new(channel.connect().await.unwrap());
    let mut ask = async |who: &str, ring_version: u64| {
        let (group, key) = ("scores".to_owned(), "Tom".into());
        let message = peanut_proto::v1::GetRequest { group, key, ring_version, ..Default::default() };
        let mut request = tonic::Request::new(message);
        let bearer = format!("Bearer secret-of-the-{who}").parse().unwrap();
        request.metadata_mut().insert("authorization", bearer);
        // Nor is a trace context that is none sent on.
        request.metadata_mut().insert("traceparent", "00-not-a-trace".parse().unwrap());
        raw.get(request).await.unwrap().into_inner().ring_version
    };
    assert_eq!(ask("reader", u64::MAX).await, 1);
    let writer = Client::builder().etcd([etcd.endpoint()]).token("secret-of-the-writer").deadline(LONG);
    writer.build().await.unwrap().group("scores").set("Tom", "1").await.unwrap();
    assert_eq!(ask("writer", 7).await, 1, "nor is anybody else: the registry has no such ring");
    let unknown = tonic::Code::Unauthenticated;
    let status = raw.get(peanut_proto::v1::GetRequest::default()).await.unwrap_err();
    assert_eq!(status.code(), unknown, "before anything of the request is read");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_is_never_sent_for_everybody_to_read() {
    let client = Client::builder().nodes(["192.0.2.1:9999"]).token("0123456789abcdef").deadline(LONG);
    let error = client.build().await.unwrap().group("scores").get("Tom").await.unwrap_err();
    assert!(error.to_string().contains("for everybody to read; use TLS"), "{error}");
}

#[test]
fn an_address_that_others_reach_wants_tls_or_the_word_insecure() {
    let run = |more: &[&str]| {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("peanut.toml"), SCORES).unwrap();
        let mut command = std::process::Command::new(SERVER);
        command.arg("--config").arg(dir.path().join("peanut.toml"));
        command.args(["--listen", "0.0.0.0:0", "--advertise", "127.0.0.1:0"]).args(more);
        (command, dir)
    };
    let (mut refused, _dir) = run(&[]);
    let output = refused.output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(78));
    assert!(stderr.contains("without TLS") && stderr.contains("insecure = true"), "{stderr}");
    assert_eq!(stderr.lines().count(), 1);
    let (mut allowed, _dir) = run(&["--insecure"]);
    let mut process = peanut_tests::Process::start("peanut-server", allowed.env("NO_COLOR", "1"));
    tokio::runtime::Runtime::new().unwrap().block_on(process.wait_for_line("listening on 0.0.0.0"));
}

/// Users of etcd with the rights that docs/operations.md grants to nodes, clients and readers, and no others.
async fn make_users(etcd: &mut etcd_client::Client) {
    etcd.user_add("root", "root-password", None).await.unwrap();
    etcd.user_grant_role("root", "root").await.unwrap();
    let page = std::fs::read_to_string(repository().join("docs/operations.md")).unwrap();
    let mut granted = BTreeMap::new();
    for line in page.lines() {
        let words: Vec<_> = line.split_whitespace().collect();
        let (role, how, key, is_prefix) = match words[..] {
            ["etcdctl", "role", "grant-permission", role, how, "--prefix", key] => (role, how, key, true),
            ["etcdctl", "role", "grant-permission", role, how, key] => (role, how, key, false),
            _ => continue,
        };
        let count: &mut usize = granted.entry(role.to_owned()).or_default();
        if *count == 0 {
            etcd.role_add(role).await.unwrap();
            etcd.user_add(role, format!("{role}-password"), None).await.unwrap();
            etcd.user_grant_role(role, role).await.unwrap();
        }
        *count += 1;
        if key.contains("$node") {
            continue; // The test does it when it knows the nodes.
        }
        let kind = if how == "read" { PermissionType::Read } else { PermissionType::Readwrite };
        let permission = etcd_client::Permission::new(kind, key);
        let permission = if is_prefix { permission.with_prefix() } else { permission };
        etcd.role_grant_permission(role, permission).await.unwrap();
    }
    let expected = [("client", 5), ("node", 6), ("reader", 3), ("scoreboard", 6)];
    assert_eq!(granted, expected.map(|(role, count)| (role.to_owned(), count)).into());
    etcd.auth_enable().await.unwrap();
}

async fn root(etcd: &Etcd) -> etcd_client::Client {
    let options = etcd_client::ConnectOptions::new().with_user("root", "root-password");
    etcd_client::Client::connect([etcd.endpoint()], Some(options)).await.unwrap()
}

#[expect(clippy::too_many_lines, reason = "one scene after the other")]
#[tokio::test(flavor = "multi_thread")]
async fn an_etcd_with_users_is_used_with_the_least_rights_while_logins_expire_and_roles_change() {
    // Logins that are not used for a second expire.
    let etcd = Etcd::start_with(None, Some(1)).await;
    make_users(&mut etcd_client::Client::connect([etcd.endpoint()], None).await.unwrap()).await;
    let password = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(password.path(), "node-password\n").unwrap();
    let config = |user: &str| {
        format!(
            "listen = \"127.0.0.1:{}\"\nlease_ttl = \"2s\"\n[etcd]\nendpoints = [\"{}\"]\nuser = \"{user}\"\npassword_file = \"{}\"\n{SCORES}",
            free_port(),
            etcd.endpoint(),
            password.path().display()
        )
    };
    let mut servers = Vec::new();
    for _ in 0..2 {
        servers.push(ServerProcess::start_with(SERVER, &config("node")).await);
    }
    for server in &mut servers {
        server.registered().await;
    }
    let registry = || etcd.registry().user("client", "client-password");
    let client = Client::builder().registry(registry()).deadline(LONG).build().await.unwrap();
    let whole = async |client: &Client, nodes: usize| {
        eventually("the ring", async || {
            let known = client.nodes();
            (known.len() == nodes && known.iter().all(|node| node.alive)).then_some(())
        })
        .await;
    };
    whole(&client, 2).await;
    assert_eq!(client.group("scores").get("Tom").await.unwrap().unwrap(), "630");
    // Expiry, and a change of users and roles: no lease is lost for it, and new nodes are heard of.
    tokio::time::sleep(Duration::from_millis(2500)).await;
    let mut operator = root(&etcd).await;
    operator.role_add("another").await.unwrap();
    operator.user_add("another", "password", None).await.unwrap();
    operator.user_grant_role("another", "another").await.unwrap();
    tokio::time::sleep(Duration::from_millis(2500)).await;
    assert!(client.nodes().iter().all(|node| node.alive), "{:?}", client.nodes());
    servers.push(ServerProcess::start_with(SERVER, &config("node")).await);
    servers[2].registered().await;
    whole(&client, 3).await;

    // What a client writes: word for a node that is down, and the generation of a group.
    servers[2].process().kill();
    client.group("scores").clear().await.unwrap();
    for n in 0..20 {
        client.group("scores").delete(format!("k{n}")).await.unwrap();
    }
    let client_cannot_drain = client.drain(servers[0].addr()).await.unwrap_err();
    assert_eq!(client_cannot_drain.kind(), ErrorKind::Unavailable, "{client_cannot_drain}");
    assert!(
        peanut_tests::source_of(&client_cannot_drain).contains("permission denied"),
        "{client_cannot_drain}"
    );
    servers[2].start_again().await;
    servers[2].registered().await;
    whole(&client, 3).await;

    // A client of one group may leave word of that, and of no other.
    for server in &servers {
        let key = format!("/peanut/default/undelivered/{}/scores/", server.addr());
        let permission = etcd_client::Permission::new(PermissionType::Readwrite, key).with_prefix();
        // The last login has expired.
        root(&etcd).await.role_grant_permission("scoreboard", permission).await.unwrap();
    }
    let scoreboard = etcd.registry();
    let scoreboard = scoreboard.user("scoreboard", "scoreboard-password");
    let rights = scoreboard.clone();
    let scoreboard = Client::builder().registry(scoreboard).deadline(LONG).build().await.unwrap();
    whole(&scoreboard, 3).await;
    servers[2].process().kill();
    let down = servers[2].addr().to_owned();
    for n in 0..20 {
        scoreboard.group("scores").delete(format!("k{n}")).await.unwrap();
    }
    scoreboard.group("scores").clear().await.unwrap();
    let refused = scoreboard.group("other").clear().await.unwrap_err();
    assert!(peanut_tests::source_of(&refused).contains("permission denied"), "{refused}");
    for key in [
        format!("undelivered/{down}/other/x-1"),
        "groups/other".to_owned(),
        format!("live/{down}"),
        "ring".to_owned(),
    ] {
        let refused = rights.put(&format!("/peanut/default/{key}"), b"x".to_vec(), None).await.unwrap_err();
        assert!(refused.to_string().contains("permission denied"), "{key}: {refused}");
    }
    servers[2].start_again().await;
    servers[2].registered().await;
    whole(&scoreboard, 3).await;

    let reader = etcd.registry().user("reader", "reader-password");
    let reader = Client::builder().registry(reader).deadline(LONG).build().await.unwrap();
    assert_eq!(reader.group("scores").get("Tom").await.unwrap().unwrap(), "630");
    let refused = reader.group("scores").clear().await.unwrap_err();
    assert!(peanut_tests::source_of(&refused).contains("permission denied"), "{refused}");
    let refused = etcd.registry().user("client", "wrong");
    let refused = Client::builder().registry(refused).ready_timeout(Duration::from_secs(1)).build().await;
    let refused = refused.unwrap_err();
    assert!(peanut_tests::source_of(&refused).contains("authentication failed"), "{refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_etcd_with_tls_takes_the_certificates_of_nodes_and_clients() {
    let authority = Authority::new();
    let [etcd_cert, node_cert, app] =
        ["etcd", "node", "app"].map(|name| authority.issue(name, &["127.0.0.1"]));
    let etcd = Etcd::start_with(Some((authority.ca(), etcd_cert)), None).await;
    let config = format!(
        "listen = \"127.0.0.1:{}\"\n{}{}endpoints = [\"{}\"]\n{SCORES}",
        free_port(),
        tls_of("tls", &authority.ca(), &node_cert),
        tls_of("etcd", &authority.ca(), &node_cert),
        etcd.endpoint()
    );
    let mut server = ServerProcess::start_with(SERVER, &config).await;
    server.registered().await;
    let registry = EtcdRegistry::new([etcd.endpoint()], EtcdRegistry::DEFAULT_TIMEOUT).unwrap();
    let client = Client::builder().registry(registry.clone().tls(files(&authority, &app)));
    let client = client.tls(tls(&authority, &app)).deadline(LONG).build().await.unwrap();
    assert_eq!(client.group("scores").get("Tom").await.unwrap().unwrap(), "630");
    let only_ca = TlsFiles { ca: Some(authority.ca()), ..TlsFiles::default() };
    let refused = Client::builder().registry(registry.tls(only_ca)).ready_timeout(Duration::from_secs(1));
    assert_eq!(refused.build().await.unwrap_err().kind(), ErrorKind::Unavailable);
}
