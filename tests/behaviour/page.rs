//! The page for operators, in a real browser: of a node, and of a whole fleet.

use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use peanut_tests::{Etcd, Process, ServerProcess, eventually, free_port, http_client, token_in};
use serde_json::{Value, json};

use crate::admin::{fleet, get, status};
use crate::{PEANUT, SCORES, SERVER, client};

/// The page as a browser has it after a few seconds, and a picture of it for whoever wants to look.
fn browse(page: &str, width: u32, picture: &Path) -> String {
    let profile = tempfile::tempdir().unwrap();
    let chromium = |what: &str| {
        let mut command = Command::new("chromium");
        command
            .args(["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--no-first-run"])
            .args(["--virtual-time-budget=4000", &format!("--window-size={width},1600"), what])
            .arg(format!("--user-data-dir={}", profile.path().display()))
            .arg(format!("http://{page}"));
        let output = command.output().expect("chromium is installed by `cargo xtask test`");
        String::from_utf8(output.stdout).unwrap()
    };
    chromium(&format!("--screenshot={}", picture.display()));
    chromium("--dump-dom")
}

/// The text of the element with this id.
fn text_of<'a>(page: &'a str, id: &str) -> &'a str {
    let from = page.split_once(&format!("id=\"{id}\"")).unwrap_or_else(|| panic!("no {id} in {page}")).1;
    from.split_once('>').unwrap().1.split_once('<').unwrap().0
}

#[expect(clippy::too_many_lines, reason = "one scene after the other")]
#[tokio::test(flavor = "multi_thread")]
async fn the_page_shows_a_person_the_ring_and_a_dead_node_red() {
    let (etcd, mut servers) = fleet(3).await;
    let client = client(&etcd, 3).await;
    let admin = servers[0].1.clone();
    let stop = Arc::new(AtomicBool::new(false));
    let load = tokio::spawn({
        let stop = stop.clone();
        async move {
            // So many that every node owns some.
            let keys: Vec<String> = (0..60).map(|n| format!("<b>{n}</b>")).collect();
            while !stop.load(Ordering::Relaxed) {
                client.group("scores").get_many(&keys).await;
            }
        }
    });
    // The page shows the last window of five seconds, and rates between two looks.
    let own_keys = async || {
        let hot = status(&admin).await["hot_keys"].as_array().unwrap().clone();
        (!hot.is_empty()).then_some(hot)
    };
    let hot = eventually("hot keys", own_keys).await;
    let directory = tempfile::tempdir().unwrap();
    // A person has it open: it looks at the others only then.
    let page = browse(&format!("{admin}/"), 1180, &directory.path().join("page.png"));
    assert_eq!(text_of(&page, "ready"), "ready");
    assert_eq!(text_of(&page, "fleet"), "default");
    assert_eq!(text_of(&page, "node"), servers[0].0.addr());
    assert_eq!(page.matches("class=\"arc\"").count(), 3, "an arc for each node");
    assert_eq!(page.matches("data-health=\"up\"").count(), 3);
    assert!(page.contains("Ring, version 3") && page.contains("of the node "), "{page}");
    assert!(page.contains(">scores</td>") && page.contains("s3-fifo") && page.contains("of 128 MiB"));
    let hit_ratio: f64 = text_of(&page, "hit-ratio").trim_end_matches(" %").parse().unwrap();
    assert!((90.0..=100.0).contains(&hit_ratio), "{hit_ratio}");
    assert_ne!(text_of(&page, "gets"), "–");
    let of_page =
        |key: &str| page.contains(&format!(">{}</td>", key.replace('<', "&lt;").replace('>', "&gt;")));
    assert!(hot.iter().any(|hot| of_page(hot["key"].as_str().unwrap())), "its hot keys");
    assert!(
        !page.contains("<b>1</b>") && !page.contains("<b>2</b>"),
        "a key is never part of the page's own text"
    );
    let picture = std::fs::read(directory.path().join("page.png")).unwrap();
    assert!(picture.len() > 20_000, "{} bytes of a picture", picture.len());
    // Nothing comes from outside.
    let source = get(&admin, "/").await.1;
    for outside in ["src=", "href=", "@import", "url(", "http://", "https://"] {
        let found = source.replace("http://www.w3.org/2000/svg", "").contains(outside);
        assert!(!found, "the page has `{outside}` in it");
    }

    let killed = servers[2].0.addr().to_owned();
    servers[2].0.process().kill();
    let begun = peanut_tests::now();
    let health = async || {
        let nodes = status(&admin).await["nodes"].as_array().unwrap().clone();
        nodes.iter().find(|node| node["addr"] == killed.as_str()).unwrap()["health"].clone()
    };
    eventually("the node to be seen as down", async || (health().await == "down").then_some(())).await;
    let seen = begun.elapsed();
    println!("seen as down after {seen:?}");
    let page = browse(&format!("{admin}/"), 390, &directory.path().join("phone.png"));
    stop.store(true, Ordering::Relaxed);
    load.await.unwrap();
    assert_eq!(page.matches("data-health=\"down\"").count(), 1);
    let arcs: Vec<&str> = page.split("<path").skip(1).collect();
    let red = arcs.iter().find(|arc| arc.contains(&format!("data-node=\"{killed}\""))).unwrap();
    assert!(red.contains("fill=\"var(--bad)\""), "{red}");
    assert_eq!(arcs.iter().filter(|arc| arc.contains("fill=\"var(--good)\"")).count(), 2);
}

