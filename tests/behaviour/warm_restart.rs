//! A node with a directory of its own is started again: what it had is there, what must not be is not, and
//! the origin is left alone.

use std::collections::HashMap;
use std::path::PathBuf;
use std::time::Duration;

use nix::sys::signal::Signal;
use peanut_client::{Client, Group};
use peanut_server::segment::RECORD_OVERHEAD_BYTES;
use peanut_tests::{Etcd, Origin, ServerProcess, eventually, group_from, now};
use tempfile::TempDir;
use tokio::task::JoinSet;

/// `PEANUT_WARM_ENTRIES` is for a longer look.
fn entries() -> usize {
    std::env::var("PEANUT_WARM_ENTRIES").ok().and_then(|n| n.parse().ok()).unwrap_or(50_000)
}

/// A server with a directory, an origin behind it, and a client.
struct Node {
    directory: TempDir,
    origin: Origin,
    server: ServerProcess,
    client: Client,
}

impl Node {
    async fn start(settings: &str, group: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let data = directory.path().display().to_string();
        Node::start_in(directory, &data, settings, group).await
    }

    async fn start_in(directory: TempDir, data: &str, settings: &str, group: &str) -> Self {
        let origin = Origin::start(Duration::ZERO).await;
        let port = peanut_tests::free_port();
        // Two thousand loads wait at the origin at once, and the machine may be busy.
        let of_group = format!("ttl_jitter = 0\nttl = \"1h\"\nload_timeout = \"60s\"\n{group}");
        let group = group_from("g", origin.url(), &of_group) + "timeout = \"60s\"\n";
        let config = format!("listen = \"127.0.0.1:{port}\"\ndata_dir = \"{data}\"\n{settings}\n{group}");
        let server = ServerProcess::start_with(crate::SERVER, &config).await;
        let client = Client::builder().nodes([server.addr()]).deadline(Duration::from_secs(60));
        let client = client.build().await.unwrap();
        Node { directory, origin, server, client }
    }

    fn group(&self) -> Group {
        self.client.group("g")
    }

    async fn get(&self, key: &str) -> String {
        let value = self.group().get(key).await.unwrap_or_else(|error| panic!("{key}: {error}"));
        String::from_utf8(value.unwrap().to_vec()).unwrap()
    }

    /// Gets key 0 to `entries`, and checks every value.
    async fn get_all(&self, entries: usize) {
        let mut running = JoinSet::new();
        for begin in (0..entries).step_by(500) {
            let group = self.group();
            running.spawn(async move {
                let keys: Vec<String> =
                    (begin..entries.min(begin + 500)).map(|n| format!("key-{n}")).collect();
                for (key, value) in keys.iter().zip(group.get_many(&keys).await) {
                    let value = value.unwrap_or_else(|error| panic!("{key}: {error}"));
                    assert_eq!(value.unwrap(), format!("value of {key}"), "{key}");
                }
            });
            // Few enough that none is refused, at 128 loads and 2,048 that wait.
            while running.len() >= 4 {
                running.join_next().await.unwrap().unwrap();
            }
        }
        while let Some(ended) = running.join_next().await {
            ended.unwrap();
        }
    }

    async fn stop(&mut self) {
        self.server.process().signal(Signal::SIGTERM);
        assert_eq!(self.server.process().ended().await.code(), Some(0));
    }

    /// What it said of the restart.
    async fn warm(&mut self) -> String {
        self.server.process().wait_for_line("warm restart").await
    }

    fn asked(&self) -> u64 {
        self.origin.asked().values().sum()
    }

    fn segments(&self) -> Vec<PathBuf> {
        let files = std::fs::read_dir(self.directory.path().join("g")).unwrap();
        let mut segments: Vec<_> =
            files.map(|file| file.unwrap().path()).filter(|path| !path.ends_with("lock")).collect();
        segments.sort();
        segments
    }

