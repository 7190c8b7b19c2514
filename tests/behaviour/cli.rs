//! The command `peanut`.

use std::process::{Command, Output};

use crate::{PEANUT, SCORES, SERVER, fleet};

fn peanut(args: &[&str]) -> Output {
    let command = &mut Command::new(PEANUT);
    command.args(args).output().unwrap()
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn get_prints_the_value_and_tells_by_its_exit_code() {
    let broken =
        "[[group]]\nname = \"broken\"\n[group.loader]\nkind = \"http\"\nurl = \"http://127.0.0.1:1/{key}\"\n";
    let (etcd, servers) = fleet(2, &format!("{SCORES}{broken}")).await;
    let endpoint = etcd.endpoint();
    let found = peanut(&["get", "scores", "Tom", "--etcd", &endpoint]);
    assert_eq!((found.status.code(), text(&found.stdout), text(&found.stderr)), (Some(0), "630", ""));
    let missing = peanut(&["get", "scores", "Nobody", "--etcd", &endpoint]);
    assert_eq!((missing.status.code(), text(&missing.stdout), text(&missing.stderr)), (Some(1), "", ""));

    let (first, second) = (servers[0].addr(), servers[1].addr());
    let by_list = peanut(&["--nodes", &format!("{first},{second}"), "get", "scores", "Jack"]);
    assert_eq!((by_list.status.code(), text(&by_list.stdout)), (Some(0), "589"));

    let json = peanut(&["get", "scores", "Tom", "--json", "--etcd", &endpoint]);
    let json: serde_json::Value = serde_json::from_slice(&json.stdout).unwrap();
    assert_eq!(json, serde_json::json!({ "group": "scores", "key": "Tom", "found": true, "value": "630" }));

    for (args, names) in [
        (&["get", "nowhere", "Tom", "--etcd", &endpoint][..], "no group `nowhere`"),
        (&["get", "broken", "Tom", "--etcd", &endpoint], "refused"),
        (&["get", "scores", "", "--etcd", &endpoint], "the key is empty"),
        (&["get", "scores", "Tom", "--etcd", "http://127.0.0.1:1"], "fleet `default` was not found"),
        (&["get", "scores", "Tom", "--nodes", "127.0.0.1:1", "--deadline", "1"], "refused"),
        (&["get", "scores", "Tom", "--etcd", "https://127.0.0.1:1"], "no authority is named"),
        (&["hotkeys", "--nodes", "127.0.0.1:1", "--deadline", "1s"], "refused"),
        (&["get", "scores", "Tom", "--deadline", "1 parsec"], "like 5s"),
        (&["get", "scores", "Tom", "--etcd", &endpoint, "--fleet", "other"], "fleet `other` has no nodes"),
        (&["get", "scores"], "required arguments were not provided: <KEY>"),
        (&["ring", "scores"], "required arguments were not provided: <KEY>"),
        (&["proxy", "--redis", "127.0.0.1:0", "--near", "0", "--near-groups", "a"], "no near cache with"),
        (&["proxy", "--redis", "127.0.0.1:0", "--near-groups", "a,b/c"], "a group's name"),
        (&["fetch"], "unrecognized subcommand 'fetch'"),
        (&[], "no command is given"),
    ] {
        let failed = peanut(args);
        let stderr = text(&failed.stderr);
        assert_eq!((failed.status.code(), text(&failed.stdout)), (Some(2), ""), "{args:?}");
        assert!(stderr.starts_with("peanut: ") && stderr.contains(names), "{args:?}: {stderr}");
        assert_eq!(stderr.trim_end().lines().count(), 1, "{stderr}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn ring_prints_members_with_share_version_and_health_and_a_keys_owner() {
    let (etcd, mut servers) = fleet(3, SCORES).await;
    servers[2].process().kill();
    let endpoint = etcd.endpoint();
    let ring = peanut(&["ring", "--etcd", &endpoint, "--json"]);
    let ring: serde_json::Value = serde_json::from_slice(&ring.stdout).unwrap();
    assert_eq!((ring["fleet"].as_str(), ring["version"].as_u64()), (Some("default"), Some(3)));
    let members = ring["members"].as_array().unwrap();
    let total: f64 = members.iter().map(|member| member["share"].as_f64().unwrap()).sum();
    assert!(members.len() == 3 && (total - 1.0).abs() < 1e-9);
    for member in members {
        let dead = member["id"] == servers[2].addr();
        let health = member["health"].as_str().unwrap();
        assert!(if dead { health == "down" || health == "unreachable" } else { health == "up" }, "{member}");
    }

    let table = peanut(&["ring", "--etcd", &endpoint]);
    let table = text(&table.stdout);
    assert!(table.starts_with("fleet default, ring version 3, 3 nodes\nNODE"), "{table}");
    assert_eq!(table.lines().count(), 5, "{table}");

    let key = peanut(&["ring", "scores", "Tom", "--etcd", &endpoint, "--json"]);
    let key: serde_json::Value = serde_json::from_slice(&key.stdout).unwrap();
    let (owner, successor) =
        (key["key"]["owner"].as_str().unwrap(), key["key"]["successor"].as_str().unwrap());
    assert_ne!(owner, successor);
    let lines = peanut(&["ring", "scores", "Tom", "--etcd", &endpoint]);
    assert!(text(&lines.stdout).starts_with(&format!("owner      {owner}")), "{}", text(&lines.stdout));
}

#[tokio::test(flavor = "multi_thread")]
async fn stat_nodes_and_hotkeys_tell_what_the_fleet_does() {
    let (etcd, mut servers) = fleet(2, SCORES).await;
    let endpoint = etcd.endpoint();
    let client = crate::client(&etcd, 2).await;
    let load = tokio::spawn(async move {
        loop {
            let _ = client.group("scores").get("Tom").await;
        }
    });
    let json = |args: &[&str]| -> Vec<serde_json::Value> {
        let output = peanut(&[args, &["--json", "--etcd", &endpoint]].concat());
        assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
        let documents = serde_json::Deserializer::from_slice(&output.stdout).into_iter();
        documents.collect::<Result<_, _>>().unwrap()
    };
    let lines = json(&["stat", "--interval", "0.5", "--count", "3"]);
    assert_eq!(lines.len(), 3);
    let last = &lines[2];
    assert_eq!((last["nodes"].as_u64(), last["nodes_up"].as_u64()), (Some(2), Some(2)));
    assert!(last["gets"].as_f64().unwrap() > 10.0 && last["hit_ratio"].as_f64().unwrap() > 0.9, "{last}");
    let table = peanut(&["stat", "--interval", "0.2", "--count", "2", "--etcd", &endpoint]);
    let table = text(&table.stdout);
    assert!(table.contains("gets/s") && table.lines().count() == 3 && table.contains("2/2"), "{table}");

    let hot = peanut_tests::eventually("a hot key", async || {
        Some(json(&["hotkeys", "scores"]).remove(0)).filter(|hot| !hot.as_array().unwrap().is_empty())
    })
    .await;
    assert_eq!((hot[0]["key"].as_str(), hot[0]["group"].as_str()), (Some("Tom"), Some("scores")));
    let none = json(&["hotkeys", "elsewhere"]);
    assert_eq!(none[0].as_array().unwrap().len(), 0);

    servers[1].process().kill();
    let nodes = peanut_tests::eventually("the dead node to be seen", async || {
        let nodes = json(&["nodes"]).remove(0);
        let dead = nodes.as_array().unwrap().iter().find(|node| node["id"] == servers[1].addr()).cloned();
        dead.filter(|dead| dead["error"].is_string()).map(|_| nodes)
    });
    let nodes = nodes.await;
    let alive = nodes.as_array().unwrap().iter().find(|node| node["id"] == servers[0].addr()).unwrap();
    assert_eq!(alive["health"], "up");
    assert_eq!(alive["report"]["groups"][0]["name"], "scores");
    let table = peanut(&["nodes", "--etcd", &endpoint, "--deadline", "1"]);
    assert!(text(&table.stdout).starts_with("NODE"), "{}", text(&table.stdout));
    load.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn top_draws_on_a_terminal_until_q_and_says_so_elsewhere() {
    let (etcd, servers) = fleet(2, SCORES).await;
    let elsewhere = peanut(&["top", "--etcd", &etcd.endpoint()]);
    assert_eq!(elsewhere.status.code(), Some(2));
    assert!(text(&elsewhere.stderr).contains("peanut stat"));
    let draw = |no_color: &str| {
        let top = format!("stty rows 40 cols 80; {} top --etcd {}", PEANUT, etcd.endpoint());
        // A terminal of its own, on which q is pressed after a while.
        let run = format!("(sleep 3; printf q; sleep 1) | script -qec '{top}' /dev/null");
        let output = Command::new("sh").args(["-c", &run]).env("NO_COLOR", no_color).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    let screen = draw("");
    // Every column, as narrow as a terminal is.
    let columns = ["HEALTH", "UP FOR", "MEMORY", "LANES", "ENTRIES", "FULL", "ORIGIN", "KEY", "loads/s"];
    let seen = ["Nodes", "Groups", "Hot", "scores", "GETS/S", servers[0].addr(), servers[1].addr()];
    for what in columns.into_iter().chain(seen) {
        assert!(screen.contains(what), "no {what} in {screen:?}");
    }
    let green = "\u{1b}[38;5;2";
    assert!(screen.contains(green), "{screen:?}");
    assert!(!draw("1").contains(green));
}

#[test]
fn completions_are_scripts() {
    let shells = [
        ("bash", "_peanut()", "_peanut__server()"),
        ("zsh", "#compdef peanut", "#compdef peanut-server"),
        ("fish", "# Print", "complete -c peanut-server"),
    ];
    for (shell, begins, of_server) in shells {
        let output = peanut(&["completions", shell]);
        assert_eq!(output.status.code(), Some(0));
        assert!(text(&output.stdout).contains(begins), "{}", text(&output.stdout));
        assert!(text(&output.stdout).contains("hotkeys"));
        let output = Command::new(SERVER).args(["--generate", shell]).output().unwrap();
        assert_eq!(output.status.code(), Some(0));
        assert!(text(&output.stdout).contains(of_server), "{}", text(&output.stdout));
        assert!(text(&output.stdout).contains("check-config"));
    }
}

#[test]
fn manual_pages_have_every_command_and_flag() {
    let directory = tempfile::tempdir().unwrap();
    let output = peanut(&["man", directory.path().to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    let page = |name: &str| std::fs::read_to_string(directory.path().join(name)).unwrap();
    assert!(page("peanut.1").contains("peanut\\-hotkeys(1)"), "{}", page("peanut.1"));
    assert!(page("peanut-get.1").contains("fB\\-\\-json"), "{}", page("peanut-get.1"));
    let output = Command::new(SERVER).args(["--generate", "man"]).output().unwrap();
    assert!(text(&output.stdout).contains("fB\\-\\-data\\-dir"), "{}", text(&output.stdout));
    // A directory that cannot be made.
    let output = peanut(&["man", "/dev/null/man"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(text(&output.stderr).starts_with("peanut: /dev/null/man: "), "{}", text(&output.stderr));
}
