//! What a node writes: logs of every format, traces that reach the origin, and its configuration.

use std::process::Command;
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::http::HeaderMap;
use peanut_client::Client;
use peanut_tests::{Process, free_port};
use tokio::net::TcpListener;

use crate::{SCORES, SERVER};

const TRACE: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

/// A node of its own with this log configuration and group, once it listens.
async fn start(groups: &str, args: &[&str], log: &str) -> (Process, String, tempfile::TempDir) {
    let (directory, addr) = (tempfile::tempdir().unwrap(), format!("127.0.0.1:{}", free_port()));
    let path = directory.path().join("peanut.toml");
    std::fs::write(&path, format!("listen = \"{addr}\"\n{groups}")).unwrap();
    let mut command = Command::new(SERVER);
    command.arg("--config").arg(path).args(args).env("RUST_LOG", log).env("NO_COLOR", "1");
    let mut process = Process::start("peanut-server", &mut command);
    process.wait_for_line("listening on ").await;
    (process, addr, directory)
}

#[tokio::test(flavor = "multi_thread")]
async fn logs_are_text_pretty_or_json_and_have_no_keys_above_debug() {
    for format in ["text", "pretty", "json"] {
        let format_flag = format!("--log-format={format}");
        let (process, addr, _directory) = start(SCORES, &[&format_flag], "info").await;
        let client = Client::builder().nodes([&addr]).build().await.unwrap();
        for key in ["Tom", "a-key-of-somebody", ""] {
            let _ = client.group("scores").get(key).await;
            let _ = client.group("scores").set(key, "v").await;
            let _ = client.group("scores").delete(key).await;
        }
        let log = process.log();
        assert!(log.iter().all(|line| !line.contains("a-key-of-somebody")), "{log:?}");
        let line = log.iter().find(|line| line.contains("listening on")).unwrap();
        match format {
            "json" => {
                let json: serde_json::Value = serde_json::from_str(line).unwrap();
                assert_eq!((json["level"].as_str(), json["message"].is_string()), (Some("INFO"), true));
            }
            _ => assert!(line.contains("INFO"), "{line}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_callers_trace_is_in_the_nodes_span_and_goes_on_to_the_origin() {
    let seen: Arc<Mutex<Vec<String>>> = Arc::default();
    let origin = Router::new().fallback({
        let seen = seen.clone();
        async move |headers: HeaderMap| {
            let trace = headers.get("traceparent").and_then(|value| value.to_str().ok()).unwrap_or("none");
            seen.lock().unwrap().push(trace.to_owned());
            "a value"
        }
    });
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/{{key}}", listener.local_addr().unwrap());
    let serving = tokio::spawn(async move { axum::serve(listener, origin).await });
    let group = peanut_tests::group_from("pages", &url, "");
    let spans = "info,peanut_server::cache=debug,reqwest=trace,hyper_util=trace";
    let (mut process, addr, _directory) = start(&group, &[], spans).await;
    for unary in [false, true] {
        let builder = Client::builder().nodes([&addr]).trace_context(|| Some(TRACE.to_owned()));
        let builder = if unary { builder.unary() } else { builder };
        let client = builder.build().await.unwrap();
        client.group("pages").get(format!("a{unary}")).await.unwrap();
        client.group("pages").get_detailed(format!("b{unary}")).await.unwrap();
        client.group("pages").get_many([format!("c{unary}")]).await.remove(0).unwrap();
    }
    let without = Client::builder().nodes([&addr]).build().await.unwrap();
    without.group("pages").get("d").await.unwrap();
    let seen = seen.lock().unwrap().clone();
    assert_eq!(seen, [[TRACE; 6].as_slice(), &["none"]].concat());
    let line = process.wait_for_line(TRACE).await;
    assert!(line.contains("load{group=\"pages\" keys=1"), "{line}");
    serving.abort();
}

fn run(config: &str, args: &[&str], env: &[(&str, &str)]) -> (Option<i32>, String, String) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("peanut.toml");
    std::fs::write(&path, config).unwrap();
    let command = &mut Command::new(SERVER);
    let output = command.arg("--config").arg(&path).args(args).envs(env.iter().copied()).output().unwrap();
    let text = |bytes: Vec<u8>| {
        String::from_utf8(bytes).unwrap().replace(&format!("{}/", directory.path().display()), "")
    };
    (output.status.code(), text(output.stdout), text(output.stderr))
}

#[test]
fn a_configuration_can_be_checked_without_running() {
    assert_eq!(
        run(SCORES, &["--check-config"], &[]),
        (Some(0), "the configuration is good\n".into(), "".into())
    );
    for (config, why) in [
        ("lisen = \"x\"", "peanut.toml:1: unknown field"),
        (&format!("log = \"a=b=c\"\n{SCORES}"), "log: `a=b=c`"),
        (
            &format!("{SCORES}[tls]\ncert = \"no/such.pem\"\nkey = \"no/such.key\"\n"),
            "no/such.pem: No such file",
        ),
        (&format!("listen = \"0.0.0.0:1\"\nadvertise = \"h:1\"\n{SCORES}"), "without TLS"),
        (&format!("admin = \"0.0.0.0:1\"\n{SCORES}"), "without TLS"),
        (
            &format!("{SCORES}[[token]]\nname = \"t\"\nsecret_files = [\"no/such\"]\n"),
            "no/such: No such file",
        ),
        (&format!("{SCORES}[[token]]\nname = \"t\"\nsecret_files = []\n"), "token `t`: it has no secret"),
        (&format!("[etcd]\nendpoints = [\"http://h:1\"]\nuser = \"u\"\n{SCORES}"), "etcd.user: it needs"),
        (&format!("[etcd]\nendpoints = [\"https://h:1\"]\n{SCORES}"), "`ca` is needed"),
        (&format!("[etcd]\nendpoints = [\"http://h:1\"]\nca = \"x\"\n{SCORES}"), "begins with https://"),
        (&SCORES.replace("name =", "refresh_after = \"8d\"\nname ="), "refresh_after must be"),
    ] {
        let (code, stdout, stderr) = run(config, &["--check-config"], &[]);
        assert_eq!((code, stdout.as_str()), (Some(78), ""), "{config}: {stderr}");
        assert!(stderr.contains(why) && stderr.trim_end().lines().count() == 1, "{stderr}");
    }
}

#[test]
fn every_setting_is_printed_with_its_source_and_without_secrets() {
    let database = "[[group]]\nname = \"rows\"\n[group.loader]\nkind = \"sql\"\nquery = \"SELECT $1\"\n\
                    url = \"postgres://me:secret-of-the-database@h/db\"\n";
    let config =
        format!("fleet = \"blue\"\nweight = 2\n{SCORES}{database}[etcd]\nendpoints = [\"http://h:1\"]\n");
    let args = ["--print-config", "--zone", "7", "--lease-ttl=7s", "--insecure", "--max-connections=9"];
    let nodes = ("PEANUT_ETCD_ENDPOINTS", "http://h:1,http://h:2");
    let environment = [("PEANUT_NODE_ID", "node-1"), ("RUST_LOG", "warn"), nodes];
    let (code, stdout, stderr) = run(&config, &args, &environment);
    assert_eq!((code, stderr.as_str()), (Some(0), ""));
    for line in [
        "fleet = \"blue\" # peanut.toml",
        "weight = 2 # peanut.toml",
        "zone = \"7\" # --zone",
        "insecure = true # --insecure",
        "max_connections = 9 # --max-connections",
        "endpoints = [\"http://h:1\", \"http://h:2\"] # PEANUT_ETCD_ENDPOINTS",
        "lease_ttl = \"7s\" # --lease-ttl",
        "node_id = \"node-1\" # PEANUT_NODE_ID",
        "log = \"warn\" # RUST_LOG",
        "# listen = \"127.0.0.1:9999\" # default",
        "# data_dir is not set",
        "[etcd]",
        "[[group]] # peanut.toml",
    ] {
        assert!(stdout.lines().any(|found| found == line), "no `{line}` in\n{stdout}");
    }
    assert!(!stdout.contains("secret-of-"), "{stdout}");
    assert!(!stdout.contains("secret-of-the-database") && stdout.contains("me:<hidden>@h/db"), "{stdout}");
    // What is printed is a configuration that comes to the same.
    let usable = stdout.replace("<hidden>", "x");
    let (code, again, stderr) = run(&usable, &["--print-config"], &[]);
    assert_eq!(code, Some(0), "{stderr}\n{usable}");
    assert!(again.contains("max_connections = 9 # peanut.toml"), "{again}");
}
