//! `--check-config --connect`: what the configuration names is tried.

use std::process::Command;
use std::time::Duration;

use peanut_tests::{Authority, Etcd, Origin, free_port};

use crate::{SCORES, SERVER};

/// The lines that it says, and its exit code.
fn connect(config: &str) -> (Vec<String>, Option<i32>) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("peanut.toml");
    std::fs::write(&path, config).unwrap();
    let mut command = Command::new(SERVER);
    command.arg("--config").arg(&path).args(["--check-config", "--connect"]).current_dir(dir.path());
    let output = command.output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap() + &String::from_utf8(output.stderr).unwrap();
    (text.lines().map(str::to_owned).collect(), output.status.code())
}

/// The one line that begins so.
fn line<'a>(lines: &'a [String], begins: &str) -> &'a str {
    let found: Vec<_> = lines.iter().filter(|line| line.starts_with(begins)).collect();
    assert_eq!(found.len(), 1, "`{begins}` in {lines:?}");
    found[0]
}

fn sql(name: &str, url: &str, query: &str, more: &str) -> String {
    format!(
        "[[group]]\nname = \"{name}\"\n[group.loader]\nkind = \"sql\"\nurl = \"{url}\"\nquery = \"{query}\"\n{more}\n"
    )
}

fn loader(name: &str, kind: &str, url: &str) -> String {
    format!("[[group]]\nname = \"{name}\"\n[group.loader]\nkind = \"{kind}\"\nurl = \"{url}\"\n")
}

/// A database with a table `scores`.
async fn database(path: &std::path::Path) -> String {
    use peanut_server::{LoadRequest, Loader as _, SqlLoader};
    let url = format!("sqlite:{}", path.display());
    let make = format!("{url}?mode=rwc");
    // A statement like any other.
    let maker = SqlLoader::new(&make, "CREATE TABLE scores (id TEXT, score TEXT DEFAULT '?')").unwrap();
    let _ = maker.load(&LoadRequest::new("", "")).await.unwrap();
    url
}

