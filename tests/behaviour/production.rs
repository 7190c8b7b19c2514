//! The walk of "In production" in docs/operations.md, as it stands there.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use peanut_tests::{Database, Etcd, eventually, http_client, now};

use crate::SERVER;

const PEANUT: &str = env!("CARGO_BIN_EXE_peanut-under-test");

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// Ends what the walk has started, also when the test fails.
struct Walk(std::process::Child);

impl Drop for Walk {
    fn drop(&mut self) {
        use nix::sys::signal::{Signal, killpg};
        // A group of its own: all that the shell has started and nothing else.
        let group = nix::unistd::Pid::from_raw(self.0.id().cast_signed());
        let _ = killpg(group, Signal::SIGKILL);
        let _ = self.0.wait();
    }
}

#[test]
fn the_page_has_the_walk_as_it_runs() {
    let page = std::fs::read_to_string(repository().join("docs/operations.md")).unwrap();
    let walk = std::fs::read_to_string(repository().join("examples/production/walk.sh")).unwrap();
    let lines: Vec<&str> = walk.lines().filter(|line| !line.starts_with('#')).collect();
    assert!(lines.len() <= 10, "{} lines", lines.len());
    for line in lines {
        assert!(page.lines().any(|of_page| of_page == line), "the page does not have `{line}`");
    }
    let config = std::fs::read_to_string(repository().join("examples/production/peanut.toml")).unwrap();
    assert!(config.contains("${DATABASE_URL}"));
}

#[expect(clippy::too_many_lines, reason = "one scene after the other")]
#[tokio::test(flavor = "multi_thread")]
async fn three_nodes_over_mutual_tls_before_100_000_rows_lose_one_and_no_get() {
    let (etcd, database) = (Etcd::start().await, Database::postgres(&[]).await);
    let folder = tempfile::tempdir().unwrap();
    let bin = folder.path().join("bin");
    std::fs::create_dir(&bin).unwrap();
    for (name, program) in [("peanut", PEANUT), ("peanut-server", SERVER)] {
        std::os::unix::fs::symlink(program, bin.join(name)).unwrap();
    }
    let psql = Command::new("sh").args(["-c", "command -v psql"]).output().unwrap();
    assert!(psql.status.success(), "psql comes with PostgreSQL's package");
    std::fs::copy(repository().join("examples/production/peanut.toml"), folder.path().join("peanut.toml"))
        .unwrap();
    let paths = std::env::var("PATH").unwrap_or_default();
    let environment = [
        ("PATH", format!("{}:{paths}", bin.display())),
        ("DATABASE_URL", database.url().to_owned()),
        ("PEANUT_ETCD_ENDPOINTS", etcd.endpoint()),
        ("NO_COLOR", "1".to_owned()),
    ];
    let walk = repository().join("examples/production/walk.sh").canonicalize().unwrap();
    let output = std::fs::File::create(folder.path().join("walk.log")).unwrap();
    let mut bash = Command::new("bash");
    bash.args(["-c", "source \"$0\"", &walk.display().to_string()]).current_dir(folder.path());
    bash.envs(environment.clone()).stdin(Stdio::null()).stdout(output.try_clone().unwrap()).stderr(output);
    std::os::unix::process::CommandExt::process_group(&mut bash, 0);
    let mut walk = Walk(bash.spawn().unwrap());
    let log = || std::fs::read_to_string(folder.path().join("walk.log")).unwrap_or_default();

    // A person has the page open, and `peanut top` on a terminal.
    let members = async || {
        let response = http_client().get("http://127.0.0.1:11001/status").send().await.ok()?;
        let status: serde_json::Value = serde_json::from_str(&response.text().await.ok()?).ok()?;
        Some(status["ring"]["members"].as_array()?.clone())
    };
    eventually("three nodes on the page", async || {
        members()
            .await
            .filter(|members| members.len() == 3 && members.iter().all(|member| member["reached"] == true))
    })
    .await;
    let top = tokio::task::spawn_blocking({
        let (folder, environment) = (folder.path().to_owned(), environment.clone());
        move || {
            let files = ["CA=certs/ca.pem", "CERT=certs/app.pem", "KEY=certs/app.key"];
            let run =
                "(sleep 12; printf q; sleep 1) | script -qec 'stty rows 40 cols 140; peanut top' /dev/null";
            let mut command = Command::new("sh");
            command.args(["-c", run]).current_dir(folder).envs(environment);
            command.envs(
                files
                    .iter()
                    .map(|file| file.split_once('=').unwrap())
                    .map(|(k, v)| (format!("PEANUT_TLS_{k}"), v)),
            );
            command.output().unwrap()
        }
    });
    // The second one is killed six seconds after the load has begun: the page shows it red.
    let port_is_open = || std::net::TcpStream::connect("127.0.0.1:10002").is_ok();
    eventually("the node to be killed", async || (!port_is_open()).then_some(())).await;
    let killed = now();
    eventually("the page to show it", async || {
        let members = members().await?;
        members
            .iter()
            .any(|member| member["addr"] == "127.0.0.1:10002" && member["reached"] == false)
            .then_some(())
    })
    .await;
    println!("the page showed the node as down {:?} after it was", killed.elapsed());

    let ended = eventually("the walk to end", async || walk.0.try_wait().unwrap()).await;
    let said = log();
    assert!(ended.success(), "{said}");
    assert!(said.contains("score 42"), "{said}");
    let report = std::fs::read_to_string(folder.path().join("bench.json")).unwrap();
    let report: serde_json::Value = serde_json::from_str(&report).unwrap();
    assert!(report["gets"].as_u64().unwrap() > 10_000, "{report}");
    assert_eq!(report["errors"], 0, "{report}");
    let screen = top.await.unwrap();
    let screen = String::from_utf8_lossy(&screen.stdout);
    assert!(screen.contains("127.0.0.1:10002"), "{screen:?}");
    assert!(["unreachable", "down"].iter().any(|word| screen.contains(word)), "{screen:?}");
}
