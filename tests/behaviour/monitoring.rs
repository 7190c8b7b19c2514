//! What Prometheus and Grafana are given: the rules under its own tool and over a real fleet, and a dashboard
//! whose every panel is answered.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::process::Command;

use peanut_tests::{Process, eventually, free_port, http_client};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::Value;

use crate::admin::{fleet, get};
use crate::client;

fn deployed(path: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../deploy").join(path)
}

fn read(path: &str) -> String {
    std::fs::read_to_string(deployed(path)).unwrap()
}

/// The names of all alarms.
fn alarms() -> BTreeSet<String> {
    let rules = read("prometheus/alerts.yaml");
    let names = rules.lines().filter_map(|line| line.trim().strip_prefix("- alert: "));
    names.map(str::to_owned).collect()
}

/// What the panels of the dashboard ask for.
fn queries() -> Vec<String> {
    let dashboard: Value = serde_json::from_str(&read("grafana/fleet.json")).unwrap();
    let panels = dashboard["panels"].as_array().unwrap().iter();
    let targets = panels.filter_map(|panel| panel["targets"].as_array()).flatten();
    let queries: Vec<_> = targets.map(|target| target["expr"].as_str().unwrap().to_owned()).collect();
    assert!(queries.len() > 20, "{queries:?}");
    queries
}

/// The names of metrics in a text.
fn metrics(text: &str) -> BTreeSet<String> {
    let words = text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'));
    words.filter(|word| word.starts_with("peanut_")).map(str::to_owned).collect()
}

#[test]
fn every_alarm_is_explained_and_every_metric_exists() {
    let operations = std::fs::read_to_string(deployed("../docs/operations.md")).unwrap();
    let unexplained: Vec<_> =
        alarms().into_iter().filter(|name| !operations.contains(&format!("**`{name}`**"))).collect();
    assert!(unexplained.is_empty(), "docs/operations.md does not explain {unexplained:?}");
    let known = metrics(&std::fs::read_to_string(deployed("../METRICS.md")).unwrap());
    let asked = metrics(&format!("{} {}", read("prometheus/alerts.yaml"), queries().join(" ")));
    for metric in asked {
        let counted = metric.strip_suffix("_bucket").unwrap_or(&metric);
        assert!(known.contains(counted), "there is no {metric}");
    }
}

#[test]
fn every_alarm_fires_when_it_has_to_and_none_over_a_fleet_that_is_well() {
    let promtool = |args: &[&str]| {
        let run = Command::new("promtool").args(args).current_dir(deployed("prometheus")).output();
        let run = run.expect("promtool is installed by `cargo xtask test`");
        let said = String::from_utf8_lossy(&run.stdout).into_owned() + &String::from_utf8_lossy(&run.stderr);
        assert!(run.status.success(), "{said}");
    };
    promtool(&["check", "rules", "alerts.yaml"]);
    promtool(&["test", "rules", "alerts.test.yaml"]);
    let tests = read("prometheus/alerts.test.yaml");
    for alarm in alarms() {
        assert!(tests.contains(&format!("alertname: {alarm} }}")), "no test has {alarm} silent");
    }
    assert!(tests.contains(&format!("exp_samples: [{{ value: {} }}]", alarms().len())));
}

/// A Prometheus that scrapes these admin ports every second, with all that rules wait for as long.
async fn prometheus(admins: &[String], directory: &std::path::Path) -> (Process, String) {
    let hasty =
        |line: &str| if line.trim().starts_with("for: ") { String::new() } else { format!("{line}\n") };
    let rules: String = read("prometheus/alerts.yaml").lines().map(hasty).collect();
    let rules = ["[5m]", "[10m]", "[30m]"].iter().fold(rules, |rules, range| rules.replace(range, "[20s]"));
    std::fs::write(directory.join("alerts.yaml"), rules).unwrap();
    let targets = serde_json::to_string(admins).unwrap();
    let config = format!(
        "global: {{ scrape_interval: 1s, evaluation_interval: 1s }}\nrule_files: [alerts.yaml]\n\
         scrape_configs:\n  - job_name: peanut\n    static_configs: [{{ targets: {targets} }}]\n"
    );
    std::fs::write(directory.join("prometheus.yml"), config).unwrap();
    let addr = format!("127.0.0.1:{}", free_port());
    let mut command = Command::new("prometheus");
    command
        .arg(format!("--config.file={}", directory.join("prometheus.yml").display()))
        .arg(format!("--storage.tsdb.path={}", directory.join("data").display()))
        .arg(format!("--web.listen-address={addr}"));
    let mut process = Process::start("prometheus", &mut command);
    process.wait_for_line("Server is ready to receive web requests").await;
    (process, addr)
}

async fn ask(prometheus: &str, path: &str, query: &[(&str, &str)]) -> Value {
    let query: String = query
        .iter()
        .map(|(name, value)| format!("{name}={}&", utf8_percent_encode(value, NON_ALPHANUMERIC)))
        .collect();
    let response =
        http_client().get(format!("http://{prometheus}/api/v1/{path}?{query}")).send().await.unwrap();
    let answer: Value = serde_json::from_str(&response.text().await.unwrap()).unwrap();
    assert_eq!(answer["status"], "success", "{query:?}: {answer}");
    answer["data"].clone()
}

/// The alarms that fire.
async fn firing(prometheus: &str) -> BTreeSet<String> {
    let alerts = ask(prometheus, "alerts", &[]).await;
    let firing = alerts["alerts"].as_array().unwrap().iter().filter(|alert| alert["state"] == "firing");
    firing.map(|alert| alert["labels"]["alertname"].as_str().unwrap().to_owned()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_real_prometheus_reads_a_fleet_and_tells_of_what_is_wrong_with_it() {
    let (etcd, mut nodes) = fleet(2).await;
    let admins: Vec<String> = nodes.iter().map(|(_, admin)| admin.clone()).collect();
    let directory = tempfile::tempdir().unwrap();
    let (_prometheus, prometheus) = prometheus(&admins, directory.path()).await;
    let client = client(&etcd, 2).await;
    let (scores, broken) = (client.group("scores"), client.group("broken"));
    eventually("both nodes to be scraped", async || {
        let _ = scores.get("Tom").await;
        let up = ask(&prometheus, "query", &[("query", "sum(peanut_ready) == 2")]).await;
        up["result"].as_array().filter(|result| !result.is_empty()).cloned()
    })
    .await;
    // The rules here wait for nothing, so one may fire while only one of the nodes has been scraped.
    eventually("no alarm over a fleet that is well", async || {
        firing(&prometheus).await.is_empty().then_some(())
    })
    .await;
    for query in queries() {
        let query = query.replace("$__rate_interval", "20s").replace("$job", "peanut");
        let query = query.replace("$group", ".*").replace("$proxies", ".*");
        ask(&prometheus, "query", &[("query", &query)]).await;
    }
    assert_eq!(get(&admins[0], "/healthz").await.0, 200);

    // An origin that fails, and a node that is gone.
    nodes[1].0.process().kill();
    let expected = ["PeanutBreakerOpen", "PeanutFailoverGets", "PeanutLoadsFail", "PeanutNodeDown"];
    let mut n = 0;
    eventually("the alarms", async || {
        for _ in 0..20 {
            n += 1;
            let _ = broken.get(format!("key-{n}")).await;
            let _ = scores.get(format!("key-{n}")).await;
        }
        let firing = firing(&prometheus).await;
        expected.iter().all(|alarm| firing.contains(*alarm)).then_some(())
    })
    .await;
}
