//! What operators see: the page in a real browser, metrics beside their table, health, and the services
//! behind them.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::Duration;

use peanut_client::Client;
use peanut_tests::{Authority, Etcd, PATIENCE, ServerProcess, eventually, free_port, http_client, token_in};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::{SCORES, SERVER, client};

/// Nodes with admin ports; their groups have nothing of the key `broken`.
pub(crate) async fn fleet(nodes: usize) -> (Etcd, Vec<(ServerProcess, String)>) {
    let etcd = Etcd::start().await;
    let mut servers = Vec::new();
    for _ in 0..nodes {
        let (port, admin) = (free_port(), format!("127.0.0.1:{}", free_port()));
        let own = format!("listen = \"127.0.0.1:{port}\"\nadmin = \"{admin}\"\n");
        let joins = format!("[etcd]\nendpoints = [\"{}\"]\n", etcd.endpoint());
        let broken = "[[group]]\nname = \"broken\"\n[group.loader]\nkind = \"http\"\nurl = \"http://127.0.0.1:1/{key}\"\n";
        let server = ServerProcess::start_with(SERVER, &format!("{own}{joins}{SCORES}{broken}")).await;
        servers.push((server, admin));
    }
    for (server, _) in &mut servers {
        server.registered().await;
    }
    (etcd, servers)
}

pub(crate) async fn get(admin: &str, path: &str) -> (u16, String) {
    let response = http_client().get(format!("http://{admin}{path}")).send().await.unwrap();
    (response.status().as_u16(), response.text().await.unwrap())
}