    fn warnings(&mut self) -> Vec<String> {
        self.server.process().log().into_iter().filter(|line| line.contains("WARN")).collect()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_stop_all_entries_are_back_and_the_origin_is_left_alone() {
    let entries = entries();
    let mut node = Node::start("", "capacity = \"256MiB\"").await;
    node.get_all(entries).await;
    assert_eq!(node.asked(), entries as u64);
    node.stop().await;

    let begun = now();
    node.server.start_again().await;
    assert_eq!(node.get("key-0").await, "value of key-0");
    let first_answer = begun.elapsed();
    // At once, while they are still coming back.
    node.get_all(entries).await;
    let again = node.asked() - entries as u64;
    // How many depends on how fast each of the two is.
    assert!(again * 4 <= entries as u64, "{again} of {entries} were loaded again");
    let said = node.warm().await;
    node.get_all(entries).await;
    assert_eq!(node.asked() - entries as u64, again, "all are there");
    assert!(said.contains(&format!("{entries} entries are back")) || again > 0, "{said}");
    println!("{entries} entries: the first answer after {first_answer:?}, {again} loaded again; {said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_kill_what_was_sealed_is_back() {
    let entries = entries();
    let mut node = Node::start("seal_interval = \"500ms\"", "capacity = \"256MiB\"").await;
    node.get_all(entries).await;
    let directory = node.directory.path().join("g");
    eventually("the last segment to be sealed", async || {
        let files = std::fs::read_dir(&directory).unwrap();
        let open =
            files.filter(|file| file.as_ref().unwrap().path().extension().is_some_and(|e| e == "open"));
        (open.count() == 0).then_some(())
    })
    .await;
    node.server.process().kill();
    node.server.start_again().await;
    node.warm().await;
    node.get_all(entries).await;
    let again = node.asked() - entries as u64;
    assert!(again * 20 <= entries as u64, "{again} of {entries} were loaded again");
}

/// A write that its caller has dropped, while its node is down for longer than one attempt may take.
#[tokio::test(flavor = "multi_thread")]
async fn a_write_that_was_dropped_while_its_node_was_down_deletes_what_comes_back() {
    let mut node = Node::start("", "").await;
    node.get("k").await;
    node.stop().await;
    let client = Client::builder().nodes([node.server.addr()]).build_lazy().unwrap();
    let group = client.group("g").with_deadline(Duration::from_millis(100));
    let mut set = Box::pin(group.set("k", "new"));
    assert!(futures_util::poll!(&mut set).is_pending());
    drop(set);
    // An attempt has five seconds.
    tokio::time::sleep(Duration::from_secs(6)).await;
    node.server.start_again().await;
    node.warm().await;
    assert_eq!(node.asked(), 1, "it has come back from the disk");
    eventually("the key to be deleted", async || {
        node.get("k").await;
        (node.asked() == 2).then_some(())
    })
    .await;
}

/// Where the first value of the second half begins.
fn value_in_the_middle(bytes: &[u8]) -> usize {
    let middle = bytes.len() / 2;
    let words = b"value of key-";
    middle + bytes[middle..].windows(words.len()).position(|window| window == words).unwrap()
}

/// Whatever is done to the files, the node comes up, no value is wrong, and what is missing is loaded.
#[tokio::test(flavor = "multi_thread")]
async fn damaged_files_cost_what_is_damaged_and_nothing_else() {
    const ENTRIES: usize = 2_000;
    type Damage = fn(&std::path::Path, Vec<u8>);
    let damages: HashMap<&str, Damage> = HashMap::from([
        (
            "truncated",
            (|path, bytes| std::fs::write(path, &bytes[..bytes.len() * 9 / 10]).unwrap()) as Damage,
        ),
        ("flipped in a value", |path, mut bytes| {
            let value = value_in_the_middle(&bytes);
            bytes[value] ^= 0x10;
            std::fs::write(path, bytes).unwrap();
        }),
        // Where the next record begins nobody can tell then: those after it are lost.
        ("flipped in a length", |path, mut bytes| {
            let value = value_in_the_middle(&bytes);
            let key = bytes[..value].windows(4).rposition(|window| window == b"key-").unwrap();
            bytes[key - RECORD_OVERHEAD_BYTES] ^= 0x10;
            std::fs::write(path, bytes).unwrap();
        }),
        ("foreign", |path, bytes| {
            let name = path.file_name().unwrap().to_str().unwrap().replace("0000000000", "0000000001");
            std::fs::write(path.with_file_name(name), vec![b'x'; bytes.len()]).unwrap();
        }),
        ("empty", |path, _| std::fs::write(path, b"").unwrap()),
        ("of a future format", |path, mut bytes| {
            bytes[8] = 200;
            std::fs::write(path, bytes).unwrap();
        }),
        ("half written", |path, bytes| {
            std::fs::remove_file(path).unwrap();
            let open = format!("{}.open", path.display());
            std::fs::write(open, &bytes[..bytes.len() / 2]).unwrap();
        }),
    ]);
    for (name, damage) in damages {
        let mut node = Node::start("", "").await;
        node.get_all(ENTRIES).await;
        node.stop().await;
        let segment = node.segments().pop().unwrap();
        damage(&segment, std::fs::read(&segment).unwrap());
        node.server.start_again().await;
        node.warm().await;
        node.get_all(ENTRIES).await;
        let again = node.asked() as usize - ENTRIES;
        let expected = match name {
            "truncated" => ENTRIES / 20..ENTRIES / 5,
            "flipped in a value" => 1..2,
            "foreign" => 0..1,
            "flipped in a length" | "half written" => ENTRIES / 3..ENTRIES * 2 / 3,
            _ => ENTRIES..ENTRIES + 1,
        };
        assert!(expected.contains(&again), "{name}: {again} of {ENTRIES} were loaded again");
        // And the next time all is well.
        node.stop().await;
        node.server.start_again().await;
        let said = node.warm().await;
        assert!(said.contains(&format!("{ENTRIES} entries are back")), "{name}: {said}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn expired_entries_do_not_return_and_others_expire_in_time() {
    let mut node = Node::start("seal_interval = \"100ms\"", "").await;
    for n in 0..100 {
        // The origin says how long.
        node.get(&format!("for-2s-{n}")).await;
        node.get(&format!("stays-{n}")).await;
    }
    node.stop().await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    node.server.start_again().await;
    let said = node.warm().await;
    // On a slow machine some had expired before the stop.
    assert!(said.contains("100 entries are back") && said.contains(" expired"), "{said}");
    for n in 0..100 {
        node.get(&format!("for-2s-{n}")).await;
        node.get(&format!("stays-{n}")).await;
    }
    let asked = node.origin.asked();
    assert!((0..100).all(|n| asked[&format!("for-2s-{n}")] == 2 && asked[&format!("stays-{n}")] == 1));
}

/// A disk of one mebibyte, in a mount namespace of the server's own.
#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_costs_one_warning_and_no_call() {
    let script = "mount -t tmpfs -o size=1m tmpfs \"$1\" && shift && exec \"$@\"";
    let works = std::process::Command::new("unshare")
        .args(["-Urm", "sh", "-c", script, "sh", "/mnt", "true"])
        .output();
    if !works.is_ok_and(|output| output.status.success()) {
        eprintln!("skipped: this system gives no mount namespaces to users");
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let data = directory.path().join("disk");
    std::fs::create_dir(&data).unwrap();
    let wrapper = directory.path().join("server");
    let text = format!(
        "#!/bin/sh\nexec unshare -Urm sh -c '{script}' sh {} {} \"$@\"\n",
        data.display(),
        crate::SERVER
    );
    std::fs::write(&wrapper, text).unwrap();
    let mut permissions = std::fs::metadata(&wrapper).unwrap().permissions();
    std::os::unix::fs::PermissionsExt::set_mode(&mut permissions, 0o755);
    std::fs::set_permissions(&wrapper, permissions).unwrap();

    let origin = Origin::start(Duration::ZERO).await;
    // Thousands of loads wait at the origin at once, and the machine may be busy.
    let group = group_from("g", origin.url(), "ttl = \"1h\"\nload_timeout = \"60s\"") + "timeout = \"60s\"\n";
    let config = format!("listen = \"127.0.0.1:0\"\ndata_dir = \"{}\"\n{group}", data.display());
    let server = ServerProcess::start_with(wrapper.to_str().unwrap(), &config).await;
    let client =
        Client::builder().nodes([server.addr()]).deadline(Duration::from_secs(20)).build().await.unwrap();
    let mut node = Node { directory, origin, server, client };
    node.get_all(30_000).await;
    node.server.process().wait_for_line("the disk failed").await;
    node.get_all(30_000).await;
    assert_eq!(node.asked(), 30_000, "in memory nothing is amiss");
    assert_eq!(node.warnings().len(), 1, "{:?}", node.warnings());
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_groups_directory_that_cannot_be_used_costs_a_warning() {
    let directory = tempfile::tempdir().unwrap();
    let data = directory.path().join("data");
    std::fs::create_dir(&data).unwrap();
    // What cannot be the directory of all groups is told at the start; this is seen when the node runs.
    std::fs::write(data.join("g"), "not a directory").unwrap();
    let mut node = Node::start_in(directory, data.to_str().unwrap(), "", "").await;
    assert_eq!(node.get("k").await, "value of k");
    assert!(node.warnings()[0].contains("cannot be used"), "{:?}", node.warnings());
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_group_that_was_away_comes_back_without_what_it_had() {
    let directory = tempfile::tempdir().unwrap();
    let port = peanut_tests::free_port();
    let group = |name: &str| format!("[[group]]\nname = \"{name}\"\nloader = {{ kind = \"none\" }}\n");
    let data = directory.path().display();
    let own =
        format!("listen = \"127.0.0.1:{port}\"\nnodes = [\"127.0.0.1:{port}\"]\ndata_dir = \"{data}\"\n");
    let both = format!("{own}{}{}", group("stays"), group("goes"));
    let mut server = ServerProcess::start_with(crate::SERVER, &both).await;
    let client =
        Client::builder().nodes([server.addr()]).deadline(Duration::from_secs(20)).build().await.unwrap();
    let what_is_there = async || {
        let mut found = Vec::new();
        for name in ["stays", "goes"] {
            found.push(client.group(name).get("k").await.unwrap().is_some());
        }
        found
    };
    for name in ["stays", "goes"] {
        client.group(name).set("k", "old").await.unwrap();
    }
    let mut restart = async |config: &str| {
        server.process().signal(Signal::SIGTERM);
        assert_eq!(server.process().ended().await.code(), Some(0));
        server.configure(config);
        server.start_again().await;
        eventually("what was kept to be back", async || client.group("stays").get("k").await.ok()?).await;
    };
    restart(&both).await;
    assert_eq!(what_is_there().await, [true, true]);
    restart(&format!("{own}{}", group("stays"))).await;
    // Whatever is written of the other group now, this node does not hear of it.
    restart(&both).await;
    assert_eq!(what_is_there().await, [true, false]);
}

/// The registry tells a node that starts of the generation again, which it knows from its disk.
#[tokio::test(flavor = "multi_thread")]
async fn a_group_that_was_cleared_comes_back_with_what_came_since() {
    let etcd = Etcd::start().await;
    let settings = format!("[etcd]\nendpoints = [\"{}\"]", etcd.endpoint());
    let mut node = Node::start(&settings, "").await;
    let client = Client::builder().etcd([etcd.endpoint()]).build().await.unwrap();
    let group = client.group("g");
    let get = async |key: &str| String::from_utf8(group.get(key).await.unwrap().unwrap().to_vec()).unwrap();
    get("before").await;
    group.clear().await.unwrap();
    for n in 0..100 {
        get(&format!("since-{n}")).await;
    }
    assert_eq!(node.asked(), 101);
    for is_killed in [false, true] {
        if is_killed {
            // What was loaded since the start is on the disk already.
            node.server.process().signal(Signal::SIGKILL);
            node.server.process().ended().await;
        } else {
            node.stop().await;
        }
        node.server.start_again().await;
        assert!(node.warm().await.contains("100 entries are back"), "{:?}", node.server.process().log());
        for n in 0..100 {
            get(&format!("since-{n}")).await;
        }
        assert_eq!(node.asked(), 101, "nothing is loaded again");
    }
    get("before").await;
    assert_eq!(node.asked(), 102);
    // One that is down while the group is cleared has nothing to show.
    node.stop().await;
    group.clear().await.unwrap();
    node.server.start_again().await;
    node.warm().await;
    get("since-1").await;
    assert_eq!(node.asked(), 103);
}