#[tokio::test(flavor = "multi_thread")]
async fn all_that_is_there_is_told_line_by_line() {
    let (etcd, origin) = (Etcd::start().await, Origin::start(Duration::ZERO).await);
    let (authority, dir) = (Authority::new(), tempfile::tempdir().unwrap());
    let certificate = authority.issue("node", &["127.0.0.1"]);
    let url = database(&dir.path().join("scores.db")).await;
    let query = "SELECT score FROM scores WHERE id = ?";
    let batch = "batch_query = \"SELECT id, score FROM scores WHERE id IN (?)\"";
    let config = format!(
        "listen = \"127.0.0.1:{}\"\n[etcd]\nendpoints = [\"{}\"]\n[tls]\nca = \"{}\"\ncert = \"{}\"\nkey = \"{}\"\n{SCORES}{}{}",
        free_port(),
        etcd.endpoint(),
        authority.ca().display(),
        certificate.cert.display(),
        certificate.key.display(),
        sql("rows", &url, query, batch),
        loader("pages", "http", origin.url()),
    );
    let (lines, code) = connect(&config);
    assert_eq!((code, lines.len()), (Some(0), 7), "{lines:?}");
    for begins in [
        "etcd http://",
        "group `scores`: ok",
        "group `rows`: ok",
        "group `pages`: ok",
        "tls.cert ",
        "tls.key ",
        "tls.ca ",
    ] {
        assert!(line(&lines, begins).contains(": ok"), "{lines:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_there_is_told_by_name_and_ends_with_78() {
    let dir = tempfile::tempdir().unwrap();
    let url = database(&dir.path().join("scores.db")).await;
    let missing = dir.path().join("missing.db");
    let port = free_port();
    let config = [
        format!("[etcd]\ntimeout = \"1s\"\nendpoints = [\"http://127.0.0.1:{port}\"]\n"),
        SCORES.to_owned(),
        sql("table", &url, "SELECT score FROM points WHERE id = ?", ""),
        sql("column", &url, "SELECT points FROM scores WHERE id = ?", ""),
        sql("syntax", &url, "SELEKT score FROM scores WHERE id = ?", ""),
        sql(
            "batch",
            &url,
            "SELECT score FROM scores WHERE id = ?",
            "batch_query = \"SELECT id, x FROM scores WHERE id IN (?)\"",
        ),
        sql("file", &format!("sqlite:{}", missing.display()), "SELECT score FROM scores WHERE id = ?", ""),
        sql("postgres", &format!("postgres://me:hidden-password@127.0.0.1:{port}/db"), "SELECT $1", ""),
        loader("http", "http", &format!("http://127.0.0.1:{port}/{{key}}")),
        loader("redis", "redis", &format!("redis://:hidden-password@127.0.0.1:{port}")),
        loader("grpc", "grpc", &format!("http://127.0.0.1:{port}")),
    ]
    .concat();
    let (lines, code) = connect(&config);
    assert_eq!((code, lines.len()), (Some(78), 11), "{lines:?}");
    assert_eq!(line(&lines, "group `scores`"), "group `scores`: ok");
    for (begins, why) in [
        ("etcd http://127.0.0.1:", "refused"),
        ("group `table`: ", "points"),
        ("group `column`: ", "points"),
        ("group `syntax`: ", "SELEKT"),
        ("group `batch`: ", "x"),
        ("group `file`: ", "missing.db"),
        ("group `postgres`: ", ""),
        ("group `http`: ", ""),
        ("group `redis`: ", ""),
        ("group `grpc`: ", ""),
    ] {
        let line = line(&lines, begins);
        assert!(!line.ends_with(": ok") && line.contains(why) && !line.contains("hidden-password"), "{line}");
    }
    assert!(!missing.exists(), "nothing is made");
}

#[test]
fn certificates_are_looked_at_expiry_key_and_names() {
    let authority = Authority::new();
    let good = authority.issue("good", &["127.0.0.1"]);
    let named = authority.issue("named", &["node-1"]);
    let elsewhere = authority.issue("elsewhere", &["node.example"]);
    let expired = authority.issue_for("expired", &["127.0.0.1"], Duration::ZERO);
    let tls = |cert: &std::path::Path, key: &std::path::Path, more: &str| {
        format!(
            "node_id = \"node-1\"\n[tls]\ncert = \"{}\"\nkey = \"{}\"\n{more}{SCORES}",
            cert.display(),
            key.display()
        )
    };
    let nodes = |config: String| format!("nodes = [\"127.0.0.1:9999\"]\n{config}");
    let (lines, code) = connect(&nodes(tls(&good.cert, &good.key, "")));
    assert_eq!(code, Some(0), "{lines:?}");
    let (lines, code) = connect(&nodes(tls(&named.cert, &named.key, "")));
    assert_eq!(code, Some(0), "its id is a name too: {lines:?}");
    let (lines, code) = connect(&nodes(tls(&elsewhere.cert, &elsewhere.key, "")));
    assert_eq!(code, Some(78));
    let told = line(&lines, "tls.cert ");
    assert!(["node.example", "127.0.0.1", "node-1"].iter().all(|name| told.contains(name)), "{told}");
    // The date has whole seconds.
    std::thread::sleep(Duration::from_secs(2));
    let (lines, code) = connect(&nodes(tls(&expired.cert, &expired.key, "")));
    assert_eq!(code, Some(78));
    assert!(line(&lines, "tls.cert ").contains("expired"), "{lines:?}");
    // The node would not even start with these.
    let (lines, code) = connect(&nodes(tls(&good.cert, &named.key, "")));
    assert!(code == Some(78) && lines.len() == 1 && lines[0].contains("good.pem"), "{lines:?}");
    let crl = authority.revoke(&["good"]);
    let more = format!("ca = \"{}\"\ncrl = \"{}\"\n", authority.ca().display(), crl.display());
    let (lines, code) = connect(&nodes(tls(&good.cert, &good.key, &more)));
    assert_eq!(code, Some(0), "{lines:?}");
    assert!(line(&lines, "tls.crl ").contains("next update"), "{lines:?}");
    let more = format!("ca = \"{}\"\ncrl = \"{}\"\n", authority.ca().display(), good.cert.display());
    let (lines, code) = connect(&nodes(tls(&good.cert, &good.key, &more)));
    assert!(code == Some(78) && lines[0].contains("no list of revoked certificates"), "{lines:?}");
}

#[test]
fn it_goes_with_the_check_only() {
    let output = Command::new(SERVER).arg("--connect").output().unwrap();
    assert_eq!(output.status.code(), Some(78));
}