/// A proxy that serves the page of a fleet.
async fn page_of(whom: &[&str], more: &[&str]) -> (Process, String) {
    let page = format!("127.0.0.1:{}", free_port());
    let mut command = Command::new(PEANUT);
    command.args(whom).args(["proxy", "--page", &page]).args(more).env("NO_COLOR", "1");
    let mut proxy = Process::start("peanut proxy", &mut command);
    proxy.wait_for_line("the fleet's page on ").await;
    (proxy, page)
}

/// What a POST of JSON is answered with.
async fn post(page: &str, what: &str, body: Value, headers: &[(&str, &str)]) -> (u16, Value) {
    let mut request = http_client().post(format!("http://{page}/{what}")).body(body.to_string());
    if !headers.iter().any(|(name, _)| *name == "content-type") {
        request = request.header("content-type", "application/json");
    }
    let request = headers.iter().fold(request, |request, (name, value)| request.header(*name, *value));
    let response = request.send().await.unwrap();
    let code = response.status().as_u16();
    (code, serde_json::from_str(&response.text().await.unwrap()).unwrap_or_default())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_fleets_page_sums_all_nodes_shows_each_and_a_dead_one() {
    let (etcd, servers) = fleet(3).await;
    let client = client(&etcd, 3).await;
    let keys: Vec<String> = (0..300).map(|n| n.to_string()).collect();
    let endpoint = etcd.endpoint();
    let (_proxy, page) = page_of(&["--etcd", &endpoint], &[]).await;
    let figures = eventually("rates of all nodes", async || {
        for result in client.group("scores").get_many(&keys).await {
            result.unwrap();
        }
        let figures = status(&page).await;
        (figures["lately"]["gets"].as_f64() > Some(0.0)).then_some(figures)
    })
    .await;
    assert_eq!((&figures["scope"], &figures["operates"]), (&"fleet".into(), &true.into()));
    let nodes = figures["nodes"].as_array().unwrap();
    assert!(nodes.iter().all(|node| node["health"] == "up" && node["told"]["used_bytes"].as_u64() > Some(0)));
    let shares: f64 = nodes.iter().map(|node| node["share"].as_f64().unwrap()).sum();
    assert!((shares - 1.0).abs() < 1e-9, "{shares}");
    let scores =
        figures["groups"].as_array().unwrap().iter().find(|group| group["name"] == "scores").unwrap();
    assert_eq!((&scores["nodes"], &scores["entries"]), (&3.into(), &300.into()));
    // One node is a click away.
    let one = servers[0].0.addr().to_owned();
    let alone: Value =
        serde_json::from_str(&get(&page, &format!("/status?node={}", one.replace(':', "%3A"))).await.1)
            .unwrap();
    let of_scores =
        alone["groups"].as_array().unwrap().iter().find(|group| group["name"] == "scores").unwrap();
    let entries = of_scores["entries"].as_u64().unwrap();
    assert!((1..300).contains(&entries), "{entries}");

    let directory = tempfile::tempdir().unwrap();
    let wide = browse(&format!("{page}/"), 1180, &directory.path().join("fleet.png"));
    assert_eq!((text_of(&wide, "ready"), text_of(&wide, "fleet")), ("all up", "default"));
    assert_eq!(wide.matches("data-health=\"up\"").count(), 3);
    assert!(wide.contains("Look up") && !wide.contains("id=\"operate\" hidden"), "{wide}");
    let narrow = browse(&format!("{page}/#node={one}"), 390, &directory.path().join("phone.png"));
    assert_eq!(text_of(&narrow, "node"), one);
    if let Some(keep) = std::env::var_os("PEANUT_KEEP_PICTURES") {
        for picture in ["fleet.png", "phone.png"] {
            std::fs::copy(directory.path().join(picture), Path::new(&keep).join(picture)).unwrap();
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_fleets_page_says_that_there_is_no_node() {
    let etcd = Etcd::start().await;
    let (_proxy, page) = page_of(&["--etcd", &etcd.endpoint()], &[]).await;
    let directory = tempfile::tempdir().unwrap();
    let seen = browse(&format!("{page}/"), 1180, &directory.path().join("empty.png"));
    assert_eq!(text_of(&seen, "ready"), "no nodes");
    assert!(
        seen.contains(">no node is known<") && seen.contains(">no ring: the fleet has none yet<"),
        "{seen}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn the_fleets_page_shows_a_dead_node_and_what_its_successor_has() {
    let (etcd, mut servers) = fleet(3).await;
    let client = client(&etcd, 3).await;
    let keys: Vec<String> = (0..300).map(|n| n.to_string()).collect();
    let endpoint = etcd.endpoint();
    let (_proxy, page) = page_of(&["--etcd", &endpoint], &[]).await;
    let killed = servers[2].0.addr().to_owned();
    servers[2].0.process().kill();
    let dead = eventually("the node to be seen as down", async || {
        let nodes = status(&page).await["nodes"].as_array().unwrap().clone();
        let dead = nodes.iter().find(|node| node["id"] == killed.as_str()).unwrap().clone();
        (dead["health"] == "down").then_some(dead)
    })
    .await;
    assert!(dead["error"].as_str().unwrap().contains(&killed), "{dead}");

    // What its successor has in its place is shown, too.
    let ring = client.ring();
    let is_owned =
        |key: &&String| ring.members()[ring.place("scores", key.as_bytes()).unwrap().owner].id == killed;
    let key = keys.iter().find(is_owned).unwrap();
    let held = eventually("the successor to have the key", async || {
        let _ = client.group("scores").get(key).await;
        let (_, found) = post(&page, "lookup", json!({ "group": "scores", "key": key }), &[]).await;
        let held = found["holdings"].as_array()?.iter().find(|held| held["role"] == "successor")?.clone();
        held["entry"].is_object().then_some(held)
    })
    .await;
    assert!(held["entry"]["ttl_ms"].as_u64().unwrap() <= 10_000, "{held}");

    // So is what waits for it.
    client.group("scores").delete(key).await.unwrap();
    eventually("the delete to be shown as pending", async || {
        let nodes = status(&page).await["nodes"].as_array().unwrap().clone();
        let pending = |node: &Value| node["hints_pending"].as_u64().unwrap();
        nodes.iter().all(|node| pending(node) == u64::from(node["id"] == killed.as_str())).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn operators_look_keys_up_delete_them_and_clear_groups() {
    let pages = "[[group]]\nname = \"pages\"\n[group.loader]\nkind = \"none\"\n";
    let addr = format!("127.0.0.1:{}", free_port());
    let own = format!("listen = \"{addr}\"\nnodes = [\"{addr}\"]\n");
    let server = ServerProcess::start_with(SERVER, &format!("{own}{SCORES}{pages}")).await;
    let (mut proxy, page) = page_of(&["--nodes", server.addr()], &[]).await;
    let client = peanut_client::Client::builder().nodes([server.addr()]).build().await.unwrap();
    let group = client.group("pages");
    group.set("home", "<b>a page</b>").await.unwrap();
    let target = || json!({ "group": "pages", "key": "home" });
    let (code, found) = post(&page, "lookup", target(), &[]).await;
    assert_eq!(code, 200, "{found}");
    let held = &found["holdings"][0];
    assert_eq!((&held["role"], &held["entry"]["size"]), (&"owner".into(), &13.into()));
    assert_eq!(found["value"], json!({ "text": "<b>a page</b>", "is_base64": false, "is_whole": true }));
    // A look loads nothing.
    let (_, missing) = post(&page, "lookup", json!({ "group": "scores", "key": "Tom" }), &[]).await;
    assert_eq!((&missing["holdings"][0]["entry"], &missing["value"]), (&Value::Null, &Value::Null));

    // What a page of another site can send changes nothing.
    let elsewhere: [&[(&str, &str)]; 5] = [
        &[("origin", "http://evil.example")],
        &[("sec-fetch-site", "cross-site")],
        &[("content-type", "text/plain")],
        &[("content-type", "application/x-www-form-urlencoded")],
        &[("host", "evil.example")],
    ];
    for headers in elsewhere {
        let (code, _) = post(&page, "delete", target(), headers).await;
        assert!([403, 415, 421].contains(&code), "{headers:?}: {code}");
    }
    let (code, _) = post(&page, "delete", json!({ "group": "pages" }), &[]).await;
    assert_eq!(code, 400);
    assert_eq!(get(&page, "/delete").await.0, 405);
    assert_eq!(group.get("home").await.unwrap().as_deref(), Some(&b"<b>a page</b>"[..]));

    assert_eq!(post(&page, "delete", target(), &[("origin", &format!("http://{page}"))]).await.0, 200);
    assert_eq!(group.get("home").await.unwrap(), None);
    proxy.wait_for_line("peanut::audit: an operator has acted").await;
    group.set("home", "1").await.unwrap();
    assert_eq!(post(&page, "clear", json!({ "group": "pages" }), &[]).await.0, 200);
    assert_eq!(group.get("home").await.unwrap(), None);
    proxy.wait_for_line("action=\"clear\" group=\"pages\"").await;
    let (code, why) = post(&page, "clear", json!({ "group": "nowhere" }), &[]).await;
    assert_eq!((code, why["status"].as_u64()), (404, Some(404)), "{why}");
}

#[tokio::test(flavor = "multi_thread")]
async fn operators_do_what_their_token_allows() {
    let secrets = tempfile::tempdir().unwrap();
    let token = |name, rights| token_in(secrets.path(), name, rights);
    let tokens = token("operator", "admin = true\ndelete = [\"scores\"]")
        + &token("reader", "read = [\"*\"]")
        + &token("owner", "admin = true\nread = [\"*\"]\nwrite = [\"*\"]");
    let file = secrets.path().join("tokens.toml");
    std::fs::write(&file, tokens).unwrap();
    let addr = format!("127.0.0.1:{}", free_port());
    let own = format!("listen = \"{addr}\"\nnodes = [\"{addr}\"]\n");
    let server = ServerProcess::start_with(SERVER, &format!("{own}{SCORES}")).await;
    let (mut proxy, page) = page_of(&["--nodes", server.addr()], &["--tokens", file.to_str().unwrap()]).await;
    let client = peanut_client::Client::builder().nodes([server.addr()]).build().await.unwrap();
    client.group("scores").get("Tom").await.unwrap();
    assert_eq!(get(&page, "/").await.0, 401);
    let by = |name: &str| format!("Bearer secret-of-the-{name}");
    let target = || json!({ "group": "scores", "key": "Tom" });
    assert_eq!(post(&page, "lookup", target(), &[("authorization", &by("reader"))]).await.0, 403);
    proxy.wait_for_line("peanut::audit: refused").await;
    let (code, found) = post(&page, "lookup", target(), &[("authorization", &by("operator"))]).await;
    assert_eq!((code, &found["holdings"][0]["entry"]["size"]), (200, &3.into()));
    assert_eq!(found["value"], Value::Null, "it may not read");
    let (_, found) = post(&page, "lookup", target(), &[("authorization", &by("owner"))]).await;
    assert_eq!(found["value"]["text"], "630");
    let whole = || json!({ "group": "scores" });
    assert_eq!(post(&page, "clear", whole(), &[("authorization", &by("operator"))]).await.0, 403);
    assert_eq!(post(&page, "delete", target(), &[("authorization", &by("operator"))]).await.0, 200);
    assert_eq!(post(&page, "clear", whole(), &[("authorization", &by("owner"))]).await.0, 200);
    let other = secrets.path().join("reader");
    assert!(other.exists());
    std::fs::write(&other, "another-secret-of-the-reader").unwrap();
    proxy.wait_for_line("peanut::audit: tokens were read again").await;
}
