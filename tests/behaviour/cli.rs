//! The command `peanut`.

use std::process::{Command, Output};

use crate::{SCORES, fleet};

fn peanut(args: &[&str]) -> Output {
    let command = &mut Command::new(env!("CARGO_BIN_EXE_peanut-under-test"));
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
        (&["get", "scores", "Tom", "--etcd", &endpoint, "--fleet", "other"], "fleet `other` has no nodes"),
        (&["get", "scores"], "required arguments were not provided: <KEY>"),
        (&["ring", "scores"], "required arguments were not provided: <KEY>"),
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