pub(crate) async fn status(admin: &str) -> serde_json::Value {
    serde_json::from_str(&get(admin, "/status").await.1).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn counts_are_what_was_done_and_health_says_whether_to_send_anybody() {
    let (etcd, servers) = fleet(1).await;
    let client = client(&etcd, 1).await;
    let admin = servers[0].1.clone();
    assert_eq!(get(&admin, "/healthz").await, (200, "ok\n".to_owned()));
    assert_eq!(get(&admin, "/readyz").await.0, 200);
    assert_eq!(get(&admin, "/elsewhere").await.0, 404);
    let scores = client.group("scores");
    for _ in 0..10 {
        scores.get("Tom").await.unwrap();
    }
    scores.get("Nobody").await.unwrap();
    scores.get("Nobody").await.unwrap();
    scores.set("Jack", "1").await.unwrap();
    scores.delete("Jack").await.unwrap();
    client.group("broken").get("x").await.unwrap_err();
    let status = status(&admin).await;
    let group = |name: &str| {
        let groups = status["groups"].as_array().unwrap();
        groups.iter().find(|group| group["name"] == name).unwrap().clone()
    };
    assert_eq!((&group("scores")["entries"], &group("broken")["load_failures"]), (&2.into(), &1.into()));
    let (_, metrics) = get(&admin, "/metrics").await;
    for line in [
        "peanut_gets_total{group=\"scores\",outcome=\"hit\"} 9",
        "peanut_gets_total{group=\"scores\",outcome=\"loaded\"} 2",
        "peanut_gets_total{group=\"scores\",outcome=\"negative\"} 1",
        "peanut_gets_total{group=\"scores\",outcome=\"error\"} 0",
        "peanut_get_seconds_count{group=\"scores\"} 12",
        "peanut_keys_loaded_total{group=\"scores\"} 2",
        "peanut_gets_total{group=\"broken\",outcome=\"error\"} 1",
        "peanut_failures_total{code=\"loader_failed\"} 1",
        "peanut_failures_total{code=\"overloaded\"} 0",
        "peanut_sets_total{group=\"scores\"} 1",
        "peanut_deletes_total{group=\"scores\"} 1",
        "peanut_load_seconds_count{group=\"scores\"} 2",
        "peanut_capacity_bytes{group=\"scores\"} 67108864",
        "peanut_lanes 2",
        "peanut_ready 1",
    ] {
        let whole = |found: &str| found == line || found == format!("{line}.0");
        assert!(metrics.lines().any(whole), "no `{line}` in\n{metrics}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_refused_is_counted_by_what_was_answered() {
    let secrets = tempfile::tempdir().unwrap();
    let token = |name, rights| token_in(secrets.path(), name, rights);
    let (addr, admin) = (format!("127.0.0.1:{}", free_port()), format!("127.0.0.1:{}", free_port()));
    let own = format!("listen = \"{addr}\"\nnodes = [\"{addr}\"]\nadmin = \"{admin}\"\n");
    let tokens = token("operator", "admin = true") + &token("reader", "read = [\"*\"]");
    let server = ServerProcess::start_with(SERVER, &format!("{own}{tokens}{SCORES}")).await;
    for unary in [false, true] {
        let client = async |token: &str| {
            let builder = Client::builder().nodes([server.addr()]).token(token);
            if unary { builder.unary() } else { builder }.build().await.unwrap()
        };
        let reader = client("secret-of-the-reader").await;
        reader.group("scores").get("Tom").await.unwrap();
        reader.group("scores").set("Tom", "1").await.unwrap_err();
        reader.group("nowhere").get("Tom").await.unwrap_err();
        client("secret-of-a-thief").await.group("scores").get("Tom").await.unwrap_err();
    }
    assert_eq!(get(&admin, "/status").await.0, 401);
    let asked = http_client().get(format!("http://{admin}/status")).bearer_auth("secret-of-the-operator");
    let status = asked.send().await.unwrap().text().await.unwrap();
    let status: serde_json::Value = serde_json::from_str(&status).unwrap();
    let mut failures = status["failures"].as_object().unwrap().clone();
    // A client may try to open its lane more than once.
    assert!(failures.remove("unauthenticated").unwrap().as_u64() >= Some(3), "{status}");
    assert_eq!(
        serde_json::Value::from(failures),
        serde_json::json!({ "permission_denied": 2, "unknown_group": 2 })
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_finishes_its_last_calls_is_not_ready_for_others() {
    let origin = peanut_tests::Origin::start(Duration::from_secs(4)).await;
    let (port, admin) = (free_port(), format!("127.0.0.1:{}", free_port()));
    let own = format!("listen = \"127.0.0.1:{port}\"\nadmin = \"{admin}\"\nnodes = [\"127.0.0.1:{port}\"]\n");
    let slow = peanut_tests::group_from("slow", origin.url(), "");
    let mut server = ServerProcess::start_with(SERVER, &format!("{own}{slow}")).await;
    let client =
        Client::builder().nodes([server.addr()]).deadline(Duration::from_secs(20)).build().await.unwrap();
    let last = tokio::spawn(async move { client.group("slow").get("k").await });
    eventually("the load to begin", async || (origin.asked_for("k") == 1).then_some(())).await;
    assert_eq!(get(&admin, "/readyz").await.0, 200);
    server.process().signal(nix::sys::signal::Signal::SIGTERM);
    eventually("readiness to end", async || (get(&admin, "/readyz").await.0 == 503).then_some(())).await;
    assert_eq!(get(&admin, "/healthz").await.0, 200);
    assert!(last.await.unwrap().is_ok(), "the last call is finished");
}

/// The rows of the tables in METRICS.md whose names begin so, and not so: name to kind and labels.
pub(crate) fn documented(prefix: &str, but: &[&str]) -> BTreeMap<String, (String, String)> {
    let text = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../METRICS.md")).unwrap();
    let rows = text.lines().filter(|line| line.starts_with("| `peanut"));
    let cells = rows.map(|row| row.trim_matches('|').split('|').map(str::trim).collect::<Vec<_>>());
    let named = cells.map(|cells| {
        let name = cells[0].trim_matches('`').to_owned();
        (name, (cells[1].to_owned(), cells[2].replace('`', "")))
    });
    let is_other = |name: &str| but.iter().any(|but| name.starts_with(but));
    named.filter(|(name, _)| name.starts_with(prefix) && !is_other(name)).collect()
}

/// What a text of metrics has: name to kind and labels.
pub(crate) fn said_by(metrics: &str) -> BTreeMap<String, (String, String)> {
    let mut said = BTreeMap::new();
    for line in metrics.lines().filter_map(|line| line.strip_prefix("# TYPE ")) {
        let (name, kind) = line.split_once(' ').unwrap();
        let name = if kind == "counter" { format!("{name}_total") } else { name.to_owned() };
        let name = if kind == "info" { format!("{name}_info") } else { name };
        let samples = metrics
            .lines()
            .filter(|line| line.strip_prefix(&*name).is_some_and(|rest| rest.starts_with(['{', ' ', '_'])));
        let mut labels = BTreeSet::new();
        for sample in samples {
            let Some((inside, _)) = sample.split_once('{').and_then(|(_, rest)| rest.split_once('}')) else {
                continue;
            };
            labels.extend(inside.split(',').map(|label| label.split_once('=').unwrap().0.to_owned()));
        }
        labels.remove("le");
        said.insert(name, (kind.to_owned(), labels.into_iter().collect::<Vec<_>>().join(", ")));
    }
    said
}

#[tokio::test(flavor = "multi_thread")]
async fn the_table_of_metrics_is_what_the_node_says() {
    let (etcd, servers) = fleet(1).await;
    client(&etcd, 1).await.group("scores").get("Tom").await.unwrap();
    let (_, metrics) = get(&servers[0].1, "/metrics").await;
    assert_eq!(documented("peanut_", &["peanut_client_", "peanut_proxy_"]), said_by(&metrics));
    assert!(metrics.ends_with("# EOF\n"));
}

#[test]
fn the_table_of_metrics_is_what_a_client_says() {
    use metrics_util::debugging::{DebugValue, DebuggingRecorder};
    let recorder = DebuggingRecorder::new();
    let snapshots = recorder.snapshotter();
    // Threads of its own, so that the recorder is this test's alone.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    metrics::with_local_recorder(&recorder, || {
        runtime.block_on(async {
            let (etcd, _servers) = fleet(1).await;
            let client = client(&etcd, 1).await;
            for _ in 0..5 {
                client.group("scores").get("Tom").await.unwrap();
            }
            client.group("scores").set("Tom", "1").await.unwrap();
            client.group("broken").get("x").await.unwrap_err();
            let (mut sums, mut timed) = (BTreeMap::new(), 0);
            let said = eventually("the counts to be told", async || {
                let mut said: BTreeMap<String, (String, String)> = BTreeMap::new();
                for (key, _, _, value) in snapshots.snapshot().into_vec() {
                    let labels: Vec<_> = key.key().labels().map(|label| label.key().to_owned()).collect();
                    let kind = match value {
                        DebugValue::Counter(count) => {
                            let outcome =
                                key.key().labels().map(|l| l.value().to_owned()).collect::<Vec<_>>();
                            // Reading takes the counts.
                            *sums.entry((key.key().name().to_owned(), outcome.join(","))).or_insert(0) +=
                                count;
                            "counter"
                        }
                        DebugValue::Gauge(_) => "gauge",
                        DebugValue::Histogram(times) => {
                            timed += times.len();
                            "histogram"
                        }
                    };
                    said.insert(key.key().name().to_owned(), (kind.to_owned(), labels.join(", ")));
                }
                let errors = ("peanut_client_errors_total".to_owned(), "default,broken".to_owned());
                let is_told = sums.get(&errors);
                (is_told == Some(&1)).then_some(said)
            })
            .await;
            assert_eq!(documented("peanut_client_", &[]), said);
            let gets = |outcome: &str| {
                sums[&("peanut_client_gets_total".to_owned(), format!("default,scores,{outcome}"))]
            };
            assert_eq!((gets("hit"), gets("loaded"), gets("stale")), (4, 1, 0));
            assert_eq!(timed, 6, "each get, also the one that has failed");
            assert_eq!(sums[&("peanut_client_writes_total".to_owned(), "default,scores".to_owned())], 1);
        });
    });
}

/// What goes on beside a client's calls begins anew on another runtime, and the counts are the same.
#[test]
fn a_client_that_outlives_a_runtime_counts_nothing_twice() {
    use metrics_util::debugging::{DebugValue, DebuggingRecorder};
    let recorder = DebuggingRecorder::new();
    let snapshots = recorder.snapshotter();
    let small = || tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let told = |to: &mut u64| {
        let gets = |key: &metrics::Key| {
            key.name() == "peanut_client_gets_total" && key.labels().any(|label| label.value() == "hit")
        };
        for (key, _, _, value) in snapshots.snapshot().into_vec() {
            if let (true, DebugValue::Counter(count)) = (gets(key.key()), value) {
                // Reading takes the counts.
                *to += count;
            }
        }
    };
    metrics::with_local_recorder(&recorder, || {
        let (first, second) = (small(), small());
        let (_etcd, _servers, client) = first.block_on(async {
            let (etcd, servers) = fleet(1).await;
            let client = client(&etcd, 1).await;
            client.group("scores").get("Tom").await.unwrap();
            (etcd, servers, client)
        });
        let (mut sum, mut hits) = (0, 0);
        // Two that take turns to stand still, and then one of them has ended.
        let mut first = Some(first);
        for round in 0..6 {
            let runtime = if round % 2 == 0 { first.as_ref().unwrap_or(&second) } else { &second };
            runtime.block_on(async {
                for _ in 0..10 {
                    client.group("scores").get("Tom").await.unwrap();
                    hits += 1;
                    tokio::time::sleep(Duration::from_millis(250)).await;
                }
            });
            told(&mut sum);
            assert!(sum <= hits, "{sum} of {hits} were told");
            if round == 3 {
                first = None;
            }
        }
        second.block_on(eventually("all to be told", async || {
            client.group("scores").get("Tom").await.unwrap();
            hits += 1;
            tokio::time::sleep(Duration::from_millis(1500)).await;
            told(&mut sum);
            assert!(sum <= hits, "{sum} of {hits} were told");
            (sum == hits).then_some(())
        }));
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn the_admin_port_has_the_nodes_certificate_and_wants_its_tokens() {
    let authority = Authority::new();
    let certificate = authority.issue("node", &["127.0.0.1"]);
    let secret = authority.directory().join("secret");
    std::fs::write(&secret, "secret-of-operators").unwrap();
    let reader = authority.directory().join("reader");
    std::fs::write(&reader, "secret-of-a-reader").unwrap();
    let (port, admin) = (free_port(), format!("127.0.0.1:{}", free_port()));
    let config = format!(
        "listen = \"127.0.0.1:{port}\"\nnodes = [\"127.0.0.1:{port}\"]\nadmin = \"{admin}\"\n\
         [tls]\ncert = \"{}\"\nkey = \"{}\"\n\
         [[token]]\nname = \"operators\"\nsecret_files = [\"{}\"]\nadmin = true\n\
         [[token]]\nname = \"reader\"\nsecret_files = [\"{}\"]\nread = [\"*\"]\n{SCORES}",
        certificate.cert.display(),
        certificate.key.display(),
        secret.display(),
        reader.display()
    );
    let server = ServerProcess::start_with(SERVER, &config).await;
    let _ = http_client();
    let ca = reqwest::Certificate::from_pem(&std::fs::read(authority.ca()).unwrap()).unwrap();
    let http = reqwest::Client::builder().tls_certs_only([ca]).build().unwrap();
    let url = |path: &str| format!("https://{admin}{path}");
    let code = async |request: reqwest::RequestBuilder| request.send().await.unwrap().status().as_u16();
    assert_eq!(code(http.get(url("/healthz"))).await, 200);
    for path in ["/", "/status", "/metrics"] {
        assert_eq!(code(http.get(url(path))).await, 401, "{path}");
        assert_eq!(code(http.get(url(path)).bearer_auth("secret-of-operatorx")).await, 401);
        assert_eq!(code(http.get(url(path)).bearer_auth("secret-of-a-reader")).await, 403);
        assert_eq!(code(http.get(url(path)).bearer_auth("secret-of-operators")).await, 200);
        assert_eq!(code(http.get(url(path)).basic_auth("me", Some("secret-of-operators"))).await, 200);
    }
    let plain = reqwest::Client::new().get(format!("http://{admin}/healthz")).send().await;
    assert!(plain.is_err(), "nobody speaks without TLS there");
    // The same by gRPC, as the command has it.
    let tls = peanut_client::Tls::new(authority.ca());
    let with = async |token: &str| {
        let client = Client::builder().nodes([server.addr()]).tls(tls.clone()).token(token);
        let client = client.deadline(Duration::from_secs(5)).build().await.unwrap();
        client.reports(3).await.remove(0).1
    };
    assert_eq!(with("secret-of-operators").await.unwrap().groups[0].name, "scores");
    let denied = with("secret-of-a-reader").await.unwrap_err();
    assert_eq!(denied.kind(), peanut_client::ErrorKind::PermissionDenied);
}

/// What a raw request is answered: its first line.
async fn raw(admin: &str, request: &str) -> String {
    let mut stream = TcpStream::connect(admin).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    let _ = timeout(PATIENCE, stream.read_to_end(&mut answer)).await.expect("an answer");
    String::from_utf8_lossy(&answer).lines().next().unwrap_or_default().to_owned()
}

async fn node_with_admin(more: &str) -> (ServerProcess, String) {
    let (addr, admin) = (format!("127.0.0.1:{}", free_port()), format!("127.0.0.1:{}", free_port()));
    let own = format!("listen = \"{addr}\"\nnodes = [\"{addr}\"]\nadmin = \"{admin}\"\n");
    (ServerProcess::start_with(SERVER, &format!("{own}{more}{SCORES}")).await, admin)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_of_another_site_that_leads_its_name_here_reads_nothing() {
    let (_server, admin) = node_with_admin("admin_hosts = [\"ops.example\"]\n").await;
    let port = admin.rsplit_once(':').unwrap().1;
    let ask = async |target: &str, hosts: &str| {
        raw(&admin, &format!("GET {target} HTTP/1.1\r\n{hosts}Connection: close\r\n\r\n")).await
    };
    for host in ["127.0.0.1", "localhost", "10.1.2.3", "[::1]", "ops.example", "OPS.example."] {
        for path in ["/", "/status", "/metrics"] {
            let said = ask(path, &format!("Host: {host}:{port}\r\n")).await;
            assert!(said.contains(" 200 "), "{host}{path}: {said}");
        }
    }
    for hosts in [
        "Host: evil.example\r\n",
        "Host: ops.example.evil.example\r\n",
        "Host: 127.0.0.1.evil.example\r\n",
        "Host: localhost@evil.example\r\n",
        "Host: 127.0.0.1\r\nHost: evil.example\r\n",
        "Host: evil.example\r\nHost: 127.0.0.1\r\n",
        "Host: \r\n",
        "",
    ] {
        for path in ["/", "/status", "/metrics"] {
            let said = ask(path, hosts).await;
            assert!(said.contains(" 421 ") || said.contains(" 400 "), "{hosts:?}{path}: {said}");
        }
    }
    // The target's host counts too, where it has one.
    let said = ask("http://evil.example/status", "Host: 127.0.0.1\r\n").await;
    assert!(said.contains(" 421 "), "{said}");
    // Health tells nothing, and is asked by whatever name there is.
    assert!(ask("/healthz", "Host: evil.example\r\n").await.contains(" 200 "));
    // Nothing writes, whoever's form or script it is.
    for method in ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "BREW"] {
        for path in ["/", "/status", "/metrics", "/healthz", "/elsewhere"] {
            let request = format!(
                "{method} {path} HTTP/1.1\r\nHost: {admin}\r\nOrigin: http://evil.example\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
            );
            let said = raw(&admin, &request).await;
            assert!(said.contains(" 405 "), "{method} {path}: {said}");
        }
    }
    let request = format!("HEAD /status HTTP/1.1\r\nHost: {admin}\r\nConnection: close\r\n\r\n");
    assert!(raw(&admin, &request).await.contains(" 200 "));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_names_in_the_admin_ports_certificate_are_its_own() {
    let authority = Authority::new();
    let certificate = authority.issue("node", &["127.0.0.1", "node.example", "*.fleet.example"]);
    let tls = format!(
        "[tls]\ncert = \"{}\"\nkey = \"{}\"\n",
        certificate.cert.display(),
        certificate.key.display()
    );
    let (_server, admin) = node_with_admin(&tls).await;
    let _ = http_client();
    let ca = reqwest::Certificate::from_pem(&std::fs::read(authority.ca()).unwrap()).unwrap();
    let http = reqwest::Client::builder().tls_certs_only([ca]).build().unwrap();
    for (host, code) in
        [("node.example", 200), ("a.fleet.example", 200), ("fleet.example", 421), ("evil.example", 421)]
    {
        let request = http.get(format!("https://{admin}/status")).header("host", host);
        assert_eq!(request.send().await.unwrap().status().as_u16(), code, "{host}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn health_is_told_beside_more_idle_and_slow_connections_than_there_may_be() {
    let (server, admin) = node_with_admin("").await;
    let mut held = Vec::new();
    for n in 0..150 {
        let mut stream = TcpStream::connect(&admin).await.unwrap();
        let said: &[u8] = match n % 4 {
            0 => b"",
            1 => b"GET /status HT",
            // One that could ask again, and one that does not read what it has asked for.
            2 => b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n",
            _ => b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\nGET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
        };
        let _ = stream.write_all(said).await;
        held.push(stream);
        if n % 10 == 9 {
            let begun = peanut_tests::now();
            assert_eq!(get(&admin, "/healthz").await, (200, "ok\n".to_owned()));
            assert_eq!(get(&admin, "/readyz").await.0, 200);
            println!("told after {:?}", begun.elapsed());
        }
    }
    assert_eq!(get(&admin, "/status").await.0, 200);
    drop((held, server));
}
