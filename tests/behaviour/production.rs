//! The walk of "In production" in docs/operations.md, as it stands there.

use std::process::Command;

use peanut_tests::{Database, Etcd, eventually, http_client, now};

use crate::walk::{Walk, lines_on_page, repository};

const WALK: &str = "examples/production/walk.sh";

#[test]
fn the_page_has_the_walk_as_it_runs() {
    let lines = lines_on_page(WALK, "docs/operations.md");
    assert!(lines <= 10, "{lines} lines");
    let config = std::fs::read_to_string(repository().join("examples/production/peanut.toml")).unwrap();
    assert!(config.contains("${DATABASE_URL}"));
}

#[tokio::test(flavor = "multi_thread")]
async fn three_nodes_over_mutual_tls_before_100_000_rows_lose_one_and_no_get() {
    let (etcd, database) = (Etcd::start().await, Database::postgres(&[]).await);
    let mut walk = Walk::prepare().await;
    let psql = Command::new("sh").args(["-c", "command -v psql"]).output().unwrap();
    assert!(psql.status.success(), "psql comes with PostgreSQL's package");
    std::fs::copy(repository().join("examples/production/peanut.toml"), walk.directory().join("peanut.toml"))
        .unwrap();
    let fleet = [("DATABASE_URL", database.url().to_owned()), ("PEANUT_ETCD_ENDPOINTS", etcd.endpoint())];
    walk.start(WALK, &fleet);

    // A person has the page open, and `peanut top` on a terminal.
    let members = async || {
        let response = http_client().get("http://127.0.0.1:11001/status").send().await.ok()?;
        let status: serde_json::Value = serde_json::from_str(&response.text().await.ok()?).ok()?;
        Some(status["nodes"].as_array()?.clone())
    };
    eventually("three nodes on the page", async || {
        members()
            .await
            .filter(|members| members.len() == 3 && members.iter().all(|member| member["health"] == "up"))
    })
    .await;
    let top = tokio::task::spawn_blocking({
        let (directory, environment) = (walk.directory().to_owned(), walk.environment());
        move || {
            let files = ["CA=certs/ca.pem", "CERT=certs/app.pem", "KEY=certs/app.key"];
            let run =
                "(sleep 12; printf q; sleep 1) | script -qec 'stty rows 40 cols 140; peanut top' /dev/null";
            let mut command = Command::new("sh");
            command.args(["-c", run]).current_dir(directory).envs(environment).envs(fleet);
            command.envs(
                files
                    .iter()
                    .map(|file| file.split_once('=').unwrap())
                    .map(|(k, v)| (format!("PEANUT_TLS_{k}"), v)),
            );
            command.output().unwrap()
        }
    });
    // The last one is killed six seconds after the load has begun: the page shows it red.
    let port_is_open = || std::net::TcpStream::connect("127.0.0.1:10003").is_ok();
    eventually("the node to be killed", async || (!port_is_open()).then_some(())).await;
    let killed = now();
    eventually("the page to show it", async || {
        let members = members().await?;
        members
            .iter()
            .any(|member| member["addr"] == "127.0.0.1:10003" && member["health"] == "down")
            .then_some(())
    })
    .await;
    println!("the page showed the node as down {:?} after it was", killed.elapsed());

    let ended = walk.ended().await;
    let said = walk.log();
    assert!(ended.success(), "{said}");
    assert!(said.contains("score 42"), "{said}");
    let report = std::fs::read_to_string(walk.directory().join("bench.json")).unwrap();
    let report: serde_json::Value = serde_json::from_str(&report).unwrap();
    assert!(report["gets"].as_u64().unwrap() > 10_000, "{report}");
    assert_eq!(report["errors"], 0, "{report}");
    let screen = top.await.unwrap();
    let screen = String::from_utf8_lossy(&screen.stdout);
    assert!(screen.contains("127.0.0.1:10003"), "{screen:?}");
    assert!(["unreachable", "down"].iter().any(|word| screen.contains(word)), "{screen:?}");
}
